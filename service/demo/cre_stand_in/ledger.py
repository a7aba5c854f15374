"""What the stand-in saw and did, and the questions that a test asks about it.

Attempts count only well-formed calls whose id could be read; `refusals` counts every refusal by its reason.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Literal, TypeAlias

DeliveryState: TypeAlias = Literal["waiting", "sent", "delivered", "rejected", "reverted", "prior_transmission"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One HTTP call: `outcome` is accepted, cached, refused:<reason>, fault:<name> or nodes:<reason>."""

    request_id: str
    body_sha256: str
    digest: str | None
    jti: str | None
    outcome: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run of the workflow's code; `outcome` is mint, or the reason why there was none."""

    request_id: str
    execution_id: bytes
    outcome: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One signed report on its way through the forwarder, with every transaction that carried it, the last one last.

    `delivered` and `rejected` are what `ReportProcessed` said (true, false), `reverted` is a transaction that failed
    as a whole, and `prior_transmission` means that the forwarder had it already.  `block_number` is where the state
    was seen: until it is deep, a reorg may take it back.
    """

    request_id: str
    execution_id: bytes
    consumer: bytes
    recipient: bytes
    amount_wei: int
    bank_reference: bytes
    raw_report: bytes
    state: DeliveryState = "waiting"
    transactions: tuple[str, ...] = ()
    block_number: int | None = None


class Ledger:
    """Counts for the demo and for tests; `on_change` gets a JSON-able line for each fact, as it happens."""

    def __init__(self, on_change: Callable[[dict[str, object]], None] = lambda _: None) -> None:
        self.attempts: list[Attempt] = []
        self.runs: list[Run] = []
        self.deliveries: list[Delivery] = []
        self.refusals: Counter[str] = Counter()
        self.dropped: list[str] = []
        """Request ids that were accepted and silently never ran (cre.md §1.7)."""
        self._on_change = on_change

    def record_attempt(self, attempt: Attempt) -> None:
        """Keep one call, and count it among the refusals if it is one."""
        self.attempts.append(attempt)
        kind, _, reason = attempt.outcome.partition(":")
        if kind in ("refused", "nodes"):
            self.refusals[reason] += 1
        self._on_change({"attempt": _plain(attempt)})

    def record_refusal(self, reason: str) -> None:
        """Count a call that was refused before its id could be read."""
        self.refusals[reason] += 1
        self._on_change({"refusal": reason})

    def record_run(self, run: Run) -> None:
        """Keep one run of the workflow."""
        self.runs.append(run)
        self._on_change({"run": _plain(run)})

    def record_drop(self, request_id: str) -> None:
        """Keep an accepted request that will never run."""
        self.dropped.append(request_id)
        self._on_change({"drop": request_id})

    def record_delivery(self, delivery: Delivery) -> int:
        """Keep a new delivery and give its place, by which `update_delivery` finds it."""
        self.deliveries.append(delivery)
        self._on_change({"delivery": _plain(delivery)})
        return len(self.deliveries) - 1

    def update_delivery(self, place: int, delivery: Delivery) -> None:
        """Replace a delivery by what was seen of it since."""
        if self.deliveries[place] != delivery:
            self.deliveries[place] = delivery
            self._on_change({"delivery": _plain(delivery)})

    def request_ids(self) -> set[str]:
        """Give every different id that was called with."""
        return {attempt.request_id for attempt in self.attempts}

    def jtis(self) -> set[str]:
        """Give the jti of every token that was verified."""
        return {attempt.jti for attempt in self.attempts if attempt.jti is not None}

    def attempts_of(self, request_id: str) -> list[Attempt]:
        """Give the calls with this id, in order."""
        return [attempt for attempt in self.attempts if attempt.request_id == request_id]

    def digests_of(self, request_id: str) -> set[str]:
        """More than one digest under one id: the caller changed the request between attempts."""
        return {attempt.digest for attempt in self.attempts_of(request_id) if attempt.digest is not None}

    def bodies_of(self, request_id: str) -> set[str]:
        """SHA-256 of each different wire body under one id."""
        return {attempt.body_sha256 for attempt in self.attempts_of(request_id)}

    def runs_of(self, request_id: str) -> list[Run]:
        """Give the runs of this id: more than one means that the cache had forgotten it."""
        return [run for run in self.runs if run.request_id == request_id]

    def deliveries_of(self, request_id: str) -> list[Delivery]:
        """Give the reports of this id, one a run."""
        return [delivery for delivery in self.deliveries if delivery.request_id == request_id]

    def mints(self) -> list[Delivery]:
        """Deliveries that the chain confirmed when it was last looked at."""
        return [delivery for delivery in self.deliveries if delivery.state == "delivered"]

    def wrong_targets(self) -> int:
        """Runs that would have minted in the default basket or across chains."""
        return sum(run.outcome.startswith("wrong_target") for run in self.runs)

    def as_json(self) -> dict[str, object]:
        """Give everything as plain JSON, with the totals first."""
        return {
            "totals": {
                "attempts": len(self.attempts),
                "request_ids": len(self.request_ids()),
                "jtis": len(self.jtis()),
                "runs": len(self.runs),
                "deliveries": len(self.deliveries),
                "mints": len(self.mints()),
                "dropped": len(self.dropped),
                "wrong_targets": self.wrong_targets(),
            },
            "refusals": dict(self.refusals),
            "requests": {request_id: self._request_as_json(request_id) for request_id in sorted(self.request_ids())},
            "deliveries": [_plain(delivery) for delivery in self.deliveries],
        }

    def _request_as_json(self, request_id: str) -> dict[str, object]:
        return {
            "attempts": _counted(attempt.outcome for attempt in self.attempts_of(request_id)),
            "digests": sorted(self.digests_of(request_id)),
            "bodies": sorted(self.bodies_of(request_id)),
            "runs": [run.outcome for run in self.runs_of(request_id)],
            "deliveries": [delivery.state for delivery in self.deliveries_of(request_id)],
        }


def _counted(outcomes: Iterable[str]) -> dict[str, int]:
    return dict(Counter(outcomes))


def _plain(fact: Attempt | Run | Delivery) -> dict[str, object]:
    # Amounts as text: a uint256 does not survive most JSON readers.
    return {
        name: "0x" + value.hex() if isinstance(value, bytes) else str(value) if name == "amount_wei" else value
        for name, value in asdict(fact).items()
    }
