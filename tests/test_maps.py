"""surfaces/ and policies/ as shipped: captured requests, their hostile twins, the policies' own tests."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from holdgate.canonical import canonicalise
from holdgate.errors import InputError
from holdgate.files import packaged
from holdgate.message import Listener, Message, Origin, RequestHead
from holdgate.policy import PolicySet, lint, load_policies
from holdgate.policytest import run_tests
from holdgate.strictyaml import load_file
from holdgate.surface.index import SurfaceIndex
from holdgate.surface.load import load_maps
from holdgate.surface.model import Effect, Recognised, Value

SURFACES = packaged("surfaces")
POLICIES = packaged("policies")
HOSTILE = Path(__file__).parent / "data" / "hostile"
GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "golden"
EXAMPLES = sorted(SURFACES.glob("*/examples/*.http"))
FLEET_KEY = b"k" * 32


@pytest.fixture(scope="module")
def index() -> SurfaceIndex:
    return SurfaceIndex.compile(load_maps([SURFACES]))


@pytest.fixture(scope="module")
def policies(index: SurfaceIndex) -> PolicySet:
    return load_policies([POLICIES], index)


def message(raw: bytes) -> Message:
    """The bytes of a request, as a listener inside a CONNECT tunnel would pass them on."""
    head, _, body = raw.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    method, target, _ = lines[0].split(b" ")
    pairs = [line.partition(b":") for line in lines[1:]]
    headers = tuple((name, value.strip(b" \t")) for name, _, value in pairs)
    fields = {name.lower(): value for name, value in headers}
    if fields.get(b"transfer-encoding") == b"chunked":
        body = unchunked(body)
    host = fields[b"host"].decode()
    origin = Origin(
        listener=Listener.EXPLICIT,
        tls=True,
        source="127.0.0.1",
        source_port=50000,
        connect=(host, 443),
        sni=host,
        original_port=None,
        proxy_authorization=(),
    )
    return Message(origin=origin, head=RequestHead(method=method, target=target, headers=headers), body=body)


def unchunked(data: bytes) -> bytes:
    body = b""
    while True:
        size, _, data = data.partition(b"\r\n")
        length = int(size, 16)
        if length == 0:
            return body
        body, data = body + data[:length], data[length + 2 :]


def recognise(index: SurfaceIndex, raw: bytes) -> Recognised:
    return index.recognise(canonicalise(message(raw)), fleet_key=FLEET_KEY)


def plain(value: Value) -> Any:
    return [plain(item) for item in value] if isinstance(value, tuple) else value


def found(index: SurfaceIndex, raw: bytes) -> dict[str, Any]:
    """What was recognised, in the form of `examples/*.json`."""
    try:
        recognised = recognise(index, raw)
    except InputError as error:
        return {"reason": str(error.reason)}
    actions = [
        {
            "operation": action.operation,
            "surface": action.surface,
            "effect": str(action.effect),
            "params": {param.name: plain(param.value) for param in action.params},
        }
        for action in recognised.actions
    ]
    return actions[0] if len(actions) == 1 else {"actions": actions}


def hostile_cases() -> Iterator[Any]:
    for file in sorted(HOSTILE.glob("*.yaml")):
        data = load_file(file).plain()
        for case in data["cases"]:
            yield pytest.param(data, case, id=f"{file.stem}: {case['name']}")


def hostile_request(data: dict[str, Any], case: dict[str, Any]) -> bytes:
    """The common head with the case's own headers; a name without value takes the common one away."""
    own = case.get("headers", [])
    replaced = {line.partition(":")[0].lower() for line in own}
    lines = [line for line in data["head"] if line.partition(":")[0].lower() not in replaced]
    lines += [line for line in own if line.partition(":")[2]]
    body: bytes = case.get("body", "").encode()
    if "body" in case:
        lines.append(f"Content-Length: {len(body)}")
    lines = [f"{case['line']} HTTP/1.1", f"Host: {case.get('host', data['host'])}", *lines]
    head = "\r\n".join(lines)
    return head.encode() + b"\r\n\r\n" + body


