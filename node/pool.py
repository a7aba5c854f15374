"""Several endpoints of one chain: one is asked, the others wait until it fails.

Nothing here sleeps.  A question is either answered, by the first endpoint that can, or raises ``NodeUnavailable``; its
caller repeats it.  What waits is only the next look: at a resting endpoint, at an idle one (``probe``).

Why a failover is safe, although two endpoints never know quite the same chain:

* A follower's tick is one *session*: all of its questions go to one endpoint.  If that one fails, the session ends and
  the tick begins again from the rows, with another endpoint.  No commit holds answers of two endpoints.
* Every tick proves again, by parent hash, that what the endpoint tells follows what the rows hold.  An endpoint on
  another fork is therefore a reorg like any other, and one that is behind is `AlreadyHeld`: a number never moves
  anything (hard cases 7, 26).
* An endpoint whose head is behind the indexed block is not asked while another is ahead.
* An answer is believed only after the connection it came over has shown the pinned chain id, genesis and factory.
* An endpoint that denied a block that is stored as final is asked for nothing before it has shown that block.

What a question that is asked outside of a session finds out holds for one endpoint at one moment, no more.
"""

from __future__ import annotations

import random
import time
from asyncio import Lock, gather, timeout
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, TypeVar

import structlog

from node.blocks import Header, parse_header, parse_optional
from node.bloom import BloomTrust
from node.capabilities import HANG_SECONDS, MAX_BATCH, RELEARN_SECONDS, Capabilities, Feature
from node.endpoint import RpcEndpoint
from node.errors import (
    BlockUnknown,
    BudgetSpent,
    CallReverted,
    ChainMismatch,
    EndpointChanged,
    EndpointLags,
    EndpointOfOtherChain,
    EndpointOnOtherFork,
    HistoryPruned,
    NodeAnswerInvalid,
    NodeRefused,
    NodeUnavailable,
    RangeRefused,
)
from node.health import Budget, EndpointState, Health, order
from node.identity import ChainIdentity, require_identity
from node.inconsistency import Inconsistency
from node.refusals import Refusal
from node.watchdog import ChainWatch, Limits

log = structlog.get_logger(__name__)

T = TypeVar("T")

