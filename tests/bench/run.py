"""`make bench`: bare mitmdump, a naive addon with an HTTP gate, and Holdgate, in one run on loopback.

Prints a table of requests per second, latency, CPU per request and memory, with ratios to bare mitmdump.
Every load is bounded in time and count. README.md beside this file says how to read the figures.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import audits
import envoy
import logs
import policies
import postgres
import squid
from subjects import LOAD_CORE, SUBJECTS, BenchError, Running, Stage, build_load

ALL_SUBJECTS = SUBJECTS | {"postgres": postgres.postgres, "squid": squid.squid, "envoy": envoy.envoy}
MAX_REQUESTS = 400_000
WARM_UP_MS = 500
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Scenario:
    name: str
    concurrency: int
    mode: str  # "keepalive" | "fresh"


SCENARIOS = (
    Scenario("c1", 1, "keepalive"),
    Scenario("c16", 16, "keepalive"),
    Scenario("c64", 64, "keepalive"),
    Scenario("fresh16", 16, "fresh"),
)


@dataclass(frozen=True)
class Row:
    subject: str
    scenario: str
    requests: int
    errors: int
    rps: float
    p50_ms: float
    p99_ms: float
    p999_ms: float
    cpu_ms: float  # of the subject's processes, per request; 0 where there are none
    rss_mib: float


def tree(roots: list[int]) -> list[int]:
    """The processes and all their descendants."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            fields = stat_fields(int(entry.name))
            if fields:
                parents[int(entry.name)] = int(fields[1])
    found = list(roots)
    for pid in found:  # grows while it is walked
        found += [child for child, parent in parents.items() if parent == pid]
    return found


