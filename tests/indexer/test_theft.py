"""A copied reference, from the chain to the rows: the follower beside a modelled chain."""

import pytest

from datastore.connection import Pool
from tests.chain_model.scenes import create, scene
from tests.chain_model.world import World


@pytest.mark.parametrize("spelling", range(3))
async def test_a_copy_that_is_final_before_the_owners_request_waits_for_a_person(
    indexer_pool: Pool, spelling: int
) -> None:
    world = World()
    world.mine([create("basket")])
    world.become_final(10, 0)
    async with scene(indexer_pool, world, endpoints=1) as seen:
        await seen.daemon.follow()
        world.steal(0, spelling)
        await seen.daemon.follow()
        world.become_final(1, 0)
        seen.daemon.clock.now += 60
        await seen.daemon.follow()
        assert await seen.states() == ["review finalized", "seen canonical"]
        assert await seen.wrong(is_swept_clean=True) == []
        world.become_final(1, 0)
        seen.daemon.clock.now += 60
        await seen.daemon.follow()
        assert await seen.states() == ["review finalized", "review finalized"]
