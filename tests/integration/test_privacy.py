"""Patients, cards, secrets and messages go through an instance on every way; nothing of them is found after.

Looked through: every byte of the state directory (tiles, ledger, write-ahead log, bundles), what the process
said with everything logged, metrics, every answer of the admin API and every export, in plain and in the
encodings of needles.py. The positive control plants needles in each of these places, and one value that a map
shows on purpose (Stripe's id of a charge) must be found where receipts are.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from behind import Bench
from holdgate.cli import main
from holdgate.demo.instance import Instance
from holdgate.demo.standins import StandIns
from needles import forms, found_in

# Values that occur nowhere else, none shorter than nine characters.
PHI = (
    "Quillfeather", "Zzyzxandra", "MRN-88412907", "078-05-1120", "1931-02-29x", "glioblastoma-q7",
    "pat-5f2c9e81d", "obs-77aa01c2e", "Quillfeather's Lane 7",
)  # fmt: skip
PAN = ("4242424242424242", "5555555555554444", "378282246310005")
SECRETS = (
    "sk_test_9vJ2mQx71Lw", "xoxb-77120031-needle", "session=c00kie-71b2e0", "tok_Proxy_5521kkqz",
    "hunter2-vault-Ω9x",
    "AQoDYXdzEJr-needle-session", "ext-id-44b0ffa7c", "userdata-p4ssw0rd-1", "npm_n33dleTokenQ4z",
)  # fmt: skip
TALK = ("the merger closes at dawn, tell no one", "quill.feather@ward-9.example", "sum up Zzyzxandra's chart")
NEEDLES = (*PHI, *PAN, *SECRETS, *TALK)
SHOWN = "ch_Shown41e7b90c"  # a charge: Stripe's map is not sensitive about those

LOUD = """
import logging, sys
logging.basicConfig(level=logging.DEBUG, stream=sys.stderr)
from holdgate.cli import main
sys.exit(main())
"""
AGENT = """
    import base64, json, os, requests, socket
    fhir = {"Content-Type": "application/fhir+json", "Cookie": "session=c00kie-71b2e0"}
    patient = {"resourceType": "Patient", "id": "pat-5f2c9e81d", "birthDate": "1931-02-29x",
               "identifier": [{"system": "urn:mrn", "value": "MRN-88412907"}, {"value": "078-05-1120"}],
               "name": [{"family": "Quillfeather", "given": ["Zzyzxandra"]}],
               "address": [{"line": ["Quillfeather's Lane 7"]}]}
    seen = {"resourceType": "Observation", "status": "final", "code": {"text": "glioblastoma-q7"},
            "subject": {"reference": "Patient/pat-5f2c9e81d", "display": "Zzyzxandra Quillfeather"}}
    base, stripe = "https://fhir.example.org/fhir/R4", "https://api.stripe.com/v1"
    slack, model = "https://slack.com/api", "https://api.anthropic.com/v1/messages"
    plain = {k: v for k, v in fhir.items() if k != "Cookie"}
    bundle = {"resourceType": "Bundle", "type": "transaction", "entry": [
        {"fullUrl": "urn:uuid:1", "resource": patient,
         "request": {"method": "PUT", "url": "Patient/pat-5f2c9e81d"}},
        {"resource": seen, "request": {"method": "POST", "url": "Observation"}}]}
    card = {"type": "card", "card[number]": "4242424242424242", "card[exp_month]": "12",
            "card[exp_year]": "2031", "card[cvc]": "314"}
    key = {"Authorization": "Bearer sk_test_9vJ2mQx71Lw", "Idempotency-Key": "refund-Quillfeather"}
    bot = {"Authorization": "Bearer xoxb-77120031-needle"}
    said = "the merger closes at dawn, tell no one"
    aws = {"Authorization": "AWS4-HMAC-SHA256 Credential=AKIANEEDLE/20261121/eu-central-1/x/aws4_request,"
           " SignedHeaders=host, Signature=ab", "X-Amz-Date": "20261121T000000Z",
           "X-Amz-Security-Token": "AQoDYXdzEJr-needle-session", "Content-Type": "application/x-amz-json-1.1"}
    secret = {"Name": "prod/db", "SecretString": "hunter2-vault-Ω9x", "ClientRequestToken": "1" * 32}
    secret = json.dumps(secret, ensure_ascii=False).encode()
    sm, ddb = "https://secretsmanager.eu-central-1.amazonaws.com/", "https://dynamodb.eu-central-1.amazonaws.com/"
    sts, ec2 = "https://sts.eu-central-1.amazonaws.com/", "https://ec2.eu-central-1.amazonaws.com/"
    form = aws | {"Content-Type": "application/x-www-form-urlencoded"}
    prompt = {"model": "claude-x", "max_tokens": 9,
              "messages": [{"role": "user", "content": "sum up Zzyzxandra's chart"}]}
    chat = {"Authorization": "Bearer sk_test_9vJ2mQx71Lw", "anthropic-version": "2023-06-01"}
    calls = [
        ("POST", base + "/Observation", json.dumps(seen), plain),
        ("POST", base + "/Observation", json.dumps(seen), plain),
        ("POST", base + "/Observation", json.dumps(seen | {"status": "Zzyzxandra"}), plain),
        ("POST", base + "/Patient", json.dumps(patient), 
         plain | {"If-None-Exist": "identifier=MRN-88412907"}),
        ("PUT", base + "/Patient/pat-5f2c9e81d", json.dumps(patient), plain),
        ("PUT", base + "/Patient/pat-5f2c9e81d", json.dumps(patient), fhir),
        ("PATCH", base + "/Patient/pat-5f2c9e81d",
         json.dumps([{"op": "add", "path": "/Quillfeather", "value": 1}]),
         {"Content-Type": "application/json-patch+json"}),
        ("DELETE", base + "/Observation/obs-77aa01c2e", None, {}),
        ("POST", base, json.dumps(bundle), plain),
        ("POST", base + "/", json.dumps(bundle), plain),
        ("GET", base + "/Patient/pat-5f2c9e81d", None, {}),
        ("GET", base + "/Patient/pat-5f2c9e81d/_history/obs-77aa01c2e", None, {}),
        ("GET", base + "/Patient?family=Quillfeather&identifier=078-05-1120", None, {}),
        ("GET", base + "/Observation?patient=Patient/pat-5f2c9e81d&_include=Zzyzxandra", None, {}),
        ("POST", base + "/Patient/_search", "family=Quillfeather&patient=pat-5f2c9e81d",
         {"Content-Type": "application/x-www-form-urlencoded"}),
        ("GET", base + "/Quillfeather/pat-5f2c9e81d", None, {}),
        ("GET", base + "/Quillfeather", None, {}),
        ("POST", base + "/Observation", json.dumps(seen)[:-4], plain),
        ("POST", base + "/Observation", '{"Quillfeather": 1, "Quillfeather": 2}', plain),
        ("POST", base + "/Observation", json.dumps(seen), {"Content-Type": "text/Quillfeather"}),
        ("POST", base + "/Observation", json.dumps(patient) + " " * 9_000_000, plain),
        ("POST", base + "/Patient/pat-5f2c9e81d/$glioblastoma-q7", "{}", plain),
        ("GET", base + "/..%2fPatient/Quillfeather", None, {}),
        ("GET", base + "/Patient/1?Quillfeather[Zzyzxandra]=MRN-88412907", None, {}),
        ("GET", base + "/Patient/1", None, {"X-Patient": "Quillfeather", "X-Quillfeather": "1"}),
        ("POST", "https://unmapped.example.org/Quillfeather?ssn=078-05-1120", json.dumps(patient), fhir),
        ("POST", stripe + "/payment_methods", card, key),
        ("POST", stripe + "/payment_methods", card | {"card[number]": "5555555555554444"}, key),
        ("POST", stripe + "/tokens", {"card[number]": "378282246310005"}, key),
        ("POST", stripe + "/refunds", {"note": "4242424242424242"}, key),
        ("POST", stripe + "/refunds", {"4242424242424242": "x"}, key),
        ("POST", stripe + "/refunds", {"charge": "ch_Shown41e7b90c", "amount": "100"}, key),
        ("POST", stripe + "/customers", {"email": "quill.feather@ward-9.example", "name": "Quillfeather"},
         key),
        ("POST", slack + "/chat.postMessage", {"channel": "C01", "text": said}, bot),
        ("POST", slack + "/chat.postMessage",
         {"channel": "C01", "text": said, "token": "xoxb-77120031-needle"}, {}),
        ("POST", slack + "/chat.postMessage", {"channel": "C01", "txt": said}, bot),
        ("GET", slack + "/users.lookupByEmail?email=quill.feather@ward-9.example", None, bot),
        ("POST", sm, secret, aws | {"X-Amz-Target": "secretsmanager.CreateSecret"}),
        ("POST", sm, secret, aws | {"X-Amz-Target": "secretsmanager.PutSecretValue"}),
        ("POST", ddb, json.dumps({"TableName": "t", "Key": {"id": {"S": "pat-5f2c9e81d"}}}),
         aws | {"X-Amz-Target": "DynamoDB_20120810.GetItem", "Content-Type": "application/x-amz-json-1.0"}),
        ("POST", sts, {"Action": "AssumeRole", "Version": "2011-06-15", "RoleArn": "arn:aws:iam::1:role/r",
                       "RoleSessionName": "s", "ExternalId": "ext-id-44b0ffa7c"}, form),
        ("POST", ec2, {"Action": "RunInstances", "Version": "2016-11-15", "ImageId": "ami-1", "MinCount": "1",
                       "MaxCount": "1", "UserData": base64.b64encode(b"userdata-p4ssw0rd-1").decode()}, form),
        ("POST", model, json.dumps(prompt), chat), ("POST", model, json.dumps(prompt), chat),
        ("POST", model, json.dumps(prompt), chat), ("POST", model, json.dumps(prompt), chat),
        ("GET", "https://npm.example.org/x", None, {"Authorization": "Bearer npm_n33dleTokenQ4z"}),
    ]
    for method, url, body, headers in calls:
        answer = requests.request(method, url, data=body, headers=headers)
        print(answer.status_code, answer.headers.get("Holdgate-Decision", "none").partition(";")[0])
    host, port = os.environ["HTTPS_PROXY"].removeprefix("http://").split(":")
    bad = base64.b64encode(b"triage:tok_Proxy_5521kkqz").decode()
    for raw in (
        b"CONNECT Quillfeather.example:443 HTTP/1.1\\r\\nHost: Quillfeather Zzyzxandra\\r\\n\\r\\n",
        b"GET /MRN-88412907 HTTP/1.1\\r\\nHost : Quillfeather\\r\\nCookie: session=c00kie-71b2e0\\r\\n\\r\\n",
        b"Quillfeather Zzyzxandra MRN-88412907\\r\\n\\r\\n",
        f"GET http://fhir.example.org/MRN-88412907 HTTP/1.1\\r\\nHost: fhir.example.org\\r\\n"
        f"Proxy-Authorization: Basic {bad}\\r\\n\\r\\n".encode(),
    ):
        with socket.create_connection((host, int(port))) as tcp:
            tcp.sendall(raw)
            tcp.settimeout(60)
            print(tcp.recv(100).split(b" ")[1:2], "RAW")
