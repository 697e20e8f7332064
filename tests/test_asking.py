"""adapters/asking.py: what of a proxy's answer counts, and who gets to see a credential."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from holdgate.adapters.asking import Answer, AskError, Credentials, ask_proxy, load_credentials
from holdgate.errors import ConfigError
from holdgate.inquiry import MAX_ANSWER_BYTES, Question
from holdgate.surface.spec import ReconcileSpec

PERMIT = b'Holdgate-Decision: PERMIT;id="rcpt_01K";reason=permit_rule;rule="a/b"\r\n'
WHO = Credentials(
    token=b"reconciler:horse", source="", hosts={"plain.test": ((b"authorization", b"Bearer rk"),)}
)


def asked(scheme: str = "http", host: str = "plain.test") -> Question:
    return Question(
        permit="rcpt_0",
        read="own.List",
        scheme=scheme,
        host=host,
        port=80 if scheme == "http" else 443,
        target="/things",
        headers=(("accept", "application/json"),),
        spec=ReconcileSpec(read="List", by="key", request=(), at="at", where=(("key", ("key",)),)),
        known={},
        since_s=0,
        is_key="k".__eq__,
    )


@contextmanager
def proxy(*answers: bytes) -> Iterator[tuple[tuple[str, int], list[bytes]]]:
    """Says one answer after each end of a head, and keeps what it read."""
    seen: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                for answer in answers:
                    data = b""
                    while b"\r\n\r\n" not in data and (more := connection.recv(65_536)):
                        data += more
                        if data[:1] == b"\x16":  # a TLS record has no end of a head
                            break
                    seen.append(data)
                    connection.sendall(answer)
                with suppress(OSError):  # the other side may have gone with what it had
                    connection.shutdown(socket.SHUT_WR)
                    connection.recv(1)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname(), seen
    thread.join(10)


def say(*answers: bytes, question: Question | None = None, who: Credentials = WHO) -> Answer:
    with proxy(*answers) as (address, _):
        return ask_proxy(address, question or asked(), who, ca_file=Path(__file__))


def answer(headers: bytes = PERMIT, body: bytes = b"{}", status: bytes = b"200 OK") -> bytes:
    return b"HTTP/1.1 %b\r\n%bContent-Length: %d\r\n\r\n%b" % (status, headers, len(body), body)


def test_ak1_an_answer_has_its_receipt() -> None:
    got = say(answer(PERMIT + b"Content-Type: application/json\r\n", b'{"a": 1}'))
    assert (got.receipt, got.head.status, got.body) == ("rcpt_01K", 200, b'{"a": 1}')
    chunked = b"HTTP/1.1 200 OK\r\n" + PERMIT + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
    assert say(chunked).body == b"{}"


@pytest.mark.parametrize(
    ("headers", "why"),
    [
        pytest.param(b"", "without exactly one decision", id="none"),
        pytest.param(PERMIT + PERMIT, "without exactly one decision", id="two"),
        pytest.param(PERMIT.replace(b"PERMIT", b"DENY"), "refused: DENY", id="DENY"),
        pytest.param(PERMIT.replace(b"PERMIT", b"SILENCE"), "refused: SILENCE", id="SILENCE"),
        pytest.param(PERMIT.replace(b"PERMIT", b"permit"), "could not record", id="another word"),
        pytest.param(
            b"Holdgate-Decision: SILENCE;reason=store_unavailable\r\n", "could not record", id="no receipt"
        ),
        pytest.param(PERMIT[:-2] + b";status=unknown\r\n", "permitted and failed", id="a failed exchange"),
        pytest.param(PERMIT[:-2] + b";status=not_sent\r\n", "permitted and failed", id="not sent"),
    ],
)
def test_ak1_only_one_permit_counts(headers: bytes, why: str) -> None:
    with pytest.raises(AskError, match=why):
        say(answer(headers))


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"HTTP/1.1 200 OK\r\n" + PERMIT, id="a head that is cut"),
        pytest.param(answer(body=b'{"a": 1}')[:-1], id="a body that is cut"),
        pytest.param(answer(PERMIT + b"Content-Length: 2\r\n"), id="two lengths"),
        pytest.param(answer(PERMIT + b"Transfer-Encoding: chunked\r\n"), id="two framings"),
        pytest.param(b"SSH-2.0\r\n\r\n", id="another protocol"),
        pytest.param(answer(body=b" " * (MAX_ANSWER_BYTES + 1)), id="too large"),
    ],
)
def test_ak3_what_is_not_whole_is_no_answer(raw: bytes) -> None:
    with pytest.raises(AskError):
        say(raw)


def test_ak3_nobody_there_is_no_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
    with pytest.raises(AskError, match="no whole answer"):
        ask_proxy(address, asked(), WHO, ca_file=Path(__file__))


def test_ak2_the_credential_is_for_its_host_alone() -> None:
    with proxy(answer()) as (address, seen):
        ask_proxy(address, asked(), WHO, ca_file=Path(__file__))
    (head,) = seen
    assert head.startswith(b"GET http://plain.test/things HTTP/1.1\r\nProxy-Authorization: Basic ")
    assert head.count(b"authorization: Bearer rk") == 1
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        with pytest.raises(AskError, match="no credential for other"):
            ask_proxy(server.getsockname(), asked(host="other.test"), WHO, ca_file=Path(__file__))
        with pytest.raises(BlockingIOError):
            server.accept()


def test_ak2_no_credential_before_tls_that_shows_our_ca(ca_pem: Path) -> None:
    with proxy(b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n") as (address, seen):
        with pytest.raises(AskError, match="no whole answer"):
            ask_proxy(address, asked("https"), WHO, ca_file=ca_pem)
    assert seen[0].startswith(b"CONNECT plain.test:443 HTTP/1.1\r\nHost: plain.test:443\r\nProxy-Auth")
    assert b"Bearer rk" not in b"".join(seen)


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        pytest.param(answer(PERMIT.replace(b"PERMIT", b"DENY"), status=b"407 No"), "refused", id="refused"),
        pytest.param(answer(b"", status=b"502 Bad"), "exactly one decision", id="another proxy"),
        pytest.param(answer(status=b"404 No"), "answered CONNECT with 404", id="none"),
        pytest.param(b"HTTP/1.1 200 OK\r\n\r\nmore", "before TLS", id="bytes before TLS"),
    ],
)
def test_ak2_no_tunnel_no_question(ca_pem: Path, reply: bytes, why: str) -> None:
    with proxy(reply) as (address, seen):
        with pytest.raises(AskError, match=why):
            ask_proxy(address, asked("https"), WHO, ca_file=ca_pem)
    assert len(seen) == 1 and b"Bearer rk" not in seen[0]


@pytest.fixture
def ca_pem() -> Path:
    import certifi

    return Path(certifi.where())


def written(folder: Path, text: str, mode: int = 0o600) -> Path:
    path = folder / "reconciler.yaml"
    path.write_text(text)
    path.chmod(mode)
    return path


GOOD = "proxy_token: me:s3cret\nsource: 127.0.0.9\nhosts: {a.test: {authorization: Bearer s3cret}}\n"


def test_ak4_a_good_file_is_read(tmp_path: Path) -> None:
    who = load_credentials(written(tmp_path, GOOD))
    assert (who.token, who.source) == (b"me:s3cret", "127.0.0.9")
    assert who.hosts == {"a.test": ((b"authorization", b"Bearer s3cret"),)}


@pytest.mark.parametrize(
    ("text", "mode", "why"),
    [
        pytest.param(GOOD, 0o640, "others can read", id="a group may read it"),
        pytest.param(GOOD, 0o604, "others can read", id="others may read it"),
        pytest.param("hosts: [", 0o600, "not YAML", id="no YAML"),
        pytest.param("proxy_token: me:s3cret\n", 0o600, "needs the key 'hosts'", id="no hosts"),
        pytest.param(GOOD.replace("me:s3cret", "s3cret"), 0o600, "NAME:TOKEN", id="a token of nobody"),
        pytest.param(GOOD.replace("127.0.0.9", "s3cret"), 0o600, "IP address", id="no address"),
        pytest.param(GOOD.replace("authorization", "Authorization"), 0o600, "lower-case", id="upper case"),
        pytest.param(GOOD.replace("authorization", "host"), 0o600, "a header is written", id="the host"),
        pytest.param(GOOD.replace("Bearer s3cret", '"a\\r\\nb: s3cret"'), 0o600, "printable", id="two lines"),
        pytest.param(GOOD.replace("Bearer s3cret", '"s3crét"'), 0o600, "printable ASCII", id="not ASCII"),
    ],
)
def test_ak4_a_bad_file_is_not_quoted(tmp_path: Path, text: str, mode: int, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as caught:
        load_credentials(written(tmp_path, text, mode))
    assert "s3cr" not in str(caught.value)


def test_ak4_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        load_credentials(tmp_path / "none.yaml")
