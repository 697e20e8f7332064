"""The `retention:` block: how long recorded inputs are kept.

Invariants (tests/test_config.py):
  RT1  `inputs_days` is a number of days from 1 on, or null: for ever. 0 and negative numbers are refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from .strictyaml import Node

__all__ = ["DEFAULT_INPUTS_DAYS", "Retention", "read_retention"]

# A year of decisions can be replayed and tried against new policies, and a month is left to do it in.
DEFAULT_INPUTS_DAYS: Final = 400
_LONGEST_DAYS: Final = 36_500


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    inputs_days: int | None  # None: for ever


def read_retention(node: Node | None) -> Retention:
    if node is None:
        return Retention(inputs_days=DEFAULT_INPUTS_DAYS)
    value = node.mapping(required=("inputs_days",), what="retention")["inputs_days"]
    if value.value is None:
        return Retention(inputs_days=None)
    return Retention(inputs_days=value.integer("retention.inputs_days", low=1, high=_LONGEST_DAYS))
