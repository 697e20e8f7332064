"""Answers of stand-in vendors to raw requests: the least that each client takes for one, by host and path.

`git http-backend` itself answers for github.com. Used where clients are recorded (tests/capture/clients) and
where they run behind an instance (tests/integration).
"""

from __future__ import annotations

import base64
import functools
import gzip
import hashlib
import io
import json
import os
import re
import subprocess
import tarfile
import zipfile
from pathlib import Path

from rawserver import RawRequest

__all__ = ["answer", "written"]

type Answer = tuple[int, dict[str, str], bytes]

_JSON = "application/json"


def answer(request: RawRequest, repositories: Path) -> bytes | None:
    """A complete response, None where no vendor of these is asked; repositories of git are in that folder."""
    method, target = request.method.decode(), request.target.decode()
    headers = {name.decode().lower(): value.decode("utf-8", "replace") for name, value in request.headers}
    host = headers.get("host", "")
    if host == "github.com":
        return written(*_git(method, target, headers, request.body, repositories), method)
    for suffix, answers in _BY_HOST.items():
        if host.endswith(suffix):
            return written(*answers(method, target, target.partition("?")[0], headers), method)
    return None


def written(status: int, headers: dict[str, str], body: bytes, method: str) -> bytes:
    headers = {**headers, "Content-Length": str(len(body))}
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    if method == "HEAD" or status in (204, 304):
        body = b""
    return f"HTTP/1.1 {status} OK\r\n{lines}\r\n".encode() + body


def _json(value: object, status: int = 200, **headers: str) -> Answer:
    return status, {"Content-Type": _JSON, **headers}, json.dumps(value).encode()


def _google(method: str, target: str, path: str, headers: dict[str, str]) -> Answer:
    stored = {"name": "x", "bucket": "acme-reports", "size": "1", "generation": "1", "id": "1", "done": True}
    stored |= {"resource": {"name": "x", "bucket": "acme-reports"}, "items": [], "bindings": []}
    if "uploadType=resumable" in target and "upload_id" not in target:
        place = f"https://{headers['host']}{target}&upload_id=abc"
        return 200, {"Location": place, "X-GUploader-UploadID": "abc"}, b""
    given = re.fullmatch(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)", headers.get("content-range", ""))
    if given and given[2] and (given[3] == "*" or int(given[2]) + 1 < int(given[3])):
        return 308, {"Range": f"bytes=0-{given[2]}"}, b""
    if path.startswith("/batch/"):
        part = "Content-Type: application/http\r\nContent-ID: <response-{0}>\r\n\r\n"
        part += "HTTP/1.1 204 No Content\r\n\r\n"
        parts = "".join(f"--b\r\n{part.format(n)}\r\n" for n in (0, 1))
        return 200, {"Content-Type": "multipart/mixed; boundary=b"}, f"{parts}--b--\r\n".encode()
    if "alt=media" in target:
        return 206, {"Content-Type": "text/csv", "Content-Range": "bytes 0-3/4"}, b"a,b\n"
    if method == "DELETE":
        return 204, {}, b""
    return _json(stored)


def _azure(method: str, target: str, path: str, headers: dict[str, str]) -> Answer:
    common = {"ETag": '"e"', "Last-Modified": "Tue, 14 Nov 2023 22:13:20 GMT", "x-ms-version": "2025-01-05"}
    common |= {"x-ms-request-server-encrypted": "true", "x-ms-copy-id": "1", "x-ms-copy-status": "success"}
    if "comp=list" in target:
        listed = b"<EnumerationResults><Blobs/><NextMarker/></EnumerationResults>"
        return 200, common | {"Content-Type": "application/xml"}, listed
    if method == "GET":
        whole = {"Content-Range": "bytes 0-3/4", "Content-Type": "text/csv", "x-ms-blob-type": "BlockBlob"}
        return 206, common | whole, b"a,b\n"
    return {"PUT": 201, "DELETE": 202}.get(method, 200), common, b""


def _token(method: str, target: str, path: str, headers: dict[str, str]) -> Answer:
    base = "https://login.microsoftonline.com/00000000-0000-0000-0000-000000000000"
    if "openid-configuration" in path:
        names = {"issuer": base + "/v2.0", "authorization_endpoint": base + "/oauth2/v2.0/authorize"}
        return _json(names | {"token_endpoint": base + "/oauth2/v2.0/token"})
    return _json({"access_token": "not-a-secret", "expires_in": 3600, "token_type": "Bearer"})


def _minio(method: str, target: str, path: str, headers: dict[str, str]) -> Answer:
    xml = {"Content-Type": "application/xml", "ETag": '"e"'}
    if "uploads" in target:
        return (
            200,
            xml,
            b"<InitiateMultipartUploadResult><UploadId>upl1</UploadId></InitiateMultipartUploadResult>",
        )
    if "uploadId" in target and method == "POST":
        done = b"<Bucket>acme</Bucket><Key>big</Key><ETag>e</ETag>"
        return 200, xml, b"<CompleteMultipartUploadResult>" + done + b"</CompleteMultipartUploadResult>"
    if "list-type" in target:
        return (
            200,
            xml,
            b"<ListBucketResult><Name>acme</Name><IsTruncated>false</IsTruncated></ListBucketResult>",
        )
    return (204 if method == "DELETE" else 200), xml, b""


