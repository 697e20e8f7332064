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

import re
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import accumulate
from operator import sub
from typing import Any, Final, NamedTuple

from .check import check
from .closures import Budget, Compiled, EvalFault, Fault, Frame, Run, logic
from .compile import Compiler
from .cost import Cost, cost_of, total
from .model import BOOL, MAX_DEPTH, MAX_SOURCE, PER_POLICY, CelError, Environment, Logic, Node, Type
from .parse import parse
from .shapes import Shape, Value, literals_of, places, shape, without

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
    cost: Cost  # of its worst case
    constant: object  # its value (or EvalError) when no input can change it, else None
    roots: tuple[str, ...]  # what the first slots of a frame hold
    run: Run
    conjuncts: tuple[tuple[int, int, Run], ...]  # of the top-level &&: where it stands in the source

    def frame(self, values: Mapping[str, Any], budget: Budget | None = None) -> Frame:
        """A frame for any program of the same environment."""
        return [*(values.get(name) for name in self.roots), None, None, budget or Budget()]

    def evaluate(self, frame: Frame) -> Any:
        """The value, or an EvalError."""
        return _evaluate(self.run, frame)


class _Part(NamedTuple):
    """One conjunct, compiled: what a rule needs of it, wherever it stands."""

    type: Type
    paths: frozenset[str]
    if_true: frozenset[str]
    cost: Cost
    compiled: Compiled
    start: int  # in the text of the conjunct
    end: int


class _Model(NamedTuple):
    """What is known of every conjunct of one shape, learned from the first of them."""

    node: Node
    part: _Part
    places: dict[int, tuple[int, int]]
    fixed: dict[int, Compiled | None]  # the parts of the tree without such a literal, by id
    made: dict[tuple[Value, ...], Compiled]  # by the values of the literals
    behind: int  # characters of the text after the part's end


class _Piece(NamedTuple):
    """One conjunct of the first rule of a shape."""

    part: _Part
    model: _Model | None  # None: no literal stands in it
    first: int  # of its literals, and the first behind them, among those of the rule
    last: int
    start: int  # in the text of the rule
    end: int
    before_start: int  # how many literals of the rule stand there
    before_end: int


class _Known(NamedTuple):
    """What is known of every rule of one shape."""

    program: Program  # of the first
    pieces: tuple[_Piece, ...]
    lengths: list[int]  # of its literals


def compile_program(source: str, environment: Environment, *, expect: Type | None = None) -> Program:
    """Parse, check and compile one expression. Raises CelError."""
    shaped = shape(source) if len(source) <= MAX_SOURCE else None
    if shaped is not None:
        kept = environment.own if any([root in source for root in PER_POLICY]) else environment.shared
        known = kept.get((shaped.shape, _Known))
        if isinstance(known, _Known):
            if expect is not None and known.program.type != expect:
                raise _unexpected(known.program.type, expect, source, known.pieces[0].start)
            return _alike(source, shaped, known, environment)
    try:
        parts = _parts(source, environment)
    except CelError:
        parts = None  # said again below, with its place in the whole
    found = parts or [(0, part) for part in _whole(source, environment)]
    first = found[0][1]
    kind = first.type if len(found) == 1 else BOOL
    if expect is not None and kind != expect:
        raise _unexpected(kind, expect, source, first.start)
    program = _program(
        source,
        environment,
        kind,
        first.paths.union(*[part.paths for _, part in found]),
        total([part.cost for _, part in found]),
        [(at + part.start, at + part.end, part.compiled) for at, part in found],
    )
    if shaped is not None and parts is not None:
        pieces = _learned(source, shaped, parts, environment)
        if pieces is not None:
            kept[shaped.shape, _Known] = _Known(program, pieces, shaped.lengths)
    return program


def _unexpected(kind: Type, expect: Type, source: str, start: int) -> CelError:
    return CelError(f"the whole expression must be {expect}, found {kind}", source, start)


