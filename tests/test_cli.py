"""cli/: every command through main([...]) in a folder of its own: exit codes, output, file:line of errors."""

import asyncio
import base64
import errno
import gc
import io
import itertools
import json
import os
import shutil
import socket
import sqlite3
import stat
import subprocess
import sys
import types
from xml.etree import ElementTree

import pytest

from holdgate.adapters.keyfiles import load_keys
from holdgate.adapters.sqlite import SqliteLedger
from holdgate.cli import build_parser, main
from holdgate.cli.ask import _Told
from holdgate.cli.disclosure import Disclosure
from holdgate.cli.progress import Progress
from holdgate.config import load_config
from holdgate.errors import Outcome, Reason
from holdgate.keys import SigningKey
from holdgate.ledger import Entry
from holdgate.note import parse_vkey, sign_checkpoint, vkey
from holdgate.receipt import decision_statement, sign
from holdgate.tlog import Tree
from holdgate.tlogproof import parse_proof, verify_proof
from wrong_files import MAP

SHA = "sha256:" + "0" * 64
POLICY = """\
apiVersion: holdgate/v1
kind: Policy
metadata: {name: orders, owner: shop@example.com}
spec:
  surface: payments.charge
  constants: {most: 100}
  rules:
  - id: small
    effect: permit
    when: params.amount >= 1 && params.amount <= constants.most
  - id: huge
    effect: deny
    when: params.amount > 1000
    reason: too much
"""
POLICY_TEST = """\
apiVersion: holdgate/v1
kind: PolicyTest
metadata: {name: orders-test}
spec:
  policy: orders
  cases:
  - name: small
    with: {params: {amount: 5}}
    expect: {outcome: PERMIT, rules: [orders/small]}
  - name: huge
    with: {params: {amount: 5000}}
    expect: {outcome: DENY, rules: [orders/huge]}
"""
REQUEST = (
    b"POST /orders HTTP/1.1\r\nHost: shop.example\r\nAuthorization: Bearer s3cr3t\r\n"
    b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
)


def request(body):
    return REQUEST % (len(body), body)


@pytest.fixture
def shop(tmp_path, monkeypatch, capsys):
    """An initialised folder with one small map and policy in place of the starter set, and it is the cwd."""
    monkeypatch.chdir(tmp_path)
    assert main(["init", "--node", "edge-7"]) == 0
    for name in ("surfaces", "policies"):
        shutil.rmtree(tmp_path / name)
        (tmp_path / name).mkdir()
    (tmp_path / "surfaces/shop.yaml").write_text(MAP)
    (tmp_path / "policies/orders.yaml").write_text(POLICY)
    (tmp_path / "policies/orders_test.yaml").write_text(POLICY_TEST)
    (tmp_path / "buy.http").write_bytes(request(b'{"amount":50}'))
    capsys.readouterr()
    return tmp_path


@pytest.fixture
def run(capsys):
    """main() with what it printed."""

    def go(*argv):
        code = main([str(word) for word in argv])
        said = capsys.readouterr()
        return types.SimpleNamespace(code=code, out=said.out, err=said.err)

    return go


class _Judge:
    keys = meters = denials = objects = ()

    def __init__(self, key, issuer, outcome):
        self.key, self.issuer, self.outcome = key, issuer, outcome

    def __call__(self, claims, *, now_us, receipt_id, budgets, standing):
        statement = decision_statement(
            receipt_id=receipt_id,
            issuer=self.issuer,
            iat_us=now_us,
            node="edge-7",
            outcome=self.outcome,
            reason=Reason.UNKNOWN_DESTINATION,
            agent="bot",
            request={"method": "GET", "digest": SHA, "bytes": 1},
            policy={"digest": SHA, "revision": 0, "signed": False},
            engine="cel-strict/1",
            destination="nowhere.example:443",
        )
        return Entry(
            receipt_id=receipt_id,
            outcome=self.outcome,
            reason=Reason.UNKNOWN_DESTINATION,
            rule="",
            surface="",
            agent="bot",
            policy=SHA,
            iat_us=now_us,
            wire="",
            jws=sign(statement, self.key),
            bindings=(),
            inputs=None,
            prior="",
            prior_status=0,
        )


@pytest.fixture
def recorded(shop):
    """Three SILENCE receipts in the ledger of `shop`; their ids, oldest first."""
    config = load_config(shop / "holdgate.yaml")
    keys = load_keys(config.state_dir)
    clock = itertools.count(1_700_000_000_000_000, 1_000_000)

    async def fill():
        ledger = SqliteLedger.open(
            config.state_dir,
            receipt_key=keys.receipt,
            log_key=keys.log,
            origin=config.issuer,
            node=config.node,
            clock_us=lambda: next(clock),
            nonce16=lambda: bytes(16),
            headroom_bytes=0,
        )
        judge = _Judge(keys.receipt, config.issuer, Outcome.SILENCE)
        ids = [(await ledger.record(judge)).entry.receipt_id for _ in range(3)]
        await asyncio.to_thread(ledger.close)
        return ids

    return asyncio.run(fill())


# --- main ---


def commands(parser, words=()):
    """Every command that can be typed, as a list of words."""
    actions = [a for a in parser._actions if hasattr(a, "choices") and isinstance(a.choices, dict)]
    if not actions:
        return [list(words)]
    return [
        found for a in actions for name, sub in a.choices.items() for found in commands(sub, (*words, name))
    ]


EVERY = commands(build_parser())


@pytest.mark.parametrize("words", EVERY, ids=" ".join)
def test_q2_every_command_has_help_with_an_example(run, words):
    said = run(*words, "--help")
    assert said.code == 0
    assert "example:\n  " in said.out and "holdgate " + words[0] in said.out.split("example:")[1]


def test_q2_only_what_is_built_is_there():
    assert {words[0] for words in EVERY} == {
        *("init", "demo", "run", "gate", "exec", "network", "doctor", "check", "test", "explain", "verify"),
        *("receipts", "log", "replay", "backtest", "diff", "reconcile", "bundle", "trust", "keys"),
        *("signer", "surfaces", "ca"),
    }


@pytest.mark.parametrize(
    "argv", [[], ["nonsense"], ["verify"], ["trust"], ["receipts", "list", "--limit", "-1"]]
)
def test_wrong_usage_is_exit_2(run, argv):
    said = run(*argv)
    assert said.code == 2 and said.out == "" and "usage: holdgate" in said.err


def test_no_command_waits_for_the_proxy_engine_or_the_http_server():
    """Importing them would be half of the time of a command: what serves imports them later."""
    asked = "import sys; from holdgate.cli import build_parser; build_parser(); print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", asked], capture_output=True, text=True, timeout=60, check=True
    )
    imported = set(done.stdout.split())
    assert "holdgate.config" in imported and not imported & {"aiohttp", "mitmproxy", "asyncpg"}


def test_q1_a_configuration_error_names_file_and_line(run, shop):
    path = shop / "holdgate.yaml"
    path.write_text(path.read_text().replace("limits:", "limits:").replace("node: edge-7", "nodes: edge-7"))
    for argv in (["check"], ["run"], ["explain", "buy.http"], ["receipts", "list"], ["keys", "list"]):
        said = run(*argv)
        assert (said.code, said.out) == (2, "")
        assert said.err.startswith("holdgate.yaml:4:1: unknown key 'nodes' in the configuration"), argv


