"""cel/foreign.py: every word of another language is answered with what to write instead (X6)."""

from __future__ import annotations

import pytest

from holdgate.cel.check import check
from holdgate.cel.foreign import FUNCTIONS, LITERALS, NAMES, SIGNS, WORDS
from holdgate.cel.model import CelError
from holdgate.cel.parse import parse
from holdgate.policy_model import environment
from policy_fakes import SCHEMAS

NAMES_HERE = environment(SCHEMAS["payments.refund"]["stripe.PostRefunds"], {}, {})
# Words that another rule of the grammar answers first when they stand alone.
ELSEWHERE = {"or"}


def message(source: str) -> str:
    with pytest.raises(CelError) as caught:
        check(parse(source), NAMES_HERE, source)
    return caught.value.message


@pytest.mark.parametrize("name", sorted(set(FUNCTIONS) - ELSEWHERE))
def test_x6_functions_are_answered_as_functions_and_as_methods(name: str) -> None:
    assert FUNCTIONS[name] in message(f"params.currency.{name}(1) == 1")
    if name not in LITERALS:
        assert FUNCTIONS[name] in message(f"{name}(params.currency) == 1")


@pytest.mark.parametrize("name", sorted(NAMES))
def test_x6_names_are_answered(name: str) -> None:
    assert NAMES[name] in message(f"{name} == 1")
    assert NAMES[name] in message(f"params.live && {name}.x == 1")


@pytest.mark.parametrize("word", sorted(set(WORDS) - {"=~"}))
def test_x6_words_between_values_are_answered(word: str) -> None:
    assert WORDS[word] in message(f"params.amount {word} 5")


@pytest.mark.parametrize("word", sorted(LITERALS))
def test_x6_words_in_place_of_values_are_answered(word: str) -> None:
    assert LITERALS[word] in message(f"params.amount == {word}")


@pytest.mark.parametrize("sign", [sign for sign, _ in SIGNS])
def test_x6_signs_are_answered(sign: str) -> None:
    said = message(f"params.amount {sign} 5")
    assert dict(SIGNS)[sign] in said, said
