"""The metrics of a process.

Most follow from the rows, and their counts are kept with the rows: a restart forgets nothing, no gauge goes stale.
What no row tells, how the nodes answer, is counted as it happens.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from itertools import accumulate
from typing import TypeAlias, TypeVar

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client import Counter as CounterMetric
from prometheus_client import Histogram as HistogramMetric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.utils import floatToGoString

from datastore.status import Snapshot
from datastore.tally import Histogram, Totals
from node.endpoint import Outcome
from node.health import EndpointState
from node.inconsistency import Inconsistency
from node.pool import EndpointReport

T = TypeVar("T")

_ByLabels: TypeAlias = Mapping[tuple[str, ...], T]


class _Fixed:
    """A collector of metrics that are already computed."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = list(metrics)

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def families(snapshot: Snapshot, chain_id: int) -> list[Metric]:
    """Every metric of a snapshot; the names are promises (docs/metrics.md)."""
    values = {
        "bskt_chain_head_block": ("Newest block that the node told of.", snapshot.head),
        "bskt_chain_safe_block": ("Highest safe block that is indexed.", snapshot.safe),
        "bskt_chain_finalized_block": ("Highest finalized block that is indexed.", snapshot.finalized),
        "bskt_indexed_block": ("Last block that is indexed.", snapshot.indexed),
        "bskt_swept_block": ("Last final block that was compared with the chain a second time.", snapshot.swept),
        "bskt_indexed_block_timestamp_seconds": (
            "Its own time, Unix seconds; 0 before the first.",
            float(snapshot.indexed_timestamp or 0),
        ),
        "bskt_baskets": ("Baskets of the followed branch.", snapshot.baskets),
        "bskt_baskets_paused": (
            "Those of them that nothing is sent for, until a person resumes them.",
            snapshot.baskets_paused,
        ),
        "bskt_indexer_lag_blocks": ("Blocks between the head and the index.", snapshot.lag_blocks),
        "bskt_indexer_lag_seconds": ("How old the index is while it lags.", snapshot.lag_seconds),
        "bskt_indexer_last_progress_timestamp_seconds": (
            "When the indexer committed last, Unix seconds.",
            snapshot.indexed_at.timestamp(),
        ),
        "bskt_verifier_last_progress_timestamp_seconds": (
            "When final blocks were compared with the chain last, Unix seconds.",
            snapshot.swept_at.timestamp(),
        ),
        "bskt_verifier_lag_seconds": (
            "How long the verifier has not got on while final blocks wait for it; 0 where none waits.",
            snapshot.verifier_lag_seconds,
        ),
        "bskt_queue_waiting": ("Requests that wait for a claim.", snapshot.waiting),
        "bskt_queue_oldest_seconds": ("How long the oldest of them has waited.", snapshot.oldest_seconds),
        "bskt_paused": ("1 while a person has paused the invocator.", float(snapshot.paused is not None)),
        "bskt_quarantined": (
            "1 while nothing is triggered after a restore or a failover.",
            float(snapshot.quarantined is not None),
        ),
        "bskt_cre_next_slot_seconds": (
            "Until a workflow may be triggered again; 0 for at once.",
            min((_seconds_until(slot.next_at, snapshot.read_at) for slot in snapshot.slots), default=0.0),
        ),
        "bskt_cre_unresolved": (
            "Requests that may have been delivered and are not settled.",
            snapshot.requests.get("in_doubt", 0) + snapshot.requests.get("accepted", 0),
        ),
        "bskt_cre_refuses": (
            "1 while CRE refuses this instance or cannot be reached: only probes are sent.",
            float(snapshot.sends_fail),
        ),
        "bskt_cre_workflows_refused": (
            "Workflows that CRE refuses or that take no trigger: only probes are sent for them.",
            snapshot.refused_workflows,
        ),
        "bskt_cre_clock_offset_seconds": (
            "The gateway's clock less ours, as of its latest answer.",
            snapshot.clock_offset_seconds or 0.0,
        ),
        "bskt_halted": (
            "1 while a part of the indexer refuses to go on; nothing is sent then.",
            float(snapshot.halted is not None),
        ),
    }
    made: list[Metric] = []
    for name, (help_text, value) in values.items():
        gauge = GaugeMetricFamily(name, help_text, labels=["chain_id"])
        gauge.add_metric([str(chain_id)], value)
        made.append(gauge)
    requests = GaugeMetricFamily("bskt_mint_requests", "Requests by state.", labels=["chain_id", "state"])
    for state, count in snapshot.requests.items():
        requests.add_metric([str(chain_id), state], count)
    return [*made, requests]


