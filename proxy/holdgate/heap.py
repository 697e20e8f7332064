"""Python's search for cycles, put off where much is made that stays.

Loading policies makes a hundred thousand objects that no search can free; searching them again and again
while they are made took a quarter of the time. So there is none meanwhile, and one over the new ones at the
end.

Invariants (tests/test_heap.py):
  HP1  Whatever happens inside, the search goes on afterwards if it went on before.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["building"]


@contextmanager
def building() -> Iterator[None]:
    """For all threads; whoever is in here while another one leaves is searched as usual."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
        gc.collect(0)
    finally:
        gc.enable()
