"""adapters/envoy_door.py over loopback, asked as Envoy asks; the real Envoy: integration/test_envoy.py."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client_pki import Issued, dns, issue, make_ca
from desks import BOT, KEY, OTHER, Desk, Timers
from fakes import FakeUpstream, MemoryLedger
from holdgate.adapters.admin.shapes import decode_jws
from holdgate.adapters.envoy_door import EnvoyDoor
from holdgate.config import Address, AdminToken
from holdgate.config_ext_authz import ExtAuthz, MutualTls
from holdgate.errors import ConfigError, InputError, Outcome, Reason
from holdgate.ext_authz import PORT, SNI, SOURCE, TOKEN
from holdgate.keys import key_set
from holdgate.ledger import OutcomeStatus
from holdgate.message import Origin
from holdgate.receipt import verify

SECRET = "the-token-of-envoy"
TOKENS = (
    AdminToken(
        name="envoy",
        sha256=hashlib.sha256(SECRET.encode()).digest(),
        roles=("decider",),
        agents=("bot",),
    ),
    AdminToken(name="ops", sha256=hashlib.sha256(b"ops").digest(), roles=("operator",)),
)
FORM = b"amount=%d&payment_intent=pi_1"


def identify(origin: Origin) -> Any:
    if origin.source in ("10.0.0.7", "10.0.0.8"):
        return BOT if origin.source == "10.0.0.7" else OTHER
    raise InputError(Reason.UNKNOWN_AGENT, "nobody")


@dataclass
class Told:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def decision(self) -> str:
        return self.headers.get("holdgate-decision", "")


@dataclass
class Asker:
    desk: Desk
    door: EnvoyDoor

    async def raw(self, data: bytes) -> bytes:
        """Send, say that nothing follows, and read what comes until the door hangs up."""
        assert self.door.address is not None
        reader, writer = await asyncio.open_connection("127.0.0.1", self.door.address.port)
        writer.write(data)
        answer = bytearray()
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(60):
                while b"\r\n\r\n" not in answer and (piece := await reader.read(65_536)):
                    answer += piece
                head = bytes(answer).partition(b"\r\n\r\n")[0].lower()
                size = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0] or b"0")
                while len(answer) < len(head) + 4 + size and (piece := await reader.read(65_536)):
                    answer += piece
        writer.close()
        return bytes(answer)

    async def check(self, amount: int = 500, **change: Any) -> Told:
        return told(await self.raw(a_check(amount, **change)))


def a_check(
    amount: int = 500,
    *,
    method: str = "POST",
    target: str = "/v1/refunds",
    host: str = "api.stripe.com",
    body: bytes | None = None,
    key: str = "",
    more: tuple[tuple[str, str], ...] = (),
    **said: str,
) -> bytes:
    body = FORM % amount if body is None else body
    rows = [
        ("host", host),
        ("authorization", "Bearer sk_test_1"),
        ("content-type", "application/x-www-form-urlencoded"),
        *([("idempotency-key", key)] if key else []),
        *more,
        ("content-length", str(len(body))),
        ("x-forwarded-proto", "https"),
        (TOKEN, said.get("token", SECRET)),
        (SOURCE, said.get("source", "10.0.0.7")),
        (SNI, said.get("sni", "api.stripe.com")),
        (PORT, said.get("port", "443")),
    ]
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in rows)]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def told(answer: bytes) -> Told:
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    pairs = [line.partition(": ") for line in lines]
    return Told(int(first.split()[1]), {name.lower(): value for name, _, value in pairs}, body)


@pytest.fixture(scope="module")
def desk() -> Desk:
    made = Desk()
    made.pipeline.identify = identify
    return made


@contextlib.asynccontextmanager
async def opened(desk: Desk, tls: MutualTls | None = None) -> AsyncIterator[Asker]:
    desk.ledger, desk.upstream, desk.timers = MemoryLedger(), FakeUpstream(), Timers()
    desk.pipeline.ledger, desk.pipeline.dispatcher = desk.ledger, desk.upstream
    desk.decider._open.clear()
    desk.decider.later = desk.timers
    config = ExtAuthz(listen=Address(host="127.0.0.1", port=0), tls=tls)
    door = EnvoyDoor(config=config, decider=desk.decider, tokens=TOKENS)
    await door.start()
    try:
        yield Asker(desk, door)
    finally:
        await door.stop()
    assert desk.upstream.seen == [] and desk.pipeline.held_bytes == 0


async def test_a_permit_is_a_200_with_its_receipt(desk: Desk) -> None:
    async with opened(desk) as asker:
        answer = await asker.check()
        assert (answer.status, answer.body) == (200, b"")
        assert answer.decision.startswith("PERMIT;id=") and "stripe-refunds" in answer.decision
        found = verify(answer.headers["holdgate-receipt"].encode(), key_set([KEY.public]))
        said = decode_jws(desk.ledger.last.jws)
        assert found.statement["id"] == said["id"] and said["via"] == "ext_authz"
        assert said["destination"] == "api.stripe.com:443" and said["agent"] == "bot"


async def test_several_checks_on_one_connection(desk: Desk) -> None:
    async with opened(desk) as asker:
        assert asker.door.address is not None
        reader, writer = await asyncio.open_connection("127.0.0.1", asker.door.address.port)
        for amount, status in ((200_000, b"403"), (500, b"200"), (501, b"409")):  # the same charge
            writer.write(a_check(amount))
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)
            size = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            assert len(await reader.readexactly(size)) == size
            assert head.split()[1] == status
        writer.close()


REFUSED: dict[str, tuple[dict[str, Any], int, str]] = {
    "a refund too large": ({"amount": 200_000}, 403, "deny_rule"),
    "an operation that nobody mapped": ({"target": "/v1/nothing"}, 403, "unknown_operation"),
    "a host that nobody mapped": ({"host": "evil.test", "sni": "evil.test"}, 403, "unknown_destination"),
    "another host than in TLS": ({"sni": "files.stripe.com"}, 421, "identity_mismatch"),
    "no SNI": ({"sni": "-"}, 421, "identity_mismatch"),
    "another port than was dialled": ({"port": "8443"}, 421, "identity_mismatch"),
    "no port": ({"port": "https"}, 400, "malformed_request"),
    "an agent that nobody configured": ({"source": "10.0.0.9"}, 403, "unknown_agent"),
    "an agent of another token": ({"source": "10.0.0.8"}, 403, "unknown_agent"),
    "who says that it is another": ({"more": ((SOURCE, "10.0.0.8"),)}, 400, "malformed_request"),
    "a dot segment": ({"target": "/v1/../v1/refunds"}, 400, "non_canonical_path"),
    "two slashes": ({"target": "//v1/refunds"}, 400, "non_canonical_path"),
    "an escaped slash": ({"target": "/v1%2Frefunds"}, 403, "unknown_operation"),
    "a fragment": ({"target": "/v1/refunds#x"}, 400, "malformed_request"),
    "the whole URL": ({"target": "https://api.stripe.com/v1/refunds"}, 400, "malformed_request"),
    "an endpoint of the gate": (
        {"target": "/healthz", "method": "GET", "body": b""},
        403,
        "unknown_operation",
    ),
    "two content types": ({"more": (("content-type", "text/plain"),)}, 400, "malformed_request"),
    "a method override": ({"more": (("x-http-method-override", "GET"),)}, 403, "unknown_parameter"),
    "a cut body": ({"more": (("x-envoy-auth-partial-body", "true"),)}, 413, "too_large"),
    "a body over the limit": ({"body": b"a" * 1_048_577}, 413, "too_large"),
    "a parameter twice": ({"body": FORM % 5 + b"&amount=500"}, 400, "duplicate_parameter"),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_xd3_what_is_refused_is_a_4xx_with_a_receipt(desk: Desk, name: str) -> None:
    change, status, reason = REFUSED[name]
    async with opened(desk) as asker:
        answer = await asker.check(**change)
        assert (answer.status, f"reason={reason}" in answer.decision) == (status, True)
        said = decode_jws(desk.ledger.last.jws)
        assert (said["via"], said["reason"]) == ("ext_authz", reason)
        assert said["id"] in answer.decision and len(desk.ledger.entries) == 1


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(a_check(more=(("x-bin", "\xff\xfe"),)), id="a header that is no text"),
        pytest.param(a_check(more=(("content_length", "5"),)), id="a header that could be another"),
        pytest.param(a_check().replace(b"POST", b"PO ST"), id="no request line"),
        pytest.param(a_check(more=tuple((f"x-{i}", "") for i in range(200))), id="too many headers"),
    ],
)
async def test_xd3_what_cannot_be_read_has_a_receipt_too(desk: Desk, broken: bytes) -> None:
    async with opened(desk) as asker:
        answer = told(await asker.raw(broken))
        assert 400 <= answer.status < 500 and answer.headers["connection"] == "close"
        said = decode_jws(desk.ledger.last.jws)
        assert (said["via"], said["outcome"]) == ("ext_authz", "SILENCE")


STRANGERS = {
    "no token": a_check().replace(TOKEN.encode(), b"x-token"),
    "another token": a_check(token="guess"),
    "a token that decides nothing": a_check(token="ops"),
    "two tokens": a_check(more=((TOKEN, SECRET),)),
    "noise": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "unreadable, and no token": b"GET /  HTTP/1.1\r\n\r\n",
}


@pytest.mark.parametrize("name", STRANGERS)
async def test_xd2_without_a_token_nothing_is_decided(desk: Desk, name: str) -> None:
    async with opened(desk) as asker:
        answer = told(await asker.raw(STRANGERS[name]))
        assert (answer.status, answer.decision, desk.ledger.entries) == (403, "", [])


async def test_xd2_a_stranger_is_told_before_its_body_came(desk: Desk) -> None:
    async with opened(desk) as asker:
        waiting = a_check(token="guess", body=b"a" * 1000)
        assert told(await asker.raw(waiting[:-1000])).status == 403


async def test_slack_says_no_with_another_status_here(desk: Desk) -> None:
    async with opened(desk) as asker:
        answer = await asker.check(
            target="/api/chat.postMessage", host="slack.com", sni="slack.com", body=b"channel=C1&text=x"
        )
        said = json.loads(answer.body)
        assert (answer.status, said["ok"], said["decision"]) == (403, False, "SILENCE")


async def test_a_refusal_that_may_be_retried_is_no_5xx(desk: Desk) -> None:
    async with opened(desk) as asker:
        desk.ledger.broken = True
        answer = await asker.check()
        assert (answer.status, answer.headers["retry-after"]) == (403, "1")
        assert answer.decision == "SILENCE;reason=store_unavailable"


async def test_xd4_a_repeat_is_refused_until_its_outcome_is_known(desk: Desk) -> None:
    async with opened(desk) as asker:
        first = await asker.check(key="k-1")
        again = await asker.check(key="k-1")
        assert (first.status, again.status) == (200, 409)
        assert "reason=in_flight" in again.decision
        desk.timers.fire()  # nobody said what became of it
        assert desk.ledger.outcomes[-1][1] is OutcomeStatus.UNKNOWN
        # Stripe answers a repeated key from its own store: the map says so, and the receipt names the first.
        third = await asker.check(key="k-1")
        assert third.status == 200
        assert decode_jws(desk.ledger.last.jws)["replay_of"] in first.decision
        other = await asker.check(501, key="k-1")
        assert (other.status, "reason=idempotency_key_reused" in other.decision) == (422, True)


async def test_xd5_who_did_not_wait_was_not_told(desk: Desk) -> None:
    async with opened(desk) as asker:
        assert asker.door.address is not None
        held, gone = asyncio.Event(), asyncio.Event()

        async def before() -> None:
            held.set()
            await gone.wait()

        desk.ledger.before = before
        _, writer = await asyncio.open_connection("127.0.0.1", asker.door.address.port)
        writer.write(a_check(key="k-2"))
        await asyncio.wait_for(held.wait(), 60)
        writer.close()
        await writer.wait_closed()
        (theirs,) = asker.door._open.values()
        while not theirs.at_eof():
            await asyncio.sleep(0)
        gone.set()
        while asker.door._open:
            await asyncio.sleep(0)
        assert desk.ledger.last.outcome is Outcome.PERMIT
        assert [(each[1], each[2]) for each in desk.ledger.outcomes] == [(OutcomeStatus.NOT_SENT, 0)]
        desk.ledger.before = None
        assert (await asker.check(key="k-2")).status == 200  # the key is free again


async def test_xd5_a_permit_that_was_told_stays_open(desk: Desk) -> None:
    async with opened(desk) as asker:
        assert (await asker.check(key="k-3")).status == 200
        assert desk.ledger.outcomes == [] and len(desk.timers.waiting) == 1
        receipt_id = desk.ledger.last.receipt_id
        assert not desk.decider.settle(receipt_id, ("other",), OutcomeStatus.EXECUTED, 200)
        assert desk.decider.settle(receipt_id, ("bot",), OutcomeStatus.EXECUTED, 200)
        assert desk.ledger.outcomes[-1][:3] == (receipt_id, OutcomeStatus.EXECUTED, 200)


async def test_xd1_a_permit_for_another_request_is_no_200(desk: Desk, monkeypatch: Any) -> None:
    async with opened(desk) as asker:
        real = desk.decider.check

        async def swapped(held: Any, prepare: Any) -> Any:
            recorded = await real(held, prepare)
            held.request = replace_body(held.request)
            return recorded

        monkeypatch.setattr(type(desk.decider), "check", lambda self, held, prepare: swapped(held, prepare))
        assert await asker.raw(a_check()) == b""
        assert desk.ledger.outcomes[-1][1] is OutcomeStatus.NOT_SENT


def replace_body(request: Any) -> Any:
    return replace(request, body=request.body + b"0")


async def test_who_is_still_there_when_it_ends_is_answered_once_more(desk: Desk) -> None:
    async with opened(desk) as asker:
        assert asker.door.address is not None
        reader, writer = await asyncio.open_connection("127.0.0.1", asker.door.address.port)
        writer.write(a_check(200_000))
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)
        await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]))
        where = asker.door.address.port
        asker.door.deaf()
        writer.write(a_check(200_000))
        last = told(await asyncio.wait_for(reader.read(), 60))  # to the end: it hangs up
        assert (last.status, last.headers["connection"]) == (403, "close")
        writer.close()
        with pytest.raises(OSError):
            await asyncio.open_connection("127.0.0.1", where)


def mutual(folder: Path) -> tuple[MutualTls, Issued]:
    """What the gate needs, and the CA that both sides trust."""
    ca = make_ca("both")
    ca.files(folder, "ca")
    usages = (ExtendedKeyUsageOID.SERVER_AUTH,)
    cert, key = issue(ca, [dns("gate.example.org")], usages=usages).files(folder, "gate")
    return MutualTls(cert_file=cert, key_file=key, client_ca_file=folder / "ca.pem"), ca


async def test_with_tls_both_sides_show_a_certificate(desk: Desk, tmp_path: Path) -> None:
    tls, ca = mutual(tmp_path)
    async with opened(desk, tls) as asker:
        assert asker.door.address is not None
        context = ssl.create_default_context(cafile=str(tls.client_ca_file))
        where = {"host": "127.0.0.1", "port": asker.door.address.port, "server_hostname": "gate.example.org"}

        async def asked() -> bytes:
            reader, writer = await asyncio.open_connection(**where, ssl=context)
            writer.write(a_check())
            with contextlib.suppress(asyncio.IncompleteReadError):
                return await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)
            return b""

        with contextlib.suppress(OSError):
            assert await asked() == b""  # in TLS 1.3 the client learns of it when it reads
        context.load_cert_chain(*issue(make_ca("other"), [dns("envoy")]).files(tmp_path, "other"))
        with contextlib.suppress(OSError):
            assert await asked() == b""
        assert desk.ledger.entries == []
        context.load_cert_chain(*issue(ca, [dns("envoy")]).files(tmp_path, "envoy"))
        assert (await asked()).startswith(b"HTTP/1.1 200 ")


async def test_a_certificate_that_is_none_is_said_at_start(desk: Desk, tmp_path: Path) -> None:
    tls, _ = mutual(tmp_path)
    tls.cert_file.write_text("no certificate")
    with pytest.raises(ConfigError, match=r"ext_authz\.tls"):
        async with opened(desk, tls):
            pass


PIECES = st.sampled_from(
    [
        a_check(),
        a_check(200_000),
        a_check(target="/v1/../x"),
        *(f"{name}: {value}\r\n".encode() for name, value in ((TOKEN, SECRET), (SOURCE, "10.0.0.7"))),
        b"POST /v1/refunds HTTP/1.1\r\n",
        b"host: api.stripe.com\r\n",
        b"\r\n",
        b"\r\n\r\n",
        b"transfer-encoding: chunked\r\n",
        b"5\r\nhello\r\n0\r\n\r\n",
        b"\x00",
        b" ",
    ]
)
BYTES = st.one_of(
    st.binary(max_size=300),
    st.lists(PIECES, max_size=6).map(b"".join),
    st.tuples(st.integers(0, 400), st.binary(min_size=1, max_size=3)).map(
        lambda cut: a_check()[: cut[0]] + cut[1] + a_check()[cut[0] :]
    ),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(BYTES)
def test_xd1_whatever_arrives_a_200_has_its_recorded_permit(desk: Desk, data: bytes) -> None:
    async def once() -> None:
        async with opened(desk) as asker:
            assert asker.door.address is not None
            reader, writer = await asyncio.open_connection("127.0.0.1", asker.door.address.port)
            writer.write(data)
            writer.write_eof()
            answer = await asyncio.wait_for(reader.read(), 60)
            writer.close()
            permits = [each for each in desk.ledger.entries if each.outcome is Outcome.PERMIT]
            told_ids = [
                line for line in answer.split(b"\r\n") if line.startswith(b"Holdgate-Decision: PERMIT")
            ]
            assert answer.count(b"HTTP/1.1 200") == len(told_ids) <= len(permits)

    asyncio.run(once())