def test_q1_a_missing_configuration_says_what_to_do(run, tmp_path):
    said = run("check", "-c", tmp_path / "none.yaml")
    assert said.code == 2
    assert said.err.strip().endswith("`holdgate init` writes one, `-c FILE` names another")


ESCAPE = "\x1b[2K\x1b[1A"


def test_q4_a_name_of_a_file_forges_no_verdict(run, recorded, shop):
    path = shop / f"x{ESCAPE}\nok {recorded[0]} decision PERMIT permit_rule"
    path.write_text("no receipt")
    said = run("verify", str(path))
    assert (said.code, said.out.count("\n"), said.out.startswith("INVALID ")) == (1, 1, True)
    assert "\x1b" not in said.out + run("verify", str(path) + "?").err


def test_q4_an_edited_ledger_writes_no_line_of_the_audit(run, recorded, shop):
    db = sqlite3.connect(shop / "state/ledger.db", isolation_level=None)
    db.execute("UPDATE receipts SET id = ? WHERE idx = 1", (f"{ESCAPE}\nclean\n",))
    db.close()
    said = run("log", "audit")
    assert said.code == 1 and "\x1b" not in said.out and "clean" not in said.out.splitlines()


def test_q4_an_author_hides_no_line_of_a_diff(run, shop):
    new = shop / "new"
    shutil.copytree(shop / "policies", new / "policies")
    shutil.copytree(shop / "surfaces", new / "surfaces")
    path = new / "policies/orders.yaml"
    owner = "a\\e[2K\\e[1A\\n    - nothing"
    path.write_text(path.read_text().replace("owner: shop@example.com", f'owner: "{owner}"'))
    said = run("diff", str(shop), str(new))
    assert "edited  policy orders owner" in said.out and "\x1b" not in said.out
    assert "    - nothing" not in said.out.splitlines()


def test_q3_looking_commands_write_nothing(run, recorded, shop):
    def snapshot():
        # A reader of a WAL database may touch its shared-memory file, which holds no data.
        files = [p for p in shop.rglob("*") if p.is_file() and not p.name.endswith(("-shm", "-wal"))]
        return {path: path.read_bytes() for path in files}

    before = snapshot()
    for argv in (
        *(["check"], ["test"], ["explain", "buy.http"], ["receipts", "list"], ["receipts", "export"]),
        *(["receipts", "show", recorded[0]], ["log", "checkpoint"], ["log", "audit"]),
        *(
            ["ca", "list"],
            ["keys", "list"],
            ["keys", "export"],
            ["surfaces", "list"],
            ["surfaces", "compile"],
        ),
    ):
        assert run(*argv).code == 0, argv
    assert snapshot() == before


# --- init ---


def test_j1_init_makes_everything_once_and_overwrites_nothing(run, tmp_path):
    first = run("init", tmp_path / "gate")
    assert first.code == 0 and "holdgate run" in first.out
    files = {path: path.read_bytes() for path in (tmp_path / "gate").rglob("*") if path.is_file()}
    assert {"holdgate.yaml", "receipt.key", "log.key", "fleet.key", "ca.key", "ca.pem"} <= {
        p.name for p in files
    }
    (tmp_path / "gate/policies/mine.yaml").write_text("mine")
    again = run("init", tmp_path / "gate")
    assert again.code == 0 and "everything is there already" in again.out
    assert {path: path.read_bytes() for path in files} == files
    assert (tmp_path / "gate/policies/mine.yaml").read_text() == "mine"


def test_j1_init_replaces_a_lost_key_but_nothing_else(run, shop):
    (shop / "state/keys/fleet.key").unlink()
    said = run("init")
    assert said.code == 0
    made = [line for line in said.out.splitlines() if line.startswith("made ")]
    assert len(made) == 1 and made[0].endswith("/state/keys/fleet.key")


