"""One recorded input and the policies that decided it become the smallest changes that decide otherwise.

For the operator's view only: an agent that learns where limits are learns how to stay below them. No solver:
candidates come from what the applicable rules compare with (limits and their neighbours, members of lists,
presence, approvals), and every one that is reported was decided again with the whole policy set. Pairs are
tried where no single change gives a PERMIT. Nothing found does not mean that there is nothing.

Invariants (tests/test_flips.py):
  FL1  Every flip that is reported gives its outcome when the changed input is decided.
  FL2  A flip of two changes is reported only where neither of them alone gives its outcome.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Final

from .cel.check import path_of
from .cel.closures import EvalFault
from .cel.compile import Compiler
from .cel.model import Binary, Call, Has, Ident, Literal, Node, Quantifier, Select, parts_of
from .cel.parse import parse
from .errors import Outcome
from .gate import Decision, decide
from .policy_model import Policy, PolicySet, Rule

__all__ = ["Change", "Flip", "flips"]

_MAX_PAIRS: Final = 2000
_MAX_FLIPS: Final = 8
_COMPARISONS: Final = frozenset(("==", "!=", "<", "<=", ">", ">="))
# What an agent or a person could bring about. The operation and the digest are the request itself.
_CHANGEABLE: Final = ("params", "agent", "clock", "counters", "facts")
_HOUR_S: Final = 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One value of the input, before and after. None: absent."""

    action: int  # position; -1 where it is the same for all actions
    path: str  # as conditions name it
    before: Any
    after: Any

    def __str__(self) -> str:
        if self.after is None:
            return f"{self.path} were absent"
        was = "absent" if self.before is None else repr(self.before)
        return f"{self.path} were {self.after!r} (is {was})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Flip:
    changes: tuple[Change, ...]
    decision: Decision


def flips(policies: PolicySet, inputs: Mapping[str, Any]) -> tuple[Flip, ...]:
    """The smallest changes found that give another outcome, PERMITs first. Empty when none was found."""
    now = decide(policies, inputs).outcome
    candidates = _candidates(policies, inputs)
    found = list(_tried(policies, inputs, now, ((one,) for one in candidates)))
    if not found or (now is not Outcome.PERMIT and all(_loses(flip) for flip in found)):
        alone = {flip.decision.outcome for flip in found}
        pairs = ((one, two) for one, two in combinations(candidates, 2) if one.path != two.path)
        bounded = (pair for pair, _ in zip(pairs, range(_MAX_PAIRS), strict=False))
        more = _tried(policies, inputs, now, bounded)
        found.extend(flip for flip in more if flip.decision.outcome not in alone)
    found.sort(key=_size)
    # Of one set of paths and one outcome the nearest is enough: 10000 says it, 9999 adds nothing.
    nearest: dict[tuple[object, ...], Flip] = {}
    for flip in found:
        paths = tuple((change.action, change.path) for change in flip.changes)
        nearest.setdefault((paths, flip.decision.outcome), flip)
    return tuple(nearest.values())[:_MAX_FLIPS]


def _loses(flip: Flip) -> bool:
    return flip.decision.outcome is not Outcome.PERMIT


def _size(flip: Flip) -> tuple[int, bool, int, str]:
    distance = sum(
        abs(change.after - change.before)
        for change in flip.changes
        if type(change.after) is int and type(change.before) is int
    )
    return len(flip.changes), _loses(flip), distance, str(flip.changes)


def _tried(
    policies: PolicySet, inputs: Mapping[str, Any], now: Outcome, sets: Iterable[tuple[Change, ...]]
) -> Iterator[Flip]:
    for changes in sets:
        changed: Any = inputs
        for change in changes:
            changed = _changed(changed, change)
        decision = decide(policies, changed)
        if decision.outcome is not now:
            yield Flip(changes=changes, decision=decision)


# --- changing an input ------------------------------------------------------------------------


def _changed(inputs: Mapping[str, Any], change: Change) -> dict[str, Any]:
    """A copy along the path; the rest is shared."""
    if change.action < 0:
        return _set(inputs, change.path.split("."), change.after)
    actions = list(inputs["actions"])
    actions[change.action] = _set(actions[change.action], change.path.split("."), change.after)
    return {**inputs, "actions": actions}


def _set(record: Mapping[str, Any], path: list[str], value: Any) -> dict[str, Any]:
    copy = dict(record)
    if len(path) > 1:
        inner = copy.get(path[0])
        copy[path[0]] = _set(inner if isinstance(inner, dict) else {}, path[1:], value)
    elif value is None:
        copy.pop(path[0], None)
    else:
        copy[path[0]] = value
    return copy


def _get(record: Any, path: str) -> Any:
    for name in path.split("."):
        if not isinstance(record, dict) or name not in record:
            return None
        record = record[name]
    return record


# --- candidates -------------------------------------------------------------------------------


def _candidates(policies: PolicySet, inputs: Mapping[str, Any]) -> list[Change]:
    found: dict[str, Change] = {}
    owners = {rule.name: policy for policy in policies.policies for rule in policy.rules}
    for number, action in enumerate(inputs.get("actions", [])):
        applicable = policies.table.get((action.get("surface"), action.get("operation")))
        for rule in applicable.rules if applicable is not None else ():
            for change in _Reader(owners[rule.name], rule, inputs, number).changes():
                if change.before != change.after:
                    found.setdefault(f"{change.action} {change.path} {change.after!r}", change)
    return list(found.values())


