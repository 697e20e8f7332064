"""`holdgate verify`: are these receipts what they claim to be? Offline, everything recomputed.

A receipt is given as a file (one JWS, one JWS per line, or the JSON lines of `receipts export`), as `-`,
or as the JWS itself.
"""

from __future__ import annotations

import argparse
import json
import re
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ..adapters.keyfiles import load_public_keys
from ..errors import ConfigError, Outcome
from ..keys import KeyDocumentError, KeySet, parse_jwks
from ..receipt import ReceiptError, verify
from .shared import Commands, add, config_of, print_json, read_bytes

__all__ = ["register"]

_MAX_KEYS_BYTES: Final = 1_048_576
_TIMEOUT_S: Final = 10
# No file is meant: the header of every JWS begins with these letters, and it is longer than a file's name.
_JWS: Final = re.compile(r"eyJ[\w-]{60,}\.[\w-]+\.[\w-]+", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Result:
    source: str
    ok: bool
    reason: str  # "" when ok
    receipt: Any  # None when the receipt could not be read


def register(commands: Commands) -> None:
    parser = add(
        commands,
        "verify",
        _verify,
        does="verify receipts offline: signature, canonical form, fields, key",
        example="holdgate receipts export --raw > all.jws; holdgate verify --require-permit all.jws",
        data=True,
    )
    parser.add_argument("receipts", nargs="+", metavar="RECEIPT", help="file, `-`, or a compact JWS")
    parser.add_argument(
        "--keys", metavar="FILE|URL", help="JWK Set to trust (default: the keys in the state directory)"
    )
    parser.add_argument("--require-permit", action="store_true", help="fail unless every receipt is a PERMIT")


def _verify(args: argparse.Namespace) -> int:
    keys = _keys(args.keys) if args.keys else load_public_keys(config_of(args).state_dir)
    results = [
        _judge(source, jws, keys, require_permit=args.require_permit)
        for name in args.receipts
        for source, jws in _read(name)
    ]
    if args.json:
        print_json([_row(result) for result in results])
    else:
        for result in results:
            print(_line(result))
    return 0 if results and all(result.ok for result in results) else 1


def _row(result: _Result) -> dict[str, Any]:
    row = {"source": result.source, "ok": result.ok, "reason": result.reason}
    return row if result.receipt is None else row | {"receipt": result.receipt}


def _line(result: _Result) -> str:
    if not result.ok:
        return f"INVALID {result.source}: {result.reason}"
    said = result.receipt
    what = said.get("outcome") or said.get("status", "")
    return f"ok {said['id']} {said['type']} {what} {said.get('reason', '')}".rstrip()


def _judge(source: str, jws: bytes, keys: KeySet, *, require_permit: bool) -> _Result:
    try:
        said = verify(jws, keys).statement
    except ReceiptError as error:
        return _Result(source=source, ok=False, reason=str(error), receipt=None)
    reason = _not_a_permit(said) if require_permit else ""
    return _Result(source=source, ok=not reason, reason=reason, receipt=said)


def _not_a_permit(said: Any) -> str:
    if said["type"] != "decision" or said["outcome"] != Outcome.PERMIT:
        return "a valid receipt, but not of a PERMIT"
    # A decision made over an API is no evidence that a request was held and forwarded.
    return "a PERMIT that was asked for over an API, not of a forwarded request" if "via" in said else ""


def _read(name: str) -> Iterator[tuple[str, bytes]]:
    """Every receipt behind one argument, with the words that name it."""
    if _JWS.fullmatch(name):
        yield "argument", name.encode()
        return
    try:
        lines = read_bytes(name).splitlines()
    except OSError as error:
        raise ConfigError(f"cannot read: {error.strerror}", file=name) from error
    filled = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    if not filled:
        raise ConfigError("no receipt in it", file=name)
    for number, line in filled:
        yield (name if len(filled) == 1 else f"{name}:{number}"), _jws_of(line)


def _jws_of(line: bytes) -> bytes:
    """The JWS of one line of an export; any other line is taken as a JWS and fails as one."""
    if not line.startswith(b"{"):
        return line
    try:
        jws = json.loads(line)["jws"]
        return jws.encode("ascii") if isinstance(jws, str) else line
    except (ValueError, KeyError, RecursionError):
        return line


def _keys(place: str) -> KeySet:
    try:
        if place.startswith(("https://", "http://")):
            with urllib.request.urlopen(place, timeout=_TIMEOUT_S) as answer:  # noqa: S310 - scheme checked
                return parse_jwks(answer.read(_MAX_KEYS_BYTES))
        return parse_jwks(Path(place).read_bytes())
    except OSError as error:
        raise ConfigError(f"cannot read keys: {error}", file=place) from error
    except KeyDocumentError as error:
        raise ConfigError(str(error), file=place) from error
