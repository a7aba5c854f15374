"""The shell that triggers CRE: claim, freeze, attempt, send, record."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, replace
from typing import Final, Protocol, TypeAlias
from uuid import UUID, uuid4

import structlog

from datastore import claims
from datastore.claims import Answered, Frozen, Order, Pacing, Says, Swept
from datastore.connection import Pool
from datastore.identity import execution_id_candidates
from datastore.lifecycle import State
from datastore.rows import LogRow
from invocator.classification import (
    Accepted,
    Answer,
    Code,
    HttpReply,
    InFlight,
    InstanceRefused,
    NeverSent,
    PayloadConflict,
    RefusedForGood,
    RefusedNow,
    Reply,
    Simulated,
    Unknown,
    classify,
)
from invocator.payload import MintOrder, OrderRefused, request_body
from invocator.preflight import WORKFLOW_DECIMALS, Contracts, Go, Never, NotNow, judge, judge_witnesses
from invocator.signing import Signer, signed_token
from invocator.workflow_pool import RESEND_MARGIN_SECONDS, in_turns, resend_seconds, resends_within, workflow_of

log = structlog.get_logger(__name__)

Reached: TypeAlias = Callable[[str], None]
"""Called with the name of each boundary around a commit or a call; tests end the process there."""

IsWitnessed: TypeAlias = Callable[[LogRow], Awaitable[bool | None]]
"""Whether other endpoints hold this request's log too; ``None`` while nobody can say."""

LookAt: TypeAlias = Callable[[bytes, bytes], Awaitable[Contracts | None]]
"""What the contracts of a basket (its token, its consumer) say now; ``None`` while the node does not answer."""

SIMULATED_WORKFLOW: Final = bytes(32)
"""A simulation has no workflow id; its slot and its frozen request are under this one."""

_RETIRED: Final = ("workflow_retired", "It is frozen, or was sent, for a workflow that is not configured (any more).")

LOOKED_AT: Final = 50
"""How many waiting requests a tick looks at to find one whose workflow is free."""
_NOTHING_SWEPT: Final = Swept(leases=0, deadlines=0, doubts=0, resends=0, holds=0)
_WITH_CODE: Final = (InstanceRefused, NeverSent, RefusedForGood, RefusedNow, Unknown)
_ANSWER_BYTES_KEPT: Final = 4_096
_CLOCK_ROUNDING_SECONDS: Final = 5.0
"""What a ``Date`` header and the network may add; only a real offset is corrected (hard case 82)."""


class Gateway(Protocol):
    """Where a body is sent; the world begins here."""

    async def post(self, body: bytes, token: str, timeout_seconds: float) -> Reply:
        """Send once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """How this instance sends; times in seconds.

    ``mode`` is `claims.GATEWAY` or `claims.SIMULATE`; what was frozen in the other one is not touched.  Without
    ``resend_after_seconds`` a person decides about what was not delivered.
    """

    gateway_url: str
    workflow_ids: tuple[bytes, ...]
    currency: str
    pacing: Pacing
    timeout_seconds: float
    lease_seconds: float
    completion_deadline_seconds: float
    give_up_seconds: float
    resend_margin_seconds: float = RESEND_MARGIN_SECONDS
    resend_after_seconds: float | None = None
    max_mint_wei: int | None = None
    mode: str = claims.GATEWAY


@dataclass(frozen=True, slots=True, kw_only=True)
class _Unrecorded:
    """An answer that no row holds yet."""

    order: Order
    frozen: Frozen
    attempt_no: int
    answered: Answered


def mint_order(order: Order, workflow_id: bytes, currency: str) -> MintOrder:
    """What the payload of ``order`` is made of; decimals that were never read are taken to be the workflow's."""
    return MintOrder(
        nonce=order.nonce,
        workflow_id=workflow_id,
        beneficiary=order.beneficiary,
        amount_wei=order.amount,
        decimals=WORKFLOW_DECIMALS if order.decimals is None else order.decimals,
        expected_reference=order.expected_reference,
        token=order.stablecoin,
        consumer=order.consumer,
        symbol=order.symbol,
        block_timestamp=order.block_timestamp,
        currency=currency,
    )


