"""adapters/memory.py: what is freed goes back to the system, also after larger blocks were freed before."""

from __future__ import annotations

import subprocess
import sys

import pytest

from holdgate.adapters.memory import give_back_large_blocks

# Without the setting, the second block comes from the heap, behind something small that keeps it there.
SCRIPT = """
import sys
from pathlib import Path
from holdgate.adapters.memory import give_back_large_blocks

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

if sys.argv[1] == "on":
    give_back_large_blocks()
bytearray(30 << 20)
before = resident()
blocks, small = [], []
for _ in range(20):
    blocks.append(bytearray(b"x" * (2 << 20)))
    small.append(bytearray(2000))
blocks.clear()
print((resident() - before) >> 20)
"""


def left_mib(setting: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, setting], capture_output=True, text=True, timeout=60, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(not give_back_large_blocks(), reason="this C library has no such setting")
def test_large_blocks_go_back_to_the_system() -> None:
    assert left_mib("on") < 8 < left_mib("off")
