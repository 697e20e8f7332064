"""A network namespace for the calling thread and what it starts, and a redirect of what leaves it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from attack.arena import OUTSIDE

CAN: Final = os.geteuid() == 0 and all(map(shutil.which, ("ip", "nft")))
RULES: Final = """
table ip lab {{
  chain output {{
    type nat hook output priority -100; policy accept;
    ip daddr {outside} tcp dport 1-65535 redirect to :{port}
  }}
}}
"""


@contextmanager
def network_of_its_own() -> Iterator[None]:
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    os.unshare(os.CLONE_NEWNET)
    try:
        _ip("link", "set", "lo", "up")
        # Somewhere to send to: without a route the kernel refuses before the rules see a packet.
        _ip("route", "add", "local", f"{OUTSIDE}/32", "dev", "lo")
        yield
    finally:
        os.setns(before, os.CLONE_NEWNET)
        os.close(before)


def redirect(address: str) -> None:
    port = address.rpartition(":")[2]
    rules = RULES.format(outside=OUTSIDE, port=port)
    subprocess.run(["nft", "-f", "-"], input=rules, text=True, check=True)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
