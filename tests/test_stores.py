"""The one suite over every store: what test_sqlite, test_budgets, test_kept_answers and test_ledger promise,
over PostgreSQL.

The tests are imported, and here they open another store: `open_ledger` and `SqliteReader` of their modules
are replaced. What is particular to a file (damage, backups, pages) stays with SQLite; what is particular to
a server is in test_postgres.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import pgserver
import test_budgets
import test_kept_answers
import test_ledger
import test_sqlite
from test_budgets import (  # noqa: F401
    test_a_bucket_that_is_over_counts_no_more_and_is_forgotten,
    test_a_crash_keeps_what_may_have_been_spent,
    test_a_finding_settles_keys_and_budget,
    test_a_judge_that_charges_a_replay_again_gets_no_permit,
    test_a_judge_that_charges_nonsense_gets_no_permit,
    test_a_replay_takes_the_reservation_over_and_gives_it_back,
    test_a_replay_that_was_found_to_have_had_no_effect_lends_nothing_away,
    test_in_flight_reservations_count_and_the_limit_is_exact_under_concurrency,
    test_the_outcome_settles_the_reservation_once,
    test_the_store_is_the_book,
)
from test_kept_answers import (  # noqa: F401
    test_a_repeat_is_told_the_kept_answer_and_its_own_receipt,
    test_an_answer_that_came_after_the_order_is_kept_and_is_no_finding,
    test_an_answer_that_did_not_arrive_is_kept_too,
    test_an_outcome_and_the_repeat_of_one_group_know_each_other,
    test_it_is_destroyed_with_the_input_of_its_permit,
    test_it_is_forgotten_when_its_key_is_over,
    test_it_is_no_input_of_its_outcome,
    test_it_is_there_after_a_restart,
    test_its_outcome_names_what_is_kept,
    test_what_is_not_to_be_kept_is_not,
    test_who_is_no_repeat_is_told_nothing,
)
from test_ledger import (  # noqa: F401
    test_l4_what_record_returned_is_already_durable,
    test_l6_after_a_crash_what_was_dispatching_is_unknown_and_says_so,
)
from test_sqlite import (  # noqa: F401
    test_a_checkpoint_follows_a_commit_without_another_request,
    test_a_claim_is_free_when_the_last_of_its_dispatches_in_doubt_was_found_without_effect,
    test_a_nearly_full_disk_refuses_decisions_but_still_takes_outcomes,
    test_a_permit_has_one_outcome_and_unknown_one_reconciliation,
    test_a_provider_replay_goes_out_again_and_a_replay_without_effect_changes_nothing,
    test_a_replay_that_is_found_to_have_had_no_effect_frees_nothing,
    test_an_unknown_permit_of_an_earlier_run_can_be_reconciled,
    test_implicit_and_conflict_claims_are_forgotten_when_nothing_is_open,
    test_l2_a_judge_that_permits_over_a_held_claim_gets_no_permit,
    test_s1_an_admin_receipt_is_a_leaf_like_the_others,
    test_s1_one_group_judges_serially,
    test_s1_receipts_are_leaves_in_commit_order_under_one_root,
    test_s2_a_judge_that_fails_fails_alone,
    test_s2_a_note_that_no_receipt_may_make_fails_alone,
    test_s3_a_checkpoint_that_cannot_be_written_stops_the_store,
    test_s3_a_dead_writer_thread_refuses,
    test_s4_a_missing_or_forged_checkpoint_is_refused,
    test_s4_a_second_process_is_refused,
    test_s6_a_cancellation_in_the_same_turn_as_the_answer_is_not_sent_too,
    test_s6_a_permit_that_nobody_received_becomes_not_sent,
    test_s8_after_a_fence_no_permit_under_another_bundle_is_recorded,
    test_s8_the_receipt_of_an_activation_is_a_fence_in_its_own_place,
    test_s9_another_key_signs_from_the_leaf_after_the_one_that_names_it,
    test_the_outcome_decides_what_a_retry_gets,
    test_the_reader_knows_since_when_a_permit_has_no_effect,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server() -> Iterator[pgserver.Server]:
    with pgserver.server({"fsync": "on"}) as running:
        yield running


@pytest.fixture(autouse=True)
def over_postgres(server: pgserver.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each state directory has an empty database of its own."""
    fleets = pgserver.Fleets(server)
    for module in (test_sqlite, test_budgets, test_kept_answers, test_ledger):
        monkeypatch.setattr(module, "open_ledger", fleets.open_ledger)
        monkeypatch.setattr(module, "SqliteReader", fleets.reader)


@pytest.fixture
def store(server: pgserver.Server) -> Any:
    """Of test_ledger.py."""
    return lambda state_dir, **changes: test_ledger.open_ledger(state_dir, **changes)


def test_the_other_stores_suite_is_what_runs_here(tmp_path: Path) -> None:
    ledger = test_sqlite.open_ledger(tmp_path)
    assert type(ledger).__name__ == "PostgresLedger"
    assert not (tmp_path / "ledger.db").exists()
    ledger.close()
