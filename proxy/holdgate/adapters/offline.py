"""The ledger of an instance that does not run, for a command that writes one receipt.

While one runs, only that process may write: ask it (control.py). The lock of the state directory keeps the
two apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..config import Config
from .open_ledger import clock_us as now_us
from .open_ledger import open_ledger
from .store_ledger import StoreLedger

__all__ = ["now_us", "offline_ledger"]


@contextmanager
def offline_ledger(config: Config) -> Iterator[StoreLedger]:
    """Open it as `run` would, and close it. Raises ConfigError, also while another process has it."""
    ledger = open_ledger(config).ledger
    try:
        yield ledger
    finally:
        ledger.close()
