"""errors.py: the one table from reason to status, text and retry."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdgate.errors import REASONS, BackendError, ConfigError, InputError, Reason, loggable


def test_e1_every_reason_has_exactly_one_row() -> None:
    assert set(REASONS) == set(Reason)
    assert all(row.text.endswith(".") for row in REASONS.values())


@pytest.mark.parametrize("reason", Reason)
def test_e2_no_status_is_success_or_redirect_and_503_is_for_retries(reason: Reason) -> None:
    row = REASONS[reason]
    assert row.status >= 400
    assert (row.status == 503) == row.retryable


def test_an_input_error_takes_its_status_from_the_table_unless_told() -> None:
    assert InputError(Reason.TOO_LARGE).status == 413
    assert InputError(Reason.TOO_LARGE, "head", status=431).status == 431
    assert str(BackendError(Reason.STORE_UNAVAILABLE, "disk")) == "store_unavailable: disk"


def test_a_config_error_reads_file_line_message() -> None:
    assert str(ConfigError("say so", file="a.yaml", line=3)) == "a.yaml:3: say so"
    assert str(ConfigError("say so", file="a.yaml")) == "a.yaml: say so"
    assert str(ConfigError("say so")) == "say so"


@pytest.mark.parametrize(
    ("detail", "expected"),
    [
        pytest.param(
            "query key 'Jane Doe' is not in the map", "query key '...' is not in the map", id="a key"
        ),
        pytest.param("""field "Jane's \\"x\\"" is odd""", "field '...' is odd", id="both quotes"),
        pytest.param(r"field 'O\'Hara' and 'b'", "field '...' and '...'", id="escaped"),
        pytest.param(
            "item 2: parameter 'amount' is too long", "item 2: parameter 'amount' is too long", id="a map's"
        ),
        pytest.param("path variable 'id' of 'Jane'", "path variable 'id' of '...'", id="a variable"),
        pytest.param("x" * 5000, "x" * 300, id="long"),
    ],
)
def test_e3_what_a_request_quoted_is_not_logged(detail: str, expected: str) -> None:
    assert loggable(detail) == expected


@given(st.text(max_size=40))
def test_e3_whatever_repr_makes_of_it(text: str) -> None:
    assert loggable(f"body field {text!r} is not in the map") == "body field '...' is not in the map"