"""
BROKEN = (
    b"HTTP/1.1 200 OK\r\nX-Echo: Zzyzxandra\x01Quillfeather\r\n\r\n",
    b"Quillfeather Zzyzxandra MRN-88412907\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\nSet-Cookie: session=c00kie-71b2e0\r\n\r\nQuillfeather",
    b"HTTP/1.1 500 Quillfeather\r\nContent-Length: 12\r\n\r\nQuillfeather",
)


class Loud(Instance):
    """Everything that any library would log is logged."""

    def command(self, *words: str) -> list[str]:
        loud = ["-c", LOUD] if words[:1] == ("run",) else ["-m", "holdgate"]
        return [sys.executable, *loud, *words, "-c", str(self.config)]


@contextlib.contextmanager
def _broken_vendor() -> Iterator[str]:
    """An upstream that answers with what no client should keep either."""
    answers = iter(BROKEN)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    stream, _ = server.accept()
                    with stream:
                        stream.recv(65_536)
                        stream.sendall(next(answers, BROKEN[0]))

        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture(scope="module")
def loud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    agents = (
        "  - {id: demo-agent, match: {source: [127.0.0.1/32]}}\n"
        f"  - {{id: triage, match: {{token_sha256: '{'ab' * 32}'}}}}"
    )
    with _broken_vendor() as broken, StandIns() as vendors:
        folder = tmp_path_factory.mktemp("loud")
        gate = Loud(
            folder, connect_to=vendors.connect_to() | {"api.anthropic.com:443": broken}, agents=agents
        )
        gate.run_words = ("run", "--verbose")
        with gate:
            yield Bench(gate, vendors, folder)


@pytest.fixture(scope="module")
def answers(loud: Bench) -> list[str]:
    return loud.agent(AGENT).splitlines()


def _get(loud: Bench, path: str, accept: str = "*/*") -> bytes:
    asked = urllib.request.Request(f"http://{loud.gate.admin}{path}", headers={"Accept": accept})
    with urllib.request.urlopen(asked, timeout=60) as answer:  # noqa: S310
        data: bytes = answer.read()
    return data


def _holdgate(loud: Bench, *words: str) -> subprocess.CompletedProcess[str]:
    """A command, in this process: starting a Python for each of thirty takes longer than all of them."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([*words, "-c", str(loud.gate.config)])
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())


