"""DNS messages for the stub resolver: a question to bytes, an answer's bytes to addresses. Pure.

Only what a stub needs: one question, class IN, A and AAAA, CNAME chains inside one answer.

Invariants (tests/test_resolver.py):
  DW1  An answer counts only with our id and exactly our question (name case included).
  DW2  Only addresses owned by the asked name, or by its CNAME chain, are returned.
  DW3  parse_answer() raises only BadAnswer, and ends, whatever the bytes.
"""

from __future__ import annotations

import ipaddress
import struct
from typing import Final

from ..errors import HoldgateError

__all__ = ["AAAA", "A", "BadAnswer", "build_query", "parse_answer", "truncated"]

A: Final = 1
AAAA: Final = 28
_CNAME: Final = 5
_IN: Final = 1
_NXDOMAIN: Final = 3
_MAX_RECORDS: Final = 64
_MAX_CHAIN: Final = 8


class BadAnswer(HoldgateError):
    """Not an answer to our question, or a server failure."""


def build_query(host: str, kind: int, ident: int) -> bytes:
    """A recursive query; `host` keeps its letter case, so that a server must echo it."""
    labels = host.encode("ascii").split(b".")
    if len(host) > 253 or not all(0 < len(label) < 64 for label in labels):
        raise BadAnswer("not a DNS name")
    name = b"".join([bytes([len(label)]) + label for label in labels]) + b"\0"
    return struct.pack("!HHHHHH", ident, 0x0100, 1, 0, 0, 0) + name + struct.pack("!HH", kind, _IN)


def truncated(answer: bytes) -> bool:
    """Whether the server says that the answer did not fit (ask again over TCP)."""
    return len(answer) > 2 and bool(answer[2] & 0x02)


def parse_answer(answer: bytes, query: bytes) -> tuple[str, ...]:
    """The addresses in `answer` to `query`; () when the name has none. Raises BadAnswer."""
    try:
        return _parse(answer, query)
    except (struct.error, IndexError, ValueError) as error:
        raise BadAnswer("malformed answer") from error


def _parse(answer: bytes, query: bytes) -> tuple[str, ...]:
    ident, flags, questions, records = struct.unpack_from("!HHHH", answer)
    if ident != int.from_bytes(query[:2], "big") or not flags & 0x8000 or questions != 1:
        raise BadAnswer("not an answer to our question")
    if answer[12 : len(query)] != query[12:]:
        raise BadAnswer("answers another question")
    code = flags & 0x000F
    if code == _NXDOMAIN:
        return ()
    if code != 0:
        raise BadAnswer(f"server failure, code {code}")
    (kind,) = struct.unpack_from("!H", query, len(query) - 4)
    found: list[tuple[bytes, str]] = []
    aliases: dict[bytes, bytes] = {}
    at = len(query)
    for _ in range(min(records, _MAX_RECORDS)):
        owner, at = _name(answer, at)
        this, klass, _ttl, size = struct.unpack_from("!HHIH", answer, at)
        at += 10
        data = answer[at : at + size]
        if len(data) != size:
            raise BadAnswer("a record is cut")
        if klass == _IN and this == _CNAME:
            aliases[owner] = _name(answer, at)[0]
        elif klass == _IN and this == kind:
            if size != (4 if kind == A else 16):
                raise BadAnswer("an address of the wrong size")
            found.append((owner, str(ipaddress.ip_address(data))))
        at += size
    name, _ = _name(query, 12)
    chain = {name}
    for _ in range(_MAX_CHAIN):
        if name not in aliases:
            break
        name = aliases[name]
        chain.add(name)
    return tuple([text for owner, text in found if owner in chain])


def _name(message: bytes, at: int) -> tuple[bytes, int]:
    """The name at `at`, lower case, and the offset after it. Pointers only go backwards."""
    labels: list[bytes] = []
    after = -1
    floor = at
    while (size := message[at]) != 0:
        if size & 0xC0 == 0xC0:
            target = (size & 0x3F) << 8 | message[at + 1]
            if target >= floor:
                raise BadAnswer("a name points forwards")
            after = at + 2 if after < 0 else after
            at = floor = target
            continue
        if size & 0xC0 or len(labels) > 127:
            raise BadAnswer("a name is malformed")
        label = message[at + 1 : at + 1 + size]
        if len(label) != size:
            raise BadAnswer("a name is cut")
        labels.append(label.lower())
        at += 1 + size
    return b".".join(labels), (at + 1 if after < 0 else after)
