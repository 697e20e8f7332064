"""Fuzzing: a short run of every target, what earlier runs found, and proof that the targets can fail."""

from __future__ import annotations

import json
import operator
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from fuzz import run
from fuzz.base import Target, Violation
from fuzz.mutate import inputs
from fuzz.targets import TARGETS
from holdgate import canonical, gate, http1, http1_grammar, relay
from holdgate.adapters import dnswire
from holdgate.answer import DispatchError
from holdgate.cel import closures
from holdgate.content import form, multipart, strictjson, xml
from holdgate.errors import Outcome, Reason
from holdgate.gate import Decision
from holdgate.http1 import ServerReader
from holdgate.keys import PublicKey
from holdgate.surface import extract

HERE: Final = Path(__file__).resolve().parent
VECTORS: Final = sorted(path for path in (HERE / "vectors").rglob("*") if path.is_file())


def short_run(name: str) -> tuple[int, int]:
    """Executions, and how many inputs were accepted. A broken property is raised with its input."""
    target = TARGETS[name]
    accepted = 0
    for data in inputs(name, target, target.runs):
        try:
            accepted += target.run(data)
        except Exception as error:
            error.add_note(f"input of {name}: {data!r}")
            error.add_note(f"keep it as tests/fuzz/vectors/{name}/<what-is-wrong>")
            raise
    return target.runs, accepted


@pytest.mark.parametrize("name", TARGETS)
def test_short_run(name: str) -> None:
    runs, accepted = short_run(name)
    # Inputs that are all refused, or all accepted, would say little.
    assert 3 <= accepted <= runs - 3


