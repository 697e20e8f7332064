"""A throwaway PostgreSQL for tests: initdb into a folder, a Unix socket and a port, fsync on.

`server()` starts one; `database()` makes an empty database in it and gives its settings. PostgreSQL refuses
to run as root, so as root it runs as the first unprivileged user that there is.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pytest

from evidence import NODE, ledger_settings
from holdgate.adapters.reader import Reader
from holdgate.adapters.store_ledger import StoreLedger
from holdgate.config_store import PostgresStore
from ports import free_port

_NUMBERS = itertools.count(1)


def binaries() -> Path | None:
    """The folder of initdb, postgres, psql and pg_isready: HOLDGATE_TEST_POSTGRES, or the newest that is
    installed. None: PostgreSQL is not installed."""
    if given := os.environ.get("HOLDGATE_TEST_POSTGRES"):
        return Path(given)
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: -int(path.parts[4]))
    on_path = shutil.which("initdb")
    return found[0].parent if found else Path(on_path).resolve().parent if on_path else None


def need_postgres() -> Path:
    """Skip the test where PostgreSQL is not installed; in CI that is a failure."""
    try:
        import asyncpg  # noqa: F401
    except ImportError:
        folder = None
    else:
        folder = binaries()
    if folder is not None:
        return folder
    if os.environ.get("CI") == "true":
        pytest.fail("PostgreSQL or asyncpg is not installed, and CI needs them")
    pytest.skip("PostgreSQL (initdb) or asyncpg is not installed")


def _unprivileged() -> dict[str, int]:
    if os.getuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            user = pwd.getpwnam(name)
            return {"user": user.pw_uid, "group": user.pw_gid}
    raise RuntimeError("no user to run PostgreSQL as")


@dataclass
class Server:
    bin: Path
    folder: Path  # holds data/, the socket and the log
    port: int
    process: subprocess.Popen[str] | None = None
    netns: str = ""  # the network namespace that it listens in, on every address; "": ours, on loopback

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def start(self, settings: Mapping[str, str] | None = None) -> None:
        """Start, and wait until it answers. `settings` last as long as this run."""
        options = [f"-c{name}={value}" for name, value in (settings or {}).items()]
        inside, user = self._inside()
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(
                [
                    *(*inside, str(self.bin / "postgres"), "-D", str(self.data), "-p", str(self.port)),
                    *("-k", str(self.folder), "-h", "*" if self.netns else "127.0.0.1", *options),
                ],
                stdout=log,
                stderr=log,
                text=True,
                start_new_session=True,
                **user,  # type: ignore[call-overload]
            )
        deadline = time.monotonic() + 60
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL did not start: {(self.folder / 'log').read_text()[-2000:]}")
            time.sleep(0.05)

    def _inside(self) -> tuple[list[str], dict[str, int]]:
        """What starts it in its namespace, and as whom: only root may enter one."""
        user = _unprivileged()
        if not self.netns:
            return [], user
        who = [f"--reuid={user['user']}", f"--regid={user['group']}", "--clear-groups"]
        return ["nsenter", f"--net=/run/netns/{self.netns}", "setpriv", *who], {}

    def _answers(self) -> bool:
        asked = [str(self.bin / "pg_isready"), "-q", "-h", str(self.folder), "-p", str(self.port)]
        return subprocess.run(asked, check=False).returncode == 0

    def kill(self) -> None:
        """kill -9 of all its processes."""
        if self.process is not None:
            for pid in self._pids() if self.process.poll() is None else ():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def stop(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGINT)  # fast: connections are ended
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.kill()
            self.process = None

    def promote(self) -> None:
        """A standby becomes a primary."""
        self.sql("SELECT pg_promote(true, 60)")

    def signal(self, number: signal.Signals) -> None:
        """To every process of the server."""
        for pid in self._pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _pids(self) -> list[int]:
        """The postmaster first, then its children: each of them has a session of its own."""
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [self.process.pid, *map(int, children.split())]

    def sql(self, text: str, database: str = "postgres") -> str:
        """What psql prints, unaligned."""
        return subprocess.run(
            [
                *(str(self.bin / "psql"), "-XAtq", "-v", "ON_ERROR_STOP=1", "-h", str(self.folder)),
                *("-p", str(self.port), "-U", "holdgate", "-d", database, "-c", text),
            ],
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
        ).stdout.strip()

    def database(self, **changes: object) -> PostgresStore:
        """An empty database, and how to reach it over TCP."""
        name = f"t{os.getpid()}_{next(_NUMBERS)}"
        self.sql(f"CREATE DATABASE {name}")
        return settings_of(f"127.0.0.1:{self.port}", name, **changes)


def settings_of(
    where: str, database: str, *, require_sync: bool = False, deadline_ms: int = 5000, engine: str = ""
) -> PostgresStore:
    """`where`: host:port, several with commas. The deadline is long: this machine is shared. The engine is
    what the tests run under now, in other processes too (test_cockroach.py)."""
    hosts = tuple(where.split(","))
    return PostgresStore(
        urls=tuple(f"postgresql://holdgate@{host}/{database}?sslmode=disable" for host in hosts),
        hosts=hosts,
        require_sync=require_sync,
        deadline_ms=deadline_ms,
        engine=engine or engine_now(),
    )


def engine_now() -> str:
    return os.environ.get("HOLDGATE_TEST_ENGINE", "postgresql")


@contextlib.contextmanager
def folder(within: Path | None = None) -> Iterator[Path]:
    """Where the unprivileged user may write; pytest's own folders are closed to it.

    In memory where there is some, unless it is said where: fsync is on, and costs nothing there.
    """
    shm = Path("/dev/shm")
    roomy = shm.is_dir() and os.access(shm, os.W_OK) and shutil.disk_usage(shm).free > 512 << 20
    made = Path(tempfile.mkdtemp(prefix="holdgate-pg-", dir=within or (shm if roomy else None)))
    if user := _unprivileged():
        os.chown(made, user["user"], user["group"])
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def make(folder: Path) -> Server:
    """A new cluster in a folder() of ours, not started. Whoever may reach the port may log in."""
    bin_folder, user = need_postgres(), _unprivileged()
    subprocess.run(
        [
            *(str(bin_folder / "initdb"), "-D", str(folder / "data"), "-U", "holdgate", "-A", "trust"),
            *("-E", "UTF8", "--locale=C", "-N"),
        ],
        check=True,
        capture_output=True,
        **user,  # type: ignore[call-overload]
    )
    with (folder / "data" / "postgresql.conf").open("a") as conf:
        conf.write("shared_buffers = 16MB\nmax_connections = 60\nmax_wal_size = 256MB\n")
        # Servers that are killed leave it behind: in their own folder then.
        conf.write("dynamic_shared_memory_type = mmap\n")
    return Server(bin=bin_folder, folder=folder, port=free_port())


@dataclass
class Cockroach:
    """A CockroachDB that somebody runs on this machine, without TLS: the part of Server that
    test_cockroach.py uses. HOLDGATE_TEST_COCKROACH is the URL of an administrator."""

    url: str

    @property
    def port(self) -> int:
        return urlsplit(self.url).port or 26257

    def sql(self, text: str, database: str = "") -> str:
        """As psql prints it, unaligned."""

        async def ask() -> str:
            import asyncpg

            parts = urlsplit(self.url)
            url = urlunsplit(parts._replace(path=f"/{database}")) if database else self.url
            connection = await asyncpg.connect(url)
            try:
                rows = await connection.fetch(text)
            finally:
                await connection.close()
            return "\n".join("|".join(map(str, row)) for row in rows)

        return in_a_thread(ask)

    def database(self, **changes: Any) -> PostgresStore:
        name = f"t{os.getpid()}_{next(_NUMBERS)}"
        for text in (
            "CREATE USER IF NOT EXISTS holdgate",
            "GRANT SYSTEM VIEWCLUSTERSETTING TO holdgate",
            f"CREATE DATABASE {name} WITH OWNER holdgate",
        ):
            self.sql(text)
        return settings_of(f"127.0.0.1:{self.port}", name, **changes)


def in_a_thread[T](ask: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """What `ask` gives: tests call this inside their event loop."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: asyncio.run(ask())).result()


