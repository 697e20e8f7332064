"""adapters/metrics.py: names as documented, bounded labels, exact counts."""

import re

import pytest

from holdgate.adapters.metrics import Metrics
from holdgate.errors import Outcome, Reason
from holdgate.ledger import OutcomeStatus

EXPECTED = {
    "holdgate_decisions": "counter",
    "holdgate_hold_seconds": "histogram",
    "holdgate_decide_seconds": "histogram",
    "holdgate_commit_seconds": "histogram",
    "holdgate_upstream_seconds": "histogram",
    "holdgate_in_flight": "gauge",
    "holdgate_outcomes": "counter",
    "holdgate_barrier_trips": "counter",
    "holdgate_log_size": "gauge",
    "holdgate_unknown_open": "gauge",
    "holdgate_signer_failures": "counter",
    "holdgate_anchor_failures": "counter",
    "holdgate_unmapped": "counter",
    "holdgate_ca_expiry_timestamp_seconds": "gauge",
    "holdgate_shadow": "counter",
    "holdgate_bundle_rejected": "counter",
    "holdgate_bundle_revision": "gauge",
    "holdgate_bundle_expiry_timestamp_seconds": "gauge",
}


def value(metrics: Metrics, sample: str) -> float:
    """One sample of the rendered text; fails when it is not there exactly once."""
    lines = [line for line in metrics.render().decode().splitlines() if line.rpartition(" ")[0] == sample]
    assert len(lines) == 1, sample
    return float(lines[0].rpartition(" ")[2])


def test_n1_names_types_and_labels_are_those_of_the_contract():
    metrics = Metrics()
    metrics.decision("payments.refund", Outcome.PERMIT, Reason.PERMIT_RULE)
    metrics.unmapped("example.org")
    types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", metrics.render().decode(), re.M))
    assert types == {(f"{n}_total" if t == "counter" else n): t for n, t in EXPECTED.items()}
    labels = 'surface="payments.refund",outcome="PERMIT",reason="permit_rule"'
    assert set(labels.split(",")) == set(
        re.search(r"^holdgate_decisions_total\{(.*)\} 1\.0$", metrics.render().decode(), re.M)[1].split(",")
    )


def test_n2_hosts_surfaces_and_barriers_are_bounded():
    metrics = Metrics()
    for number in range(700):
        metrics.unmapped(f"host-{number}.example")
        metrics.decision(f"surface.{number}", Outcome.SILENCE, Reason.UNKNOWN_OPERATION)
        metrics.barrier(f"barrier-{number}")
    text = metrics.render().decode()
    assert len(re.findall(r"^holdgate_unmapped_total\{", text, re.M)) == 101
    assert value(metrics, 'holdgate_unmapped_total{host="other"}') == 600
    assert len(re.findall(r"^holdgate_decisions_total\{", text, re.M)) == 501
    assert len(re.findall(r"^holdgate_barrier_trips_total\{", text, re.M)) == 51


def test_n2_words_outside_the_closed_lists_are_other():
    metrics = Metrics()
    metrics.decision("payments.refund", "MAYBE", "because")
    metrics.outcome("exploded")
    sample = 'holdgate_decisions_total{outcome="other",reason="other",surface="payments.refund"}'
    assert value(metrics, sample) == 1
    assert value(metrics, 'holdgate_outcomes_total{status="other"}') == 1


def test_n2_a_label_value_cannot_break_the_text():
    metrics = Metrics()
    metrics.unmapped('a"} 1\nholdgate_log_size 99')
    assert value(metrics, "holdgate_log_size") == 0


def test_n3_totals_are_zero_from_the_start():
    metrics = Metrics()
    assert value(metrics, 'holdgate_barrier_trips_total{barrier="server_connect"}') == 0
    for status in OutcomeStatus:
        assert value(metrics, f'holdgate_outcomes_total{{status="{status.value}"}}') == 0
    assert value(metrics, "holdgate_in_flight") == 0


