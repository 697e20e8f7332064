"""Record the raw requests of real clients, in many languages, as `tests/data/clients/CLIENT/CALL.http[.xz]`.

A namespace of its own (`unshare`, as root) has a loopback interface and nothing else. There every
name of HOSTS is 127.0.0.1, ports 443 and 80 belong to a recording server, and its throw-away certificate
stands in the place of every trust store. So the clients run as they are, without a proxy and
without a way out, and name the vendors. Credentials are fake.

    PYTHONPATH=tests:tests/capture python tests/capture/clients/record.py \\
        --python VENV/bin/python --node NODE_FOLDER [CLIENT ...]

A client that is not installed is skipped and named. A request above 8 KiB is packed (xz): the bodies repeat a
short text. Requests are exact, but for what tells about the machine (`without_machine`).
"""

from __future__ import annotations

import argparse
import lzma
import os
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import yaml
from replies import reply

from capture import make_certificate, without_machine
from rawserver import RawRequest, requests_of
from vendor_answers import answer, written

HERE = Path(__file__).resolve().parent
DATA = HERE.parents[1] / "data" / "clients"
PACK_ABOVE = 8192
HOSTS = """
    api.example.org api.stripe.com files.stripe.com slack.com www.slack.com files.slack.com hooks.slack.com
    fhir.example.org api.openai.com api.anthropic.com
    acme-reports.s3.eu-central-1.amazonaws.com acme-reports.s3.amazonaws.com s3.eu-central-1.amazonaws.com
    dynamodb.eu-central-1.amazonaws.com sqs.eu-central-1.amazonaws.com sns.eu-central-1.amazonaws.com
    lambda.eu-central-1.amazonaws.com sts.eu-central-1.amazonaws.com sts.amazonaws.com
    secretsmanager.eu-central-1.amazonaws.com monitoring.eu-central-1.amazonaws.com
    email.eu-central-1.amazonaws.com bedrock-runtime.eu-central-1.amazonaws.com
    storage.googleapis.com gmail.googleapis.com www.googleapis.com
    acme.blob.core.windows.net login.microsoftonline.com
    kube.example.org api.twilio.com api.sendgrid.com api.github.com uploads.github.com github.com
    vault.example.org es.example.org influx.example.org minio.example.org oci.example.org
    pypi.example.org files.pypi.example.org npm.example.org
""".split()
# What tests/capture/replies.py answers.
REPLIED = ("stripe.com", "slack.com", "openai.com", "anthropic.com", "fhir.example.org", "amazonaws.com")
GIT = {
    "user.name": "agent",
    "user.email": "agent@example.org",
    "init.defaultBranch": "main",
    "safe.directory": "*",
}
SHELL: dict[str, dict[str, str]] = yaml.safe_load((HERE / "shell_calls.yaml").read_text(encoding="utf-8"))
JAVA = "java -Djavax.net.ssl.trustStore=$TRUST -Djavax.net.ssl.trustStorePassword=changeit"
JARS = "/usr/share/java/*"  # Debian's libhttpclient-java, libhttpmime-java, libokhttp-java
PROGRAMS = {
    "java-httpclient": ("java", f"{JAVA} Calls.java"),
    "java-urlconnection": ("java", f"{JAVA} Calls.java"),
    "apache-httpclient": ("java", f"{JAVA} -cp '{JARS}' Libraries.java"),
    "okhttp": ("java", f"{JAVA} -cp '{JARS}' Libraries.java"),
    "go": ("go", "$GO_CALLS"),
    "ruby": ("ruby", "ruby calls.rb"),
    "php-curl": ("php", "php calls.php"),
    "php-stream": ("php", "php calls.php"),
    "perl-lwp": ("perl", "perl calls.pl"),
    "perl-http-tiny": ("perl", "perl calls.pl"),
}


