"""dns_answer.py: every question is answered from the maps alone, or not at all."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mitmproxy import dns

from holdgate.adapters.dnswire import build_query, parse_answer
from holdgate.dns_answer import ADDRESS_V4, ADDRESS_V6, answer

A, AAAA, TXT, HTTPS = 1, 28, 16, 65
MAPPED = frozenset({"api.stripe.com", "a.b"})


def ask(query: bytes):
    return answer(query, MAPPED.__contains__)


names = st.lists(st.sampled_from(["a", "b", "api", "stripe", "com", "x" * 63]), min_size=1, max_size=3)


@given(names, st.sampled_from([A, AAAA, TXT, HTTPS]))
def test_da1_only_mapped_names_have_an_address_and_it_is_a_made_up_one(labels: list[str], kind: int) -> None:
    name = ".".join(labels)
    reply = ask(build_query(name, kind, 7))
    assert reply is not None and reply.name == name and reply.mapped is (name in MAPPED)
    # Somebody else's reader says what is in it.
    said = dns.DNSMessage.unpack(reply.data)
    assert said.response_code == (0 if name in MAPPED else 3)
    addresses = {str(record) for record in said.answers}
    expected = {A: str(ADDRESS_V4), AAAA: str(ADDRESS_V6)}.get(kind) if name in MAPPED else None
    assert addresses == ({expected} if expected else set())
    assert said.id == 7 and not said.query and [q.name for q in said.questions] == [name]


def test_letter_case_is_kept_in_the_answer_and_ignored_in_the_name() -> None:
    query = build_query("aPi.StRiPe.CoM", A, 1)
    reply = ask(query)
    assert reply is not None and reply.name == "api.stripe.com"
    assert parse_answer(reply.data, query) == (str(ADDRESS_V4),)


EDNS = b"\0" + struct.pack("!HHIH", 41, 1232, 0, 0)
GOOD = build_query("a.b", A, 1)


def with_counts(questions: int, answers: int, authorities: int, extra: int, rest: bytes = b"") -> bytes:
    return GOOD[:4] + struct.pack("!HHHH", questions, answers, authorities, extra) + GOOD[12:] + rest


@pytest.mark.parametrize(
    "query",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(GOOD[:-1], id="cut"),
        pytest.param(GOOD + b"\0", id="bytes after it"),
        pytest.param(GOOD[:2] + b"\x81\x80" + GOOD[4:], id="an answer"),
        pytest.param(GOOD[:2] + b"\x29\x00" + GOOD[4:], id="an update"),
        pytest.param(with_counts(2, 0, 0, 0, GOOD[12:]), id="two questions"),
        pytest.param(with_counts(0, 0, 0, 0), id="no question"),
        pytest.param(with_counts(1, 1, 0, 0), id="with an answer in it"),
        pytest.param(with_counts(1, 0, 0, 1, b"\0\0\1\0\1" + b"\0" * 6), id="extra record that is not EDNS"),
        pytest.param(with_counts(1, 0, 0, 1, EDNS[:-1]), id="EDNS cut"),
        pytest.param(with_counts(1, 0, 0, 1, EDNS + b"x"), id="EDNS longer than it says"),
        pytest.param(GOOD[:-2] + b"\0\3", id="class chaos"),
        pytest.param(GOOD[:12] + b"\xc0\x0c\0\1\0\1", id="a name that points at itself"),
        pytest.param(GOOD[:12] + b"\0\0\1\0\1", id="the root"),
        pytest.param(GOOD[:12] + b"\3a\0b\0\0\1\0\1", id="zero byte in a label"),
        pytest.param(GOOD[:12] + b"\3a.b\0\0\1\0\1", id="dot in a label"),
        pytest.param(GOOD[:12] + b"\2\xc3\xa9\0\0\1\0\1", id="not ASCII"),
        pytest.param(GOOD[:12] + (b"\x3f" + b"a" * 63) * 4 + b"\0\0\1\0\1", id="name of 256 bytes"),
    ],
)
def test_da2_what_is_not_one_question_gets_no_answer(query: bytes) -> None:
    assert ask(query) is None


@given(st.binary(max_size=600))
def test_da2_no_bytes_make_it_raise(query: bytes) -> None:
    ask(query)
    ask(GOOD[:12] + query)


def test_edns_is_understood() -> None:
    reply = ask(with_counts(1, 0, 0, 1, EDNS))
    assert reply is not None and len(reply.data) == len(GOOD) + 16


@given(names, st.sampled_from([A, AAAA, TXT]))
def test_da3_an_answer_is_hardly_longer_than_its_question(labels: list[str], kind: int) -> None:
    query = build_query(".".join(labels), kind, 1)
    reply = ask(query)
    assert reply is not None and len(reply.data) <= len(query) + 28


@pytest.mark.parametrize("kind", [TXT, HTTPS, 64, 15, 33, 255])
def test_da4_other_types_of_a_mapped_name_are_empty(kind: int) -> None:
    reply = ask(build_query("a.b", kind, 1))
    assert reply is not None
    said = dns.DNSMessage.unpack(reply.data)
    assert said.response_code == 0 and said.answers == []
