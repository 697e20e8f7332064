"""The stub resolver's side of DNS: a question's bytes in, an answer's bytes out. Pure.

Names that a surface map has get one made-up address per IP version, from the ranges for documentation: the
agent's connection to it is redirected, its name is read from SNI and Host, and the real address is looked up
after PERMIT only. Every other name does not exist. Nothing is ever asked of anybody.

Invariants (tests/test_dns_answer.py has one test named after each):
  DA1  An address is given for mapped names only, and it is one of the two made-up ones.
  DA2  What is not one well-formed question of class IN gets no answer at all.
  DA3  An answer is at most 28 bytes longer than its question: no use to amplify with.
  DA4  Other types of a mapped name (HTTPS with its ECH keys, TXT, MX) are empty answers, never records.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final

__all__ = ["ADDRESS_V4", "ADDRESS_V6", "Reply", "answer"]

ADDRESS_V4: Final = IPv4Address("198.51.100.1")  # TEST-NET-2, RFC 5737: belongs to nobody
ADDRESS_V6: Final = IPv6Address("2001:db8::1")  # RFC 3849
TTL_S: Final = 60

_A: Final = 1
_AAAA: Final = 28
_IN: Final = 1
_OPT: Final = 41
_NXDOMAIN: Final = 3
_MAX_QUERY: Final = 512
_ALPHABET: Final = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789-_")
_RESPONSE: Final = 0x8000
_RECURSION: Final = 0x0080
_ASKED_FLAGS: Final = 0x0110  # recursion desired, checking disabled: repeated in the answer
_NEITHER: Final = 0xFA40  # response, opcode, truncated: not in a question. Reserved bit too.


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    name: str  # lower case, without a dot at the end
    mapped: bool
    data: bytes


def answer(query: bytes, is_mapped: Callable[[str], bool]) -> Reply | None:
    """The answer to one question, or None where there is nothing to answer (DA2)."""
    question = _question(query)
    if question is None:
        return None
    name, kind, end = question
    ident, flags = struct.unpack_from("!HH", query)
    mapped = is_mapped(name)
    records = b""
    if mapped and kind in (_A, _AAAA):
        packed = ADDRESS_V4.packed if kind == _A else ADDRESS_V6.packed
        records = struct.pack("!HHHIH", 0xC00C, kind, _IN, TTL_S, len(packed)) + packed
    said = _RESPONSE | _RECURSION | (flags & _ASKED_FLAGS) | (0 if mapped else _NXDOMAIN)
    head = struct.pack("!HHHHHH", ident, said, 1, 1 if records else 0, 0, 0)
    return Reply(name=name, mapped=mapped, data=head + query[12:end] + records)


def _question(query: bytes) -> tuple[str, int, int] | None:
    """(name, type, where the question ends); None unless it is exactly one, with EDNS at most after it."""
    if not 17 <= len(query) <= _MAX_QUERY:
        return None
    flags, questions, answers, authorities, extra = struct.unpack_from("!HHHHH", query, 2)
    if flags & _NEITHER or (questions, answers, authorities) != (1, 0, 0) or extra > 1:
        return None
    labels: list[bytes] = []
    at = 12
    while at < len(query) and (size := query[at]) != 0:
        label = query[at + 1 : at + 1 + size].lower()
        if size > 63 or len(label) != size or not _ALPHABET.issuperset(label):
            return None
        labels.append(label)
        at += 1 + size
    if at + 5 > len(query) or not labels or at - 12 > 253:
        return None
    kind, klass = struct.unpack_from("!HH", query, at + 1)
    end = at + 5
    if klass != _IN or not _rest_is_edns(query[end:], extra):
        return None
    return b".".join(labels).decode("ascii"), kind, end


def _rest_is_edns(rest: bytes, extra: int) -> bool:
    """RFC 6891: root name, type OPT, then a length. Its content is not read: answers fit without it."""
    if not extra:
        return not rest
    if len(rest) < 11 or rest[0] != 0 or int.from_bytes(rest[1:3], "big") != _OPT:
        return False
    return len(rest) == 11 + int.from_bytes(rest[9:11], "big")
