"""Clients that keep connections: an answer is to the question before it, or the connection is of no use.

aiohttp gives what arrives on an idle connection to whoever uses it next: one answer too many, and every
later question gets the one to the question before it.

Invariant (tests/test_unasked.py):
  UA1  Nothing is asked over a connection on which something arrived that nobody asked for.
"""

from __future__ import annotations

import aiohttp
from aiohttp.connector import Connection

__all__ = ["OwnAnswer"]


class OwnAnswer(aiohttp.ClientRequest):
    """A `request_class` for sessions. Raises aiohttp.ClientConnectionError before anything is sent."""

    async def send(self, conn: Connection) -> aiohttp.ClientResponse:
        if conn.protocol is None or conn.protocol.should_close:
            conn.close()
            raise aiohttp.ClientConnectionError("there was an answer before the question")
        return await super().send(conn)
