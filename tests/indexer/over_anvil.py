"""A real chain with baskets, and a follower and a sweep over whatever stands before it."""

from dataclasses import dataclass
from pathlib import Path

import asyncpg

from datastore.connection import Pool
from datastore.following import Rules
from datastore.identity import secret_check_value
from datastore.pinning import Pin, pin_first_start
from datastore.rows import Block
from indexer.abi_files import load_abis
from indexer.decoding import EventCatalog
from indexer.follower import FinalityRule, Follower
from indexer.observation import Sources
from indexer.policy import Policy
from indexer.sweep import Examiner, Sweep
from node.endpoint import RpcEndpoint
from node.errors import NodeUnavailable
from node.identity import ChainIdentity
from node.node import DEFAULT_MAX_LOGS, Node
from node.pool import EndpointPool, EndpointReport
from service.demo.contracts import (
    Call,
    DevChain,
    System,
    request_mint_call,
)

CHAIN_ID = 31337
SECRET = b"a secret of this test, 32 bytes!"
USER = b"\x11" * 20
CATALOG = EventCatalog(load_abis(Path(__file__).parents[2] / "abi"))
RULES = Rules(policy=Policy(max_mint_wei=None), contest=True, first_trigger_block_number=0)
DEPTH = FinalityRule(tag="depth", depth=1)
ROWS = {
    "request": """
        SELECT identity, tx_hash, block_number, block_hash, block_timestamp, log_index, stablecoin, consumer, amount,
            bank_reference, state
        FROM mint_request ORDER BY block_number, log_index
    """,
    "basket": "SELECT stablecoin, consumer, block_number, log_index FROM basket ORDER BY block_number, log_index",
    "log": "SELECT block_number, log_index, address, topics, data, event FROM log ORDER BY block_number, log_index",
}

MOST_TURNS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A chain of some seventy blocks: two baskets, one of them used in the block that makes it, and strangers."""

    chain: DevChain
    system: System
    tokens: tuple[bytes, bytes]
    url: str

    def ask(self, basket: int, bank: str) -> Call:
        return request_mint_call(
            self.tokens[basket], beneficiary=USER, amount_wei=10**18, bank_reference=bank.encode().ljust(32, b"\0")
        )

    async def in_one_block(self, *calls: Call, gas: int = 2_000_000) -> None:
        await self.chain.set_automine(False)
        for each in calls:
            await self.chain.send(each, gas=gas)
        await self.chain.mine()
        await self.chain.set_automine(True)


class Follows:
    """A follower and a sweep over one endpoint, whose errors cost time only."""

    def __init__(
        self,
        pool: Pool,
        url: str,
        made: Scene,
        pin: Pin,
        now: list[float],
        *,
        max_answer_bytes: int = 32 * 1024 * 1024,
        max_logs: int = DEFAULT_MAX_LOGS,
    ) -> None:
        self._pool, self._now = pool, now
        endpoint = RpcEndpoint(
            "0",
            url,
            request_timeout_seconds=30,
            max_answer_bytes=max_answer_bytes,
            observe=lambda *_: None,
            clock=self.clock,
        )
        self.node = Node(EndpointPool([endpoint], clock=self.clock, chance=lambda: 0.5), max_logs=max_logs)
        self.node.expect(
            ChainIdentity(
                chain_id=CHAIN_ID,
                genesis_hash=pin.genesis_hash,
                factory_address=pin.factory_address,
                factory_code_hash=pin.factory_code_hash,
            )
        )
        sources = Sources(
            chain_id=CHAIN_ID,
            factory=made.system.factory,
            forwarder=made.system.forwarder,
            catalog=CATALOG,
            secret=SECRET,
        )
        self.follower = Follower(
            pool=pool,
            node=self.node,
            sources=sources,
            rules=RULES,
            trigger_finality=DEPTH,
            complete_finality=DEPTH,
            max_range_blocks=100,
            clock=self.clock,
        )
        examiner = Examiner(
            pool=pool,
            node=self.node,
            sources=sources,
            trigger_finality=DEPTH,
            complete_finality=DEPTH,
            max_range_blocks=100,
        )
        self.sweep = Sweep(pool=pool, chain_id=CHAIN_ID, examiner=examiner, rules=RULES, clock=self.clock)

    def clock(self) -> float:
        return self._now[0]

    @property
    def report(self) -> EndpointReport:
        (report,) = self.node.reports()
        return report

    async def start(self) -> None:
        await self.node.prove_all()

    async def until(self, head: int) -> int:
        """Index up to ``head`` and sweep what is final, as the supervisor does; the number of turns."""
        for turn in range(1, MOST_TURNS):
            try:
                while await self.follower.tick() or await self.sweep.tick():
                    pass
            except NodeUnavailable:
                pass
            row = await self._pool.fetchrow("SELECT cursor.block_number AS at, finalized_number AS final FROM cursor")
            swept = await self._pool.fetchval("SELECT block_number FROM sweep")
            assert row is not None
            if row["at"] == head and (swept or 0) >= row["final"]:
                return turn
            self._now[0] += 5.0
        raise AssertionError(f"not done after {MOST_TURNS} turns: {self.report}")


async def pinned(pool: Pool, made: Scene) -> Pin:
    endpoint = RpcEndpoint(
        "plain", made.url, request_timeout_seconds=10, max_answer_bytes=10_000_000, observe=lambda *_: None
    )
    node = Node([endpoint])
    try:
        pin = Pin(
            chain_id=CHAIN_ID,
            genesis_hash=await node.genesis_hash(),
            factory_address=made.system.factory,
            factory_code_hash=await node.code_hash(made.system.factory) or bytes(32),
            forwarder_address=made.system.forwarder,
            secret_check=secret_check_value(SECRET),
        )
        first = await node.header_by_number(1)
    finally:
        await node.close()
    start = Block(number=1, hash=first.hash, parent_hash=first.parent_hash, timestamp=first.timestamp)
    await pin_first_start(pool, pin, start=start, first_trigger_block_number=0)
    return pin


async def rows(pool: Pool) -> dict[str, list[tuple[object, ...]]]:
    return {name: [tuple(row) for row in await pool.fetch(statement)] for name, statement in ROWS.items()}


async def forget(dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    tables = await connection.fetch(
        "SELECT format('%I', tablename) AS name FROM pg_tables"
        " WHERE schemaname = 'public' AND tablename <> 'schema_version'"
    )
    await connection.execute(f"TRUNCATE {', '.join(row['name'] for row in tables)} RESTART IDENTITY CASCADE")
    await connection.close()