def test_j2_state_and_secrets_are_private(run, tmp_path):
    run("init", tmp_path)
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700
    for path in (*(tmp_path / "state/keys").glob("*.key"), tmp_path / "state/ca/ca.key"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    (tmp_path / "state").chmod(0o755)
    said = run("init", tmp_path)
    assert said.code == 2 and "chmod 700" in said.err


def test_init_puts_the_state_where_it_is_told(run, tmp_path):
    assert run("init", tmp_path / "a", "--state", tmp_path / "elsewhere").code == 0
    assert load_config(tmp_path / "a/holdgate.yaml").state_dir == tmp_path / "elsewhere"
    said = run("init", tmp_path / "a", "--state", tmp_path / "third")
    assert said.code == 2 and "state_dir" in said.err and not (tmp_path / "third").exists()


def test_init_with_a_name_that_is_none_leaves_no_configuration(run, tmp_path):
    said = run("init", tmp_path, "--node", "two words")
    assert said.code == 2 and "node" in said.err
    assert not (tmp_path / "holdgate.yaml").exists()


def test_what_init_writes_passes_check_and_test(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run("init")
    said = run("check")
    assert said.code == 0 and said.out.endswith("\nno findings\n"), said.out
    said = run("test")
    assert said.code == 0, said.out


# --- check, test ---


def test_check_accepts_a_sound_folder(run, shop):
    said = run("check").out.splitlines()
    assert said[0].startswith("worst case: ") and said[0].endswith("payments.charge shop.buy, 2 rules")
    assert said[1:] == ["no findings"]
    assert run("check", "surfaces", "policies").code == 0
    assert run("check", "holdgate.yaml").code == 0


@pytest.mark.parametrize(
    ("file", "old", "new", "line"),
    [
        pytest.param("surfaces/shop.yaml", "effect: commit", "effekt: commit", 12, id="map: unknown key"),
        pytest.param(
            "surfaces/shop.yaml", "from: body.amount", "from: boddy.amount", 14, id="map: bad source"
        ),
        pytest.param(
            "policies/orders.yaml", "params.amount > 1000", "params.amuont > 1000", 13, id="unknown name"
        ),
        pytest.param("policies/orders.yaml", "payments.charge", "payments.chrage", 5, id="unknown surface"),
        pytest.param("policies/orders.yaml", "effect: deny", "effect: block", 12, id="unknown effect"),
    ],
)
def test_check_names_file_and_line_and_is_exit_1(run, shop, file, old, new, line):
    path = shop / file
    path.write_text(path.read_text().replace(old, new))
    for argv in (["check"], ["check", "surfaces", "policies"]):
        said = run(*argv)
        assert said.code == 1
        shown = [text for text in said.out.splitlines() if f"{file}:{line}:" in text]
        assert len(shown) == 1, said.out


def test_check_shows_every_bad_map_and_json(run, shop):
    for name in ("one", "two"):
        (shop / f"surfaces/{name}.yaml").write_text(MAP.replace("name: shop", f"name: {name}") + "    x: 1\n")
    rows = json.loads(run("check", "--json", "surfaces").out)
    assert {(row["file"], row["line"], row["severity"]) for row in rows} == {
        ("surfaces/one.yaml", 15, "error"),
        ("surfaces/two.yaml", 15, "error"),
    }


def test_check_lint_fails_unless_it_is_told_to_warn(run, shop):
    path = shop / "policies/orders.yaml"
    path.write_text(path.read_text().replace("{most: 100}", "{most: 100, unused: 1}"))
    assert run("check").code == 1
    said = run("check", "--warn")
    assert said.code == 0 and "unused" in said.out
    assert json.loads(run("check", "--warn", "--json").out)[0]["severity"] == "warning"


def test_check_connect_to_an_unmapped_host_is_a_configuration_error(run, shop):
    path = shop / "holdgate.yaml"
    path.write_text(
        path.read_text() + 'upstream:\n  connect_to:\n    "no.example:443": {address: "10.0.0.1:443"}\n'
    )
    said = run("check")
    line = path.read_text().splitlines().index('    "no.example:443": {address: "10.0.0.1:443"}') + 1
    assert said.code == 2 and f"holdgate.yaml:{line}: " in said.err


def test_check_paths_that_are_nothing_of_ours(run, shop):
    (shop / "other.yaml").write_text("a: 1\n")
    said = run("check", "other.yaml")
    assert said.code == 1 and said.out.startswith("other.yaml:1:1: ")
    assert run("check", "missing.yaml").code == 1


def test_test_runs_cases_and_fails_with_file_and_line(run, shop):
    said = run("test")
    assert said.code == 0 and "2 of 2 cases passed; 2 of 2 rules covered" in said.out
    path = shop / "policies/orders_test.yaml"
    path.write_text(POLICY_TEST.replace("{outcome: DENY, rules: [orders/huge]}", "PERMIT"))
    said = run("test", "policies/orders_test.yaml")
    assert said.code == 1 and "orders_test.yaml:10" in said.out


def test_test_prints_json_and_junit(run, shop):
    assert json.loads(run("test", "--output", "json").out)["ok"] is True
    assert json.loads(run("test", "--json").out)["ok"] is True
    suite = ElementTree.fromstring(run("test", "--output", "junit").out)  # noqa: S314 - our own output
    assert [case.get("name") for case in suite] == ["orders/small", "orders/huge"]


def test_test_needs_no_configuration_when_the_paths_hold_everything(run, shop):
    (shop / "holdgate.yaml").unlink()
    assert run("test", "surfaces", "policies").code == 0
    assert run("test", "policies").code == 2


def test_test_decides_a_captured_request(run, shop):
    case = "  - name: captured\n    with: {}\n    request_file: ../buy.http\n    expect: {outcome: PERMIT}\n"
    (shop / "policies/orders_test.yaml").write_text(POLICY_TEST + case)
    said = run("test")
    assert said.code == 0, said.out + said.err
    assert "3 of 3 cases passed" in said.out


def test_test_filters_and_fails_below_the_coverage_that_is_asked_for(run, shop):
    said = run("test", "--filter", "orders/hu*", "--json")
    assert said.code == 0
    assert [case["name"] for case in json.loads(said.out)["cases"]] == ["orders/huge"]
    said = run("test", "--filter", "nothing")
    assert said.code == 1 and "no case matches 'nothing'" in said.err
    assert run("test", "--min-coverage", "100").code == 0
    said = run("test", "--min-boundaries", "50", "--output", "junit")
    assert said.code == 1 and "boundary coverage 0 % is below 50 %" in said.err
    assert 'failures="0"' in said.out
    assert "params.amount <= constants.most: no case at 99, 100, 101" in run("test").out


def test_test_counts_only_what_the_given_suites_speak_of(run, shop):
    other = POLICY.replace("name: orders", "name: more")
    (shop / "policies/more.yaml").write_text(other)
    assert "more/small was never true or false" not in run("test").out
    said = run("test", "policies/orders_test.yaml", "--min-coverage", "100", "--json")
    assert {row["rule"] for row in json.loads(said.out)["coverage"]} == {"orders/small", "orders/huge"}


def test_a_broken_test_file_is_exit_1(run, shop):
    (shop / "policies/orders_test.yaml").write_text(POLICY_TEST.replace("outcome: DENY", "outcom: DENY"))
    said = run("test")
    assert said.code == 1 and "orders_test.yaml:12:14: " in said.err


# --- explain ---


def test_explain_shows_surface_parameters_and_rule(run, shop):
    said = run("explain", "buy.http")
    assert said.code == 0
    for text in (
        "payments.charge  shop.buy",
        "amount = 50",
        "PERMIT permit_rule",
        "orders/small  permit: true  <-",
    ):
        assert text in said.out


def test_explain_json_has_the_documented_shape(run, shop):
    said = json.loads(run("explain", "--agent", "local-agent", "--json", "buy.http").out)
    assert said.keys() == {"request", "actions", "agent", "decision", "trace", "flips", "input"}
    assert said["request"].keys() == {"canonical", "digest", "preimage"}
    assert said["decision"] == {"outcome": "PERMIT", "reason": "permit_rule", "rules": ["orders/small"]}
    assert said["actions"][0]["params"] == {"amount": 50}
    assert said["trace"][0].keys() >= {"rule", "effect", "result", "conjuncts"}
    assert said["input"]["agent"]["id"] == said["agent"]["id"] == "local-agent"


def test_explain_marks_a_near_miss(run, shop):
    (shop / "buy.http").write_bytes(request(b'{"amount":101}'))
    said = run("explain", "buy.http")
    assert said.code == 1
    assert "SILENCE no_rule_matched" in said.out and "permit: false  <- near miss" in said.out
    assert "false: params.amount <= constants.most" in said.out
    assert "would be   PERMIT if params.amount were 100 (is 101)" in said.out
    flip = json.loads(run("explain", "--json", "buy.http").out)["flips"][0]
    assert flip["changes"] == [{"action": 0, "path": "params.amount", "from": 101, "to": 100}]


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        pytest.param(b"", "malformed_request", id="nothing"),
        pytest.param(b"\x16\x03\x01\x00", "malformed_request", id="not HTTP"),
        pytest.param(request(b'{"amount":50}')[:-1], "malformed_request", id="body cut short"),
        pytest.param(request(b'{"amount":50}') + b"x", "malformed_request", id="bytes after the body"),
        pytest.param(request(b'{"amount":50,"amount":51}'), "duplicate_parameter", id="duplicate key"),
        pytest.param(request(b'{"amount":"50"}'), "parameter_type", id="wrong type"),
        pytest.param(request(b"{").replace(b"shop.", b"other."), "unknown_destination", id="unknown host"),
        pytest.param(request(b"{}").replace(b"/orders", b"/x"), "unknown_operation", id="unknown path"),
    ],
)
def test_z1_what_cannot_be_read_is_silence_with_a_reason(run, shop, raw, reason):
    (shop / "buy.http").write_bytes(raw)
    said = json.loads(run("explain", "--json", "buy.http").out)
    assert (said["decision"]["outcome"], said["decision"]["reason"]) == ("SILENCE", reason)
    assert said["input"] is None and said["trace"] == []


def test_z2_no_credential_is_shown(run, shop):
    assert "s3cr3t" not in run("explain", "--json", "buy.http").out
    assert "s3cr3t" not in run("explain", "buy.http").out


def test_explain_reads_standard_input_and_plain_line_ends(run, shop, monkeypatch):
    text = request(b'{"amount":50}').replace(b"\r\n", b"\n")
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(text)))
    assert run("explain", "-").code == 0


def test_explain_wants_an_agent_that_exists(run, shop):
    said = run("explain", "--agent", "nobody", "buy.http")
    assert said.code == 2 and "local-agent" in said.err
    assert run("explain", "missing.http").code == 2


