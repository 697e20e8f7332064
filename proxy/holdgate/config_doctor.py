"""The `doctor:` block: what proof of a closed boundary `readyz` asks for.

Invariants (tests/test_config.py):
  KD1  `required` names rows of the escape matrix, or is the word `all`; anything else is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from .escape import MATRIX, REQUIRED
from .strictyaml import Node

__all__ = ["Doctor", "read_doctor"]

_DEFAULT_MAX_AGE_S: Final = 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class Doctor:
    """When `readyz` wants a proof of the boundary: a coverage receipt with these rows settled."""

    required: frozenset[str]  # empty: it wants none
    max_age_s: int


def read_doctor(node: Node | None) -> Doctor:
    if node is None:
        return Doctor(required=frozenset(), max_age_s=_DEFAULT_MAX_AGE_S)
    keys = node.mapping(required=("required",), optional=("max_age_s",), what="doctor")
    max_age_s = keys["max_age_s"].integer("doctor.max_age_s") if "max_age_s" in keys else _DEFAULT_MAX_AGE_S
    if max_age_s <= 0:
        raise keys["max_age_s"].fail("doctor.max_age_s must be greater than zero")
    if keys["required"].value == "all":
        return Doctor(required=REQUIRED, max_age_s=max_age_s)
    names: set[str] = set()
    for item in keys["required"].sequence("doctor.required"):
        names.add(item.choice(MATRIX, "doctor.required"))
    if not names:
        raise keys["required"].fail("doctor.required is empty: write `all`, or leave `doctor` out")
    return Doctor(required=frozenset(names), max_age_s=max_age_s)
