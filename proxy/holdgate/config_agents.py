"""`agents:` of holdgate.yaml: who may call, and what a connection must prove to be whom.

Refused here: what would match everybody, an id or a proof that two entries share, an empty list of sources.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from .agents import Agent, AgentRule, Attrs, AttrValue
from .config_certs import read_client_cert
from .config_values import IDENTIFIER, read_digest, read_matching, read_names, read_networks, read_users
from .strictyaml import Node

__all__ = ["read_agents"]

_ATTRIBUTE: Final = re.compile(r"[a-z][a-z0-9_]{0,62}\Z")


def read_agents(node: Node, base: Path) -> tuple[AgentRule, ...]:
    """Relative paths are relative to `base`. Raises ConfigError."""
    rules: list[AgentRule] = []
    for item in node.sequence("agents"):
        keys = item.mapping(required=("id", "match"), optional=("groups", "attrs"), what="an agent")
        name = read_matching(keys["id"], IDENTIFIER, "agent id", "letters, digits, `.`, `_` or `-`")
        if any(rule.agent.id == name for rule in rules):
            raise keys["id"].fail(f"agent {name!r} is there twice: put all of it into one entry")
        groups = read_names(keys["groups"], f"groups of {name}") if "groups" in keys else ()
        attrs = _attrs(keys["attrs"], name) if "attrs" in keys else ()
        match = keys["match"].mapping(
            optional=("source", "token_sha256", "client_cert", "user"), what=f"match of {name}"
        )
        if not match:
            raise keys["match"].fail(
                "an agent that matches everybody: write `source: [CIDR]`, `token_sha256`, `client_cert` or"
                " `user: [NAME]`"
            )
        rule = _rule(Agent(id=name, groups=groups, attrs=attrs), match, base)
        if rule.token_sha256 and any(rule.token_sha256 == other.token_sha256 for other in rules):
            raise match["token_sha256"].fail("another agent has the same token: give each its own")
        if rule.certificate and any(rule.certificate == other.certificate for other in rules):
            raise match["client_cert"].fail("another agent has the same certificate: give each its own name")
        rules.append(rule)
    return tuple(rules)


def _rule(agent: Agent, match: Mapping[str, Node], base: Path) -> AgentRule:
    name = agent.id
    sources = read_networks(match["source"], f"source of {name}") if "source" in match else ()
    if "source" in match and not sources:
        raise match["source"].fail(f"source of {name} is empty: write for example [127.0.0.1/32]")
    token = read_digest(match["token_sha256"], f"token_sha256 of {name}") if "token_sha256" in match else b""
    return AgentRule(
        agent=agent,
        sources=sources,
        token_sha256=token,
        certificate=read_client_cert(match["client_cert"], base, name) if "client_cert" in match else None,
        users=read_users(match["user"], f"user of {name}") if "user" in match else (),
    )


def _attrs(node: Node, agent: str) -> Attrs:
    pairs: list[tuple[str, AttrValue]] = []
    for name, value in node.open_mapping(f"attrs of {agent}").items():
        if not _ATTRIBUTE.match(name):
            raise value.fail(f"attribute {name!r}: write lower-case letters, digits and `_`")
        pairs.append((name, _attr_value(value, f"attribute {name} of {agent}")))
    return tuple(sorted(pairs, key=lambda pair: pair[0]))


def _attr_value(node: Node, what: str) -> AttrValue:
    value = node.value
    if isinstance(value, str | int):  # a bool is an int
        return value
    if isinstance(value, list):
        if all(isinstance(item.value, str) for item in value):
            return tuple(item.text() for item in value)
        if all(isinstance(item.value, int) and not isinstance(item.value, bool) for item in value):
            return tuple(item.integer() for item in value)
    raise node.fail(f"{what} must be a string, an integer, true, false, or a list of strings or of integers")
