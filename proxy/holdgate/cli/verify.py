"""`holdgate verify`: are these receipts what they claim to be? Offline, everything recomputed.

A receipt is given as a file (one JWS, one JWS per line, the JSON lines of `receipts export`, or the headers
of an HTTP answer), as a folder of such files, as `-`, as a `Holdgate-Receipt` line, or as the JWS itself.
Each is shown as soon as it is verified, so that an export may be of any length.
"""

from __future__ import annotations

import argparse
import urllib.request
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from http.client import HTTPException
from itertools import chain
from pathlib import Path
from typing import Any, Final

from ..adapters.keyfiles import load_public_keys
from ..adapters.proofs import log_verifier, log_verifiers, read_changes
from ..errors import ConfigError
from ..keyhistory import follow
from ..keys import KeyDocumentError, KeySet, parse_jwks
from ..note import SignatureType, Verifier, parse_vkey
from ..tlog import TlogError
from ..tlogproof import Proof, parse_proof
from ..verification import Finding, Trust, judge
from .disclosure import Disclosure, read_disclosure
from .receipt_lines import receipts_behind
from .shared import Commands, add, config_of, print_json_list, say

__all__ = ["read_keys", "register"]

_MAX_KEYS_BYTES: Final = 1_048_576
_TIMEOUT_S: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class _Result:
    source: str
    found: Finding


def register(commands: Commands) -> None:
    parser = add(
        commands,
        "verify",
        _verify,
        does="verify receipts offline: signature, canonical form, fields, key; with a proof, the log too",
        example="holdgate receipts export --raw > all.jws; holdgate verify --require-permit all.jws\n"
        "  curl -sD - -o /dev/null https://api.example.com/v1/refunds | holdgate verify -",
        data=True,
    )
    parser.add_argument(
        "receipts", nargs="+", metavar="RECEIPT", help="file, folder, `-`, a Holdgate-Receipt line, or a JWS"
    )
    parser.add_argument(
        "--keys", metavar="FILE|URL", help="JWK Set to trust (default: the keys in the state directory)"
    )
    parser.add_argument("--require-permit", action="store_true", help="fail unless every receipt is a PERMIT")
    parser.add_argument(
        "--proof", type=Path, metavar="FILE", help="tlog-proof of the one receipt: it must be in the log"
    )
    parser.add_argument(
        "--disclosure",
        type=Path,
        metavar="FILE",
        help="of the one receipt (`receipts disclose`): it must commit to --body, --target and its method",
    )
    parser.add_argument("--body", type=Path, metavar="FILE", help="the request's body; without it, none")
    parser.add_argument("--target", metavar="TEXT", help="path and query, where the disclosure has none")
    _register_log(parser)


def _register_log(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--log-key", metavar="VKEY|FILE", help="the log's key (default: log/key.vkey in the state directory)"
    )
    parser.add_argument(
        "--log-changes",
        type=Path,
        metavar="FILE",
        help="`keys export --format changes`: leads from --log-key to the keys that the log had later",
    )
    parser.add_argument(
        "--witness", action="append", default=[], metavar="VKEY|FILE", help="a witness of the log; repeatable"
    )
    parser.add_argument(
        "--quorum", type=int, metavar="N", help="how many witnesses must have cosigned (default: all given)"
    )


def _verify(args: argparse.Namespace) -> int:
    keys = read_keys(args.keys) if args.keys else load_public_keys(config_of(args).state_dir)
    receipts = chain.from_iterable(receipts_behind(name) for name in args.receipts)
    if args.proof or args.disclosure:
        receipts = chain([_only(receipts)])
    if (args.body or args.target is not None) and not args.disclosure:
        raise ConfigError("--body and --target go with --disclosure")
    trust = _trust(args, keys)
    proof = _proof(args.proof) if args.proof else None
    results = (_Result(source=source, found=judge(jws, trust, proof)) for source, jws in receipts)
    if args.disclosure:
        disclosure = read_disclosure(args.disclosure, args.body, args.target)
        results = (_disclosed(result, disclosure) for result in results)
    return 0 if _shown(results, as_json=args.json) else 1


