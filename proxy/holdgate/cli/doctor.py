"""`holdgate doctor`: is the boundary closed, seen from where the agent stands? With --prove, signed."""

from __future__ import annotations

import argparse
import asyncio
import shlex
from collections import Counter
from collections.abc import Mapping
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, Final

from ..adapters.boundary import COVERAGE
from ..adapters.control import ask
from ..adapters.doctor.host import look, rules_digest, secret_files
from ..adapters.doctor.prover import HERE, Options, Report, Run
from ..adapters.doctor.restarts import fail_and_restart
from ..adapters.offline import now_us, offline_ledger
from ..config import Config
from ..coverage import details, is_closed
from ..errors import ConfigError
from ..escape import REQUIRED, Targets
from ..ledger import AdminNote
from .shared import Commands, add, config_of, print_json, print_table

__all__ = ["register"]

# Addresses that nobody has (RFC 5737, RFC 3849): where probes go when there is no witness.
_NOBODY: Final = ("192.0.2.1", "2001:db8::1")


def register(commands: Commands) -> None:
    parser = add(
        commands,
        "doctor",
        _doctor,
        does="is the boundary closed? tries every way round the proxy from where the agent stands",
        example="holdgate doctor --prove --probe-at 'ip netns exec agent setpriv --reuid=agent --clear-groups"
        " python3 -' --witness 203.0.113.9,2001:db8:9::1 --witness-at 'ssh outside python3 -'",
        data=True,
    )
    parser.add_argument(
        "--prove", action="store_true", help="accept proof only, and sign the result into the log"
    )
    _add_places(parser)
    parser.add_argument(
        "--timeout", type=_seconds, default=2.0, metavar="SECONDS", help="per probe (default: 2)"
    )
    parser.add_argument(
        "--with-restarts",
        type=_command,
        default=(),
        metavar="COMMAND",
        help="kill the running proxy, try again, start it with COMMAND, try again meanwhile",
    )


def _add_places(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--probe-at",
        type=_command,
        default=HERE,
        metavar="COMMAND",
        help="runs Python from standard input where the agent stands (default: here, as you)",
    )
    parser.add_argument(
        "--witness",
        type=_addresses,
        default=(),
        metavar="IPV4[,IPV6]",
        help="addresses of the witness, beyond the boundary",
    )
    parser.add_argument(
        "--witness-at",
        type=_command,
        default=(),
        metavar="COMMAND",
        help="runs Python from standard input on the witness, as root if it can",
    )
    parser.add_argument(
        "--proxy",
        type=_proxy,
        metavar="HOST:PORT",
        help="the explicit listener as the agent reaches it (default: listen.explicit; `none`)",
    )


def _command(text: str) -> tuple[str, ...]:
    words = tuple(shlex.split(text))
    if not words:
        raise argparse.ArgumentTypeError("a command is needed")
    return words


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0.1 <= seconds <= 60:
        raise argparse.ArgumentTypeError("0.1 to 60 seconds")
    return seconds


def _proxy(text: str) -> str:
    host, _, port = text.rpartition(":")
    if text != "none" and not (host and port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise argparse.ArgumentTypeError("HOST:PORT or none")
    return text


def _addresses(text: str) -> tuple[IPv4Address | IPv6Address, ...]:
    try:
        return tuple(ip_address(each) for each in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _doctor(args: argparse.Namespace) -> int:
    config = config_of(args)
    if bool(args.witness) != bool(args.witness_at):
        raise ConfigError("--witness and --witness-at go together")
    if len({each.version for each in args.witness}) != len(args.witness):
        raise ConfigError("--witness: one address of each family")
    status = ask(config.state_dir, {"ask": "status"})
    required = config.doctor.required or REQUIRED
    options = Options(
        proving=args.prove,
        probe_at=args.probe_at,
        witness_at=args.witness_at,
        witnesses=tuple(map(str, args.witness)),
        targets=_targets(args, config, status),
        timeout_s=args.timeout,
    )
    failures = partial(fail_and_restart, config, args.with_restarts) if args.with_restarts else None
    report = Run(config, options, required).examine(
        partial(look, config, clock_us=now_us, status=status), failures
    )
    receipt = _sign(config, report) if args.prove else ""
    _print(args, report, receipt)
    return 0 if is_closed(report.rows) else 1


def _targets(args: argparse.Namespace, config: Config, status: Mapping[str, Any] | None) -> Targets:
    known = status or {}
    # Without a witness of a family its probes still go somewhere: what the agent's kernel refuses is closed.
    by_version = {4: _NOBODY[0], 6: _NOBODY[1]} | {each.version: str(each) for each in args.witness}
    explicit = known.get("explicit") or (str(config.listen.explicit) if config.listen.explicit else "")
    admin = known.get("admin") or str(config.admin.listen)
    return Targets(
        witness4=by_version[4],
        witness6=by_version[6],
        proxy="" if args.proxy == "none" else args.proxy or explicit,
        admin=admin,
        transparent=config.listen.transparent is not None,
        files=secret_files(config.state_dir),
        sockets=(str(config.state_dir / "run" / "control.sock"),),
        pid=int(known.get("pid", 0)),
    )


def _sign(config: Config, report: Report) -> str:
    """The id of the coverage receipt. The running process writes it; where none runs, this one."""
    said = details(
        report.run, report.rows, netns=report.netns, uid=report.uid, agent=report.agent, rules=rules_digest()
    )
    answer = ask(config.state_dir, {"ask": "note", "action": COVERAGE, "details": said})
    if answer is not None:
        return str(answer["id"])
    with offline_ledger(config) as ledger:
        return asyncio.run(ledger.note(AdminNote(action=COVERAGE, by="local", details=said))).receipt_id


def _print(args: argparse.Namespace, report: Report, receipt: str) -> None:
    if args.json:
        print_json([row.record() for row in report.rows])
        return
    head = ("STATE", "ROW", "TRIED", "EVIDENCE", "WHY")
    marks = [(row.state + ("" if row.required else " (optional)"), row) for row in report.rows]
    print_table(head, [(state, row.id, row.tried, row.evidence, row.reason) for state, row in marks])
    counts = Counter(row.state for row in report.rows)
    print(", ".join(f"{count} {state}" for state, count in sorted(counts.items())))
    if receipt:
        print(f"receipt {receipt}")
    print("closed" if is_closed(report.rows) else "NOT CLOSED")
