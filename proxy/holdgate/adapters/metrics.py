"""Numbers for the operator: what the pipeline reports becomes the text that Prometheus reads.

The client library's own instruments cost 1 to 3 us a call; a request makes about eight calls. So the counts
are plain integers in dicts, and the library is asked only when somebody reads /metrics. All methods but
`render` are called from the event loop's thread; `render` may be called from any.

Invariants (tests/test_metrics.py has one test named after each):
  N1  The names, types and labels are exactly those of the README's table.
  N2  The number of label values is bounded: no agent, host or path can grow the process.
  N3  Every total exists from the start (barrier trips show 0, they are not absent).
  N4  What workers report is added to what is counted here; a worker that ended takes nothing back.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from ..errors import Outcome, Reason
from ..ledger import OutcomeStatus
from ..manifest import Refusal

__all__ = ["CONTENT_TYPE", "Metrics"]

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
OTHER: Final = "other"

_OUTCOMES: Final = frozenset(outcome.value for outcome in Outcome)
_REASONS: Final = frozenset(reason.value for reason in Reason)
_HOSTS: Final = 100
_SURFACES: Final = 500
_BARRIERS: Final = 50
_ENDED: Final = 8  # workers whose connection ended, and who may be there again
# Seconds. The budgets are 0.4 ms (added p50), 15 ms (p99) and 55 s (a held request).
_BOUNDS: Final = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.015, 0.025),
    *(0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)
# Deciding is a hundred times quicker than anything else.
_FINE_BOUNDS: Final = (0.000005, 0.00001, 0.000025, 0.00005, *_BOUNDS[:12])


class _Histogram:
    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.total += seconds

    @classmethod
    def of(cls, bounds: tuple[float, ...], observed: list[Any]) -> _Histogram:
        whole = cls(bounds)
        whole.counts, whole.total = observed[:-1], observed[-1]
        return whole

    @property
    def observed(self) -> list[Any]:
        """The counts, and the total last."""
        return [*self.counts, self.total]

    def family(self, name: str, text: str) -> Metric:
        buckets: list[tuple[str, float]] = []
        running = 0
        for bound, count in zip((*self.bounds, float("inf")), list(self.counts), strict=True):
            running += count
            buckets.append(("+Inf" if bound == float("inf") else repr(bound), running))
        return HistogramMetricFamily(name, text, buckets=buckets, sum_value=self.total)


class _Bounded:
    """Counts by label value; past `limit` different values the rest are counted as `other`."""

    __slots__ = ("counts", "limit")

    def __init__(self, limit: int, first: Iterable[str] = ()) -> None:
        self.limit = limit
        self.counts: dict[str, int] = dict.fromkeys(first, 0)

    def add(self, value: str, count: int = 1) -> None:
        counts = self.counts
        if value not in counts and len(counts) >= self.limit:
            value = OTHER
        counts[value] = counts.get(value, 0) + count

    def plus(self, others: Iterable[Mapping[str, int]]) -> dict[str, int]:
        whole = _Bounded(self.limit)
        for counts in (dict(self.counts), *others):
            for value, count in counts.items():
                whole.add(value, count)
        return whole.counts


def _sums(rows: Iterable[list[Any]]) -> list[Any]:
    return [sum(column) for column in zip(*rows, strict=True)]


def _numbers(figures: Mapping[str, Any]) -> Iterator[Any]:
    for name in ("decisions", "shadows"):
        yield from (row[-1] for row in figures[name])
    for name in ("outcomes", "barriers", "unmapped"):
        yield from figures[name].values()
    yield from (*figures["hold"], *figures["upstream"], figures["in_flight"])


def _member(value: str, closed: frozenset[str]) -> str:
    return value if value in closed else OTHER


class Metrics:
    """The counters of one process. `in_flight`, `log_size`, `ca_expiry` and `bundle_active` are gauges."""

    def __init__(self) -> None:
        self._decisions: dict[tuple[str, str, str], int] = {}
        self._shadows: dict[tuple[str, str, str], int] = {}
        self._surfaces: set[str] = set()
        self._outcomes = _Bounded(len(OutcomeStatus), [status.value for status in OutcomeStatus])
        self._barriers = _Bounded(_BARRIERS, ("server_connect",))
        self._unmapped = _Bounded(_HOSTS)
        self._in_flight = 0
        self._log_size = 0
        self._signer_failures = 0
        self._anchor_failures: dict[str, int] = {}
        self._unknown_open = 0
        self._ca_expiry = 0.0
        self._rejected = _Bounded(len(Refusal), [refusal.value for refusal in Refusal])
        self._revision = 0
        self._bundle_expiry = 0.0
        self._hold = _Histogram(_BOUNDS)
        self._decide = _Histogram(_FINE_BOUNDS)
        self._commit = _Histogram(_BOUNDS)
        self._upstream = _Histogram(_BOUNDS)
        self.hold = self._hold.observe
        self.decide = self._decide.observe
        self.commit = self._commit.observe
        self.upstream = self._upstream.observe
        self._workers: dict[str, Mapping[str, Any]] = {}  # what each says now
        self._ended: dict[str, Mapping[str, Any]] = {}  # what those that ended had said, the oldest in one
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_Families(self))

    def decision(self, surface: str, outcome: str, reason: str) -> None:
        """Count one decision. `surface` is "" for a request that was not recognised."""
        key = (surface, outcome, reason)
        count = self._decisions.get(key)
        if count is None:
            key = (self._known(surface), _member(outcome, _OUTCOMES), _member(reason, _REASONS))
            count = self._decisions.get(key, 0)
        self._decisions[key] = count + 1

    # -- of several processes ---------------------------------------------------------------------

    def figures(self) -> dict[str, Any]:
        """What a worker counts, for the gate process that shows it."""
        return {
            "decisions": [[*key, count] for key, count in self._decisions.items()],
            "shadows": [[*key, count] for key, count in self._shadows.items()],
            "outcomes": dict(self._outcomes.counts),
            "barriers": dict(self._barriers.counts),
            "unmapped": dict(self._unmapped.counts),
            "hold": self._hold.observed,
            "upstream": self._upstream.observed,
            "in_flight": self._in_flight,
        }

    def of_worker(self, name: str, figures: Mapping[str, Any]) -> None:
        """What a worker, one process, counts since it started. Raises ValueError for what are no figures."""
        try:
            trial = Metrics()
            trial._workers[name] = figures
            trial._summed()
            if any(type(number) not in (int, float) for number in _numbers(figures)):
                raise TypeError("not a number")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"not figures: {error!r}") from error
        self._ended.pop(name, None)  # only its connection had ended
        self._workers[name] = figures

    def worker_ended(self, name: str) -> None:
        figures = self._workers.pop(name, None)
        if figures is None:
            return
        self._ended[name] = {**figures, "in_flight": 0}
        if len(self._ended) > _ENDED:
            past = Metrics()
            past._ended = {each: self._ended.pop(each) for each in list(self._ended)[:2]}
            self._ended = {"": past._summed(), **self._ended}

    def _summed(self) -> dict[str, Any]:
        """Everything that figures() has, here and in all workers."""
        others = [*self._ended.values(), *self._workers.values()]
        decisions, shadows = dict(self._decisions), dict(self._shadows)
        for mine, name in ((decisions, "decisions"), (shadows, "shadows")):
            for surface, first, second, count in (row for other in others for row in other[name]):
                key = (self._known(surface), first, second)
                mine[key] = mine.get(key, 0) + count
        return {
            "decisions": [[*key, count] for key, count in decisions.items()],
            "shadows": [[*key, count] for key, count in shadows.items()],
            "outcomes": self._outcomes.plus(other["outcomes"] for other in others),
            "barriers": self._barriers.plus(other["barriers"] for other in others),
            "unmapped": self._unmapped.plus(other["unmapped"] for other in others),
            "hold": _sums([self._hold.observed, *(other["hold"] for other in others)]),
            "upstream": _sums([self._upstream.observed, *(other["upstream"] for other in others)]),
            "in_flight": self._in_flight + sum(other["in_flight"] for other in others),
        }

    def shadow(self, surface: str, outcome: str, would: str) -> None:
        """Count one decision that a shadow policy spoke about."""
        key = (self._known(surface), _member(outcome, _OUTCOMES), _member(would, _OUTCOMES))
        self._shadows[key] = self._shadows.get(key, 0) + 1

    def outcome(self, status: str) -> None:
        self._outcomes.add(status)

    @property
    def barrier_trips(self) -> int:
        return sum(self._summed()["barriers"].values())

    def barrier(self, name: str) -> None:
        """Something that must never happen was stopped by a second line of defence: alarm."""
        self._barriers.add(name)

    def unmapped(self, host: str) -> None:
        self._unmapped.add(host)

    def in_flight(self, change: int) -> None:
        self._in_flight += change

    def anchors(self, names: Iterable[str]) -> None:
        """Who is asked to see the log; from the configuration, so there are few."""
        self._anchor_failures = dict.fromkeys(names, 0)

    def anchor_failed(self, name: str) -> None:
        """Called from the anchors' thread, the only one that does."""
        self._anchor_failures[name] += 1

    def signer_failures(self, count: int) -> None:
        self._signer_failures = count

    def log_size(self, leaves: int) -> None:
        self._log_size = leaves

    def unknown_open(self, permits: int) -> None:
        self._unknown_open = permits

    def ca_expiry(self, unix_s: float) -> None:
        self._ca_expiry = unix_s

    def bundle_rejected(self, reason: Refusal) -> None:
        self._rejected.add(reason.value)

    def bundle_active(self, revision: int, ends_s: float) -> None:
        """`ends_s`: Unix time, infinite for files."""
        self._revision, self._bundle_expiry = revision, ends_s

    def render(self) -> bytes:
        """The exposition text, content type CONTENT_TYPE."""
        return generate_latest(self._registry)

    def _known(self, surface: str) -> str:
        # Surfaces come from the maps, which an operator writes; the bound holds if one is careless.
        if surface in self._surfaces or len(self._surfaces) < _SURFACES:
            self._surfaces.add(surface)
            return surface
        return OTHER

    def families(self) -> Iterator[Metric]:
        """Every metric, in the order of the README's table. Long because there are that many."""
        whole = self._summed()
        decisions = CounterMetricFamily(
            "holdgate_decisions",
            "Decisions by surface, outcome and reason.",
            labels=("surface", "outcome", "reason"),
        )
        for surface, outcome, reason, count in whole["decisions"]:
            decisions.add_metric((surface, outcome, reason), count)
        yield decisions
        shadows = CounterMetricFamily(
            "holdgate_shadow",
            "Decisions that shadow policies spoke about, and what they would have made of them.",
            labels=("surface", "outcome", "would"),
        )
        for surface, outcome, would, count in whole["shadows"]:
            shadows.add_metric((surface, outcome, would), count)
        yield shadows
        hold, upstream = (_Histogram.of(_BOUNDS, whole[name]) for name in ("hold", "upstream"))
        yield hold.family("holdgate_hold_seconds", "From arrival to release or refusal.")
        yield self._decide.family("holdgate_decide_seconds", "Evaluation of the policy.")
        yield self._commit.family("holdgate_commit_seconds", "Durable record of one decision.")
        yield upstream.family("holdgate_upstream_seconds", "From release to the upstream's answer.")
        held = whole["in_flight"]
        yield GaugeMetricFamily("holdgate_in_flight", "Requests held or dispatched.", value=held)
        outcomes = CounterMetricFamily(
            "holdgate_outcomes", "What happened after a PERMIT.", labels=("status",)
        )
        for status, count in whole["outcomes"].items():
            outcomes.add_metric((status,), count)
        yield outcomes
        yield GaugeMetricFamily(
            "holdgate_unknown_open",
            "Permits whose outcome is unknown until somebody reconciles them.",
            value=self._unknown_open,
        )
        barriers = CounterMetricFamily(
            "holdgate_barrier_trips", "Second lines of defence that fired: must stay 0.", labels=("barrier",)
        )
        for name, count in whole["barriers"].items():
            barriers.add_metric((name,), count)
        yield barriers
        yield GaugeMetricFamily("holdgate_log_size", "Leaves in the log.", value=self._log_size)
        yield CounterMetricFamily(
            "holdgate_signer_failures",
            "Signatures that the signer process did not give.",
            value=self._signer_failures,
        )
        anchors = CounterMetricFamily(
            "holdgate_anchor_failures",
            "Checkpoints that a witness did not cosign, or the authority did not stamp.",
            labels=("anchor",),
        )
        for name, count in list(self._anchor_failures.items()):
            anchors.add_metric((name,), count)
        yield anchors
        unmapped = CounterMetricFamily(
            "holdgate_unmapped",
            "Requests to hosts that no map names, and DNS questions for them.",
            labels=("host",),
        )
        for host, count in whole["unmapped"].items():
            unmapped.add_metric((host,), count)
        yield unmapped
        yield GaugeMetricFamily(
            "holdgate_ca_expiry_timestamp_seconds",
            "When the CA that signs leaves ends, Unix time.",
            value=self._ca_expiry,
        )
        rejected = CounterMetricFamily(
            "holdgate_bundle_rejected",
            "Policy bundles and trust files that were refused.",
            labels=("reason",),
        )
        for reason, count in list(self._rejected.counts.items()):
            rejected.add_metric((reason,), count)
        yield rejected
        yield GaugeMetricFamily(
            "holdgate_bundle_revision", "Of the active bundle; 0: none, or files.", value=self._revision
        )
        yield GaugeMetricFamily(
            "holdgate_bundle_expiry_timestamp_seconds",
            "When the active bundle ends and everything is refused, Unix time; 0: no bundle is active.",
            value=self._bundle_expiry,
        )


class _Families(Collector):
    """The registry's view of Metrics."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics.families()
