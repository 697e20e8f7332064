"""What is measured: each subject starts its processes on loopback and says where to send requests."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from holdgate.adapters.ca import LeafMaker, create_ca
from holdgate.files import packaged

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))  # the tests' own modules

from ports import free_port  # noqa: E402

BIN = Path(sys.executable).parent
SUBJECT_CORE, LOAD_CORE = 0, 1
START_S = 90.0


class BenchError(Exception):
    """The benchmark cannot run as asked; the text says why."""


@dataclass
class Stage:
    """One run's folder, upstream and load generator."""

    work: Path
    load: list[str]  # command of the load generator
    processes: list[subprocess.Popen[str]] = field(default_factory=list)
    upstream_port: int = 0
    ends: ExitStack = field(default_factory=ExitStack)  # what is undone when the run is over

    @property
    def upstream_ca(self) -> Path:
        return self.work / "upstream" / "ca" / "ca.pem"

    def spawn(self, name: str, command: list[str], core: int | None, **env: str) -> subprocess.Popen[str]:
        """`core` is the one to run on; None: any."""
        log = (self.work / f"{name}.log").open("w")
        cores = os.sched_getaffinity(0)
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if name in {"upstream", "gate"} else log,
            stderr=log,
            text=True,
            cwd=self.work,
            env=os.environ | env,
        )
        if len(cores) > 1 and core is not None:
            os.sched_setaffinity(process.pid, {sorted(cores)[core]})
        self.processes.append(process)
        return process

    def start_upstream(self) -> None:
        """A TLS server for the names that the subjects use, under a CA of its own."""
        ca = create_ca(self.work / "upstream", "bench-upstream")
        maker = LeafMaker(ca, now=lambda: datetime.now(UTC))
        pem = self.work / "upstream" / "leaf.pem"
        pem.write_bytes(maker.pem("api.stripe.com"))
        process = self.spawn("upstream", [*self.load, "serve", str(pem), str(pem)], LOAD_CORE)
        self.upstream_port = printed_port(process)

    def stop(self, processes: list[subprocess.Popen[str]]) -> None:
        for process in processes:
            process.terminate()
        for process in processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)
            self.processes.remove(process)


@dataclass(frozen=True)
class Running:
    """A started subject: where requests go, and whose CPU time counts."""

    proxy_port: int  # 0: no proxy
    target: str  # NAME:PORT that the client asks for
    processes: list[subprocess.Popen[str]]


def direct(stage: Stage) -> Running:
    return Running(0, f"api.stripe.com:{stage.upstream_port}", [])


def bare(stage: Stage) -> Running:
    return mitmdump(stage, "bare", [])


def naive(stage: Stage) -> Running:
    gate = stage.spawn("gate", [sys.executable, str(HERE / "naive_gate.py")], SUBJECT_CORE)
    url = f"http://127.0.0.1:{printed_port(gate)}/decide"
    running = mitmdump(stage, "naive", ["-s", str(HERE / "naive_addon.py")], BENCH_GATE=url)
    return Running(running.proxy_port, running.target, [gate, *running.processes])


def mitmdump(stage: Stage, name: str, more: list[str], **env: str) -> Running:
    """mitmdump as a user starts it. It dials the address in CONNECT, so the client asks for localhost."""
    port = free_port()
    options = {
        "confdir": stage.work / "mitmproxy",
        "ssl_insecure": "true",  # the upstream's name is not localhost; what is left out favours mitmdump
    }
    command = [str(BIN / "mitmdump"), "-q", "--listen-host", "127.0.0.1", "-p", str(port), *more]
    for option, value in options.items():
        command += ["--set", f"{option}={value}"]
    process = stage.spawn(name, command, SUBJECT_CORE, **env)
    wait_for(port, process, stage.work / f"{name}.log")
    return Running(port, f"localhost:{stage.upstream_port}", [process])


CONFIG = """\
version: 1
node: bench
state_dir: ./state
listen: {{explicit: 127.0.0.1:{port}}}
admin: {{listen: 127.0.0.1:{admin}}}
surfaces: ["{surfaces}"]
policies: ["{policies}"]
agents:
  - {{id: bench, groups: [payments], match: {{source: [127.0.0.1/32]}}}}
upstream:
  ca_file: "{ca}"
  connect_to: {{"api.stripe.com:443": {{address: 127.0.0.1:{upstream}, tls: true}}}}
"""


def holdgate(
    stage: Stage, *options: str, core: int | None = SUBJECT_CORE, name: str = "holdgate", more: str = ""
) -> Running:
    """The product as it ships: all surface maps, the starter policies, SQLite, signed receipts.

    `more` is added to its configuration.
    """
    name = "-".join([name, *(text.strip("-") for text in options)])
    home = stage.work / name
    command = [str(BIN / "holdgate"), "init", str(home)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise BenchError(f"holdgate init: {done.stderr.strip() or done.stdout.strip()}")
    port = free_port()
    config = CONFIG.format(
        port=port,
        admin=free_port(),
        surfaces=packaged("surfaces"),
        policies=packaged("policies"),
        ca=stage.upstream_ca,
        upstream=stage.upstream_port,
    )
    (home / "holdgate.yaml").write_text(config + more)
    run = [str(BIN / "holdgate"), "run", "-c", str(home / "holdgate.yaml"), *options]
    process = stage.spawn(name, run, core)
    wait_for(port, process, stage.work / f"{name}.log", said="\nready\n")
    return Running(port, "api.stripe.com:443", [process])


def workers2(stage: Stage) -> Running:
    """The same in four processes, on every core: CPU per request is what their second core costs."""
    return holdgate(stage, "--workers", "2", core=None)


SUBJECTS: dict[str, Callable[[Stage], Running]] = {
    "direct": direct,
    "bare": bare,
    "naive": naive,
    "holdgate": holdgate,
    "workers2": workers2,
}


def build_load(work: Path) -> tuple[list[str], str]:
    """The C load generator where it can be compiled, else the Python one; and a word on which."""
    source = HERE / "load.c"
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is not None:
        built = work / "load"
        command = [compiler, "-O2", "-o", str(built), str(source), "-lssl", "-lcrypto"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        if done.returncode == 0:
            return [str(built)], "C"
    return [
        sys.executable,
        str(HERE / "load.py"),
    ], "Python (no C compiler with OpenSSL headers: a slower client)"


def printed_port(process: subprocess.Popen[str]) -> int:
    line = process.stdout.readline() if process.stdout else ""
    if not re.fullmatch(r"[0-9]+\n", line):
        raise BenchError(f"{process.args!r} did not start")
    return int(line)


def wait_for(port: int, process: subprocess.Popen[str], log: Path, said: str = "") -> None:
    """Until it listens there, and its log has `said`: of several processes the last one may be starting."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        with socket.socket() as probe:
            if said in _text(log) and probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    text = _text(log).strip()[-2000:]
    raise BenchError(f"{log.stem} did not listen on port {port}:\n{text}")


def _text(log: Path) -> str:
    """What the process has written; it makes the file itself."""
    return log.read_text(errors="replace") if log.exists() else ""