def test_explain_a_caller_that_is_nobody(run, shop):
    path = shop / "holdgate.yaml"
    path.write_text(path.read_text().replace('[127.0.0.1/32, "::1/128"]', "[10.9.9.9/32]"))
    said = run("explain", "buy.http")
    assert said.code == 1 and "SILENCE unknown_agent" in said.out


# --- receipts, verify, log ---


def test_receipts_list_show_and_export_agree(run, recorded):
    table = run("receipts", "list").out.splitlines()
    assert [line.split()[2] for line in table[1:]] == recorded[::-1]
    page = json.loads(run("receipts", "list", "--json", "--limit", "2").out)
    assert [row["index"] for row in page["receipts"]] == [2, 1] and page["next"] == 1
    rest = json.loads(run("receipts", "list", "--json", "--cursor", page["next"]).out)
    assert [row["receipt"]["id"] for row in rest["receipts"]] == recorded[:1] and rest["next"] is None
    exported = [json.loads(line) for line in run("receipts", "export").out.splitlines()]
    assert [row["receipt"]["id"] for row in exported] == recorded
    assert exported[0].keys() == {"index", "jws", "receipt"}
    assert json.loads(run("receipts", "show", recorded[0], "--json").out) == exported[0]
    assert run("receipts", "show", recorded[0], "--raw").out.strip() == exported[0]["jws"]
    assert "unknown_destination" in run("receipts", "show", recorded[0]).out


def test_receipts_filters(run, recorded):
    def ids(*argv):
        return [
            row["receipt"]["id"]
            for row in json.loads(run("receipts", "list", "--json", *argv).out)["receipts"]
        ]

    assert ids("--outcome", "PERMIT") == [] == ids("--agent", "other")
    assert ids("--agent", "bot") == recorded[::-1]
    since = run("receipts", "list").out.splitlines()[2].split()[1]
    assert ids("--since", since) == recorded[:0:-1]
    raw = run("receipts", "export", "--raw", "--since", "1", "--limit", "1").out.split()
    assert len(raw) == 1 and raw[0].startswith("eyJ")
    assert run("receipts", "list", "--since", "yesterday").code == 2
    assert run("receipts", "show", "rcpt_none").code == 2


def test_receipts_export_sends_the_rest_on_the_next_call(run, recorded, shop):
    words = ("receipts", "export", "--cursor", "soc.cursor", "--output", "out.jsonl", "--format", "ocsf")
    assert run(*words, "--limit", 2).code == 0
    assert run(*words).code == 0
    assert run(*words).code == 0
    lines = [json.loads(line) for line in (shop / "out.jsonl").read_text().splitlines()]
    assert [line["metadata"]["uid"] for line in lines] == recorded
    (shop / "soc.cursor").write_text('{"origin": "holdgate.local/edge-7", "next": 4}')
    assert run(*words).code == 2
    for wrong in (("--syslog", "nowhere"), ("--http", "http://soc.example/"), ("--syslog", "localhost:1")):
        assert run("receipts", "export", *wrong).code == 2


def test_receipts_before_the_first_run_say_so(run, shop):
    said = run("receipts", "list")
    assert said.code == 2 and "there is no ledger yet: `holdgate run`" in said.err


def test_verify_takes_files_exports_arguments_and_keys(run, recorded, shop):
    (shop / "all.jsonl").write_text(run("receipts", "export").out)
    (shop / "one.jws").write_text(run("receipts", "show", recorded[1], "--raw").out)
    (shop / "keys.json").write_text(run("keys", "export").out)
    said = run("verify", "all.jsonl", "one.jws", (shop / "one.jws").read_text().strip())
    assert said.code == 0 and len(said.out.splitlines()) == 5
    rows = json.loads(run("verify", "--json", "--keys", "keys.json", "-c", "none.yaml", "one.jws").out)
    assert rows == [{"source": "one.jws", "ok": True, "reason": "", "receipt": rows[0]["receipt"]}]
    assert rows[0]["receipt"]["id"] == recorded[1]


def test_verify_refuses_what_was_changed(run, recorded, shop):
    header, payload, signature = run("receipts", "show", recorded[0], "--raw").out.strip().split(".")
    said = base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4))
    forged = base64.urlsafe_b64encode(said.replace(b"nowhere", b"anywher")).decode().rstrip("=")
    (shop / "forged.jws").write_text(f"{header}.{forged}.{signature}")
    result = run("verify", "--json", "forged.jws")
    assert result.code == 1
    assert json.loads(result.out) == [
        {"source": "forged.jws", "ok": False, "reason": "the signature is wrong"}
    ]
    for text in ("rubbish", "{}", '{"jws": 1}', r'{"jws": "\ud800"}', "eyJ.eyJ.x"):
        (shop / "forged.jws").write_text(text)
        assert run("verify", "forged.jws").code == 1
    (shop / "forged.jws").write_text("\n")
    assert run("verify", "forged.jws").code == 2
    assert run("verify", "missing.jws").code == 2


def test_a_disclosure_of_no_possible_target_is_a_refusal():
    said = {"id": "rcpt_1", "destination": "a:443", "request": {"method": "GET", "commitment": "sha256:0"}}
    for target in ("/\u2603", "/\ud800", "/\xe9", "/other"):
        found = Disclosure(receipt="rcpt_1", salt=bytes(16), target=target, body_sha256=bytes(32))
        assert found.problem(said)


def test_verify_require_permit_refuses_a_refusal(run, recorded, shop):
    (shop / "one.jws").write_text(run("receipts", "show", recorded[0], "--raw").out)
    said = run("verify", "--require-permit", "one.jws")
    assert said.code == 1 and "not of a PERMIT" in said.out


def test_verify_under_other_keys_fails(run, recorded, shop, tmp_path):
    (shop / "one.jws").write_text(run("receipts", "show", recorded[0], "--raw").out)
    run("init", tmp_path / "other")
    (shop / "keys.json").write_text(run("keys", "export", "-c", tmp_path / "other/holdgate.yaml").out)
    said = run("verify", "--keys", "keys.json", "one.jws")
    assert said.code == 1 and "not in the key set" in said.out
    (shop / "keys.json").write_text("[]")
    assert run("verify", "--keys", "keys.json", "one.jws").code == 2


def test_log_audit_is_clean_and_finds_an_edit(run, recorded, shop):
    said = run("log", "audit")
    assert said.code == 0 and said.out.rstrip().endswith("clean") and "cannot be seen" in said.out
    (shop / "note").write_text(run("log", "checkpoint").out)
    report = json.loads(run("log", "audit", "--json", "--since-checkpoint", "note").out)
    assert (report["clean"], report["size"], report["signed"], report["notes"]) == (True, 3, 3, [])
    (shop / "note").write_text("rubbish")
    assert run("log", "audit", "--since-checkpoint", "note").code == 2
    note = shop / "state/log/checkpoint"
    note.write_bytes(note.read_bytes().replace(b"\n3\n", b"\n2\n"))
    said = run("log", "audit")
    assert said.code == 1 and "PROBLEM checkpoint" in said.out


# --- keys, trust, surfaces, run ---


