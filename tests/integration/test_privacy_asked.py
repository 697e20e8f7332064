"""What test_privacy.py does not send: decision doors, facts that policies read, captured requests, retention.

The same search, over everything that a second instance keeps and says.
"""

from __future__ import annotations

import base64
import hashlib
import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from behind import Bench
from holdgate.adapters.forgetting import Forgetter
from holdgate.adapters.offline import offline_ledger
from holdgate.adapters.open_reader import open_reader
from holdgate.config import load_config
from holdgate.demo.standins import StandIns
from holdgate.erasure import RETENTION, Erasure
from integration.test_privacy import Loud, _holdgate, _kept, _statements
from needles import found_in

pytestmark = pytest.mark.slow

TOKEN = "decider-needle-t0ken"
NEEDLES = (
    "Quillfeather", "pat-5f2c9e81d", "glioblastoma-q7", "Ward-Nightjar-9", "secret-nurse-77", "MRN-88412907",
    "sk_test_9vJ2mQx71Lw", TOKEN, "idem-Zzyzxandra",
)  # fmt: skip
PANEL = "agent,patient,member,ward,as_of_s\ndemo-agent,Patient/pat-5f2c9e81d,true,Ward-Nightjar-9,{now}\n"
PANEL += "demo-agent,Patient/other-1,false,secret-nurse-77,{now}\n"
FACTS = """\
apiVersion: holdgate/v1
kind: Bundle
metadata: {name: facts, owner: platform@example.com}
spec:
  facts:
    ehr-panel: {member: bool, ward: string, as_of_s: int}
"""
POLICY = """\
apiVersion: holdgate/v1
kind: Policy
metadata: {name: ehr-panel, owner: clinical-safety@example.com}
spec:
  surface: ehr.write
  operations: [fhir.r4.create, fhir.r4.update]
  facts:
    panel: {provider: ehr-panel, key: [agent.id, params.patient]}
  rules:
    - {id: outside, effect: deny, when: "!facts.panel.member", reason: not on the panel}
    - {id: inside, effect: permit, when: 'facts.panel.member && facts.panel.ward != ""'}
"""


@pytest.fixture(scope="module")
def loud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("asked")
    extra = (
        "facts:\n  ehr-panel:\n    file: {path: ./panel.csv, key: [agent, patient]}\n    max_age_s: 86400\n"
    )
    with StandIns() as vendors:
        gate = Loud(folder, connect_to=vendors.connect_to(), extra=extra)
        gate.run_words = ("run", "--verbose")
        token = hashlib.sha256(TOKEN.encode()).hexdigest()
        text = gate.config.read_text().replace(
            "open: [metrics, checkpoint]",
            "open: [metrics, checkpoint], tokens: {asker: "
            f"{{sha256: '{token}', roles: [decider], agents: [demo-agent]}}}}",
        )
        gate.config.write_text(text)
        (folder / "panel.csv").write_text(PANEL.format(now=int(time.time())))
        (folder / "policies/facts.yaml").write_text(FACTS)
        (folder / "policies/ehr_panel.yaml").write_text(POLICY)
        for name in ("fhir_writes.yaml", "fhir_writes_test.yaml"):
            (folder / "policies" / name).unlink()
        with gate:
            yield Bench(gate, vendors, folder)


def seen(patient: str) -> bytes:
    resource = {"resourceType": "Observation", "status": "final", "code": {"text": "glioblastoma-q7"}}
    subject = {"reference": f"Patient/{patient}", "display": "Quillfeather"}
    return json.dumps(resource | {"subject": subject}).encode()


def captured(patient: str) -> bytes:
    body = seen(patient)
    head = b"POST /fhir/R4/Observation HTTP/1.1\r\nHost: fhir.example.org\r\n"
    head += b"Authorization: Bearer sk_test_9vJ2mQx71Lw\r\n"
    return head + b"Content-Type: application/fhir+json\r\nContent-Length: %d\r\n\r\n" % len(body) + body