def test_counts_and_times_add_up():
    metrics = Metrics()
    for seconds in (0.0001, 0.0002, 0.3, 120.0):
        metrics.hold(seconds)
    metrics.outcome(OutcomeStatus.EXECUTED)
    for change in (1, 1, -1):
        metrics.in_flight(change)
    metrics.log_size(7)
    for _ in range(3):
        metrics.decision("", Outcome.SILENCE, Reason.UNKNOWN_DESTINATION)
    assert value(metrics, 'holdgate_hold_seconds_bucket{le="0.0001"}') == 1
    assert value(metrics, 'holdgate_hold_seconds_bucket{le="0.00025"}') == 2
    assert value(metrics, 'holdgate_hold_seconds_bucket{le="60.0"}') == 3
    assert value(metrics, 'holdgate_hold_seconds_bucket{le="+Inf"}') == 4
    assert value(metrics, "holdgate_hold_seconds_count") == 4
    assert value(metrics, 'holdgate_outcomes_total{status="executed"}') == 1
    assert value(metrics, "holdgate_in_flight") == 1
    assert value(metrics, "holdgate_log_size") == 7
    unknown = 'holdgate_decisions_total{outcome="SILENCE",reason="unknown_destination",surface=""}'
    assert value(metrics, unknown) == 3


def worker(**more: int) -> dict[str, object]:
    """The figures of a worker that permitted one refund."""
    counted = Metrics()
    counted.decision("payments.refund", Outcome.PERMIT, Reason.PERMIT_RULE)
    counted.hold(0.001)
    counted.unmapped("example.org")
    return counted.figures() | more


REFUNDS = 'holdgate_decisions_total{outcome="PERMIT",reason="permit_rule",surface="payments.refund"}'


def test_n4_what_workers_report_is_added():
    metrics = Metrics()
    metrics.decision("payments.refund", Outcome.PERMIT, Reason.PERMIT_RULE)
    metrics.of_worker("worker-1", worker(in_flight=3))
    metrics.of_worker("worker-2", worker(in_flight=4))
    metrics.of_worker("worker-2", worker(in_flight=5))  # since it started: not once more
    assert value(metrics, REFUNDS) == 3
    assert value(metrics, "holdgate_hold_seconds_count") == 2
    assert value(metrics, "holdgate_in_flight") == 8
    assert value(metrics, 'holdgate_unmapped_total{host="example.org"}') == 2


def test_n4_a_worker_that_ended_takes_nothing_back():
    metrics = Metrics()
    for pid in range(30):
        metrics.of_worker(f"worker-1 {pid}", worker(in_flight=3))
        metrics.worker_ended(f"worker-1 {pid}")
    metrics.worker_ended("worker-1 7")
    assert value(metrics, REFUNDS) == 30
    assert value(metrics, "holdgate_hold_seconds_count") == 30
    assert value(metrics, "holdgate_in_flight") == 0


def test_n4_a_worker_that_is_there_again_is_not_counted_twice():
    metrics = Metrics()
    metrics.of_worker("worker-1 7", worker())
    metrics.worker_ended("worker-1 7")
    metrics.of_worker("worker-1 7", worker(in_flight=2))
    assert value(metrics, REFUNDS) == 1
    assert value(metrics, "holdgate_in_flight") == 2


@pytest.mark.parametrize(
    "figures",
    [
        pytest.param({}, id="nothing"),
        pytest.param(worker() | {"decisions": [["a", 1]]}, id="a row that is too short"),
        pytest.param(worker() | {"hold": [1]}, id="other buckets"),
        pytest.param(worker() | {"outcomes": {"executed": "many"}}, id="a word for a number"),
        pytest.param(worker() | {"in_flight": True}, id="a flag for a number"),
    ],
)
def test_n4_what_are_no_figures_changes_nothing(figures):
    metrics = Metrics()
    metrics.of_worker("worker-1", worker())
    with pytest.raises(ValueError, match="not figures"):
        metrics.of_worker("worker-1", figures)
    assert value(metrics, REFUNDS) == 1


def test_n2_the_figures_of_workers_are_bounded_too():
    metrics = Metrics()
    for part in range(3):
        counted = Metrics()
        for number in range(90):
            counted.unmapped(f"host-{part}-{number}.example")
        metrics.of_worker(f"worker-{part}", counted.figures())
    text = metrics.render().decode()
    assert len(re.findall(r"^holdgate_unmapped_total\{", text, re.M)) == 101
    assert value(metrics, 'holdgate_unmapped_total{host="other"}') == 170
