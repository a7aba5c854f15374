"""A block of 60 M gas that strangers fill with the smallest logs of our topic, on a real chain.

The honest request in the midst of them, of a basket that the same block makes, is found in each of the ways in which a
block can be read; and the tick commits.
"""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import aiohttp
import pytest

from datastore.connection import Pool
from service.demo.anvil import Anvil
from service.demo.contracts import (
    Call,
    DevChain,
    batch_call,
    create_basket,
    create_basket_call,
    deploy_system,
    next_basket,
)
from tests.indexer.over_anvil import CATALOG, CHAIN_ID, Follows, Scene, pinned
from tests.node.provider_proxy import UNKNOWN_METHOD, Profile, ProviderProxy, Says

BLOCK_GAS: Final = 60_000_000
TRANSACTION_GAS: Final = 14_500_000  # below what one transaction may use
LOGS_A_LOOP: Final = 16
LOGS_A_TRANSACTION: Final = 18_960  # what its gas pays for, at 757 for a log and a little for the loop
LARGE: Final = 256 * 1024 * 1024
MANY: Final = 1_000_000

# Takes a topic and how many loops; each loop emits the topic sixteen times, as cheaply as it can be done.
RUNTIME: Final = bytes.fromhex("60003560203590" + "5b" + "805f5fa1" * LOGS_A_LOOP + "906001900390" + "81600757" + "00")
SPAMMER: Final = bytes([0x60, len(RUNTIME), 0x80, 0x60, 9, 0x5F, 0x39, 0x5F, 0xF3]) + RUNTIME


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How the block has to be read: what the node does not have, and how much is taken of it."""

    profile: Profile
    max_answer_bytes: int = 32 * 1024 * 1024
    max_logs: int = 50_000
    asked: str


NO_LOGS: Final = Says(code=-32005, message="limit exceeded")
WAYS: Final = (
    Way(profile=Profile(name="by_topic"), max_answer_bytes=LARGE, max_logs=MANY, asked="eth_getLogs"),
    Way(profile=Profile(name="by_address"), asked="eth_getLogs"),
    Way(profile=Profile(name="receipts", no_logs=NO_LOGS), max_answer_bytes=LARGE, asked="eth_getBlockReceipts"),
    Way(
        profile=Profile(name="by_transaction", no_logs=NO_LOGS, no_methods={"eth_getBlockReceipts": UNKNOWN_METHOD}),
        asked="eth_getTransactionReceipt",
    ),
    # The receipts of the block are too large for one answer.
    Way(
        profile=Profile(name="by_transaction_after_receipts", no_logs=NO_LOGS),
        max_answer_bytes=16 * 1024 * 1024,
        asked="eth_getTransactionReceipt",
    ),
)


@asynccontextmanager
async def flooded(anvil_binary: Path) -> AsyncIterator[tuple[Scene, int]]:
    """The scene and the number of logs in its flooded block."""
    async with (
        await Anvil.start(
            anvil_binary, chain_id=CHAIN_ID, slots_in_an_epoch=2, extra_options=("--gas-limit", str(BLOCK_GAS))
        ) as anvil,
        aiohttp.ClientSession() as session,
    ):
        chain = DevChain(session=session, url=anvil.url)
        system = await deploy_system(chain)
        first = await create_basket(chain, system.factory, name="First", symbol="F")
        born = await next_basket(chain, system.factory)
        made = Scene(chain=chain, system=system, tokens=(first.token, born.token), url=anvil.url)
        spammer = (await chain.transact(Call(to=None, data=SPAMMER))).created
        await chain.transact(made.ask(0, "before"))
        data = CATALOG.mint_requested_topics0[0] + (LOGS_A_TRANSACTION // LOGS_A_LOOP).to_bytes(32, "big")
        await chain.set_automine(False)
        for _ in range(2):
            await chain.send(Call(to=spammer, data=data), gas=TRANSACTION_GAS)
        birth = create_basket_call(system.factory, name="Born", symbol="B")
        await chain.send(batch_call(system.batch, [birth, made.ask(1, "amidst")]), gas=BLOCK_GAS - 4 * TRANSACTION_GAS)
        for _ in range(2):
            await chain.send(Call(to=spammer, data=data), gas=TRANSACTION_GAS)
        await chain.mine()
        await chain.set_automine(True)
        block = await chain.rpc("eth_getBlockByNumber", "latest", False)
        assert len(block["transactions"]) == 5
        assert int(block["gasUsed"], 16) > 0.95 * BLOCK_GAS
        await chain.transact(made.ask(1, "after"))
        yield made, 4 * LOGS_A_TRANSACTION


@pytest.mark.timeout(180)
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.profile.name)
@pytest.mark.parametrize("is_final", [True, False], ids=["final", "near_the_head"])
async def test_the_request_amidst_a_full_block_of_strangers_logs_is_recorded_and_the_tick_commits(
    way: Way, is_final: bool, anvil_binary: Path, indexer_pool: Pool
) -> None:
    now = [1_000.0]
    async with AsyncExitStack() as stack:
        made, logs = await stack.enter_async_context(flooded(anvil_binary))
        assert logs > 75_000
        if is_final:
            await made.chain.mine(6)
        proxy = ProviderProxy(way.profile, made.url, clock=lambda: now[0])
        await stack.enter_async_context(proxy.running())
        pin = await pinned(indexer_pool, made)
        follows = Follows(
            indexer_pool,
            proxy.url,
            made,
            pin,
            now,
            max_answer_bytes=way.max_answer_bytes,
            max_logs=way.max_logs,
        )
        stack.push_async_callback(follows.node.close)
        await follows.start()
        await follows.until(await made.chain.head_number())
        banks = await indexer_pool.fetch("SELECT bank_reference FROM mint_request ORDER BY block_number")
        assert [row["bank_reference"].rstrip(b"\0") for row in banks] == [b"before", b"amidst", b"after"]
        assert proxy.asked[way.asked] > 0
        assert await indexer_pool.fetchval("SELECT count(*) FROM log") < 20, "what strangers emit is not kept"
