"""Ports for what is told a number before anybody listens there.

A number that the kernel gave (`bind(..., 0)`) and that is let go may be the next connection's own source
port: "address already in use", once in some thousand tests. These are below the range that the kernel
gives from, each process of a test run counts through its own part of it, and none is handed out twice.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack

FIRST, EACH, PARTS = 10_240, 2_048, 10
"""10240 up to 30719: above what services listen at, below 32768, where Linux's own numbers begin."""


def free_port() -> int:
    """Nobody listens there, in TCP or UDP, IPv4 or IPv6."""
    return next(port for port in _NUMBERS if _is_free(port))


def _numbers() -> Iterator[int]:
    worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")
    part = int(worker) % PARTS
    start = os.getpid() * 64  # another run at the same time begins elsewhere
    while True:
        for step in range(EACH):
            yield FIRST + part * EACH + (start + step) % EACH


def _is_free(port: int) -> bool:
    with ExitStack() as opened:
        for family, host in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                try:
                    end = opened.enter_context(socket.socket(family, kind))
                except OSError:
                    continue  # a machine without IPv6
                if family == socket.AF_INET6:
                    end.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                try:
                    end.bind((host, port))
                except OSError as error:
                    if family == socket.AF_INET or error.errno == errno.EADDRINUSE:
                        return False
    return True


_NUMBERS = _numbers()
