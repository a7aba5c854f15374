"""Every provider's limits over one real chain: the rows are those of a plain node, whatever it refuses and says."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from datastore.connection import Pool
from node.capabilities import Feature
from service.demo.anvil import Anvil
from service.demo.contracts import (
    DevChain,
    batch_call,
    create_basket,
    create_basket_call,
    deploy_system,
    next_basket,
)
from tests.indexer.over_anvil import CHAIN_ID, Follows, Scene, forget, pinned, rows
from tests.node.provider_proxy import PROFILES, Profile, ProviderProxy


@asynccontextmanager
async def scene(anvil_binary: Path) -> AsyncIterator[Scene]:
    async with (
        await Anvil.start(anvil_binary, chain_id=CHAIN_ID, slots_in_an_epoch=4) as anvil,
        aiohttp.ClientSession() as session,
    ):
        chain = DevChain(session=session, url=anvil.url)
        system = await deploy_system(chain)
        first = await create_basket(chain, system.factory, name="First", symbol="F")
        born = await next_basket(chain, system.factory)
        made = Scene(chain=chain, system=system, tokens=(first.token, born.token), url=anvil.url)
        await chain.mine(20)
        await chain.transact(made.ask(0, "alone"))
        # More than the most logs of any profile, of our own baskets, in one block: whose receipts say what they are.
        await made.in_one_block(*(made.ask(0, f"many-{number}") for number in range(12)))
        await chain.mine(15)
        await chain.transact(
            batch_call(system.batch, [create_basket_call(system.factory, name="Born", symbol="B"), made.ask(1, "born")])
        )
        await chain.mine(15)
        await chain.transact(made.ask(1, "late"))
        await chain.mine(3)
        yield made


LACKS = {
    "publicnode": {Feature.LOGS_BY_TOPIC},
    "one_without_anything": {
        Feature.LOGS_BY_TOPIC,
        Feature.LOGS_BY_HASH,
        Feature.BLOCK_RECEIPTS,
        Feature.FINALIZED_TAG,
    },
    "one_that_gives_no_logs": {
        Feature.LOGS_BY_TOPIC,
        Feature.LOGS_BY_ADDRESS,
        Feature.LOGS_BY_HASH,
        Feature.FINALIZED_TAG,
    },
}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("says", [True, False], ids=["as_told", "without_a_word"])
@pytest.mark.parametrize("profile", PROFILES, ids=lambda profile: profile.name)
async def test_the_rows_are_those_of_a_plain_node_whatever_a_provider_refuses(
    profile: Profile, says: bool, anvil_binary: Path, dsn: str, indexer_pool: Pool
) -> None:
    now = [1_000.0]
    async with AsyncExitStack() as stack:
        made = await stack.enter_async_context(scene(anvil_binary))
        pin = await pinned(indexer_pool, made)
        head = await made.chain.head_number()
        plain = Follows(indexer_pool, made.url, made, pin, now)
        stack.push_async_callback(plain.node.close)
        await plain.start()
        await plain.until(head)
        expected = await rows(indexer_pool)
        assert len(expected["request"]) == 15
        await forget(dsn)

        proxy = ProviderProxy(profile, made.url, clock=lambda: now[0], says=says)
        await stack.enter_async_context(proxy.running())
        await pinned(indexer_pool, made)
        limited = Follows(indexer_pool, proxy.url, made, pin, now)
        stack.push_async_callback(limited.node.close)
        await limited.start()
        await limited.until(head)
        assert await rows(indexer_pool) == expected
        # Near the head too: block by block, with a basket that is there.
        for number in range(3):
            await made.chain.transact(made.ask(number % 2, f"near-{number}"))
            await made.chain.mine(2)
        await limited.until(head + 9)
        near = [bytes(f"near-{number}", "ascii").ljust(32, b"\0") for number in range(3)]
        assert [row[9] for row in (await rows(indexer_pool))["request"][15:]] == near
        assert await indexer_pool.fetchval("SELECT count(*) FROM sweep_difference") == 0
        assert profile.batch is None or limited.report.batch_size <= profile.batch
        # What is known now is not found out again: the next blocks cost no refusal.
        proxy.refusals.clear()
        now[0] += 1.0
        await made.chain.mine(1)
        await limited.until(head + 10)
        assert set(proxy.refusals) <= {"rate", "eth_getBlockByNumber"}  # finality may begin any time
        now[0] += 1.0
        if profile.questions_a_second is None:
            range_blocks = await limited.node.show_all(20)
            assert range_blocks == (0 if profile.no_logs else _halved(20, profile.range_blocks or 20))
            if profile.most_logs is None:  # no provider refuses so few, and so it looks like one that gives none
                assert set(limited.report.lacks) == LACKS.get(profile.name, set())


def _halved(blocks: int, limit: int) -> int:
    return blocks if blocks <= limit else _halved(blocks // 2, limit)