def test_there_are_examples_of_every_map() -> None:
    folders = {path.parent.parent.name for path in EXAMPLES}
    assert folders == {path.parent.name for path in SURFACES.glob("*/*.yaml")}
    assert len(EXAMPLES) > 150


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: f"{path.parents[1].name}/{path.stem}")
def test_a_captured_request_is_recognised_as_expected(index: SurfaceIndex, path: Path) -> None:
    expected = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    if len(expected.get("actions", [])) == 1:
        expected = expected["actions"][0]
    assert found(index, path.read_bytes()) == expected


@pytest.mark.parametrize(("data", "case"), list(hostile_cases()))
def test_a_hostile_twin_is_refused(index: SurfaceIndex, data: dict[str, Any], case: dict[str, Any]) -> None:
    assert found(index, hostile_request(data, case)) == {"reason": case["reason"]}


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="the shared golden requests are not here")
@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.http")), ids=lambda path: path.stem)
def test_a_shared_golden_request_is_one_of_the_examples(path: Path) -> None:
    copies = [example for example in EXAMPLES if example.name == path.name]
    assert [copy.read_bytes() for copy in copies] == [path.read_bytes()]


# Head and body, and what they are: other clients than the captured ones write the same thing differently.
VARIANTS = [
    pytest.param(
        "POST /v1/refunds HTTP/1.1\r\nHost: api.stripe.com\r\nAuthorization: Basic c2tfdGVzdDo=\r\n"
        "Content-Type: application/x-www-form-urlencoded\r\n",
        "charge=ch_1&amount=100&expand[]=charge",
        {
            "operation": "stripe.PostRefunds",
            "params": {"amount": 100, "expand": ["charge"], "reference": "ch_1"},
        },
        id="curl -u KEY: with expand[]",
    ),
    pytest.param(
        "GET /d/a.txt?x-id=GetObject HTTP/1.1\r\nHost: acme-internal.s3.eu-central-1.amazonaws.com\r\n"
        "x-amz-user-agent: aws-sdk-js/3\r\n",
        "",
        {"operation": "aws.s3.GetObject", "params": {"bucket": "acme-internal", "key": "d/a.txt"}},
        id="AWS SDK for JavaScript with x-id",
    ),
    pytest.param(
        "GET /api/chat.postMessage?channel=C1&text=hi HTTP/1.1\r\nHost: slack.com\r\n"
        "Authorization: Bearer x\r\n",
        "",
        {"operation": "slack.chat.postMessage", "params": {"channel": "C1", "text": "hi"}},
        id="Slack message by GET",
    ),
    pytest.param(
        "DELETE /storage/v1/b/acme-scratch/o/a%2Fb?alt=json&prettyPrint=false HTTP/1.1\r\n"
        "Host: storage.googleapis.com\r\nAuthorization: Bearer x\r\nX-Goog-User-Project: payer\r\n"
        "X-Goog-Api-Client: gccl-invocation-id/1 gccl-attempt-count/1 gl-go/1.25 gccl/1.50\r\n"
        "X-Goog-Gcs-Idempotency-Token: 1b9d6bcd-bbfd-4b2d-9b5d-ab8dfbbd4bed\r\n",
        "",
        {
            "operation": "gcs.DeleteObject",
            "params": {"billed": "payer", "bucket": "acme-scratch", "object": "a/b"},
        },
        id="Cloud Storage as its client for Go writes it",
    ),
    pytest.param(
        "POST /v1/messages?beta=true HTTP/1.1\r\nHost: api.anthropic.com\r\nX-Api-Key: k\r\n"
        "Content-Type: application/json\r\nAnthropic-Version: 2023-06-01\r\n",
        '{"model":"claude-x","max_tokens":1,"messages":[]}',
        {"operation": "anthropic.createMessage", "params": {"max_tokens": 1, "model": "claude-x"}},
        id="Anthropic with X-Api-Key and beta in the query",
    ),
]


