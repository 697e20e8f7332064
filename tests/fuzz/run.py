"""The long run: every target (or those named) for a bounded time, each in a process of its own.

    python tests/fuzz/run.py [TARGET...] [--seconds 30] [--seeded]
    python tests/fuzz/run.py --replay FILE...

Coverage-guided with atheris where it can be imported, else (or with --seeded) the seeded mutation that
`make test` runs, only longer. A crash is a file in tests/fuzz/found/ with a text beside it; exit 1.
What coverage finds is kept in .fuzz_cache/ and is where the next run begins.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).resolve().parent
ROOT: Final = HERE.parents[1]
FOUND: Final = HERE / "found"
CORPUS: Final = ROOT / ".fuzz_cache"
MAX_BYTES: Final = 8192
NO_ATHERIS: Final = (
    "atheris is not installed here, so this run is not guided by coverage: seeded mutation runs instead.\n"
    "There are wheels for CPython 3.12 to 3.14 on Linux x86-64 (glibc), which `make fuzz` installs;\n"
    "elsewhere it would have to be built with Clang."
)
# libFuzzer's own lines: "#2 INITED cov: 9 ft: 9 ...", "#7 DONE cov: 9 ft: 9 corp: 3/3b ...", and so on.
_STATUS: Final = re.compile(r"^#(\d+)\s+(\w+)\s+cov: (\d+) ft: \d+(?: corp: (\d+))?", re.MULTILINE)
_EXECUTIONS: Final = re.compile(r"number_of_executed_units:\s*(\d+)")
_WRITTEN: Final = re.compile(r"Test unit written to (\S+)")


@dataclass(frozen=True)
class Result:
    executions: int
    coverage: tuple[int, int] | None  # edges at the start and at the end; None without atheris
    corpus: int
    crash: Path | None
    failed: str  # why the run itself did not work, "" when it did


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="tests/fuzz/run.py", description="fuzz the parsers and the pipeline"
    )
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="default: every target")
    parser.add_argument("--seconds", type=int, default=30, help="for each target (default 30)")
    parser.add_argument("--seeded", action="store_true", help="without atheris, even where it is installed")
    parser.add_argument("--replay", action="store_true", help="the arguments are inputs: run each once")
    parser.add_argument("--one", choices=("guided", "seeded"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.replay:
        return replay([Path(name) for name in args.targets])
    if args.one == "guided":
        return _guided(args.targets[0], args.seconds)
    names = list(_targets())
    unknown = [name for name in args.targets if name not in names]
    if unknown:
        parser.error(f"no target {', '.join(unknown)}; there are: {', '.join(names)}")
    if args.one == "seeded":
        return seeded(args.targets[0], _targets()[args.targets[0]], args.seconds, FOUND)
    guided = not args.seeded and importlib.util.find_spec("atheris") is not None
    if not guided and not args.seeded:
        print(NO_ATHERIS)
    return _run_all(args.targets or names, args.seconds, "guided" if guided else "seeded")


def _targets() -> dict[str, Any]:
    from fuzz.targets import TARGETS  # late: atheris instruments what is imported after it

    return TARGETS


def _run_all(names: Sequence[str], seconds: int, how: str) -> int:
    bad = 0
    for name in names:
        print(f"{name:<16}", end="", flush=True)
        result = _run(name, seconds, how)
        print(_row(result))
        if result.crash is not None:
            print(f"  crash: {_shown(result.crash)}\n  {_reproduce(result.crash)}")
        bad += result.crash is not None or bool(result.failed)
    print(f"{len(names)} targets, {bad} with a crash" if bad else f"{len(names)} targets, no crash")
    return 1 if bad else 0


def _row(result: Result) -> str:
    words = [f"{result.executions:>10,} executions"]
    if result.coverage is not None:
        words.append(f"coverage {result.coverage[0]} -> {result.coverage[1]}, corpus {result.corpus}")
    words.append(result.failed or ("CRASH" if result.crash is not None else "ok"))
    return "  ".join(words)


def _run(name: str, seconds: int, how: str) -> Result:
    FOUND.mkdir(exist_ok=True)
    command = [sys.executable, str(Path(__file__).resolve()), name, "--seconds", str(seconds), "--one", how]
    # libFuzzer ends its process without cleaning up, so its temporary files are ours to remove.
    with tempfile.TemporaryDirectory(prefix="holdgate-fuzz-") as folder:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, "TMPDIR": folder},
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    return _result(done.stdout + done.stderr, done.returncode)


def _result(output: str, code: int) -> Result:
    """What the child said, in libFuzzer's words or in those of seeded()."""
    written = _WRITTEN.search(output)
    crash = Path(written[1]) if written else None
    if crash is not None and not _note_of(crash).exists():
        _note_of(crash).write_text(_note(crash, output[-20_000:]), encoding="utf-8")
    rows = _STATUS.findall(output)
    executions = _EXECUTIONS.search(output)
    coverage = None
    if rows:
        begun = next((row for row in rows if row[1] == "INITED"), rows[0])
        coverage = int(begun[2]), int(rows[-1][2])
    return Result(
        executions=int(executions[1] if executions else rows[-1][0] if rows else 0),
        coverage=coverage,
        corpus=int(rows[-1][3] or 0) if rows else 0,
        crash=crash,
        failed=f"FAILED: exit {code}\n{output[-2000:]}" if code != 0 and crash is None else "",
    )


