"""The connections of the admin listener: what aiohttp would answer, log and wait for by itself.

    bytes -> aiohttp's reader -> the application (guard.py)
                        \\-> no HTTP: one line of log, and an answer like every other

Its defaults are for a server that anybody may use: a trace in the log for every stray byte, an answer that
names it and its version, an hour for a connection that says nothing, and bodies unpacked before anybody
knows who sent them.

Invariants (tests/test_admin.py has one test named after each):
  UW1  Bytes that are no HTTP get a problem+json like every error, and one line in the log without a trace.
  UW2  A body is read as it was sent: one in a coding is refused, and nothing unpacks it.
  UW3  Whoever says nothing, or sends too slowly, is hung up on; above `CONNECTIONS` at once new ones are.
"""

from __future__ import annotations

import asyncio
import logging
from http import HTTPStatus
from typing import Any, Final

from aiohttp import web

from .guard import Problem, dressed

__all__ = ["CONNECTIONS", "IDLE_S", "Runner"]

log = logging.getLogger("holdgate.admin")

# Longer than askers keep a connection that is not used (gate_client.py 15 s, proxies in front 60 s): else one
# would send into a connection that is being closed.
IDLE_S: Final = 75.0
CONNECTIONS: Final = 4096  # at once: more than a fleet that asks; agents' connections need descriptors, too


class Runner(web.AppRunner):
    """An application behind such connections."""

    def __init__(self, app: web.Application) -> None:
        super().__init__(
            app,
            access_log=None,
            auto_decompress=False,
            keepalive_timeout=IDLE_S,  # for a head that does not come, too
            lingering_time=1.0,  # what nobody reads any more
        )

    async def _make_server(self) -> web.Server:
        server = await super()._make_server()
        server.__class__ = _Server  # aiohttp has no other way to say what makes a connection
        return server


class _Server(web.Server):
    def __call__(self) -> web.RequestHandler:
        return _Connection(self, loop=self._loop, **self._kwargs)


class _Connection(web.RequestHandler):
    __slots__ = ()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        manager = self._manager
        if manager is not None and len(manager.connections) > CONNECTIONS:
            self.force_close()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """What was no HTTP; what fails inside the application is answered there."""
        if request.writer.output_size > 0:
            raise ConnectionError("an answer has begun")
        kind = HTTPStatus(status) if status in (400, 504) else HTTPStatus.INTERNAL_SERVER_ERROR
        log.warning("admin: no request that can be read, from %s: %s", request.remote, type(exc).__name__)
        answer = dressed(Problem(kind, "This is no request that can be read.").response())
        answer.force_close()
        return answer

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """Only of a connection that broke while it was read or written."""
        error = kw.get("exc_info")
        log.warning("admin: a connection broke: %s", type(error).__name__)
