"""mitmproxy, embedded: its listeners and TLS sessions, our one addon, and nothing else of it.

`DumpMaster` would load 31 addons, some of which forward by themselves (replay, map-remote, onboarding). Here
there are three: the listeners, HoldgateAddon, and the check that ends a start that logged an error.

Invariants (tests/test_mitm.py):
  EN1  The engine's addons are exactly these three, and HoldgateAddon answers to the name `nextlayer`.
  EN2  Every option of REQUIRED_OPTIONS has its required value before anything listens.
"""

from __future__ import annotations

from mitmproxy import master, options
from mitmproxy.addons import errorcheck, proxyserver

from ..config import Listen
from ..limits import Limits
from .mitm import REQUIRED_OPTIONS, HoldgateAddon

__all__ = ["build_engine"]


def build_engine(
    addon: HoldgateAddon, listen: Listen, limits: Limits
) -> tuple[master.Master, proxyserver.Proxyserver]:
    """An engine that is ready to run(), in the running event loop."""
    modes = []
    if listen.explicit is not None:
        modes.append(f"regular@{listen.explicit}")
    if listen.transparent is not None:
        modes.append(f"transparent@{listen.transparent}")
    engine = master.Master(options.Options(), with_termlog=False)
    proxy = proxyserver.Proxyserver()
    engine.addons.add(proxy, addon, errorcheck.ErrorCheck(repeat_errors_on_stderr=True))
    # The engine's own dispatcher swallows exceptions and walks every addon; ours does neither.
    engine.addons.handle_lifecycle = addon.dispatch_hook  # type: ignore[method-assign]
    addon.connections = proxy.connections  # type: ignore[assignment]
    engine.options.update(
        **{name: value for name, value in REQUIRED_OPTIONS.items() if name in engine.options}
    )
    addon.armed = True
    # The engine's own inactivity limit is only a net below our deadlines.
    longest_s = max(limits.idle_s, limits.head_s, limits.body_s)
    engine.options.update(mode=modes, tcp_timeout=int(longest_s) + 30)
    return engine, proxy
