"""Unmodified clients through HTTPS_PROXY: PERMIT is executed, DENY and SILENCE raise the SDK's own exception.

For each API the refused calls leave the vendor's recorder at zero: no connection, no byte.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from behind import Bench

STRIPE = """
    import stripe
    stripe.api_key = "sk_test_demo"
    stripe.max_network_retries = {retries}
    try:
        made = {call}
        print("OK", made.id, made.last_response.headers["Holdgate-Decision"])
    except stripe.StripeError as error:
        print(type(error).__name__, error.http_status, error.user_message, error.code)
"""


@pytest.fixture(scope="module")
def stripe_home(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """stripe-python ignores every CA variable: `trust --install` puts our CA into (a copy of) its bundle."""
    stripe = pytest.importorskip("stripe")
    home = tmp_path_factory.mktemp("site")
    shutil.copytree(Path(stripe.__file__).parent, home / "stripe")
    done = bench.holdgate("trust", "--install", str(home))
    assert done.returncode == 0, done.stderr
    return {"PYTHONPATH": str(home)}


def stripe(bench: Bench, home: dict[str, str], call: str, retries: int = 2) -> str:
    return bench.agent(STRIPE.format(call=call, retries=retries), env=home)


def test_stripe_permit_is_executed(bench: Bench, stripe_home: dict[str, str]) -> None:
    intent = bench.vendors.stripe.charged(500)
    said = stripe(bench, stripe_home, f'stripe.Refund.create(payment_intent="{intent}", amount=100)')
    assert said.startswith("OK re_")
    assert 'PERMIT;id="rcpt_' in said
    assert [refund["amount"] for refund in bench.vendors.stripe.of_kind("refund")] == [100]


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        pytest.param('stripe.Refund.create(payment_intent="pi_1", amount=900000)', "deny_rule", id="deny"),
        pytest.param(
            'stripe.Refund.create(payment_intent="pi_1", amount=50000)', "no_rule_matched", id="no rule"
        ),
        pytest.param(
            'stripe.Refund.create(payment_intent="pi_1", amount=100, refund_application_fee=True)',
            "",
            id="a parameter that moves other money",
        ),
        pytest.param(
            'stripe.Account.create(type="custom")',
            "unassigned_operation",
            id="an operation without a surface",
        ),
    ],
)
def test_stripe_refusals_raise_its_own_exception_and_reach_nobody(
    bench: Bench, stripe_home: dict[str, str], call: str, reason: str
) -> None:
    before = bench.vendors.counts("stripe")
    said = stripe(bench, stripe_home, call)
    assert "Error 403 " in said or "Error 400 " in said
    assert f"({reason}" in said and "rcpt_" in said
    assert (bench.vendors.counts("stripe") - before).nothing


def test_stripe_retries_with_one_key_execute_once(bench: Bench, stripe_home: dict[str, str]) -> None:
    intent = bench.vendors.stripe.charged(500)
    call = f'stripe.Refund.create(payment_intent="{intent}", amount=77, idempotency_key="once")'
    first, second = stripe(bench, stripe_home, call), stripe(bench, stripe_home, call)
    assert first.split()[:2] == second.split()[:2]
    assert [r["amount"] for r in bench.vendors.stripe.of_kind("refund") if r["payment_intent"] == intent] == [
        77
    ]
    reused = stripe(bench, stripe_home, call.replace("77", "78"))
    assert "DENY (idempotency_key_reused)" in reused


BOTO = """
    import boto3, botocore.exceptions
    keys = {{"aws_access_key_id": "AKIDEXAMPLE", "aws_secret_access_key": "x"}}
    s3 = boto3.client("s3", region_name="eu-central-1", **keys)
    try:
        answer = {call}
        print("OK", answer["ResponseMetadata"]["HTTPStatusCode"])
    except botocore.exceptions.ClientError as error:
        print("ClientError", error)
