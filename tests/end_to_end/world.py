"""The whole path in one process, driven tick by tick: a real chain, a real database and the real wire protocol.

What the daemon's loops would do is done by hand here, so that a test can stop between any two steps.  What came of it
is asked of the chain and of the CRE stand-in, which share no code with the daemon.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from eth_utils.crypto import keccak

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
from service.demo.anvil import Anvil
from service.demo.contracts import (
    Basket,
    DevChain,
    Receipt,
    System,
    create_basket,
    deploy_system,
    request_mint,
    total_supply,
)
from service.demo.cre_stand_in import Clock, CreStandIn, Workflow

ROOT = Path(__file__).parents[2]
CHAIN_ID = 31337
KEY = "0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80"  # the first well-known anvil key
SECRET = b"a secret of this test, 32 bytes!"
WORKFLOW_ID = bytes(range(32))
USER = bytes.fromhex("3C44CdDdB6a900fa2b585dd299e03d12FA4293BC")
OTHER_USER = bytes.fromhex("90F79bf6EB2c4f870365E785982E1f101E93b906")
AMOUNT = 2_500_000_000_000_000_000
MINT_EXECUTED = keccak(text="MintExecuted(address,uint256,bytes32)")


def reference(text: str) -> bytes:
    """A bank reference as the chain holds it."""
    return text.encode().ljust(32, b"\0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Minted:
    """One ``MintExecuted`` of the current branch."""

    consumer: bytes
    recipient: bytes
    amount: int
    bank_reference: bytes


async def minted(chain: DevChain) -> list[Minted]:
    """Every mint that the chain's own logs show, oldest first, whoever made it."""
    wanted = {"fromBlock": "0x0", "toBlock": "latest", "topics": ["0x" + MINT_EXECUTED.hex()]}
    return [
        Minted(
            consumer=bytes.fromhex(log["address"][2:]),
            recipient=bytes.fromhex(log["topics"][1][26:]),
            amount=int(log["data"], 16),
            bank_reference=bytes.fromhex(log["topics"][2][2:]),
        )
        for log in await chain.rpc("eth_getLogs", wanted)
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """One chain, one basket, one CRE, one follower and two workers over one database."""

    chain: DevChain
    system: System
    basket: Basket
    cre: CreStandIn
    follower: Follower
    invocators: tuple[Invocator, ...]
    pool: Pool

    async def follow(self) -> None:
        """Index everything that is there."""
        while await self.follower.tick():
            pass

    async def send(self, worker: int = 0) -> None:
        """Everything that one worker can do now; what CRE does with it is not waited for."""
        while await self.invocators[worker].tick():
            pass

    async def invoke(self, worker: int = 0) -> None:
        """Send, and let CRE run and deliver everything."""
        while await self.invocators[worker].tick():
            await self.cre.idle()
        await self.cre.idle()

    async def settle(self) -> None:
        """Everything that the daemon can do by itself: index, send, index the mint, and see it final."""
        await self.follow()
        await self.invoke()
        await self.chain.mine(3)
        await self.follow()

    async def send_until(self, done: Callable[[], bool]) -> None:
        """Let one worker turn until something is so that only the clock brings about: a due resend, a deadline."""
        while not done():
            await self.send()

    async def send_until_states(self, *states: str) -> None:
        """Let one worker turn until the requests are in these states, in their order."""
        while await self.states() != list(states):
            await self.send()

    async def send_until_failed(self) -> None:
        """Let one worker turn until the only request has missed its deadline; the index must see the chain pass it."""
        while await self.states() != ["failed"]:
            await self.chain.mine(1)
            await self.follow()
            await self.send()

    async def request(self, bank: str, *, beneficiary: bytes = USER, requester: bytes = USER) -> Receipt:
        """A user asks for ``AMOUNT`` and the request is mined."""
        return await request_mint(
            self.chain,
            self.basket.token,
            beneficiary=beneficiary,
            amount_wei=AMOUNT,
            bank_reference=reference(bank),
            requester=requester,
        )

    async def states(self) -> list[str]:
        """Of all requests, in their order."""
        rows = await self.pool.fetch("SELECT state FROM mint_request ORDER BY id")
        return [row["state"] for row in rows]

    async def standing(self) -> tuple[str, str | None, str]:
        """Of the only request: its state, the reason, and where it stands on chain."""
        (row,) = await self.pool.fetch("SELECT state, state_reason, chain_status FROM mint_request")
        return row["state"], row["state_reason"], row["chain_status"]

    async def alarms(self) -> list[str]:
        """The kind of each alarm, oldest first; of a row that counts several, as often."""
        return [
            row["kind"]
            for row in await self.pool.fetch("SELECT kind FROM alarm, generate_series(1, times) ORDER BY id")
        ]

    async def minted(self) -> list[tuple[bytes, int, bytes]]:
        """Beneficiary, amount and reference of each mint on chain, in the chain's own words."""
        return [(mint.recipient, mint.amount, mint.bank_reference) for mint in await minted(self.chain)]

    async def supply(self) -> int:
        """All that was minted of the basket, in wei."""
        return await total_supply(self.chain, self.basket.token)


@asynccontextmanager
async def open_world(
    *,
    anvil_binary: Path,
    indexer_pool: Pool,
    invocator_pool: Pool,
    slots_in_an_epoch: int = 1,
    trigger_depth_blocks: int = 1,
    timeout_seconds: float = 5,
    resend_margin_seconds: float = 5,
    completion_deadline_seconds: float = 2400,
) -> AsyncIterator[World]:
    """Start everything on a database that holds the schema and nothing else.

    Args:
        anvil_binary: From the fixture of that name.
        indexer_pool: Of a new database.
        invocator_pool: Of the same database.
        slots_in_an_epoch: A block is final when twice as many are above it.
        trigger_depth_blocks: So many linked blocks confirm a request.
        timeout_seconds: How long a worker waits for CRE's answer.
        resend_margin_seconds: How long after that it sends again.
        completion_deadline_seconds: From ACCEPTED to ``failed: not_delivered``.
    """
    signer = Signer.from_text(KEY)
    clock = Clock()  # the workers' too: what makes the nodes' cache a day older must not make a new token expire
    async with (
        await Anvil.start(anvil_binary, slots_in_an_epoch=slots_in_an_epoch) as anvil,
        aiohttp.ClientSession() as session,
    ):
        chain = DevChain(session=session, url=anvil.url)
        system = await deploy_system(chain)
        basket = await create_basket(chain, system.factory, name="Test Dollar", symbol="TUSD")
        endpoint = RpcEndpoint(
            "0", anvil.url, request_timeout_seconds=10, max_answer_bytes=32 * 1024 * 1024, observe=lambda *_: None
        )
        node = Node([endpoint])
        sources = Sources(
            chain_id=CHAIN_ID,
            factory=system.factory,
            forwarder=system.forwarder,
            catalog=EventCatalog(load_abis(ROOT / "abi")),
            secret=SECRET,
        )
        start = await node.header_by_number(1)
        await pin_first_start(
            indexer_pool,
            Pin(
                chain_id=CHAIN_ID,
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
            rpc_url=anvil.url,
            forwarder=system.forwarder,
            workflows=[workflow],
            clock=clock,
            check_interval_seconds=0.05,
        ) as cre:
            terms = Terms(
                gateway_url=cre.url,
                workflow_ids=(WORKFLOW_ID,),
                currency="USD",
                pacing=Pacing(seconds_per_trigger=0, burst=1, max_in_flight=1000),
                timeout_seconds=timeout_seconds,
                resend_margin_seconds=resend_margin_seconds,
                lease_seconds=60,
                completion_deadline_seconds=completion_deadline_seconds,
                give_up_seconds=86_400,
            )
            invocators = tuple(
                Invocator(
                    pool=invocator_pool,
                    chain_id=CHAIN_ID,
                    gateway=CreGateway.at(cre.url),
                    signer=signer,
                    terms=terms,
                    clock=clock.now,
                )
                for _ in range(2)
            )
            follower = Follower(
                pool=indexer_pool,
                node=node,
                sources=sources,
                rules=Rules(policy=Policy(max_mint_wei=None), contest=True, first_trigger_block_number=0),
                trigger_finality=FinalityRule(tag="depth", depth=trigger_depth_blocks),
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
