"""From a configuration to its open ledger: the keys, the process that may hold them, the store.

Used by `holdgate run`, and by commands that write a receipt while no instance runs.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from functools import partial

from ..config import Config
from ..errors import ConfigError
from .keyfiles import Keys, load_keys
from .signer_socket import SignerSocket
from .sqlite import SqliteLedger
from .store_ledger import Given, StoreLedger

__all__ = ["Opened", "clock_us", "device_of", "open_ledger"]


def clock_us() -> int:
    return time.time_ns() // 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    ledger: StoreLedger
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
    given: Given = {
        "receipt_key": keys.receipt,
        "log_key": keys.log,
        "origin": config.issuer,
        "node": config.node,
        "clock_us": clock_us,
        "nonce16": partial(secrets.token_bytes, 16),
        "device": device,
    }
    ledger = _open(config, keys, given)
    return Opened(ledger=ledger, keys=keys, device=device)


def _open(config: Config, keys: Keys, given: Given) -> StoreLedger:
    if config.store is None:
        return SqliteLedger.open(config.state_dir, **given)
    try:
        from .postgres import PostgresLedger
    except ImportError:
        raise ConfigError(
            "`store` names PostgreSQL, and asyncpg is not installed: pip install 'holdgate[postgres]'",
            file=str(config.path),
        ) from None
    return PostgresLedger.open(config.state_dir, config.store, fleet_key=keys.fleet, **given)
