"""One connection to PostgreSQL or CockroachDB, each use within a deadline.

    call(work, until): the answer, or StoreLost: then the connection is gone and was not waited for

asyncpg would answer a cancelled call by asking the server to cancel the statement. A COMMIT that waits for
its synchronous standby must never be cancelled: PostgreSQL then commits without it, and says so in a
warning only. So nothing here cancels: past the deadline the socket is dropped, and a warning is a failure.
What must be true of the server is asked before anything else (postgres_server.py).

Invariants (tests/test_postgres.py has one test named after each):
  PL1  A server that can lose what it has committed is not used: fsync, full_page_writes or
       synchronous_commit off, a standby, no synchronous standby where one is required, or neither PostgreSQL
       nor a CockroachDB that is asked for.
  PL2  No call takes longer than its deadline, and nothing is sent to a server that did not answer.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final

import asyncpg

from ..config_store import PostgresStore
from .postgres_dialect import Dialect, dialect_of
from .postgres_server import Server, server_of
from .postgres_sql import one
from .store import Conflict, StoreBroken, StoreLost

__all__ = ["Link"]

# What passes: connections, resources, an operator's intervention, transactions that the server ended; 40003:
# a COMMIT of which the server itself does not know whether it happened. None of these says that nothing did.
_PASSING: Final = ("08", "25", "28", "3D", "40003", "53", "55", "57", "58")
# The client's side of a connection that broke, in any of the states that it was in.
_BROKEN: Final = (
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
    TimeoutError,
    asyncio.IncompleteReadError,
)
_UNDONE: Final = ("40001", "40P01")  # and nothing of it happened, also where COMMIT was answered by it


class Link:
    """Used by one thread at a time. It is made without a connection: the first call makes one."""

    def __init__(self, settings: PostgresStore, name: str, *, writes: bool) -> None:
        self._settings, self._name, self._writes = settings, name, writes
        self._loop = asyncio.new_event_loop()
        self._conn: Any = None  # asyncpg.Connection
        self._warning = ""
        self._first = 0  # of the hosts: the one that answered last
        self.dialect: Dialect = dialect_of(settings.engine)
        self._server: Server | None = None

    @property
    def is_open(self) -> bool:
        return self._conn is not None and not self._conn.is_closed()

    @property
    def deadline_s(self) -> float:
        return self._settings.deadline_ms / 1000

    def call[T](self, work: Callable[[Any], Awaitable[T]], until: float) -> T:
        """`work` is given the connection. `until` is of time.monotonic(). Raises StoreLost, Conflict, and
        asyncpg.PostgresError for what does not pass by itself (then the connection is gone as well)."""
        return self._run(self._call(work, until))

    def again[T](self, work: Callable[[Any], Awaitable[T]], until: float) -> T:
        """The same for a whole transaction that changes nothing when it is undone: then once more."""
        while True:
            try:
                return self.call(work, until)
            except Conflict:
                if time.monotonic() >= until:
                    raise StoreLost("transactions were undone because of others until the deadline") from None

    @property
    def server(self) -> Server:
        """What the last connection led to. Raises StoreLost before the first one."""
        if self._server is None:
            raise StoreLost("not connected yet")
        return self._server

    @property
    def connection(self) -> object:
        """Which connection it is now; None: none."""
        return self._conn if self.is_open else None

    @property
    def host(self) -> int:
        """Which of the hosts answered last."""
        return self._first

    def prefer(self, host: int) -> None:
        """Use this one, if it answers."""
        if host != self._first:
            self.drop()
            self._first = host

    def drop(self) -> None:
        """Let go of the connection; the server is told nothing."""
        if self._conn is not None:
            self._conn.terminate()
            self._conn = None

    def close(self) -> None:
        if self._loop.is_closed():
            return
        self.drop()
        self._run(asyncio.sleep(0))  # the transport's own callbacks
        self._loop.close()

    def _run[T](self, work: Coroutine[Any, Any, T]) -> T:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return self._loop.run_until_complete(work)
        # Called inside somebody's event loop: it is blocked as by any other read, but cannot nest ours.
        found: list[T] = []
        failed: list[BaseException] = []

        def run() -> None:
            try:
                found.append(self._loop.run_until_complete(work))
            except BaseException as error:  # noqa: BLE001  (raised again below)
                failed.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        if failed:
            raise failed[0]
        return found[0]

    async def _call[T](self, work: Callable[[Any], Awaitable[T]], until: float) -> T:
        if not self.is_open:
            await self._connect(until)
        self._warning = ""
        return await self._within(work(self._conn), until)

    async def _within[T](self, work: Awaitable[T], until: float) -> T:
        task = asyncio.ensure_future(work)
        await asyncio.wait({task}, timeout=max(0.0, until - time.monotonic()))
        if not task.done():
            self.drop()
            await asyncio.wait({task}, timeout=0.05)
            if task.done():
                task.exception()
            raise StoreLost(f"PostgreSQL did not answer within {self._settings.deadline_ms} ms")
        try:
            result = task.result()
        except asyncpg.PostgresError as error:
            self.drop()
            state = error.sqlstate or ""
            if state in _UNDONE:
                raise Conflict from error
            if (
                state in _PASSING
                or state[:2] in _PASSING
                or (self._server and state[:2] in self._server.passing)
            ):
                raise StoreLost(f"PostgreSQL: {error}") from error
            raise
        except (StoreLost, StoreBroken):
            self.drop()
            raise
        except _BROKEN as error:
            self.drop()
            raise StoreLost(f"PostgreSQL: {error or type(error).__name__}") from error
        if self._warning:
            self.drop()
            raise StoreLost(f"PostgreSQL warns: {self._warning}")
        return result

    # --- connecting ---

    async def _connect(self, until: float) -> None:
        """Try the hosts in turn, each with its share of the time. Raises StoreLost."""
        urls = self._settings.urls
        reasons: list[str] = []
        for number in range(len(urls)):
            place = (self._first + number) % len(urls)
            left = until - time.monotonic()
            share = time.monotonic() + max(0.05, left / (len(urls) - number))
            try:
                await self._connect_to(urls[place], min(share, until) if left > 0 else share)
            except StoreLost as error:
                reasons.append(f"{self._settings.hosts[place]}: {error.detail}")
                continue
            self._first = place
            return
        raise StoreLost("; ".join(reasons))

    async def _connect_to(self, url: str, until: float) -> None:
        opening = asyncio.ensure_future(
            asyncpg.connect(url, timeout=60, server_settings={"application_name": self._name})
        )
        await asyncio.wait({opening}, timeout=max(0.0, until - time.monotonic()))
        if not opening.done():
            opening.cancel()
            await asyncio.wait({opening}, timeout=0.05)
            raise StoreLost("no connection in time")
        try:
            self._conn = opening.result()
        except (asyncpg.PostgresError, ValueError, *_BROKEN) as error:
            raise StoreLost(str(error) or type(error).__name__) from error
        self._conn.add_log_listener(self._noticed)
        try:
            problem = await self._within(self._set_up(self._conn), until)
        except (asyncpg.PostgresError, Conflict) as error:
            raise StoreLost(str(error)) from error
        if problem:
            self.drop()
            raise StoreLost(problem)

    async def _set_up(self, conn: Any) -> str:
        """Settings of the session; why this server must not be used, "" when it may."""
        # Before anything else: what only speaks the protocol lacks settings that are asked for below.
        server = server_of((await one(conn, "SELECT version()"))[0], self._settings.engine)
        if isinstance(server, str):
            return server
        self._server = server
        sync = self._settings.require_sync
        if problem := await server.look(conn, require_sync=sync, writes=self._writes):
            return problem
        await conn.execute("SET statement_timeout = 0; SET client_min_messages = 'warning'")
        if not self._writes:
            return ""
        wait = self._settings.deadline_ms
        # Whoever holds the fleet's row and vanishes must let go of it: the server's own clocks see to that.
        await conn.execute(
            f"SET lock_timeout = {wait}; SET idle_in_transaction_session_timeout = {wait};"
            f" SET default_transaction_isolation = '{self.dialect.isolation}'"
        )
        await server.settle(conn, wait)
        return ""

    def _noticed(self, _: Any, message: Any) -> None:
        if message.severity_en in (None, "WARNING"):
            self._warning = str(message)
