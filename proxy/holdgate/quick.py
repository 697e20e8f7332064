"""Frozen dataclasses whose values are made in half the time: for classes that every request makes some of.

    @quick
    @dataclass(frozen=True, slots=True, kw_only=True)
    class Name: ...

A frozen dataclass sets each of its fields through `object.__setattr__`, the slow way round its own lock. Here
a value is filled while it is of a twin class, which has the same slots and no lock, and then gets its own
class, before anybody has it.

Invariants (tests/test_quick.py has one test named after each):
  QK1  A value is what the plain dataclass makes of the same arguments: fields, defaults, equality, hash,
       repr and replace(); arguments that do not fit are a TypeError.
  QK2  A value is frozen when somebody has it, and `__post_init__` has accepted it.
"""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import Any

__all__ = ["quick"]


def quick[T](cls: type[T]) -> type[T]:
    """The same class. Raises TypeError for one that is not as above, or has default factories."""
    own: Any = fields(cls)  # type: ignore[arg-type]  # raises TypeError for what is no dataclass
    params: Any = getattr(cls, "__dataclass_params__", None)
    if not (params.frozen and params.slots and params.kw_only) or cls.__bases__ != (object,):
        raise TypeError(f"{cls.__name__} is not a frozen, slotted, keyword-only dataclass without a base")
    if any(each.default_factory is not MISSING or not each.init for each in own):
        raise TypeError(f"{cls.__name__} has a field that is no argument, or a default that is made")
    slots = tuple([each.name for each in own])
    names: dict[str, Any] = {"_new": object.__new__, "_twin": type(cls.__name__, (), {"__slots__": slots})}
    arguments = []
    for each in own:
        arguments.append(each.name if each.default is MISSING else f"{each.name}=_default_{each.name}")
        names[f"_default_{each.name}"] = each.default
    lines = [f"def __new__(cls, *, {', '.join(arguments)}):", " self = _new(_twin)"]
    lines += [f" self.{name} = {name}" for name in slots]
    lines.append(" self.__class__ = cls")
    if hasattr(cls, "__post_init__"):
        lines.append(" self.__post_init__()")
    exec("\n".join([*lines, " return self"]), names)  # noqa: S102  (names of our own fields, as dataclass does)
    cls.__new__ = names["__new__"]  # type: ignore[method-assign]
    cls.__init__ = object.__init__  # type: ignore[method-assign]
    return cls