def _kept(loud: Bench) -> dict[str, bytes]:
    """Every place where something could be found: its name, its bytes."""
    places = {f"file {path}": data for path, data in loud.state_files().items()}
    places["log"] = (loud.folder / "run.log").read_bytes()
    places["metrics"] = _get(loud, "/metrics")
    for form in ("jsonl", "ocsf", "cef", "otlp"):
        places[f"export {form}"] = _holdgate(loud, "receipts", "export", "--format", form).stdout.encode()
    places["replay"] = _holdgate(loud, "replay", "--json").stdout.encode()
    places["audit"] = _holdgate(loud, "log", "audit", "--json").stdout.encode()
    return places


def _statements(loud: Bench) -> list[dict[str, object]]:
    rows = _holdgate(loud, "receipts", "export").stdout.splitlines()
    return [json.loads(row)["receipt"] for row in rows]


def test_the_corpus_meets_every_kind_of_answer(answers: list[str], loud: Bench) -> None:
    assert {line.split()[1] for line in answers} >= {"PERMIT", "DENY", "SILENCE", "RAW"}
    said = _statements(loud)
    reasons = {row["reason"] for row in said if row["type"] == "decision"}
    assert reasons >= {
        "permit_rule", "deny_rule", "no_rule_matched", "unknown_destination", "unknown_operation", "bad_body",
        "too_large", "unknown_parameter", "malformed_request", "non_canonical_path", "unsupported_content",
    }  # fmt: skip
    assert {"unknown", "executed"} <= {row["status"] for row in said if row["type"] == "outcome"}


