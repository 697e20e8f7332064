"""A stand-in FHIR R4 server: create, read, update, delete, search by equality, transaction Bundles."""

from __future__ import annotations

import itertools
import json
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

__all__ = ["FhirApi"]

type Json = dict[str, Any]

_TYPE = "application/fhir+json"


class FhirApi:
    """`resources` maps "Type/id" to the resource. `base` is the path under which the server lives."""

    def __init__(self, base: str = "/fhir/R4") -> None:
        self.resources: dict[str, Json] = {}
        self._base = base.rstrip("/")
        self._numbers = itertools.count(1)
        self.cuts = False  # the answer to the next POST is lost on its way

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._serve)
        return app

    async def _serve(self, request: web.Request) -> web.Response:
        body = await request.read()
        path = request.path.removeprefix(self._base).strip("/")
        resource = json.loads(body) if body else None
        answer: Json | None
        if request.method == "POST" and path == "" and resource and resource.get("type") == "transaction":
            status, answer = 200, self._transaction(resource)
        else:
            status, answer = self._run(request.method, path, dict(request.query), resource)
        if self.cuts and request.method == "POST" and request.transport is not None:
            request.transport.abort()
        headers = {"ETag": 'W/"1"'}
        if status == 201 and answer is not None:
            headers["Location"] = f"{self._base}/{answer['resourceType']}/{answer['id']}/_history/1"
        text = "" if answer is None else json.dumps(answer)
        return web.Response(text=text, status=status, content_type=_TYPE, headers=headers)

    def _run(
        self, method: str, path: str, query: dict[str, str], resource: Json | None
    ) -> tuple[int, Json | None]:
        match method, path.split("/"):
            case "GET", ["metadata"]:
                return 200, {
                    "resourceType": "CapabilityStatement",
                    "fhirVersion": "4.0.1",
                    "status": "active",
                }
            case "GET", [kind]:
                return 200, self._search(kind, query)
            case (("GET" | "HEAD"), [kind, identifier]):
                found = self.resources.get(f"{kind}/{identifier}")
                return (200, found) if found else (404, _problem("not-found"))
            case "POST", [kind] if resource and resource.get("resourceType") == kind:
                return 201, self._store(resource, f"{kind.lower()}-{next(self._numbers)}")
            case "PUT", [kind, identifier] if resource and resource.get("resourceType") == kind:
                return 200, self._store(resource, identifier)
            case "DELETE", [kind, identifier]:
                self.resources.pop(f"{kind}/{identifier}", None)
                return 204, None
            case _:
                return 400, _problem("not-supported")

    def _store(self, resource: Json, identifier: str) -> Json:
        stored = resource | {
            "id": identifier,
            "meta": {"versionId": "1", "lastUpdated": datetime.now(UTC).isoformat(timespec="milliseconds")},
        }
        self.resources[f"{stored['resourceType']}/{identifier}"] = stored
        return stored

    def _search(self, kind: str, query: dict[str, str]) -> Json:
        wanted = {k: v for k, v in query.items() if not k.startswith("_")}
        found = [
            r
            for r in self.resources.values()
            if r["resourceType"] == kind and all(_matches(r, k, v) for k, v in wanted.items())
        ]
        entry = [{"resource": r, "search": {"mode": "match"}} for r in found]
        return {"resourceType": "Bundle", "type": "searchset", "total": len(found), "entry": entry}

    def _transaction(self, bundle: Json) -> Json:
        entries = []
        for item in bundle.get("entry", ()):
            asked = item["request"]
            status, answer = self._run(asked["method"], asked["url"], {}, item.get("resource"))
            response = {"status": str(status)}
            if answer is not None and "id" in answer:
                response["location"] = f"{answer['resourceType']}/{answer['id']}/_history/1"
            entries.append({"response": response})
        return {"resourceType": "Bundle", "type": "transaction-response", "entry": entries}


def _matches(resource: Json, name: str, value: str) -> bool:
    """Equality on a field, on a reference under it (`patient=Patient/1`, `subject=...`), or an identifier."""
    if name == "identifier":
        found = resource.get(name, ())
        return value in [f"{each.get('system', '')}|{each.get('value', '')}" for each in found]
    field = resource.get("subject" if name == "patient" else name)
    if isinstance(field, dict):
        return field.get("reference") in (value, f"Patient/{value}")
    return str(field) == value


def _problem(code: str) -> Json:
    return {"resourceType": "OperationOutcome", "issue": [{"severity": "error", "code": code}]}
