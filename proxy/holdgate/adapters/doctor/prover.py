"""One run of the doctor: probes over there, a witness beyond, the log and the host here; then one report.

    run id -> witness starts -> the gate's host tries (does the witness see it?) -> the agent's place tries
    -> tokens seen, receipts logged, host looked at -> Report

A place is a command that runs Python from its standard input: `ip netns exec agent setpriv ... python3 -`,
`docker exec -i agent python3 -`, `ssh host python3 -`. Nothing has to be installed there.

Invariants (tests/test_doctor.py has one test named after each):
  DR1  A place that cannot be reached, answers nonsense or hangs leaves its rows unproven; it raises nothing.
  DR2  A witness that died before the probes ended has watched nothing.
"""

from __future__ import annotations

import json
import secrets
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from ...config import Config
from ...coverage import Observed, Result, Row, State, judge
from ...errors import ConfigError, Outcome
from ...escape import CELLS, MATRIX, NETWORK, Judge, Probe, Targets, plan, row_of, token_of
from ..admin.shapes import decode_jws
from ..open_reader import open_reader
from . import probe as probe_script
from . import witness as witness_script

__all__ = ["Options", "Report", "Run"]

UNKNOWN_UID: Final = 2**32 - 1
HERE: Final = (sys.executable, "-")
_SETTLE_S: Final = 1.0  # from the last probe's end until the witness has printed what it saw
_START_S: Final = 15.0
_CONTROLS: Final = tuple(name for name, cell in CELLS.items() if cell.judge is Judge.CONTROL)
# What is tried while the proxy is dead or starts: one of each kind that a gap would let through.
_GAP_ROWS: Final = (
    "tcp4.443",
    "tcp6.443",
    "tcp4.22",
    "udp4.53",
    "udp6.53",
    "udp4.443",
    "icmp4",
    "direct.http",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command line says."""

    proving: bool
    probe_at: tuple[str, ...]  # a command; HERE when it is this host
    witness_at: tuple[str, ...]  # a command; () when there is no witness
    witnesses: tuple[str, ...]  # addresses of the witness; a target that is none of them has no witness
    targets: Targets
    timeout_s: float = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    run: str
    rows: tuple[Row, ...]
    netns: int
    uid: int
    agent: str  # who the gate took the probes for


@dataclass
class _Witness:
    """The process beyond the boundary, and what it wrote down."""

    process: subprocess.Popen[bytes]
    tokens: set[str] = field(default_factory=set)
    bare: set[str] = field(default_factory=set)
    ready: threading.Event = field(default_factory=threading.Event)

    @classmethod
    def start(cls, command: Sequence[str], addresses: Collection[str], seconds: float) -> _Witness:
        cells = [CELLS[name] for name in NETWORK]
        given = {
            "addresses": sorted(addresses),
            "tcp": sorted({cell.port for cell in cells if cell.kind == "tcp"}),
            "udp": sorted({cell.port for cell in cells if cell.kind == "udp"}),
            "raw": sorted({cell.proto for cell in cells if cell.proto}),
            "seconds": seconds,
        }
        witness = cls(_start(command, witness_script.__file__, given))
        threading.Thread(target=witness._read, daemon=True).start()
        if not witness.ready.wait(_START_S):
            witness.stop()
            raise ConfigError(f"the witness did not start: {shlex.join(command)}")
        return witness

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def rows(self, run: str) -> frozenset[str]:
        """The rows of this run that it saw."""
        return frozenset(row_of(token) for token in list(self.tokens) if token[3:].startswith(run)) - {""}

    def _read(self) -> None:
        for line in self.process.stdout or ():
            with suppress(ValueError, AttributeError):
                event = json.loads(line)
                if "watching" in event:
                    self.ready.set()
                self.tokens |= {event["token"]} if "token" in event else set()
                self.bare |= {event["bare"]} if "bare" in event else set()

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


def _start(command: Sequence[str], script: str, given: Mapping[str, Any]) -> subprocess.Popen[bytes]:
    """A script of ours at the standard input of a command, followed by one call of its main()."""
    program = Path(script).read_bytes() + f"\n\nmain(json.loads({json.dumps(given)!r}))\n".encode()
    try:
        process = subprocess.Popen(  # noqa: S603  (the operator's own command)
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
    except OSError as error:
        raise ConfigError(f"cannot run {shlex.join(command)}: {error.strerror}") from error
    with suppress(OSError):
        if process.stdin is not None:
            process.stdin.write(program)
            process.stdin.close()
            process.stdin = None
    return process


def _try(command: Sequence[str], probes: Sequence[Probe], timeout_s: float) -> Mapping[str, Any]:
    """Run probes at a place. {} when it cannot be reached or makes no sense (DR1)."""
    given = {"timeout_s": timeout_s, "probes": [each.record() for each in probes]}
    try:
        process = _start(command, probe_script.__file__, given)
        out, _ = process.communicate(timeout=timeout_s * 8 + 30)
        said = json.loads(out)
        return {"netns": int(said["netns"]), "uid": int(said["uid"]), "results": _results(said["results"])}
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
    except (ConfigError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    return {"netns": 0, "uid": UNKNOWN_UID, "results": {}}


def _results(said: Mapping[str, Any]) -> dict[str, Result]:
    found = {}
    for name, row in said.items():
        if name in CELLS:
            found[name] = Result(
                ran=row["ran"] is True,
                connected=row["connected"] is True,
                done=row["done"] is True,
                error=str(row["error"])[:64],
                answer=str(row["answer"])[:2048],
                detail=str(row["detail"])[:2048],
            )
    return found


class Run:
    """One examination; `host` decides the rows of the gate's own host."""

    def __init__(self, config: Config, options: Options, required: Collection[str]) -> None:
        self.config, self.options, self.required = config, options, required
        self.run = secrets.token_hex(16)
        self._witness: _Witness | None = None

    def examine(
        self,
        host: Callable[[int], Mapping[str, tuple[State, str]]],  # of the agent's uid
        failures: Callable[[Run], Mapping[str, tuple[State, str]]] | None = None,
    ) -> Report:
        """Try everything. Raises ConfigError when the witness cannot be started."""
        options = self.options
        with ExitStack() as stack:
            if options.witness_at:
                self._witness = _Witness.start(options.witness_at, options.witnesses, seconds=600.0)
                stack.callback(self._witness.stop)
            watched, admin_alive = self._calibrate()
            since = self._log_size()
            probes = plan(self.run, options.targets)
            said = _try(options.probe_at, probes, options.timeout_s)
            seen = self._seen(self.run)
            observed = Observed(
                proving=options.proving,
                planned=frozenset(each.id for each in probes),
                results=said["results"],
                seen=seen,
                watched=watched if self._witness is not None and self._witness.alive else frozenset(),
                logged=self._logged(since),
                host=host(said["uid"]),
                admin_alive=admin_alive,
            )
            if failures is not None:
                observed = replace(observed, failures=failures(self))
        agents = set(observed.logged.values()) - {""}
        return Report(
            run=self.run,
            rows=judge(observed, self.required),
            netns=said["netns"],
            uid=said["uid"],
            agent=agents.pop() if len(agents) == 1 else "",
        )

    def leaks(self) -> frozenset[str] | None:
        """Try the rows of a gap once more, under a run id of their own: those that the witness saw.

        None when that shows nothing: there is no witness, or not every probe ran.
        """
        again = secrets.token_hex(16)
        probes = plan(again, self.options.targets, _GAP_ROWS)
        said = _try(self.options.probe_at, probes, self.options.timeout_s)["results"]
        seen = self._seen(again)
        if self._witness is None or not self._witness.alive:
            return None
        ran = all(each.id in said and said[each.id].ran for each in probes)
        return seen if ran or seen else None

    def _calibrate(self) -> tuple[frozenset[str], bool]:
        """The rows that the witness sees when the gate's own host tries them; whether the admin API lives."""
        trial = secrets.token_hex(16)
        wanted = (*(NETWORK if self._witness else ()), "admin.direct")
        found = _try(HERE, plan(trial, self.options.targets, wanted), self.options.timeout_s)
        admin = found["results"].get("admin.direct")
        return self._seen(trial), admin is not None and admin.answer.startswith("HTTP/1.1 200")

    def _seen(self, run: str) -> frozenset[str]:
        if self._witness is None:
            return frozenset()
        time.sleep(_SETTLE_S)
        bare, self._witness.bare = self._witness.bare, set()
        return self._witness.rows(run) | (bare & set(MATRIX))

    def _log_size(self) -> int:
        try:
            with open_reader(self.config) as reader:
                return reader.size
        except ConfigError:
            return 0

    def _logged(self, since: int) -> dict[str, str]:
        """The controls that are in the log: row -> agent."""
        names = {f"{token_of(self.run, name)}.holdgate.invalid": name for name in _CONTROLS}
        found: dict[str, str] = {}
        with suppress(ConfigError), open_reader(self.config) as reader:
            for stored in reader.export(since):
                if stored.type != "decision" or stored.outcome != Outcome.SILENCE:
                    continue
                host = decode_jws(stored.jws).get("destination", "").rpartition(":")[0]
                if host in names:
                    found[names[host]] = stored.agent
        return found
