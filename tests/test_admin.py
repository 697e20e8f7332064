"""adapters/admin: who may read what, and what they get, over HTTP against a real ledger."""

import asyncio
import gzip
import hashlib
import itertools
import json
import types

import aiohttp
import pytest

from holdgate.adapters.admin import wire
from holdgate.adapters.admin.state import AdminServer
from holdgate.adapters.keyfiles import create_keys, load_keys
from holdgate.adapters.metrics import Metrics
from holdgate.adapters.sqlite import SqliteLedger
from holdgate.config import AdminToken, OpenDoor, load_config
from holdgate.errors import ConfigError, Outcome, Reason
from holdgate.keys import parse_jwks
from holdgate.ledger import Entry
from holdgate.note import parse_vkey, vkey
from holdgate.receipt import decision_statement, sign, verify
from holdgate.surface.model import Action, Effect
from holdgate.tiles import unpack_entries
from holdgate.tlog import leaf_hash
from holdgate.tlogproof import parse_proof, verify_proof

CONFIG = """\
version: 1
node: edge-1
state_dir: ./state
listen: {{explicit: 127.0.0.1:8080}}
admin:
  listen: 127.0.0.1:0
  public_url: https://gate.example.com
  open: [{open}]
  tokens: {{{tokens}}}
surfaces: [.]
policies: [.]
agents: []
"""
SECRETS = {"operator": "s-operator", "auditor": "s-auditor", "approver": "s-approver"}
TOKENS = ", ".join(
    f"{role}: {{sha256: {hashlib.sha256(secret.encode()).hexdigest()}, roles: [{role}]}}"
    for role, secret in SECRETS.items()
)
ISSUER = "holdgate.local/edge-1"
SHA = "sha256:" + "0" * 64


ACTION = Action(surface="payments.refund", operation="stripe.PostRefunds", effect=Effect.COMMIT, params=())


class Judge:
    keys = meters = denials = objects = ()

    def __init__(self, key, outcome, agent):
        self.key, self.outcome, self.agent = key, outcome, agent

    def __call__(self, claims, *, now_us, receipt_id, budgets, standing):
        reason = Reason.PERMIT_RULE if self.outcome is Outcome.PERMIT else Reason.UNKNOWN_DESTINATION
        is_permit = self.outcome is Outcome.PERMIT
        statement = decision_statement(
            receipt_id=receipt_id,
            issuer=ISSUER,
            iat_us=now_us,
            node="edge-1",
            outcome=self.outcome,
            reason=reason,
            agent=self.agent,
            request={"method": "POST", "target": "/t", "digest": SHA, "wire": SHA, "bytes": 1},
            policy={"digest": SHA, "revision": 0, "signed": False},
            engine="cel-strict/1",
            rules=("p/r",) if is_permit else (),
            actions=(ACTION,) if is_permit else (),
            destination="api.stripe.com:443",
            input_digest=SHA if is_permit else "",
            exp_us=now_us + 30_000_000 if is_permit else 0,
        )
        return Entry(
            receipt_id=receipt_id,
            outcome=self.outcome,
            reason=reason,
            rule="",
            surface="payments.refund" if is_permit else "",
            agent=self.agent,
            policy=SHA,
            iat_us=now_us,
            wire=SHA,
            jws=sign(statement, self.key),
            bindings=(),
            inputs=b"{}" if is_permit else None,
            prior="",
            prior_status=0,
        )


class Running:
    def __init__(self, server, ledger, keys, ids, metrics):
        self.server, self.ledger, self.keys, self.ids, self.metrics = server, ledger, keys, ids, metrics
        self.url, self.ledger_key = f"http://{server.address}", keys.log.public
        self.server = server

    async def get(self, path, *, role=None, method="GET", **headers):
        if role:
            headers["Authorization"] = f"Bearer {SECRETS.get(role, role)}"
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        async with aiohttp.ClientSession() as session:
            async with session.request(method, self.url + path, headers=headers) as answer:
                return answer.status, answer.headers.copy(), await answer.read()


