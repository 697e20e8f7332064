"""git, pip, npm and google-cloud-storage as they are, behind the starter maps and policies: what is permitted
works, what is not ends in the client's own error, and the vendor saw nothing of it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from holdgate.demo.instance import Instance
from rawserver import RawRequest, RawServer
from vendor_answers import answer

pytestmark = pytest.mark.slow
HOSTS = "github.com storage.googleapis.com pypi.example.org files.pypi.example.org npm.example.org".split()
GIT = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
IDENTITY = {
    "GIT_AUTHOR_NAME": "agent",
    "GIT_AUTHOR_EMAIL": "agent@example.org",
    "GIT_COMMITTER_NAME": "agent",
    "GIT_COMMITTER_EMAIL": "agent@example.org",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_CONFIG_NOSYSTEM": "1",
}


@dataclass
class Bench:
    gate: Instance
    vendor: RawServer
    repositories: Path

    def run(self, *words: str, at: Path | None = None) -> subprocess.CompletedProcess[str]:
        environment = self.gate.client_env() | IDENTITY | {"HOME": str(self.gate.folder)}
        # A machine's npmrc may name a file of certificates, and then npm reads no other.
        environment["npm_config_cafile"] = environment["SSL_CERT_FILE"]
        return subprocess.run(
            words, env=environment, cwd=at, capture_output=True, text=True, timeout=120, check=False
        )

    def refused(self, *words: str, at: Path | None = None, seen: int = 0) -> str:
        """Run a client that must fail, `seen` permitted requests before; what it said."""
        before = len(self.vendor.requests)
        done = self.run(*words, at=at)
        assert done.returncode != 0, done.stdout
        assert len(self.vendor.requests) - before == seen, self.vendor.requests[before:]
        return done.stdout + done.stderr


def made(repositories: Path) -> None:
    """Bare repositories app and site, each with one commit."""
    script = """
        git init -q -b main seed; cd seed; echo one > a; git add a; git commit -qm first
        for name in app site; do
            git clone -q --bare . ../$name.git; git -C ../$name.git config http.receivepack true
        done
    """
    subprocess.run(
        ["sh", "-ec", script], cwd=repositories, env=IDENTITY | {"PATH": "/usr/bin:/bin"}, check=True
    )


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("vendors")
    (folder / "acme").mkdir()
    if shutil.which("git"):
        made(folder / "acme")

    def answered(request: RawRequest) -> bytes:
        return answer(request, folder) or b"HTTP/1.1 404 N\r\nContent-Length: 0\r\n\r\n"

    with RawServer(answered) as vendor:
        names = {f"{host}:443": vendor.address for host in HOSTS}
        with Instance(tmp_path_factory.mktemp("gate"), connect_to=names) as gate:
            yield Bench(gate, vendor, folder)


@GIT
def test_git_clones_and_pushes_where_it_may(bench: Bench, tmp_path: Path) -> None:
    done = bench.run("git", "clone", "-q", "https://agent:x@github.com/acme/app.git", str(tmp_path / "app"))
    assert done.returncode == 0, done.stderr
    (tmp_path / "app" / "a").write_text("two\n")
    at = tmp_path / "app"
    assert bench.run("git", "commit", "-qam", "more", at=at).returncode == 0
    done = bench.run("git", "push", "-q", "origin", "HEAD:topic", at=at)
    assert done.returncode == 0, done.stderr
    pushed = subprocess.run(
        ["git", "-C", str(bench.repositories / "acme" / "app.git"), "rev-parse", "topic"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert pushed.stdout == bench.run("git", "rev-parse", "HEAD", at=at).stdout


@GIT
def test_git_pushes_a_pack_in_chunks(bench: Bench, tmp_path: Path) -> None:
    at = tmp_path / "app"
    bench.run("git", "clone", "-q", "https://agent:x@github.com/acme/app.git", str(at))
    (at / "big").write_bytes(bytes(n * n * 7919 % 251 for n in range(300_000)))
    bench.run("git", "add", "big", at=at)
    bench.run("git", "commit", "-qm", "big", at=at)
    for branch in ("one", "two"):  # the probe of four bytes is the same each time
        push = ("push", "-q", "origin", f"HEAD:{branch}")
        done = bench.run("git", "-c", "http.postBuffer=65536", *push, at=at)
        assert done.returncode == 0, done.stderr


@GIT
def test_git_is_refused_other_repositories(bench: Bench, tmp_path: Path) -> None:
    said = bench.refused("git", "clone", "https://github.com/evil/app.git", str(tmp_path / "evil"))
    assert "403" in said
    at = tmp_path / "site"
    assert (
        bench.run("git", "clone", "-q", "https://agent:x@github.com/acme/site.git", str(at)).returncode == 0
    )
    assert bench.run("git", "commit", "-q", "--allow-empty", "-m", "more", at=at).returncode == 0
    # Which refs there are may be read; the push itself does not arrive.
    said = bench.refused("git", "push", "origin", "HEAD:topic", at=at, seen=1)
    assert "403" in said and bench.vendor.requests[-1].method == b"GET"


PIP = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-cache-dir", "--retries", "0"]
PIP += ["--disable-pip-version-check", "--index-url", "https://pypi.example.org/simple"]


def test_pip_downloads_what_it_may_and_nothing_else(bench: Bench, tmp_path: Path) -> None:
    done = bench.run(*PIP, "-d", str(tmp_path), "acme-tool")
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["acme_tool-1.0-py3-none-any.whl"]
    assert "acme-tol" in bench.refused(*PIP, "-d", str(tmp_path), "acme-tol")


@pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed")
def test_npm_installs_what_it_may_and_nothing_else(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "package.json").write_text("{}")
    install = ["npm", "install", "--no-fund", "--no-update-notifier", "--fetch-retries=0"]
    install += ["--registry", "https://npm.example.org"]
    done = bench.run(*install, "@acme/tool", at=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "node_modules" / "@acme" / "tool" / "package.json").is_file()
    assert "403" in bench.refused(*install, "@evil/tool", at=tmp_path)


STORAGE = """
from google.api_core.exceptions import GoogleAPIError
from google.cloud import storage
from google.oauth2.credentials import Credentials
client = storage.Client(project="acme", credentials=Credentials("ya29.not-a-secret"))
def blob(name, bucket="acme-reports", **more):
    return client.bucket(bucket).blob(name, **more)
