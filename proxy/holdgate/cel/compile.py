"""A checked syntax tree becomes one Python closure over a frame (closures.py has the parts).

Knows names and scopes only: which slot of a frame a name has, which parts are constant.

Invariants: V1 to V4 of evaluate.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from .closures import (
    ARITHMETIC,
    CALLS,
    COMPARE,
    Compiled,
    choose,
    compare,
    compare_field,
    constant_value,
    folded,
    is_in,
    load_field,
    load_index,
    load_root_field,
    load_slot,
    logic,
    make_list,
    minus,
    negation,
    quantified,
)
from .model import (
    MAX_COMPREHENSIONS,
    Binary,
    Call,
    Conditional,
    Environment,
    Has,
    Ident,
    Index,
    ListLiteral,
    Literal,
    Logic,
    Node,
    Quantifier,
    Select,
    Unary,
)

__all__ = ["Compiler"]


_AS_WRITTEN: Final[Mapping[int, int | str]] = {}
_NEW: Final = Compiled(lambda _frame: None)


class Compiler:
    """Knows which slot of a frame each root has, and which variables are in scope."""

    def __init__(
        self,
        environment: Environment,
        values: Mapping[int, int | str] = _AS_WRITTEN,
        fixed: dict[int, Compiled | None] | None = None,
    ) -> None:
        """`values`: of literals, by where they start, that differ from those in the tree. `fixed`: nodes, by
        id, that hold none of these, and what they were compiled to before."""
        self._values = values
        self._fixed = {} if fixed is None else fixed
        self._slots = environment.slots
        self._constants = environment.constants
        self._variables: dict[str, int] = {}
        self._budget_slot = len(self._slots) + MAX_COMPREHENSIONS

    def compile(self, node: Node) -> Compiled:
        made = self._fixed.get(id(node), _NEW)
        if made is None:
            made = self._fixed[id(node)] = _COMPILES[type(node)](self, node)
        return _COMPILES[type(node)](self, node) if made is _NEW else made

    def _literal(self, node: Literal) -> Compiled:
        return constant_value(self._values.get(node.start, node.value))

    def _index(self, node: Index) -> Compiled:
        return folded(load_index, self.compile(node.operand), self.compile(node.key))

    def _list(self, node: ListLiteral) -> Compiled:
        return make_list([self.compile(item) for item in node.items])

    def _unary(self, node: Unary) -> Compiled:
        return folded(negation if node.op == "!" else minus, self.compile(node.operand))

    def _logic(self, node: Logic) -> Compiled:
        return logic(node.op == "&&", [self.compile(part) for part in node.parts])

    def _conditional(self, node: Conditional) -> Compiled:
        return folded(choose, self.compile(node.test), self.compile(node.then), self.compile(node.other))

    def _call(self, node: Call) -> Compiled:
        return folded(CALLS[node.function], *(self.compile(arg) for arg in node.args))

    # --- names ---

    def _ident(self, node: Ident) -> Compiled:
        slot = self._variables.get(node.name)
        if slot is None:
            slot = self._slots[node.name]
        return Compiled(load_slot(slot))

    def _select(self, node: Select) -> Compiled:
        operand = node.operand
        if isinstance(operand, Ident):
            if operand.name == "constants":
                return constant_value(self._constants[node.field])
            place = self._place(node)
            if place is not None:
                return Compiled(load_root_field(*place), field=place)
        return Compiled(load_field(self.compile(operand).run, node.field))

    def _place(self, node: Select) -> tuple[int, str, str] | None:
        """Slot, field and root of `root.field`."""
        name = node.operand.name if type(node.operand) is Ident else "constants"
        if name == "constants" or name in self._variables:
            return None
        return self._slots[name], node.field, name

    def _has(self, node: Has) -> Compiled:
        target = node.target
        if isinstance(target.operand, Ident) and target.operand.name == "constants":
            return constant_value(target.field in self._constants)
        record, field = self.compile(target.operand).run, target.field
        return Compiled(lambda frame: field in record(frame))

    # --- operators ---

    def _binary(self, node: Binary) -> Compiled:
        if type(node.right) is Literal and type(node.left) is Select and node.op in COMPARE:
            place = self._place(node.left)  # `params.amount <= 5000`: most conditions
            if place is not None:
                value = self._values.get(node.right.start, node.right.value)
                return Compiled(compare_field(COMPARE[node.op], place, value))
        left, right, op = self.compile(node.left), self.compile(node.right), node.op
        if op in COMPARE and right.constant and left.field is not None:
            return Compiled(compare_field(COMPARE[op], left.field, right.value))
        if op in COMPARE:
            return folded(lambda a, b: compare(COMPARE[op], a, b), left, right)
        if op == "in":
            return folded(is_in, left, right)
        return folded(ARITHMETIC[op], left, right)

    def _quantifier(self, node: Quantifier) -> Compiled:
        over = self.compile(node.over).run
        slot = len(self._slots) + len(self._variables)
        self._variables[node.variable] = slot
        predicate = self.compile(node.predicate).run
        del self._variables[node.variable]
        # Not folded even without inputs: its steps count against the budget like all others.
        return Compiled(quantified(node.function == "exists", over, predicate, slot, self._budget_slot))


# One method for each kind of node; the names of the kinds are those of model.Node.
_COMPILES: Final[Mapping[type, Callable[[Compiler, Any], Compiled]]] = {
    Literal: Compiler._literal,
    Ident: Compiler._ident,
    Select: Compiler._select,
    Has: Compiler._has,
    Index: Compiler._index,
    ListLiteral: Compiler._list,
    Unary: Compiler._unary,
    Binary: Compiler._binary,
    Logic: Compiler._logic,
    Conditional: Compiler._conditional,
    Call: Compiler._call,
    Quantifier: Compiler._quantifier,
}
