"""Each kind of chain is indexed right: near its head, below its finality, and by the verifier."""

import pytest

from datastore.connection import Pool
from tests.chain_model.exploration import explored
from tests.chain_model.faults import Fault
from tests.chain_model.profiles import ETHEREUM, PROFILES, Profile
from tests.chain_model.scenes import ask, create, scene
from tests.chain_model.world import World

OTHERS = [profile for profile in PROFILES.values() if profile is not ETHEREUM]
each_profile = pytest.mark.parametrize("profile", OTHERS, ids=lambda profile: profile.name)


def busy(profile: Profile, *, final: int) -> World:
    world = World(profile)
    world.mine([create("basket")])
    for number in range(12):
        world.mine([ask(f"bank-{number}")] if number % 3 == 0 else [])
    world.become_final(final, 0)
    return world


@each_profile
@pytest.mark.parametrize("final", [0, 5, 100])
async def test_every_row_is_what_the_chain_says_and_the_verifier_finds_no_difference(
    indexer_pool: Pool, profile: Profile, final: int
) -> None:
    async with scene(indexer_pool, busy(profile, final=final), endpoints=2) as made:
        await made.daemon.follow()
        made.world.become_final(100, 0)
        await made.daemon.follow()
        await made.daemon.sweep_all()
        assert await made.wrong(is_swept_clean=True) == []
        assert await made.found() == []
        assert len(await made.states()) == 4


@each_profile
async def test_a_log_that_one_endpoint_leaves_out_is_recorded_all_the_same(
    indexer_pool: Pool, profile: Profile
) -> None:
    async with scene(indexer_pool, busy(profile, final=100), endpoints=2) as made:
        made.world.endpoints[0].fail(Fault.LOGS_MISSING, times=None, seed=1)
        await made.daemon.follow()
        await made.daemon.sweep_all()
        assert await made.wrong() == []
        assert len(await made.states()) == 4


@pytest.mark.timeout(300)
@each_profile
def test_drawn_histories_of_it_have_no_wrong_row(profile: Profile) -> None:
    for part in explored(sequences=12, steps=20, first_seed=1, jobs=1, profile=profile):
        assert part.failure is None, part.failure
        assert part.tally.wrong_rows == 0
        assert part.tally.requests > 0