class _Reader:
    """What one rule compares the values of one action with."""

    def __init__(self, policy: Policy, rule: Rule, inputs: Mapping[str, Any], number: int) -> None:
        action = inputs["actions"][number]
        self._inputs, self._number = inputs, number
        self._compiler = Compiler(policy.environment)
        values = {**inputs, **action, "action": action}
        self._frame = rule.program.frame(values)
        self._tree = parse(rule.program.source)

    def changes(self) -> Iterator[Change]:
        for node in _all(self._tree):
            if isinstance(node, Binary):
                yield from self._comparison(node)
            elif isinstance(node, Has):
                yield from self._presence(node)
            elif isinstance(node, Call) and node.function != "size":
                yield from self._text(node)
            elif isinstance(node, Quantifier):
                yield from self._loop(node)
            elif isinstance(node, Select) and (path := self._path(node)) is not None:
                if isinstance(self._before(path), bool):
                    yield self._change(path, not self._before(path))

    def _comparison(self, node: Binary) -> Iterator[Change]:
        if node.op == "in":
            yield from self._membership(node)
            return
        if node.op not in _COMPARISONS:
            return
        for here, there in ((node.left, node.right), (node.right, node.left)):
            limit = self._value(there)
            if limit is None:
                continue
            if type(limit) is int:
                yield from self._numbers(here, limit)
            elif (path := self._path(here)) is not None and isinstance(limit, str):
                yield self._change(path, limit)
                yield self._change(path, limit + "-other")

    def _numbers(self, node: Node, limit: int) -> Iterator[Change]:
        """Every input of `node` moved so that the whole of it comes to the limit, or beside it."""
        now = self._value(node)
        for part in _all(node):
            path = self._path(part)
            before = None if path is None else self._before(path)
            if path is None or isinstance(before, bool | str | list | dict):
                continue
            for target in (limit - 1, limit, limit + 1):
                if type(before) is int and type(now) is int:
                    yield self._change(path, before + target - now)
                    yield self._change(path, before - target + now)
                elif part is node:
                    yield self._change(path, target)

    def _membership(self, node: Binary) -> Iterator[Change]:
        path, members = self._path(node.left), self._value(node.right)
        if path is not None and members is not None:
            for member in list(members)[:4]:
                yield self._change(path, member)
            if members and all(isinstance(member, str) for member in members):
                yield self._change(path, min(members) + "-other")
        path, item = self._path(node.right), self._value(node.left)
        if path is not None and item is not None:
            before = self._before(path)
            items = before if isinstance(before, list) else []
            yield self._change(path, [*items, item] if item not in items else [x for x in items if x != item])

    def _presence(self, node: Has) -> Iterator[Change]:
        path = self._path(node.target)
        if path is None:
            return
        # Adding one means choosing a value: the comparisons of the same rule offer theirs.
        if self._before(path) is not None:
            yield self._change(path, None)

    def _text(self, node: Call) -> Iterator[Change]:
        path, part = self._path(node.args[0]), self._value(node.args[1])
        if path is not None and isinstance(part, str):
            yield self._change(path, part)
            before = self._before(path)
            yield self._change(
                path, before.replace(part, "") if isinstance(before, str) and part else "other"
            )

    def _loop(self, node: Quantifier) -> Iterator[Change]:
        literals = [
            inner.value
            for inner in _all(node.predicate)
            if isinstance(inner, Literal) and isinstance(inner.value, str)
        ]
        if isinstance(node.over, Ident) and node.over.name == "approvals":
            yield from self._approvals(literals)
        elif (path := self._path(node.over)) is not None:
            before = self._before(path)
            for literal in literals[:4]:
                yield self._change(path, [*(before or []), literal])
            yield self._change(path, [])

    def _approvals(self, roles: list[str]) -> Iterator[Change]:
        before = self._inputs.get("approvals", [])
        if before:
            yield Change(action=-1, path="approvals", before=before, after=[])
        for role in roles[:4]:
            approval = {
                "id": "approval-1",
                "role": role,
                "approver": "approver-1",
                "request_digest": self._inputs["request"]["digest"],
                "expires_s": self._inputs["clock"]["now_s"] + _HOUR_S,
            }
            yield Change(action=-1, path="approvals", before=before, after=[*before, approval])

    # --- values ---

    def _path(self, node: Node) -> str | None:
        path = path_of(node)
        root = "" if path is None else path.partition(".")[0]
        return path if root in _CHANGEABLE and path != root else None

    def _value(self, node: Node) -> Any:
        """What `node` comes to now; None where it cannot be evaluated here."""
        try:
            return self._compiler.compile(node).run(self._frame)
        except (EvalFault, LookupError, TypeError):
            return None

    def _before(self, path: str) -> Any:
        return _get(self._owner(path), path)

    def _owner(self, path: str) -> Any:
        common = path.startswith(("agent.", "clock."))
        return self._inputs if common else self._inputs["actions"][self._number]

    def _change(self, path: str, after: Any) -> Change:
        common = path.startswith(("agent.", "clock."))
        return Change(
            action=-1 if common else self._number, path=path, before=self._before(path), after=after
        )


def _all(node: Node) -> Iterator[Node]:
    yield node
    for part in parts_of(node):
        yield from _all(part)