@pytest.mark.parametrize("spelling", ["_include", "_include:iterate", "_include:recurse"])
@pytest.mark.parametrize("way", ["include", "revinclude"])
def test_what_a_search_brings_along_is_a_parameter_however_it_is_spelled(
    index: SurfaceIndex, spelling: str, way: str
) -> None:
    name = spelling.replace("include", way)
    host = "Host: fhir.example.org\r\nAuthorization: Bearer t\r\n"
    form = f"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {len(name) + 2}\r\n"
    for raw in (
        f"GET /fhir/R4/Patient?{name}=x HTTP/1.1\r\n{host}\r\n",
        f"POST /fhir/R4/Patient/_search HTTP/1.1\r\n{host}{form}\r\n{name}=x",
    ):
        assert found(index, raw.encode())["params"] == {way: ["x"], "resource_type": "Patient"}


@pytest.mark.parametrize(("head", "body", "expected"), VARIANTS)
def test_another_client_is_recognised_alike(
    index: SurfaceIndex, head: str, body: str, expected: dict[str, Any]
) -> None:
    length = f"Content-Length: {len(body)}\r\n" if body else ""
    got = found(index, f"{head}{length}\r\n{body}".encode())
    assert {name: got.get(name) for name in expected} == expected


def test_a_retry_with_the_same_key_has_the_same_digest(index: SurfaceIndex) -> None:
    raw = (SURFACES / "stripe" / "examples" / "refund_partial.http").read_bytes()
    again = re.sub(rb'"telemetry_id": "[0-9a-f]+"', b'"telemetry_id": "another"', raw)
    first, second = recognise(index, raw), recognise(index, again)
    assert raw != again
    assert first.digest == second.digest
    assert [key.value for key in first.keys] == [key.value for key in second.keys] == ["order-1042"]


def test_what_an_sdk_changes_on_a_retry_is_not_in_the_digest(index: SurfaceIndex) -> None:
    changes = {
        "aws/examples/secret_put": [
            (rb"X-Amz-Date: \w+", b"X-Amz-Date: 20270101T000000Z"),
            (rb"attempt=1", b"attempt=2"),
        ],
        "aws/examples/ec2_run": [
            (rb"X-Amz-Date: \w+", b"X-Amz-Date: 20270101T000000Z"),
            (rb"attempt=1", b"attempt=2"),
        ],
        "stripe/examples/refund_partial": [(rb"(Stripe-Version)", rb"X-Stripe-Client-Telemetry: {}\r\n\1")],
        "openai/examples/chat": [(rb"retry-count: 0", b"retry-count: 1")],
        "anthropic/examples/messages": [(rb"retry-count: 0", b"retry-count: 1")],
    }
    for name, edits in changes.items():
        raw = again = (SURFACES / f"{name}.http").read_bytes()
        again = re.sub(rb"Signature=[0-9a-f]+", b"Signature=00", again)
        for pattern, replacement in edits:
            again, count = re.subn(pattern, replacement, again)
            assert count == 1, (name, pattern)
        assert recognise(index, again).digest == recognise(index, raw).digest, name


def test_another_amount_under_the_same_key_has_another_digest(index: SurfaceIndex) -> None:
    raw = (SURFACES / "stripe" / "examples" / "refund_partial.http").read_bytes()
    other = raw.replace(b"amount=4200", b"amount=4201")
    assert recognise(index, raw).digest != recognise(index, other).digest


def test_slack_as_json_and_as_form_is_one_action(index: SurfaceIndex) -> None:
    examples = SURFACES / "slack" / "examples"
    as_json = recognise(index, (examples / "slack_sdk_python.post.http").read_bytes())
    as_form = recognise(index, (examples / "post_form.http").read_bytes())
    assert as_json.actions == as_form.actions


def test_card_data_and_secrets_are_in_no_parameter(index: SurfaceIndex) -> None:
    for name, secret in (
        ("stripe/examples/payment_method_create", "4242424242424242"),
        ("aws/examples/secret_create", "s3cr3t"),
        ("aws/examples/secret_put", "s3cr3t"),
    ):
        raw = (SURFACES / f"{name}.http").read_bytes()
        assert secret.encode() in raw
        assert secret not in repr(recognise(index, raw).actions)