@pytest.fixture(scope="module")
def places(answers: list[str], loud: Bench) -> dict[str, bytes]:
    return _kept(loud)


def test_a_crash_writes_no_memory_to_disk(loud: Bench) -> None:
    limits = Path(f"/proc/{loud.gate.pid}/limits").read_text()
    assert re.search(r"Max core file size +0 +0 ", limits)


def test_nothing_of_it_is_kept(places: dict[str, bytes]) -> None:
    assert b"holdgate_decisions_total" in places["metrics"] and b"DEBUG" in places["log"]
    assert len(places) > 15
    assert found_in(places, NEEDLES) == []


def test_what_a_map_shows_is_found_where_receipts_are(places: dict[str, bytes]) -> None:
    where = {place for place, _, _ in found_in(places, (SHOWN,))}
    assert any(place.endswith("ledger.db-wal") or place.endswith("ledger.db") for place in where)
    assert any("/log/tile/entries/" in place for place in where)
    assert {"export jsonl"} <= where and not where & {"metrics", "log"}


def test_the_search_finds_a_needle_in_every_place_and_form(places: dict[str, bytes]) -> None:
    needle = "Quillfeather"
    texts = dict(forms(needle))
    for place, data in places.items():
        middle = len(data) // 2
        planted = {place: data[:middle] + b"\0".join(texts.values()) + data[middle:]}
        assert {form for _, _, form in found_in(planted, (needle,))} == set(texts), place