_USABLE: Final = frozenset({EndpointState.ALIVE, EndpointState.UNPROVEN, EndpointState.LAGGING})


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointReport:
    """What people and machines may see of an endpoint: no URL, no key.

    ``reason`` is its last trouble, also when that is over; ``failovers`` how often another one took its work over.
    The rest is what it can do, as far as it has shown (``Capabilities``); ``lacks`` is what it does not have.
    """

    name: str
    state: EndpointState
    head: int | None
    reason: str | None
    requests: int
    failovers: int
    batch_size: int = MAX_BATCH
    answered_blocks: int = 0
    refused_blocks: int | None = None
    lacks: tuple[Feature, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """Who is told what, for metrics."""

    inconsistency: Callable[[Inconsistency], None] = lambda _: None
    failover: Callable[[], None] = lambda: None


class Member:
    """One endpoint of a pool: asks as ``RpcEndpoint`` does, within its budget, and believes only the pinned chain."""

    def __init__(self, endpoint: RpcEndpoint, pool: EndpointPool) -> None:
        self._endpoint = endpoint
        self._pool = pool
        self.name = endpoint.name
        self.health = Health()
        self.bloom = BloomTrust()
        self.requests = 0
        self.failovers = 0
        self.finalized: int | None = None
        self._keeps_from = 0  # what is known; what is thrown away does not come back
        self.stall_checked_at = float("-inf")
        # Number and hash of a final block of ours that it denied, until it shows it.
        self.denied: tuple[int, bytes] | None = None
        self._budget = pool.new_budget()
        self._proven_connections = -1
        self._proving = Lock()

    async def call(self, method: str, params: Sequence[object], parse: Callable[[object], T]) -> T:
        """Ask one question; see ``RpcEndpoint.call``.

        Raises:
            EndpointOfOtherChain: Nothing of it may be believed.
        """
        await self._spend(1)
        answer = await self._endpoint.call(method, params, parse)
        await self.prove()
        return answer

    async def batch(self, method: str, questions: Sequence[Sequence[object]], parse: Callable[[object], T]) -> list[T]:
        """Ask several questions at once; see ``RpcEndpoint.batch``.

        Raises:
            EndpointOfOtherChain: Nothing of it may be believed.
        """
        if not questions:
            return []
        await self._spend(len(questions))
        answers = await self._endpoint.batch(method, questions, parse, at_most=self.questions_at_once)
        await self.prove()
        return answers

    async def prove(self) -> None:
        """See which chain is behind the connections, if one was opened since the last time, and which fork of it.

        Raises:
            EndpointOfOtherChain, EndpointOnOtherFork: Not ours.
            EndpointLags, NodeUnavailable: Not known.
        """
        await self._prove_chain()
        if self.denied is not None:
            number, expected = self.denied
            header = await self._endpoint.call(
                "eth_getBlockByNumber", [hex(number), False], parse_optional(parse_header)
            )
            if header is None or header.hash != expected:
                found = None if header is None else header.hash
                raise EndpointOnOtherFork(self.name, number=number, expected=expected, found=found)
            self.denied = None

    async def _prove_chain(self) -> None:
        identity = self._pool.identity
        if identity is None or self._endpoint.connections == self._proven_connections:
            return
        async with self._proving:
            # Others that waited for this lock find it done.
            if self._endpoint.connections != self._proven_connections:
                # What is opened from here on, also by these questions, has to be looked at again.
                connections, self._proven_connections = self._endpoint.connections, -1
                try:
                    await require_identity(self._endpoint, identity)
                except ChainMismatch as mismatch:
                    raise EndpointOfOtherChain(self.name, mismatch) from mismatch
                self._proven_connections = connections

    async def head(self, head_of: Callable[[Member], Awaitable[Header]]) -> Header:
        """Its newest block, which it must tell in time: what is asked of an endpoint first shows whether it answers.

        Raises:
            NodeUnavailable: It does not.
        """
        seconds, began = self.health.head_seconds, self._pool.now()
        try:
            async with timeout(seconds):
                header = await head_of(self)
        except TimeoutError:
            reason = f"no answer within {seconds:.0f} s"
            raise NodeUnavailable(self.name, "eth_getBlockByNumber", reason) from None
        self.health = self.health.took(self._pool.now() - began)
        return header

    @property
    def capabilities(self) -> Capabilities:
        """What it can do, as far as it has shown."""
        return self._endpoint.capabilities

    @property
    def questions_at_once(self) -> int:
        """How many questions to ask in one exchange: what it takes, and what our own budget for it can hold."""
        takes = self.capabilities.batch_at(self._endpoint.clock())
        return takes if self._budget is None else max(1, min(takes, int(self._budget.size)))

    def has(self, feature: Feature) -> bool:
        """Whether to ask it for this."""
        return self.capabilities.has(feature, self._endpoint.clock())

    def showed(self, feature: Feature, *, is_there: bool) -> None:
        """It answered this; or it refused, and answered the same in another way."""
        if is_there:
            self._endpoint.capabilities = self.capabilities.having(feature)
            return
        if self.has(feature):
            log.info("endpoint.feature_lacking", endpoint=self.name, feature=feature.value)
        self._set_aside(feature, RELEARN_SECONDS)

    def hung_at(self, feature: Feature) -> None:
        """It gave no answer to this in time: where there is another way to the same, that comes first next time."""
        self._set_aside(feature, HANG_SECONDS)

    def _set_aside(self, feature: Feature, seconds: float) -> None:
        now = self._endpoint.clock()
        self._endpoint.capabilities = self.capabilities.without(feature, now, seconds=seconds)

    def asked_range(self, blocks: int, *, is_answered: bool) -> None:
        """It gave, or refused, the logs of so many blocks at once."""
        known = self.capabilities
        self._endpoint.capabilities = known.answered_range(blocks) if is_answered else known.refused_range(blocks)

    def keeps(self, number: int | None) -> bool:
        """Whether it may still have this block; of the tip every endpoint has."""
        return number is None or number >= self._keeps_from

    def has_thrown_away(self, number: int) -> None:
        """It says that it does not keep this block any more; so it has none before it."""
        if not self._keeps_from:  # once: where its history begins is found out block by block
            log.warning("endpoint.history_pruned", endpoint=self.name, block=number)
        self._keeps_from = max(self._keeps_from, number + 1)

    def doubt(self) -> None:
        """Prove the chain again before the next answer is believed."""
        self._proven_connections = -1

    async def reconnect(self) -> None:
        """Drop the connections: one may be half-open, or lead to a server that stands still (hard case 28)."""
        await self._endpoint.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._endpoint.close()

    def saw_head(self, number: int) -> None:
        """The number of its newest block."""
        if self.health.head is not None and number < self.health.head:
            self.caught(Inconsistency.HEAD_BACKWARDS)
        now = self._pool.now()
        self.health = self.health.saw_head(number, now)
        self._pool.watch = self._pool.watch.saw_head(number, now)

    def saw_finalized(self, number: int) -> None:
        """The number of its finalized block."""
        if self.finalized is not None and number < self.finalized:
            self.caught(Inconsistency.FINALIZED_BACKWARDS)
        self.finalized = number
        self._pool.watch = self._pool.watch.saw_finalized(number, self._pool.now())

    def caught(self, kind: Inconsistency) -> None:
        """Count a contradiction; it need not make an answer invalid."""
        log.debug("endpoint.contradicted_itself", endpoint=self.name, kind=kind.value)
        self._pool.told.inconsistency(kind)

    @contextmanager
    def blamed(self) -> Iterator[None]:
        """What fails inside is this endpoint's fault; that it went well is for others to say."""
        before = self.health
        try:
            yield
        except HistoryPruned:
            raise  # what is too old for one endpoint says nothing about its tip
        except NodeUnavailable as error:
            self._blame(error)
            raise
        finally:
            self._report(before)

    @contextmanager
    def judged(self) -> Iterator[None]:
        """One question: it fails, or it is answered."""
        before = self.health
        try:
            yield
        except (BlockUnknown, RangeRefused, CallReverted, HistoryPruned):
            # Answers, though not what was hoped for.
            self.health = self.health.worked(self._pool.now())
            raise
        except NodeUnavailable as error:
            self._blame(error)
            raise
        else:
            self.health = self.health.worked(self._pool.now())
        finally:
            self._report(before)

    @contextmanager
    def judged_as_a_whole(self, *, caught_up: bool) -> Iterator[None]:
        """Many questions about the tip: that all were answered is what counts."""
        with self.blamed():
            try:
                yield
            except BlockUnknown:
                # Once, the tip has moved.  Where it goes on, another endpoint may know (hard cases 21, 32).
                self.health = self.health.did_not_know_a_block(self._pool.now(), self._pool.chance())
                raise
            except HistoryPruned:
                self.health = self.health.worked(self._pool.now())
                raise
            self.health = self.health.worked(self._pool.now())
            if caught_up:
                self.health = self.health.caught_up()

    def lags(self, reason: str) -> None:
        """Its head is behind."""
        before = self.health
        self.health = self.health.lags(reason, self._pool.now(), self._pool.chance())
        self._report(before)

    def passed_probe(self) -> None:
        """It was looked at, and is in order."""
        before = self.health
        self.health = self.health.passed_probe(self._pool.now(), self._pool.chance())
        self._report(before)

    def _blame(self, error: NodeUnavailable) -> None:
        now, chance = self._pool.now(), self._pool.chance()
        reason = f"{error.method}: {error.reason}"
        match error:
            case EndpointOfOtherChain():
                self.caught(Inconsistency.OTHER_CHAIN)
                self.health = self.health.is_not_ours(EndpointState.WRONG_CHAIN, error.reason, now, chance)
            case EndpointOnOtherFork():
                self.caught(Inconsistency.OTHER_FORK)
                self.denied = (error.number, error.expected)
                self.health = self.health.is_not_ours(EndpointState.OTHER_FORK, error.reason, now, chance)
            case EndpointLags():
                self.health = self.health.lags(reason, now, chance)
            case NodeRefused(refusal=Refusal.RATE_LIMITED):
                # Some limits count a batch by its questions: one that is too large for them would never be answered.
                self._endpoint.refused_batch(self.capabilities.batch_size)
                self.health = self.health.limited(reason, now, chance, rest_seconds=error.retry_after_seconds)
            case NodeUnavailable(retry_after_seconds=None):
                if isinstance(error, NodeAnswerInvalid):
                    self.caught(error.kind)
                self.doubt()  # what comes back may be another server
                self.health = self.health.failed(reason, now, chance)
            case _:
                self.health = self.health.limited(reason, now, chance, rest_seconds=error.retry_after_seconds)

    def waits_seconds(self) -> float:
        """How long its budget has to fill before something new is begun with it; 0 for at once."""
        return 0.0 if self._budget is None else self._budget.wait_seconds(self._pool.now())

    async def _spend(self, questions: int) -> None:
        if self.health.state is EndpointState.WRONG_CHAIN or self.denied is not None:
            await self.prove()  # not even a question goes to another chain
        # What was begun is finished, and the debt waited for after it: a session that is given up half-way would be
        # begun again from the rows, ask the same, and never end.
        if self._budget is not None:
            self._budget = self._budget.spent(questions, self._pool.now())
        self.requests += questions

    def _report(self, before: Health) -> None:
        """Log a change of state, once."""
        after = self.health
        if before.state is after.state:
            return
        message = log.info
        if after.state in {EndpointState.WRONG_CHAIN, EndpointState.OTHER_FORK}:
            message = log.error
        elif not after.is_alive:
            message = log.warning
        message(
            "endpoint.state_changed",
            endpoint=self.name,
            from_state=before.state.value,
            to_state=after.state.value,
            reason=None if after.is_alive else after.reason,
        )


class EndpointPool:
    """The endpoints of one chain, in the operator's order of preference."""

    def __init__(
        self,
        endpoints: Sequence[RpcEndpoint],
        *,
        requests_per_second: float | None = None,
        limits: Limits | None = None,
        told: Told | None = None,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """Take the endpoints over; nothing is asked yet.

        Args:
            endpoints: At least one.
            requests_per_second: The budget of each; ``None`` is no limit of ours.  It is looked at before something is
                begun: a session is finished, and what it asked too much is waited for.
            limits: How long a head and finality may stand still.
            told: Whom to tell what, for metrics.
            clock: Seconds that never go back.
            chance: In [0, 1): jitter, so that replicas do not knock together.
        """
        if not endpoints:
            raise ValueError("a pool needs an endpoint")
        self.now = clock
        self.chance = chance
        self.told = told or Told()
        self.limits = limits or Limits()
        self.identity: ChainIdentity | None = None
        self.watch = ChainWatch()
        self._requests_per_second = requests_per_second
        self.members = tuple(Member(endpoint, self) for endpoint in endpoints)
        self._asked: Member | None = None

    def new_budget(self) -> Budget | None:
        """A full budget."""
        return None if self._requests_per_second is None else Budget.full(self._requests_per_second, self.now())

    def expect(self, identity: ChainIdentity) -> None:
        """From now on believe only endpoints of this chain."""
        self.identity = identity
        for member in self.members:
            member.doubt()

    async def close(self) -> None:
        """Close the connections of all endpoints."""
        for member in self.members:
            await member.close()

    async def ask(self, question: Callable[[Member], Awaitable[T]]) -> T:
        """Have one question answered whole by the first endpoint that can.

        Raises:
            NodeUnavailable: None could; the last one's error.
        """
        failure: NodeUnavailable | None = None
        for member in self._candidates():
            try:
                with member.judged():
                    answer = await question(member)
            except NodeUnavailable as error:
                failure = error
                continue
            self._settle_on(member)
            return answer
        raise failure or self._nobody()

    async def chosen(
        self, head_of: Callable[[Member], Awaitable[Header]], *, reaching: int, from_block: int | None = None
    ) -> tuple[Member, Header]:
        """The endpoint for a session, and its head: the best one whose head is not below block ``reaching``.

        If all are below, it is the one with the highest head: a chain can become shorter.  One that has thrown block
        ``from_block`` away is only asked if all have.

        Raises:
            NodeUnavailable: None answers.
        """
        failure: NodeUnavailable | None = None
        answered: list[tuple[Member, Header]] = []
        candidates = self._candidates()
        for member in [each for each in candidates if each.keeps(from_block)] or candidates:
            try:
                with member.blamed():
                    head = await member.head(head_of)
            except NodeUnavailable as error:
                failure = error
                continue
            answered.append((member, head))
            if head.number >= reaching and not await self._stands_still(member):
                break
        if not answered:
            raise failure or self._nobody()
        chosen, best = max(answered, key=lambda pair: pair[1].number)  # the first of equals
        for member, head in answered:
            if head.number < best.number:
                member.lags(f"its head {head.number} is behind block {best.number}")
        self._settle_on(chosen)
        return chosen, best

    @property
    def asked(self) -> str | None:
        """The name of the endpoint that answered last; ``None`` before the first answer."""
        return None if self._asked is None else self._asked.name

    async def another(
        self,
        head_of: Callable[[Member], Awaitable[Header]],
        *,
        than: str | None,
        reaching: int,
        from_block: int | None = None,
    ) -> tuple[Member, Header]:
        """An endpoint whose head is not below block ``reaching``, if possible another one ``than`` this.

        One that has thrown block ``from_block`` away is only asked if all have.
        Nothing is settled by it: whoever follows the chain stays with its own.

        Raises:
            NodeUnavailable: None answers, or none is as far.
        """
        failure: NodeUnavailable | None = None
        for member in sorted(self._candidates(), key=lambda each: (not each.keeps(from_block), each.name == than)):
            try:
                with member.blamed():
                    head = await member.head(head_of)
            except NodeUnavailable as error:
                failure = error
                continue
            if head.number >= reaching:
                return member, head
            failure = EndpointLags(member.name, "eth_getBlockByNumber", f"its head is {head.number}, not {reaching}")
        raise failure or self._nobody()

    async def named(
        self, head_of: Callable[[Member], Awaitable[Header]], name: str, *, reaching: int
    ) -> tuple[Member, Header] | None:
        """The endpoint of this name and its head; ``None`` if it rests, fails, or is not that far.

        Its budget is not looked at: this goes on with what was begun.
        """
        healths = [member.health for member in self.members]
        member = next(
            (self.members[place] for place in order(healths, self.now()) if self.members[place].name == name), None
        )
        if member is None:
            return None
        try:
            with member.blamed():
                head = await head_of(member)
        except NodeUnavailable:
            return None
        return (member, head) if head.number >= reaching else None

    async def denying(self, member: Member, number: int, expected: bytes, found: bytes) -> tuple[str, ...]:
        """The other endpoints that denied a final block before and show, asked now, the same block as ``member``."""
        same = []
        for other in self.members:
            if other is member or other.denied is None:
                continue
            other.denied = (number, expected)
            try:
                with other.blamed():
                    await other.prove()
            except EndpointOnOtherFork as error:
                if error.found == found:
                    same.append(other.name)
            except NodeUnavailable:
                continue  # it says nothing now
        return tuple(same)

    @contextmanager
    def session(self, member: Member, *, caught_up: bool, from_block: int | None = None) -> Iterator[None]:
        """All that is asked inside goes to one endpoint, and is about no block before ``from_block``.

        Raises:
            EndpointChanged: It failed, or has thrown the blocks away, and another one is at hand.
        """
        try:
            with member.judged_as_a_whole(caught_up=caught_up):
                yield
        except NodeUnavailable as error:
            if isinstance(error, HistoryPruned):
                if from_block is None:
                    raise
                member.has_thrown_away(from_block)
            if any(
                other.keeps(from_block) and (other.health.is_alive or other.health.state is EndpointState.UNPROVEN)
                for other in self._candidates()
            ):
                raise EndpointChanged(error.endpoint, error.method, error.reason) from error
            raise

    async def probe(self, head_of: Callable[[Member], Awaitable[Header]]) -> bool:
        """Look at one endpoint that is due: an idle one, or one in trouble; ``True`` if another one is due.

        Its failure is no error here: it is what is found out.
        """
        now = self.now()
        due = [member for member in self.members if member.health.probe_at <= now]
        if not due:
            return False
        member = min(due, key=lambda each: each.health.probe_at)
        try:
            with member.blamed():
                head = await member.head(head_of)
        except NodeUnavailable:
            return len(due) > 1
        best = max((other.health.head or 0) for other in self.members if other.health.is_alive or other is member)
        if head.number + self.watch.lag_blocks() < best:
            member.lags(f"its head {head.number} is behind block {best}")
        else:
            member.passed_probe()
        return len(due) > 1

    async def prove_all(self, head_of: Callable[[Member], Awaitable[Header]]) -> None:
        """Look at every endpoint, at a start.

        Raises:
            ChainMismatch: None can be used, and one serves another chain: the settings or the chain are wrong.
            NodeUnavailable: None answers.
        """

        async def look(member: Member) -> NodeUnavailable | None:
            try:
                with member.judged():
                    await member.prove()
                    await head_of(member)
            except NodeUnavailable as error:
                return error
            return None

        found = await gather(*(look(member) for member in self.members))
        errors = [error for error in found if error is not None]
        if len(errors) == len(found):
            for error in errors:
                if isinstance(error, EndpointOfOtherChain):
                    raise error.mismatch from error
            raise errors[0]

    def reports(self) -> tuple[EndpointReport, ...]:
        """Every endpoint at this moment."""
        return tuple(
            EndpointReport(
                name=member.name,
                state=member.health.state,
                head=member.health.head,
                reason=member.health.reason,
                requests=member.requests,
                failovers=member.failovers,
                batch_size=member.capabilities.batch_size,
                answered_blocks=member.capabilities.answered_blocks,
                refused_blocks=member.capabilities.refused_blocks,
                lacks=tuple(feature for feature in Feature if not member.has(feature)),
            )
            for member in self.members
        )

    def troubles(self) -> tuple[str, ...]:
        """Why the chain cannot be followed well now, a sentence each; none if it can."""
        found = self.watch.troubles(self.limits, self.now())
        usable = [member for member in self.members if member.health.state in _USABLE]
        if self.limits.needs_finalized and usable and not any(member.has(Feature.FINALIZED_TAG) for member in usable):
            unknown = (
                "node: no endpoint knows the finalized block, which BSKT_TRIGGER_FINALITY or BSKT_COMPLETE_FINALITY"
                " waits for: use a node that does, or depth:N"
            )
            found = (*found, unknown)
        if usable:
            return found
        return (f"node: no endpoint can be used: {self._states()}", *found)

    def _candidates(self) -> tuple[Member, ...]:
        """Whom something new may be begun with, best first."""
        ready = (self.members[place] for place in order([member.health for member in self.members], self.now()))
        return tuple(member for member in ready if not member.waits_seconds())

    async def _stands_still(self, member: Member) -> bool:
        """Whether to compare it with the others: no new head for too long, asked once in that time."""
        now = self.now()
        limit = self.watch.head_limit_seconds(self.limits)
        if now - max(member.health.head_rose_at, member.stall_checked_at) <= limit:
            return False
        member.stall_checked_at = now
        log.warning(
            "endpoint.head_stands_still",
            endpoint=member.name,
            head=member.health.head,
            seconds=round(now - member.health.head_rose_at),
        )
        await member.reconnect()
        return True

    def _settle_on(self, member: Member) -> None:
        before = self._asked
        if before is member:
            return
        if before is not None and before.health.is_alive and self._place(before) < self._place(member):
            return  # a detour for one question
        self._asked = member
        if before is None:
            return
        if before.health.is_alive:
            log.info("endpoint.returned", endpoint=member.name, instead_of=before.name)
            return
        before.failovers += 1
        self.told.failover()
        log.warning("endpoint.failed_over", endpoint=member.name, instead_of=before.name, reason=before.health.reason)

    def _place(self, member: Member) -> int:
        return self.members.index(member)

    def _nobody(self) -> NodeUnavailable:
        ready = [self.members[place] for place in order([member.health for member in self.members], self.now())]
        if any(member.health.state in _USABLE for member in ready):
            wait = min(member.waits_seconds() for member in ready)
            return BudgetSpent("all", "any", "our own budget is spent", retry_after_seconds=wait)
        rest = min(member.health.rests_until for member in self.members) - self.now()
        return NodeUnavailable(
            "all", "any", f"none may be asked now: {self._states()}", retry_after_seconds=max(0.0, rest)
        )

    def _states(self) -> str:
        return "; ".join(
            f"{member.name} {member.health.state.value}"
            + (f" ({member.health.reason})" if member.health.reason else "")
            for member in self.members
        )
