"""`holdgate verify`: are these receipts what they claim to be? Offline, everything recomputed.

A receipt is given as a file (one JWS, one JWS per line, the JSON lines of `receipts export`, or the headers
of an HTTP answer), as a folder of such files, as `-`, as a `Holdgate-Receipt` line, or as the JWS itself.
"""

from __future__ import annotations

import argparse
import json
import re
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, replace
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
from .shared import Commands, add, config_of, print_json, read_bytes, say

__all__ = ["read_keys", "register"]

_MAX_KEYS_BYTES: Final = 1_048_576
_TIMEOUT_S: Final = 10
# No file is meant: the header of every JWS begins with these letters, and it is longer than a file's name.
_JWS: Final = re.compile(r"eyJ[\w-]{60,}\.[\w-]+\.[\w-]+", re.ASCII)
_HEADER: Final = re.compile(rb"(?:< )?holdgate-receipt:[ \t]*([^ \t]*)[ \t]*\Z", re.IGNORECASE)
_PROOF_SUFFIX: Final = ".tlog-proof"


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
    receipts = [found for name in args.receipts for found in _read(name)]
    if (args.proof or args.disclosure) and len(receipts) != 1:
        raise ConfigError(f"--proof and --disclosure are of one receipt, and here are {len(receipts)}")
    if (args.body or args.target is not None) and not args.disclosure:
        raise ConfigError("--body and --target go with --disclosure")
    trust = _trust(args, keys)
    proof = _proof(args.proof) if args.proof else None
    results = [_Result(source=source, found=judge(jws, trust, proof)) for source, jws in receipts]
    if args.disclosure:
        results = [_disclosed(results[0], read_disclosure(args.disclosure, args.body, args.target))]
    if args.json:
        print_json([_row(result) for result in results])
    else:
        for result in results:
            say(_line(result))
    return 0 if results and all(result.found.ok for result in results) else 1


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


def _read(name: str) -> Iterator[tuple[str, bytes]]:
    """Every receipt behind one argument, with the words that name it."""
    header = _HEADER.match(name.encode("utf-8", "surrogateescape"))
    if header or _JWS.fullmatch(name):
        yield "argument", header[1] if header else name.encode()
    elif name != "-" and Path(name).is_dir():
        yield from _read_folder(Path(name))
    else:
        yield from _read_file(name)


def _read_folder(folder: Path) -> Iterator[tuple[str, bytes]]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != _PROOF_SUFFIX)
    if not files:
        raise ConfigError("no receipt in it", file=str(folder))
    for path in files:
        yield from _read_file(str(path))


def _read_file(name: str) -> Iterator[tuple[str, bytes]]:
    try:
        lines = read_bytes(name).splitlines()
    except OSError as error:
        raise ConfigError(f"cannot read: {error.strerror}", file=name) from error
    filled = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    headers = [(number, header[1]) for number, line in filled if (header := _HEADER.match(line))]
    found = headers or [(number, _jws_of(line)) for number, line in filled]
    if not found:
        raise ConfigError("no receipt in it", file=name)
    for number, jws in found:
        yield (name if len(found) == 1 else f"{name}:{number}"), jws


def _jws_of(line: bytes) -> bytes:
    """The JWS of one line of an export; any other line is taken as a JWS and fails as one."""
    if not line.startswith(b"{"):
        return line
    try:
        jws = json.loads(line)["jws"]
        return jws.encode("ascii") if isinstance(jws, str) else line
    except (ValueError, KeyError, RecursionError):
        return line


def read_keys(place: str) -> KeySet:
    """A JWKS from a file or URL. Raises ConfigError."""
    try:
        if place.startswith(("https://", "http://")):
            with urllib.request.urlopen(place, timeout=_TIMEOUT_S) as answer:  # noqa: S310 - scheme checked
                return parse_jwks(answer.read(_MAX_KEYS_BYTES))
        return parse_jwks(Path(place).read_bytes())
    except OSError as error:
        raise ConfigError(f"cannot read keys: {error}", file=place) from error
    except KeyDocumentError as error:
        raise ConfigError(str(error), file=place) from error
