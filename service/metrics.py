"""The metrics of a process.

Most follow from the rows and are computed at each scrape: a restart forgets nothing, no gauge goes stale.  What no row
tells, how the nodes answer, is counted as it happens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric

from datastore.status import Snapshot
from node.endpoint import Outcome
from node.health import EndpointState
from node.inconsistency import Inconsistency
from node.pool import EndpointReport


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
        "bskt_indexer_lag_blocks": ("Blocks between the head and the index.", max(0, snapshot.head - snapshot.indexed)),
        "bskt_indexer_last_progress_timestamp_seconds": (
            "When the indexer committed last, Unix seconds.",
            snapshot.indexed_at.timestamp(),
        ),
        "bskt_queue_waiting": ("Requests that wait for a claim.", snapshot.waiting),
        "bskt_queue_oldest_seconds": ("How long the oldest of them has waited.", snapshot.oldest_seconds),
        "bskt_paused": ("1 while a person has paused the invocator.", float(snapshot.paused is not None)),
        "bskt_halted": ("1 while the indexer refuses to go on.", float(snapshot.halted is not None)),
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
        self._requests = Counter(
            "bskt_rpc_requests",
            "Questions and batches, by endpoint, method and outcome.",
            ["chain_id", "endpoint", "method", "outcome"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "bskt_rpc_request_seconds",
            "How long they took.",
            ["chain_id", "endpoint"],
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
            registry=self.registry,
        )
        self._inconsistencies = Counter(
            "bskt_rpc_inconsistencies",
            "Answers that contradict the protocol, the question or each other, by kind.",
            ["chain_id", "kind"],
            registry=self.registry,
        )
        self._failovers = Counter(
            "bskt_rpc_failovers",
            "Times that an endpoint in trouble was left for another one.",
            ["chain_id"],
            registry=self.registry,
        ).labels(self._chain_id)
        for kind in Inconsistency:  # a rate needs the zero before the first one
            self._inconsistencies.labels(self._chain_id, kind.value)

    def observe(self, endpoint: str, method: str, outcome: Outcome, seconds: float) -> None:
        """A question or batch ended."""
        self._requests.labels(self._chain_id, endpoint, method, outcome.value).inc()
        self._seconds.labels(self._chain_id, endpoint).observe(seconds)

    def inconsistent(self, kind: Inconsistency) -> None:
        """An endpoint contradicted something."""
        self._inconsistencies.labels(self._chain_id, kind.value).inc()

    def failed_over(self) -> None:
        """Another endpoint took over."""
        self._failovers.inc()


def exposition(
    snapshot: Snapshot | None, chain_id: int, *, live: Sequence[Metric] = (), counted: Sequence[CollectorRegistry] = ()
) -> bytes:
    """The text that Prometheus scrapes: the rows' metrics once the chain is pinned, the process's own at any time."""
    registry = CollectorRegistry()
    registry.register(_Fixed([*([] if snapshot is None else families(snapshot, chain_id)), *live]))
    return b"".join(generate_latest(each) for each in (registry, *counted))
