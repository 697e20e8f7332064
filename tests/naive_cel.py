"""A second evaluator of cel-strict/1: walks the tree, knows nothing of closures, and counts what it does.

Slow and plain on purpose, and written from CEL's language definition rather than from our compiler: it
answers what the compiled rules answer (test_properties.py) and never takes more than cost.py says.
"""

from __future__ import annotations

from typing import Any

from holdgate.cel import model as m


class Failed(Exception):
    """An error of evaluation: overflow, division by zero, an absent field or key."""


class Naive:
    def __init__(self, roots: dict[str, Any]) -> None:
        self.names = dict(roots)
        self.steps = 0
        self.turns = 0

    def value(self, node: m.Node) -> Any:
        self.steps += 1
        if isinstance(node, m.Literal):
            return node.value
        if isinstance(node, m.Ident):
            return self.names[node.name]
        if isinstance(node, m.Select):
            return self._field(self.value(node.operand), node.field)
        if isinstance(node, m.Has):
            return node.target.field in self.value(node.target.operand)
        if isinstance(node, m.Index):
            return self._field(self.value(node.operand), self.value(node.key))
        if isinstance(node, m.ListLiteral):
            return [self.value(item) for item in node.items]
        if isinstance(node, m.Unary):
            inner = self.value(node.operand)
            return not inner if node.op == "!" else _fits(-inner)
        if isinstance(node, m.Binary):
            return _binary(node.op, self.value(node.left), self.value(node.right))
        if isinstance(node, m.Logic):
            return self._absorbing(
                (lambda part=part: self.value(part) for part in node.parts), node.op == "||"
            )
        if isinstance(node, m.Conditional):
            return self.value(node.then if self.value(node.test) else node.other)
        if isinstance(node, m.Call):
            return self._call(node)
        return self._loop(node)

    def _field(self, owner: Any, name: str) -> Any:
        if name not in owner:
            raise Failed(f"{name} is absent")
        return owner[name]

    def _absorbing(self, parts: Any, settles: bool) -> bool:
        """True settles ||, false settles &&; an error counts only when nothing settles."""
        error: Failed | None = None
        for part in parts:
            try:
                if part() is settles:
                    return settles
            except Failed as failed:
                error = error or failed
        if error is not None:
            raise error
        return not settles

    def _loop(self, node: m.Quantifier) -> bool:
        def turn(item: Any) -> bool:
            self.turns += 1
            self.steps += 1
            self.names[node.variable] = item
            return bool(self.value(node.predicate))

        items = self.value(node.over)
        return self._absorbing((lambda item=item: turn(item) for item in items), node.function == "exists")

    def _call(self, node: m.Call) -> Any:
        values = [self.value(arg) for arg in node.args]
        if node.function == "size":
            return len(values[0])
        text, part = values
        return {
            "startsWith": text[: len(part)] == part,
            "endsWith": part == "" or text[-len(part) :] == part,
            "contains": any(text[at : at + len(part)] == part for at in range(len(text) + 1)),
        }[node.function]


def _binary(op: str, left: Any, right: Any) -> Any:
    if op == "in":
        return any(type(item) is type(left) and item == left for item in right)
    if op in ("==", "!="):
        return (left == right) is (op == "==")
    if op in ("<", "<=", ">", ">="):
        below, equal = left < right, left == right
        return {"<": below, "<=": below or equal, ">": not below and not equal, ">=": not below}[op]
    if op in ("/", "%"):
        if right == 0:
            raise Failed("division by zero")
        quotient = abs(left) // abs(right) * (1 if (left < 0) == (right < 0) else -1)
        _fits(quotient)
        return quotient if op == "/" else left - right * quotient
    return _fits({"+": left + right, "-": left - right, "*": left * right}[op])


def _fits(value: int) -> int:
    if not -(2**63) <= value < 2**63:
        raise Failed("overflow")
    return value


def decided(rules: list[tuple[str, m.Node]], roots: dict[str, Any]) -> tuple[str, str]:
    """(outcome, reason) of one action under (effect, condition) rules, by the table of policies/README.md."""
    true: set[str] = set()
    failed = False
    for effect, node in rules:
        try:
            if Naive(roots).value(node):
                true.add(effect)
        except Failed:
            failed = True
    if "deny" in true:
        return "DENY", "deny_rule"
    if failed:
        return "SILENCE", "rule_error"
    if "permit" in true:
        return "PERMIT", "permit_rule"
    if "review" in true:
        return "SILENCE", "approval_pending"
    return "SILENCE", "no_rule_matched"
