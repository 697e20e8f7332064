"""What a receipt says of the parameters of a sensitive operation: keyed values, unless the map shows them.

    (operation, action, fleet key) -> the same action; only `public` of its parameters differs

Policies see the values themselves. Equal values of one parameter of one map stay equal, so that an auditor
who has the fleet key finds all receipts about one patient, and nobody else can try names.

Invariants (tests/test_surface_hiding.py has one test named after each):
  SM35  A parameter of a sensitive operation is keyed in its receipt, or not there, unless `in_clear` names it
      and, where values are listed, its value.
  SM36  Hiding changes no value that a policy or a key reads.
"""

from __future__ import annotations

from dataclasses import replace

from ..digest import param_digest
from .extract import plain
from .model import Action, Param
from .plan import Operation
from .read import ParamPlan
from .types import canonical_json

__all__ = ["hide"]


def hide(op: Operation, action: Action, fleet_key: bytes) -> Action:
    plans = {param.name: param for param in op.plan.params}
    name = op.map.head.name
    return replace(action, params=tuple([_hidden(name, plans[p.name], p, fleet_key) for p in action.params]))


def _hidden(map_name: str, plan: ParamPlan, param: Param, fleet_key: bytes) -> Param:
    if param.public is None or _may_show(plan, param):
        return param
    value = param.value
    text = value if type(value) is str else canonical_json(plain(value))
    return replace(param, public=param_digest(map_name, param.name, text, key=fleet_key))


def _may_show(plan: ParamPlan, param: Param) -> bool:
    if plan.in_clear is None:
        return False
    values = param.value if type(param.value) is tuple else (param.value,)
    return not plan.in_clear or all(type(value) is str and value in plan.in_clear for value in values)
