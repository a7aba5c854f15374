"""The anchor of a final range against a server that answers of another branch."""

import pytest

from datastore.connection import Pool
from node.errors import NodeAnswerInvalid
from tests.chain_model.rpc import Json, block_json
from tests.chain_model.scenes import history, scene


@pytest.mark.parametrize("number", [4, 7])
async def test_a_last_block_of_another_branch_is_refused_before_it_becomes_final(
    indexer_pool: Pool, number: int
) -> None:
    """Hard cases 8 and 26: believed, it would stop the daemon at the next true answer."""
    world = history()
    truth = world.view.head
    world.floor = 0
    world.reorganise(6, [[], [], [], [], [], []])
    fork = world.view.head.at(number)
    assert fork is not None
    world.view.head = world.view.finalized = world.view.safe = truth
    async with scene(indexer_pool, world, endpoints=1) as made:
        node = made.world.endpoints[0].node
        honest = node._methods["eth_getBlockByNumber"]

        def of_the_fork(name: Json, full: Json) -> Json:
            return block_json(fork) if name == hex(number) else honest(name, full)

        node._methods["eth_getBlockByNumber"] = of_the_fork
        with pytest.raises(NodeAnswerInvalid, match=f"block {number} is not "):
            await made.daemon.follow()
        assert await indexer_pool.fetchval("SELECT count(*) FROM block WHERE hash = $1", fork.hash) == 0
        node._methods["eth_getBlockByNumber"] = honest
        await made.daemon.follow()
        assert await made.wrong() == []
