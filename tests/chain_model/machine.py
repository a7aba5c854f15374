"""Histories of a chain and of the daemon beside it, drawn by Hypothesis; the oracle looks when it has settled.

What holds whenever the follower has settled: the rows are exactly those of the branch.  There is one exception.  Some
faults cannot be seen in any single answer of one endpoint; after one of them the rows may be wrong until what is wrong
is final and was swept, and exactly then they are right again (``audit``).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, Final, TypeAlias, TypeVar
from uuid import uuid4

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from datastore import claims, operators, sweeping
from datastore.claims import Answered, Frozen, Pacing
from datastore.connection import Pool
from datastore.errors import FinalityViolated
from datastore.identity import execution_id_candidates
from datastore.operators import BasketSwitch, Person
from indexer.differences import Word
from indexer.follower import FinalityRule, Follower
from node.errors import EndpointChanged, NodeUnavailable, RangeRefused
from tests.chain_model.chain import Deliver, Transaction, digest, user
from tests.chain_model.daemon import RULES, Daemon, pin
from tests.chain_model.faults import SILENT, Fault
from tests.chain_model.oracle import Oracle
from tests.chain_model.profiles import Profile
from tests.chain_model.rpc import HonestNode
from tests.chain_model.server import Endpoint, Server
from tests.chain_model.world import CHAIN_ID, KINDS, Order, World

T = TypeVar("T")

WORKFLOW: Final = digest("workflow")
PACING: Final = Pacing(seconds_per_trigger=0, burst=1, max_in_flight=1_000)

_TICKS_TO_SETTLE: Final = 400
_REST_SECONDS: Final = 4_000.0  # longer than any endpoint rests
_PATIENCE_SECONDS: Final = 30.0


class Killed(Exception):
    """The process ended at this very line."""


@dataclass(slots=True, kw_only=True)
class Tally:
    """What all histories together did."""

    sequences: int = 0
    operations: Counter[str] = field(default_factory=Counter)
    looks: Counter[str] = field(default_factory=Counter)
    blocks: int = 0
    requests: int = 0
    resumed: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    faults: Counter[Fault] = field(default_factory=Counter)
    troubles: Counter[str] = field(default_factory=Counter)
    differences: Counter[str] = field(default_factory=Counter)
    wrong_rows: int = 0

    def add(self, other: Tally) -> None:
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


@dataclass(frozen=True, slots=True, kw_only=True)
class Arena:
    """What outlives a history: the loop, the database, the server, the count."""

    loop: asyncio.AbstractEventLoop
    indexer_pool: Pool
    invocator_pool: Pool
    operator_pool: Pool
    owner_pool: Pool
    server: Server
    tally: Tally
    tables: tuple[str, ...]
    profile: Profile

    async def empty(self) -> None:
        """Delete every row.  As long as the tables are small, that is a hundred times faster than truncating them."""
        async with self.owner_pool.acquire() as connection, connection.transaction():
            await connection.execute("SET LOCAL session_replication_role = replica")  # no foreign key minds the order
            await connection.execute(";".join(f"DELETE FROM {table}" for table in self.tables))  # noqa: S608 - ours

    def run(self, work: Coroutine[object, object, T]) -> T:
        return self.loop.run_until_complete(work)


def operation(**strategies: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], Any]:
    """A rule of the machine that is counted."""

    def made(function: Callable[..., None]) -> Any:
        @wraps(function)
        def counted(self: Histories, **drawn: object) -> None:
            self.arena.tally.operations[function.__name__] += 1
            function(self, **drawn)

        return rule(**strategies)(counted)  # type: ignore[call-overload]  # two of its own keywords are overloaded

    return made


small: Final = st.integers(0, 7)
block_orders: Final = st.lists(st.tuples(st.sampled_from(KINDS), small, small), max_size=4)
branch_orders: Final = st.lists(block_orders, min_size=1, max_size=5)
Failure: TypeAlias = tuple[int, Fault, int, int]
failures: Final = st.lists(
    st.tuples(st.integers(0, 2), st.sampled_from(Fault), st.integers(1, 8), st.integers(0, 1_000)),
    min_size=1,
    max_size=3,
)


class Histories(RuleBasedStateMachine):
    """One history: the world changes, fails and heals; the daemon follows, is killed and started again."""

    def __init__(self, arena: Arena) -> None:
        super().__init__()
        self.arena = arena
        self.world = World(arena.profile)
        self.oracle = Oracle(chain_id=CHAIN_ID, blocks_by_hash=self.world.blocks_by_hash)
        self.sent: list[claims.Order] = []
        self.daemon: Daemon | None = None
        self.trigger = FinalityRule(tag="finalized")
        self.max_range_blocks = 5
        self.kill_at: tuple[str, int] | None = None
        self.silent_before = 0
        self.forks_before = 0
        self.is_halted = False
        self.may_be_wrong = False
        self.was_lied_to = False
        self.is_audited = True

    # -- beginning and end ----------------------------------------------------------------------------------------

    @initialize(
        tag=st.sampled_from(["finalized", "finalized", "safe", "depth"]),
        range_blocks=st.integers(1, 6),
        grown=st.integers(1, 12),
        final=st.integers(0, 12),
        endpoints=st.integers(1, 3),
        liar=st.integers(0, 2),
        audited=st.integers(0, 3),
    )
    def begin(
        self, tag: str, range_blocks: int, grown: int, final: int, endpoints: int, liar: int, audited: int
    ) -> None:
        self.is_audited = audited == 0
        self.trigger = FinalityRule(tag=tag, depth=2)  # type: ignore[arg-type]
        self.max_range_blocks = range_blocks
        for number in range(grown):
            self.world.grow([("create_and_ask" if number % 3 == 0 else "ask_token", number % 8, number % 5)])
        if final:
            self.world.become_final(final, 1)
        self.world.open_endpoints(endpoints, liar, self.arena.tally.faults)
        self.silent_before = self._silent_faults()
        self.forks_before = self.arena.tally.faults[Fault.BLOCK_OF_A_FORK]
        self.arena.run(self._begin())

    async def _begin(self) -> None:
        self.arena.tally.sequences += 1
        await self.arena.empty()
        self.arena.server.endpoints = self.world.endpoints
        await pin(self.arena.indexer_pool, self.world)
        await claims.list_workflows(self.arena.invocator_pool, CHAIN_ID, [WORKFLOW])
        self.daemon = Daemon(
            pool=self.arena.indexer_pool,
            server=self.arena.server,
            world=self.world,
            trigger=self.trigger,
            max_range_blocks=self.max_range_blocks,
            reached=self._reached,
        )

    @property
    def running(self) -> Daemon:
        if self.daemon is None:
            raise AssertionError("a history begins with its beginning")
        return self.daemon

    def _reached(self, name: str) -> None:
        if self.kill_at is not None and self.kill_at[0] == name:
            if self.kill_at[1] == 0:
                self.kill_at = None
                self.arena.tally.kills[name] += 1
                raise Killed(name)
            self.kill_at = (name, self.kill_at[1] - 1)

    def teardown(self) -> None:
        try:
            if self.daemon and (self.may_be_wrong or self._silent_faults() > self.silent_before or self.is_audited):
                self._audit()
            elif self.daemon:
                self._heal()
                self.arena.run(self._settled())
                self._look("settled")
        finally:
            tally = self.arena.tally
            tally.requests += len(self.oracle.known)
            tally.blocks += len(self.world.blocks_by_hash)
            self.arena.run(self._close())

    async def _close(self) -> None:
        self.world.heal()
        if self.daemon is not None:
            await self.daemon.close()

    # -- the world ------------------------------------------------------------------------------------------------

    @operation(orders=block_orders)
    def grow(self, orders: list[Order]) -> None:
        self.world.grow(orders)

    @operation(number=st.integers(1, 8))
    def grow_empty(self, number: int) -> None:
        for _ in range(number):
            self.world.grow([])

    @operation(depth=st.integers(1, 6), branch=branch_orders)
    def reorganise(self, depth: int, branch: list[list[Order]]) -> None:
        self.world.reorganise(depth, branch)

    @operation(a=small, b=small, is_known=st.booleans(), is_copy_final=st.booleans())
    def steal(self, a: int, b: int, is_known: bool, is_copy_final: bool) -> None:
        """Somebody copies the reference of a request that is not mined yet, and is mined before it."""
        self.world.steal(a, b)
        if is_known:
            self.arena.run(self._forgiven(self.running.follower.tick))
        if is_copy_final:
            self.world.become_final(self.world.view.head.number - 1 - max(self.world.finalized, 0), 0)
        self.arena.run(self._forgiven(self.running.follower.tick))

    @operation(choice=st.integers(0, 200))
    def flip(self, choice: int) -> None:
        self.world.flip(choice)

    @operation(number=st.integers(1, 8), safe=st.integers(0, 3))
    def become_final(self, number: int, safe: int) -> None:
        self.world.become_final(number, safe)

    @operation(failures=failures, orders=block_orders, ticks=st.integers(0, 4))
    def fail(self, failures: list[Failure], orders: list[Order], ticks: int) -> None:
        """Endpoints begin to fail in some ways, and there is news to miss."""
        for place, fault, times, seed in failures:
            self.world.fail(place, fault, times=min(times, 2) if fault is Fault.HUNG else times, seed=seed)
        self.world.grow(orders)
        for _ in range(ticks):
            self.arena.run(self._forgiven(self.running.follower.tick))

    @operation()
    def heal(self) -> None:
        self._heal()

    def _heal(self) -> None:
        self.world.heal()
        self.running.clock.now += _REST_SECONDS

    # -- CRE ------------------------------------------------------------------------------------------------------

    @operation(outcome=st.sampled_from(["accepted", "unknown", "refused_now", None]))
    def send(self, outcome: str | None) -> None:
        """The invocator claims the next request and sends it; with ``None`` it dies before the answer."""
        self.arena.run(self._send(outcome))

    async def _send(self, outcome: str | None) -> None:
        pool, worker = self.arena.invocator_pool, uuid4()
        for waiting in await claims.waiting(pool, CHAIN_ID, limit=1):
            order = await claims.claim(
                pool, CHAIN_ID, waiting.request_id, worker_id=worker, lease_seconds=600, pacing=PACING
            )
            if order is None:
                continue
            frozen = order.frozen or Frozen(
                mode="gateway",
                workflow_id=WORKFLOW,
                receiver=order.consumer,
                gateway="https://x/",
                signer=user(0),
                body=order.nonce.bytes,
            )
            ids = execution_id_candidates(WORKFLOW, order.nonce.hex)
            if order.frozen is None and not await claims.freeze(pool, CHAIN_ID, order, frozen, ids):
                continue
            attempt = await claims.begin_attempt(
                pool,
                CHAIN_ID,
                order,
                frozen,
                jti=uuid4(),
                worker_id=worker,
                pacing=PACING,
                retry_seconds=lambda _: 600,
                deadline_seconds=2400,
            )
            if attempt is None:
                continue
            paused = await pool.fetchval("SELECT count(*) FROM basket_pause WHERE stablecoin = $1", order.stablecoin)
            assert paused == 0, f"request {order.request_id} was sent while its basket is paused"
            self.sent.append(order)
            if outcome is not None:
                answered = Answered(outcome=outcome, http_status=200, sentence=None, answer=None, deadline_seconds=2400)
                await claims.record_answer(pool, CHAIN_ID, order, frozen, attempt, answered)

    @operation(
        choice=small, kind=st.sampled_from(["mint", "mint", "mint", "wrong_amount", "false", "empty", "forged", "late"])
    )
    def deliver(self, choice: int, kind: str) -> None:
        """The forwarder delivers what was sent, or somebody forges it."""
        if not self.sent:
            return
        order = self.sent[choice % len(self.sent)]
        wish = Deliver(
            consumer=order.consumer,
            recipient=order.beneficiary,
            amount=order.amount + (kind == "wrong_amount") if order.amount < 2**256 - 1 else order.amount,
            reference=order.expected_reference,
            execution_id=execution_id_candidates(WORKFLOW, order.nonce.hex)[choice % 2],
            mints=kind not in {"false", "empty"},
            report=None if kind == "forged" else kind != "false",
        )
        transaction = Transaction(hash=digest("tx", self.world.next_number()), wishes=(wish,))
        if kind == "late":
            self.world.transactions[transaction.hash] = transaction
        else:
            self.world.mine([transaction])

    @operation()
    def resume_baskets(self) -> None:
        """A person has seen every alarm about a basket of this branch."""
        self.arena.run(self._resume_baskets())

    async def _resume_baskets(self) -> None:
        pool, person = self.arena.operator_pool, Person(name="model", reason="seen")
        for row in await pool.fetch(
            "SELECT DISTINCT stablecoin FROM basket JOIN basket_pause USING (chain_id, stablecoin) WHERE canonical"
        ):
            await operators.turn_basket(pool, CHAIN_ID, row["stablecoin"], BasketSwitch.RESUME, person)
            async with self.arena.owner_pool.acquire() as connection:
                await self.oracle.resumed(connection, row["stablecoin"])
            self.arena.tally.resumed += 1

    # -- the daemon -----------------------------------------------------------------------------------------------

    @operation()
    def tick(self) -> None:
        self.arena.run(self._forgiven(self.running.follower.tick))

    @operation()
    def sweep_on(self) -> None:
        """While an only endpoint leaves something out, nothing could tell that it does so again."""
        if len(self.world.endpoints) > 1 or not self.world.is_lied_to:
            self.arena.run(self._forgiven(self.running.sweep.tick))

    @operation(
        name=st.sampled_from(
            ["indexer.before_commit", "indexer.after_commit", "sweep.before_commit", "sweep.after_commit"]
        ),
        after=st.integers(0, 2),
    )
    def kill_at_a_commit(self, name: str, after: int) -> None:
        self.kill_at = (name, after)
        try:
            self.arena.run(self._settled())
            if not self.world.is_lied_to:
                self.arena.run(self._swept())
        except Killed:
            self.running.start()
        self.kill_at = None

    @operation(root=st.integers(0, 40))
    def kill_anywhere(self, root: int) -> None:
        """The process ends at whatever line it has come to after some turns of the loop."""
        self.arena.run(self._killed(turns=root**2))
        self.running.start()

    async def _killed(self, *, turns: int) -> None:
        ticking = asyncio.create_task(self._forgiven(self.running.follower.tick))  # noqa: TID251 - somebody has to be killed
        for _ in range(turns):
            if ticking.done():
                break
            await asyncio.sleep(0)  # noqa: TID251 - one turn of the loop, no time
        self.arena.tally.kills["finished" if ticking.done() else "cancelled"] += 1
        ticking.cancel()
        await asyncio.gather(ticking, return_exceptions=True)

    @operation()
    def start_again(self) -> None:
        self.running.start()

    @operation()
    def tick_twice_at_once(self) -> None:
        """Two followers of one chain (hard case 54)."""
        daemon = self.running
        other = daemon.new_follower(daemon.new_node(range(len(self.world.endpoints))))
        self.arena.run(self._race(other))

    async def _race(self, other: Follower) -> None:
        await asyncio.gather(self._forgiven(self.running.follower.tick), self._forgiven(other.tick))

    @operation(exchange=st.integers(0, 6), depth=st.integers(1, 6), branch=branch_orders)
    def overtake(self, exchange: int, depth: int, branch: list[list[Order]]) -> None:
        """A follower is paused in the middle of a tick; chain and another follower go on; it wakes (hard case 54)."""
        self.arena.run(self._overtaken(exchange, depth, branch))

    async def _overtaken(self, exchange: int, depth: int, branch: list[list[Order]]) -> None:
        slow = Endpoint(HonestNode(self.world.view, self.world.blocks_by_hash), place=0, injected=Counter())
        place = len(self.world.endpoints)
        self.arena.server.endpoints = (*self.world.endpoints, slow)
        daemon = self.running
        follower = daemon.new_follower(daemon.new_node(range(place, place + 1), timeout_seconds=60))
        is_paused = slow.pause_after(exchange)
        ticking = asyncio.create_task(self._forgiven(follower.tick))  # noqa: TID251 - it must be paused in between
        pausing = asyncio.create_task(is_paused.wait())  # noqa: TID251 - see above
        await asyncio.wait({ticking, pausing}, return_when=asyncio.FIRST_COMPLETED)
        pausing.cancel()
        self.world.reorganise(depth, branch)
        await self._settled()
        slow.go_on()
        await ticking

    @operation()
    def settle(self) -> None:
        """Let the follower come to rest; the rows are right then, unless it was lied to."""
        if any(endpoint.faults for endpoint in self.world.endpoints):
            self._heal()
        self.arena.run(self._settled())
        self._look("settled")

    @operation(chance=st.integers(0, 4))
    def audit(self, chance: int) -> None:
        """All becomes final and is swept: the rows are right then, whatever was lied."""
        if chance == 0:  # seldom, for it leaves no fork alive
            self._audit()

    def _audit(self) -> None:
        self._heal()
        # A head that stepped back leaves the cursor above it, where nothing is final (hard case 7).
        while self.world.view.head.number <= self.arena.run(self._cursor()):
            self.world.grow([])
        self.world.become_final(10_000, 0)
        self.arena.run(self._settled())
        self.arena.run(self._swept_to_the_end())
        if not self.is_halted:
            self.arena.run(self._verified_by_hand())
        self._note_lies()
        if self.may_be_wrong:
            self.oracle.forget_final_rows()
        self.may_be_wrong = False
        self._look("audited")

    def _look(self, what: str) -> None:
        self._note_lies()
        what = "halted" if self.is_halted else "while lied to" if self.may_be_wrong else what
        self.arena.tally.looks[what] += 1
        wrong = self.arena.run(self._wrong())
        self.arena.tally.wrong_rows += len(wrong)
        assert not wrong, "\n".join(wrong)

    def _note_lies(self) -> None:
        silent = self._silent_faults()
        if silent > self.silent_before:
            self.may_be_wrong = self.was_lied_to = True
        self.silent_before = silent

    def _silent_faults(self) -> int:
        return sum(self.arena.tally.faults[fault] for fault in SILENT)

    async def _forgiven(self, tick: Callable[[], Awaitable[bool]]) -> bool:
        """One tick, forgiven as the supervisor does; time passes after a trouble."""
        if self.is_halted:
            return False
        self.world.note_lies()
        is_lied_to = any(endpoint.faults for endpoint in self.world.endpoints)
        try:
            return await tick()
        except (NodeUnavailable, RangeRefused) as error:
            self.arena.tally.troubles[type(error).__name__] += 1
            self.running.clock.now += _PATIENCE_SECONDS
            return True
        except FinalityViolated:
            # It stops for a person, who finds an endpoint that lied and starts it again.
            self.arena.tally.troubles["FinalityViolated"] += 1
            if is_lied_to:
                self.running.start()
                return True
            if not await self._believed_a_fork():
                raise
            self.arena.tally.troubles["halted for good"] += 1
            self.is_halted = True
            return False

    async def _believed_a_fork(self) -> bool:
        """Whether an endpoint told of a fork twice in the same way, and a block of it was taken for final.

        No second answer of that endpoint gives it away, so the daemon stops at the next true one.
        """
        newest = await sweeping.newest_block(self.arena.indexer_pool, CHAIN_ID, up_to=self.world.floor)
        assert newest is not None
        block = self.world.view.head.at(newest.number)
        told = self.arena.tally.faults[Fault.BLOCK_OF_A_FORK] > self.forks_before
        return told and (block is None or block.hash != newest.hash)

    async def _settled(self) -> None:
        quiet = 0
        for _ in range(_TICKS_TO_SETTLE):
            quiet = 0 if await self._forgiven(self.running.follower.tick) else quiet + 1
            if quiet == 2:
                return
        raise AssertionError("the follower does not come to rest")

    async def _swept(self) -> None:
        for _ in range(_TICKS_TO_SETTLE):
            if not await self._forgiven(self.running.sweep.tick):
                return
        raise AssertionError("the sweep does not come to rest")

    async def _swept_to_the_end(self) -> None:
        """On a loaded machine an honest endpoint may not answer in time, and the sweep waits for it."""
        for _ in range(_TICKS_TO_SETTLE):
            await self._swept()
            at = await sweeping.position(self.arena.indexer_pool, CHAIN_ID)
            if at.swept >= at.finalized or self.is_halted:
                return
            self.running.clock.now += _REST_SECONDS
        raise AssertionError("the sweep does not come to its end")

    async def _verified_by_hand(self) -> None:
        """What a person does about endpoints that disagreed, once the liar is out: ``bskt verify --repair``."""
        pool = self.arena.indexer_pool
        rows = await pool.fetch("SELECT kind, repaired FROM sweep_difference")
        self.arena.tally.differences.update(
            f"{row['kind']} {'repaired' if row['repaired'] else 'disputed'}" for row in rows
        )
        if all(row["repaired"] for row in rows):
            return
        done = 0
        while done < self.world.finalized:
            try:
                examined = await self.running.examiner.examine(done, self.world.finalized, by_hand=True)
            except (NodeUnavailable, EndpointChanged):
                self.running.clock.now += _PATIENCE_SECONDS
                continue
            if examined.repair is None and examined.saying(Word.IS_SILENT):
                self.running.clock.now += _REST_SECONDS  # on a loaded machine an honest endpoint may not answer in time
                continue
            await sweeping.conclude(
                pool,
                CHAIN_ID,
                swept=None,
                differences=examined.differences,
                repair=examined.repair,
                rules=RULES,
                sentence=examined.sentence,
            )
            done = examined.last

    async def _cursor(self) -> int:
        async with self.arena.owner_pool.acquire() as connection:
            number: int = await connection.fetchval("SELECT block_number FROM cursor")
        return number

    async def _wrong(self) -> list[str]:
        view = self.world.view
        safe = view.safe.number if view.safe else -1
        async with self.arena.owner_pool.acquire() as connection:
            if self.may_be_wrong or self.is_halted:
                return await self.oracle.wrong_stories(connection)
            tip = await connection.fetchval("SELECT block_number FROM cursor")
            height = self.trigger.height(tip=tip, finalized=self.world.finalized, safe=safe)
            return await self.oracle.wrong(
                connection,
                tip=view.head,
                finalized=(self.world.finalized, max(self.world.finalized, self.world.floor)),
                trigger=height,
                exact_trigger=self.trigger.tag == "finalized" and self.world.floor <= max(0, self.world.finalized),
                is_swept_clean=not self.was_lied_to,
            )