def test_message_texts_are_digests_in_receipts(index: SurfaceIndex) -> None:
    recognised = recognise(index, (SURFACES / "slack" / "examples" / "post.http").read_bytes())
    (text,) = [param for param in recognised.actions[0].params if param.name == "text"]
    assert text.value == "hello"
    assert str(text.public).startswith("hmac-sha256:")


def test_everything_of_a_patient_is_sensitive(index: SurfaceIndex) -> None:
    for path in sorted((SURFACES / "fhir-r4" / "examples").glob("*.http")):
        try:
            recognised = recognise(index, path.read_bytes())
        except InputError:
            continue
        assert recognised.sensitive
        assert recognised.digest.startswith("hmac-sha256:")
        assert "p1" not in recognised.target


def test_model_calls_and_reads_have_no_keys(index: SurfaceIndex) -> None:
    for path in EXAMPLES:
        try:
            recognised = recognise(index, path.read_bytes())
        except InputError:
            continue
        effects = {action.effect for action in recognised.actions}
        surfaces = {action.surface for action in recognised.actions}
        if effects == {Effect.READ} or surfaces == {"model.invoke"}:
            assert recognised.keys == (), path


def test_the_path_style_map_of_s3_has_the_operations_and_parameters_of_its_twin() -> None:
    maps = {one.name: one for one in load_maps([SURFACES / "aws"])}
    hosted = {op.id: op for op in maps["aws.s3"].operations}
    in_path = {op.id: op for op in maps["aws.s3path"].operations}
    assert set(in_path) - set(hosted) == {"ListBuckets"}
    assert set(hosted) <= set(in_path)
    for identity, op in hosted.items():
        twin = in_path[identity]
        assert twin.path == ("/{bucket}" if op.path == "/" else "/{bucket}" + op.path)
        assert (twin.surface, twin.effect, twin.methods) == (op.surface, op.effect, op.methods)
        assert (twin.discriminators, twin.settings, twin.explode) == (
            op.discriminators,
            op.settings,
            op.explode,
        )
        sources = [
            (p.name, tuple(s.replace("host.bucket", "path.bucket") for s in p.sources)) for p in op.params
        ]
        assert [(p.name, p.sources) for p in twin.params] == sources


def test_every_operation_and_parameter_is_in_the_folders_readme() -> None:
    for path in sorted(SURFACES.glob("*/*.yaml")):
        readme = (path.parent / "README.md").read_text(encoding="utf-8")
        for one in load_maps([path]):
            for operation in one.operations:
                assert f"`{operation.id}`" in readme, f"{one.name}.{operation.id}"
                for param in operation.params:
                    assert f"`{param.name}`" in readme, f"{one.name}.{operation.id}: {param.name}"


def test_the_starter_policies_pass_their_own_tests_and_every_rule_is_seen_both_ways(
    index: SurfaceIndex, policies: PolicySet
) -> None:
    def fragment(path: Path) -> dict[str, Any]:
        recognised = recognise(index, path.read_bytes())
        actions = [
            {
                "surface": action.surface,
                "operation": action.operation,
                "effect": str(action.effect),
                "host": "host.example",
                "params": {param.name: plain(param.value) for param in action.params},
            }
            for action in recognised.actions
        ]
        return {"actions": actions, "request": {"digest": recognised.digest}}

    report = run_tests([POLICIES], policies, index, fragment)
    assert [(each.name, each.got, each.explanation) for each in report.failed] == []
    assert [each.rule for each in report.uncovered] == []
    assert report.ok


def test_the_starter_policies_have_no_finding_and_speak_of_every_surface(
    index: SurfaceIndex, policies: PolicySet
) -> None:
    assert lint(policies, index) == ()
    assert {policy.surface for policy in policies.policies} == index.surfaces()


def test_every_starter_policy_has_a_test_file() -> None:
    names = {path.name for path in POLICIES.glob("*.yaml")}
    rules = {name for name in names if not name.endswith("_test.yaml") and name != "agents.yaml"}
    assert {name.replace(".yaml", "_test.yaml") for name in rules} <= names
