"""The indexing side of the daemon, beside a modelled world: one process that can be started again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Final

from eth_hash.auto import keccak

from datastore.connection import Pool
from datastore.following import Rules
from datastore.identity import derive_nonce, secret_check_value
from datastore.pinning import Pin, pin_first_start
from datastore.rows import Block as FirstBlock
from indexer.abi_files import load_abis
from indexer.decoding import EventCatalog
from indexer.follower import FinalityRule, Follower
from indexer.late_factories import LateFactories
from indexer.observation import Sources
from indexer.policy import Policy
from indexer.sweep import Examiner, Sweep
from node.endpoint import RpcEndpoint
from node.identity import ChainIdentity
from node.node import Node
from node.pool import EndpointPool
from tests.chain_model.chain import FACTORY, FORWARDER, digest
from tests.chain_model.rpc import FACTORY_CODE
from tests.chain_model.server import Server
from tests.chain_model.world import CHAIN_ID, World

SECRET: Final = b"a secret of the chain model, 32 b"
CATALOG: Final = EventCatalog(load_abis(Path(__file__).parents[2] / "abi"))
SOURCES: Final = Sources(chain_id=CHAIN_ID, factory=FACTORY, forwarder=FORWARDER, catalog=CATALOG, secret=SECRET)
RULES: Final = Rules(
    policy=Policy(max_mint_wei=None),
    contest=True,
    first_trigger_block_number=0,
    completion_deadline_seconds=2_400,
    nonce_of=lambda identity, generation: derive_nonce(SECRET, identity, generation),
)
HANG_SECONDS: Final = 0.4
"""How long an endpoint may take; short, because some hang."""


@dataclass(slots=True)
class Clock:
    """Seconds that pass when a test says so."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


async def pin(pool: Pool, world: World, *, start: int = 1) -> None:
    """The first start of all, at a block that is or will be mined."""
    genesis = world.genesis
    before = world.view.head.at(start - 1)
    assert before is not None
    await pin_first_start(
        pool,
        Pin(
            chain_id=CHAIN_ID,
            genesis_hash=genesis.hash,
            factory_address=FACTORY,
            factory_code_hash=keccak(FACTORY_CODE),
            forwarder_address=FORWARDER,
            secret_check=secret_check_value(SECRET),
        ),
        start=FirstBlock(number=start, hash=digest("first"), parent_hash=before.hash, timestamp=genesis.timestamp),
        first_trigger_block_number=0,
    )


class Daemon:
    """One process: it remembers what a process remembers, and ``start`` makes a new one."""

    def __init__(
        self,
        *,
        pool: Pool,
        server: Server,
        world: World,
        trigger: FinalityRule,
        max_range_blocks: int,
        reached: Callable[[str], None] = lambda _: None,
        more_factories: frozenset[bytes] = frozenset(),
    ) -> None:
        self.clock = Clock()
        self._pool = pool
        self._server = server
        self._world = world
        self._trigger = trigger
        self._max_range_blocks = max_range_blocks
        self._reached = reached
        self.sources = replace(SOURCES, more_factories=more_factories)
        self._nodes: list[Node] = []
        self.start()

    def start(self, *, halted_at: datetime | None = None) -> None:
        """Remember nothing but the rows; ``halted_at`` is one of them."""
        self.node = self.new_node(range(len(self._world.endpoints)))
        self.follower = self.new_follower(self.node)
        self.examiner = Examiner(
            pool=self._pool,
            node=self.node,
            sources=self.sources,
            trigger_finality=self._trigger,
            complete_finality=FinalityRule(tag="finalized"),
            max_range_blocks=self._max_range_blocks,
        )
        self.sweep = Sweep(
            pool=self._pool,
            chain_id=CHAIN_ID,
            examiner=self.examiner,
            rules=RULES,
            halted_at=halted_at,
            reached=self._reached,
            clock=self.clock,
        )

    def late_factories(self, *, reached: Callable[[str], None] | None = None) -> LateFactories:
        """Reads the history of factories that are not live yet."""
        return LateFactories(
            pool=self._pool,
            node=self.node,
            sources=self.sources,
            rules=RULES,
            trigger_finality=self._trigger,
            complete_finality=FinalityRule(tag="finalized"),
            max_range_blocks=self._max_range_blocks,
            reached=reached or self._reached,
            clock=self.clock,
        )

    def new_follower(self, node: Node) -> Follower:
        """One more follower of the same rows."""
        return Follower(
            pool=self._pool,
            node=node,
            sources=self.sources,
            rules=RULES,
            trigger_finality=self._trigger,
            complete_finality=FinalityRule(tag="finalized"),
            max_range_blocks=self._max_range_blocks,
            reached=self._reached,
            clock=self.clock,
        )

    def new_node(self, places: range, *, timeout_seconds: float = HANG_SECONDS) -> Node:
        """The endpoints at these places of the server."""
        endpoints = [
            RpcEndpoint(
                str(place),
                self._server.url(place),
                request_timeout_seconds=timeout_seconds,
                max_answer_bytes=1_000_000,
                observe=lambda *_: None,
                clock=self.clock,
            )
            for place in places
        ]
        node = Node(EndpointPool(endpoints, clock=self.clock, chance=lambda: 0.5))
        node.expect(
            ChainIdentity(
                chain_id=CHAIN_ID,
                genesis_hash=self._world.genesis.hash,
                factory_address=FACTORY,
                factory_code_hash=keccak(FACTORY_CODE),
            )
        )
        self._nodes.append(node)
        return node

    async def follow(self) -> None:
        """Until there is nothing more; for a world that does not fail."""
        while await self.follower.tick():
            pass

    async def sweep_all(self) -> None:
        """As ``follow``."""
        while await self.sweep.tick():
            pass

    async def close(self) -> None:
        for node in self._nodes:
            await node.close()
