"""adapters/exporting.py: the invariants in its docstring; sinks against servers on loopback."""

from __future__ import annotations

import datetime
import http.server
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from evidence import RECEIPT_KEY, T0, permit_statement, receipt_id
from holdgate.adapters.exporting import Cursor, FileSink, HttpSink, SyslogSink, export
from holdgate.errors import BackendError, ConfigError
from holdgate.receipt import sign
from holdgate.siem import FORMATS, Row

ORIGIN = "holdgate.local/edge-1"


def _made(number: int) -> Row:
    said = permit_statement(receipt_id=receipt_id(number), iat_us=T0 + number, replay_of="")
    return Row(index=number, jws=sign(said, RECEIPT_KEY), statement=said)


ROWS = [_made(number) for number in range(12)]


def _id(row: Row) -> str:
    return str(row.statement["id"])


def _read(rows: Sequence[Row]) -> Callable[[int, int], Sequence[Row]]:
    return lambda index, most: rows[index : index + most]


class Kept:
    """A sink that fails when it is told to."""

    def __init__(self, fails_at: int = -1) -> None:
        self.rows: list[Row] = []
        self._fails_at = fails_at

    def take(self, rows: Sequence[Row]) -> None:
        if self._fails_at in (row.index for row in rows):
            raise OSError(32, "gone")
        self.rows.extend(rows)

    def close(self) -> None:
        pass


def test_e1_the_cursor_follows_what_was_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("holdgate.adapters.exporting._BATCH", 5)
    cursor = Cursor(path=tmp_path / "cursor", origin=ORIGIN)
    assert cursor.load(12) is None
    broken = Kept(fails_at=7)
    with pytest.raises(OSError, match="gone"):
        export(_read(ROWS), broken, start=0, limit=-1, done=cursor.save, wait=lambda: False)
    assert cursor.load(12) == 5
    again = Kept()
    start = cursor.load(12) or 0
    assert export(_read(ROWS), again, start=start, limit=-1, done=cursor.save, wait=lambda: False) == 7
    assert {_id(row) for row in (*broken.rows, *again.rows)} == {_id(row) for row in ROWS}
    assert cursor.load(12) == 12


def test_e1_a_growing_log_is_followed_until_told_to_stop() -> None:
    log, sink, answers = ROWS[:3], Kept(), [True, True, False]

    def wait() -> bool:
        log.extend(ROWS[len(log) : len(log) + 4])
        return answers.pop(0)

    assert export(_read(log), sink, start=1, limit=-1, done=lambda _: None, wait=wait) == 10
    assert [row.index for row in sink.rows] == list(range(1, 11))
    assert export(_read(ROWS), Kept(), start=0, limit=4, done=lambda _: None, wait=lambda: True) == 4


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"[]", b'{"origin": "other", "next": 3}', b'{"origin": "%s", "next": 13}' % ORIGIN.encode(),
     b'{"origin": "%s", "next": -1}' % ORIGIN.encode(), b'{"origin": "%s", "next": "3"}' % ORIGIN.encode()],
)  # fmt: skip
def test_e2_a_cursor_that_is_not_of_this_log_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "cursor").write_bytes(content)
    with pytest.raises(ConfigError):
        Cursor(path=tmp_path / "cursor", origin=ORIGIN).load(12)


@pytest.mark.parametrize("rotate_bytes", [0, 1, 5000])
def test_e3_no_line_is_lost_or_cut_by_rotation(tmp_path: Path, rotate_bytes: int) -> None:
    path = tmp_path / "receipts.jsonl"
    for rows in (ROWS[:5], ROWS[5:]):  # two runs, as after a restart
        sink = FileSink(path, FORMATS["jsonl"], rotate_bytes=rotate_bytes)
        sink.take(rows)
        sink.close()
    files = sorted(path for path in tmp_path.iterdir() if path.name != "receipts.jsonl")
    lines = [line for file in [*files, path] for line in file.read_text().splitlines()]
    assert [json.loads(line)["index"] for line in lines] == list(range(12))
    assert len(files) == {0: 0, 1: 11}.get(rotate_bytes, len(files))
    assert rotate_bytes != 5000 or files
    assert all(file.stat().st_size <= 5000 for file in files) or rotate_bytes == 1


def test_e3_a_line_that_a_crash_cut_does_not_swallow_the_next(tmp_path: Path) -> None:
    path = tmp_path / "receipts.jsonl"
    path.write_text('{"index": 0, "jws": "eyJ')
    sink = FileSink(path, FORMATS["jsonl"], rotate_bytes=0)
    sink.take(ROWS[:1])
    sink.close()
    assert json.loads(path.read_text().splitlines()[1])["index"] == 0


# --- network ---


@contextmanager
def _http(status: int) -> Iterator[tuple[str, list[tuple[dict[str, str], bytes]]]]:
    seen: list[tuple[dict[str, str], bytes]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            seen.append((dict(self.headers), self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(status)
            self.send_header("Location", "/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_POST  # a redirect would come back as one

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1/logs", seen
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("form", FORMATS)
def test_a_batch_is_posted_and_acknowledged(form: str) -> None:
    with _http(204) as (url, seen):
        HttpSink(url, form, token="t0ken", context=ssl.create_default_context()).take(ROWS[:3])
    ((headers, body),) = seen
    assert headers["Authorization"] == "Bearer t0ken"
    for row in ROWS[:3]:
        assert _id(row).encode() in body
    assert len(body.splitlines()) == (1 if form == "otlp" else 3)


@pytest.mark.parametrize("status", [301, 307, 400, 503])
def test_e1_anything_but_2xx_is_no_acknowledgement_and_redirects_are_not_followed(status: int) -> None:
    with _http(status) as (url, seen):
        with pytest.raises(BackendError):
            HttpSink(url, "jsonl", token="", context=ssl.create_default_context()).take(ROWS[:1])
    assert len(seen) == 1


def _certificate(folder: Path, name: str) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    cert = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = folder / f"{name}.pem"
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(pem + cert.public_bytes(serialization.Encoding.PEM))
    return path


@pytest.mark.parametrize("name", ["localhost", "other.example"])
def test_syslog_messages_are_counted_and_the_peer_is_checked(tmp_path: Path, name: str) -> None:
    pem = _certificate(tmp_path, name)
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(pem)
    received: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            plain, _ = listener.accept()
            with plain:
                try:
                    with server_side.wrap_socket(plain, server_side=True) as secure:
                        while data := secure.recv(65536):
                            received.append(data)
                except OSError:
                    pass  # the client did not like our name

        thread = threading.Thread(target=serve)
        thread.start()
        context = ssl.create_default_context(cafile=str(pem))
        sink = SyslogSink("localhost", listener.getsockname()[1], FORMATS["cef"], context=context)
        if name == "localhost":
            sink.take(ROWS[:2])
            sink.take(ROWS[2:3])
        else:
            with pytest.raises(ssl.SSLCertVerificationError):
                sink.take(ROWS[:1])
        sink.close()
        thread.join()
    data, messages = b"".join(received), []
    while data:
        length, _, rest = data.partition(b" ")
        messages.append(rest[: int(length)])
        data = rest[int(length) :]
    assert len(messages) == (3 if name == "localhost" else 0)
    for message, row in zip(messages, ROWS, strict=False):
        assert message.startswith(
            b"<109>1 " + row.statement["iat"].encode() + b" edge-1 holdgate - decision - CEF:0|"
        )
