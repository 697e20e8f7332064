"""twins.py: an answer travels sealed, and opens for one node, one receipt and one fleet only."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdgate.answer import Answer
from holdgate.twins import TwinError, open_sealed, seal

KEY = b"f" * 32
ANSWER = Answer(
    status=200,
    reason=b"OK",
    headers=((b"Content-Type", b"application/json"), (b"Holdgate-Decision", b"PERMIT")),
    body=b'{"id":"re_1",\n"note":"secret of a customer"}',
    rest=None,
    length=42,
    bodiless=False,
    close=False,
)


class _Arriving:
    """A body whose end is not there yet."""

    async def next(self) -> bytes:
        return b""

    def abandon(self) -> None:
        """Nobody was at it."""


def sealed(answer: Answer = ANSWER) -> bytes:
    data = seal(answer, "rcpt_1", "edge-2", KEY, lambda size: b"n" * size)
    assert data is not None
    return data


@pytest.mark.parametrize(
    ("receipt", "node", "key"),
    [
        pytest.param("rcpt_2", "edge-2", KEY, id="another receipt"),
        pytest.param("rcpt_1", "edge-3", KEY, id="another node"),
        pytest.param("rcpt_1", "edge-2", b"g" * 32, id="another fleet"),
    ],
)
def test_tw1_a_sealed_answer_opens_for_its_own_receipt_node_and_fleet_only(
    receipt: str, node: str, key: bytes
) -> None:
    assert b"secret" not in sealed()
    assert open_sealed(sealed(), "rcpt_1", "edge-2", KEY) == ANSWER
    with pytest.raises(TwinError):
        open_sealed(sealed(), receipt, node, key)


@given(place=st.integers(0, len(sealed()) - 1), flip=st.integers(1, 255))
def test_tw1_an_edited_answer_does_not_open(place: int, flip: int) -> None:
    data = bytearray(sealed())
    data[place] ^= flip
    with pytest.raises(TwinError):
        open_sealed(bytes(data), "rcpt_1", "edge-2", KEY)


@pytest.mark.parametrize("data", [b"", b"n" * 24, b"n" * 60], ids=["nothing", "a nonce alone", "noise"])
def test_tw1_what_is_no_sealed_answer_does_not_open(data: bytes) -> None:
    with pytest.raises(TwinError):
        open_sealed(data, "rcpt_1", "edge-2", KEY)


@given(
    body=st.binary(max_size=200),
    status=st.integers(100, 599),
    headers=st.lists(st.tuples(st.binary(max_size=9), st.binary(max_size=9)), max_size=4),
    bodiless=st.booleans(),
)
def test_tw2_an_answer_comes_out_as_it_went_in(
    body: bytes, status: int, headers: list[tuple[bytes, bytes]], bodiless: bool
) -> None:
    answer = replace(ANSWER, status=status, body=body, headers=tuple(headers), length=None, bodiless=bodiless)
    assert open_sealed(sealed(answer), "rcpt_1", "edge-2", KEY) == answer


def test_tw2_an_answer_that_is_still_arriving_or_too_large_is_not_sealed() -> None:
    for answer in (replace(ANSWER, rest=_Arriving()), replace(ANSWER, body=bytes((1 << 20) + 1))):
        assert seal(answer, "rcpt_1", "edge-2", KEY, lambda size: b"n" * size) is None
