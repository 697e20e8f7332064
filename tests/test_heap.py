"""heap.py: the search for cycles is put off, and never switched off."""

from __future__ import annotations

import gc

import pytest

from holdgate.heap import building


def test_hp1_the_search_goes_on_afterwards() -> None:
    assert gc.isenabled()
    with building():
        assert not gc.isenabled()
        with building():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(KeyError), building():
        raise KeyError
    assert gc.isenabled()


def test_hp1_it_stays_off_where_it_was_off() -> None:
    gc.disable()
    try:
        with building():
            assert not gc.isenabled()
        assert not gc.isenabled()
    finally:
        gc.enable()