def _program(
    source: str,
    environment: Environment,
    kind: Type,
    paths: frozenset[str],
    cost: Cost,
    parts: list[tuple[int, int, Compiled]],
) -> Program:
    # One program of the whole rule, not one for each conjunct: `error && false` is false.
    compiled = parts[0][2] if len(parts) == 1 else logic(True, [part for _, _, part in parts])
    program = Program(
        source=source,
        type=kind,
        paths=paths,
        cost=cost,
        constant=compiled.value,
        roots=tuple(environment.slots),
        run=compiled.run,
        conjuncts=tuple([(start, end, part.run) for start, end, part in parts]),
    )
    if not compiled.constant and all(path.startswith("constants.") for path in paths):
        # Nothing but constants, yet not folded: exists/all over literals, or a certain failure.
        return replace(program, constant=program.evaluate(program.frame({})))
    return program


def _alike(source: str, shaped: Shape, known: _Known, environment: Environment) -> Program:
    """A rule of a shape that is known: its literals, in the trees of the first one."""
    # How far what stands behind so many literals has moved.
    shifts = [0, *accumulate(map(sub, shaped.lengths, known.lengths))]
    values = shaped.values
    parts = []
    for part, model, first, last, start, end, before_start, before_end in known.pieces:
        compiled = part.compiled if model is None else _made(model, tuple(values[first:last]), environment)
        parts.append((start + shifts[before_start], end + shifts[before_end], compiled))
    program = known.program
    return _program(source, environment, program.type, program.paths, program.cost, parts)


def _made(model: _Model, values: tuple[Value, ...], environment: Environment) -> Compiled:
    """A conjunct of this shape with these literals."""
    compiled = model.made.get(values)
    if compiled is None:
        inserted = {at: sign * values[number] for at, (number, sign) in model.places.items()}
        compiled = Compiler(environment, inserted, model.fixed).compile(model.node)
        model.made[values] = compiled
    return compiled


def _learned(
    source: str, shaped: Shape, parts: list[tuple[int, _Part]], environment: Environment
) -> tuple[_Piece, ...] | None:
    """The conjuncts of the first rule of a shape; None where one of them is no model of others."""
    texts = [text for _, text in _pieces(source) or ()]
    ends = [match.end() for match in literals_of(source)]
    pieces: list[_Piece] = []
    present: frozenset[str] = frozenset()
    first = 0
    for (at, part), text in zip(parts, texts, strict=True):
        model, last = None, first
        inner = shape(text)
        if inner is not None:
            known = environment.own if any([root in text for root in PER_POLICY]) else environment.shared
            found = known.get((inner.shape, present, _Model))
            if not isinstance(found, _Model):
                return None
            model, last = found, first + len(inner.values)
        start, end = at + part.start, at + part.end
        behind = bisect_right(ends, start), bisect_right(ends, end)
        pieces.append(_Piece(part, model, first, last, start, end, *behind))
        present, first = present | part.if_true, last
    return tuple(pieces) if first == len(shaped.values) else None


def _whole(source: str, environment: Environment) -> list[_Part]:
    node = parse(source)
    checked = check(node, environment, source)
    compiler = Compiler(environment)
    conjunction = isinstance(node, Logic) and node.op == "&&"
    return [
        _Part(
            type=checked.type,
            paths=checked.paths,
            if_true=checked.if_true,
            cost=cost_of(part, environment),
            compiled=compiler.compile(part),
            start=part.start,
            end=part.end,
        )
        for part in (node.parts if isinstance(node, Logic) and conjunction else (node,))
    ]


# Where conjuncts end: && outside brackets and strings. With || or ?: beside it, it binds otherwise.
_BREAKS: Final = re.compile(r""""(?:[^"\\\n\r]|\\.)*+"|'(?:[^'\\\n\r]|\\.)*+'|&&|\|\||[()\[\]?"'/]""")