"""


def test_boto3_permit_is_executed_with_expect_and_aws_chunked(bench: Bench) -> None:
    pytest.importorskip("boto3")
    put = 's3.put_object(Bucket="acme-reports", Key="a/b c+d.txt", Body=b"hello")'
    assert bench.agent(BOTO.format(call=put)).startswith("OK 200")
    read = 's3.get_object(Bucket="acme-reports", Key="a/b c+d.txt")'
    assert bench.agent(BOTO.format(call=read)).startswith("OK 200")
    large = 's3.put_object(Bucket="acme-reports", Key="large.bin", Body=b"x" * 3_000_000)'
    assert bench.agent(BOTO.format(call=large)).startswith("OK 200")


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        pytest.param(
            's3.put_object(Bucket="acme-reports", Key="k", Body=b"x", ACL="public-read")',
            "deny_rule",
            id="deny",
        ),
        pytest.param(
            's3.put_object(Bucket="attacker", Key="k", Body=b"x")', "no_rule_matched", id="other bucket"
        ),
        pytest.param(
            's3.put_bucket_website(Bucket="acme-reports", WebsiteConfiguration={})', "", id="unmapped"
        ),
    ],
)
def test_boto3_refusals_raise_its_own_exception_and_reach_nobody(
    bench: Bench, call: str, reason: str
) -> None:
    pytest.importorskip("boto3")
    before = bench.vendors.counts("s3")
    said = bench.agent(BOTO.format(call=call))
    assert said.startswith("ClientError An error occurred (AccessDenied)")
    assert reason in said and "rcpt_" in said
    assert (bench.vendors.counts("s3") - before).nothing


SLACK = """
    import slack_sdk, slack_sdk.errors
    client = slack_sdk.WebClient(token="xoxb-demo")
    try:
        print("OK", {call}["ts"])
    except slack_sdk.errors.SlackApiError as error:
        print("SlackApiError", error.response.data)
"""


def test_slack_permit_deny_and_silence(bench: Bench) -> None:
    pytest.importorskip("slack_sdk")
    assert bench.agent(SLACK.format(call='client.chat_postMessage(channel="C1", text="hi")')).startswith(
        "OK "
    )
    before = bench.vendors.counts("slack")
    denied = bench.agent(SLACK.format(call='client.chat_postMessage(channel="C1", text="<!channel> hi")'))
    assert "SlackApiError" in denied and "holdgate_deny_rule" in denied and "rcpt_" in denied
    silent = bench.agent(SLACK.format(call='client.admin_users_list(team_id="T1")'))
    assert "SlackApiError" in silent and "holdgate_unknown_operation" in silent
    assert (bench.vendors.counts("slack") - before).nothing


FHIR = """
    import fhirclient.server, fhirclient.models.observation as o, fhirclient.client
    from fhirclient.models import observation, fhirreference, codeableconcept
    client = fhirclient.client.FHIRClient(settings={{"app_id": "a", "api_base": "https://fhir.example.org/fhir/R4"}})
    made = observation.Observation(strict=True)
    made.status = {status!r}
    made.code = codeableconcept.CodeableConcept({{"text": "hr"}})
    made.subject = fhirreference.FHIRReference({{"reference": "Patient/1"}})
    try:
        print("OK", made.create(client.server)["id"])
    except Exception as error:
        print(type(error).__name__, error, getattr(getattr(error, "response", None), "text", ""))