@pytest.fixture
async def start(tmp_path):
    running = []

    async def go(*, open="", tokens=TOKENS):
        (tmp_path / "holdgate.yaml").write_text(CONFIG.format(open=open, tokens=tokens))
        config = load_config(tmp_path / "holdgate.yaml")
        config.state_dir.mkdir(mode=0o700, exist_ok=True)
        create_keys(config.state_dir)
        keys = load_keys(config.state_dir)
        clock = itertools.count(1_700_000_000_000_000, 1_000_000)
        ledger = SqliteLedger.open(
            config.state_dir,
            receipt_key=keys.receipt,
            log_key=keys.log,
            origin=ISSUER,
            node="edge-1",
            clock_us=lambda: next(clock),
            nonce16=lambda: bytes(16),
            headroom_bytes=0,
        )
        ids = []
        for outcome, agent in ((Outcome.PERMIT, "bot"), (Outcome.SILENCE, "bot"), (Outcome.SILENCE, "other")):
            recorded = await ledger.record(Judge(keys.receipt, outcome, agent))
            ids.append(recorded.entry.receipt_id)
        pipeline = types.SimpleNamespace(evidence=types.SimpleNamespace(signer=keys.receipt, issuer=ISSUER))
        metrics = Metrics()
        server = AdminServer(config, ledger=ledger, metrics=metrics, pipeline=pipeline)
        running.append((server, ledger))
        await server.start()
        return Running(server, ledger, keys, ids, metrics)

    yield go
    for server, ledger in running:
        await server.stop()
        await asyncio.to_thread(ledger.close)


OPEN = ("/healthz", "/.well-known/jwks.json", "/.well-known/trigguard/keys.json")


async def test_u1_only_health_and_public_keys_need_no_token(start):
    admin = await start()
    for path in OPEN:
        assert (await admin.get(path))[0] == 200
    for path in ("/metrics", "/receipts", f"/receipts/{admin.ids[0]}", "/log/checkpoint"):
        status, headers, _ = await admin.get(path)
        assert (status, headers["WWW-Authenticate"]) == (401, 'Bearer realm="holdgate"')
        assert (await admin.get(path, role="operator"))[0] == 200


async def test_u1_admin_open_opens_exactly_what_it_lists(start):
    admin = await start(open="metrics")
    assert (await admin.get("/metrics"))[0] == 200
    assert (await admin.get("/log/checkpoint"))[0] == 401
    assert admin.server.rules.open == {OpenDoor.METRICS}


async def test_u1_without_tokens_receipts_stay_closed(start):
    admin = await start(tokens="")
    assert (await admin.get("/metrics"))[0] == 200
    assert (await admin.get("/log/checkpoint"))[0] == 200
    assert (await admin.get("/receipts"))[0] == 401


async def test_u2_a_wrong_token_or_role_reads_nothing(start):
    admin = await start()
    for role in ("wrong", "s-operator2", hashlib.sha256(b"s-operator").hexdigest()):
        assert (await admin.get("/receipts", role=role))[0] == 401
    assert (await admin.get("/receipts", Authorization="Basic s-operator"))[0] == 401
    assert (await admin.get("/receipts", role="approver"))[0] == 403
    assert (await admin.get("/metrics", role="approver"))[0] == 200
    assert (await admin.get("/receipts", role="auditor"))[0] == 200


async def test_u2_tokens_are_kept_as_digests(start):
    admin = await start()
    assert all(
        isinstance(token, AdminToken) and len(token.sha256) == 32 for token in admin.server.rules.tokens
    )
    assert "s-operator" not in repr(admin.server.rules)


@pytest.mark.parametrize("host", ["evil.example", "gate.example.com.evil", "", "127.0.0.2", "localhost.evil"])
async def test_u3_a_host_that_is_not_ours_is_421(start, host):
    admin = await start()
    assert (await admin.get("/healthz", Host=host))[0] == 421


@pytest.mark.parametrize(
    "host", ["localhost", "127.0.0.1:1", "[::1]:9090", "GATE.example.com", "gate.example.com:443"]
)
async def test_u3_our_own_names_are_served(start, host):
    admin = await start()
    assert (await admin.get("/healthz", Host=host))[0] == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"])
async def test_u4_other_methods_are_405(start, method):
    admin = await start()
    for path in ("/receipts", "/nothing"):
        status, headers, body = await admin.get(path, method=method, role="operator")
        assert (status, headers["Allow"]) == (405, "GET, HEAD")
        assert json.loads(body)["status"] == 405


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "OPTIONS"])
async def test_u4_a_decision_door_opens_to_post_alone(start, method):
    admin = await start()
    for path in ("/v1/decide", "/v1/outcome", "/execute", "/access/v1/evaluation"):
        status, headers, _ = await admin.get(path, method=method, role="operator")
        assert (status, headers["Allow"]) == (405, "POST")
        assert (await admin.get(path, method="POST", role="operator"))[0] == 403


async def test_u4_head_is_get_without_a_body(start):
    admin = await start()
    status, headers, body = await admin.get("/healthz", method="HEAD")
    assert (status, body) == (200, b"")
    assert int(headers["Content-Length"]) > 0


async def test_u5_every_answer_carries_the_security_headers(start):
    admin = await start()
    for path, status in (("/healthz", 200), ("/nothing", 404), ("/receipts", 401), ("/receipts/a/b", 404)):
        answer = await admin.get(path)
        assert answer[0] == status
        headers = answer[1]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cache-Control"] == "no-store"
        assert headers["Content-Security-Policy"].startswith("default-src 'none'")
        assert "Set-Cookie" not in headers and "aiohttp" not in headers["Server"]
        if status >= 400:
            assert headers["Content-Type"] == "application/problem+json"
            assert json.loads(answer[2])["title"]


