"""`holdgate explain`: what would be decided about one captured request; the work is in ../explain.py."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ..adapters.fitness import active_bundle
from ..adapters.keyfiles import load_fleet_key
from ..adapters.open_reader import open_reader
from ..agents import Agent, identify
from ..config import Config
from ..errors import ConfigError, Outcome
from ..explain import SOURCE, Explained, document, explain, nothing_charged, plain_value
from ..gate import RuleTrace
from ..ledger import Total
from ..message import Origin
from ..policy_model import RuleEffect
from ..standing import Prepared
from ..strictyaml import load_file
from .shared import Commands, add, config_of, print_json, read_bytes, say

__all__ = ["register"]


def register(commands: Commands) -> None:
    parser = add(
        commands,
        "explain",
        _explain,
        does="say what would be decided about a captured HTTP request, and why; sends nothing",
        example="holdgate explain --agent local-agent surfaces/stripe/examples/refund_partial.http",
        data=True,
    )
    parser.add_argument("--agent", default="", metavar="ID", help=f"default: who connects from {SOURCE}")
    parser.add_argument(
        "--facts", type=Path, metavar="FILE", help="what providers would say: YAML, {panel: {member: true}}"
    )
    parser.add_argument(
        "--bound",
        type=Path,
        metavar="FILE",
        help="what a confirm or apply is bound to, in place of the ledger's: YAML, {params: {amount: 100}}",
    )
    parser.add_argument("request", metavar="FILE|-", help="a raw HTTP/1.1 request, head and body")


def _explain(args: argparse.Namespace) -> int:
    config = config_of(args)
    try:
        raw = read_bytes(args.request)
    except OSError as error:
        raise ConfigError(f"cannot read: {error.strerror}", file=args.request) from error
    now_us = time.time_ns() // 1000
    explained = explain(
        raw,
        partial(_agent, args.agent, config),
        active_bundle(config),
        config.limits,
        fleet_key=_fleet_key(config),
        now_us=now_us,
        totals=partial(_totals, config, now_us),
        facts=_facts(args.facts),
        prepared=partial(_prepared, config),
        bound=None if args.bound is None else _bound(args.bound),
    )
    if args.json:
        print_json(document(explained))
    else:
        _print(explained)
    return 0 if explained.decision.outcome is Outcome.PERMIT else 1


def _facts(path: Path | None) -> Mapping[str, Mapping[str, Any]]:
    if path is None:
        return {}
    return {
        name: entry.open_mapping(name) and entry.plain()
        for name, entry in load_file(path).open_mapping().items()
    }


def _bound(path: Path) -> Mapping[str, Any]:
    parts = load_file(path).mapping(required=("params",), optional=("operation",), what="what is bound")
    operation = parts["operation"].text("operation") if "operation" in parts else ""
    return {
        "operation": operation,
        "params": {name: node.plain() for name, node in parts["params"].open_mapping("params").items()},
    }


def _prepared(config: Config, key: str) -> Prepared | None:
    try:
        with open_reader(config) as ledger:
            return ledger.prepared(key)
    except ConfigError as error:
        print(f"note: {error}; nothing is known of prepared objects", file=sys.stderr)
        return None


def _fleet_key(config: Config) -> bytes:
    try:
        return load_fleet_key(config.state_dir)
    except ConfigError as error:
        print(f"note: {error}; digests of sensitive operations are not the proxy's", file=sys.stderr)
        return bytes(32)


def _totals(config: Config, now_us: int, meters: tuple[str, ...]) -> Mapping[str, Total]:
    """What the counters stand at; read from the ledger, also while `run` is live."""
    try:
        with open_reader(config) as ledger:
            return ledger.totals(meters, now_us)
    except ConfigError as error:
        print(f"note: {error}; counters are taken as 0", file=sys.stderr)
        return nothing_charged(meters)


def _agent(name: str, config: Config, origin: Origin) -> Agent:
    if not name:
        return identify(origin, config.agents)
    for rule in config.agents:
        if rule.agent.id == name:
            return rule.agent
    known = ", ".join(rule.agent.id for rule in config.agents) or "none"
    raise ConfigError(f"no agent {name!r}; there are: {known}", file=str(config.path))


def _print(explained: Explained) -> None:
    request, recognised, decision = explained.request, explained.recognised, explained.decision
    print(f"agent      {explained.agent.id if explained.agent else 'unknown'}")
    if request is not None:
        print(
            f"request    {request.method} {request.scheme}://{request.destination} {len(request.body)} bytes"
        )
    for action in recognised.actions if recognised else ():
        print(f"action     {action.surface}  {action.operation}  ({action.effect.value})")
        for param in action.params:
            print(f"             {param.name} = {param.value!r}")
    if recognised is not None:
        print(f"digest     {recognised.digest}")
        for part in explained.preimage:
            print(f"             {part.decode('utf-8', 'backslashreplace')!r}")
        for key in recognised.keys:
            print(f"key        {key.source.value}, held {key.ttl_s} s")
    for part in explained.inputs["actions"] if explained.inputs else ():
        for name, value in part.get("counters", {}).items():
            shown = ", ".join(f"{key} {number}" for key, number in sorted(value.items()))
            print(f"counter    {name}: {shown}")
        for name, value in part.get("bound", {}).get("params", {}).items():
            print(f"bound      {name} = {value!r}")
        for name, value in part.get("facts", {}).items():
            shown = ", ".join(f"{key} {item!r}" for key, item in sorted(value.items()))
            print(f"fact       {name}: {shown}")
    print(f"decision   {decision.outcome.value} {decision.reason.value}")
    if explained.detail:
        say(f"because    {explained.detail}")
    for flip in explained.flips:
        changes = " and ".join(str(change) for change in flip.changes)
        say(f"would be   {flip.decision.outcome.value} if {changes}")
    for rule in explained.trace:
        _print_rule(rule, decided=rule.rule in decision.rules)


def _print_rule(rule: RuleTrace, *, decided: bool) -> None:
    failing = [part for part in rule.conjuncts if part.value is not True]
    # A permit that fails by one condition is what an author looks for.
    near = (
        rule.effect is RuleEffect.PERMIT
        and rule.result == "false"
        and len(rule.conjuncts) > len(failing) == 1
    )
    mark = "  <- decides" if decided else "  <- near miss" if near else ""
    shadow = " (shadow)" if rule.shadow else ""
    print(f"rule       {rule.rule}  {rule.effect.value}{shadow}: {rule.result}{mark}")
    for part in failing:
        say(f"             {json.dumps(plain_value(part.value))}: {part.text}")