class Server:
    """Ports 443 and 80 of 127.0.0.1; keeps every request's bytes, still in its transfer coding."""

    def __init__(self, pem: Path, repositories: Path) -> None:
        self.requests: list[tuple[bool, bytes]] = []
        self._repositories = repositories
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(pem)
        self._context.set_alpn_protocols(["http/1.1"])
        for port in (443, 80):
            listener = socket.create_server(("127.0.0.1", port))
            threading.Thread(target=self._accept, args=(listener, port == 443), daemon=True).start()

    def _accept(self, listener: socket.socket, tls: bool) -> None:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=self._serve, args=(connection, tls), daemon=True).start()

    def _serve(self, connection: socket.socket, tls: bool) -> None:
        try:
            stream = self._context.wrap_socket(connection, server_side=True) if tls else connection
            for request in requests_of(stream):
                raw = request.raw
                if raw.startswith(b"GET /mark "):
                    self.requests.clear()
                    stream.sendall(b"HTTP/1.1 204 OK\r\nContent-Length: 0\r\n\r\n")
                    continue
                self.requests.append((tls, raw))
                if raw.startswith(b"PRI "):
                    break
                stream.sendall(answered(request, self._repositories))
                if request.header(b"connection").lower() == b"close":
                    break
        except OSError as error:
            print(f"    connection: {error}")
        finally:
            connection.close()


def answered(request: RawRequest, repositories: Path) -> bytes:
    """What the vendor's stand-in says; for a host without one, a little JSON that most clients take."""
    known = answer(request, repositories)
    if known is None and request.header(b"host").decode().endswith(REPLIED):
        known = reply(request.raw)
    if known is None:
        found = b'{"id": "1", "name": "x", "object": "thing", "data": [], "items": [], "ok": true}'
        known = written(200, {"Content-Type": "application/json"}, found, "")
    return known.partition(b"\r\n\r\n")[0] + b"\r\n\r\n" if request.method == b"HEAD" else known


def trust_everywhere(pem: Path, folder: Path, python: str) -> dict[str, str]:
    """Our certificate in the place of every bundle; what clients in other languages need besides."""
    bundle = folder / "bundle.pem"
    text = pem.read_text()
    bundle.write_text(text[text.index("-----BEGIN CERTIFICATE") :])
    packages = Path(python).absolute().parents[1] / "lib"
    bundles = [Path("/etc/ssl/certs/ca-certificates.crt")]
    for pattern in ("certifi/cacert.pem", "stripe/data/ca-certificates.crt", "botocore/cacert.pem"):
        bundles += packages.glob(f"python3*/site-packages/{pattern}")
        bundles += packages.glob(f"python3*/site-packages/pip/_vendor/{pattern}")
    for path in bundles:
        subprocess.run(["mount", "--bind", str(bundle), str(path)], check=True)
    hosts = folder / "hosts"
    hosts.write_text("127.0.0.1 localhost " + " ".join(HOSTS) + "\n")
    subprocess.run(["mount", "--bind", str(hosts), "/etc/hosts"], check=True)
    store = folder / "trust.p12"
    if shutil.which("keytool"):
        words = ["keytool", "-importcert", "-noprompt", "-alias", "x", "-file", str(bundle), "-keystore"]
        subprocess.run([*words, str(store), "-storepass", "changeit"], check=True, capture_output=True)
    names = "REQUESTS_CA_BUNDLE SSL_CERT_FILE CURL_CA_BUNDLE NODE_EXTRA_CA_CERTS GIT_SSL_CAINFO PIP_CERT"
    return {name: str(bundle) for name in [*names.split(), "AWS_CA_BUNDLE"]} | {"TRUST": str(store)}


def clients(folder: Path, python: str) -> Iterator[tuple[str, str, str]]:
    """Every client, call, and the shell command of it."""
    for client, calls in SHELL.items():
        for call, command in calls.items():
            yield client, call, command
    for client, (tool, program) in PROGRAMS.items():
        if shutil.which(tool) is None:
            print(f"skipped: {client} ({tool} is not installed)")
            continue
        yield from _listed(client, f"cd {HERE}; {program} {client}")
    for program in (f"{python} {HERE}/python_calls.py", f"node {HERE}/node_calls.mjs"):
        named = subprocess.run(
            ["bash", "-c", program], capture_output=True, text=True, check=True
        ).stdout.split()
        for client in named:
            yield from _listed(client, f"{program} {client}")