def test_a_disclosure_lets_one_verifier_check_the_request(
    answers: list[str], loud: Bench, tmp_path: Path
) -> None:
    script = """
        import requests
        fhir, body = {"Content-Type": "application/fhir+json"}, b'{"resourceType": "Flag"}'
        for kind in ("Observation", "Flag"):
            answer = requests.post("https://fhir.example.org/fhir/R4/" + kind, data=body, headers=fhir)
            print(answer.headers["Holdgate-Decision"].partition('id="')[2].partition('"')[0])
    """
    unread, receipt = loud.agent(script).split()
    assert "no commitment" in _holdgate(loud, "receipts", "disclose", unread).stderr
    raw, disclosure, body = tmp_path / "receipt.jws", tmp_path / "disclosure.json", tmp_path / "body"
    raw.write_text(_holdgate(loud, "receipts", "show", receipt, "--raw").stdout)
    shown = _holdgate(loud, "receipts", "disclose", receipt)
    disclosure.write_text(shown.stdout)
    (noted,) = [row for row in _statements(loud) if row.get("action") == "disclose"]
    assert (noted["by"], noted["details"]) == ("local", {"of": receipt})  # an auditor sees that it was opened
    assert f"recorded as {noted['id']}" in shown.stderr
    body.write_bytes(b'{"resourceType": "Flag"}')
    words = ("verify", str(raw), "--disclosure", str(disclosure), "--body", str(body))
    assert _holdgate(loud, *words).returncode == 0
    assert _holdgate(loud, *words, "--target", "/fhir/R4/Patient").returncode == 1
    body.write_bytes(b'{"resourceType": "Patient"}')
    refused = _holdgate(loud, *words)
    assert refused.returncode == 1 and "another request" in refused.stdout


def test_inputs_replay_until_they_are_shredded(answers: list[str], loud: Bench) -> None:
    """The last test: it destroys what the others look at."""
    counts = json.loads(_holdgate(loud, "replay", "--json").stdout)["counts"]
    assert (
        counts["identical"] > 10 and counts["not_kept"] == counts["undecidable"] == counts["different"] == 0
    )
    sensitive = [str(row["id"]) for row in _statements(loud) if "commitment" in str(row.get("request"))]
    assert len(sensitive) > 15
    some, other = sensitive[0], sensitive[1]
    once = _holdgate(loud, "receipts", "shred", some, "--json")
    assert json.loads(once.stdout)["decisions"] == 1 and once.returncode == 0, once.stderr
    assert "nothing is kept" in _holdgate(loud, "receipts", "shred", some).stdout
    assert _holdgate(loud, "receipts", "shred", "--agent", "demo-agent").returncode == 2
    loud.gate.stop()
    assert "destroyed what is kept of 1" in _holdgate(loud, "receipts", "shred", other).stdout
    done = _holdgate(loud, "receipts", "shred", "--agent", "demo-agent", "--yes", "--json")
    assert json.loads(done.stdout)["decisions"] > 15, done.stderr
    counts = json.loads(_holdgate(loud, "replay", "--json").stdout)["counts"]
    assert counts["identical"] == 0 and counts["undecidable"] > 15
    audit = _holdgate(loud, "log", "audit")
    assert audit.returncode == 0 and re.search(r" 0 recorded inputs, [1-9][0-9]* destroyed", audit.stdout)
    assert "was destroyed" in _holdgate(loud, "receipts", "disclose", some).stderr
    assert len([row for row in _statements(loud) if row.get("action") == "disclose"]) == 1