"""


def test_fhir_permit_and_deny(bench: Bench) -> None:
    pytest.importorskip("fhirclient")
    assert bench.agent(FHIR.format(status="final")).startswith("OK ")
    before = bench.vendors.counts("fhir")
    said = bench.agent(FHIR.format(status="entered-in-error"))
    assert "deny_rule" in said and "OperationOutcome" in said
    assert (bench.vendors.counts("fhir") - before).nothing


def test_fhir_transactions_are_all_or_nothing(bench: Bench) -> None:
    before = bench.vendors.counts("fhir")
    said = bench.agent(
        """
        import requests
        entry = lambda method, url, **rest: {"request": {"method": method, "url": url}, **rest}
        observation = {"resourceType": "Observation", "status": "final", "code": {"text": "hr"},
                       "subject": {"reference": "Patient/1"}}
        bundle = {"resourceType": "Bundle", "type": "transaction", "entry": [
            entry("POST", "Observation", resource=observation), entry("DELETE", "Observation/7")]}
        answer = requests.post("https://fhir.example.org/fhir/R4/", json=bundle,
                               headers={"Content-Type": "application/fhir+json"})
        print(answer.status_code, answer.headers["Holdgate-Decision"])
        """
    )
    assert said.startswith("403 DENY;")
    assert (bench.vendors.counts("fhir") - before).nothing


def test_model_calls_stream_as_they_arrive(bench: Bench) -> None:
    pytest.importorskip("openai")
    said = bench.agent(
        """
        import openai
        client = openai.OpenAI(api_key="sk-demo", max_retries=0)
        stream = client.chat.completions.create(
            model="gpt-4.1", messages=[{"role": "user", "content": "hi"}], stream=True)
        print("".join(c.choices[0].delta.content or "" for c in stream if c.choices))
        """
    )
    assert said.strip()


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_unknown_destination_is_silence_without_any_contact(bench: Bench) -> None:
    done = bench.run("curl", "-sS", "-i", "https://secret.evil.test/")
    assert "HTTP/1.1 403 Holdgate SILENCE rcpt_" in done.stdout
    assert "reason=unknown_destination" in done.stdout


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_other_ports_tunnels_and_upgrades_are_refused(bench: Bench) -> None:
    before = bench.counts()
    port = bench.run("curl", "-sS", "-i", "https://api.stripe.com:8443/v1/refunds", "-d", "amount=1")
    assert "reason=unknown_destination" in port.stdout
    plain = bench.run("curl", "-sS", "-i", "http://api.stripe.com/v1/refunds", "-d", "amount=1")
    assert "reason=unknown_destination" in plain.stdout
    upgrade = bench.run(
        "curl",
        "-sS",
        "-i",
        "https://api.stripe.com/v1/events",
        "-H",
        "Connection: Upgrade",
        "-H",
        "Upgrade: websocket",
    )
    assert "reason=unsupported_protocol" in upgrade.stdout
    body = "a=" + "x" * 100_000
    large = bench.run("curl", "-sS", "-i", "https://api.stripe.com/v1/refunds", *["-d", body] * 11)
    assert "reason=too_large" in large.stdout
    assert bench.counts() == before


def test_everything_that_happened_is_in_the_log_and_verifies(bench: Bench, tmp_path: Path) -> None:
    deadline = time.monotonic() + 60
    while (audit := bench.holdgate("log", "audit")).returncode != 0 and time.monotonic() < deadline:
        pass  # the checkpoint follows a commit within a second
    assert audit.returncode == 0, audit.stdout + audit.stderr
    again = bench.holdgate("replay")
    assert again.returncode == 0 and " 0 different" in again.stdout, again.stdout + again.stderr
    listed = bench.holdgate("receipts", "export", "--raw").stdout.split()
    assert len(listed) > 10
    file = tmp_path / "receipt"
    file.write_text(listed[0])
    assert bench.holdgate("verify", str(file)).returncode == 0
    head, payload, signature = listed[0].split(".")
    file.write_text(".".join((head, payload[:-4] + "AAAA", signature)))
    assert bench.holdgate("verify", str(file)).returncode == 1


def test_no_secret_is_in_the_state_the_log_or_the_metrics(bench: Bench) -> None:
    logs = {file: file.read_bytes() for file in bench.folder.rglob("*.log")}
    assert logs
    for file, data in (logs | bench.state_files()).items():
        for secret in (b"sk_test_demo", b"xoxb-demo", b"sk-demo"):
            assert secret not in data, (file, secret)


def test_boto3_metadata_headers_are_a_declared_family(bench: Bench) -> None:
    pytest.importorskip("boto3")
    put = 's3.put_object(Bucket="acme-reports", Key="m.txt", Body=b"x", Metadata={"owner": "me", "run": "7"})'
    assert bench.agent(BOTO.format(call=put)).startswith("OK 200")
