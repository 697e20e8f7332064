"""Unmodified TLS clients and a constrained CA: what each family believes, with the variables we publish.

The server holds leaves that the CA's key signed: one for a permitted name, and one for another name, as a
thief of that key would make it.
"""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from holdgate.adapters.ca import LeafMaker, create_ca, load_ca
from holdgate.adapters.ca_rotation import rotate
from holdgate.adapters.trust import publish

OURS, OTHER = "api.ok.test", "api.evil.example"
_ANSWER = (
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n{}"
)
_PYTHON = """
import socket, ssl, sys
context = ssl.create_default_context()
context.wrap_socket(socket.create_connection(("127.0.0.1", int(sys.argv[1]))), server_hostname=sys.argv[2])
"""
_NODE = """
const [port, name] = process.argv.slice(1);
const socket = require("tls").connect({host: "127.0.0.1", port, servername: name}, () => process.exit(0));
socket.on("error", (error) => { console.error(error.message); process.exit(1); });
"""
_JAVA = """
import java.net.Socket;
import javax.net.ssl.*;
public class Client {
  public static void main(String[] words) throws Exception {
    SSLSocketFactory factory = (SSLSocketFactory) SSLSocketFactory.getDefault();
    int port = Integer.parseInt(words[0]);
    SSLSocket socket = (SSLSocket) factory.createSocket(new Socket("127.0.0.1", port), words[1], port, true);
    SSLParameters parameters = socket.getSSLParameters();
    parameters.setEndpointIdentificationAlgorithm("HTTPS");
    socket.setSSLParameters(parameters);
    socket.startHandshake();
  }
}
"""


@dataclass
class Server:
    """Answers every TLS connection with one small JSON document, under the leaf for its SNI."""

    folder: Path
    env: dict[str, str]
    port: int


def _context(maker: LeafMaker, folder: Path) -> ssl.SSLContext:
    contexts = {}
    for name in (OURS, OTHER):
        pem = folder / f"{name}.pem"
        pem.write_bytes(maker.pem(name))
        contexts[name] = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        contexts[name].load_cert_chain(pem)

    def choose(tls: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
        tls.context = contexts.get(name or "", contexts[OURS])

    contexts[OURS].sni_callback = choose  # type: ignore[assignment]
    return contexts[OURS]


def _serve(listener: socket.socket, context: ssl.SSLContext) -> None:
    while True:
        try:
            plain, _ = listener.accept()
        except OSError:
            return
        with plain:
            plain.settimeout(60)
            try:
                with context.wrap_socket(plain, server_side=True) as tls:
                    tls.recv(4096)
                    tls.sendall(_ANSWER)
            except OSError:
                pass  # the client's word is what is tested


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("ca")
    create_ca(folder / "state", "test", names=("ok.test",))
    rotate(folder / "state", "test", ("ok.test",))  # two roots: every client must take the one that signs
    authority = load_ca(folder / "state")
    env = publish(folder / "trust", authority.pem)
    (folder / "Client.java").write_text(_JAVA)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        context = _context(LeafMaker(authority), folder)
        threading.Thread(target=_serve, args=(listener, context), daemon=True).start()
        kept = {"PATH": os.environ["PATH"], "HOME": str(folder)}
        yield Server(folder, kept | env, listener.getsockname()[1])
        listener.shutdown(socket.SHUT_RDWR)


CLIENTS = {
    "python": [sys.executable, "-c", _PYTHON, "{port}", "{name}"],
    "curl": ["curl", "-sS", "--resolve", "{name}:{port}:127.0.0.1", "https://{name}:{port}/"],
    "node": ["node", "-e", _NODE, "{port}", "{name}"],
    "openssl": [
        *("openssl", "s_client", "-connect", "127.0.0.1:{port}", "-servername", "{name}"),
        *("-verify_return_error", "-verify_hostname", "{name}", "-brief"),
    ],
    "kubectl": [  # Go's crypto/tls
        *("kubectl", "--server", "https://127.0.0.1:{port}", "--tls-server-name", "{name}", "--token", "t"),
        *("get", "--raw", "/"),
    ],
    "git": [  # GnuTLS on Debian
        *("git", "-c", "http.curloptResolve={name}:{port}:127.0.0.1", "ls-remote", "https://{name}:{port}/x"),
    ],
    "java": ["java", "Client.java", "{port}", "{name}"],
}
# What a client says when it believed the certificate and is unhappy with what came after it.
_BELIEVED = {"git": "not valid: is this a git repository?"}


@pytest.mark.parametrize("name", [OURS, OTHER], ids=["a permitted name", "another name"])
@pytest.mark.parametrize(
    "client", [pytest.param(one, marks=pytest.mark.slow) if one == "java" else one for one in CLIENTS]
)
def test_a_client_believes_the_constrained_ca_for_permitted_names_only(
    server: Server, client: str, name: str
) -> None:
    if shutil.which(CLIENTS[client][0]) is None:
        pytest.skip(f"{client} is not installed")
    words = [
        word if word in (_PYTHON, _NODE) else word.format(port=server.port, name=name)
        for word in CLIENTS[client]
    ]
    done = subprocess.run(
        words,
        cwd=server.folder,
        env=server.env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    said = done.stdout + done.stderr
    believed = done.returncode == 0 or _BELIEVED.get(client, "\0") in said
    assert believed is (name == OURS), said
