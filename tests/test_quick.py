"""quick.py: the invariants in its docstring, one test each; then what it does not take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import FrozenInstanceError, dataclass, field, replace
from typing import Any

import pytest

from holdgate.quick import quick


class Plain:
    @dataclass(frozen=True, slots=True, kw_only=True)
    class Point:
        x: int
        y: int = 7
        names: tuple[str, ...] = ()


class Quick:
    @quick
    @dataclass(frozen=True, slots=True, kw_only=True)
    class Point:
        x: int
        y: int = 7
        names: tuple[str, ...] = ()


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class Positive:
    number: int

    def __post_init__(self) -> None:
        if self.number <= 0:
            raise ValueError("not positive")


CALLS: list[Callable[[Any], Any]] = [
    lambda point: point(x=1),
    lambda point: point(names=("a",), x=1, y=2),
    lambda point: replace(point(x=1, names=("b",)), y=3),
]


@pytest.mark.parametrize("call", CALLS, ids=["defaults", "all, in another order", "replaced"])
def test_qk1_a_value_is_what_the_plain_dataclass_makes(call: Callable[[Any], Any]) -> None:
    plain, made = call(Plain.Point), call(Quick.Point)
    assert type(made) is Quick.Point and made == call(Quick.Point) != replace(made, x=9)
    assert [getattr(made, name) for name in ("x", "y", "names")] == [plain.x, plain.y, plain.names]
    assert hash(made) == hash(plain) and repr(made) == repr(plain).replace("Plain.", "Quick.")
    for arguments in ({}, {"y": 1}, {"x": 1, "z": 2}):
        with pytest.raises(TypeError):
            Quick.Point(**arguments)
    with pytest.raises(TypeError):
        Quick.Point(1)  # type: ignore[call-arg, misc]


def test_qk2_a_value_is_frozen_and_accepted() -> None:
    assert Positive(number=1).number == 1
    with pytest.raises(ValueError, match="not positive"):
        Positive(number=0)
    with pytest.raises(ValueError, match="not positive"):
        replace(Positive(number=1), number=-1)
    for change in (lambda it: setattr(it, "number", 0), lambda it: delattr(it, "number")):
        with pytest.raises(FrozenInstanceError):
            change(Positive(number=1))
    with pytest.raises((FrozenInstanceError, AttributeError, TypeError)):
        Positive(number=1).other = 1  # type: ignore[attr-defined]


class Base:
    __slots__ = ("a",)


def test_a_class_that_is_made_in_another_way_is_not_taken() -> None:
    for options in ({"slots": True, "kw_only": True}, {"frozen": True, "kw_only": True}):
        with pytest.raises(TypeError, match="not a frozen, slotted"):
            quick(dataclass(**options)(type("Other", (), {"__annotations__": {"x": int}})))
    frozen = dataclass(frozen=True, slots=True, kw_only=True)
    with pytest.raises(TypeError, match="without a base"):
        quick(frozen(type("Other", (Base,), {"__annotations__": {"x": int}})))
    with pytest.raises(TypeError, match="default that is made"):
        made = {"__annotations__": {"x": list}, "x": field(default_factory=list)}
        quick(frozen(type("Other", (), made)))
    with pytest.raises(TypeError):
        quick(int)