def test_an_edited_ledger_is_told_in_one_line(run, recorded, shop):
    db = sqlite3.connect(shop / "state/ledger.db", isolation_level=None)
    db.execute("UPDATE receipts SET jws = x'ff' WHERE idx = 1")
    for words in (("export",), ("list", "--json"), ("show", recorded[1])):
        said = run("receipts", *words)
        assert said.code == 2 and "holdgate log audit" in said.err and "Traceback" not in said.err
    db.execute("UPDATE receipts SET idx = ? WHERE idx = 1", (2**63 - 1,))
    db.close()
    said = run("receipts", "export")
    assert said.code == 2 and "receipt 1 is missing" in said.err


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_reconcile_list_over_damaged_permits_is_one_line(run, recorded, shop):
    db = sqlite3.connect(shop / "state/ledger.db", isolation_level=None)
    columns = "idx, id, state, owner, http_status, claims, charges, lender"
    for place in enumerate(recorded):
        db.execute(f"INSERT INTO permits ({columns}) VALUES (?,?,'unknown','',0,'','none','')", place)  # noqa: S608
    db.close()
    said = run("reconcile", "list")
    gc.collect()
    assert (said.code, said.out) == (2, "")
    assert said.err.count("\n") == 1 and "the ledger is damaged or was edited" in said.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("receipts", "list", "--limit", "9" * 23), "no such value"),
        (("receipts", "list", "--cursor", "9" * 23), "no such value"),
        (("receipts", "list", "--agent", "\udcff"), "no such value"),
        (("receipts", "show", "\udcff"), "no such value"),
        (("receipts", "export", "--since", "9" * 23), "no such value"),
        (("replay", "--since", "9" * 23), "no such value"),
        (("backtest", "--bundle", ".", "--until", "9" * 23), "no such value"),
        (("verify", "eyJ" + "a" * 300), "neither a file nor a receipt"),
        (("verify", "--keys", "http://a b/", "buy.http"), "cannot read keys"),
        (("verify", "--keys", "https://[::1", "buy.http"), "cannot read keys"),
        (("trust", "--bundle", "nowhere/x"), "nowhere/"),
        (("receipts", "export", "--http", "http://127.0.0.1:x/"), "--http http://127.0.0.1:x/"),
        (("receipts", "export", "--http", "http://[::1/"), "--http http://[::1/"),
        (("receipts", "export", "--http", "http://127.0.0.1:1/a b"), "control characters"),
        (("bundle", "build", "--out", "z", "--days", "9" * 11), "--days"),
        (("log", "audit", "--timestamps", "nowhere"), "nowhere: cannot read roots"),
        (("log", "audit", "--timestamps", "buy.http"), "buy.http: cannot read roots"),
        (("check", "-c", "surfaces"), "surfaces: a folder; name the file in it"),
        (("check", "-c", "no\0such"), "no such file"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, tuple) else "",
)
def test_a_slip_of_the_caller_is_one_line_that_names_it(run, recorded, shop, words, said):
    found = run(*words)
    assert (found.code, found.out) == (2, "") and said in found.err and found.err.count("\n") == 1
    assert not (shop / "z").exists()


