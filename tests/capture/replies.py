"""The least that each client library accepts as an answer, chosen by host and path."""

from __future__ import annotations

import json
import re

__all__ = ["reply"]

_XML = "application/xml"
_JSON = "application/json"
_S3 = {
    b"?uploads": "<InitiateMultipartUploadResult><UploadId>upl1</UploadId></InitiateMultipartUploadResult>",
    b"?delete": "<DeleteResult/>",
    b"?uploadId": '<CompleteMultipartUploadResult><ETag>"e"</ETag></CompleteMultipartUploadResult>',
    b"?list-type": "<ListBucketResult><Name>b</Name><IsTruncated>false</IsTruncated></ListBucketResult>",
}


def reply(request: bytes) -> bytes:
    """A complete response to one recorded request."""
    head = request.partition(b"\r\n\r\n")[0]
    method, target, _ = head.split(b"\r\n")[0].split(b" ")
    found = re.search(rb"(?im)^host: ([^\r]+)", head)
    host = found[1] if found else b""
    kind, body = _answer(host, target, head, request)
    if method == b"HEAD":
        return b'HTTP/1.1 200 OK\r\nContent-Length: 1\r\nETag: "e"\r\n\r\n'
    data = body.encode()
    headers = f'Content-Type: {kind}\r\nETag: "e"\r\nContent-Length: {len(data)}'
    return f"HTTP/1.1 200 OK\r\n{headers}\r\n\r\n".encode() + data


def _answer(host: bytes, target: bytes, head: bytes, request: bytes) -> tuple[str, str]:
    if host == b"api.stripe.com":
        return _JSON, json.dumps(
            {"id": "obj_1", "object": "thing", "data": [], "has_more": False, "url": "/v1/x"}
        )
    if host == b"files.slack.com":
        return "text/plain", "OK - 1"
    if host.endswith(b"slack.com"):
        more = {"upload_url": "https://files.slack.com/upload/v1/CwABAAAAXAoAAVnX", "file_id": "F1"}
        return _JSON, json.dumps({"ok": True, "files": [{"id": "F1", "title": "a"}]} | more)
    if host == b"fhir.example.org":
        found = {"resourceType": "Patient", "id": "p1"}
        searched = b"?" in target
        return "application/fhir+json", json.dumps(
            {"resourceType": "Bundle", "type": "searchset"} if searched else found
        )
    if host in (b"api.openai.com", b"api.anthropic.com"):
        return _model(host, target, head)
    if b".s3." in host or host.startswith(b"s3."):
        for key, body in _S3.items():
            if key in target:
                return _XML, body
        return _XML, "<CopyObjectResult><ETag>e</ETag></CopyObjectResult>" if b"copy-source" in head else ""
    if b"x-amz-target" in head.lower():
        return "application/x-amz-json-1.0", "{}"
    action = re.search(rb"Action=(\w+)", request)
    name = action[1].decode() if action else ""
    return "text/xml", f"<{name}Response><{name}Result/></{name}Response>"


def _model(host: bytes, target: bytes, head: bytes) -> tuple[str, str]:
    if host == b"api.anthropic.com":
        return _JSON, json.dumps(
            {
                "id": "msg_1",
                "type": "message",
                "role": "assistant",
                "model": "claude-sonnet-4-5",
                "content": [{"type": "text", "text": "hi"}],
                "stop_reason": "end_turn",
                "usage": {"input_tokens": 1, "output_tokens": 1},
                "input_tokens": 1,
                "data": [],
                "has_more": False,
            }
        )
    vector = {"object": "embedding", "index": 0, "embedding": [0.0]}
    return _JSON, json.dumps(
        {
            "id": "x",
            "object": "list",
            "model": "m",
            "created": 0,
            "data": [vector],
            "choices": [],
            "output": [],
        }
    )