def asked(loud: Bench, path: str, question: dict[str, Any]) -> str:
    request = urllib.request.Request(
        f"http://{loud.gate.admin}{path}",
        data=json.dumps(question).encode(),
        headers={"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310  (an http:// of ours)
            said: bytes = answer.read()
    except urllib.error.HTTPError as error:
        said = error.read()
    return said.decode()


@pytest.fixture(scope="module")
def answers(loud: Bench) -> list[str]:
    params = {"resource_type": "Observation", "patient": "Patient/pat-5f2c9e81d", "status": "final"}
    action = {"surface": "ehr.write", "operation": "fhir.r4.create"}
    requests = [
        {
            "agent": "demo-agent",
            "request": {
                "method": "POST",
                "url": "https://fhir.example.org/fhir/R4/Observation",
                "headers": [
                    ["Content-Type", "application/fhir+json"],
                    ["Authorization", "Bearer sk_test_9vJ2mQx71Lw"],
                ],
                "body_base64": base64.b64encode(seen(patient)).decode(),
            },
        }
        for patient in ("pat-5f2c9e81d", "other-1", "nobody-Quillfeather")
    ]
    named = {
        "agent": "demo-agent",
        "action": action | {"params": params},
        "idempotency_key": "idem-Zzyzxandra",
    }
    evaluation = {
        "subject": {"type": "agent", "id": "demo-agent"},
        "action": {"name": "fhir.r4.create", "properties": params},
        "resource": {"type": "ehr.write", "id": "Quillfeather"},
    }
    trigguard = {
        "surface": "ehr.write",
        "action": "fhir.r4.create",
        "actorId": "demo-agent",
        "signals": params,
    }
    found = [asked(loud, "/v1/decide", question) for question in (*requests, named, named)]
    found.append(asked(loud, "/access/v1/evaluation", evaluation))
    found.append(asked(loud, "/execute", trigguard | {"intent_id": "idem-Zzyzxandra"}))
    found.append(asked(loud, "/execute", trigguard | {"surface": "Quillfeather", "MRN-88412907": 1}))
    found.append(asked(loud, "/v1/decide", {"agent": "MRN-88412907", "request": "Quillfeather"}))
    script = """
        import requests
        for who in ("pat-5f2c9e81d", "other-1", "Quillfeather"):
            body = {"resourceType": "Observation", "status": "final", "code": {"text": "glioblastoma-q7"},
                    "subject": {"reference": "Patient/" + who}}
            print(requests.post("https://fhir.example.org/fhir/R4/Observation", json=body,
                  headers={"Content-Type": "application/fhir+json"}).headers["Holdgate-Decision"])
    """
    return [*found, *loud.agent(script).splitlines()]


def test_nothing_that_was_asked_or_looked_up_is_kept(answers: list[str], loud: Bench, tmp_path: Path) -> None:
    said = [row for row in _statements(loud) if row["type"] == "decision"]
    assert {row.get("via") for row in said} >= {"decide", "evaluation", "execute", None}, answers
    assert {row["reason"] for row in said} >= {"permit_rule", "deny_rule", "input_unavailable"}, answers
    # Somebody explains a request that was captured: that is shown to them, and not kept.
    request = tmp_path / "captured.http"
    request.write_bytes(captured("pat-5f2c9e81d"))
    explained = _holdgate(loud, "explain", str(request))
    assert "fhir.r4.create" in explained.stdout, explained.stderr
    kept = _kept(loud)
    assert found_in(kept, NEEDLES) == []
    assert {
        place for place, _, form in found_in(kept, ("Observation",)) if form == "plain"
    }  # shown by its map


async def test_after_retention_the_rest_says_as_little(answers: list[str], loud: Bench) -> None:
    loud.gate.stop()
    config = load_config(loud.gate.config)
    with offline_ledger(config) as ledger:
        order = Erasure(action=RETENTION, before_us=time.time_ns() // 1000)
        done = await Forgetter(partial(open_reader, config), ledger).forget(order, by="retention")
    assert done.count >= 3 and done.out_of_files
    places = {f"file {path}": data for path, data in loud.state_files().items()}
    places["audit"] = _holdgate(loud, "log", "audit").stdout.encode()
    assert b"clean" in places["audit"]
    places["export"] = _holdgate(loud, "receipts", "export").stdout.encode()
    assert b'"retention"' in places["export"]
    assert found_in(places, NEEDLES) == []
