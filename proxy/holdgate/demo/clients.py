"""Real client libraries in a process of their own: one JSON object in a line in, one out.

    python -m holdgate.demo.clients stripe < orders.jsonl

They are not changed and know nothing of Holdgate; the environment names the proxy and the CA. A library that
is not installed is replaced by the standard library, and `library` in the first line says so.
stripe-python trusts only the bundle inside its package, whatever the environment says. `holdgate trust
--install VENV` adds our CA there; a demonstration should not change an installed package, so it installs into
a copy of that bundle and names the copy in `stripe.ca_bundle_path`.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

__all__ = ["BUCKET", "REGION", "STRIPE_BUNDLE", "main"]

REGION: Final = "eu-central-1"
BUCKET: Final = "acme-reports"
STRIPE_BUNDLE: Final = "DEMO_STRIPE_BUNDLE"
_FHIR: Final = "https://fhir.example.org/fhir/R4"
_TIMEOUT_S: Final = 30

type Json = dict[str, Any]


class _Client(Protocol):
    library: str

    def do(self, order: Json) -> Json: ...


def _library(name: str) -> Any:
    """A client library, or ImportError. None of them is a dependency of ours, so none is imported on top."""
    return importlib.import_module(name)


def _said(headers: Mapping[str, str] | None, *, value: str = "", raised: str = "") -> Json:
    """What an agent's author can see of one call: the library's answer or exception, and our headers."""
    low = {name.lower(): text for name, text in (headers or {}).items()}
    return {
        "value": value,
        "raised": raised,
        "decision": low.get("holdgate-decision", ""),
        "receipt": low.get("holdgate-receipt", ""),
    }


def _raised(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


class _Stripe:
    def __init__(self) -> None:
        stripe = _library("stripe")
        stripe.api_key = "sk_test_demo"
        stripe.ca_bundle_path = os.environ[STRIPE_BUNDLE]
        self._stripe = stripe
        self.library = f"stripe {stripe.VERSION}"

    def do(self, order: Json) -> Json:
        key = {"idempotency_key": order["key"]}
        try:
            made = self._stripe.Refund.create(payment_intent=order["intent"], amount=order["amount"], **key)
        except self._stripe.StripeError as error:
            return _said(error.headers, raised=_raised(error))
        return _said(made.last_response.headers, value=f"{made.id} {made.status}")


class _S3:
    def __init__(self) -> None:
        boto3 = _library("boto3")
        keys = {"aws_access_key_id": "AKIDEXAMPLE", "aws_secret_access_key": "demo"}
        self._s3 = boto3.client("s3", region_name=REGION, **keys)
        self._error = _library("botocore.exceptions").ClientError
        self.library = f"boto3 {boto3.__version__}"

    def do(self, order: Json) -> Json:
        try:
            if order["do"] == "put":
                body = order["body"].encode()
                answer = self._s3.put_object(Bucket=BUCKET, Key=order["key"], Body=body)
            else:
                answer = self._s3.delete_object(Bucket=BUCKET, Key=order["key"])
        except self._error as error:
            return _said(error.response["ResponseMetadata"]["HTTPHeaders"], raised=_raised(error))
        meta = answer["ResponseMetadata"]
        return _said(meta["HTTPHeaders"], value=f"HTTP {meta['HTTPStatusCode']}")


class _Slack:
    def __init__(self) -> None:
        slack_sdk = _library("slack_sdk")
        self._client = slack_sdk.WebClient(token="xoxb-demo")  # noqa: S106 - made up
        self._error = _library("slack_sdk.errors").SlackApiError
        self.library = f"slack_sdk {_library('slack_sdk.version').__version__}"

    def do(self, order: Json) -> Json:
        try:
            answer = self._client.chat_postMessage(channel=order["channel"], text=order["text"])
        except self._error as error:
            return _said(error.response.headers, raised=f"SlackApiError: {error.response['error']}")
        return _said(answer.headers, value=f"ok, ts {answer['ts']}")


class _Fhir:
    """There is no one FHIR client; most agents use requests."""

    def __init__(self) -> None:
        requests = _library("requests")
        self._session = requests.Session()
        self._session.headers.update({"Authorization": "Bearer demo", "Accept": "application/fhir+json"})
        self.library = f"requests {requests.__version__}"

    def do(self, order: Json) -> Json:
        kind = {"Content-Type": "application/fhir+json"}
        resource = order.get("resource")
        if resource is None:
            answer = self._session.get(order["url"], timeout=_TIMEOUT_S)
        else:
            url = f"{_FHIR}/{resource['resourceType']}"
            answer = self._session.post(url, data=json.dumps(resource), headers=kind, timeout=_TIMEOUT_S)
        try:
            answer.raise_for_status()
        except OSError as error:  # requests' HTTPError is one
            return _said(answer.headers, raised=_raised(error))
        return _said(answer.headers, value=f"HTTP {answer.status_code} {answer.json().get('id', '')}")


class _Plain:
    """The standard library in place of a client that is not installed: the same requests, written out."""

    def __init__(self, vendor: str) -> None:
        self._vendor = vendor
        self.library = f"urllib (the client library for {vendor} is not installed)"

    def do(self, order: Json) -> Json:
        request = self._request(order)
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:  # noqa: S310 - fixed https URLs
                body = answer.read()
                headers = dict(answer.headers)
        except urllib.error.HTTPError as error:
            return _said(dict(error.headers), raised=f"{_raised(error)} {error.read(300)!r}")
        if self._vendor == "slack" and not json.loads(body)["ok"]:
            return _said(headers, raised=f"not ok: {json.loads(body)['error']}")
        return _said(headers, value=body[:60].decode("utf-8", "replace"))

    def _request(self, order: Json) -> urllib.request.Request:
        match self._vendor:
            case "stripe":
                form = urllib.parse.urlencode({"payment_intent": order["intent"], "amount": order["amount"]})
                headers = {"Authorization": "Bearer sk_test_demo", "Idempotency-Key": order["key"]}
                return _post("https://api.stripe.com/v1/refunds", form.encode(), headers)
            case "s3":
                scope = f"AKIDEXAMPLE/20261121/{REGION}/s3/aws4_request"
                signed = f"AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders=host, Signature={'0' * 64}"
                url = f"https://{BUCKET}.s3.{REGION}.amazonaws.com/{order['key']}"
                body = order["body"].encode() if order["do"] == "put" else None
                headers = {"Authorization": signed, "Content-Type": "application/octet-stream"}
                method = "PUT" if body is not None else "DELETE"
                return urllib.request.Request(url, body, headers, method=method)
            case "slack":
                text = json.dumps({"channel": order["channel"], "text": order["text"]}).encode()
                headers = {"Authorization": "Bearer xoxb-demo", "Content-Type": "application/json"}
                return _post("https://slack.com/api/chat.postMessage", text, headers)
            case _:
                headers = {"Authorization": "Bearer demo", "Content-Type": "application/fhir+json"}
                if (resource := order.get("resource")) is None:
                    return urllib.request.Request(order["url"], headers=headers)  # noqa: S310 - https
                url = f"{_FHIR}/{resource['resourceType']}"
                return _post(url, json.dumps(resource).encode(), headers)


def _post(url: str, body: bytes, headers: Json) -> urllib.request.Request:
    return urllib.request.Request(url, body, headers, method="POST")  # noqa: S310 - fixed https URLs


_LIBRARIES: Final[Mapping[str, Callable[[], _Client]]] = {
    "stripe": _Stripe,
    "s3": _S3,
    "slack": _Slack,
    "fhir": _Fhir,
}


def _client(vendor: str) -> _Client:
    try:
        return _LIBRARIES[vendor]()
    except ImportError:
        return _Plain(vendor)


def _together(client: _Client, order: Json) -> list[Json]:
    """The same call twice, the second while the first is on its way: an agent that lost patience."""
    answers: list[Json] = [{}, {}]

    def call(number: int) -> None:
        answers[number] = _done(client, order)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
        time.sleep(order["apart_s"])
    for thread in threads:
        thread.join()
    return answers


def _done(client: _Client, order: Json) -> Json:
    try:
        return client.do(order)
    except Exception as error:  # noqa: BLE001 - whatever a library raises is the finding
        return _said(None, raised=_raised(error))


def main(vendor: str) -> None:
    client = _client(vendor)
    print(json.dumps({"library": client.library}), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        answers = _together(client, order) if "apart_s" in order else [_done(client, order)]
        print(json.dumps(answers), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