async def test_u5_an_internal_error_says_nothing(start, monkeypatch):
    admin = await start()
    monkeypatch.setattr(admin.metrics, "render", lambda: 1 / 0)
    status, headers, body = await admin.get("/metrics", role="operator")
    assert (status, headers["Content-Type"]) == (500, "application/problem+json")
    assert b"division" not in body


async def raw(admin, data, *, shut=False):
    """What comes back until the listener hangs up."""
    host, _, port = admin.url.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(data)
    if shut:
        writer.write_eof()
    try:
        return await asyncio.wait_for(reader.read(), 60)
    finally:
        writer.close()


NO_HTTP = {
    "no method": b"\x00\x01\x02\r\n\r\n",
    "no host": b"GET /healthz HTTP/1.1\r\n\r\n",
    "two lengths": b"POST /v1/decide HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 5\r\n\r\n",
    "a line that does not end": b"GET /" + b"a" * 20_000,
    "two types": b"GET /healthz HTTP/1.1\r\nHost: a\r\nContent-Type: a/b\r\nContent-Type: c/d\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
}


@pytest.mark.parametrize("name", NO_HTTP)
async def test_uw1_what_is_no_http_is_an_error_like_every_other(start, caplog, name):
    admin = await start()
    head, _, body = (await raw(admin, NO_HTTP[name])).partition(b"\r\n\r\n")
    assert head.split(b" ")[1] == b"400" and json.loads(body)["status"] == 400
    assert b"aiohttp" not in head and b"nosniff" in head and b"application/problem+json" in head
    (said,) = [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]
    assert said.exc_info is None and "127.0.0.1" in said.getMessage() and "\n" not in said.getMessage()


async def test_u5_an_expectation_changes_nothing(start):
    admin = await start()
    asked = b"GET %b HTTP/1.1\r\nHost: localhost\r\nExpect: %b\r\nConnection: close\r\n\r\n"
    assert b" 200 " in (await raw(admin, asked % (b"/healthz", b"a-miracle"))).partition(b"\r\n")[0]
    answer = await raw(admin, asked % (b"/nothing", b"a-miracle"))
    assert b"nosniff" in answer and b"aiohttp" not in answer


async def test_uw2_nothing_unpacks_a_body(start, caplog):
    admin = await start()
    bomb = gzip.compress(bytes(1 << 20))
    head = b"POST /v1/decide HTTP/1.1\r\nHost: localhost\r\nContent-Encoding: gzip\r\nConnection: close\r\n"
    for body in (bomb, b"no gzip"):
        answer = await raw(admin, head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        assert answer.startswith(b"HTTP/1.1 401 ")
    assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]


async def test_uw3_above_so_many_connections_new_ones_are_closed(start, monkeypatch):
    monkeypatch.setattr(wire, "CONNECTIONS", 2)
    admin = await start()
    host, _, port = admin.url.removeprefix("http://").rpartition(":")
    held = [await asyncio.open_connection(host, int(port)) for _ in range(2)]
    while len(admin.server._runner.server.connections) < 2:
        await asyncio.sleep(0)
    reader, writer = await asyncio.open_connection(host, int(port))
    assert await reader.read() == b""
    for _, one in (*held, (reader, writer)):
        one.close()
    while admin.server._runner.server.connections:
        await asyncio.sleep(0)
    assert (await admin.get("/healthz"))[0] == 200


async def test_uw3_who_says_nothing_or_half_a_head_is_hung_up_on(start, monkeypatch):
    monkeypatch.setattr(wire, "IDLE_S", 0.2)
    admin = await start()
    for said in (b"", b"GET /healthz HTTP/1.1\r\nHost: loc"):
        assert await raw(admin, said) == b""


async def test_health_names_processes_and_ready_follows_listeners_and_store(start):
    admin = await start()
    said = json.loads((await admin.get("/healthz"))[2])
    assert said["processes"][0]["pid"] > 0 and said["status"] == "ok"
    assert (await admin.get("/readyz"))[0] == 503
    admin.server.ready = True
    assert (await admin.get("/readyz"))[0] == 200
    await asyncio.to_thread(admin.ledger.close)
    status, _, body = await admin.get("/readyz")
    assert (status, json.loads(body)["reason"]) == (503, "the store cannot be written")


