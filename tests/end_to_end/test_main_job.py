"""The whole path on a real chain, a real database and the real wire protocol, driven tick by tick."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, time  # noqa: TID251 - the test hands the real clock in
from typing import Any

import aiohttp
import pytest

from datastore.claims import Pacing
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
from invocator.cre_gateway import CreGateway
from invocator.invocation import Invocator, Terms
from invocator.signing import Signer
from node.endpoint import RpcEndpoint
from node.node import Node
from service.demo.anvil import Anvil, find_or_install_anvil
from service.demo.contracts import (
    Basket,
    DevChain,
    System,
    batch_call,
    call,
    create_basket,
    create_basket_call,
    deploy_system,
    mint_report,
    next_basket,
    request_mint,
    request_mint_call,
    total_supply,
)
from service.demo.cre_stand_in import CreStandIn, Workflow, faults

pytestmark = pytest.mark.end_to_end

ROOT = Path(__file__).parents[2]
KEY = "0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80"  # the first well-known anvil key
SECRET = b"a secret of this test, 32 bytes!"
WORKFLOW_ID = bytes(range(32))
USER = bytes.fromhex("3C44CdDdB6a900fa2b585dd299e03d12FA4293BC")
OTHER_USER = bytes.fromhex("90F79bf6EB2c4f870365E785982E1f101E93b906")
AMOUNT = 2_500_000_000_000_000_000


def reference(text: str) -> bytes:
    return text.encode().ljust(32, b"\0")


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    chain: DevChain
    system: System
    basket: Basket
    cre: CreStandIn
    follower: Follower
    invocators: tuple[Invocator, ...]
    pool: Pool

    async def follow(self) -> None:
        while await self.follower.tick():
            pass

    async def invoke(self, worker: int = 0) -> None:
        while await self.invocators[worker].tick():
            await self.cre.idle()
        await self.cre.idle()

    async def settle(self) -> None:
        """Everything that the daemon can do by itself: index, send, index the mint, and see it final."""
        await self.follow()
        await self.invoke()
        await self.chain.mine(3)
        await self.follow()

    async def request(self, bank: str, *, beneficiary: bytes = USER) -> Any:
        return await request_mint(
            self.chain, self.basket.token, beneficiary=beneficiary, amount_wei=AMOUNT, bank_reference=reference(bank)
        )

    async def states(self) -> list[str]:
        rows = await self.pool.fetch("SELECT state FROM mint_request ORDER BY id")
        return [row["state"] for row in rows]

    async def supply(self) -> int:
        return await total_supply(self.chain, self.basket.token)


@pytest.fixture(scope="session")
def anvil_binary() -> Path:
    return find_or_install_anvil(configured=None, cache_dir=ROOT / ".cache")


@pytest.fixture
async def world(anvil_binary: Path, indexer_pool: Pool, invocator_pool: Pool) -> AsyncIterator[World]:
    signer = Signer.from_text(KEY)
    async with await Anvil.start(anvil_binary, slots_in_an_epoch=1) as anvil, aiohttp.ClientSession() as session:
        chain = DevChain(session=session, url=anvil.url)
        system = await deploy_system(chain)
        basket = await create_basket(chain, system.factory, name="Test Dollar", symbol="TUSD")
        node = Node(
            [
                RpcEndpoint(
                    "0",
                    anvil.url,
                    request_timeout_seconds=10,
                    max_answer_bytes=32 * 1024 * 1024,
                    observe=lambda *_: None,
                )
            ]
        )
        sources = Sources(
            chain_id=31337,
            factory=system.factory,
            forwarder=system.forwarder,
            catalog=EventCatalog(load_abis(ROOT / "abi")),
            secret=SECRET,
        )
        start = await node.header_by_number(1)
        await pin_first_start(
            indexer_pool,
            Pin(
                chain_id=31337,
                genesis_hash=await node.genesis_hash(),
                factory_address=system.factory,
                factory_code_hash=(await node.code_hash(system.factory)) or bytes(32),
                forwarder_address=system.forwarder,
                secret_check=secret_check_value(SECRET),
            ),
            start=Block(number=start.number, hash=start.hash, parent_hash=start.parent_hash, timestamp=start.timestamp),
            first_trigger_block_number=0,
        )
        workflow = Workflow(workflow_id=WORKFLOW_ID, authorized_keys=frozenset({signer.address}))
        async with CreStandIn(
            rpc_url=anvil.url, forwarder=system.forwarder, workflows=[workflow], check_interval_seconds=0.05
        ) as cre:
            terms = Terms(
                gateway_url=cre.url,
                workflow_ids=(WORKFLOW_ID,),
                currency="USD",
                pacing=Pacing(seconds_per_trigger=0, burst=1, max_in_flight=1000),
                timeout_seconds=5,
                lease_seconds=60,
                completion_deadline_seconds=2400,
                give_up_seconds=86_400,
            )
            invocators = tuple(
                Invocator(
                    pool=invocator_pool,
                    chain_id=31337,
                    gateway=CreGateway.at(cre.url),
                    signer=signer,
                    terms=terms,
                    clock=time,
                )
                for _ in range(2)
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
            yield World(
                chain=chain,
                system=system,
                basket=basket,
                cre=cre,
                follower=follower,
                invocators=invocators,
                pool=indexer_pool,
            )
        await node.close()


async def test_a_request_on_chain_becomes_one_mint_on_chain(world: World) -> None:
    await world.request("DEPOSIT-1")
    await world.settle()
    assert await world.states() == ["completed"]
    assert await world.supply() == AMOUNT
    assert len(world.cre.ledger.request_ids()) == 1


async def test_a_basket_that_is_created_and_used_in_one_transaction_is_found(world: World) -> None:
    """Hard case 35."""
    born = await next_basket(world.chain, world.system.factory)
    await world.chain.transact(
        batch_call(
            world.system.batch,
            [
                create_basket_call(world.system.factory, name="New", symbol="NEW"),
                request_mint_call(born.token, beneficiary=USER, amount_wei=AMOUNT, bank_reference=reference("D-NEW")),
            ],
        )
    )
    await world.settle()
    assert await world.states() == ["completed"]
    assert await total_supply(world.chain, born.token) == AMOUNT


async def test_the_same_transaction_re_mined_at_another_log_index_is_one_request_and_one_mint(world: World) -> None:
    """Hard case 4."""
    # Somebody else's transaction with a log of its own, which the reorg puts into the same block, before ours.
    other = (await world.chain.accounts())[3]
    nothing = await world.chain.transact(call(world.basket.token, "transfer(address,uint256)", USER, 0), sender=other)
    receipt = await world.request("DEPOSIT-1")
    await world.follow()
    before = await world.pool.fetchrow("SELECT nonce, log_index, block_hash FROM mint_request")
    raw = [await world.chain.raw_transaction(each.tx_hash) for each in (nothing, receipt)]
    await world.chain.reorg(2, [(each, 1) for each in raw])
    await world.follow()
    after = await world.pool.fetchrow("SELECT nonce, log_index, block_hash FROM mint_request")
    assert before is not None
    assert after is not None
    assert after["nonce"] == before["nonce"]
    assert (before["log_index"], after["log_index"]) == (0, 1)
    await world.settle()
    assert await world.states() == ["completed"]
    assert await world.supply() == AMOUNT


async def test_one_deposit_that_is_used_twice_mints_once(world: World) -> None:
    await world.request("DEPOSIT-1")
    await world.request("DEPOSIT-1")
    await world.settle()
    assert await world.states() == ["completed", "rejected"]
    assert await world.supply() == AMOUNT


async def test_a_policy_rejection_on_chain_fails_the_request_with_its_reason(world: World) -> None:
    await world.chain.transact(call(world.basket.consumer, "setPolicyRejects(bool)", True))
    await world.request("DEPOSIT-1")
    await world.settle()
    assert await world.states() == ["failed"]
    assert await world.pool.fetchval("SELECT state_reason FROM mint_request") == "delivery_failed"
    assert await world.supply() == 0


async def test_a_forged_mint_completes_nothing(world: World) -> None:
    """Hard case 91."""
    await world.request("DEPOSIT-1")
    report = mint_report(recipient=OTHER_USER, amount_wei=1, bank_reference=reference("DEPOSIT-1"))
    await world.chain.transact(call(world.basket.consumer, "processMintReport(bytes)", report))
    await world.settle()
    assert await world.states() == ["review"]
    assert world.cre.ledger.request_ids() == frozenset()


async def test_a_time_out_after_acceptance_is_never_answered_with_another_id(world: World) -> None:
    """Hard case 75."""
    world.cre.faults.next(faults.answer_lost())
    await world.request("DEPOSIT-1")
    await world.settle()
    assert await world.states() == ["completed"]
    assert await world.supply() == AMOUNT
    assert len(world.cre.ledger.request_ids()) == 1


async def test_two_workers_at_once_send_each_request_once(world: World) -> None:
    """Hard case 54."""
    for number in range(10):
        await world.request(f"DEPOSIT-{number}")
    await world.follow()
    async with aiohttp.ClientSession():
        more = True
        while more:
            more = any([await worker.tick() for worker in world.invocators])
    await world.cre.idle()
    await world.chain.mine(3)
    await world.follow()
    assert await world.states() == ["completed"] * 10
    assert await world.supply() == 10 * AMOUNT
    assert len(world.cre.ledger.request_ids()) == 10


@pytest.mark.timeout(300)
async def test_two_hundred_requests_are_all_completed_and_the_supply_is_their_sum(world: World) -> None:
    for number in range(200):
        await world.request(f"DEPOSIT-{number}")
    started = perf_counter()
    await world.follow()
    indexed = perf_counter()
    await world.invoke()
    invoked = perf_counter()
    await world.chain.mine(3)
    await world.follow()
    ended = perf_counter()
    assert await world.states() == ["completed"] * 200
    assert await world.supply() == 200 * AMOUNT
    assert len(world.cre.ledger.request_ids()) == 200
    print(  # noqa: T201 - the measurement, shown by pytest -s
        f"\n200 requests: {200 * 60 / (ended - started):.0f} a minute; index {indexed - started:.1f} s, "
        f"trigger and deliver {invoked - indexed:.1f} s, index and complete {ended - invoked:.1f} s"
    )
