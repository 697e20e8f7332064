"""The command line: arguments in, exit code out.

One small module per group of commands; what they do is in the modules that they call. Exit codes: 0 ok,
1 refused, invalid or a failed check, 2 usage or configuration.

Invariants (tests/test_cli.py has one test named after each):
  Q1  A ConfigError is shown as `file:line: message` on standard error, without a traceback, exit code 2.
  Q2  Every command has --help with an example, and only commands that work are there.
  Q3  Only `init`, `demo`, `trust`, `ca`, `keys`, `run`, `gate`, `exec`, `bundle`, `signer`, `doctor --prove`,
      `reconcile resolve|ask` and `receipts export --output` or `--cursor` write files; only `demo`, `run`,
      `gate`, `doctor`, `reconcile ask`, `verify` and `log audit --fleet` with `--keys` of a URL, and
      `receipts export --syslog` or `--http` use the network.
  Q4  What others wrote (names of files, policies, a ledger that was edited) moves no cursor, hides nothing,
      and begins no line that could be taken for a verdict.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Final

from .. import __version__
from ..errors import BackendError, ConfigError, HoldgateError
from .shared import say

__all__ = ["build_parser", "main"]

# Every command, each in a module of its name, in the order of --help.
_KEY_ID: Final = re.compile(r"-[\w-]{42}", re.ASCII)  # a thumbprint (RFC 7638) in base64url
_COMMANDS: Final = (
    *("init", "demo", "run", "gate", "exec", "network", "doctor", "check", "test", "explain"),
    *("verify", "receipts", "log", "replay", "backtest", "diff", "reconcile", "bundle"),
    *("trust", "ca", "keys", "signer", "surfaces"),
)


def build_parser(only: str = "") -> argparse.ArgumentParser:
    """The parser of all commands, or of the one named `only`: importing all of them takes a second."""
    parser = argparse.ArgumentParser(
        prog="holdgate",
        description="Holds every outbound action of an agent and forwards it only on PERMIT.",
        epilog="start here: holdgate demo",
    )
    parser.add_argument("--version", action="version", version=f"holdgate {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name in (only,) if only in _COMMANDS else _COMMANDS:
        import_module(f".{name}", __name__).register(commands)
    return parser


def _key_ids_last(words: Sequence[str]) -> Sequence[str]:
    """One key id in 64 begins with `-`, and would be taken for an option where it stands."""
    if not words or words[0] != "keys" or "--" in words:
        return words
    ids = [word for word in words if _KEY_ID.fullmatch(word)]
    return [*(word for word in words if word not in ids), "--", *ids] if ids else words


def _said(error: OSError) -> str:
    text = f"{error.filename}: {error.strerror}" if error.filename else f"{error.strerror or error}"
    return f"{text}: run this as the user that it belongs to" if isinstance(error, PermissionError) else text


def _let_go() -> None:
    """What cannot be written is dropped: Python would complain again while it closes stdout."""
    try:
        print(end="", flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Never raises for a mistake of the caller's."""
    words = _key_ids_last(sys.argv[1:] if argv is None else argv)
    try:
        sys.stdout = sys.stdout or open(os.devnull, "w")  # None: closed by the caller
        args = build_parser(words[0] if words else "").parse_args(words)
    except SystemExit as stop:  # argparse's way out of --help and of wrong usage
        return stop.code if isinstance(stop.code, int) else 2
    try:
        code: int = args.run(args)
        print(end="", flush=True)
    except (ConfigError, BackendError) as error:
        say(error, keep="\n", file=sys.stderr)
        return 2
    except HoldgateError as error:
        say(error, keep="\n", file=sys.stderr)
        return 1
    except BrokenPipeError:
        _let_go()  # the reader (`| head`) has what it wanted
        return 1
    except OSError as error:
        say(_said(error), file=sys.stderr)
        _let_go()
        return 2
    except KeyboardInterrupt:
        return 130
    return code
