"""The text of one expression becomes a Program; a Program and a frame of values give one value.

Semantics are CEL's: int64 that errors instead of wrapping, `/` and `%` towards zero, `&&` and `||`
that absorb errors (`error && false` is false, in either order), exists/all likewise. An error is a
value, EvalError: whoever asked must look at it. There is no eval() or exec().

Invariants (tests/test_cel_evaluate.py, V2 in tests/test_cel_differential.py):
  V1  evaluate() is total: a value of the checked type or an EvalError, never an exception.
  V2  The result is the one that Google's CEL gives for the same text and values.
  V3  One Budget allows at most MAX_ITERATIONS steps of exists/all; every further one is an error.
  V4  No result depends on hash order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from .check import check
from .closures import Budget, EvalFault, Fault, Frame, Run, logic
from .compile import Compiler
from .model import CelError, Environment, Logic, Type
from .parse import parse

__all__ = ["Budget", "Conjunct", "EvalError", "Fault", "Frame", "Program", "compile_program", "explain"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalError:
    """Why there is no value. `detail` is for operators."""

    fault: Fault
    detail: str

    def __str__(self) -> str:
        return f"{self.fault}: {self.detail}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Conjunct:
    """One part of a rule's top-level `&&`, evaluated alone, for traces."""

    text: str
    value: object  # the value, or an EvalError


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """One compiled expression. Call evaluate(); `run` and `conjuncts` may raise EvalFault."""

    source: str
    type: Type
    paths: frozenset[str]  # inputs and constants that it names: "params.amount"
    constant: object  # its value (or EvalError) when no input can change it, else None
    roots: tuple[str, ...]  # what the first slots of a frame hold
    run: Run
    conjuncts: tuple[tuple[str, Run], ...]

    def frame(self, values: Mapping[str, Any], budget: Budget | None = None) -> Frame:
        """A frame for any program of the same environment."""
        return [*(values.get(name) for name in self.roots), None, None, budget or Budget()]

    def evaluate(self, frame: Frame) -> Any:
        """The value, or an EvalError."""
        return _evaluate(self.run, frame)


def compile_program(source: str, environment: Environment, *, expect: Type | None = None) -> Program:
    """Parse, check and compile one expression. Raises CelError."""
    node = parse(source)
    checked = check(node, environment, source)
    if expect is not None and checked.type != expect:
        raise CelError(f"the whole expression must be {expect}, found {checked.type}", source, node.start)
    compiler = Compiler(environment)
    parts = node.parts if isinstance(node, Logic) and node.op == "&&" else (node,)
    pieces = [compiler.compile(part) for part in parts]
    # One program of the whole rule, not one for each conjunct: `error && false` is false.
    compiled = pieces[0] if len(pieces) == 1 else logic(True, pieces)
    texts = (" ".join(source[part.start : part.end].split()) for part in parts)
    slots = environment.slots()
    program = Program(
        source=source,
        type=checked.type,
        paths=checked.paths,
        constant=compiled.value,
        roots=tuple(slots),
        run=compiled.run,
        conjuncts=tuple(zip(texts, (piece.run for piece in pieces), strict=True)),
    )
    if not compiled.constant and all(path.startswith("constants.") for path in checked.paths):
        # Nothing but constants, yet not folded: exists/all over literals, or a certain failure.
        return replace(program, constant=program.evaluate(program.frame({})))
    return program


def explain(program: Program, frame: Frame) -> tuple[Conjunct, ...]:
    """Every top-level conjunct with its own value. The rule's result is evaluate()'s, not theirs:
    a conjunct that fails alone may not matter beside one that is false."""
    return tuple(Conjunct(text=text, value=_evaluate(run, frame)) for text, run in program.conjuncts)


def _evaluate(run: Run, frame: Frame) -> Any:
    try:
        return run(frame)
    except EvalFault as fault:
        return EvalError(fault=fault.fault, detail=fault.detail)
    except Exception as error:  # noqa: BLE001 - V1: a value that no checker saw must not become a crash
        return EvalError(fault=Fault.INTERNAL, detail=type(error).__name__)
