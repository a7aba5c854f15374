"""The metrics that follow from the rows, computed at each scrape: a restart forgets nothing, no gauge goes stale."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric

from datastore.status import Snapshot


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


def exposition(snapshot: Snapshot | None, chain_id: int) -> bytes:
    """The text that Prometheus scrapes; nothing before the chain is pinned."""
    registry = CollectorRegistry()
    if snapshot is not None:
        registry.register(_Fixed(families(snapshot, chain_id)))
    return generate_latest(registry)
