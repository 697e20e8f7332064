"""Tells systemd that this process is ready, where systemd started it (`Type=notify`, sd_notify(3)).

The variable NOTIFY_SOCKET names a datagram socket; without it nothing is done. Nothing is decided here, and a
message that cannot be sent is only logged: systemd then ends the start itself.

Invariants (tests/test_sd_notify.py):
  SD1  notify() never raises, and sends one datagram to the socket that systemd named, or nothing.
"""

from __future__ import annotations

import logging
import os
import socket

__all__ = ["notify"]

log = logging.getLogger("holdgate")


def notify(state: str) -> None:
    """Send `state`, for example "READY=1"."""
    name = os.environ.get("NOTIFY_SOCKET", "")
    if not name:
        return
    address = "\0" + name[1:] if name.startswith("@") else name  # `@`: the abstract namespace, unix(7)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.settimeout(5)
            sock.sendto(state.encode(), address)
    except (OSError, ValueError) as error:
        log.warning("systemd was not told %s: %s", state, error)
