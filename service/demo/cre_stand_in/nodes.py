"""The nodes of the DON: a cache of answers by request id, and the engine that runs the workflow (cre.md §1.7, §2.4)."""

from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass

from service.demo.cre_stand_in import protocol, workflow
from service.demo.cre_stand_in.clock import Clock
from service.demo.cre_stand_in.deliveries import Deliveries
from service.demo.cre_stand_in.ledger import Delivery, Ledger, Run
from service.demo.cre_stand_in.protocol import ExecutionIdForm, Reply, Request, Workflow

# The engine refuses an execution id while it runs and for a short while after (§2.4, layer 3).
FINISHED_KEPT_SECONDS = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The nodes' limits, with the protocol's values (§1.7, §2.4)."""

    cache_seconds: float = 24 * 3600
    runs_per_owner: int = 5
    queue_length: int = 50
    queue_age_seconds: float = 600


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cached:
    payload_digest: str
    reply: Reply
    answered_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trigger:
    request_id: str
    execution_id: bytes
    workflow: Workflow
    input: protocol.Json
    queued_at: float


class Nodes:
    """Accept triggers and run them; a quorum that always agrees, so one memory stands for all nodes.

    `spawn` starts a coroutine that outlives the call; whoever gives it also stops it.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        ledger: Ledger,
        deliveries: Deliveries,
        spawn: Callable[[Coroutine[None, None, None]], None],
        execution_id_form: ExecutionIdForm,
        limits: Limits,
        delivery_delay_seconds: float,
    ) -> None:
        self._clock = clock
        self._ledger = ledger
        self._deliveries = deliveries
        self._spawn = spawn
        self._execution_id_form = execution_id_form
        self._limits = limits
        self._delivery_delay_seconds = delivery_delay_seconds
        self._cache: dict[str, _Cached] = {}
        self._queue: list[_Trigger] = []
        self._runs_by_owner: Counter[bytes] = Counter()
        self._busy_until: dict[bytes, float] = {}

    def trigger(self, request: Request, target: Workflow, *, signer: str, runs: bool) -> tuple[str, Reply]:
        """Answer a forwarded request and give the ledger's word for it; without `runs` it is accepted and lost.

        An error of the nodes travels inside HTTP 200 (§2.2).
        """
        now = self._clock.now()
        digest = protocol.payload_digest(request, signer=signer)
        cached = self._cache.get(request.request_id)
        if cached is not None and now - cached.answered_at < self._limits.cache_seconds:
            if cached.payload_digest == digest:
                return "cached", cached.reply
            message = "Request already in progress with different payload"
            return "nodes:different_payload", self._error(request, protocol.CONFLICT, message)
        if sum(waiting.workflow == target for waiting in self._queue) >= self._limits.queue_length:
            message = "workflowID channel is full, cannot send trigger"
            return "nodes:queue_full", self._error(request, protocol.OVERLOADED, message)
        run_id = protocol.execution_id(target.workflow_id, request.request_id, form=self._execution_id_form)
        reply = protocol.accepted_reply(request.request_id, workflow_id=target.workflow_id, run_id=run_id)
        self._cache[request.request_id] = _Cached(payload_digest=digest, reply=reply, answered_at=now)
        if runs:
            self._queue.append(
                _Trigger(
                    request_id=request.request_id,
                    execution_id=run_id,
                    workflow=target,
                    input=request.params["input"],
                    queued_at=now,
                )
            )
            self._start_runs()
        else:
            self._ledger.record_drop(request.request_id)
        return "accepted", reply

    @staticmethod
    def _error(request: Request, code: int, message: str) -> Reply:
        return protocol.error_reply(request.request_id, code, message, status=200)

    def _start_runs(self) -> None:
        """Start what may run, oldest first; what waited too long is dropped without a word."""
        now = self._clock.now()
        for trigger in tuple(self._queue):
            if now - trigger.queued_at > self._limits.queue_age_seconds:
                self._queue.remove(trigger)
                self._ledger.record_drop(trigger.request_id)
            elif self._runs_by_owner[trigger.workflow.owner] < self._limits.runs_per_owner:
                self._queue.remove(trigger)
                if now < self._busy_until.get(trigger.execution_id, now):
                    self._ledger.record_drop(trigger.request_id)
                else:
                    self._start(trigger)

    def _start(self, trigger: _Trigger) -> None:
        outcome = workflow.run(trigger.input)
        match outcome:
            case workflow.Mint():
                word = "mint"
                self._runs_by_owner[trigger.workflow.owner] += 1
                self._busy_until[trigger.execution_id] = float("inf")
                self._spawn(self._deliver(trigger, outcome))
            case workflow.ReturnedFailure():
                word = f"returned_failure: {outcome.reason}"
            case workflow.Threw():
                word = f"threw: {outcome.reason}"
            case workflow.WrongTarget():
                word = f"wrong_target: {outcome.reason}"
        self._ledger.record_run(Run(request_id=trigger.request_id, execution_id=trigger.execution_id, outcome=word))

    async def _deliver(self, trigger: _Trigger, mint: workflow.Mint) -> None:
        """Sign the report and see it through the forwarder; the run holds its place among the owner's until then."""
        await self._clock.wait(self._delivery_delay_seconds)
        report = workflow.raw_report(
            mint,
            workflow=trigger.workflow,
            execution_id=trigger.execution_id,
            timestamp_seconds=int(self._clock.now()),
        )
        await self._deliveries.deliver(
            Delivery(
                request_id=trigger.request_id,
                execution_id=trigger.execution_id,
                consumer=mint.consumer,
                recipient=mint.recipient,
                amount_wei=mint.amount_wei,
                bank_reference=mint.bank_reference,
                raw_report=report,
            )
        )
        self._runs_by_owner[trigger.workflow.owner] -= 1
        self._busy_until[trigger.execution_id] = self._clock.now() + FINISHED_KEPT_SECONDS
        self._start_runs()
