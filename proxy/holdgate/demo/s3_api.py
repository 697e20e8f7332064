"""A stand-in for S3: buckets and objects, addressed by host name or by path, enough for boto3.

Put, get, head, copy, delete, delete-many, list (v2), create and list buckets. `aws-chunked` bodies are
decoded. Signatures are not checked: a stand-in has no keys.
"""

from __future__ import annotations

import hashlib
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from aiohttp import web

__all__ = ["S3Api"]

_DATE = "Tue, 14 Nov 2023 22:13:20 GMT"
_NS = "http://s3.amazonaws.com/doc/2006-03-01/"


class S3Api:
    """`objects` maps (bucket, key) to the stored bytes."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], bytes] = {}
        self.buckets: set[str] = set()

    def app(self) -> web.Application:
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_route("*", "/{path:.*}", self._serve)
        return app

    async def _serve(self, request: web.Request) -> web.Response:
        body = await request.read()
        if "aws-chunked" in request.headers.get("Content-Encoding", ""):
            body = _dechunk(body)
        bucket, key = _address(request.host.partition(":")[0], request.match_info["path"])
        if bucket:
            self.buckets.add(bucket)
        if key:
            return self._object(request, bucket, key, body)
        if request.method == "POST" and "delete" in request.query:
            return self._delete_many(bucket, body)
        if request.method == "PUT":
            return web.Response(headers={"Location": f"/{bucket}"})
        if bucket:
            return self._list(bucket, request.query.get("prefix", ""))
        names = "".join(f"<Bucket><Name>{b}</Name></Bucket>" for b in sorted(self.buckets))
        return _xml(
            f'<ListAllMyBucketsResult xmlns="{_NS}"><Buckets>{names}</Buckets></ListAllMyBucketsResult>'
        )

    def _object(self, request: web.Request, bucket: str, key: str, body: bytes) -> web.Response:
        if request.method == "PUT":
            source = request.headers.get("x-amz-copy-source")
            if source is not None:
                from_bucket, _, from_key = source.lstrip("/").partition("/")
                body = self.objects.get((from_bucket, from_key), b"")
            self.objects[bucket, key] = body
            if source is not None:
                return _xml(
                    f'<CopyObjectResult xmlns="{_NS}"><ETag>{escape(_etag(body))}</ETag></CopyObjectResult>'
                )
            return web.Response(headers={"ETag": _etag(body)})
        if request.method == "DELETE":
            self.objects.pop((bucket, key), None)
            return web.Response(status=204)
        stored = self.objects.get((bucket, key))
        if stored is None:
            return _xml("<Error><Code>NoSuchKey</Code><Message>No such key.</Message></Error>", status=404)
        headers = {"ETag": _etag(stored), "Last-Modified": _DATE, "Content-Type": "binary/octet-stream"}
        return web.Response(body=stored, headers=headers)

    def _delete_many(self, bucket: str, body: bytes) -> web.Response:
        keys = [e.text or "" for e in ElementTree.fromstring(body).iter() if e.tag.endswith("Key")]  # noqa: S314
        for key in keys:
            self.objects.pop((bucket, key), None)
        rows = "".join(f"<Deleted><Key>{escape(key)}</Key></Deleted>" for key in keys)
        return _xml(f'<DeleteResult xmlns="{_NS}">{rows}</DeleteResult>')

    def _list(self, bucket: str, prefix: str) -> web.Response:
        found = sorted((k, v) for (b, k), v in self.objects.items() if b == bucket and k.startswith(prefix))
        rows = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{len(value)}</Size><ETag>{escape(_etag(value))}</ETag>"
            f"<LastModified>2023-11-14T22:13:20.000Z</LastModified></Contents>"
            for key, value in found
        )
        head = (
            f"<Name>{escape(bucket)}</Name><Prefix>{escape(prefix)}</Prefix><KeyCount>{len(found)}</KeyCount>"
        )
        tail = "<MaxKeys>1000</MaxKeys><IsTruncated>false</IsTruncated>"
        return _xml(f'<ListBucketResult xmlns="{_NS}">{head}{tail}{rows}</ListBucketResult>')


def _address(host: str, path: str) -> tuple[str, str]:
    """Bucket and key: `bucket.s3.region.amazonaws.com/key` or `s3.region.amazonaws.com/bucket/key`."""
    name, found, _ = host.partition(".s3.")
    if found:
        return name, path
    bucket, _, key = path.partition("/")
    return bucket, key


def _dechunk(body: bytes) -> bytes:
    """The payload of an aws-chunked body; trailing checksums are not checked."""
    out: list[bytes] = []
    position = 0
    while True:
        end = body.index(b"\r\n", position)
        size = int(body[position:end].partition(b";")[0], 16)
        if size == 0:
            return b"".join(out)
        out.append(body[end + 2 : end + 2 + size])
        position = end + 2 + size + 2


def _etag(body: bytes) -> str:
    return f'"{hashlib.md5(body, usedforsecurity=False).hexdigest()}"'


def _xml(text: str, status: int = 200) -> web.Response:
    document = '<?xml version="1.0" encoding="UTF-8"?>\n' + text
    return web.Response(text=document, status=status, content_type="application/xml")