def _elastic(method: str, target: str, path: str, headers: dict[str, str]) -> Answer:
    kind = {
        "X-Elastic-Product": "Elasticsearch",
        "Content-Type": "application/vnd.elasticsearch+json;compatible-with=8",
    }
    accept = headers.get("accept", "")
    if "compatible-with=9" in accept:
        kind["Content-Type"] = kind["Content-Type"].replace("8", "9")
    if "vnd.elasticsearch" not in accept:
        kind["Content-Type"] = _JSON
    created = [{"index": {"_id": str(n), "status": 201}} for n in range(3)]
    return 200, kind, json.dumps({"items": created, "errors": False, "hits": {"hits": []}}).encode()


def _influx(method: str, target: str, path: str, headers: dict[str, str]) -> Answer:
    return (200, {"Content-Type": "text/csv"}, b"") if "query" in path else (204, {}, b"")


def _oci(method: str, target: str, path: str, headers: dict[str, str]) -> Answer:
    if method == "HEAD":
        return 404, {}, b""
    if method == "POST":
        return 202, {"Location": "https://oci.example.org/v2/acme/tool/blobs/uploads/abc?state=x%2By"}, b""
    return 201, {"Location": path, "Docker-Content-Digest": "sha256:" + "0" * 64}, b""


def _pypi(method: str, target: str, path: str, headers: dict[str, str]) -> Answer:
    wheel = _wheel()
    if path.endswith(".whl"):
        return 200, {"Content-Type": "application/octet-stream"}, wheel
    file = "acme_tool-1.0-py3-none-any.whl"
    entry = {
        "filename": file,
        "url": f"https://files.pypi.example.org/packages/ab/cd/{file}",
        "hashes": {"sha256": hashlib.sha256(wheel).hexdigest()},
    }
    listed = {"meta": {"api-version": "1.0"}, "name": "acme-tool", "files": [entry]}
    return 200, {"Content-Type": "application/vnd.pypi.simple.v1+json"}, json.dumps(listed).encode()


@functools.cache  # a file knows the time of its making: listed and served, it must be the same one
def _wheel() -> bytes:
    data = io.BytesIO()
    info = "acme_tool-1.0.dist-info"
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("acme_tool.py", "")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: acme-tool\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return data.getvalue()


def _npm(method: str, target: str, path: str, headers: dict[str, str]) -> Answer:
    packed = _tarball()
    if path.endswith(".tgz"):
        return 200, {"Content-Type": "application/octet-stream"}, packed
    if method != "GET":
        return _json({})
    digest = base64.b64encode(hashlib.sha512(packed).digest()).decode()
    place = {
        "tarball": "https://npm.example.org/@acme/tool/-/tool-1.0.0.tgz",
        "integrity": f"sha512-{digest}",
    }
    version = {"name": "@acme/tool", "version": "1.0.0", "dist": place}
    return _json({"name": "@acme/tool", "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": version}})


@functools.cache
def _tarball() -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        content = json.dumps({"name": "@acme/tool", "version": "1.0.0"}).encode()
        member = tarfile.TarInfo("package/package.json")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return gzip.compress(data.getvalue(), mtime=0)


def _git(method: str, target: str, headers: dict[str, str], body: bytes, repositories: Path) -> Answer:
    path, _, query = target.partition("?")
    if headers.get("content-encoding") == "gzip":
        body = gzip.decompress(body)
    environment = {
        "GIT_PROJECT_ROOT": str(repositories),
        "GIT_HTTP_EXPORT_ALL": "1",
        "REQUEST_METHOD": method,
        "PATH_INFO": path,
        "QUERY_STRING": query,
        "CONTENT_TYPE": headers.get("content-type", ""),
        "CONTENT_LENGTH": str(len(body)),
        "GIT_PROTOCOL": headers.get("git-protocol", ""),
        "REMOTE_USER": "agent",
        "PATH": os.environ["PATH"],
    }
    done = subprocess.run(
        ["git", "http-backend"], input=body, env=environment, capture_output=True, check=False
    )
    head, _, data = done.stdout.partition(b"\r\n\r\n")
    given = dict(line.split(": ", 1) for line in head.decode().split("\r\n") if ": " in line)
    return int(given.pop("Status", "200 OK").split()[0]), given, data


_BY_HOST = {
    "googleapis.com": _google,
    "blob.core.windows.net": _azure,
    "login.microsoftonline.com": _token,
    "minio.example.org": _minio,
    "es.example.org": _elastic,
    "influx.example.org": _influx,
    "oci.example.org": _oci,
    "pypi.example.org": _pypi,
    "npm.example.org": _npm,
}
