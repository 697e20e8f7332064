"""The admin listener of one running instance: its ledger, keys and counters behind views.py's endpoints."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol
from urllib.parse import urlsplit

from aiohttp import web

from ...config import Address, Config
from ...errors import ConfigError
from ...keys import Signer, jwks, trigguard_keys
from ..decider import Decider
from ..keyfiles import load_public_keys
from ..keyring import ActiveSigner
from ..metrics import Metrics
from ..open_reader import open_reader
from ..reader import Reader
from .guard import Rules
from .views import build_app
from .wire import Runner

__all__ = ["AdminServer"]

_LOCAL: tuple[str, ...] = ("localhost", "127.0.0.1", "::1")


class _Ledger(Protocol):
    @property
    def healthy(self) -> bool: ...


class _Evidence(Protocol):
    @property
    def signer(self) -> Signer: ...
    @property
    def issuer(self) -> str: ...


class _Pipeline(Protocol):
    @property
    def evidence(self) -> _Evidence: ...


class AdminServer:
    """The admin listener of one instance. `ready` is set by whoever accepts agents' requests."""

    def __init__(
        self,
        config: Config,
        *,
        ledger: _Ledger,
        metrics: Metrics,
        pipeline: _Pipeline,
        boundary: Callable[[], str] = lambda: "",  # why the boundary is not known to be closed
        decider: Decider | None = None,
    ) -> None:
        self.ready = False
        self.metrics = metrics
        self.state_dir = config.state_dir
        self._open_reader = partial(open_reader, config)
        self.rules = Rules(
            tokens=config.admin.tokens, open=config.admin.open, hosts=_hosts(config.admin.public_url)
        )
        self._listen = config.admin.listen
        self._ledger, self._boundary = ledger, boundary
        # Of an instance of several processes, its gate process says otherwise.
        self.processes: Callable[[], Sequence[tuple[str, int]]] = lambda: (("run", os.getpid()),)
        self.listening: Callable[[], str] = lambda: ""  # why agents are not heard
        self._evidence = pipeline.evidence
        self.decider = decider
        self.public_url = config.admin.public_url
        # A body in base64, and as much again for heads as requests may have.
        self.question_bytes = config.limits.body_bytes_max // 3 * 4 + 2 * config.limits.header_bytes
        self._runner: Runner | None = None

    @property
    def signer(self) -> Signer:
        signer = self._evidence.signer  # one key for the whole view, also while another takes over
        return signer.now if isinstance(signer, ActiveSigner) else signer

    @property
    def address(self) -> Address | None:
        """Where it listens; None before start()."""
        if self._runner is None or not self._runner.addresses:
            return None
        host, port, *_ = self._runner.addresses[0]
        return Address(host=host, port=port)

    def read(self) -> Reader:
        return self._open_reader()

    def not_ready(self) -> str:
        if not self._ledger.healthy:
            return "the store cannot be written"
        if not self.ready:
            return "the listeners are not accepting"
        return self.listening() or self._boundary()

    def jwks(self) -> dict[str, Any]:
        return jwks(load_public_keys(self.state_dir).values())

    def trigguard_keys(self) -> dict[str, Any]:
        return trigguard_keys(self._evidence.issuer, load_public_keys(self.state_dir).values())

    async def start(self, *, shared: bool = False) -> None:
        """Listen; `shared`: the port is kept by a process that does not listen. Raises ConfigError when the
        address is taken."""
        self._runner = Runner(build_app(self))
        await self._runner.setup()
        try:
            where = self._listen.host, self._listen.port
            await web.TCPSite(self._runner, *where, reuse_port=shared or None).start()
        except OSError as error:
            raise ConfigError(f"admin.listen {self._listen}: {error.strerror or error}") from error

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()


def _hosts(public_url: str | None) -> frozenset[str]:
    name = urlsplit(public_url).hostname if public_url else None
    return frozenset({*_LOCAL, *([name] if name else [])})
