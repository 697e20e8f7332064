"""The example of policies/README.md as somebody would copy it: an EHR panel in a file, and an instance."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdgate.demo.instance import Instance
from holdgate.demo.standins import StandIns
from holdgate.files import packaged

PANEL = """\
agent,patient,member,as_of_s
demo-agent,Patient/p1,true,{now}
demo-agent,Patient/p2,false,{now}
demo-agent,Patient/old,true,{old}
"""
BLOCK = re.compile(r"^```yaml\n# ([\w./]+)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)

pytestmark = pytest.mark.slow


def blocks() -> dict[str, str]:
    """The files of the chapter, by name."""
    page = (packaged("policies") / "README.md").read_text(encoding="utf-8")
    return dict(BLOCK.findall(page.partition("\n## Facts\n")[2].partition("\n## ")[0]))


def table(*, old: int = 1) -> str:
    return PANEL.format(now=int(time.time()), old=old)


@pytest.fixture(scope="module")
def gate(vendors: StandIns, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    folder = tmp_path_factory.mktemp("gate")
    made = Instance(folder, connect_to=vendors.connect_to(), extra=blocks()["holdgate.yaml"])
    for name, text in blocks().items():
        if name.startswith("policies/"):
            (folder / name).write_text(text)
    for name in ("fhir_writes.yaml", "fhir_writes_test.yaml"):
        (folder / "policies" / name).unlink()
    (folder / "panel.csv").write_text(table())
    with made:
        yield made


def holdgate(gate: Instance, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(gate.command(*words), capture_output=True, text=True, timeout=60, check=False)


def write(gate: Instance, patient: str | None, note: str) -> str:
    """The decision about one Observation."""
    resource = {"resourceType": "Observation", "status": "final", "code": {"text": note}}
    if patient is not None:
        resource["subject"] = {"reference": f"Patient/{patient}"}
    words = ["curl", "-sS", "-i", "-m", "20", "-H", "Content-Type: application/fhir+json"]
    done = subprocess.run(
        [*words, "-d", json.dumps(resource), "https://fhir.example.org/fhir/R4/Observation"],
        env=gate.client_env(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    found = re.search(r"^Holdgate-Decision: (\w+);.*?reason=(\w+)", done.stdout, re.MULTILINE)
    assert found is not None, done.stdout + done.stderr
    return f"{found[1]} {found[2]}"


UNAVAILABLE = "SILENCE input_unavailable"


def test_the_files_of_the_page_are_these_and_its_tests_pass(gate: Instance) -> None:
    assert set(blocks()) == {
        *("policies/facts.yaml", "policies/ehr_panel.yaml", "policies/ehr_panel_test.yaml"),
        "holdgate.yaml",
    }
    done = holdgate(gate, "test")
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_agent_writes_for_its_panel_and_for_nobody_else(gate: Instance, vendors: StandIns) -> None:
    assert write(gate, "p1", "a") == "PERMIT permit_rule"
    before = vendors.counts("fhir")
    assert write(gate, "p2", "b") == "DENY deny_rule"
    for patient in ("p3", "old", None):
        assert write(gate, patient, "c") == UNAVAILABLE, patient
    assert (vendors.counts("fhir") - before).nothing


def test_a_panel_that_changes_counts_at_once_and_a_broken_one_permits_nothing(
    gate: Instance, vendors: StandIns
) -> None:
    panel = gate.folder / "panel.csv"
    assert write(gate, "p4", "d") == UNAVAILABLE
    panel.write_text(table().replace("/p2,false", "/p4,true"))
    assert write(gate, "p4", "d") == "PERMIT permit_rule"
    before = vendors.counts("fhir")
    panel.write_text(table() + "demo-agent\n")
    assert write(gate, "p1", "e") == UNAVAILABLE
    panel.unlink()
    assert write(gate, "p1", "f") == UNAVAILABLE
    assert (vendors.counts("fhir") - before).nothing
    panel.write_text(table())
    assert write(gate, "p1", "e") == "PERMIT permit_rule"


def test_what_was_decided_replays_without_the_provider(gate: Instance) -> None:
    assert write(gate, "p1", "g") == "PERMIT permit_rule"
    panel = gate.folder / "panel.csv"
    panel.write_text(table().replace("/p1,true", "/p1,false"))
    done = holdgate(gate, "replay")
    panel.write_text(table())
    assert done.returncode == 0, done.stdout + done.stderr


def test_explain_takes_facts_from_a_file(gate: Instance, tmp_path: Path) -> None:
    body = '{"resourceType":"Observation","status":"final","subject":{"reference":"Patient/p1"}}'
    request = tmp_path / "write.http"
    request.write_text(
        "POST /fhir/R4/Observation HTTP/1.1\nHost: fhir.example.org\nContent-Type: application/fhir+json\n"
        f"Content-Length: {len(body)}\n\n{body}"
    )
    stated = tmp_path / "facts.yaml"
    stated.write_text("panel: {member: true, as_of_s: 1}\n")
    alone = holdgate(gate, "explain", str(request))
    assert "decision   SILENCE input_unavailable" in alone.stdout, alone.stdout + alone.stderr
    done = holdgate(gate, "explain", "--facts", str(stated), str(request))
    assert "fact       panel: as_of_s 1, member True, source 'stated'" in done.stdout, done.stdout
    stated.write_text("panel: {member: false, as_of_s: 1}\n")
    assert (
        "decision   DENY deny_rule" in holdgate(gate, "explain", "--facts", str(stated), str(request)).stdout
    )


def test_a_policy_whose_provider_is_not_configured_does_not_start(gate: Instance) -> None:
    config = gate.folder / "holdgate.yaml"
    text = config.read_text()
    config.write_text(text.replace("  ehr-panel:\n", "  other-panel:\n"))
    done = holdgate(gate, "run")
    config.write_text(text)
    assert done.returncode == 2
    assert "ehr_panel.yaml:8: facts.panel: holdgate.yaml has no provider 'ehr-panel'" in done.stderr