async def test_receipts_are_listed_newest_first_filtered_and_paged(start):
    admin = await start()

    async def listed(query):
        status, _, body = await admin.get("/receipts" + query, role="operator")
        said = json.loads(body)
        return status, [row["receipt"]["id"] for row in said["receipts"]], said["next"]

    newest = admin.ids[::-1]
    assert await listed("") == (200, newest, None)
    assert await listed("?agent=other") == (200, [admin.ids[2]], None)
    assert await listed("?surface=payments.refund&outcome=PERMIT") == (200, [admin.ids[0]], None)
    status, ids, cursor = await listed("?limit=2")
    assert (status, ids) == (200, newest[:2])
    assert await listed(f"?limit=2&cursor={cursor}") == (200, newest[2:], None)
    assert await listed("?since=2999-01-01T00:00:00Z") == (200, [], None)
    assert (await listed("?since=2001-01-01T00:00:00Z"))[1] == newest


@pytest.mark.parametrize(
    "query",
    ["agnet=x", "outcome=permit", "limit=-1", "limit=x", "since=yesterday", "agent=a&agent=b", "cursor=1e3"],
)
async def test_an_unknown_filter_is_an_error_not_everything(start, query):
    admin = await start()
    status, _, body = await admin.get(f"/receipts?{query}", role="operator")
    assert (status, json.loads(body)["status"]) == (400, 400)


async def test_a_receipt_is_served_as_it_was_signed_and_decoded_on_request(start):
    admin = await start()
    path = f"/receipts/{admin.ids[0]}"
    _, headers, jws = await admin.get(path, role="auditor")
    assert headers["Content-Type"] == "application/jose"
    keys = parse_jwks((await admin.get("/.well-known/jwks.json"))[2])
    assert verify(jws, keys).id == admin.ids[0]
    row = json.loads((await admin.get(path, role="auditor", Accept="application/json"))[2])
    assert (row["jws"].encode(), row["receipt"]["outcome"], row["index"]) == (jws, "PERMIT", 0)
    assert (await admin.get("/receipts/rcpt_none", role="auditor"))[0] == 404


async def test_the_trigguard_view_verifies_with_the_published_key(start):
    admin = await start()
    view = json.loads((await admin.get(f"/receipts/{admin.ids[0]}?view=trigguard", role="auditor"))[2])
    keys = json.loads((await admin.get("/.well-known/trigguard/keys.json"))[2])
    assert view["authorityKeyId"] == keys["keys"][0]["keyId"]
    assert (view["decision"], view["executionId"]) == ("PERMIT", admin.ids[0])
    assert (await admin.get(f"/receipts/{admin.ids[0]}?view=x", role="auditor"))[0] == 400


async def test_the_checkpoint_is_the_signed_note(start):
    admin = await start(open="checkpoint")
    _, headers, note = await admin.get("/log/checkpoint")
    assert note.startswith(ISSUER.encode() + b"\n")
    assert headers["Content-Type"].startswith("text/plain")


async def test_a_receipt_is_proved_from_what_the_admin_api_serves(start):
    app = await start()
    log = parse_vkey(vkey(ISSUER, app.ledger_key))
    for _ in range(50):  # the checkpoint follows the commit within a second
        status, headers, text = await app.get(f"/receipts/{app.ids[2]}/proof", role="auditor")
        if status == 200:
            break
        assert (status, headers["Retry-After"]) == (503, "1")
        await asyncio.sleep(0.05)
    proof = parse_proof(text)
    _, _, jws = await app.get(f"/receipts/{app.ids[2]}", role="auditor")
    assert verify_proof(proof, jws, log).size == 3
    assert (proof.index, headers["Content-Type"]) == (2, "text/plain; charset=utf-8")
    # ... and the same out of tiles, any width, also one that is not on disk
    _, headers, hashes = await app.get("/log/tile/0/000.p/2", role="operator")
    assert headers["Content-Type"] == "application/octet-stream"
    _, _, bundle = await app.get("/log/tile/entries/000.p/3", role="operator")
    entries = unpack_entries(bundle)
    assert entries[2] == jws and [leaf_hash(entry) for entry in entries[:2]] == [hashes[:32], hashes[32:]]


@pytest.mark.parametrize("path", ["0/000.p/4", "0/001", "0/000.p/0", "x/000", "..%2f..%2fcheckpoint", "0/0"])
async def test_a_tile_that_is_not_there_is_404(start, path):
    app = await start()
    assert (await app.get(f"/log/tile/{path}", role="auditor"))[0] == 404
    assert (await app.get("/receipts/rcpt_0/proof", role="auditor"))[0] == 404
    assert (await app.get("/log/tile/0/000.p/1", role="approver"))[0] == 403


async def test_a_taken_address_is_a_configuration_error(start):
    admin = await start()
    config = load_config(admin.server.state_dir.parent / "holdgate.yaml")
    admin.server._listen = admin.server.address
    with pytest.raises(ConfigError, match=r"admin\.listen 127\.0\.0\.1:\d+: "):
        await admin.server.start()
    assert config.admin.listen.port == 0
