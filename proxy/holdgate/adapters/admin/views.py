"""The endpoints. Each reads something and writes it out; what may be read by whom is in guard.py.

The ledger is read in a worker thread, by a connection of its own: the event loop holds agents' requests
and must not wait for a disk.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, Protocol

from aiohttp import web

from ... import __version__
from ...errors import BackendError, ConfigError, Outcome
from ...receipt import ReceiptError
from ...tiles import parse_tile
from ...tlog import TlogError
from ...trigguard import trigguard_view
from ..metrics import CONTENT_TYPE, Metrics
from ..proofs import NotCovered, prove
from ..reader import Page, Reader, StoredReceipt
from ..sequencer import LOG
from ..tilestore import TileStore
from .answers import json_answer
from .decisions import DecisionDoors, Doorkeeper
from .guard import Access, Problem, Rules, dressed, guard
from .shapes import decode_jws, export_row, parse_since

__all__ = ["ACCESS", "AdminState", "build_app"]

_LIST_QUERY: Final = frozenset({"agent", "surface", "outcome", "since", "limit", "cursor"})
_MAX_PAGE: Final = 1000

ACCESS: Final = {
    "/healthz": Access.PUBLIC,
    "/readyz": Access.PUBLIC,
    "/metrics": Access.METRICS,
    "/receipts": Access.RECEIPTS,
    "/receipts/{id}": Access.RECEIPTS,
    "/receipts/{id}/proof": Access.RECEIPTS,
    "/log/checkpoint": Access.CHECKPOINT,
    "/log/tile/{path}": Access.RECEIPTS,
    "/.well-known/jwks.json": Access.PUBLIC,
    "/.well-known/trigguard/keys.json": Access.PUBLIC,
    "/.well-known/authzen-configuration": Access.PUBLIC,
    "/v1/decide": Access.DECISIONS,
    "/v1/outcome": Access.DECISIONS,
    "/execute": Access.DECISIONS,
    "/access/v1/evaluation": Access.DECISIONS,
}


class AdminState(Doorkeeper, Protocol):
    """One running instance, as far as an operator may look and a decider ask."""

    @property
    def rules(self) -> Rules: ...
    @property
    def metrics(self) -> Metrics: ...
    @property
    def state_dir(self) -> Path: ...
    def read(self) -> Reader:
        """Raises ConfigError."""
        ...

    def processes(self) -> Sequence[tuple[str, int]]:
        """(role, pid) of every process of the instance."""
        ...

    def not_ready(self) -> str:
        """Why no request can be decided now; "" when requests can."""
        ...

    def jwks(self) -> dict[str, Any]: ...
    def trigguard_keys(self) -> dict[str, Any]: ...


def build_app(state: AdminState) -> web.Application:
    """The application over one running instance."""
    app = web.Application(middlewares=[guard(state.rules, ACCESS)], client_max_size=1024)
    views = _Views(state)
    for path, view in {
        "/healthz": views.healthz,
        "/readyz": views.readyz,
        "/metrics": views.metrics,
        "/receipts": views.receipts,
        "/receipts/{id}": views.receipt,
        "/receipts/{id}/proof": views.proof,
        "/log/checkpoint": views.checkpoint,
        "/log/tile/{path:.+}": views.tile,
        "/.well-known/jwks.json": views.jwks,
        "/.well-known/trigguard/keys.json": views.trigguard_keys,
    }.items():
        app.router.add_get(path, view, expect_handler=_go_on)
    doors = DecisionDoors(state)
    app.router.add_get("/.well-known/authzen-configuration", doors.authzen, expect_handler=_go_on)
    for path, view in {
        "/v1/decide": doors.decide,
        "/v1/outcome": doors.outcome,
        "/execute": doors.execute,
        "/access/v1/evaluation": doors.evaluation,
    }.items():
        app.router.add_post(path, view, expect_handler=_go_on)
    app.on_response_prepare.append(_dress)
    return app


async def _dress(request: web.BaseRequest, response: web.StreamResponse) -> None:
    dressed(response)


async def _go_on(request: web.Request) -> None:
    """`Expect`: nothing else than to go on can be expected here (RFC 9110, 10.1.1)."""
    if request.headers.get("Expect", "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0


class _Views:
    def __init__(self, state: AdminState) -> None:
        self._state = state

    async def healthz(self, request: web.Request) -> web.Response:
        """The process lives: it answers."""
        roles = [{"role": role, "pid": pid} for role, pid in self._state.processes()]
        return json_answer({"status": "ok", "version": __version__, "processes": roles})

    async def readyz(self, request: web.Request) -> web.Response:
        reason = self._state.not_ready()
        if reason:
            return json_answer({"ready": False, "reason": reason}, HTTPStatus.SERVICE_UNAVAILABLE)
        return json_answer({"ready": True})

    async def metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=self._state.metrics.render(), headers={"Content-Type": CONTENT_TYPE})

    async def receipts(self, request: web.Request) -> web.Response:
        query = _list_query(request)
        page: Page = await self._read(lambda reader: reader.list(**query))
        return json_answer({"receipts": [export_row(stored) for stored in page.receipts], "next": page.next})

    async def receipt(self, request: web.Request) -> web.Response:
        """The JWS as it was signed; decoded for `Accept: application/json`; or the TrigGuard view."""
        name = request.match_info["id"]
        stored: StoredReceipt | None = await self._read(lambda reader: reader.get(name))
        if stored is None:
            raise Problem(HTTPStatus.NOT_FOUND, "No receipt has this id.")
        view = request.query.get("view")
        if view == "trigguard":
            try:
                said, signer = decode_jws(stored.jws), self._state.signer
                return json_answer(await asyncio.to_thread(trigguard_view, said, signer))
            except ReceiptError as error:
                raise Problem(HTTPStatus.NOT_FOUND, str(error)) from None
            except BackendError as error:
                raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, "The signer does not answer.") from error
        if view is not None:
            raise Problem(HTTPStatus.BAD_REQUEST, "view: trigguard is the only other view.")
        if "application/json" in request.headers.get("Accept", ""):
            return json_answer(export_row(stored))
        return web.Response(body=stored.jws, headers={"Content-Type": "application/jose"})

    async def checkpoint(self, request: web.Request) -> web.Response:
        note = await self._read(lambda reader: reader.checkpoint())
        return web.Response(body=note, headers={"Content-Type": "text/plain; charset=utf-8"})

    async def proof(self, request: web.Request) -> web.Response:
        """The c2sp.org/tlog-proof of a receipt."""
        name = request.match_info["id"]

        def ask(reader: Reader) -> bytes | None:
            stored = reader.get(name)
            return None if stored is None else prove(self._state.state_dir, stored.index, stored.jws)

        try:
            text = await self._read(ask)
        except NotCovered as error:
            raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, f"{error}.", {"Retry-After": "1"}) from None
        if text is None:
            raise Problem(HTTPStatus.NOT_FOUND, "No receipt has this id.")
        return web.Response(body=text, headers={"Content-Type": "text/plain; charset=utf-8"})

    async def tile(self, request: web.Request) -> web.Response:
        """A hash tile or an entry bundle (c2sp.org/tlog-tiles); the bundles hold receipts, hence the role."""
        try:
            tile = parse_tile("tile/" + request.match_info["path"])
            data = await asyncio.to_thread(TileStore(self._state.state_dir / LOG).read, tile)
        except TlogError as error:
            raise Problem(HTTPStatus.NOT_FOUND, f"{error}.") from None
        return web.Response(body=data, headers={"Content-Type": "application/octet-stream"})

    async def jwks(self, request: web.Request) -> web.Response:
        return json_answer(self._state.jwks())

    async def trigguard_keys(self, request: web.Request) -> web.Response:
        return json_answer(self._state.trigguard_keys())

    async def _read[T](self, ask: Callable[[Reader], T]) -> T:
        def run() -> T:
            with self._state.read() as reader:
                return ask(reader)

        try:
            return await asyncio.to_thread(run)
        except ConfigError as error:
            raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, "The ledger cannot be read.") from error


def _list_query(request: web.Request) -> dict[str, Any]:
    """Arguments of Reader.list(). A filter that we do not know must not be read as "no filter"."""
    query = request.query
    if set(query) - _LIST_QUERY or len(query) != len(set(query)):
        raise Problem(HTTPStatus.BAD_REQUEST, f"Known filters, once each: {', '.join(sorted(_LIST_QUERY))}.")
    outcome = query.get("outcome", "")
    if outcome and outcome not in tuple(Outcome):
        raise Problem(HTTPStatus.BAD_REQUEST, f"outcome is one of: {', '.join(Outcome)}.")
    arguments: dict[str, Any] = {"agent": query.get("agent", ""), "surface": query.get("surface", "")}
    arguments |= {"outcome": outcome, "limit": min(_number(query, "limit", 100), _MAX_PAGE)}
    if "cursor" in query:
        arguments["cursor"] = _number(query, "cursor", 0)
    if "since" in query:
        try:
            arguments["since_us"] = parse_since(query["since"])
        except ValueError as error:
            raise Problem(HTTPStatus.BAD_REQUEST, f"since: {error}.") from None
    return arguments


def _number(query: Mapping[str, str], name: str, default: int) -> int:
    text = query.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) <= 15):
        raise Problem(HTTPStatus.BAD_REQUEST, f"{name} is a whole number.")
    return int(text)