def _note_of(crash: Path) -> Path:
    return crash.with_name(crash.name + ".txt")


def _note(crash: Path, output: str) -> str:
    return f"{_reproduce(crash)}\nA fixed one becomes tests/fuzz/vectors/TARGET/WHAT-IS-WRONG.\n\n{output}"


def _reproduce(crash: Path) -> str:
    return f"to reproduce: .venv/bin/python tests/fuzz/run.py --replay {_shown(crash)}"


def _shown(path: Path) -> str:
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


# --- in the child -----------------------------------------------------------------------------


def _guided(name: str, seconds: int) -> int:
    """One target under libFuzzer. Does not return where libFuzzer ends the process."""
    import atheris

    with atheris.instrument_imports(include=["holdgate"]):
        target = _targets()[name]

    def one_input(data: bytes) -> None:
        target.run(data)

    corpus = CORPUS / name
    corpus.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp())  # inside the parent's
    seeds = folder / "seeds"
    seeds.mkdir()
    for seed in target.seeds():
        (seeds / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed[:MAX_BYTES])
    options = [
        f"-max_total_time={seconds}",
        f"-max_len={MAX_BYTES}",
        "-timeout=20",  # seconds for one input: a hang is a crash too
        "-rss_limit_mb=2048",
        "-print_final_stats=1",
        f"-artifact_prefix={FOUND}/{name}-",
    ]
    if target.words:  # libFuzzer refuses an empty file
        words = folder / "words"
        words.write_text("".join(f'"{_escaped(word)}"\n' for word in target.words if len(word) <= 60))
        options.append(f"-dict={words}")
    atheris.Setup([sys.argv[0], *options, str(corpus), str(seeds)], one_input)
    atheris.Fuzz()
    return 0


def _escaped(word: bytes) -> str:
    return "".join(f"\\x{octet:02x}" for octet in word)


def seeded(name: str, target: Any, seconds: float, found: Path) -> int:
    """One target under seeded mutation until the time is over; every run starts with the same inputs."""
    from fuzz.mutate import inputs

    deadline = time.monotonic() + seconds
    runs = rounds = 0
    while time.monotonic() < deadline:
        for data in inputs(name, target, 2000, rounds):
            runs += 1
            try:
                target.run(data)
            except Exception:  # noqa: BLE001 - whatever is raised is what we look for
                return _keep(name, data, runs, found)
            if time.monotonic() >= deadline:
                break
        rounds += 1
    print(f"number_of_executed_units: {runs}")
    return 0


def _keep(name: str, data: bytes, runs: int, found: Path) -> int:
    crash = found / f"{name}-crash-{hashlib.sha256(data).hexdigest()[:16]}"
    found.mkdir(exist_ok=True)
    crash.write_bytes(data)
    _note_of(crash).write_text(_note(crash, traceback.format_exc()), encoding="utf-8")
    print(f"Test unit written to {crash}\nnumber_of_executed_units: {runs}")
    return 1


# --- one input again --------------------------------------------------------------------------


def replay(files: Sequence[Path]) -> int:
    """Run inputs once, with the whole traceback: of found/TARGET-..., or of vectors/TARGET/..."""
    bad = 0
    for path in files:
        names = [
            name for name in (path.name.partition("-")[0], path.resolve().parent.name) if name in _targets()
        ]
        if not names:
            print(f"{path}: is named like no target (TARGET-... or TARGET/...)")
            return 2
        try:
            accepted = _targets()[names[0]].run(path.read_bytes())
        except Exception:  # noqa: BLE001 - shown, whatever it is
            traceback.print_exc()
            print(f"{path}: {names[0]} FAILS")
            bad += 1
        else:
            print(f"{path}: {names[0]} holds, the input is {'accepted' if accepted else 'refused'}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parent))
    sys.exit(main())
