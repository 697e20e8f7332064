"""The ledger of an instance that does not run, for a command that writes one receipt.

While one runs, only that process may write: ask it (control.py). The lock of the state directory keeps the
two apart.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from ..config import Config
from .keyfiles import load_keys
from .sqlite import SqliteLedger

__all__ = ["now_us", "offline_ledger"]


@contextmanager
def offline_ledger(config: Config) -> Iterator[SqliteLedger]:
    """Open it as `run` would, and close it. Raises ConfigError, also while another process has it."""
    keys = load_keys(config.state_dir)
    ledger = SqliteLedger.open(
        config.state_dir,
        receipt_key=keys.receipt,
        log_key=keys.log,
        origin=config.issuer,
        node=config.node,
        clock_us=now_us,
        nonce16=partial(secrets.token_bytes, 16),
    )
    try:
        yield ledger
    finally:
        ledger.close()


def now_us() -> int:
    return time.time_ns() // 1000