@pytest.mark.parametrize("path", VECTORS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_what_was_found_stays_fixed(path: Path) -> None:
    TARGETS[path.parent.name].run(path.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
def test_inputs_are_the_same_in_every_run(name: str) -> None:
    first, second = (list(inputs(name, TARGETS[name], 60)) for _ in range(2))
    assert first == second and len(first) == 60
    count = len(list(TARGETS[name].seeds())) + 100
    assert len(set(inputs(name, TARGETS[name], count, 1)) - set(inputs(name, TARGETS[name], count))) > 20


# --- planted defects: each substitutes one lenient function, and the short run must notice ----------


def length_beats_coding(patch: pytest.MonkeyPatch) -> None:
    strict = ServerReader._read_meaning

    def lenient(self: ServerReader, headers: Any, *, named: bool) -> None:
        names = [name.lower() for name, _ in headers]
        both = b"content-length" in names and b"transfer-encoding" in names
        kept = tuple(row for row in headers if not both or row[0].lower() != b"transfer-encoding")
        strict(self, kept, named=named)

    patch.setattr(ServerReader, "_read_meaning", lenient)


def signed_lengths(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(http1, "_NUMBER", re.compile(rb"[+-]?[0-9]{1,19}"))


def a_cut_head_is_judged_at_once(patch: pytest.MonkeyPatch) -> None:
    strict = http1_grammar.HeadScanner._check_lines

    def hasty(self: Any, buffer: bytearray, stop: int) -> None:
        if buffer.endswith(b"\r"):
            raise http1_grammar.Malformed(http1_grammar.Flaw.SYNTAX, "a bare CR, or half a line end")
        strict(self, buffer, stop)

    patch.setattr(http1_grammar.HeadScanner, "_check_lines", hasty)


def chunks_without_their_end(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        http1_grammar.ChunkDecoder, "_line_end", lambda self, buffer, at, detail: min(at + 2, len(buffer))
    )


def last_key_wins(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(strictjson, "_record", dict)
    patch.setattr(strictjson, "_DECODER", json.JSONDecoder(parse_float=strictjson._number))


def lone_surrogates(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(strictjson, "_check_surrogates", lambda value: None)


def semicolons_and_bad_escapes(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(form, "_FORM", re.compile(rb"[\x20-\x7e]*"))


def text_without_white_space(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(xml._Builder, "text", lambda self, data: self._open[-1].texts.append(data.strip()))


def escapes_in_names(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(multipart, "_ESCAPE", re.compile(r"(?!)"))


def dot_segments(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(canonical, "_DOTS", frozenset())


def at_most_means_below(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(closures.COMPARE, "<=", operator.lt)


def any_signature(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(PublicKey, "verifies", lambda self, message, signature: True)


def any_owner(patch: pytest.MonkeyPatch) -> None:
    strict = dnswire._name
    patch.setattr(dnswire, "_name", lambda message, at: (b"", strict(message, at)[1]))


def everything_permitted(patch: pytest.MonkeyPatch) -> None:
    every = Decision(outcome=Outcome.PERMIT, reason=Reason.PERMIT_RULE, rules=("p/r",))
    patch.setattr(gate, "decide", lambda policies, inputs: every)


def denied_ones_permitted(patch: pytest.MonkeyPatch) -> None:
    strict = gate.decide

    def lenient(policies: Any, given: Any) -> Decision:
        decision = strict(policies, given)
        if decision.outcome is not Outcome.DENY:
            return decision
        return Decision(outcome=Outcome.PERMIT, reason=Reason.PERMIT_RULE, rules=decision.rules)

    patch.setattr(gate, "decide", lenient)


def a_step_that_raises(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(extract, "_exact", lambda value: {}[value])


def bodies_not_covered(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(extract, "check_body", lambda plan, exchange: None)


def forged_headers_pass(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(relay, "upstream_headers", lambda headers: headers)


def a_cut_stream_ends_well(patch: pytest.MonkeyPatch) -> None:
    strict = relay._Relayed.next

    async def lenient(self: Any) -> bytes:
        try:
            return await strict(self)
        except DispatchError:
            return b""

    patch.setattr(relay._Relayed, "next", lenient)


PLANTED: Final[list[tuple[str, Callable[[pytest.MonkeyPatch], None]]]] = [
    ("http1_server", length_beats_coding),
    ("http1_server", signed_lengths),
    ("http1_server", a_cut_head_is_judged_at_once),
    ("http1_server", chunks_without_their_end),
    ("http1_client", chunks_without_their_end),
    ("json", last_key_wins),
    ("json", lone_surrogates),
    ("form", semicolons_and_bad_escapes),
    ("xml", text_without_white_space),
    ("multipart", escapes_in_names),
    ("canonical", dot_segments),
    ("condition", at_most_means_below),
    ("receipt", any_signature),
    ("dns", any_owner),
    ("whole", everything_permitted),
    ("whole", denied_ones_permitted),
    ("whole", length_beats_coding),
    ("whole", last_key_wins),
    ("whole", bodies_not_covered),
    ("whole", a_step_that_raises),
    ("answered", forged_headers_pass),
    ("answered", a_cut_stream_ends_well),
]


@pytest.mark.parametrize(("name", "plant"), PLANTED, ids=[f"{n}-{p.__name__}" for n, p in PLANTED])
def test_a_planted_defect_is_found_by_the_short_run(
    name: str, plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    with pytest.raises(Violation):
        short_run(name)


# --- the long run -------------------------------------------------------------------------------------------


def refuses_brackets(data: bytes) -> bool:
    if b"[" in data:
        raise KeyError("a bracket")
    return True


BROKEN: Final = Target(run=refuses_brackets, seeds=lambda: [b"a", b"b[c]"])


def test_a_crash_is_kept_with_a_way_to_repeat_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run.seeded("broken", BROKEN, 20, tmp_path) == 1
    note, crash = sorted(tmp_path.iterdir(), key=lambda path: path.suffix, reverse=True)
    assert b"[" in crash.read_bytes()
    assert f"--replay {crash}" in note.read_text() and "KeyError: 'a bracket'" in note.read_text()
    monkeypatch.setattr(run, "_targets", lambda: {"broken": BROKEN})
    assert run.main(["--replay", str(crash)]) == 1
    assert f"{crash}: broken FAILS" in capsys.readouterr().out
    (tmp_path / "broken-fine").write_bytes(b"a")
    assert run.main(["--replay", str(tmp_path / "broken-fine")]) == 0
    assert run.main(["--replay", str(tmp_path / "other-crash")]) == 2


LIBFUZZER: Final = """\
#2\tINITED cov: 9 ft: 10 corp: 2/3b exec/s: 0 rss: 90Mb
#700\tNEW    cov: 12 ft: 14 corp: 5/20b lim: 4 exec/s: 0 rss: 90Mb
#1234\tDONE   cov: 12 ft: 14 corp: 5/20b lim: 4 exec/s: 0 rss: 90Mb
stat::number_of_executed_units: 1234
"""


def test_what_libfuzzer_says_becomes_a_row_and_a_note(tmp_path: Path) -> None:
    fine = run._result(LIBFUZZER, 0)
    assert run._row(fine) == "     1,234 executions  coverage 9 -> 12, corpus 5  ok"
    crash = tmp_path / "json-crash-1"
    broken = run._result(f"Violation: x\n{LIBFUZZER}artifact_prefix='a'; Test unit written to {crash}\n", 77)
    assert run._row(broken).endswith("  CRASH") and broken.crash == crash
    note = (tmp_path / "json-crash-1.txt").read_text()
    assert f"run.py --replay {crash}\n" in note and "Violation: x" in note
    # A run that ends badly and wrote nothing is no success either.
    assert "FAILED: exit 1\nno such module" in run._row(run._result("no such module", 1))


def test_a_target_that_is_not_there_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run.main(["nosuch"])
    assert ended.value.code == 2
    assert "there are: http1_server, " in capsys.readouterr().err


def long_run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(HERE / "run.py"), "media_type", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.slow
def test_the_long_run_without_atheris() -> None:
    done = long_run("--seconds", "1", "--seeded")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(
        r"^media_type +[1-9][0-9,]+ executions  ok\n1 targets, no crash$", done.stdout, re.MULTILINE
    )


@pytest.mark.slow
def test_the_long_run_is_guided_by_coverage() -> None:
    pytest.importorskip(
        "atheris", reason="atheris is not installed; `make fuzz` installs it where it has a wheel"
    )
    done = long_run("--seconds", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(
        r"executions  coverage [1-9][0-9]* -> [1-9][0-9]*, corpus [1-9][0-9]*  ok$", done.stdout, re.MULTILINE
    )


@pytest.mark.checkout
def test_what_the_long_run_installs_has_hashes_and_no_address() -> None:
    text = (HERE / "requirements.txt").read_text()
    assert re.search(r"^atheris==[0-9.]+ \\\n    --hash=sha256:", text, re.MULTILINE)
    assert re.search(r"://|--(extra-)?index-url|--find-links|file:", text) is None