@contextlib.contextmanager
def server(settings: Mapping[str, str] | None = None) -> Iterator[Server]:
    """A running one, ended afterwards."""
    need_postgres()
    with folder() as place:
        made = make(place)
        try:
            made.start(settings)
            yield made
        finally:
            made.kill()


class Fleets:
    """Ledgers of tests: one database, emptied for every new state directory."""

    def __init__(self, server: Server | Cockroach) -> None:
        self._settings = server.database()
        self._folder: Path | None = None

    def _use(self, state_dir: Path) -> PostgresStore:
        if state_dir != self._folder:
            if self._folder is not None:
                in_a_thread(lambda: _empty(self._settings.urls[0]))
            self._folder = state_dir
        return self._settings

    def open_ledger(self, state_dir: Path, **changes: Any) -> StoreLedger:
        return open_ledger(state_dir, self._use(state_dir), **changes)

    def reader(self, state_dir: Path) -> Reader:
        from holdgate.adapters.postgres_reader import PostgresReader

        return PostgresReader(state_dir, self._use(state_dir), NODE)


def open_ledger(state_dir: Path, settings: PostgresStore, **changes: Any) -> StoreLedger:
    """As evidence.open_ledger(); the clocks of tests are not the server's."""
    from holdgate.adapters.postgres import PostgresLedger

    facts = ledger_settings() | {"fleet_key": bytes(32), "skew_s": 1e9}
    return PostgresLedger.open(state_dir, settings, **(facts | changes))


async def _empty(url: str) -> None:
    import asyncpg

    connection = await asyncpg.connect(url)
    await connection.execute("DROP SCHEMA IF EXISTS holdgate CASCADE")
    await connection.close()


def wall_us() -> int:
    """The real time, for ledgers whose clock must be the server's."""
    return time.time_ns() // 1000


def standby_of(primary: Server, place: Path) -> Server:
    """A streaming copy of a running server, not started. `place` is a folder() of its own."""
    user = _unprivileged()
    subprocess.run(
        [
            *(
                str(primary.bin / "pg_basebackup"),
                "-D",
                str(place / "data"),
                "-R",
                "-X",
                "stream",
                "-c",
                "fast",
            ),
            *("-h", str(primary.folder), "-p", str(primary.port), "-U", "holdgate"),
        ],
        check=True,
        capture_output=True,
        **user,  # type: ignore[call-overload]
    )
    return Server(bin=primary.bin, folder=place, port=free_port())
