"""A throwaway PostgreSQL for tests: initdb into a folder, a Unix socket and a port, fsync on.

`server()` starts one; `database()` makes an empty database in it and gives its settings. PostgreSQL refuses
to run as root, so as root it runs as the first unprivileged user that there is.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from holdgate.config_store import PostgresStore
from ports import free_port

_NUMBERS = itertools.count(1)


def binaries() -> Path | None:
    """The folder of initdb and postgres, newest version first; None: PostgreSQL is not installed."""
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
    process: subprocess.Popen[bytes] | None = None

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def start(self, settings: Mapping[str, str] | None = None) -> None:
        """Start, and wait until it answers. `settings` last as long as this run."""
        options = [f"-c{name}={value}" for name, value in (settings or {}).items()]
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(
                [
                    *(str(self.bin / "postgres"), "-D", str(self.data), "-p", str(self.port)),
                    *("-k", str(self.folder), "-h", "127.0.0.1", *options),
                ],
                stdout=log,
                stderr=log,
                start_new_session=True,
                **_unprivileged(),  # type: ignore[call-overload]
            )
        deadline = time.monotonic() + 60
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL did not start: {(self.folder / 'log').read_text()[-2000:]}")
            time.sleep(0.05)

    def _answers(self) -> bool:
        asked = [str(self.bin / "pg_isready"), "-q", "-h", str(self.folder), "-p", str(self.port)]
        return subprocess.run(asked, check=False).returncode == 0

    def kill(self) -> None:
        """kill -9 of all its processes: what was not fsync'd by PostgreSQL is the kernel's."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
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

    def signal(self, number: signal.Signals) -> None:
        """To every process of the server."""
        assert self.process is not None
        os.killpg(self.process.pid, number)

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
    where: str, database: str, *, require_sync: bool = False, deadline_ms: int = 5000
) -> PostgresStore:
    """`where`: host:port, several with commas. The deadline is long: this machine is shared."""
    hosts = tuple(where.split(","))
    return PostgresStore(
        urls=tuple(f"postgresql://holdgate@{host}/{database}?sslmode=disable" for host in hosts),
        hosts=hosts,
        require_sync=require_sync,
        deadline_ms=deadline_ms,
    )


def make(folder: Path) -> Server:
    """A new cluster in `folder`, not started. Whoever may reach the port may log in."""
    bin_folder = need_postgres()
    folder.mkdir(parents=True, exist_ok=True)
    user = _unprivileged()
    if user:
        os.chown(folder, user["user"], user["group"])
        for parent in (folder, *folder.parents):
            if parent.owner() == "root" and parent != parent.parent and not parent.stat().st_mode & 0o001:
                parent.chmod(parent.stat().st_mode | 0o011)  # pytest's folders are 0700
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
    return Server(bin=bin_folder, folder=folder, port=free_port())


@contextlib.contextmanager
def server(folder: Path, settings: Mapping[str, str] | None = None) -> Iterator[Server]:
    """A running one, ended afterwards."""
    made = make(folder)
    try:
        made.start(settings)
        yield made
    finally:
        made.kill()