def _only[T](receipts: Iterator[T]) -> T:
    first = next(receipts)
    if more := sum(1 for _ in receipts):
        raise ConfigError(f"--proof and --disclosure are of one receipt, and here are {1 + more}")
    return first


def _shown(results: Iterable[_Result], *, as_json: bool) -> bool:
    """Whether all hold: each is shown when it is known, and then forgotten."""
    bad = 0

    def counted() -> Iterator[_Result]:
        nonlocal bad
        for result in results:
            bad += not result.found.ok
            yield result

    if as_json:
        print_json_list(_row(result) for result in counted())
    else:
        for result in counted():
            say(_line(result))
    return not bad


def _disclosed(result: _Result, disclosure: Disclosure) -> _Result:
    """The same finding, unless the receipt commits to another request."""
    found = result.found
    if not found.ok or found.statement is None:
        return result
    problem = disclosure.problem(found.statement)
    return result if not problem else replace(result, found=replace(found, reason=problem))


def _trust(args: argparse.Namespace, keys: KeySet) -> Trust:
    witnesses = tuple(_verifier(text) for text in args.witness)
    if any(witness.type is not SignatureType.COSIGNATURE for witness in witnesses):
        raise ConfigError("--witness: this is not a witness key, type 4 of c2sp.org/tlog-cosignature")
    quorum = len(witnesses) if args.quorum is None else args.quorum
    if not 0 <= quorum <= len(witnesses):
        raise ConfigError(f"--quorum {quorum} of {len(witnesses)} witnesses (--witness)")
    log: tuple[Verifier, ...] = ()
    if args.log_key:
        log = follow(_verifier(args.log_key), _changes(args.log_changes), keys)
    elif args.log_changes:
        raise ConfigError("--log-changes begins with the key that you trust: give --log-key too")
    elif args.proof:
        log = log_verifiers(config_of(args).state_dir)
    return Trust(keys=keys, log=log, witnesses=witnesses, quorum=quorum, require_permit=args.require_permit)


def _changes(path: Path | None) -> tuple[Proof, ...]:
    return () if path is None else read_changes(_content(path))


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read: {error.strerror}", file=str(path)) from error


def _verifier(text: str) -> Verifier:
    """A verifier key, written out or in a file."""
    try:
        return parse_vkey(text)
    except TlogError as error:
        if "+" in text and not Path(text).exists():
            raise ConfigError(f"{text}: {error}") from error
    return log_verifier(Path(text))


def _proof(path: Path) -> Proof:
    # A proof that is none is an invalid receipt's, exit code 1: TlogError goes up to main().
    return parse_proof(_content(path))


def _row(result: _Result) -> dict[str, Any]:
    found = result.found
    row: dict[str, Any] = {"source": result.source, "ok": found.ok, "reason": found.reason}
    if found.statement is not None:
        row["receipt"] = found.statement
    if found.inclusion is not None:
        row["log"] = {
            "origin": found.inclusion.checkpoint.origin,
            "index": found.inclusion.index,
            "size": found.inclusion.checkpoint.size,
            "witnesses": sorted(found.inclusion.witnesses),
        }
    return row


def _line(result: _Result) -> str:
    found = result.found
    if not found.ok or found.statement is None:
        return f"INVALID {result.source}: {found.reason}"
    said = found.statement
    what = said.get("outcome") or said.get("status") or said.get("action", "")
    line = f"ok {said['id']} {said['type']} {what} {said.get('reason', '')}".rstrip()
    if found.inclusion is None:
        return line
    return f"{line}, leaf {found.inclusion.index} of {found.inclusion.checkpoint.size}"


def read_keys(place: str) -> KeySet:
    """A JWKS from a file or URL. Raises ConfigError."""
    try:
        if place.startswith(("https://", "http://")):
            with urllib.request.urlopen(place, timeout=_TIMEOUT_S) as answer:  # noqa: S310 - scheme checked
                return parse_jwks(answer.read(_MAX_KEYS_BYTES))
        return parse_jwks(Path(place).read_bytes())
    except KeyDocumentError as error:
        raise ConfigError(str(error), file=place) from error
    except (OSError, ValueError, HTTPException) as error:
        raise ConfigError(f"cannot read keys: {error}", file=place) from error
