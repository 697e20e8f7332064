"""The cases of cases.yaml once more, sent by an agent that knows of no proxy and redirected to it."""

from __future__ import annotations

import os

import pytest

from attack.arena import Arena
from attack.cases import Case, load_redirected
from attack.network import CAN
from attack.test_attack import named, try_case
from attack.test_families import check_codings_and_lengths, check_random_damage
from attack.test_variants import LISTS, check_variants

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CAN and "CI" not in os.environ, reason="needs root, ip and nft"),
]


@pytest.mark.parametrize("case", named(load_redirected()))
def test_case(redirected: Arena, case: Case) -> None:
    try_case(redirected, case)


@pytest.mark.parametrize("path", ["redirected", "redirected plain"])
def test_lengths_and_codings_in_any_company(redirected: Arena, path: str) -> None:
    check_codings_and_lengths(redirected, path)


@pytest.mark.parametrize("path", ["redirected", "redirected plain"])
def test_random_damage(redirected: Arena, path: str) -> None:
    check_random_damage(redirected, path)


@pytest.mark.parametrize("kind", LISTS)
def test_variants(redirected: Arena, kind: str) -> None:
    check_variants(redirected, kind, "redirected plain")