def test_a_file_that_may_not_be_read_is_one_line(run, shop, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", "state/ledger.db")

    monkeypatch.setattr("holdgate.cli.receipts.fleet_reader", refuse)
    said = run("receipts", "show", "rcpt_1")
    assert (said.code, said.out) == (2, "") and said.err.count("\n") == 1
    assert said.err.startswith("state/ledger.db: Permission denied") and "as the user" in said.err


@pytest.mark.parametrize("out", ["/dev/full", None])
def test_output_that_nobody_takes_leaves_no_trace(recorded, shop, out):
    command = [sys.executable, "-m", "holdgate", "receipts", "list"]
    close = "import os, sys; os.close(1); os.execv(sys.argv[1], sys.argv[1:])"
    words = [sys.executable, "-c", close, *command] if out is None else command
    with open(out or os.devnull, "wb") as file:
        done = subprocess.run(words, stdout=file, stderr=subprocess.PIPE, check=False, timeout=60)
    assert b"Traceback" not in done.stderr and b"ignored" not in done.stderr
    if out is not None:
        assert (done.returncode, done.stderr) == (2, b"No space left on device\n")


def test_verify_says_which_folder_it_cannot_look_into(run, recorded, shop, monkeypatch):
    (shop / "kept/closed").mkdir(parents=True)
    (shop / "kept/a.jws").write_text(run("receipts", "show", "--raw", recorded[0]).out)
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("closed"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    said = run("verify", "kept")
    assert (said.code, said.out) == (2, "") and "kept/closed: Permission denied" in said.err


def test_init_makes_no_fleet_key_for_a_ledger_whose_claims_are_named_under_another(run, recorded, shop):
    kept = shop / "state/keys/fleet.key"
    key = kept.read_bytes()
    kept.unlink()
    said = run("init")
    assert (said.code, said.out, kept.exists()) == (2, "", False)
    assert "fleet.key: missing" in said.err and "backup" in said.err
    kept.write_bytes(key)
    kept.chmod(0o600)
    assert "everything is there already" in run("init").out


def test_init_says_what_can_be_pasted_as_it_stands(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("init", "my gate").out.count("cd 'my gate'") == 1


def test_check_of_what_is_not_there_names_no_line(run, shop):
    assert run("check", "nowhere").out == "nowhere: no such file or folder\n"


def test_log_audit_counts_the_time_stamps_that_it_was_to_verify(run, recorded, shop):
    (shop / "roots.pem").write_bytes((shop / "state/ca/ca.pem").read_bytes())
    said = run("log", "audit", "--timestamps", "roots.pem")
    assert said.code == 0 and "note: 0 time stamps are kept here" in said.out


def test_verify_takes_header_lines_headers_and_folders(run, recorded, shop, monkeypatch):
    jws = run("receipts", "show", "--raw", recorded[0]).out.strip()
    assert run("verify", f"Holdgate-Receipt: {jws}").code == 0
    headers = f"HTTP/1.1 403 Holdgate\r\nHoldgate-Decision: SILENCE\r\nholdgate-receipt: {jws}\r\n\r\n"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(headers.encode())))
    said = run("verify", "--json", "-")
    assert [row["receipt"]["id"] for row in json.loads(said.out)] == [recorded[0]]
    folder = shop / "kept"
    (folder / "deep").mkdir(parents=True)
    for number, place in enumerate((folder / "a.jws", folder / "deep/b.jws")):
        place.write_text(run("receipts", "show", "--raw", recorded[number]).out)
    (folder / "a.tlog-proof").write_text("read over: it is no receipt")
    said = run("verify", folder)
    assert (said.code, len(said.out.splitlines())) == (0, 2)
    (folder / "c.jws").write_text(jws[:-2])
    assert run("verify", folder).code == 1
    (shop / "empty").mkdir()
    assert run("verify", shop / "empty").code == 2


def test_verify_with_a_proof_needs_no_state(run, recorded, shop, tmp_path, monkeypatch):
    (shop / "r.jws").write_text(run("receipts", "show", "--raw", recorded[2]).out)
    (shop / "r.tlog-proof").write_text(run("log", "prove", recorded[2]).out)
    (shop / "keys.json").write_text(run("keys", "export").out)
    log_key = (shop / "state/log/key.vkey").read_text().strip()
    said = run("verify", "--proof", "r.tlog-proof", "--json", "r.jws")
    assert json.loads(said.out)[0]["log"] == {
        "origin": "holdgate.local/edge-7", "index": 2, "size": 3, "witnesses": []
    }  # fmt: skip
    (shop / "away").mkdir()
    monkeypatch.chdir(shop / "away")
    offline = ("verify", "--keys", "../keys.json", "--proof", "../r.tlog-proof", "../r.jws")
    said = run(*offline, "--log-key", log_key)
    assert (said.code, said.out.endswith("leaf 2 of 3\n")) == (0, True)
    (shop / "log.vkey").write_text(log_key + "\n")
    assert run(*offline, "--log-key", "../log.vkey").code == 0
    assert run(*offline).code == 2  # no log key, and no configuration here
    assert run(*offline, "--log-key", log_key, "--witness", log_key).code == 2
    other = vkey("other.example", SigningKey(seed=bytes(32)).public)
    assert run(*offline, "--log-key", other).code == 1
    assert run(*offline, "../r.jws", "--log-key", log_key).code == 2  # a proof is of one receipt


def test_verify_with_the_proof_of_another_receipt_fails(run, recorded, shop):
    (shop / "r.jws").write_text(run("receipts", "show", "--raw", recorded[2]).out)
    (shop / "other.tlog-proof").write_text(run("log", "prove", recorded[1]).out)
    said = run("verify", "--proof", "other.tlog-proof", "r.jws")
    assert (said.code, "not of this receipt" in said.out) == (1, True)
    (shop / "none.tlog-proof").write_text("hello")
    assert run("verify", "--proof", "none.tlog-proof", "r.jws").code == 1
    assert run("verify", "--proof", "missing.tlog-proof", "r.jws").code == 2


def test_log_audit_finds_an_edited_tile_and_a_damaged_index(run, recorded, shop):
    tile = next((shop / "state/log/tile/0/000.p").iterdir())
    good = tile.read_bytes()
    tile.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    said = run("log", "audit")
    assert (said.code, f"leaf 2 ({recorded[2]})" in said.out) == (1, True)
    tile.write_bytes(good)
    assert run("log", "audit").code == 0
    path = shop / "state/ledger.db"
    data = path.read_bytes()
    at = data.rindex(recorded[1].encode(), 0, len(data))  # in the index of ids, which no row is read from
    places = [at]
    while (at := data.rfind(recorded[1].encode(), 0, at)) >= 0:
        places.append(at)
    for place in places:
        path.write_bytes(data[: place + 8] + b"?" + data[place + 9 :])
        assert run("log", "audit").code != 0
    path.write_bytes(data)
    assert run("log", "audit").code == 0


def test_log_audit_finds_a_changed_schema(run, recorded, shop):
    path = shop / "state/ledger.db"
    data = path.read_bytes()
    path.write_bytes(data.replace(b"reason TEXT NOT NULL", b"reason TEXT NOT NuLL", 1))
    said = run("log", "audit")
    assert (said.code, "receipts is not declared as it should be" in said.out) == (1, True)


def test_progress_is_for_terminals_only(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    for stream in (Terminal(), io.StringIO()):
        moments = itertools.count(0.0, 1.0)
        monkeypatch.setattr("holdgate.cli.progress.time.monotonic", lambda moments=moments: next(moments))
        with Progress("audit", 1000, "receipts", stream=stream) as progress:
            progress.show(256)
        if stream.isatty():
            assert "] 26% 256 receipts, 256/s, 3 s left" in stream.getvalue().replace("]  26%", "] 26%")
        else:
            assert stream.getvalue() == ""


def test_log_prove_prints_a_proof_that_verifies(run, recorded, shop):
    said = run("log", "prove", recorded[1])
    assert said.code == 0
    proof = parse_proof(said.out.encode())
    jws = run("receipts", "show", "--raw", recorded[1]).out.strip().encode()
    log = parse_vkey((shop / "state/log/key.vkey").read_text().strip())
    assert (proof.index, verify_proof(proof, jws, log).size) == (1, 3)
    assert run("log", "prove", "rcpt_0").code == 2
    assert run("log", "prove").code == 2


def test_log_prove_since_a_checkpoint_tells_growth_from_a_fork(run, recorded, shop):
    (shop / "earlier").write_text(run("log", "checkpoint").out)
    said = run("log", "prove", "--since-checkpoint", "earlier")
    assert (said.code, said.out.split("\n")[0]) == (0, "old 3")
    keys = load_keys(shop / "state")
    tree = Tree(size=2, hashes=(bytes(32),))
    (shop / "fork").write_bytes(sign_checkpoint("holdgate.local/edge-7", tree, keys.log))
    said = run("log", "prove", "--since-checkpoint", "fork")
    assert (said.code, said.out) == (1, "")
    assert "does not begin with the 2 receipts" in said.err


def test_keys_list_and_export(run, shop):
    rows = json.loads(run("keys", "list", "--json").out)
    assert [row["purpose"] for row in rows] == ["receipt", "log"] and all(row["active"] for row in rows)
    assert json.loads(run("keys", "export").out)["keys"][0]["kid"] == rows[0]["kid"]
    assert run("keys", "export", "--format", "vkey").out.startswith("holdgate.local/edge-7+")
    assert "BEGIN PUBLIC KEY" in run("keys", "export", "--format", "pem").out
    assert (
        json.loads(run("keys", "export", "--format", "trigguard").out)["keys"][0]["keyId"] == rows[0]["kid"]
    )
    assert rows[0]["kid"] in run("keys", "list").out


def test_the_exported_log_key_is_the_one_the_ledger_publishes(run, recorded, shop):
    assert run("keys", "export", "--format", "vkey").out == (shop / "state/log/key.vkey").read_text()


def test_trust_prints_installs_and_undoes(run, shop):
    lines = run("trust", "--env").out.splitlines()
    env = dict(line.removeprefix("export ").split("=", 1) for line in lines)
    assert all(line.startswith("export ") for line in lines)
    assert env["SSL_CERT_FILE"] == env["REQUESTS_CA_BUNDLE"] == str(shop / "state/ca/bundle.pem")
    assert run("trust", "--bundle", "bundle.pem").code == 0
    ca = (shop / "state/ca/ca.pem").read_bytes()
    assert ca in (shop / "bundle.pem").read_bytes()
    (shop / "cacert.pem").write_bytes(ca)
    assert run("init", "other").code == 0
    assert run("trust", "-c", "other/holdgate.yaml", "--install", "cacert.pem").out.startswith("added ")
    assert run("trust", "-c", "other/holdgate.yaml", "--uninstall", "cacert.pem").out.startswith("removed ")
    assert (shop / "cacert.pem").read_bytes() == ca
    assert run("trust", "--install", "missing").code == 2


def test_trust_publishes_for_other_users_who_then_need_no_state_directory(run, shop, tmp_path):
    assert run("trust", "--publish", tmp_path / "trust").code == 0
    ca = (shop / "state/ca/ca.pem").read_bytes()
    assert (tmp_path / "trust/ca.pem").read_bytes() == ca
    assert f'SSL_CERT_FILE="{tmp_path}/trust/bundle.pem"' in (tmp_path / "trust/env").read_text()
    (tmp_path / "cacert.pem").write_bytes(ca)
    done = run("trust", "-c", "none.yaml", "--ca", tmp_path / "trust/ca.pem", "--bundle", tmp_path / "b.pem")
    assert done.code == 0
    assert ca in (tmp_path / "b.pem").read_bytes()
    assert run("trust", "--ca", "none.pem", "--bundle", tmp_path / "b.pem").code == 2
    assert run("trust", "--ca", tmp_path / "trust/ca.pem", "--env").code == 2


def test_init_with_a_constrained_ca_names_the_starters_hosts(run, tmp_path):
    assert run("init", tmp_path / "gate", "--constrain").code == 0
    config = tmp_path / "gate/holdgate.yaml"
    assert load_config(config).ca.constrain
    (row,) = json.loads(run("ca", "list", "-c", config, "--json").out)
    assert row["standing"] == "signing"
    assert {"api.stripe.com", "slack.com", "amazonaws.com"} <= set(row["permitted"])
    assert run("init", tmp_path / "plain").code == 0
    refused = run("init", tmp_path / "plain", "--constrain")
    assert refused.code == 2 and "ca: {constrain: true}" in refused.err


def test_ca_rotates_in_three_steps_that_wait(run, shop):
    def standings():
        return [row["standing"] for row in json.loads(run("ca", "list", "--json").out)]

    assert run("ca", "switch").code == 2
    assert "after 168 h" in run("ca", "rotate").out
    assert standings() == ["next", "signing"]
    assert "agents have until" in run("ca", "switch").err
    assert "SIGHUP" in run("ca", "switch", "--now").out
    assert standings() == ["signing", "previous"]
    assert run("ca", "switch", "--back").code == 0
    assert standings() == ["next", "signing"]
    assert run("ca", "switch", "--now").code == 0
    assert run("ca", "retire").code == 2
    assert run("ca", "retire", "--now").code == 0
    assert standings() == ["signing"]
    assert "every name" in run("ca", "list").out


def test_surfaces_list_and_compile(run, shop):
    rows = json.loads(run("surfaces", "list", "--json").out)
    assert [(row["operation"], row["match"]) for row in rows] == [("shop.buy", "POST /orders")]
    assert "payments.charge" in run("surfaces", "list").out
    assert json.loads(run("surfaces", "list", "--surface", "x", "--json").out) == []
    assert json.loads(run("surfaces", "compile", "surfaces").out)["version"] == 2


@pytest.fixture
def process_settings():
    """`run` owns its process; here it shares ours, so what it sets is put back."""
    umask, interval = os.umask(0o077), sys.getswitchinterval()
    os.umask(umask)
    yield
    os.umask(umask)
    sys.setswitchinterval(interval)


@pytest.mark.parametrize("break_it", ["policy", "key", "admin port"])
def test_run_refuses_to_start_with_exit_2(run, shop, process_settings, break_it):
    config = shop / "holdgate.yaml"
    config.write_text(config.read_text().replace("127.0.0.1:8080 ", "127.0.0.1:0 "))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        match break_it:
            case "policy":
                (shop / "policies/orders.yaml").write_text(POLICY.replace("effect: deny", "effect: block"))
            case "key":
                (shop / "state/keys/receipt.key").chmod(0o644)
            case _:
                config.write_text(
                    config.read_text().replace("127.0.0.1:9090", f"127.0.0.1:{taken.getsockname()[1]}")
                )
        said = run("run")
    assert said.code == 2 and "ready" not in said.out
    assert {"policy": "orders.yaml:12:13: ", "key": "receipt.key: ", "admin port": "admin.listen"}[
        break_it
    ] in said.err


def test_network_print_is_a_script_and_says_what_is_missing_until_then(run, shop):
    assert "no agent to force through" in run("network", "print").err
    path = shop / "holdgate.yaml"
    text = path.read_text().replace("  transparent: null ", "  transparent: 0.0.0.0:8443 ")
    path.write_text(text + "network: {interfaces: [agents0]}\n")
    said = run("network", "print")
    assert said.code == 0 and said.out.startswith("add table inet holdgate\n")
    assert 'iifname "agents0" counter drop' in said.out


def test_exec_without_a_running_proxy_is_exit_2(run, shop):
    said = run("exec", "--", "true")
    assert (said.code, said.out) == (2, "") and "`holdgate run` is not running" in said.err


def test_keys_rotate_and_revoke_without_an_instance(run, recorded, shop, monkeypatch):
    (shop / "off").mkdir()
    (shop / "off/log.vkey").write_text((shop / "state/log/key.vkey").read_text())
    first = json.loads(run("keys", "list", "--json").out)[0]["kid"]
    said = run("keys", "revoke", first)
    assert (said.code, "rotate the active one first" in said.err) == (2, True)
    for purpose, leaf in (("receipt", 3), ("log", 4)):
        said = run("keys", "rotate", purpose, "--json")
        assert (said.code, json.loads(said.out)["index"]) == (0, leaf)
    assert "keys export" in run("keys", "revoke", first, "--from-index", "2").err
    rows = json.loads(run("keys", "list", "--json").out)
    assert [(row["purpose"], row["active"], row["from"], row["to"], row["revoked_from"]) for row in rows] == [
        ("receipt", False, 0, 3, 2),
        ("receipt", True, 4, None, None),
        ("log", False, 0, 4, None),
        ("log", True, 4, None, None),
    ]
    said = run("log", "audit")  # what lies between the index and the rotation counts no more
    assert (said.code, said.out.count("revoked")) == (1, 2)
    (shop / "off/keys.json").write_text(run("keys", "export").out)
    (shop / "off/changes").write_text(run("keys", "export", "--format", "changes").out)
    ids = [*recorded, json.loads(run("receipts", "list", "--json").out)["receipts"][0]["receipt"]["id"]]
    for number, name in enumerate(ids):
        (shop / f"off/{number}.jws").write_text(run("receipts", "show", "--raw", name).out)
        (shop / f"off/{number}.tlog-proof").write_text(run("log", "prove", name).out)
    monkeypatch.chdir(shop / "off")
    for number, code in enumerate((0, 0, 1, 0)):
        offline = ("verify", "--keys", "keys.json", "--proof", f"{number}.tlog-proof", f"{number}.jws")
        assert run(*offline, "--log-key", "log.vkey", "--log-changes", "changes").code == code
        assert run(*offline, "--log-key", "log.vkey").code == 1  # another key signed this checkpoint
        assert run(*offline, "--log-changes", "changes").code == 2
    assert run("keys", "rotate", "fleet").code == 2
    assert run("keys", "rotate", "receipt", "-c", "../holdgate.yaml", "--key-id", "slot-1").code == 2


def test_running_as_another_user_takes_root_and_a_user_that_exists(run, shop, monkeypatch):
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert "--user needs root" in (said := run("run", "--user", "nobody")).err and said.code == 2
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert "no user 'no-such-user'" in (said := run("run", "--user", "no-such-user")).err and said.code == 2


def test_network_print_says_which_route_tproxy_needs(run, shop):
    path = shop / "holdgate.yaml"
    text = path.read_text().replace("  transparent: null ", "  transparent: 0.0.0.0:8443 ")
    path.write_text(text + "network: {interfaces: [agents0], mode: tproxy}\n")
    said = run("network", "print")
    assert said.code == 0 and "#   ip -6 route replace local default dev lo table 18503\n" in said.out
    assert "meta nfproto ipv4 meta l4proto tcp tproxy ip to :8443 meta mark set 0x48474154 accept" in said.out
    assert "hand 0.0.0.0:8443 over" in (said := run("run")).err and said.code == 2


@pytest.mark.parametrize("kid", ["A" * 43, "-" + "A" * 42, "--" + "A" * 41], ids=["A", "-", "--"])
def test_a_key_id_that_begins_as_an_option_does_is_one(run, recorded, kid):
    for words in (("revoke", kid, "--from-index", "2"), ("revoke", "--from-index", "2", kid)):
        said = run("keys", *words)
        assert (said.code, "usage:" in said.err, kid in said.err) == (2, False, True)


# --- an audit while keys change ---


@pytest.mark.parametrize("step", ["audit_input", "load_public_keys", "load_log_keys", "list_problems"])
@pytest.mark.parametrize("purpose", ["receipt", "log"])
async def test_log_audit_at_the_moment_of_a_rotation_is_clean(shop, run, monkeypatch, step, purpose):
    """Whatever was read before, and whatever after: it is read again until it is of one moment."""
    from holdgate.adapters.keyring import Revocation, Rotation
    from holdgate.adapters.sqlite_reader import SqliteReader
    from holdgate.cli import log as command
    from holdgate.keyhistory import Purpose

    config = load_config(shop / "holdgate.yaml")
    keys = load_keys(config.state_dir)
    clock = itertools.count(1_700_000_000_000_000, 1_000_000)
    ledger = SqliteLedger.open(
        config.state_dir,
        receipt_key=keys.receipt,
        log_key=keys.log,
        origin=config.issuer,
        node=config.node,
        clock_us=lambda: next(clock),
        nonce16=lambda: bytes(16),
        headroom_bytes=0,
    )
    await ledger.record(_Judge(keys.receipt, config.issuer, Outcome.SILENCE))
    loop, changes = asyncio.get_running_loop(), []

    async def change():
        first = keys.receipt.kid if purpose == "receipt" else keys.log.kid
        await ledger.change_key(Rotation(purpose=Purpose(purpose), key_id="", by="local"))
        await ledger.change_key(Revocation(kid=first, from_index=None, by="local"))

    owner = SqliteReader if step == "audit_input" else command
    real = getattr(owner, step)

    def meanwhile(*args):
        found = real(*args)
        if not changes:
            changes.append(asyncio.run_coroutine_threadsafe(change(), loop).result(20))
        return found

    monkeypatch.setattr(owner, step, meanwhile)
    said = await asyncio.to_thread(run, "log", "audit")
    await asyncio.to_thread(ledger.close)
    assert changes and (said.code, "PROBLEM" in said.out) == (0, False), said.out
    assert (await asyncio.to_thread(run, "log", "audit")).code == 0


def test_log_audit_waits_for_files_about_keys_and_not_for_ever(recorded, shop, run, monkeypatch):
    listed = shop / "state/keys/log.jwks.json"
    good = listed.read_bytes()
    document = json.loads(good)
    listed.write_text(json.dumps({"keys": document["keys"] + [SigningKey(seed=b"x" * 32).public.jwk]}))
    waited = []
    monkeypatch.setattr("holdgate.cli.one_moment.time.sleep", waited.append)
    monkeypatch.setattr("holdgate.cli.one_moment.time.monotonic", lambda: float(len(waited)))
    said = run("log", "audit")
    assert said.code == 1 and "PROBLEM" in said.out and 1 <= len(waited) <= 4
    monkeypatch.setattr("holdgate.cli.one_moment.time.sleep", lambda _: listed.write_bytes(good))
    listed.write_text(json.dumps({"keys": document["keys"] + [SigningKey(seed=b"x" * 32).public.jwk]}))
    assert run("log", "audit").code == 0


# --- receipts disclose ---


def test_receipts_disclose_shows_nothing_that_is_not_recorded_first(shop, run):
    from evidence import RefundJudge

    config = load_config(shop / "holdgate.yaml")
    keys = load_keys(config.state_dir)

    def opened():
        return SqliteLedger.open(
            config.state_dir,
            receipt_key=keys.receipt,
            log_key=keys.log,
            origin=config.issuer,
            node=config.node,
            clock_us=itertools.count(1_700_000_000_000_000, 1_000_000).__next__,
            nonce16=lambda: bytes(16),
            headroom_bytes=0,
        )

    async def fill():
        ledger = opened()
        found = (await ledger.record(RefundJudge("a", signer=keys.receipt, sealed=True))).entry.receipt_id
        await asyncio.to_thread(ledger.close)
        return found

    receipt = asyncio.run(fill())
    elsewhere = opened()  # it has the ledger, and no socket to ask it by
    said = run("receipts", "disclose", receipt)
    assert (said.code, said.out) == (2, "") and "another process" in said.err
    elsewhere.close()
    said = run("receipts", "disclose", receipt)
    assert said.code == 0 and json.loads(said.out)["receipt"] == receipt
    rows = [json.loads(row)["receipt"] for row in run("receipts", "export").out.splitlines()]
    (noted,) = [row for row in rows if row.get("action") == "disclose"]
    assert (noted["by"], noted["details"]) == ("local", {"of": receipt}) and noted["id"] in said.err


def test_reconcile_ask_says_what_it_needs(run, shop):
    file = shop / "reconciler.yaml"
    file.write_text("hosts: {shop.test: {authorization: Bearer secret}}\n")
    file.chmod(0o640)
    words = ("reconcile", "ask", "--credentials", file)
    said = run(*words)
    assert (said.code, said.out, "others can read the credentials" in said.err) == (2, "", True)
    file.chmod(0o600)
    for proxy in ("nowhere", ":8080", "127.0.0.1:", "127.0.0.1:x"):
        said = run(*words, "--proxy", proxy)
        assert (said.code, "write HOST:PORT" in said.err) == (2, True)
    config = shop / "holdgate.yaml"
    config.write_text(config.read_text().replace("explicit: 127.0.0.1:8080", "explicit: 127.0.0.1:0"))
    said = run(*words)
    assert (said.code, "say --proxy HOST:PORT" in said.err) == (2, True)
    assert "secret" not in said.out + said.err


def test_reconcile_ask_watch_asks_each_less_often_and_forgets_what_is_settled(run, shop, monkeypatch):
    file = shop / "reconciler.yaml"
    file.write_text("hosts: {}\n")
    file.chmod(0o600)
    clock = iter([0.0, 60.0, 120.0, 180.0, 240.0])
    waiting = iter([["a", "b"], ["b"], ["b"], ["b"], ["a", "b"]])
    pauses = []

    def pause(seconds):
        pauses.append(seconds)
        if len(pauses) == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr("holdgate.cli.ask.time", types.SimpleNamespace(monotonic=clock.__next__, sleep=pause))
    monkeypatch.setattr("holdgate.cli.ask._in_doubt", lambda *_, **__: next(waiting))
    monkeypatch.setattr(
        "holdgate.cli.ask._about", lambda _, permit: _Told(of=permit, status="unknown", because="not there")
    )
    said = run("reconcile", "ask", "--credentials", file, "--watch", "60")
    assert said.code == 130
    assert [line.split(":")[0] for line in said.out.splitlines()] == ["a", "b", "b", "b", "a", "b"]
    assert pauses == [60] * 5