def stat_fields(pid: int) -> list[str]:
    """/proc/PID/stat after the command's name: [0] is the state, [1] the parent."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def cpu_s(roots: list[int]) -> float:
    """User and system time so far, of the tree and of its children that have ended."""
    total = 0.0
    for pid in tree(roots):
        fields = stat_fields(pid)
        total += sum(int(ticks) for ticks in fields[11:15]) * TICK_S if fields else 0.0
    return total


def rss_mib(roots: list[int]) -> float:
    page = os.sysconf("SC_PAGE_SIZE")
    fields = (stat_fields(pid) for pid in tree(roots))
    return sum(int(each[21]) * page for each in fields if each) / 2**20


class Bench:
    """One stage, and the id of the next request: no two requests of a run are alike."""

    def __init__(self, stage: Stage, milliseconds: int) -> None:
        self.stage, self.milliseconds, self.next_id = stage, milliseconds, int(time.time()) * 1_000_000

    def load(self, running: Running, scenario: Scenario, milliseconds: int) -> dict[str, float]:
        command = [*self.stage.load, "client", str(running.proxy_port), running.target]
        command += [str(scenario.concurrency), str(milliseconds), str(MAX_REQUESTS), scenario.mode]
        command.append(str(self.next_id))
        cores = sorted(os.sched_getaffinity(0))

        def pin() -> None:
            if len(cores) > 1:
                os.sched_setaffinity(0, {cores[LOAD_CORE]})

        done = subprocess.run(
            command, capture_output=True, text=True, timeout=120, check=False, preexec_fn=pin
        )
        if done.returncode:
            raise BenchError(f"load generator: {done.stderr.strip()}")
        result: dict[str, float] = json.loads(done.stdout)
        self.next_id = int(result["next_id"])
        return result

    def measure(self, subject: str, running: Running, scenario: Scenario) -> Row:
        roots = [process.pid for process in running.processes]
        self.load(running, scenario, WARM_UP_MS)
        before = cpu_s(roots)
        result = self.load(running, scenario, self.milliseconds)
        used = cpu_s(roots) - before
        requests = int(result["requests"])
        return Row(
            subject=subject,
            scenario=scenario.name,
            requests=requests,
            errors=int(result["errors"]),
            rps=requests / result["seconds"] if result["seconds"] else 0.0,
            p50_ms=result["p50_ms"],
            p99_ms=result["p99_ms"],
            p999_ms=result["p999_ms"],
            cpu_ms=used * 1000 / requests if requests else 0.0,
            rss_mib=rss_mib(roots),
        )


def median_rows(rows: list[Row]) -> list[Row]:
    """One row per subject and scenario: the median of its repetitions, errors added up."""
    result: list[Row] = []
    for key in dict.fromkeys((row.subject, row.scenario) for row in rows):
        same = [row for row in rows if (row.subject, row.scenario) == key]
        values = {
            name: statistics.median(getattr(row, name) for row in same)
            for name in ("rps", "p50_ms", "p99_ms", "p999_ms", "cpu_ms", "rss_mib")
        }
        counts = {"requests": sum(row.requests for row in same), "errors": sum(row.errors for row in same)}
        result.append(Row(subject=key[0], scenario=key[1], **counts, **values))
    return result


def table(rows: list[Row]) -> str:
    base = {row.scenario: row for row in rows if row.subject == "bare"}
    head = f"{'subject':<10} {'load':<8} {'req/s':>9} {'x bare':>7} {'p50 ms':>8} {'p99 ms':>8} {'p99.9':>8}"
    head += f" {'CPU ms/req':>11} {'x bare':>7} {'RSS MiB':>8} {'requests':>9} {'errors':>7}"
    lines = [head, "-" * len(head)]
    for row in rows:
        bare = base.get(row.scenario)
        speed = f"{row.rps / bare.rps:.2f}" if bare and bare.rps else "-"
        cost = f"{row.cpu_ms / bare.cpu_ms:.2f}" if bare and bare.cpu_ms and row.cpu_ms else "-"
        line = f"{row.subject:<10} {row.scenario:<8} {row.rps:>9.0f} {speed:>7} {row.p50_ms:>8.2f}"
        line += f" {row.p99_ms:>8.2f} {row.p999_ms:>8.2f} {row.cpu_ms:>11.3f} {cost:>7} {row.rss_mib:>8.0f}"
        lines.append(f"{line} {row.requests:>9} {row.errors:>7}")
    return "\n".join(lines)


def options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3.0, help="per load, at most 30 (default 3)")
    parser.add_argument(
        "--reps", type=int, default=1, help="interleaved repetitions, medians are shown (default 1)"
    )
    parser.add_argument(
        "--subjects",
        default=",".join(SUBJECTS),
        help=f"some of: {','.join(ALL_SUBJECTS)} (default %(default)s)",
    )
    parser.add_argument(
        "--loads", default=",".join(each.name for each in SCENARIOS), help="some of: %(default)s"
    )
    parser.add_argument(
        "--policies", action="store_true", help="decide and load policies instead, without any proxy"
    )
    parser.add_argument(
        "--audit", action="store_true", help="`log audit` against bare Ed25519 verification instead"
    )
    parser.add_argument(
        "--log", type=int, metavar="RECEIPTS", help="append, disk and proofs of a log of so many instead"
    )
    parser.add_argument("--json", type=Path, help="write every repetition's figures here as well")
    chosen = parser.parse_args(arguments)
    if not 0 < chosen.seconds <= 30 or not 0 < chosen.reps <= 10:
        parser.error("--seconds must be above 0 and at most 30, --reps between 1 and 10")
    known = {each.name for each in SCENARIOS}
    chosen.subjects, chosen.loads = chosen.subjects.split(","), chosen.loads.split(",")
    if set(chosen.subjects) - set(ALL_SUBJECTS) or set(chosen.loads) - known:
        parser.error(f"subjects are {', '.join(ALL_SUBJECTS)}; loads are {', '.join(known)}")
    return chosen


def measure_all(stage: Stage, chosen: argparse.Namespace) -> list[Row]:
    """Every repetition starts every subject anew, so that what drifts on the machine hits all of them."""
    bench = Bench(stage, int(chosen.seconds * 1000))
    rows: list[Row] = []
    for _ in range(chosen.reps):
        for name in chosen.subjects:
            running = ALL_SUBJECTS[name](stage)
            for scenario in SCENARIOS:
                if scenario.name in chosen.loads:
                    rows.append(bench.measure(name, running, scenario))
                    print(f"  {name} {scenario.name}: {rows[-1].rps:.0f} req/s", file=sys.stderr)
            stage.stop(running.processes)
    return rows


def main(arguments: list[str] | None = None) -> int:
    chosen = options(arguments)
    if chosen.policies:
        return policies.main()
    if chosen.audit:
        return audits.main()
    if chosen.log:
        return logs.main(chosen.log)
    with tempfile.TemporaryDirectory(prefix="holdgate-bench-") as folder:
        load, kind = build_load(Path(folder))
        stage = Stage(work=Path(folder), load=load)
        try:
            stage.start_upstream()
            rows = measure_all(stage, chosen)
        except BenchError as error:
            print(f"bench: {error}", file=sys.stderr)
            return 1
        finally:
            stage.stop(list(stage.processes))
            stage.ends.close()
    machine = {
        "date": time.strftime("%Y-%m-%d"),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "mitmproxy": version("mitmproxy"),
        "load_generator": kind,
        "seconds": chosen.seconds,
        "reps": chosen.reps,
    }
    print(" ".join(f"{name}={value}" for name, value in machine.items()))
    print(table(median_rows(rows)))
    if chosen.json:
        chosen.json.write_text(
            json.dumps({"machine": machine, "rows": [asdict(row) for row in rows]}, indent=1) + "\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
