"""The calls of Python clients that record.py records: `python python_calls.py CLIENT CALL`; no CALL: a list.

Tables of calls, so the functions are longer than functions otherwise are here. Large bodies repeat a short
text, so that their recording packs well.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import sys
import tempfile
import urllib.parse
import urllib.request
from collections.abc import Callable
from typing import Any

API = "https://api.example.org"
BIG = b"0123456789abcdef" * (3 * 65_536)  # 3 MiB
ROW = {"name": "Zoë", "amount": 4200, "tags": ["a", "b"], "note": 'quote " and \\'}

type Calls = dict[str, Callable[[], object]]


def requests_calls() -> Calls:
    import requests

    session = requests.Session()
    upload = {"file": ("report ü.csv", b"a,b\n1,2\n", "text/csv")}
    return {
        "get_params": lambda: session.get(API + "/v1/items", params={"q": "a b&c|d", "tag": ["x", "y"]}),
        "get_odd_url": lambda: session.get(API + "/v1/a(b)/it's,ok:1@2!*~/x%2Fy?f[]=1&f[]=2&e=&k"),
        "post_json": lambda: session.post(API + "/v1/items", json=ROW),
        "post_form": lambda: session.post(API + "/v1/items", data={"a": "1 2", "b": ["x", "é"]}),
        "post_multipart": lambda: session.post(API + "/v1/items", data={"kind": "csv"}, files=upload),
        "post_generator": lambda: session.post(API + "/v1/items", data=iter([b"one", b"two"])),
        "post_basic": lambda: session.post(API + "/v1/items", json=ROW, auth=("user", "not-a-secret")),
        "post_empty": lambda: session.post(API + "/v1/items/7/run"),
        "put_3mb": lambda: session.put(API + "/v1/blobs/big", data=BIG),
        "patch": lambda: session.patch(API + "/v1/items/7", json={"name": None}),
        "delete": lambda: session.delete(API + "/v1/items/7"),
        "delete_body": lambda: session.delete(API + "/v1/items", json={"ids": [1, 2]}),
        "head": lambda: session.head(API + "/v1/items/7"),
        "options": lambda: session.options(API + "/v1/items"),
        "get_conditional": lambda: session.get(
            API + "/v1/items/7", headers={"If-None-Match": '"e"', "Range": "bytes=0-9"}
        ),
    }


def httpx_calls() -> Calls:
    import httpx

    client = httpx.Client()
    h2 = httpx.Client(http2=True) if _has("h2") else client

    async def streamed() -> None:
        async def pieces() -> Any:
            yield b"one"
            yield b"two"

        async with httpx.AsyncClient() as inner:
            await inner.post(API + "/v1/items", content=pieces())

    return {
        "get": lambda: client.get(API + "/v1/items", params={"q": "a b", "e": ""}),
        "get_http2_offered": lambda: h2.get(API + "/v1/items"),
        "post_json": lambda: client.post(API + "/v1/items", json=ROW),
        "post_form": lambda: client.post(API + "/v1/items", data={"a": "1 2"}),
        "post_multipart": lambda: client.post(
            API + "/v1/items", data={"kind": "csv"}, files={"file": ('re"port.csv', b"a,b\n", "text/csv")}
        ),
        "post_stream": lambda: asyncio.run(streamed()),
        "put_3mb": lambda: client.put(API + "/v1/blobs/big", content=BIG),
    }


def _has(module: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(module) is not None


def aiohttp_calls() -> Calls:
    import aiohttp

    def call(method: str, path: str, **how: Any) -> Callable[[], object]:
        async def run() -> None:
            ready = {name: value() if callable(value) else value for name, value in how.items()}
            async with (
                aiohttp.ClientSession() as session,
                session.request(method, API + path, **ready) as got,
            ):
                await got.read()

        return lambda: asyncio.run(run())

    def form() -> Any:
        data = aiohttp.FormData()
        data.add_field("kind", "csv")
        data.add_field("file", b"a,b\n", filename="report ü.csv", content_type="text/csv")
        return data

    async def pieces() -> Any:
        yield b"one"
        yield b"two"

    return {
        "get": call("GET", "/v1/items", params={"q": "a b|c", "e": ""}),
        "post_json": call("POST", "/v1/items", json=ROW),
        "post_json_gzip": call("POST", "/v1/items", json=ROW, compress="gzip"),
        "post_form": call("POST", "/v1/items", data={"a": "1 2"}),
        "post_multipart": call("POST", "/v1/items", data=form),
        "post_stream": call("POST", "/v1/items", data=pieces),
        "post_expect": call("POST", "/v1/items", data=b"x", expect100=True),
        "put_3mb": call("PUT", "/v1/blobs/big", data=lambda: io.BytesIO(BIG)),
    }


def urllib3_calls() -> Calls:
    import urllib3

    pool = urllib3.PoolManager()
    fields = {"kind": "csv", "file": ('re"p\nort ü.csv', "a,b\n", "text/csv")}
    return {
        "get": lambda: pool.request("GET", API + "/v1/items", fields={"q": "a b"}),
        "post_json": lambda: pool.request("POST", API + "/v1/items", json=ROW),
        "post_fields": lambda: pool.request("POST", API + "/v1/items", fields={"kind": "csv", "n": "1"}),
        "post_multipart": lambda: pool.request("POST", API + "/v1/items", fields=fields),
        "post_chunked": lambda: pool.request(
            "POST", API + "/v1/items", body=iter([b"one", b"two"]), chunked=True
        ),
    }


def urllib_calls() -> Calls:
    def send(path: str, data: bytes | None = None, **more: Any) -> Callable[[], object]:
        headers = more.pop("headers", {})
        request = urllib.request.Request(API + path, data=data, headers=headers, **more)  # noqa: S310
        return lambda: urllib.request.urlopen(request).read()  # noqa: S310

    kind = {"Content-Type": "application/json"}
    return {
        "get": send("/v1/items?q=a%20b"),
        "post_form": send("/v1/items", urllib.parse.urlencode({"a": "1 2"}).encode()),
        "post_json": send("/v1/items", json.dumps(ROW).encode(), headers=kind),
        "delete": send("/v1/items/7", method="DELETE"),
        "put": send("/v1/items/7", b"text", method="PUT", headers={"Content-Type": "text/plain"}),
    }


def boto3_calls() -> Calls:
    import boto3
    from botocore.config import Config

    def client(service: str, **config: Any) -> Any:
        return boto3.Session(
            aws_access_key_id="AKIDEXAMPLE", aws_secret_access_key="capture", region_name="eu-central-1"
        ).client(service, config=Config(retries={"total_max_attempts": 1}, **config))

    s3, role = (
        client("s3"),
        boto3.Session(
            aws_access_key_id="ASIDEXAMPLE",
            aws_secret_access_key="capture",
            aws_session_token="token-of-a-role",
            region_name="eu-central-1",
        ).client("s3"),
    )
    plain = client("s3", request_checksum_calculation="when_required")
    signed = client("s3", s3={"payload_signing_enabled": True})
    put = {"Bucket": "acme-reports", "Key": "q1/report 2026+é.csv"}

    def presigned() -> object:
        url = s3.generate_presigned_url("put_object", Params={**put})
        return urllib.request.urlopen(urllib.request.Request(url, data=b"hello", method="PUT"))  # noqa: S310

    from boto3.s3.transfer import TransferConfig

    split = TransferConfig(multipart_threshold=5 << 20, max_concurrency=1, multipart_chunksize=5 << 20)
    row: Any = {"k": {"S": "1"}, "n": {"N": "5"}}
    return {
        "s3_put_3mb": lambda: s3.put_object(**put, Body=BIG),
        "s3_put_3mb_file": lambda: s3.put_object(**put, Body=io.BytesIO(BIG)),
        "s3_put_3mb_signed": lambda: signed.put_object(**put, Body=io.BytesIO(BIG)),
        "s3_put_no_checksum": lambda: plain.put_object(**put, Body=b"hello"),
        "s3_put_sha256": lambda: s3.put_object(**put, Body=b"hello", ChecksumAlgorithm="SHA256"),
        "s3_put_given_checksum": lambda: s3.put_object(**put, Body=b"hello", ChecksumCRC32="NhCmhg=="),
        "s3_put_gzip": lambda: s3.put_object(**put, Body=_gzip(b"a,b\n" * 99), ContentEncoding="gzip"),
        "s3_put_metadata": lambda: s3.put_object(
            **put,
            Body=b"hello",
            Metadata={"owner": "Zo=C3=AB, finance"},
            CacheControl="no-cache",
            ContentType="text/csv; charset=utf-8",
            ContentDisposition='attachment; filename="q1.csv"',
        ),
        "s3_put_role": lambda: role.put_object(**put, Body=b"hello"),
        "s3_presigned_put": presigned,
        "s3_upload_multipart": lambda: s3.upload_fileobj(
            io.BytesIO(BIG * 2), "acme-reports", "big", Config=split
        ),
        "s3_get": lambda: s3.get_object(**put, Range="bytes=0-9", IfNoneMatch='"e"'),
        "s3_head": lambda: s3.head_object(**put),
        "s3_copy": lambda: s3.copy_object(**put, CopySource={"Bucket": "acme-reports", "Key": "a b+c/é"}),
        "s3_list": lambda: s3.list_objects_v2(Bucket="acme-reports", Prefix="q1/", Delimiter="/"),
        "s3_delete_objects": lambda: s3.delete_objects(
            Bucket="acme-reports", Delete={"Objects": [{"Key": "a"}, {"Key": "b&c"}]}
        ),
        "dynamodb_put": lambda: client("dynamodb").put_item(TableName="orders", Item=row),
        "dynamodb_query": lambda: client("dynamodb").query(
            TableName="orders", KeyConditionExpression="k = :k", ExpressionAttributeValues={":k": {"S": "1"}}
        ),
        "sqs_send": lambda: client("sqs").send_message(
            QueueUrl="https://sqs.eu-central-1.amazonaws.com/111122223333/jobs", MessageBody="hi"
        ),
        "sns_publish": lambda: client("sns").publish(
            TopicArn="arn:aws:sns:eu-central-1:111122223333:t", Message="hi there"
        ),
        "lambda_invoke": lambda: client("lambda").invoke(FunctionName="report", Payload=b'{"a":1}'),
        "sts_identity": lambda: client("sts").get_caller_identity(),
        "secret_get": lambda: client("secretsmanager").get_secret_value(SecretId="prod/db"),
        "cloudwatch_metric": lambda: client("cloudwatch").put_metric_data(
            Namespace="app", MetricData=[{"MetricName": f"m{i}", "Value": 1.0} for i in range(400)]
        ),
        "ses_send": lambda: client("sesv2").send_email(
            FromEmailAddress="a@example.org",
            Destination={"ToAddresses": ["b@example.org"]},
            Content={"Simple": {"Subject": {"Data": "hi"}, "Body": {"Text": {"Data": "text"}}}},
        ),
        "bedrock_converse": lambda: client("bedrock-runtime").converse(
            modelId="anthropic.claude-3-haiku-20240307-v1:0",
            messages=[{"role": "user", "content": [{"text": "hi"}]}],
        ),
    }


def _gzip(data: bytes) -> bytes:
    import gzip

    return gzip.compress(data, mtime=0)


def aiobotocore_calls() -> Calls:
    from aiobotocore.session import get_session

    async def put(body: Any) -> None:
        keys = {"aws_access_key_id": "AKIDEXAMPLE", "aws_secret_access_key": "capture"}
        async with get_session().create_client("s3", region_name="eu-central-1", **keys) as s3:
            await s3.put_object(Bucket="acme-reports", Key="a.txt", Body=body)

    return {
        "s3_put": lambda: asyncio.run(put(b"hello")),
        "s3_put_3mb": lambda: asyncio.run(put(io.BytesIO(BIG))),
    }


def gcs_calls() -> Calls:
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import storage

    client = storage.Client(project="acme", credentials=AnonymousCredentials())
    bucket = client.bucket("acme-reports")

    def blob(name: str = "q1/report 2026+é.csv", **more: Any) -> Any:
        return bucket.blob(name, **more)

    def with_metadata() -> object:
        one = blob()
        one.metadata = {"owner": "Zoë"}
        one.cache_control = "no-cache"
        return one.upload_from_string("a,b\n", content_type="text/csv", if_generation_match=0)

    return {
        "upload_multipart": lambda: blob().upload_from_string("a,b\n", content_type="text/csv"),
        "upload_multipart_metadata": with_metadata,
        "upload_resumable": lambda: blob(chunk_size=1 << 20).upload_from_file(io.BytesIO(BIG), size=len(BIG)),
        "upload_resumable_unknown_size": lambda: blob(chunk_size=1 << 20).upload_from_file(io.BytesIO(BIG)),
        "upload_3mb": lambda: blob().upload_from_string(BIG),
        "download": lambda: blob().download_as_bytes(start=0, end=9),
        "exists": lambda: blob().exists(),
        "list": lambda: list(client.list_blobs("acme-reports", prefix="q1/", delimiter="/")),
        "delete": lambda: blob().delete(),
        "patch": lambda: _patched(blob()),
        "compose": lambda: blob("all").compose([blob("a"), blob("b/c")]),
        "rewrite": lambda: blob("copy").rewrite(blob("a b/c")),
        "copy": lambda: bucket.copy_blob(blob("a"), bucket, "b"),
        "acl_public": lambda: blob("a").make_public(),
        "bucket_create": lambda: client.create_bucket("acme-new"),
        "bucket_get": lambda: client.get_bucket("acme-reports"),
        "bucket_iam": lambda: bucket.get_iam_policy(),
        "batch_delete": lambda: _batch_delete(client, bucket),
    }


def _patched(blob: Any) -> object:
    blob.content_type = "text/plain"
    return blob.patch()


def _batch_delete(client: Any, bucket: Any) -> None:
    with client.batch():
        bucket.delete_blob("a")
        bucket.delete_blob("b/c")


def google_api_calls() -> Calls:
    import google.oauth2.credentials
    from googleapiclient.discovery import build
    from googleapiclient.http import MediaInMemoryUpload

    credentials = google.oauth2.credentials.Credentials("ya29.not-a-secret")
    gmail = build("gmail", "v1", credentials=credentials, static_discovery=True)
    drive = build("drive", "v3", credentials=credentials, static_discovery=True)
    text = MediaInMemoryUpload(b"a,b\n", mimetype="text/csv")
    big = MediaInMemoryUpload(BIG, mimetype="text/csv", resumable=True, chunksize=1 << 20)
    return {
        "gmail_send": lambda: gmail.users().messages().send(userId="me", body={"raw": "VG86IGE="}).execute(),
        "gmail_list": lambda: gmail.users().messages().list(userId="me", q="from:a is:unread").execute(),
        "drive_create": lambda: drive.files().create(body={"name": "x"}, fields="id").execute(),
        "drive_upload": lambda: drive.files().create(body={"name": "x.csv"}, media_body=text).execute(),
        "drive_resumable": lambda: drive.files().create(body={"name": "x.csv"}, media_body=big).execute(),
    }


def azure_calls() -> Calls:
    from azure.identity import ClientSecretCredential
    from azure.storage.blob import BlobServiceClient, ContentSettings

    key = "bm90LWEtc2VjcmV0"
    url = "https://acme.blob.core.windows.net"
    service = BlobServiceClient(url, credential=key, retry_total=0)
    small = BlobServiceClient(
        url, credential=key, retry_total=0, max_single_put_size=1 << 20, max_block_size=1 << 20
    )
    blob = service.get_blob_client("reports", "q1/report 2026+é.csv")
    blocks = small.get_blob_client("reports", "big")
    settings = ContentSettings(content_type="text/csv", cache_control="no-cache")

    def token() -> object:
        credential = ClientSecretCredential(
            "00000000-0000-0000-0000-000000000000", "app", "not-a-secret", disable_instance_discovery=True
        )
        return credential.get_token("https://storage.azure.com/.default")

    return {
        "put_blob": lambda: blob.upload_blob(b"a,b\n", overwrite=True, content_settings=settings),
        "put_blob_if_new": lambda: blob.upload_blob(b"a,b\n", metadata={"owner": "me"}),
        "put_blob_3mb": lambda: blob.upload_blob(BIG, overwrite=True),
        "put_blocks": lambda: blocks.upload_blob(
            io.BytesIO(BIG), length=len(BIG), overwrite=True, max_concurrency=1
        ),
        "put_block_md5": lambda: blob.stage_block("YQ==", b"hello", validate_content=True),
        "download": lambda: blob.download_blob(offset=0, length=10).readall(),
        "delete": lambda: blob.delete_blob(),
        "list": lambda: list(service.get_container_client("reports").list_blobs(name_starts_with="q1/")),
        "copy": lambda: blob.start_copy_from_url(url + "/reports/other"),
        "identity_token": token,
    }


def kubernetes_calls() -> Calls:
    from kubernetes import client

    settings = client.Configuration(host="https://kube.example.org")
    settings.api_key = {"authorization": "Bearer not-a-secret"}
    core = client.CoreV1Api(client.ApiClient(settings))
    apps = client.AppsV1Api(client.ApiClient(settings))
    pod: Any = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "p"},
        "spec": {"containers": [{"name": "c", "image": "i"}]},
    }
    return {
        "pod_create": lambda: core.create_namespaced_pod("default", pod, field_manager="agent"),
        "pod_list": lambda: core.list_namespaced_pod("default", label_selector="app=web,tier in (a,b)"),
        "pod_delete": lambda: core.delete_namespaced_pod("p", "default", grace_period_seconds=0),
        "pod_log": lambda: core.read_namespaced_pod_log("p", "default", tail_lines=5),
        "deployment_patch": lambda: apps.patch_namespaced_deployment(
            "web", "default", {"spec": {"replicas": 2}}
        ),
        "deployment_scale": lambda: apps.patch_namespaced_deployment_scale(
            "web", "default", {"spec": {"replicas": 3}}
        ),
        "no_preload": lambda: core.create_namespaced_pod("default", pod, _preload_content=False),
    }


def twilio_calls() -> Calls:
    from twilio.rest import Client

    client = Client("AC00000000000000000000000000000000", "not-a-secret")
    return {
        "message_create": lambda: client.messages.create(to="+431", from_="+432", body="hi & bye +é"),
        "message_list": lambda: client.messages.list(limit=2),
        "call_create": lambda: client.calls.create(
            to="+431", from_="+432", url="https://example.org/twiml.xml"
        ),
    }


def sendgrid_calls() -> Calls:
    from sendgrid import SendGridAPIClient
    from sendgrid.helpers.mail import Mail

    mail = Mail("a@example.org", ["b@example.org", "c@example.org"], "hi", "text")
    return {"mail_send": lambda: SendGridAPIClient("SG.not-a-secret").send(mail)}


def github_calls() -> Calls:
    from github import Auth, Github

    github = Github(auth=Auth.Token("not-a-secret"), retry=None, lazy=True)
    repo = github.get_repo("acme/app", lazy=True)
    pull = repo.get_pull(7)
    return {
        "issue_create": lambda: repo.create_issue("Bug ü", body="text", labels=["bug"]),
        "issues_list": lambda: list(repo.get_issues(state="open")),
        "pull_merge": lambda: pull.merge(sha="0" * 40),
        "file_create": lambda: repo.create_file("docs/a b.md", "add", "text", branch="main"),
        "release_asset": lambda: _asset(github),
    }


def _asset(github: Any) -> object:
    from github.GitRelease import GitRelease

    with tempfile.NamedTemporaryFile(suffix=".bin") as file:
        file.write(b"x" * 1000)
        file.flush()
        where = "https://uploads.github.com/repos/acme/app/releases/1/assets{?name,label}"
        release = GitRelease(github.requester, {}, {"upload_url": where, "id": 1}, completed=True)
        return release.upload_asset(file.name, name="a.bin", content_type="application/octet-stream")


def slack_calls() -> Calls:
    import slack_sdk
    import slack_sdk.webhook

    client = slack_sdk.WebClient(token="xoxb-not-a-secret")
    blocks: Any = [{"type": "section", "text": {"type": "mrkdwn", "text": "*hi* & <b>"}}]
    hook = slack_sdk.webhook.WebhookClient("https://hooks.slack.com/services/T0/B0/not-a-secret")
    return {
        "post": lambda: client.chat_postMessage(channel="C1", text="hi", blocks=blocks),
        "upload": lambda: client.files_upload_v2(channel="C1", content="a,b\n", filename="ü.csv"),
        "webhook": lambda: hook.send(text="hi"),
        "list": lambda: client.conversations_list(limit=5),
    }


def openai_calls() -> Calls:
    import openai

    client = openai.OpenAI(api_key="sk-not-a-secret", max_retries=0)
    chat: Any = {"model": "gpt-5-mini", "messages": [{"role": "user", "content": "hi"}]}
    return {
        "chat": lambda: client.chat.completions.create(**chat),
        "chat_stream": lambda: client.chat.completions.create(**chat, stream=True),
        "responses": lambda: client.responses.create(model="gpt-5", input="hi"),
        "embeddings": lambda: client.embeddings.create(model="text-embedding-3-small", input=["a"]),
        "file_upload": lambda: client.files.create(file=("ü.jsonl", b"{}\n"), purpose="batch"),
        "transcription": lambda: client.audio.transcriptions.create(
            model="whisper-1", file=("a.mp3", b"ID3"), timestamp_granularities=["word", "segment"]
        ),
        "image_edit": lambda: client.images.edit(
            model="gpt-image-1", image=[("a.png", b"x"), ("b.png", b"y")], prompt="merge"
        ),
    }


def anthropic_calls() -> Calls:
    import anthropic

    client = anthropic.Anthropic(api_key="sk-ant-not-a-secret", max_retries=0)
    chat: Any = {
        "model": "claude-sonnet-4-5",
        "max_tokens": 64,
        "messages": [{"role": "user", "content": "hi"}],
    }
    return {
        "messages": lambda: client.messages.create(**chat),
        "messages_stream": lambda: client.messages.create(**chat, stream=True),
        "files_upload": lambda: client.beta.files.upload(file=("a.txt", b"x", "text/plain")),
    }


def stripe_calls() -> Calls:
    import stripe

    client = stripe.StripeClient("sk_test_not_a_secret")
    refund: Any = {"charge": "ch_1", "amount": 100, "metadata": {"ticket": "A 7"}}
    upload: Any = {"purpose": "dispute_evidence", "file": io.BytesIO(b"%PDF-1.4")}
    return {
        "refund": lambda: client.v1.refunds.create(refund),
        "customers": lambda: client.v1.customers.list({"limit": 3, "created": {"gte": 1}}),
        "file_upload": lambda: client.v1.files.create(upload),
    }


def fhir_calls() -> Calls:
    from fhirclient import client
    from fhirclient.models import codeableconcept, fhirreference, observation
    from fhirclient.models.patient import Patient

    smart = client.FHIRClient(settings={"app_id": "a", "api_base": "https://fhir.example.org/fhir/R4"})
    made = observation.Observation(strict=True)
    made.status = "final"
    made.code = codeableconcept.CodeableConcept({"text": "hr"})
    made.subject = fhirreference.FHIRReference({"reference": "Patient/1"})
    return {
        "create": lambda: made.create(smart.server),
        "search": lambda: Patient.where(
            {"identifier": "urn:oid:1.2|42", "birthdate": "gt2000"}
        ).perform_resources(smart.server),
        "read": lambda: Patient.read("p1", smart.server),
    }


def hvac_calls() -> Calls:
    import hvac

    vault = hvac.Client("https://vault.example.org", token="s.not-a-secret", namespace="team")
    kv = vault.secrets.kv.v2
    return {
        "read": lambda: kv.read_secret_version("prod/db", raise_on_deleted_version=True),
        "write": lambda: kv.create_or_update_secret("prod/db", {"password": "not-a-secret"}, cas=1),
        "list": lambda: kv.list_secrets("prod"),
        "login": lambda: vault.auth.approle.login("role", "not-a-secret"),
    }


def elasticsearch_calls() -> Calls:
    import elasticsearch
    from elasticsearch import helpers

    client = elasticsearch.Elasticsearch("https://es.example.org:443", api_key="not-a-secret", max_retries=0)
    rows = [{"_index": "logs", "_id": str(i), "a": i} for i in range(3)]
    packed = elasticsearch.Elasticsearch(
        "https://es.example.org:443", api_key="x", http_compress=True, max_retries=0
    )
    return {
        "index": lambda: client.index(index="logs", id="a/b", document={"a": 1}),
        "bulk": lambda: helpers.bulk(client, rows),
        "bulk_gzip": lambda: helpers.bulk(packed, rows),
        "search": lambda: client.search(index="logs-*,other", query={"match_all": {}}, size=1),
        "delete_by_query": lambda: client.delete_by_query(index="logs", query={"term": {"a": 1}}),
    }


def opensearch_calls() -> Calls:
    from opensearchpy import OpenSearch

    client = OpenSearch("https://es.example.org:443", http_auth=("user", "not-a-secret"), max_retries=0)
    return {
        "index": lambda: client.index(index="logs", body={"a": 1}, id="1"),
        "search": lambda: client.search(index="logs", body={"query": {"match_all": {}}}),
    }


def influx_calls() -> Calls:
    from influxdb_client import InfluxDBClient
    from influxdb_client.client.write_api import SYNCHRONOUS

    client = InfluxDBClient("https://influx.example.org", token="not-a-secret", org="acme", enable_gzip=True)
    plain = InfluxDBClient("https://influx.example.org", token="not-a-secret", org="acme")
    line = "cpu,host=a value=1 1700000000"
    return {
        "write": lambda: plain.write_api(write_options=SYNCHRONOUS).write(bucket="b", record=line),
        "write_gzip": lambda: client.write_api(write_options=SYNCHRONOUS).write(bucket="b", record=line),
        "query": lambda: plain.query_api().query('from(bucket:"b") |> range(start: -1h)'),
    }


def minio_calls() -> Calls:
    from minio import Minio

    client = Minio("minio.example.org", access_key="AKIDEXAMPLE", secret_key="capture", region="us-east-1")
    return {
        "put": lambda: client.put_object(
            bucket_name="acme", object_name="a b/é.txt", data=io.BytesIO(b"hello"), length=5
        ),
        "put_multipart": lambda: client.put_object(
            bucket_name="acme", object_name="big", data=io.BytesIO(BIG * 2), length=-1, part_size=5 << 20
        ),
        "get": lambda: client.get_object(bucket_name="acme", object_name="a").read(),
        "list": lambda: list(client.list_objects(bucket_name="acme", prefix="a/")),
        "remove": lambda: client.remove_object(bucket_name="acme", object_name="a"),
    }


def smart_open_calls() -> Calls:
    import boto3
    from smart_open import open as smart

    def write() -> None:
        client = boto3.Session(
            aws_access_key_id="AKIDEXAMPLE", aws_secret_access_key="capture", region_name="eu-central-1"
        ).client("s3")
        with smart("s3://acme-reports/a.csv", "wb", transport_params={"client": client}) as file:
            file.write(b"a,b\n" * 100)

    return {"s3_write": write}


def oras_calls() -> Calls:
    import oras.client

    def push() -> object:
        folder = tempfile.mkdtemp()
        os.chdir(folder)
        with open("a.txt", "w", encoding="utf-8") as file:
            file.write("hello")
        return oras.client.OrasClient(hostname="oci.example.org").push(
            "oci.example.org/acme/tool:v1", files=["a.txt"], disable_path_validation=True
        )

    return {"push": push}


CLIENTS: dict[str, Callable[[], Calls]] = {
    "requests": requests_calls,
    "httpx": httpx_calls,
    "aiohttp": aiohttp_calls,
    "urllib3": urllib3_calls,
    "urllib": urllib_calls,
    "boto3": boto3_calls,
    "aiobotocore": aiobotocore_calls,
    "google-cloud-storage": gcs_calls,
    "google-api-python-client": google_api_calls,
    "azure": azure_calls,
    "kubernetes": kubernetes_calls,
    "twilio": twilio_calls,
    "sendgrid": sendgrid_calls,
    "pygithub": github_calls,
    "slack_sdk": slack_calls,
    "openai": openai_calls,
    "anthropic": anthropic_calls,
    "stripe": stripe_calls,
    "fhirclient": fhir_calls,
    "hvac": hvac_calls,
    "elasticsearch": elasticsearch_calls,
    "opensearch": opensearch_calls,
    "influxdb": influx_calls,
    "minio": minio_calls,
    "smart_open": smart_open_calls,
    "oras": oras_calls,
}


def main(words: list[str]) -> None:
    if not words:
        print("\n".join(CLIENTS))
    elif len(words) == 1:
        print("\n".join(CLIENTS[words[0]]()))
    else:
        CLIENTS[words[0]]()[words[1]]()


if __name__ == "__main__":
    main(sys.argv[1:])
