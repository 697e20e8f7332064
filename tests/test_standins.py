"""demo/: the stand-in vendors answer the real client libraries, and their recorder misses nothing."""

import socket

import pytest

from holdgate.demo.recorder import Counts
from holdgate.demo.standins import StandIns


@pytest.fixture
def vendors():
    with StandIns() as running:
        yield running


def url(vendors, name):
    return f"http://{vendors.address(name)}"


def test_v1_connections_and_bytes_that_are_not_http_are_counted(vendors):
    assert vendors.counts("stripe").nothing
    before = vendors.counts("slack")
    with socket.create_connection(("127.0.0.1", vendors.ports["slack"]), timeout=60) as raw:
        raw.sendall(b"SSH-2.0-x\r\n")
        raw.shutdown(socket.SHUT_WR)
        while raw.recv(4096):
            pass
    assert vendors.counts("slack") - before == Counts(connections=1, requests=0, received_bytes=11)
    assert vendors.counts("stripe").nothing


def test_stripe_moves_money_once_per_key(vendors):
    stripe = pytest.importorskip("stripe")
    client = stripe.StripeClient("sk_test_x", base_addresses={"api": url(vendors, "stripe")})
    intent = client.v1.payment_intents.create({"amount": 5000, "currency": "usd", "confirm": True})
    params = {"payment_intent": intent.id, "amount": 1200}
    first = client.v1.refunds.create(params, {"idempotency_key": "k1"})
    again = client.v1.refunds.create(params, {"idempotency_key": "k1"})
    assert first.id == again.id
    assert [refund["amount"] for refund in vendors.stripe.of_kind("refund")] == [1200]
    with pytest.raises(stripe.IdempotencyError):
        client.v1.refunds.create(params | {"amount": 1}, {"idempotency_key": "k1"})
    with pytest.raises(stripe.InvalidRequestError, match="greater than unrefunded"):
        client.v1.refunds.create(params | {"amount": 4000})
    assert vendors.counts("stripe").requests == 5


def test_s3_stores_lists_and_deletes(vendors):
    boto3 = pytest.importorskip("boto3")
    keys = {"aws_access_key_id": "AKIAEXAMPLE", "aws_secret_access_key": "x", "region_name": "us-east-1"}
    s3 = boto3.client("s3", endpoint_url=url(vendors, "s3"), **keys)
    s3.put_object(Bucket="reports", Key="a/1.txt", Body=b"one")
    s3.put_object(Bucket="reports", Key="a/2.txt", Body=b"two" * 1000)
    assert s3.get_object(Bucket="reports", Key="a/2.txt")["Body"].read() == b"two" * 1000
    listed = s3.list_objects_v2(Bucket="reports", Prefix="a/")
    assert [item["Key"] for item in listed["Contents"]] == ["a/1.txt", "a/2.txt"]
    s3.delete_objects(Bucket="reports", Delete={"Objects": [{"Key": "a/1.txt"}]})
    s3.delete_object(Bucket="reports", Key="missing")
    assert set(vendors.s3.objects) == {("reports", "a/2.txt")}
    with pytest.raises(s3.exceptions.NoSuchKey):
        s3.get_object(Bucket="reports", Key="a/1.txt")


def test_slack_keeps_messages(vendors):
    sdk = pytest.importorskip("slack_sdk")
    client = sdk.WebClient(token="xoxb-1", base_url=url(vendors, "slack") + "/api/")
    sent = client.chat_postMessage(channel="C0000000001", text="hello")
    client.chat_update(channel="C0000000001", ts=sent["ts"], text="hello again")
    history = client.conversations_history(channel="C0000000001")
    assert [message["text"] for message in history["messages"]] == ["hello again"]
    with pytest.raises(sdk.errors.SlackApiError, match="channel_not_found"):
        client.chat_postMessage(channel="", text="x")


def test_fhir_creates_searches_and_runs_transactions(vendors):
    requests = pytest.importorskip("requests")
    base = url(vendors, "fhir") + "/fhir/R4"
    created = requests.post(f"{base}/Patient", json={"resourceType": "Patient"}, timeout=60)
    identifier = created.json()["id"]
    assert (created.status_code, requests.get(f"{base}/Patient/{identifier}", timeout=60).status_code) == (
        201,
        200,
    )
    observation = {"resourceType": "Observation", "subject": {"reference": f"Patient/{identifier}"}}
    entry = {"request": {"method": "POST", "url": "Observation"}, "resource": observation}
    bundle = {"resourceType": "Bundle", "type": "transaction", "entry": [entry, entry]}
    answer = requests.post(base, json=bundle, timeout=60).json()
    assert [item["response"]["status"] for item in answer["entry"]] == ["201", "201"]
    found = requests.get(f"{base}/Observation", params={"patient": identifier}, timeout=60).json()
    assert found["total"] == 2
    assert requests.get(f"{base}/Patient/none", timeout=60).json()["resourceType"] == "OperationOutcome"


@pytest.mark.slow
def test_models_answer_whole_and_as_events(vendors):
    openai, anthropic = pytest.importorskip("openai"), pytest.importorskip("anthropic")
    asked = [{"role": "user", "content": "may I?"}]
    client = openai.OpenAI(api_key="x", base_url=url(vendors, "model") + "/v1")
    whole = client.chat.completions.create(model="m", messages=asked)
    parts = list(client.chat.completions.create(model="m", messages=asked, stream=True))
    assert whole.choices[0].message.content == "".join(p.choices[0].delta.content for p in parts)
    other = anthropic.Anthropic(api_key="x", base_url=url(vendors, "model"))
    with other.messages.stream(model="m", max_tokens=9, messages=asked) as stream:
        assert stream.get_final_text() == whole.choices[0].message.content
