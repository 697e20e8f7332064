"""What the rates of `make bench BENCH=--policies` rest on, counted instead of timed."""

from __future__ import annotations

import sys
from collections import Counter as Tally
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent / "bench"))  # a folder of scripts, not a package

import backtests
import policies

from holdgate import gate, pair
from holdgate.cel import evaluate
from holdgate.policy import load_policies
from policy_fakes import FakeIndex

INDEX = FakeIndex({"payments.refund": {f"pay.Refund{number}": policies.REFUND for number in range(5)}})


def calls(call: Callable[[], object]) -> int:
    """Calls of functions, Python's and C's: the same in every run, and what most of the time goes by."""
    found = 0

    def count(_frame: Any, event: str, _arg: Any) -> None:
        nonlocal found
        found += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        call()
    finally:
        sys.setprofile(None)
    return found


class Refunds:
    """Ledgers of refunds decided under one policy, and another to try."""

    def __init__(self, folder: Path, before: str, after: str) -> None:
        self.old = backtests.bundle_of(folder / "old", before)
        self.new = backtests.bundle_of(folder / "new", after)
        self._folder = folder

    def ledger(self, records: int) -> Path:
        folder = self._folder / str(records)
        folder.mkdir()
        backtests.made_ledger(folder, self.old, records)
        return folder


@pytest.mark.parametrize(("before", "after"), backtests.BACKTESTS.values(), ids=list(backtests.BACKTESTS))
def test_a_backtest_makes_at_most_as_many_calls_as_loops(tmp_path: Path, before: str, after: str) -> None:
    refunds = Refunds(tmp_path, before, after)
    few, many = refunds.ledger(20), refunds.ledger(120)
    spent = [calls(lambda: backtests.ours(folder, refunds.old, refunds.new)) for folder in (few, many)]  # noqa: B023
    bare = [calls(backtests.bare_loops(folder, refunds.old.policies)["records"]) for folder in (few, many)]
    # Measured: 1.05 to 1.55 (counters twice, and every rule another). A call of ours costs more than the
    # loop's: what the bench says of the rate is in tests/bench/README.md.
    assert spent[1] - spent[0] <= 1.6 * (bare[1] - bare[0])


def counted(monkeypatch: pytest.MonkeyPatch, tally: Tally[str], module: Any, name: str) -> None:
    real = getattr(module, name)

    def count(*args: Any, **named: Any) -> Any:
        tally[name] += 1
        return real(*args, **named)

    monkeypatch.setattr(module, name, count)


def test_what_both_bundles_say_is_evaluated_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One frame for each record, at most 7 parts of rules for 2 x 5 rules; the gate itself is not asked."""
    tally: Tally[str] = Tally()
    refunds = Refunds(tmp_path, *backtests.BACKTESTS["5 rules, other counter limit"])
    ledger = refunds.ledger(50)
    for module, name in ((pair, "shared_frame"), (pair, "action_frame"), (gate, "decide")):
        counted(monkeypatch, tally, module, name)
    evaluated = pair._evaluated

    def evaluating(parts: Any, *rest: Any) -> int:
        tally["parts"] += len(parts)
        return evaluated(parts, *rest)

    monkeypatch.setattr(pair, "_evaluated", evaluating)
    report = backtests.ours(ledger, refunds.old, refunds.new)
    assert report.replayed == 50
    # No more than each part once; what stands behind one that is false is not asked at all.
    assert tally.pop("parts") < 50 * len(PARTS_OF_BOTH)
    # Until something comes out otherwise, the counters built again are the recorded ones.
    assert tally == {"shared_frame": 50, "action_frame": 50}


PARTS_OF_BOTH = ("small-refund", "its limit", "its new limit", "too-large", "nobody", "ops", "ask")


def test_a_condition_is_parsed_once_for_all_of_its_shape(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """500 rules, no literal twice; of 9 conjuncts, one names a constant, which every file has its own of."""
    tally: Tally[str] = Tally()
    for name in ("parse", "check", "cost_of"):
        counted(monkeypatch, tally, evaluate, name)
    files = policies.written(
        tmp_path / "x", policies.BUNDLES["long, nothing repeated"], INDEX.operations("payments.refund")
    )
    loaded = load_policies(files, INDEX)
    assert len(loaded.rules) == 500
    assert tally == dict.fromkeys(("parse", "check", "cost_of"), 5 * 8 + 50)


def test_loading_makes_few_calls(tmp_path: Path) -> None:
    # Measured for each of 500 rules, with its share of reading and learning: 208, 413, 516.
    most = {"short": 230, "long, half of it repeated": 450, "long, nothing repeated": 560}
    for name, limit in most.items():
        files = policies.written(tmp_path / name, policies.BUNDLES[name], INDEX.operations("payments.refund"))
        assert calls(lambda: load_policies(files, INDEX)) <= 500 * limit, name  # noqa: B023


def test_a_decision_asks_the_rules_of_its_operation_alone(tmp_path: Path) -> None:
    """50 rules, 5 apply: as many calls as where there are 5."""
    few, many = (policies.deciding_sets(tmp_path / str(number), number) for number in (1, 10))
    spent = [calls(lambda: gate.decide(made, inputs)) for made, inputs in (few, many)]  # noqa: B023
    assert spent[0] == spent[1] <= 165