class Invocator:
    """One worker; any number of them may run over one database."""

    def __init__(
        self,
        *,
        pool: Pool,
        chain_id: int,
        gateway: Gateway,
        signer: Signer | None,
        terms: Terms,
        clock: Callable[[], float],
        look_at: LookAt | None = None,
        is_witnessed: IsWitnessed | None = None,
        reached: Reached = lambda _: None,
    ) -> None:
        """Begin; nothing is claimed yet.

        Args:
            pool: The invocator's.
            chain_id: Whose requests are sent.
            gateway: Where to.
            signer: The key that the workflow authorises; mode ``simulate`` needs none.
            terms: How.
            clock: Unix seconds, for the token's ``iat``; leases and slots run on the database's clock.
            look_at: Asks a basket's contracts before a first send; without it, rows alone decide.
            is_witnessed: Asks other endpoints for the request before a first send.
            reached: Told each boundary around a commit or a call.
        """
        self._pool = pool
        self._chain_id = chain_id
        self._gateway = gateway
        self._signer = signer
        self._terms = terms
        self._clock = clock
        self._look_at = look_at
        self._is_witnessed = is_witnessed
        self._reached = reached
        # Random for each process: a restarted one must not renew the leases of the dead one (hard case 71).
        self._worker_id = uuid4()
        self._clock_offset_seconds = 0.0
        self._refused: Code | None = None
        # At most one: nothing else is sent before it is a row.
        self._unrecorded: _Unrecorded | None = None
        self._give_up_attempts = resends_within(
            terms.give_up_seconds, timeout_seconds=terms.timeout_seconds, margin_seconds=terms.resend_margin_seconds
        )

    async def tick(self) -> bool:
        """Sweep, then make at most one attempt; ``True`` if there may be more to do at once.

        Raises:
            DatastoreUnavailable: Call again; what was sent is known from the attempt's row, and what was answered is
                kept until it is a row as well.
        """
        terms = self._terms
        # At every tick: a failover under a running process may have lost the rows, and whoever searches needs them.
        await claims.list_workflows(self._pool, self._chain_id, terms.workflow_ids)
        await self.record()
        swept = await claims.sweep(
            self._pool,
            self._chain_id,
            give_up_seconds=terms.give_up_seconds,
            deadline_seconds=terms.completion_deadline_seconds,
            # A simulation knows nothing of an earlier one: it is never run again.
            resend_after_seconds=terms.resend_after_seconds if terms.mode == claims.GATEWAY else None,
            give_up_attempts=self._give_up_attempts,
        )
        if swept != _NOTHING_SWEPT:
            log.info("requests.swept", **asdict(swept))
        gate = await claims.gate(self._pool, self._chain_id)
        if not gate.open:
            return False
        for order in await self._due():
            frozen = order.frozen or await self._freeze(order)
            if frozen is not None and await self._attempt(order, frozen):
                return True
        free = await claims.free_workflows(self._pool, self._chain_id, terms.pacing, terms.workflow_ids)
        if not free:
            return False
        waiting = await claims.waiting(
            self._pool,
            self._chain_id,
            limit=LOOKED_AT,
            pacing=terms.pacing,
            workflow_ids=terms.workflow_ids,
            free=free,
        )
        candidates = [
            (order, self._workflow_of(order), order.basket_is_served) for order in await self._sendable(waiting)
        ]
        last_turns = await claims.last_turns(self._pool, self._chain_id)
        for order in in_turns(candidates, last_turns):
            if self._workflow_of(order) not in free:
                continue
            passes = await self._passes_preflight(order)
            if passes is None:
                return False
            if passes and await self._work(order):
                return True
        return False

    async def record(self) -> None:
        """Write the latest answer down, if the database was away when it came.

        Raises:
            DatastoreUnavailable: Call again.  A process that ends before leaves its request in doubt.
        """
        if (unrecorded := self._unrecorded) is None:
            return
        order, attempt_no, answered = unrecorded.order, unrecorded.attempt_no, unrecorded.answered
        state = await claims.record_answer(self._pool, self._chain_id, order, unrecorded.frozen, attempt_no, answered)
        self._unrecorded = None
        self._reached("invocator.after_record")
        log.info(
            "attempt.answered",
            request_id=order.request_id,
            nonce=str(order.nonce),
            attempt_no=attempt_no,
            outcome=answered.outcome,
            state=state.value,
        )

    async def _due(self) -> list[Order]:
        due = await self._sendable(await claims.due(self._pool, self._chain_id, limit=LOOKED_AT))
        return due if self._terms.mode == claims.GATEWAY else []

    async def _sendable(self, orders: list[Order]) -> list[Order]:
        """Those that this instance may send.  The others go to a person, unless another one sends them meanwhile."""
        unsendable: dict[tuple[str, str], list[Order]] = {}
        for order in orders:
            if (why := self._why_unsendable(order)) is not None:
                unsendable.setdefault(why, []).append(order)
        for (reason, detail), theirs in unsendable.items():
            given = await claims.give_to_a_person(
                self._pool,
                self._chain_id,
                theirs,
                reason=reason,
                detail=detail,
                after_seconds=self._terms.lease_seconds,
            )
            if given:
                log.warning("requests.not_sendable", requests=given, reason=reason, sentence=detail)
        return [order for order in orders if self._why_unsendable(order) is None]

    def _why_unsendable(self, order: Order) -> tuple[str, str] | None:
        """A reason and its sentence: the bytes are fixed, and so is where and by whom they are sent."""
        frozen = order.frozen
        if frozen is None:
            # What a restore shows to have been sent can only be made again for the workflow that got it.
            was_sent = order.state is State.IN_DOUBT or order.found_workflow_id is not None
            return _RETIRED if was_sent and order.found_workflow_id not in self._terms.workflow_ids else None
        if frozen.mode != self._terms.mode:
            return "mode_changed", f"The request is frozen for mode {frozen.mode}."
        if frozen.workflow_id not in self._terms.workflow_ids:
            return _RETIRED
        if frozen.signer != self._signer_address:
            return "signer_changed", "The request is frozen for another signer."
        return None

    @property
    def _signer_address(self) -> bytes:
        return bytes(20) if self._signer is None else self._signer.address

    def _workflow_of(self, order: Order) -> bytes:
        if order.frozen is not None:
            return order.frozen.workflow_id
        return order.found_workflow_id or workflow_of(order.nonce, self._terms.workflow_ids)

    async def _work(self, waiting: Order) -> bool:
        """Claim one request and carry it to its first answer; ``False`` if no attempt began: the next has its try."""
        self._reached("invocator.before_claim")
        order = await claims.claim(
            self._pool,
            self._chain_id,
            waiting.request_id,
            worker_id=self._worker_id,
            lease_seconds=self._terms.lease_seconds,
            pacing=self._terms.pacing,
        )
        self._reached("invocator.after_claim")
        if order is None:
            return False
        # Frozen by another one, or mined again as something else, since it was looked at.
        if self._why_unsendable(order) is not None or _looked_at(order) != _looked_at(waiting):
            return not await claims.give_back(self._pool, order, reason="given_back")
        frozen = order.frozen or await self._freeze(order)
        if frozen is None or not await self._may_still_mint(order, frozen):
            return False
        if not await self._attempt(order, frozen):
            # Held for the day, or no longer ours: then there may be others to send.
            return not await claims.give_back(self._pool, order, reason="no_slot")
        return True

    async def _passes_preflight(self, order: Order) -> bool | None:
        """What the chain says of a waiting request before its first attempt: whether it may be claimed.

        ``False``: it is held or refused, with a reason; others may pass.  ``None``: the node is away, so none may, and
        no row is written: that is no fault of a request.
        """
        if self._look_at is None:
            return True
        contracts = await self._look_at(order.stablecoin, order.consumer)
        verdict = judge(order, contracts, max_mint_wei=self._terms.max_mint_wei)
        if verdict == Go() and self._is_witnessed is not None:
            row = await claims.requested_by(self._pool, order.request_id)
            verdict = judge_witnesses(order, None if row is None else await self._is_witnessed(row))
        if contracts is not None and contracts.decimals is not None and order.decimals is None:
            await claims.pin_decimals(self._pool, self._chain_id, order.stablecoin, contracts.decimals)
        match verdict:
            case Go():
                return True
            case NotNow(reason=claims.NODE_UNAVAILABLE) if contracts is None:
                log.warning("requests.not_looked_at", reason=verdict.reason, sentence=verdict.sentence)
                return None
            case NotNow():
                await claims.hold(
                    self._pool,
                    self._chain_id,
                    order,
                    reason=verdict.reason,
                    detail=verdict.sentence,
                    seconds=verdict.seconds,
                )
            case Never():
                await claims.refuse(self._pool, order, reason=verdict.reason, detail=verdict.sentence)
        log.warning("request.not_sent", request_id=order.request_id, reason=verdict.reason, sentence=verdict.sentence)
        # That no endpoint answers for its transaction may be so of this one only: it goes to the back, and the next one
        # has its turn after the pause.
        return None if verdict.reason == claims.NODE_UNAVAILABLE else False

    async def _freeze(self, order: Order) -> Frozen | None:
        """Fix the bytes of this request for good; ``None`` if they must not be made."""
        workflow_id = self._workflow_of(order)
        try:
            body = request_body(mint_order(order, workflow_id, self._terms.currency))
        except OrderRefused as refused:
            await claims.refuse(self._pool, order, reason=refused.code, detail=refused.sentence)
            return None
        frozen = Frozen(
            mode=self._terms.mode,
            workflow_id=workflow_id,
            receiver=order.consumer,
            gateway=self._terms.gateway_url,
            signer=self._signer_address,
            body=body,
        )
        # A simulation's execution ids are random.
        simulated = self._terms.mode == claims.SIMULATE
        candidates = () if simulated else execution_id_candidates(workflow_id, order.nonce.hex)
        if not await claims.freeze(self._pool, self._chain_id, order, frozen, candidates):
            return None
        self._reached("invocator.after_freeze")
        return frozen

    async def _may_still_mint(self, order: Order, frozen: Frozen) -> bool:
        """What rows say before a first attempt; a refusal goes to a person, for the bytes are frozen."""
        if frozen.receiver != order.consumer:
            reason, detail = "consumer_changed", "The basket has another consumer than when the request was frozen."
        elif await self._is_reported(order):
            reason, detail = "already_reported", "The chain holds a report with an execution id of this request."
        else:
            return True
        await claims.refuse(self._pool, order, reason=reason, detail=detail)
        return False

    async def _is_reported(self, order: Order) -> bool:
        # Under every workflow ever listed: after a failover that lost commits, this is how an earlier send shows.
        listed = await claims.listed_workflows(self._pool, self._chain_id)
        candidates = [each for workflow in listed for each in execution_id_candidates(workflow, order.nonce.hex)]
        return await claims.is_reported(self._pool, self._chain_id, candidates)

    async def _attempt(self, order: Order, frozen: Frozen) -> bool:
        """Send the frozen bytes once; ``False`` if no attempt could begin (no slot, or no longer ours to send)."""
        terms = self._terms
        jti = uuid4()
        # Signed before the attempt is committed: a worker that sleeps after the commit cannot deliver once the token's
        # 300 s are over, and one that sleeps before it finds the guards closed.
        token = ""
        if self._signer is not None:
            token = signed_token(frozen.body, key=self._signer, issued_at=self._gateway_time(), jti=jti)
        self._reached("invocator.before_attempt")
        attempt_no = await claims.begin_attempt(
            self._pool,
            self._chain_id,
            order,
            frozen,
            jti=jti,
            worker_id=self._worker_id,
            pacing=terms.pacing,
            retry_seconds=lambda number: resend_seconds(
                number, timeout_seconds=terms.timeout_seconds, margin_seconds=terms.resend_margin_seconds
            ),
            deadline_seconds=terms.completion_deadline_seconds,
        )
        if attempt_no is None:
            return False
        self._reached("invocator.after_attempt")
        reply = _without(token, await self._gateway.post(frozen.body, token, terms.timeout_seconds))
        self._reached("invocator.after_answer")
        answer = classify(reply, request_id=order.nonce.hex, workflow_id=frozen.workflow_id)
        answered = self._answered(reply, answer, jti)
        if answered.clock_offset_seconds is not None:
            self._clock_offset_seconds = answered.clock_offset_seconds
        self._tell(answer, frozen.workflow_id)
        self._unrecorded = _Unrecorded(order=order, frozen=frozen, attempt_no=attempt_no, answered=answered)
        await self.record()
        return True

    def _clock_offset(self, reply: Reply, answer: Answer) -> float | None:
        """The gateway's clock less ours.  What we cannot read may be a proxy's, and so may its clock."""
        if not isinstance(reply, HttpReply) or reply.server_date is None or _says(answer) is Says.NOTHING:
            return None
        return reply.server_date + reply.read_seconds - self._clock()

    def _answered(self, reply: Reply, answer: Answer, jti: UUID) -> Answered:
        postpone, unknown_id = 0.0, None
        if isinstance(answer, Accepted) and not answer.expected:
            unknown_id = answer.execution_id
        if isinstance(answer, RefusedNow):
            postpone = float(answer.retry_after_seconds or 0)
        return Answered(
            outcome=answer.outcome.value,
            http_status=reply.status if isinstance(reply, HttpReply) else None,
            sentence=None if isinstance(answer, Accepted) else answer.sentence,
            answer=reply.body[:_ANSWER_BYTES_KEPT] if isinstance(reply, HttpReply) else None,
            execution_id=unknown_id,
            simulated_tx_hash=answer.tx_hash if isinstance(answer, Simulated) else None,
            postpone_seconds=postpone,
            deadline_seconds=self._terms.completion_deadline_seconds,
            says=_says(answer),
            code=answer.code.value if isinstance(answer, _WITH_CODE) else None,
            clock_offset_seconds=self._clock_offset(reply, answer),
            jti=jti,
        )

    def _tell(self, answer: Answer, workflow_id: bytes) -> None:
        """What a person should read of an answer, beyond its outcome."""
        says = _says(answer)
        match answer:
            case InstanceRefused() | Unknown() if says is Says.WORKFLOW_REFUSED:
                log.error(
                    "workflow.refused",
                    workflow_id=workflow_id.hex(),
                    code=answer.code.value,
                    sentence=answer.sentence,
                )
            case InstanceRefused() | NeverSent():
                self._refused = answer.code
                log.error("invocator.paused_itself", code=answer.code.value, sentence=answer.sentence)
            case PayloadConflict():
                log.error("attempt.conflicted", sentence=answer.sentence)
            case Accepted() if not answer.expected:
                log.error("attempt.accepted_under_an_unknown_execution_id", execution_id=answer.execution_id.hex())
            case InFlight():
                log.info("attempt.in_flight", sentence=answer.sentence)
            case _:
                pass
        if self._refused is not None and says is Says.WORKS:
            log.warning("invocator.resumed_itself", code=self._refused.value)
            self._refused = None

    def _gateway_time(self) -> int:
        offset = self._clock_offset_seconds
        return int(self._clock() + (offset if abs(offset) > _CLOCK_ROUNDING_SECONDS else 0))


def _looked_at(order: Order) -> tuple[object, ...]:
    """What the pre-flight judged."""
    return order.generation, order.stablecoin, order.consumer, order.amount, order.basket_is_canonical


def _without(token: str, reply: Reply) -> Reply:
    """The reply as it may be stored and shown: whoever answers may repeat our token (hard case 110)."""
    if not token or not isinstance(reply, HttpReply):
        return reply
    return replace(reply, body=reply.body.replace(token.encode(), b"***"))


def _says(answer: Answer) -> Says:
    """What an answer says about this instance and its workflow, rather than about its request (hard case 85)."""
    match answer:
        case (
            InstanceRefused(code=Code.SIGNER_NOT_AUTHORIZED | Code.WORKFLOW_NOT_FOUND)
            | Unknown(code=Code.WORKFLOW_UNAVAILABLE)
        ):
            return Says.WORKFLOW_REFUSED
        case InstanceRefused() | NeverSent():
            return Says.INSTANCE_REFUSED
        case Unknown(code=Code.NO_ANSWER | Code.NOT_UNDERSTOOD) | Simulated():
            return Says.NOTHING  # something in between may have spoken, or nobody
        case _:
            return Says.WORKS
