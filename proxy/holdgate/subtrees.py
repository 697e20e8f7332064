"""What a name-constrained CA may vouch for: mapped hosts in, DNS subtrees out.

A subtree is a name of RFC 5280 4.2.1.10: it stands for itself and for every name below it. A host with a
variable (`{bucket}.s3.{region}.amazonaws.com`) gives what stands after its last variable, so a map with such
a host permits more names than it maps; the gate refuses those, the constraint only bounds a stolen key.

Invariants (tests/test_subtrees.py has one test named after each):
  NC1  Every https host of the maps is covered by the subtrees made from them, and so is each name it matches.
  NC2  covers() is the rule of RFC 5280: equal, or longer by whole labels.
  NC3  No subtree is a top-level name: a host that would need one is a ConfigError.
"""

from __future__ import annotations

from collections.abc import Iterable

from .errors import ConfigError
from .surface.spec import HostPattern

__all__ = ["covers", "subtrees", "uncovered"]


def subtrees(hosts: Iterable[HostPattern]) -> tuple[str, ...]:
    """The fewest subtrees that cover the https hosts, sorted. Raises ConfigError for one that is too wide."""
    suffixes = {_suffix(host.host): host.host for host in hosts if host.scheme == "https"}
    for suffix, host in suffixes.items():
        if "." not in suffix:
            raise ConfigError(
                f"`ca.constrain` cannot cover the mapped host {host!r}: that would permit all of .{suffix};"
                " write more of its labels out"
            )
    names: list[str] = []
    for name in sorted(suffixes, key=lambda name: (name.count("."), name)):
        if not covers(names, name):
            names.append(name)
    return tuple(sorted(names))


def covers(permitted: Iterable[str], name: str) -> bool:
    """Whether a lower-case DNS name is in one of the subtrees."""
    return any(name == subtree or name.endswith("." + subtree) for subtree in permitted)


def uncovered(permitted: Iterable[str], hosts: Iterable[HostPattern]) -> tuple[str, ...]:
    """The https hosts of the maps that these subtrees do not cover, sorted."""
    kept = tuple(permitted)
    return tuple(
        sorted(
            {host.host for host in hosts if host.scheme == "https" and not covers(kept, _suffix(host.host))}
        )
    )


def _suffix(host: str) -> str:
    """The labels after the last variable; a map's last label is never one."""
    labels = host.split(".")
    variables = [place for place, label in enumerate(labels) if label.startswith("{")]
    return ".".join(labels[variables[-1] + 1 :] if variables else labels)