def _seconds_until(at: datetime | None, now: datetime) -> float:
    return max(0.0, (at - now).total_seconds()) if at is not None else 0.0


def counted(totals: Totals, chain_id: int) -> list[Metric]:
    """Every metric of what happened; a counter falls only where a repair discards a row, which it counts anew."""
    chain = str(chain_id)
    made: list[Metric] = []

    def counter(name: str, help_text: str, labels: tuple[str, ...], values: _ByLabels[int]) -> None:
        family = CounterMetricFamily(name, help_text, labels=["chain_id", *labels])
        for label_values, value in values.items():
            family.add_metric([chain, *label_values], value)
        made.append(family)

    def histogram(name: str, help_text: str, labels: tuple[str, ...], values: _ByLabels[Histogram]) -> None:
        family = HistogramMetricFamily(name, help_text, labels=["chain_id", *labels])
        for label_values, value in values.items():
            family.add_metric([chain, *label_values], buckets=_cumulated(value), sum_value=value.total)
        made.append(family)

    counter("bskt_logs_indexed", "Logs of known origin that were stored.", ("event",), _by_label(totals.logs))
    counter("bskt_logs_undecodable", "Those of them that could not be decoded.", (), {(): totals.undecodable})
    counter(
        "bskt_reports_processed",
        "Deliveries that the forwarder reported for our baskets.",
        ("result",),
        {(_word(result),): times for result, times in totals.reports.items()},
    )
    counter("bskt_reorgs", "Times that the followed branch was left.", (), {(): sum(totals.reorg_depth.counts)})
    histogram("bskt_reorg_depth_blocks", "Blocks that a reorg orphaned.", (), {(): totals.reorg_depth})
    moves: _ByLabels[int] = {(before, after): times for (before, after), times in totals.transitions.items()}
    counter("bskt_mint_transitions", "Requests that went from one state to another.", ("from", "to"), moves)
    histogram(
        "bskt_mint_stage_seconds",
        "How long requests were in a state that they left.",
        ("stage",),
        {(stage,): value for stage, value in totals.stages.items()},
    )
    histogram("bskt_mint_end_to_end_seconds", "From a request's block to its completion.", (), {(): totals.end_to_end})
    counter("bskt_claims_expired", "Claims whose lease ended before an attempt.", (), {(): totals.claims_expired})
    counter("bskt_cre_attempts", "Answered calls to CRE.", ("outcome",), _by_label(totals.attempts))
    histogram("bskt_cre_attempt_seconds", "How long CRE took to answer.", (), {(): totals.attempt_seconds})
    counter(
        "bskt_duplicates_blocked",
        "Second mints that were not begun: by their bank reference, or by CRE knowing their id.",
        ("layer",),
        _by_label(totals.duplicates),
    )
    alarms: _ByLabels[int] = {(kind, _word(served)): times for (kind, served), times in totals.alarms.items()}
    counter("bskt_alarms", "Alarms raised.", ("kind", "served"), alarms)
    counter(
        "bskt_sweep_differences",
        "Rows of final blocks that were not what the chain says.",
        ("kind",),
        _by_label(totals.differences),
    )
    counter(
        "bskt_unattributed_mints",
        "Mints that no request of ours accounts for.",
        ("served",),
        {(_word(served),): totals.alarms["unattributed_mint", served] for served in (True, False)},
    )
    violations = totals.alarms["finality_violated", True]
    counter("bskt_finality_violations", "Times that final history would have changed.", (), {(): violations})
    return made