def stream(name, data):
    with blob(name, chunk_size=1 << 20).open("wb", checksum=None) as file:
        file.write(data)
try:
    {call}
    print("OK")
except GoogleAPIError as error:
    print(type(error).__name__, error)
"""
BIG = "b'0123456789abcdef' * 196608"


@pytest.mark.parametrize(
    "call",
    [
        pytest.param("blob('q1/a b.csv').upload_from_string('a,b', timeout=20)", id="multipart"),
        pytest.param(f"blob('big').upload_from_string({BIG}, timeout=60)", id="3 MiB"),
        pytest.param(f"stream('b', {BIG})", id="resumable, chunk by chunk"),
        pytest.param("blob('a').download_as_bytes(checksum=None, timeout=20)", id="download"),
        pytest.param("list(client.list_blobs('acme-reports', prefix='q1/'))", id="list"),
        pytest.param("blob('all').compose([blob('a'), blob('b/c')])", id="compose"),
    ],
)
def test_google_cloud_storage_does_what_it_may(bench: Bench, call: str) -> None:
    pytest.importorskip("google.cloud.storage")
    done = bench.run(sys.executable, "-c", STORAGE.format(call=call))
    assert done.stdout == "OK\n", done.stdout + done.stderr


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        pytest.param("blob('a', 'partner').upload_from_string('x')", "no_rule_matched", id="another bucket"),
        pytest.param("blob('a').delete()", "no_rule_matched", id="delete"),
        pytest.param(
            "blob('a').upload_from_string('x', predefined_acl='publicRead')", "deny_rule", id="public by ACL"
        ),
        pytest.param(
            "blob('a').reload(client=client, projection='full', soft_deleted=True)",
            "unknown_parameter",
            id="unmapped",
        ),
        pytest.param("client.create_bucket('acme-new')", "unassigned_operation", id="unassigned"),
    ],
)
def test_google_cloud_storage_raises_its_own_error(bench: Bench, call: str, reason: str) -> None:
    pytest.importorskip("google.cloud.storage")
    before = len(bench.vendor.requests)
    done = bench.run(sys.executable, "-c", STORAGE.format(call=call))
    assert done.stdout.startswith(("Forbidden", "InvalidResponse")), done.stdout + done.stderr
    assert reason in done.stdout and "rcpt_" in done.stdout
    # The client asks for the bucket itself beside its calls, which is a read that is permitted.
    assert all(request.method == b"GET" for request in bench.vendor.requests[before:])


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_an_upload_goes_only_to_a_session_that_was_started_here(bench: Bench) -> None:
    """Whoever has the id of an upload may write to it: with one of another's bucket, data would go there."""
    place = "https://storage.googleapis.com/upload/storage/v1/b/acme-reports/o?uploadType=resumable"
    kind = ("-H", "Content-Type: application/octet-stream", "-H", "Content-Range: bytes 0-5/6")

    def curl(*words: str) -> str:
        done = bench.run("curl", "-si", "-H", "Authorization: Bearer ya29.not-a-secret", *words)
        assert done.returncode == 0, done.stderr
        return done.stdout

    before = len(bench.vendor.requests)
    said = curl("-X", "PUT", *kind, "-d", "secret", f"{place}&upload_id=theirs")
    assert "input_unavailable" in said and len(bench.vendor.requests) == before
    started = curl("-X", "POST", "-H", "Content-Type: application/json", "-d", '{"name":"q1/a"}', place)
    (own,) = re.findall(r"(?mi)^location: (\S+)", started)
    for foreign in (f"{place}&upload_id=theirs", f"{own}x"):
        said = curl("-X", "PUT", *kind, "-d", "secret", foreign)
        assert "input_unavailable" in said and len(bench.vendor.requests) == before + 1
    assert "PERMIT" in curl("-X", "PUT", *kind, "-d", "secret", own)
    assert bench.vendor.requests[-1].body == b"secret"
