"""More unmodified clients behind the proxy: other languages, other HTTP stacks, real emulators.

What a client needs in order to trust the CA is what `holdgate trust --env` prints, and nothing else.
"""

from __future__ import annotations

import json
import shlex
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from behind import Bench
from holdgate.demo.instance import Instance
from holdgate.demo.standins import StandIns
from ports import free_port

pytestmark = pytest.mark.slow

REGION = "eu-central-1"
OLD_PYTHON = next(iter(sorted(Path.home().glob(".pyenv/versions/3.11*/bin/python"))), None)


def needs(tool: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(tool) is None, reason=f"{tool} is not installed")


class Slack(BaseHTTPRequestHandler):
    """Slack's three steps of a file upload: where to, the bytes, share it."""

    protocol_version = "HTTP/1.1"
    seen: list[tuple[str, str, bytes]] = []  # noqa: RUF012 - shared by all connections on purpose

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        self.seen.append((self.headers["Host"], self.path, body))
        if self.path == "/api/files.getUploadURLExternal":
            url = "https://files.slack.com/upload/v1/CwABAAAAXQ"
            self._json({"ok": True, "upload_url": url, "file_id": "F0000000001"})
        elif self.path == "/api/files.completeUploadExternal":
            self._json({"ok": True, "files": [{"id": "F0000000001", "title": "report.txt"}]})
        else:
            self._json({"ok": True})

    do_GET = do_POST

    def _json(self, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        return None


@pytest.fixture(scope="module")
def slack_files() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Slack)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    """moto's server, with the bucket and the table that the starter policies speak of."""
    pytest.importorskip("moto")
    boto3 = pytest.importorskip("boto3")
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not _listens(port):
            assert server.poll() is None and time.monotonic() < deadline, "moto's server does not start"
        direct = {
            "endpoint_url": f"http://127.0.0.1:{port}",
            "region_name": REGION,
            "aws_access_key_id": "AKIDEXAMPLE",
            "aws_secret_access_key": "x",
        }
        where = {"LocationConstraint": REGION}
        boto3.client("s3", **direct).create_bucket(Bucket="acme-reports", CreateBucketConfiguration=where)
        boto3.client("dynamodb", **direct).create_table(
            TableName="orders",
            KeySchema=[{"AttributeName": "k", "KeyType": "HASH"}],
            AttributeDefinitions=[{"AttributeName": "k", "AttributeType": "S"}],
            BillingMode="PAY_PER_REQUEST",
        )
        yield f"127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(timeout=60)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.2)
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def gate(
    vendors: StandIns, moto: str, slack_files: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Instance]:
    names = vendors.connect_to() | {
        f"*.s3.{REGION}.amazonaws.com:443": moto,
        f"s3.{REGION}.amazonaws.com:443": moto,
        f"dynamodb.{REGION}.amazonaws.com:443": moto,
        "slack.com:443": slack_files,
        "www.slack.com:443": slack_files,
        "files.slack.com:443": slack_files,
    }
    with Instance(tmp_path_factory.mktemp("gate"), connect_to=names) as running:
        done = subprocess.run(running.command("trust", "--env"), capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        told = dict(line.split("=", 1) for line in shlex.split(done.stdout) if line != "export")
        assert told.items() <= running.client_env().items()
        yield running


NODE = """
const http = require("http"), tls = require("tls"), https = require("https");
const [host, port] = process.env.HTTPS_PROXY.replace("http://", "").split(":");
function call(name, path, done) {
  const target = name + ":443", named = {Host: target};
  const connect = http.request({host, port, method: "CONNECT", path: target, headers: named, agent: false});
  connect.on("connect", (answer, socket) => {
    const inside = tls.connect({socket, servername: name}, () => {
      const headers = {Host: name, Authorization: "Bearer sk_test_demo", Connection: "close"};
      https.get({host: name, path, headers, createConnection: () => inside}, (got) => {
        let body = "";
        got.on("data", (piece) => { body += piece; });
        got.on("end", () => { console.log(got.statusCode, got.headers["holdgate-decision"]); done(); });
      });
    });
    inside.on("error", (error) => { console.log("ERROR", error.code); process.exit(1); });
  });
  connect.end();
}
call("api.stripe.com", "/v1/balance", () => call("unknown.example.net", "/", () => {}));
"""


@needs("node")
def test_node_trusts_the_ca_that_its_variable_names(bench: Bench) -> None:
    done = bench.run("node", "-e", NODE)
    assert done.returncode == 0, done.stdout + done.stderr
    permit, silence = done.stdout.splitlines()
    assert permit.startswith("200 PERMIT;"), done.stdout + done.stderr
    assert silence.startswith("403 SILENCE;") and "reason=unknown_destination" in silence
    untold = bench.run("node", "-e", NODE, env={"NODE_EXTRA_CA_CERTS": ""})
    assert untold.stdout.startswith("ERROR"), "without the variable it does not trust us"


UNDICI = """
const { ProxyAgent, fetch } = require(process.argv[1]);
const dispatcher = new ProxyAgent(process.env.HTTPS_PROXY);
(async () => {
  const headers = { Authorization: "Bearer sk_test_demo" };
  const got = await fetch("https://api.stripe.com/v1/balance", { dispatcher, headers });
  console.log(got.status, got.headers.get("holdgate-decision"));
  const body = new URLSearchParams({ payment_intent: "pi_1", amount: "900000" });
  const post = { dispatcher, headers, body, method: "POST" };
  const denied = await fetch("https://api.stripe.com/v1/refunds", post);
  console.log(denied.status, (await denied.json()).error.code);
  await dispatcher.close();
})();
"""


@needs("npm")
def test_node_fetch_through_undici(bench: Bench) -> None:
    modules = Path(shutil.which("npm") or "").resolve().parents[1] / "node_modules"
    if not (modules / "undici").is_dir():
        pytest.skip("npm brings no undici")
    done = bench.run("node", "-e", UNDICI, str(modules / "undici"))
    permit, denied = done.stdout.splitlines()
    assert permit.startswith("200 PERMIT;"), done.stdout + done.stderr
    assert denied == "403 holdgate_deny_rule"


JAVA = """
import java.net.*;
import java.net.http.*;
public class Agent {
  public static void main(String[] args) throws Exception {
    String url = "https://api.stripe.com/v1/balance";
    HttpURLConnection old = (HttpURLConnection) new URL(url).openConnection();
    old.setRequestProperty("Authorization", "Bearer sk_test_demo");
    System.out.println(old.getResponseCode() + " " + old.getHeaderField("Holdgate-Decision"));
    HttpClient client = HttpClient.newBuilder().proxy(ProxySelector.getDefault()).build();
    for (String each : new String[] {url, "https://unknown.example.net/"}) {
      HttpRequest.Builder asked = HttpRequest.newBuilder(URI.create(each));
      asked.header("Authorization", "Bearer sk_test_demo");
      HttpResponse<String> got = client.send(asked.build(), HttpResponse.BodyHandlers.ofString());
      System.out.println(got.statusCode() + " " + got.headers().firstValue("Holdgate-Decision").get());
    }
  }
}
"""


@needs("java")
def test_java_trusts_the_store_that_its_variable_names(bench: Bench, tmp_path: Path) -> None:
    file = tmp_path / "Agent.java"
    file.write_text(JAVA, encoding="utf-8")
    if shutil.which("javac") is None:
        pytest.skip("java is here without its compiler")
    host, _, port = bench.gate.proxy.rpartition(":")
    done = bench.run("java", f"-Dhttps.proxyHost={host}", f"-Dhttps.proxyPort={port}", str(file))
    lines = done.stdout.splitlines()
    assert len(lines) == 3, done.stdout + done.stderr
    assert lines[0].startswith("200 PERMIT;") and lines[1].startswith("200 PERMIT;")
    assert lines[2].startswith("403 SILENCE;")


@needs("git")
def test_git_is_refused_with_a_message(bench: Bench) -> None:
    before = bench.counts()
    quiet = {"GIT_TERMINAL_PROMPT": "0"}
    done = bench.run("git", "ls-remote", "https://code.example.com/a/b.git", env=quiet)
    assert done.returncode != 0 and "403" in done.stderr, done.stderr
    assert bench.counts() == before


def test_pip_is_refused_with_a_message(bench: Bench, tmp_path: Path) -> None:
    wheel = "https://packages.example.com/some_package-1.0-py3-none-any.whl"
    options = ["--no-deps", "--no-cache-dir", "--retries", "0", "-d", str(tmp_path)]
    done = bench.run(sys.executable, "-m", "pip", "download", *options, wheel)
    assert done.returncode != 0 and "403" in done.stdout + done.stderr, done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []


HTTP_STACKS = """
    import asyncio, urllib.request
    import aiohttp, httpx
    url, unknown = "https://api.stripe.com/v1/balance", "https://unknown.example.net/"
    headers = {"Authorization": "Bearer sk_test_demo"}

    def say(name, status, got):
        print(name, status, got["Holdgate-Decision"].split(";")[0])

    with httpx.Client(timeout=60) as client:
        for each in (url, url, unknown):
            got = client.get(each, headers=headers)
            say("httpx", got.status_code, got.headers)

    got = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60)
    say("urllib", got.status, got.headers)

    async def main():
        timeout = aiohttp.ClientTimeout(total=20)
        async with aiohttp.ClientSession(trust_env=True, timeout=timeout) as session:
            for each in (url, unknown):
                async with session.get(each, headers=headers) as got:
                    say("aiohttp", got.status, got.headers)
        async with httpx.AsyncClient(timeout=60) as client:
            answers = await asyncio.gather(*(client.get(url, headers=headers) for _ in range(20)))
            print("together", {each.status_code for each in answers})

    asyncio.run(main())
"""


def test_python_stacks(bench: Bench) -> None:
    pytest.importorskip("httpx")
    assert bench.agent(HTTP_STACKS).splitlines() == [
        "httpx 200 PERMIT",
        "httpx 200 PERMIT",
        "httpx 403 SILENCE",
        "urllib 200 PERMIT",
        "aiohttp 200 PERMIT",
        "aiohttp 403 SILENCE",
        "together {200}",
    ]


@pytest.mark.skipif(OLD_PYTHON is None, reason="no Python 3.11, whose CONNECT is HTTP/1.0")
def test_python_311_whose_connect_is_http10(bench: Bench) -> None:
    script = """
import urllib.error, urllib.request
headers = {"Authorization": "Bearer sk_test_demo"}
asked = urllib.request.Request("https://api.stripe.com/v1/balance", headers=headers)
got = urllib.request.urlopen(asked, timeout=60)
print(got.status, got.headers["Holdgate-Decision"])
try:
    urllib.request.urlopen("https://unknown.example.net/", timeout=60)
except urllib.error.HTTPError as error:
    print(error.code, error.reason)
"""
    done = bench.run(str(OLD_PYTHON), "-c", script)
    assert done.returncode == 0, done.stderr[-2000:]
    permit, silence = done.stdout.splitlines()
    assert permit.startswith("200 PERMIT;") and silence.startswith("403 Holdgate SILENCE rcpt_")


MODELS = """
    import anthropic, openai
    gpt = openai.OpenAI(api_key="sk-demo", max_retries=0, timeout=60)
    ask = {"model": "gpt-4.1", "messages": [{"role": "user", "content": "hi"}]}
    print(gpt.chat.completions.create(**ask).choices[0].message.content)
    pieces = gpt.chat.completions.create(**ask, stream=True)
    print("".join(each.choices[0].delta.content or "" for each in pieces if each.choices))

    claude = anthropic.Anthropic(api_key="sk-demo", max_retries=0, timeout=60)
    ask = {"model": "claude-sonnet-4-5", "max_tokens": 10, "messages": [{"role": "user", "content": "hi"}]}
    print(claude.messages.create(**ask).content[0].text)
    with claude.messages.stream(**ask) as stream:
        print("".join(stream.text_stream))

    try:
        gpt.chat.completions.create(model="other-model", messages=ask["messages"])
    except openai.PermissionDeniedError as error:
        print(error.status_code, error.body)
    tool = {"type": "url", "url": "https://tools.example.net/", "name": "t"}
    try:
        claude.beta.messages.create(**ask, mcp_servers=[tool], betas=["mcp-client-2025-04-04"])
    except anthropic.PermissionDeniedError as error:
        print(error.status_code, error.body)
"""


def test_model_sdks_whole_streamed_and_refused(bench: Bench) -> None:
    pytest.importorskip("openai")
    pytest.importorskip("anthropic")
    *answers, silence, denied = bench.agent(MODELS).splitlines()
    assert answers == ["Refund looks fine."] * 4
    assert silence.startswith("403 ") and "no_rule_matched" in silence and "rcpt_" in silence
    assert denied.startswith("403 ") and "deny_rule" in denied and "rcpt_" in denied


BOTO = """
    import boto3, botocore.exceptions, hashlib, io
    from boto3.s3.transfer import TransferConfig
    keys = {"region_name": "eu-central-1", "aws_access_key_id": "AKIDEXAMPLE", "aws_secret_access_key": "x"}
    s3, db = boto3.client("s3", **keys), boto3.client("dynamodb", **keys)

    def refused(call, **arguments):
        try:
            call(**arguments)
        except botocore.exceptions.ClientError as error:
            print("refused", error.response["Error"]["Code"], error)
"""


def test_boto3_multipart_upload_arrives_whole(bench: Bench) -> None:
    said = bench.agent(
        BOTO
        + """
    data = bytes(range(256)) * (6 * 4096)
    parts = TransferConfig(multipart_threshold=5 << 20, multipart_chunksize=5 << 20)
    s3.upload_fileobj(io.BytesIO(data), "acme-reports", "tmp/large.bin", Config=parts)
    got = s3.get_object(Bucket="acme-reports", Key="tmp/large.bin")
    print(got["ContentLength"], got["Body"].read() == data, got["ETag"].strip('"').rpartition("-")[2])
    refused(s3.create_multipart_upload, Bucket="attacker", Key="k")
    """
    )
    arrived, silence = said.splitlines()
    assert arrived == f"{6 << 20} True 2"
    assert silence.startswith("refused AccessDenied") and "no_rule_matched" in silence


def test_boto3_delete_objects_is_all_or_nothing(bench: Bench) -> None:
    said = bench.agent(
        BOTO
        + """
    for key in ("tmp/1", "tmp/2", "tmp/3", "kept"):
        s3.put_object(Bucket="acme-reports", Key=key, Body=b"x")

    def delete(*names):
        return s3.delete_objects(Bucket="acme-reports", Delete={"Objects": [{"Key": name} for name in names]})

    print(sorted(each["Key"] for each in delete("tmp/1", "tmp/2")["Deleted"]))
    refused(delete := lambda: s3.delete_objects(
        Bucket="acme-reports", Delete={"Objects": [{"Key": "tmp/3"}, {"Key": "kept"}]}))
    print(sorted(each["Key"] for each in s3.list_objects_v2(Bucket="acme-reports")["Contents"]))
    """
    )
    gone, silence, left = said.splitlines()
    assert gone == "['tmp/1', 'tmp/2']"
    assert silence.startswith("refused AccessDenied") and "no_rule_matched" in silence
    assert "'kept'" in left and "'tmp/3'" in left and "'tmp/1'" not in left


def test_boto3_transactions_are_all_or_nothing(bench: Bench) -> None:
    said = bench.agent(
        BOTO
        + """
    def put(table, key):
        return {"Put": {"TableName": table, "Item": {"k": {"S": key}}}}

    db.transact_write_items(TransactItems=[put("orders", "1"), put("orders", "2")])
    refused(db.transact_write_items, TransactItems=[put("orders", "3"), put("payroll", "4")])
    print(sorted(item["k"]["S"] for item in db.scan(TableName="orders")["Items"]))
    """
    )
    silence, rows = said.splitlines()
    assert silence.startswith("refused AccessDeniedException") and "no_rule_matched" in silence
    assert rows == "['1', '2']"


SLACK = """
    import slack_sdk, slack_sdk.errors
    client = slack_sdk.WebClient(token="xoxb-demo", timeout=60)
    try:
        file = {{"filename": "report.txt", "content": "x" * {size}}}
        print("OK", client.files_upload_v2(channel={channel!r}, **file)["ok"])
    except slack_sdk.errors.SlackApiError as error:
        print("SlackApiError", error.response["error"])
"""


def test_slack_uploads_a_file_in_three_steps(bench: Bench) -> None:
    pytest.importorskip("slack_sdk")
    Slack.seen.clear()
    assert bench.agent(SLACK.format(channel="C0000000001", size=5000)).split() == ["OK", "True"]
    assert [(host, path) for host, path, _ in Slack.seen] == [
        ("www.slack.com", "/api/files.getUploadURLExternal"),
        ("files.slack.com", "/upload/v1/CwABAAAAXQ"),
        ("www.slack.com", "/api/files.completeUploadExternal"),
    ] or [host for host, _, _ in Slack.seen] == ["slack.com", "files.slack.com", "slack.com"]
    assert b"x" * 5000 in Slack.seen[1][2]


def test_slack_uploads_only_to_an_address_that_was_given_here(bench: Bench) -> None:
    Slack.seen.clear()
    said = bench.agent(
        """
    import urllib.error, urllib.request
    for sent in ({}, {"Authorization": "Bearer xoxb-demo"}):
        sent |= {"Content-Type": "application/octet-stream"}
        request = urllib.request.Request("https://files.slack.com/upload/v1/theirs", b"secret", sent)
        try:
            urllib.request.urlopen(request, timeout=60)
        except urllib.error.HTTPError as refused:
            print(refused.headers["Holdgate-Decision"])
    """
    )
    for line in said.splitlines():
        assert line.startswith("SILENCE;") and "reason=input_unavailable" in line, said
    assert len(said.splitlines()) == 2
    assert Slack.seen == []


def test_slack_files_that_are_too_large_or_for_a_person_are_refused(bench: Bench) -> None:
    pytest.importorskip("slack_sdk")
    Slack.seen.clear()
    large = bench.agent(SLACK.format(channel="C0000000001", size=2_000_000))
    assert large.split() == ["SlackApiError", "holdgate_no_rule_matched"]
    assert Slack.seen == []
    person = bench.agent(SLACK.format(channel="D0000000001", size=10))
    assert person.split() == ["SlackApiError", "holdgate_no_rule_matched"]
    assert not any(path.endswith("completeUploadExternal") for _, path, _ in Slack.seen)
