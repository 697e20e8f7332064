"""A corpus of made-up patients and cards goes through an instance; none of it may be found in what is kept.

Looked through: every file of the state directory (keys and CA left out: they are random), the log, the
metrics, and the receipts in every form they are handed out in, decoded, because a JWS would hide them from
a plain search. What a map declares material is kept on purpose: with the FHIR map that is the server's own
id of a resource and of its patient (`Patient/1`), so the corpus has none that means anything elsewhere.
"""

from __future__ import annotations

import json
import urllib.request

import pytest

from behind import Bench

# Values that occur nowhere else: names, numbers of patients, cards (test numbers) and accounts.
PHI = ("Quillfeather", "Zzyzxandra", "MRN-88412907", "078-05-1120", "1931-02-29x", "glioblastoma-q7")
PAN = ("4242424242424242", "5555555555554444", "378282246310005")
AGENT = """
    import json, requests
    fhir = {"Content-Type": "application/fhir+json"}
    patient = {"resourceType": "Patient", "birthDate": "1931-02-29x",
               "identifier": [{"system": "urn:mrn", "value": "MRN-88412907"}, {"value": "078-05-1120"}],
               "name": [{"family": "Quillfeather", "given": ["Zzyzxandra"]}]}
    seen = {"resourceType": "Observation", "status": "final", "code": {"text": "glioblastoma-q7"},
            "subject": {"reference": "Patient/1", "display": "Zzyzxandra Quillfeather"}}
    base = "https://fhir.example.org/fhir/R4"
    card = {"type": "card", "card[number]": "4242424242424242", "card[exp_month]": "12",
            "card[exp_year]": "2031", "card[cvc]": "314"}
    other = card | {"card[number]": "5555555555554444"}
    key = {"Authorization": "Bearer sk_test_demo"}
    calls = [
        ("POST", base + "/Observation", json.dumps(seen), fhir),
        ("POST", base + "/Observation", json.dumps(seen | {"status": "entered-in-error"}), fhir),
        ("POST", base + "/Patient", json.dumps(patient), fhir),
        ("PUT", base + "/Patient/1", json.dumps(patient), fhir),
        ("GET", base + "/Patient/1", None, {}),
        ("GET", base + "/Patient?family=Quillfeather&identifier=078-05-1120", None, {}),
        ("POST", base + "/Observation", json.dumps(seen)[:-4], fhir),
        ("POST", base + "/Observation", json.dumps(seen), {"Content-Type": "text/Quillfeather"}),
        ("POST", base + "/Patient/1/$glioblastoma-q7", "{}", fhir),
        ("GET", base + "/..%2fPatient/Quillfeather", None, {}),
        ("GET", base + "/Patient/1", None, {"X-Patient": "Quillfeather"}),
        ("POST", "https://unmapped.example.org/Quillfeather?ssn=078-05-1120", json.dumps(patient), fhir),
        ("POST", "https://api.stripe.com/v1/payment_methods", card, key),
        ("POST", "https://api.stripe.com/v1/payment_methods", other, key),
        ("POST", "https://api.stripe.com/v1/tokens", {"card[number]": "378282246310005"}, key),
        ("POST", "https://api.stripe.com/v1/refunds", {"note": "4242424242424242"}, key),
    ]
    for method, url, body, headers in calls:
        answer = requests.request(method, url, data=body, headers=headers)
        print(answer.status_code, answer.headers.get("Holdgate-Decision", "none").partition(";")[0])
"""


@pytest.fixture(scope="module")
def answers(bench: Bench) -> list[str]:
    return bench.agent(AGENT).splitlines()


def test_the_corpus_meets_every_kind_of_answer(answers: list[str]) -> None:
    assert len(answers) == 16
    assert {line.split()[1] for line in answers} == {"PERMIT", "DENY", "SILENCE"}


def test_no_patient_and_no_card_is_kept(answers: list[str], bench: Bench) -> None:
    kept: dict[str, bytes] = {}
    for path in [*bench.state_files(), *bench.folder.rglob("*.log")]:
        kept[str(path)] = path.read_bytes()
    for form in ("jsonl", "ocsf", "cef", "otlp"):
        kept[f"export {form}"] = bench.holdgate("receipts", "export", "--format", form).stdout.encode()
    rows = [json.loads(line) for line in kept["export jsonl"].splitlines()]
    assert len(rows) >= len(answers), "every request has a receipt"
    kept["the recorded inputs"] = bench.holdgate("replay", "--json").stdout.encode()
    with urllib.request.urlopen(f"http://{bench.gate.admin}/metrics", timeout=10) as answer:
        kept["metrics"] = answer.read()
    assert b"holdgate_decisions_total" in kept["metrics"]
    found = [(place, text) for place, data in kept.items() for text in (*PHI, *PAN) if text.encode() in data]
    assert found == []


def test_the_search_finds_what_is_there(answers: list[str], bench: Bench) -> None:
    # The same search for something that is kept: the surface's name, in files and in every form.
    export = bench.holdgate("receipts", "export").stdout
    assert "ehr.write" in export or "ehr.read" in export
    assert any(b"rcpt_" in path.read_bytes() for path in bench.state_files())
