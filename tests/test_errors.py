"""errors.py: the one table from reason to status, text and retry."""

from __future__ import annotations

import pytest

from holdgate.errors import REASONS, BackendError, ConfigError, InputError, Reason


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