def _listed(client: str, program: str) -> Iterator[tuple[str, str, str]]:
    if ONLY and client not in ONLY:
        return
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"skipped: {client}: {done.stderr.strip().splitlines()[-1:]}")
    for call in sorted(done.stdout.split()) if done.returncode == 0 else ():
        yield client, call, f"{program} {call}"


ONLY: set[str] = set()


def prepare(folder: Path, environment: dict[str, str], python: str, node: str) -> None:
    """Files and repositories that the calls work on."""
    pages = {"report.csv": b"a,b\n1,2\n", "other.csv": b"c\n", "big": b"0123456789abcdef" * (3 * 65_536)}
    for name, content in pages.items():
        (folder / name).write_bytes(content)
    environment |= {
        "API": "https://api.example.org",
        "PYTHON": python,
        "NODE_MODULES": node,
        "HOME": str(folder),
        "MARK": "curl -sS https://api.example.org/mark",
        "GO_CALLS": str(folder / "go_calls"),
        "GOCACHE": str(folder / "go"),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_AUTHOR_DATE": "2026-01-01T00:00:00Z",
        "GIT_COMMITTER_DATE": "2026-01-01T00:00:00Z",
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_GCE_CHECK": "true",
    }
    os.environ |= environment
    for key, value in GIT.items():
        subprocess.run(["git", "config", "--global", key, value], check=True)
    if shutil.which("go"):
        subprocess.run(["go", "build", "-o", str(folder / "go_calls"), str(HERE / "calls.go")], check=True)
    make = """
        git init -q seed; cd seed; echo one > a; git add a; git commit -qm first
        for n in $(seq 60); do echo $n > a; git commit -qam "change $n"; done
        git clone -q --bare . ../repos/acme/many.git; git checkout -q -b one HEAD~60
        git branch -D -q main; git branch -m main; git clone -q --bare . ../repos/acme/app.git
        git -C ../repos/acme/app.git config http.receivepack true
    """
    subprocess.run(["sh", "-ec", make], cwd=folder, check=True)


def write(client: str, call: str, seen: list[tuple[bool, bytes]]) -> None:
    folder = DATA / client
    folder.mkdir(parents=True, exist_ok=True)
    for old in [*folder.glob(f"{call}.http*"), *folder.glob(f"{call}.*.http*")]:
        old.unlink()
    for number, (tls, raw) in enumerate(seen, start=1):
        suffix = ("" if number == 1 else f".{number}") + ("" if tls else ".plain")
        raw = without_machine(raw)
        path = folder / f"{call}{suffix}.http"
        if len(raw) <= PACK_ABOVE:
            path.write_bytes(raw)
        else:
            path.with_name(path.name + ".xz").write_bytes(lzma.compress(raw, preset=9))


def inside(arguments: argparse.Namespace) -> None:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "repos" / "acme").mkdir(parents=True)
        pem = make_certificate(folder, HOSTS)
        environment = trust_everywhere(pem, folder, arguments.python)
        prepare(folder, environment, arguments.python, arguments.node)
        ONLY.update(arguments.clients)
        server = Server(pem, folder / "repos")
        for client, call, command in clients(folder, arguments.python):
            if ONLY and client not in ONLY:
                continue
            server.requests.clear()
            done = subprocess.run(
                ["bash", "-c", command], cwd=folder, capture_output=True, text=True, timeout=90, check=False
            )
            if not server.requests:
                print(f"{client}/{call}: sent nothing: {done.stderr.strip()[-400:]}")
                continue
            write(client, call, server.requests)
            said = f" (exit {done.returncode}: {done.stderr.strip()[-200:]!r})" if done.returncode else ""
            print(f"{client}/{call}: {len(server.requests)}{said}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", default=sys.executable, help="an interpreter that has the Python clients")
    parser.add_argument("--node", default=".", help="a folder with node_modules")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("clients", nargs="*")
    arguments = parser.parse_args()
    if arguments.inside:
        inside(arguments)
        return
    again = [sys.executable, __file__, "--inside", *sys.argv[1:]]
    raise SystemExit(
        subprocess.run(["unshare", "--net", "--mount", "--propagation", "private", *again]).returncode
    )


if __name__ == "__main__":
    main()
