"""Two real nodes of one chain: one dies, the other takes over; it comes back, and gets its work back."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

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
from node.endpoint import RpcEndpoint
from node.health import EndpointState
from node.identity import ChainIdentity
from node.node import Node
from node.pool import EndpointPool
from service.demo.anvil import Anvil, find_or_install_anvil
from service.demo.contracts import Basket, DevChain, System, create_basket, deploy_system, request_mint

pytestmark = pytest.mark.end_to_end

ROOT = Path(__file__).parents[2]
SECRET = b"a secret of this test, 32 bytes!"
USER = bytes.fromhex("3C44CdDdB6a900fa2b585dd299e03d12FA4293BC")


class Twin:
    """A node on a port that it keeps.  Given the same transactions, it makes the same blocks as any other one."""

    def __init__(self, binary: Path, session: aiohttp.ClientSession) -> None:
        self._binary, self._session = binary, session
        self._port = 0
        self._anvil: Anvil | None = None
        self._history: list[str] = []
        self.system: System | None = None
        self.basket: Basket | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    async def start(self) -> None:
        """Start from the genesis and do again what was done."""
        self._anvil = await Anvil.start(
            self._binary, port=self._port, slots_in_an_epoch=1, extra_options=["--timestamp", "1700000000"]
        )
        self._port = int(self._anvil.url.rpartition(":")[2])
        chain = DevChain(session=self._session, url=self.url)
        await chain.rpc("anvil_setBlockTimestampInterval", 1)
        self.system = await deploy_system(chain)
        self.basket = await create_basket(chain, self.system.factory, name="Twin Dollar", symbol="TD")
        history, self._history = self._history, []
        for bank in history:
            await self.request(bank)

    async def stop(self) -> None:
        if self._anvil is not None:
            await self._anvil.stop()

    async def request(self, bank: str) -> None:
        self._history.append(bank)
        assert self.basket is not None
        await request_mint(
            DevChain(session=self._session, url=self.url),
            self.basket.token,
            beneficiary=USER,
            amount_wei=10**18,
            bank_reference=bank.encode().ljust(32, b"\0"),
        )


@asynccontextmanager
async def twins() -> AsyncIterator[tuple[Twin, Twin]]:
    binary = find_or_install_anvil(configured=None, cache_dir=ROOT / ".cache")
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession())
        first, second = Twin(binary, session), Twin(binary, session)
        for twin in (first, second):
            stack.push_async_callback(twin.stop)
            await twin.start()
        yield first, second


async def test_one_of_two_nodes_dies_and_comes_back_and_every_request_is_recorded_once(indexer_pool: Pool) -> None:
    """Hard cases 4, 26, 27, 28."""
    now = [0.0]
    async with twins() as (first, second):
        assert first.system is not None
        node = Node(
            EndpointPool(
                [
                    RpcEndpoint(
                        str(place),
                        twin.url,
                        request_timeout_seconds=10,
                        max_answer_bytes=10_000_000,
                        observe=lambda *_: None,
                    )
                    for place, twin in enumerate((first, second))
                ],
                clock=lambda: now[0],
            )
        )
        sources = Sources(
            chain_id=31337,
            factory=first.system.factory,
            forwarder=first.system.forwarder,
            catalog=EventCatalog(load_abis(ROOT / "abi")),
            secret=SECRET,
        )
        pin = Pin(
            chain_id=31337,
            genesis_hash=await node.genesis_hash(),
            factory_address=first.system.factory,
            factory_code_hash=await node.code_hash(first.system.factory) or bytes(32),
            forwarder_address=first.system.forwarder,
            secret_check=secret_check_value(SECRET),
        )
        start = await node.header_by_number(1)
        await pin_first_start(
            indexer_pool,
            pin,
            start=Block(number=start.number, hash=start.hash, parent_hash=start.parent_hash, timestamp=start.timestamp),
            first_trigger_block_number=0,
        )
        node.expect(
            ChainIdentity(
                chain_id=31337,
                genesis_hash=pin.genesis_hash,
                factory_address=pin.factory_address,
                factory_code_hash=pin.factory_code_hash,
            )
        )
        follower = Follower(
            pool=indexer_pool,
            node=node,
            sources=sources,
            rules=Rules(policy=Policy(max_mint_wei=None), contest=True, first_trigger_block_number=0),
            trigger_finality=FinalityRule(tag="depth", depth=1),
            complete_finality=FinalityRule(tag="finalized"),
            max_range_blocks=100,
        )

        async def follow() -> tuple[list[str], list[EndpointState], int]:
            while await follower.tick():
                pass
            rows = await indexer_pool.fetch("SELECT bank_reference FROM mint_request ORDER BY id")
            recorded = [row["bank_reference"].rstrip(b"\0").decode() for row in rows]
            return recorded, [report.state for report in node.reports()], node.reports()[0].failovers

        async def probe(times: int) -> None:
            for _ in range(times):
                now[0] += 400
                while await node.probe():
                    pass

        alive, unreachable = EndpointState.ALIVE, EndpointState.UNREACHABLE
        for twin in (first, second):
            await twin.request("ONE")
        await probe(1)
        assert await follow() == (["ONE"], [alive, alive], 0)

        await first.stop()
        await second.request("TWO")
        assert await follow() == (["ONE", "TWO"], [unreachable, alive], 1)

        await first.start()
        await first.request("TWO")
        await second.request("THREE")
        assert await follow() == (["ONE", "TWO", "THREE"], [unreachable, alive], 1)

        await first.request("THREE")
        await probe(3)
        await second.stop()
        await first.request("FOUR")
        assert await follow() == (["ONE", "TWO", "THREE", "FOUR"], [alive, alive], 1)
        assert await indexer_pool.fetchval("SELECT count(*) FROM reorg") == 0
        head = await node.head()
        assert await indexer_pool.fetchval("SELECT block_hash FROM cursor") == head.hash
        await node.close()
