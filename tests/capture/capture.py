"""Record the raw requests of real client libraries as `surfaces/*/examples/*.http`.

A CONNECT proxy on loopback ends TLS with a throw-away certificate, writes down the first request
bytes of every call and answers with the little that the client library needs in order to be
content. Nothing leaves the machine: a name is never looked up. Credentials are fake.

    PYTHONPATH=proxy python tests/capture/capture.py [stripe] [aws] [fhir-r4] [slack] [openai] [anthropic]

It writes `.http` files only; what each must be recognised as (`.json` beside it) is written by hand.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import socket
import ssl
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from calls import CALLS
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from replies import reply

ROOT = Path(__file__).resolve().parents[2]
NAMES = (
    "api.stripe.com slack.com www.slack.com files.slack.com fhir.example.org api.openai.com "
    "api.anthropic.com s3.amazonaws.com *.s3.amazonaws.com *.s3.eu-central-1.amazonaws.com "
    "iam.amazonaws.com sts.amazonaws.com *.us-east-1.amazonaws.com *.eu-central-1.amazonaws.com"
).split()


def make_certificate(folder: Path, names: Sequence[str] = NAMES) -> Path:
    """One self-signed certificate for all `names`; key and certificate in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "holdgate capture")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host) for host in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = folder / "capture.pem"
    path.write_bytes(pem + certificate.public_bytes(serialization.Encoding.PEM))
    return path


class Recorder:
    """Accepts CONNECT, ends TLS, keeps every request's bytes."""

    def __init__(self, pem: Path) -> None:
        self.requests: list[bytes] = []
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(pem)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            threading.Thread(target=self._tunnel, args=(connection,), daemon=True).start()

    def _tunnel(self, connection: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            chunk = connection.recv(4096)
            if not chunk:
                return
            head += chunk
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        with self._context.wrap_socket(connection, server_side=True) as tls:
            while request := read_request(tls):
                self.requests.append(request)
                tls.sendall(reply(request))


def read_request(stream: ssl.SSLSocket) -> bytes:
    """One request exactly as sent: head, then the body still in its transfer coding."""
    data = b""
    while b"\r\n\r\n" not in data:
        chunk = stream.recv(65536)
        if not chunk:
            return b""
        data += chunk
    head, _, body = data.partition(b"\r\n\r\n")
    if re.search(rb"(?im)^expect: 100-continue\r?$", head):
        stream.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    length = re.search(rb"(?im)^content-length: (\d+)\r?$", head)
    chunked = re.search(rb"(?im)^transfer-encoding: chunked\r?$", head)
    while (chunked and not body.endswith(b"0\r\n\r\n")) or (length and len(body) < int(length[1])):
        body += stream.recv(65536)
    return head + b"\r\n\r\n" + body


def without_machine(raw: bytes) -> bytes:
    """Replace what telemetry says about this machine; it is of no use in a repository."""
    raw = re.sub(rb"Linux-[\w.+-]+", b"Linux-6.1.0-x86_64-with-glibc2.36", raw)
    raw = re.sub(rb"os/linux#[^ ]+", b"os/linux#6.1.0", raw)
    raw = re.sub(rb"(Linux/)[\w.+-]+", rb"\g<1>6.1.0", raw)
    return re.sub(rb'("telemetry_id": ")[0-9a-f]+', rb"\g<1>" + b"0" * 32, raw)


@contextlib.contextmanager
def environment(values: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def record(folder: Path, case: str, call: Callable[[], object], recorder: Recorder) -> None:
    """Run one call; its requests become CASE.http, CASE.2.http, ..."""
    recorder.requests.clear()
    try:
        call()
    except Exception as error:  # noqa: BLE001  the request is what counts; a canned answer may not please
        print(f"  {case}: client raised {type(error).__name__}: {error}"[:200])
    if not recorder.requests:
        raise SystemExit(f"{case}: the client sent nothing")
    for number, raw in enumerate(recorder.requests, start=1):
        suffix = "" if number == 1 else f".{number}"
        (folder / f"{case}{suffix}.http").write_bytes(without_machine(raw))
    print(f"{folder.parent.name}/{case}: {len(recorder.requests)}")


def main(names: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        pem = make_certificate(Path(folder))
        recorder = Recorder(pem)
        variables = {name: str(pem) for name in ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "AWS_CA_BUNDLE")}
        proxies = {name: recorder.url for name in ("HTTPS_PROXY", "https_proxy")}
        with environment(variables | proxies | {"NO_PROXY": "", "no_proxy": ""}):
            for name, make in CALLS.items():
                if names and name not in names:
                    continue
                examples = ROOT / "surfaces" / name / "examples"
                examples.mkdir(parents=True, exist_ok=True)
                for case, call in make(str(pem)).items():
                    record(examples, case, call, recorder)


if __name__ == "__main__":
    main(sys.argv[1:])