def _parts(source: str, environment: Environment) -> list[tuple[int, _Part]] | None:
    """The conjuncts of `source`, and where the text of each begins; None: read it as a whole.

    Rules of one bundle repeat each other's conjuncts, or all of them but the literals, and reading text is
    what loading takes its time for. A conjunct means the same in every rule where the same fields are known
    to be present, so these are the key, with the text or with its shape (shapes.py). The result is what
    _whole() gives (tests/test_cel_evaluate.py compares them).
    """
    pieces = _pieces(source)
    if pieces is None or len(source) > MAX_SOURCE:
        return None
    found: list[tuple[int, _Part]] = []
    present: frozenset[str] = frozenset()
    roots = [root for root in PER_POLICY if root in source]
    for start, text in pieces:
        known = environment.own if roots and any([root in text for root in roots]) else environment.shared
        part = known.get((text, present))
        if not isinstance(part, _Part):
            part = _part(text, present, environment, known)
            if part is None:
                return None
            known[text, present] = part
        if part.if_true:
            present |= part.if_true
        found.append((start, part))
    return found


def _part(
    text: str, present: frozenset[str], environment: Environment, known: dict[object, object]
) -> _Part | None:
    """One conjunct, from its text or from another of its shape. Raises CelError."""
    shaped = shape(text)
    if shaped is not None:
        model = known.get((shaped.shape, present, _Model))
        if isinstance(model, _Model):
            compiled = _made(model, tuple(shaped.values), environment)
            kind, paths, if_true, cost, _, start, _ = model.part
            return _Part(kind, paths, if_true, cost, compiled, start, len(text) - model.behind)
    node = parse(text)
    checked = check(node, environment, text, present)
    if checked.type != BOOL or node.depth >= MAX_DEPTH:
        return None
    compiled = Compiler(environment).compile(node)
    cost = cost_of(node, environment)
    part = _Part(checked.type, checked.paths, checked.if_true, cost, compiled, node.start, node.end)
    where = None if shaped is None else places(node, shaped.values)
    if shaped is not None and where is not None:
        fixed = dict.fromkeys(map(id, without(node, where)))
        known[shaped.shape, present, _Model] = _Model(node, part, where, fixed, {}, len(text) - node.end)
    return part


def _pieces(source: str) -> list[tuple[int, str]] | None:
    """Offset and text of every conjunct; None where && is not the outermost operator."""
    return _easy_pieces(source) or _read_pieces(source)


def _easy_pieces(source: str) -> list[tuple[int, str]] | None:
    """The same by counting alone, where nothing could be miscounted; None where something could.

    Even numbers of the one kind of quote: no piece begins inside a text. A bracket in a text, closed by one
    outside it, leaves a piece that does not parse, and the source is then read as a whole.
    """
    if "'" in source or "\\" in source or "||" in source or "?" in source:
        return None
    found: list[tuple[int, str]] = []
    begin = 0
    for text in source.split("&&"):
        count = text.count
        if count('"') % 2 or count("(") != count(")") or count("[") != count("]"):
            return None
        found.append((begin, text))
        begin += len(text) + 2
    return found if len(found) > 1 else None


def _read_pieces(source: str) -> list[tuple[int, str]] | None:
    """The same for any text, bracket by bracket."""
    found: list[tuple[int, str]] = []
    begin = depth = 0
    for match in _BREAKS.finditer(source):
        sign = match[0]
        if sign in ("(", "["):
            depth += 1
        elif sign in (")", "]"):
            depth -= 1
        elif len(sign) == 1 or (depth == 0 and sign == "||"):  # an open quote, a comment, ?:
            return None
        elif depth == 0 and sign == "&&":
            found.append((begin, source[begin : match.start()]))
            begin = match.end()
    if depth != 0 or not found:
        return None
    found.append((begin, source[begin:]))
    return found


def explain(program: Program, frame: Frame) -> tuple[Conjunct, ...]:
    """Every top-level conjunct with its own value. The rule's result is evaluate()'s, not theirs:
    a conjunct that fails alone may not matter beside one that is false."""
    return tuple(
        Conjunct(text=" ".join(program.source[start:end].split()), value=_evaluate(run, frame))
        for start, end, run in program.conjuncts
    )


def _evaluate(run: Run, frame: Frame) -> Any:
    try:
        return run(frame)
    except EvalFault as fault:
        return EvalError(fault=fault.fault, detail=fault.detail)
    except Exception as error:  # noqa: BLE001 - V1: a value that no checker saw must not become a crash
        return EvalError(fault=Fault.INTERNAL, detail=type(error).__name__)