def _word(value: bool) -> str:
    return str(value).lower()


def _by_label(values: Mapping[str, int]) -> dict[tuple[str, ...], int]:
    return {(label,): value for label, value in values.items()}


def _cumulated(histogram: Histogram) -> list[tuple[str, float]]:
    """Prometheus' form: each bucket holds all that is not above its bound."""
    names = [*map(floatToGoString, histogram.bounds), "+Inf"]
    return list(zip(names, accumulate(histogram.counts), strict=True))


def endpoint_families(endpoints: Sequence[EndpointReport], troubles: Sequence[str], chain_id: int) -> list[Metric]:
    """What the process knows of its nodes at this moment."""
    states = GaugeMetricFamily(
        "bskt_rpc_endpoint_state", "1 for the state that an endpoint is in.", labels=["chain_id", "endpoint", "state"]
    )
    for endpoint in endpoints:
        for state in EndpointState:
            states.add_metric([str(chain_id), endpoint.name, state.value], float(state is endpoint.state))
    count = GaugeMetricFamily(
        "bskt_chain_troubles", "Reasons why the chain cannot be followed well now.", labels=["chain_id"]
    )
    count.add_metric([str(chain_id)], len(troubles))
    return [states, count]


class RpcMetrics:
    """How the nodes answer; what is counted here starts from zero with the process."""

    def __init__(self, chain_id: int) -> None:
        self.registry = CollectorRegistry()
        self._chain_id = str(chain_id)
        self._requests = CounterMetric(
            "bskt_rpc_requests",
            "Questions and batches, by endpoint, method and outcome.",
            ["chain_id", "endpoint", "method", "outcome"],
            registry=self.registry,
        )
        self._seconds = HistogramMetric(
            "bskt_rpc_request_seconds",
            "How long they took.",
            ["chain_id", "endpoint"],
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
            registry=self.registry,
        )
        self._inconsistencies = CounterMetric(
            "bskt_rpc_inconsistencies",
            "Answers that contradict the protocol, the question or each other, by kind.",
            ["chain_id", "kind"],
            registry=self.registry,
        )
        self._failovers = CounterMetric(
            "bskt_rpc_failovers",
            "Times that an endpoint in trouble was left for another one.",
            ["chain_id"],
            registry=self.registry,
        ).labels(self._chain_id)
        self._wake_ups = CounterMetric(
            "bskt_wake_ups_lost",
            "Times that a connection which only shortens a pause was lost or refused.",
            ["chain_id", "source"],
            registry=self.registry,
        )
        for kind in Inconsistency:  # a rate needs the zero before the first one
            self._inconsistencies.labels(self._chain_id, kind.value)

    def observe(self, endpoint: str, method: str, outcome: Outcome, seconds: float) -> None:
        """A question or batch ended."""
        self._requests.labels(self._chain_id, endpoint, method, outcome.value).inc()
        self._seconds.labels(self._chain_id, endpoint).observe(seconds)

    def inconsistent(self, kind: Inconsistency) -> None:
        """An endpoint contradicted something."""
        self._inconsistencies.labels(self._chain_id, kind.value).inc()

    def lost_wake_up(self, source: str) -> None:
        """What would have woken a part sooner is away; polling goes on."""
        self._wake_ups.labels(self._chain_id, source).inc()

    def failed_over(self) -> None:
        """Another endpoint took over."""
        self._failovers.inc()


def exposition(
    snapshot: Snapshot | None,
    totals: Totals,
    chain_id: int,
    *,
    live: Sequence[Metric] = (),
    measured: Sequence[CollectorRegistry] = (),
) -> bytes:
    """The text that Prometheus scrapes: the rows' metrics once the chain is pinned, the process's own at any time."""
    registry = CollectorRegistry()
    of_rows = [] if snapshot is None else [*families(snapshot, chain_id), *counted(totals, chain_id)]
    registry.register(_Fixed([*of_rows, *live]))
    return b"".join(generate_latest(each) for each in (registry, *measured))
