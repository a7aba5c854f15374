"""Histories of a chain and of the follower beside it, drawn by Hypothesis; the oracle looks when it has settled."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from functools import wraps
from pathlib import Path
from typing import Any, Final, TypeVar
from uuid import uuid4

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from datastore import claims
from datastore.claims import Answered, Frozen, Pacing
from datastore.connection import Pool
from datastore.following import Rules
from datastore.identity import execution_id_candidates
from datastore.pinning import Pin, pin_first_start
from datastore.rows import Block as FirstBlock
from indexer.abi_files import load_abis
from indexer.decoding import EventCatalog
from indexer.follower import FinalityRule, Follower
from indexer.observation import Sources
from indexer.policy import Policy
from node.endpoint import RpcEndpoint
from node.node import Node
from tests.chain_model.chain import (
    FACTORY,
    FORWARDER,
    NOISES,
    Ask,
    CreateBasket,
    Deliver,
    Garble,
    Noise,
    OnEven,
    Transaction,
    Wish,
    digest,
    genesis,
    mine,
    user,
)
from tests.chain_model.faults import Fault
from tests.chain_model.oracle import Oracle
from tests.chain_model.rpc import HonestNode, View
from tests.chain_model.server import Endpoint, Server

T = TypeVar("T")

CHAIN_ID: Final = 31337
SECRET: Final = b"a secret of the chain model, 32 b"
WORKFLOW: Final = digest("workflow")
PACING: Final = Pacing(seconds_per_trigger=0, burst=1, max_in_flight=1_000)
CATALOG: Final = EventCatalog(load_abis(Path(__file__).parents[2] / "abi"))
ETHER: Final = 10**18

# Deleting is a hundred times faster than truncating as long as the tables are small.
_TABLES: Final = (
    *("attempt", "frozen_request", "execution_id", "basket_turn", "workflow_slot", "workflow", "alarm", "report"),
    *("mint_execution", "mint_transition", "mint_request", "reorg", "basket", "log", "block", "operator_action"),
    *("control", "cursor", "chain"),
)
_EMPTY: Final = ";".join(f"DELETE FROM {table}" for table in _TABLES)  # noqa: S608 - names of ours
_TICKS_TO_SETTLE: Final = 200


class Killed(Exception):
    """The process ended at this very line."""


@dataclass(slots=True, kw_only=True)
class Tally:
    """What all histories together did."""

    sequences: int = 0
    operations: Counter[str] = field(default_factory=Counter)
    looks: int = 0
    blocks: int = 0
    requests: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    faults: Counter[Fault] = field(default_factory=Counter)
    wrong_rows: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Arena:
    """What outlives a history: the loop, the database, the server, the count."""

    loop: asyncio.AbstractEventLoop
    indexer_pool: Pool
    invocator_pool: Pool
    owner_pool: Pool
    server: Server
    tally: Tally

    def run(self, work: Coroutine[object, object, T]) -> T:
        return self.loop.run_until_complete(work)


KINDS: Final = (
    "create",
    "create_and_ask",
    "ask_token",
    "ask_token",
    "ask_factory",
    "ask_twice",
    "ask_stranger",
    "ask_shifted",
    "ask_on_even",
    "garble",
    "noise",
    *["again"] * 8,
)
small: Final = st.integers(0, 7)
orders: Final = st.lists(st.tuples(st.sampled_from(KINDS), small, small), max_size=4)


def operation(**strategies: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], Any]:
    """A rule of the machine that is counted."""

    def made(function: Callable[..., None]) -> Any:
        @wraps(function)
        def counted(self: Histories, **drawn: object) -> None:
            self.arena.tally.operations[function.__name__] += 1
            function(self, **drawn)

        return rule(**strategies)(counted)  # type: ignore[call-overload]  # two of its own keywords are overloaded

    return made


class Histories(RuleBasedStateMachine):
    """One history: a chain that grows, forks and becomes final, and a follower that is killed and started again."""

    def __init__(self, arena: Arena) -> None:
        super().__init__()
        self.arena = arena
        self.genesis = genesis()
        self.blocks_by_hash = {self.genesis.hash: self.genesis}
        self.view = View(chain_id=CHAIN_ID, head=self.genesis)
        self.oracle = Oracle(chain_id=CHAIN_ID, blocks_by_hash=self.blocks_by_hash, genesis=self.genesis)
        self.finalized = -1
        self.transactions: dict[bytes, Transaction] = {}
        self.count = 0
        self.sent: list[claims.Order] = []
        self.nodes: list[Node] = []
        self.trigger = FinalityRule(tag="finalized")
        self.max_range_blocks = 5
        self.kill_at: tuple[str, int] | None = None

    # -- beginning and end ----------------------------------------------------------------------------------------

    @initialize(
        tag=st.sampled_from(["finalized", "finalized", "safe", "depth"]),
        range_blocks=st.integers(1, 6),
        grown=st.integers(1, 12),
        final=st.integers(0, 12),
    )
    def begin(self, tag: str, range_blocks: int, grown: int, final: int) -> None:
        self.trigger = FinalityRule(tag=tag, depth=2)  # type: ignore[arg-type]
        self.max_range_blocks = range_blocks
        for number in range(grown):
            self._grow([("create_and_ask" if number % 3 == 0 else "ask_token", number % 8, number % 5)])
        if final:
            self._become_final(final, 1)
        self.arena.run(self._begin())

    async def _begin(self) -> None:
        await self.arena.owner_pool.execute(_EMPTY)
        self.arena.tally.sequences += 1
        self.arena.server.endpoints = (
            Endpoint(HonestNode(self.view, self.blocks_by_hash), injected=self.arena.tally.faults),
        )
        first = self.view.head.at(1)
        if first is None:
            raise AssertionError("a chain begins with a block 1")
        # The start block is not pinned to a branch: the cursor starts on genesis.
        await pin_first_start(
            self.arena.indexer_pool,
            Pin(
                chain_id=CHAIN_ID,
                genesis_hash=self.genesis.hash,
                factory_address=FACTORY,
                factory_code_hash=digest("code"),
                forwarder_address=FORWARDER,
                secret_check=b"check",
            ),
            start=FirstBlock(
                number=1, hash=first.hash, parent_hash=self.genesis.hash, timestamp=self.genesis.timestamp
            ),
            first_trigger_block_number=0,
        )
        await claims.list_workflows(self.arena.invocator_pool, CHAIN_ID, [WORKFLOW])
        self.follower = self._follower()

    def _follower(self) -> Follower:
        return Follower(
            pool=self.arena.indexer_pool,
            node=self._node(),
            sources=Sources(chain_id=CHAIN_ID, factory=FACTORY, forwarder=FORWARDER, catalog=CATALOG, secret=SECRET),
            rules=Rules(policy=Policy(max_mint_wei=None), contest=True, first_trigger_block_number=0),
            trigger_finality=self.trigger,
            complete_finality=FinalityRule(tag="finalized"),
            max_range_blocks=self.max_range_blocks,
            reached=self._reached,
        )

    def _node(self) -> Node:
        node = Node(
            [
                RpcEndpoint(
                    str(number),
                    self.arena.server.url(number),
                    request_timeout_seconds=10,
                    max_answer_bytes=1_000_000,
                    observe=lambda *_: None,
                )
                for number in range(len(self.arena.server.endpoints))
            ]
        )
        self.nodes.append(node)
        return node

    def _reached(self, name: str) -> None:
        if self.kill_at is not None and self.kill_at[0] == name:
            if self.kill_at[1] == 0:
                self.kill_at = None
                self.arena.tally.kills[name] += 1
                raise Killed(name)
            self.kill_at = (name, self.kill_at[1] - 1)

    def teardown(self) -> None:
        try:
            if self.nodes:
                self.settle()
        finally:
            self.arena.tally.requests += len(self.oracle.known)
            for node in self.nodes:
                self.arena.run(node.close())

    # -- the chain ------------------------------------------------------------------------------------------------

    @operation(orders=orders)
    def grow(self, orders: list[tuple[str, int, int]]) -> None:
        self._grow(orders)

    @operation(number=st.integers(1, 8))
    def grow_empty(self, number: int) -> None:
        for _ in range(number):
            self._grow([])

    @operation(depth=st.integers(1, 6), orders=st.lists(orders, min_size=1, max_size=5))
    def reorganise(self, depth: int, orders: list[list[tuple[str, int, int]]]) -> None:
        """Another branch takes over; what the old one held waits to be mined again, replaced, or lost."""
        ancestor = self.view.head
        while depth and ancestor.number > max(self.finalized, 0) and ancestor.parent is not None:
            ancestor, depth = ancestor.parent, depth - 1
        if ancestor is self.view.head:
            return
        self.view.head = ancestor
        for order in orders:
            self._grow(order)
        self._settle_tags()

    @operation(choice=st.integers(0, 200))
    def flip(self, choice: int) -> None:
        """Any block that was ever mined above finality is the head now: A→B→A, a shorter chain, a step back."""
        final = self.view.head.at(max(self.finalized, 0))
        living = [block for block in self.blocks_by_hash.values() if final and block.descends_from(final)]
        self.view.head = living[choice % len(living)]
        self._settle_tags()

    @operation(number=st.integers(1, 8), safe=st.integers(0, 3))
    def become_final(self, number: int, safe: int) -> None:
        self._become_final(number, safe)

    def _become_final(self, number: int, safe: int) -> None:
        head = self.view.head
        self.finalized = min(max(self.finalized, 0) + number, head.number)
        self.view.finalized = head.at(self.finalized)
        self.view.safe = head.at(min(self.finalized + safe, head.number))

    def _settle_tags(self) -> None:
        """``safe`` may be left by a reorg, ``finalized`` never is."""
        head, safe = self.view.head, self.view.safe
        if safe is not None and not head.descends_from(safe):
            self.view.safe = self.view.finalized

    def _grow(self, orders: list[tuple[str, int, int]]) -> None:
        mined = {transaction.hash for block in self.view.head.branch() for transaction in block.transactions}
        waiting = {tx_hash: each for tx_hash, each in self.transactions.items() if tx_hash not in mined}
        self._mine([self._transaction(waiting, *order) for order in orders])

    def _mine(self, transactions: list[Transaction]) -> None:
        self.count += 1
        block = mine(self.view.head, transactions, salt=self.count)
        self.transactions |= {transaction.hash: transaction for transaction in transactions}
        self.blocks_by_hash[block.hash] = block
        self.view.head = block
        self.arena.tally.blocks += 1

    def _transaction(self, waiting: dict[bytes, Transaction], kind: str, a: int, b: int) -> Transaction:
        self.count += 1
        if kind == "again" and waiting:
            # The newest are those that the last reorg threw out.
            again = waiting.pop(list(waiting)[-1 - a % len(waiting)])
            if b < 6:  # the same transaction elsewhere
                return again
            # Replaced by its sender: another hash, the same wish (hard case 99).
            return Transaction(hash=digest("tx", "replaced", again.hash, self.count), wishes=again.wishes)
        return Transaction(hash=digest("tx", self.count), wishes=tuple(self._wishes(kind, a, b)))

    def _wishes(self, kind: str, a: int, b: int) -> list[Wish]:  # noqa: PLR0911 - a table of kinds
        hostile = (b"Dollar", b"\xff\xfe\x00", "\u202eolleH".encode(), b"")[b % 4]
        create = CreateBasket(name=hostile, symbol=b"USD" * (b + 1))
        ask = Ask(
            ordinal=a % 3,
            form="token",
            requester=user(a),
            beneficiary=user(2 + b % 2),
            amount=(0, 1, ETHER, 2**256 - 1, 10**14, 3 * ETHER, ETHER, ETHER)[b],
            reference=self._reference(a, b),
        )
        of_factory = replace(ask, form="factory")
        match kind:
            case "create":
                return [create]
            case "create_and_ask":
                newborn = len(self.view.head.consumer_by_token)
                return [create, replace(ask, ordinal=newborn)]
            case "ask_factory":
                return [of_factory]
            case "ask_twice":
                return [ask, ask]
            case "ask_stranger":
                return [replace(of_factory, ordinal=99)]
            case "ask_shifted":
                return [OnEven(wish=Noise(kind="transfer")), OnEven(wish=of_factory), ask]
            case "ask_on_even":
                return [OnEven(wish=ask)]
            case "garble":
                return [Garble(ordinal=a, event=("BasketCreated", "MintRequested")[b % 2])]
            case "noise":
                return [Noise(kind=NOISES[a % len(NOISES)])]
            case _:
                return [ask]

    def _reference(self, a: int, b: int) -> bytes:
        if b < 2:  # a deposit that several ask for
            return f"deposit-{a % 3}".encode().ljust(32, b"\0")
        self.count += 1
        return digest("reference", self.count) if b < 4 else f"bank-{self.count}".encode().ljust(32, b"\0")

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
        self.count += 1
        wish = Deliver(
            consumer=order.consumer,
            recipient=order.beneficiary,
            amount=order.amount + (kind == "wrong_amount") if order.amount < 2**256 - 1 else order.amount,
            reference=order.expected_reference,
            execution_id=execution_id_candidates(WORKFLOW, order.nonce.hex)[choice % 2],
            mints=kind not in {"false", "empty"},
            report=None if kind == "forged" else kind != "false",
        )
        transaction = Transaction(hash=digest("tx", self.count), wishes=(wish,))
        if kind == "late":
            self.transactions[transaction.hash] = transaction
        else:
            self._mine([transaction])

    # -- the follower ---------------------------------------------------------------------------------------------

    @operation()
    def tick(self) -> None:
        self.arena.run(self.follower.tick())

    @operation(name=st.sampled_from(["indexer.before_commit", "indexer.after_commit"]), after=st.integers(0, 2))
    def kill_at_a_commit(self, name: str, after: int) -> None:
        self.kill_at = (name, after)
        try:
            self.arena.run(self._settled())
        except Killed:
            self.follower = self._follower()
        self.kill_at = None

    @operation(root=st.integers(0, 40))
    def kill_anywhere(self, root: int) -> None:
        """The process ends at whatever line it has come to after some turns of the loop."""
        self.arena.run(self._killed(turns=root**2))
        self.follower = self._follower()

    async def _killed(self, *, turns: int) -> None:
        ticking = asyncio.create_task(self.follower.tick())  # noqa: TID251 - somebody has to be killed
        for _ in range(turns):
            if ticking.done():
                break
            await asyncio.sleep(0)  # noqa: TID251 - one turn of the loop, no time
        self.arena.tally.kills["finished" if ticking.done() else "cancelled"] += 1
        ticking.cancel()
        await asyncio.gather(ticking, return_exceptions=True)

    @operation()
    def start_again(self) -> None:
        self.follower = self._follower()

    @operation()
    def tick_twice_at_once(self) -> None:
        """Two followers of one chain (hard case 54)."""
        other = self._follower()
        self.arena.run(self._race(other))

    async def _race(self, other: Follower) -> None:
        await asyncio.gather(self.follower.tick(), other.tick())

    @operation()
    def settle(self) -> None:
        self.arena.run(self._settled())
        wrong = self.arena.run(self._look())
        self.arena.tally.wrong_rows += len(wrong)
        assert not wrong, "\n".join(wrong)

    async def _settled(self) -> None:
        quiet = 0
        for _ in range(_TICKS_TO_SETTLE):
            quiet = 0 if await self.follower.tick() else quiet + 1
            if quiet == 2:
                return
        raise AssertionError("the follower does not come to rest")

    async def _look(self) -> list[str]:
        view = self.view
        safe = view.safe.number if view.safe else -1
        self.arena.tally.looks += 1
        async with self.arena.owner_pool.acquire() as connection:
            tip = await connection.fetchval("SELECT block_number FROM cursor")
            height = self.trigger.height(tip=tip, finalized=self.finalized, safe=safe)
            return await self.oracle.wrong(
                connection,
                tip=view.head,
                finalized=self.finalized,
                trigger=height,
                exact_trigger=self.trigger.tag == "finalized",
            )
