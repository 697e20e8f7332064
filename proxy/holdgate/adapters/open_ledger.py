"""From a configuration to its open ledger: the keys, the process that may hold them, the store.

Used by `holdgate run`, and by commands that write a receipt while no instance runs.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from functools import partial

from ..config import Config
from .keyfiles import Keys, load_keys
from .signer_socket import SignerSocket
from .sqlite import SqliteLedger

__all__ = ["Opened", "clock_us", "device_of", "open_ledger"]


def clock_us() -> int:
    return time.time_ns() // 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    ledger: SqliteLedger
    keys: Keys
    device: SignerSocket | None


def device_of(config: Config) -> SignerSocket | None:
    """The signer process of the configuration; None: keys are in files."""
    if config.signer is None:
        return None
    return SignerSocket(config.signer.socket, config.signer.timeout_ms / 1000)


def open_ledger(config: Config) -> Opened:
    """Raises ConfigError; BackendError when a signature is needed now and the signer does not answer."""
    device = device_of(config)
    keys = load_keys(config.state_dir, device)
    ledger = SqliteLedger.open(
        config.state_dir,
        receipt_key=keys.receipt,
        log_key=keys.log,
        origin=config.issuer,
        node=config.node,
        clock_us=clock_us,
        nonce16=partial(secrets.token_bytes, 16),
        device=device,
    )
    return Opened(ledger=ledger, keys=keys, device=device)
