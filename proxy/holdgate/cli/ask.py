"""`holdgate reconcile ask`: ask vendors, through the running proxy, what became of permits in doubt.

One read per permit, as its map says (`reconcile:`), with a credential of the operator's; gated, recorded and
forwarded like any agent's. What the answer proves is settled as `reconcile resolve` would; all else stays.

Invariant (tests/integration/test_ask.py):
  AC1  Nothing is settled but by an answer whose receipt, in this ledger, is a PERMIT of exactly the read
       that was asked.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ..adapters.admin.shapes import decode_jws
from ..adapters.asking import AskError, Credentials, ask_proxy, load_credentials, request_of
from ..adapters.fitness import active_bundle
from ..adapters.keyfiles import load_fleet_key
from ..adapters.open_reader import fleet_reader
from ..adapters.reader import Reader
from ..config import Config
from ..errors import BackendError, ConfigError
from ..inquiry import InquiryError, Question, Seen, is_due, question, request_digest, see
from ..ledger import Finding, OutcomeStatus, State
from ..surface.index import SurfaceIndex
from .shared import Commands, add, config_of, print_json, say, whole_number

__all__ = ["register"]

_LOOPBACK: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - what is listened on, to what is dialled

type Settle = Callable[[Config, Finding], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Desk:
    """What one round needs."""

    config: Config
    credentials: Credentials
    index: SurfaceIndex
    fleet_key: bytes
    proxy: tuple[str, int]
    settle: Settle  # raises BackendError


@dataclass(frozen=True, slots=True, kw_only=True)
class _Told:
    """What is printed of one permit."""

    of: str
    status: str  # "reconciled" or "unknown"
    because: str
    asked: str = ""  # the receipt of the read
    receipt: str = ""  # that of the outcome


def register(reconcile: Commands, settle: Settle) -> None:
    parser = add(
        reconcile,
        "ask",
        _ask,
        does="ask the vendor about each, as its map says, through the running proxy; settle what is certain",
        example="holdgate reconcile ask --credentials reconciler.yaml --watch 60",
        data=True,
    )
    parser.set_defaults(settle=settle)
    parser.add_argument("ids", nargs="*", metavar="ID", help="receipts of PERMITs; without any, all in doubt")
    parser.add_argument(
        "--credentials",
        type=Path,
        required=True,
        metavar="FILE",
        help="YAML, mode 0600: {proxy_token: NAME:TOKEN, source: IP, hosts: {HOST: {authorization: ...}}}",
    )
    parser.add_argument(
        "--proxy", default="", metavar="HOST:PORT", help="default: listen.explicit of the configuration"
    )
    parser.add_argument(
        "--watch",
        type=whole_number,
        default=0,
        metavar="SECONDS",
        help="ask again this often, each permit less and less often",
    )


def _ask(args: argparse.Namespace) -> int:
    config = config_of(args)
    desk = _Desk(
        config=config,
        credentials=load_credentials(args.credentials),
        index=active_bundle(config).index,
        fleet_key=load_fleet_key(config.state_dir),
        proxy=_proxy(config, args.proxy),
        settle=args.settle,
    )
    if args.watch:
        _watch(desk, args)
    told = [_about(desk, permit) for permit in _in_doubt(desk, args.ids)]
    _print(told, as_json=args.json)
    return 0 if all(each.status == "reconciled" for each in told) else 1


def _watch(desk: _Desk, args: argparse.Namespace) -> None:
    """Rounds without end; a permit that stays in doubt is asked about less and less often."""
    times: dict[str, tuple[float, float]] = {}  # permit -> when first and last asked about
    while True:
        now_s, waiting = time.monotonic(), _in_doubt(desk, args.ids, strict=False)
        times = {each: times[each] for each in waiting if each in times}
        due = [each for each in waiting if each not in times or is_due(*times[each], now_s)]
        times |= {each: (times.get(each, (now_s, now_s))[0], now_s) for each in due}
        if due:
            _print([_about(desk, permit) for permit in due], as_json=args.json)
        time.sleep(args.watch)


def _proxy(config: Config, given: str) -> tuple[str, int]:
    """Raises ConfigError."""
    if given:
        host, _, port = given.rpartition(":")
        if not host or not port.isascii() or not port.isdigit():
            raise ConfigError(f"--proxy {given}: write HOST:PORT")
        return host.strip("[]"), int(port)
    listener = config.listen.explicit
    if listener is None or listener.port == 0:
        raise ConfigError("no `listen.explicit` with a port to ask through: say --proxy HOST:PORT")
    return _LOOPBACK.get(listener.host, listener.host), listener.port


def _in_doubt(desk: _Desk, ids: list[str], *, strict: bool = True) -> list[str]:
    """The permits to ask about. Raises ConfigError for one that is not in doubt."""
    with fleet_reader(desk.config) as reader:
        unknown = [permit.receipt_id for permit in reader.permits(State.UNKNOWN)]
    for each in ids if strict else ():
        if each not in unknown:
            raise ConfigError(f"{each} is no permit whose outcome is unknown")
    return [each for each in unknown if not ids or each in ids]


def _about(desk: _Desk, permit: str) -> _Told:
    """Ask about one permit and settle it where the answer proves something."""
    asked = ""
    try:
        put = _question(desk, permit)
        raw, limits = request_of(put, desk.credentials), desk.config.limits
        digest = request_digest(put, raw, desk.index, limits, fleet_key=desk.fleet_key)
        ca_file = desk.config.state_dir / "ca" / "ca.pem"
        answer = ask_proxy(desk.proxy, put, desk.credentials, ca_file=ca_file)
        asked = answer.receipt
        with fleet_reader(desk.config) as reader:
            _check_receipt(reader, asked, put, digest)
        seen = see(put, answer.head, answer.body)
        if seen is not Seen.EXECUTED:
            return _Told(of=permit, status="unknown", because=seen.value, asked=asked)
        note = f"asked the vendor: {put.read}, {asked}"
        finding = Finding(of=permit, found=OutcomeStatus.EXECUTED, by="local", note=note)
        receipt = desk.settle(desk.config, finding)
        return _Told(of=permit, status="reconciled", because="executed", asked=asked, receipt=receipt)
    except (InquiryError, AskError, BackendError) as error:
        return _Told(of=permit, status="unknown", because=str(error), asked=asked)


def _question(desk: _Desk, permit: str) -> Question:
    """Raises InquiryError."""
    with fleet_reader(desk.config) as reader:
        statement, inputs = _decided(reader, permit)
        first, decided = statement, inputs
        while "replay_of" in first:
            first, decided = _decided(reader, first["replay_of"])
    first_s = int(decided["clock"]["now_s"])
    return question(statement, inputs, desk.index, first_s=first_s, fleet_key=desk.fleet_key)


def _decided(reader: Reader, receipt: str) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """A receipt and what was decided on. Raises InquiryError."""
    jws, inputs, _ = reader.decided(receipt) or (b"", None, b"")
    if not inputs:
        raise InquiryError("what was decided on is not there any more")
    return decode_jws(jws), json.loads(inputs)


def _check_receipt(reader: Reader, receipt: str, put: Question, digest: str) -> None:
    """Raises AskError unless this ledger says that it permitted exactly this read."""
    stored = reader.get(receipt)
    statement: Mapping[str, Any] = {} if stored is None else decode_jws(stored.jws)
    operations = [action["operation"] for action in statement.get("actions", ())]
    if (
        statement.get("outcome") != "PERMIT"
        or operations != [put.read]
        or statement.get("destination") != put.destination
        or statement.get("request", {}).get("digest") != digest
    ):
        raise AskError(f"{receipt} is not a PERMIT of the read that was asked")


def _print(told: list[_Told], *, as_json: bool) -> None:
    if as_json:
        print_json(
            [
                {
                    name: value
                    for name, value in (
                        ("of", each.of),
                        ("status", each.status),
                        ("because", each.because),
                        ("asked", each.asked),
                        ("receipt", each.receipt),
                    )
                    if value
                }
                for each in told
            ]
        )
        return
    for each in told:
        by = f", asked with {each.asked}" if each.asked else ""
        if each.status == "reconciled":
            say(f"{each.of}: executed, receipt {each.receipt}{by}")
        else:
            say(f"{each.of}: still unknown: {each.because}{by}")
