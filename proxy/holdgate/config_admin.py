"""`admin:` of holdgate.yaml: where the admin API listens, and who may ask it for what.

A token with the role `decider` names the agents it may ask for; no other token may ask for any.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from .config_values import IDENTIFIER, Address, read_address, read_digest, read_names, read_url
from .strictyaml import Node

__all__ = ["DECIDER", "Admin", "AdminToken", "OpenDoor", "read_admin"]

DECIDER: Final = "decider"
_DEFAULT_LISTEN: Final = Address(host="127.0.0.1", port=9090)
_PUBLIC_URL: Final = re.compile(r"https?://[A-Za-z0-9.\-:\[\]]+(/[A-Za-z0-9._~/-]*)?\Z")


class OpenDoor(StrEnum):
    """What of the admin API may be read without a token (health and public keys always may)."""

    METRICS = "metrics"
    CHECKPOINT = "checkpoint"


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminToken:
    name: str
    sha256: bytes
    roles: tuple[str, ...]
    agents: tuple[str, ...] = ()  # whom a decider may ask for


@dataclass(frozen=True, slots=True, kw_only=True)
class Admin:
    listen: Address
    public_url: str | None  # without a slash at the end
    open: frozenset[OpenDoor]
    tokens: tuple[AdminToken, ...]


def read_admin(node: Node | None, agents: Collection[str]) -> Admin:
    """`agents` are the ids that the configuration has. Raises ConfigError."""
    if node is None:
        return Admin(listen=_DEFAULT_LISTEN, public_url=None, open=frozenset(), tokens=())
    keys = node.mapping(optional=("listen", "public_url", "open", "tokens"), what="admin")
    listen = read_address(keys["listen"], "admin.listen") if "listen" in keys else _DEFAULT_LISTEN
    url: str | None = None
    if (url_node := keys.get("public_url")) is not None and url_node.value is not None:
        what = "an http(s) URL without query, such as https://holdgate.example.com"
        url = read_url(url_node, _PUBLIC_URL, "admin.public_url", what).rstrip("/")
    doors: frozenset[OpenDoor] = frozenset()
    if (open_node := keys.get("open")) is not None:
        options = tuple(OpenDoor)
        items = open_node.sequence("admin.open")
        doors = frozenset(OpenDoor(item.choice(options, "admin.open")) for item in items)
    tokens = _tokens(keys["tokens"], agents) if "tokens" in keys else ()
    return Admin(listen=listen, public_url=url, open=doors, tokens=tokens)


def _tokens(node: Node, agents: Collection[str]) -> tuple[AdminToken, ...]:
    tokens: list[AdminToken] = []
    for name, entry in node.open_mapping("admin.tokens").items():
        if not IDENTIFIER.match(name):
            raise entry.fail(f"token name {name!r}: write letters, digits, `.`, `_` or `-`")
        what = f"admin.tokens.{name}"
        keys = entry.mapping(required=("sha256", "roles"), optional=("agents",), what=what)
        digest = read_digest(keys["sha256"], f"{what}.sha256")
        if any(other.sha256 == digest for other in tokens):
            raise keys["sha256"].fail("another token has the same sha256: give each its own token")
        roles = read_names(keys["roles"], f"{what}.roles")
        if not roles:
            raise keys["roles"].fail(
                "a token without roles can do nothing: write for example `roles: [operator]`"
            )
        mine = _agents(entry, keys.get("agents"), DECIDER in roles, agents)
        tokens.append(AdminToken(name=name, sha256=digest, roles=roles, agents=mine))
    return tuple(tokens)


def _agents(entry: Node, node: Node | None, is_decider: bool, known: Collection[str]) -> tuple[str, ...]:
    if node is None:
        if is_decider:
            raise entry.fail(f"a token with the role {DECIDER} needs `agents: [ID]`: whom it may ask for")
        return ()
    if not is_decider:
        raise node.fail(f"`agents` belongs to a token with the role {DECIDER}")
    found = read_names(node, "agents of a token")
    if not found:
        raise node.fail("no agent: such a token could ask for nobody")
    for name in found:
        if name not in known:
            raise node.fail(f"no agent has the id {name!r}; there are: {', '.join(sorted(known)) or 'none'}")
    return found
