"""The table of targets: a name, what it runs, and what its inputs are made of."""

from __future__ import annotations

from typing import Final

from fuzz import answers, asked, signed, values, whole, wire, wrapped, written
from fuzz.base import Target

__all__ = ["TARGETS"]

TARGETS: Final[dict[str, Target]] = {
    **wire.TARGETS,
    **values.TARGETS,
    **wrapped.TARGETS,
    **asked.TARGETS,
    **written.TARGETS,
    **signed.TARGETS,
    **whole.TARGETS,
    **answers.TARGETS,
}
