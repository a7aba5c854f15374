"""A factory that is added to the settings later: its whole history is recorded, and no block is read by nobody."""

from dataclasses import replace
from itertools import count

import pytest
from eth_hash.auto import keccak

from datastore import factories, sweeping
from datastore.connection import Pool
from datastore.errors import CursorMoved, DatastoreUnsuitable
from datastore.factories import Factory
from indexer.late_factories import BLOCKS_A_TICK, LateFactories
from indexer.standstill import STANDSTILL_SECONDS
from indexer.sweep import SourcesUnsettled
from tests.chain_model.chain import FACTORY, SECOND_FACTORY, Ask, CreateBasket, Transaction, digest, user
from tests.chain_model.daemon import RULES
from tests.chain_model.faults import Fault
from tests.chain_model.rpc import FACTORY_CODE
from tests.chain_model.scenes import Scene, ask, create, scene
from tests.chain_model.world import CHAIN_ID, World

SECOND = Factory(address=SECOND_FACTORY, code_hash=keccak(FACTORY_CODE), start_block_number=3)


class Killed(Exception):
    """The process ended at this very line."""


def of_second(name: str, *, ordinal: int) -> Transaction:
    wish = Ask(
        ordinal=ordinal,
        form="factory",
        requester=user(1),
        beneficiary=user(2),
        amount=10**18,
        reference=name.encode().ljust(32, b"\0"),
        factory=SECOND_FACTORY,
    )
    return Transaction(hash=digest("tx", name), wishes=(wish,))


def create_second(name: str) -> Transaction:
    wish = CreateBasket(name=b"Second", symbol=b"SEC", factory=SECOND_FACTORY)
    return Transaction(hash=digest("tx", name), wishes=(wish,))


def history() -> World:
    """Both factories at work from block 3 on; half of it is final."""
    world = World()
    world.mine([create("first")])
    world.mine([])
    world.mine([create_second("second"), of_second("old-1", ordinal=1)])
    world.mine([ask("old-2", ordinal=1), ask("old-3", ordinal=0)])
    world.mine([])
    world.become_final(5, 0)
    world.mine([create_second("third"), of_second("old-4", ordinal=2)])
    world.mine([ask("old-5", ordinal=2), ask("old-6", ordinal=1)])
    return world


async def held(pool: Pool) -> set[str]:
    rows = await pool.fetch("SELECT rtrim(bank_reference, '\\x00') AS name FROM mint_request WHERE held_at IS NOT NULL")
    return {row["name"].decode() for row in rows}


async def added(made: Scene, factory: Factory = SECOND) -> LateFactories:
    """The daemon starts again, with one factory more in its settings."""
    await factories.declare(made.pool, CHAIN_ID, [factory])
    made.daemon.sources = replace(made.daemon.sources, more_factories=frozenset({SECOND_FACTORY}))
    made.daemon.start()
    return made.daemon.late_factories()


async def test_its_history_is_recorded_and_held_and_what_follows_is_not(indexer_pool: Pool) -> None:
    """Hard case 40."""
    async with scene(indexer_pool, history(), endpoints=2) as made:
        await made.daemon.follow()
        assert len(await made.states()) == 1
        late = await added(made)
        await made.daemon.follow()
        while await late.tick():
            made.world.mine([ask(f"between-{made.world.next_number()}", ordinal=1)])  # the chain does not wait
            await made.daemon.follow()
        assert await made.wrong() == []
        made.world.mine([of_second("new", ordinal=2)])
        await made.daemon.follow()
        assert await made.wrong() == []
        made.world.become_final(100, 0)
        await made.daemon.follow()
        await made.daemon.sweep_all()
        assert await made.found() == []
        names = await held(indexer_pool)
        assert {"old-1", "old-2", "old-4", "old-5", "old-6"} <= names
        assert not {"old-3", "new"} & names


async def test_until_it_is_live_it_is_not_followed_and_nothing_is_compared(indexer_pool: Pool) -> None:
    async with scene(indexer_pool, history(), endpoints=2) as made:
        await made.daemon.follow()
        late = await added(made)
        made.world.mine([create_second("fourth")])
        await made.daemon.follow()
        assert await indexer_pool.fetchval("SELECT count(*) FROM basket") == 1
        assert not await made.daemon.sweep.tick()
        with pytest.raises(SourcesUnsettled, match="is recorded up to block 2 only"):
            await made.daemon.examiner.examine(0, 5)
        while await late.tick():
            pass
        assert await indexer_pool.fetchval("SELECT count(*) FROM basket") == 4
        assert await made.wrong() == []
        await made.daemon.sweep_all()
        assert await made.found() == []


@pytest.mark.parametrize("boundary", ["factory.before_commit", "factory.after_commit"])
@pytest.mark.parametrize("commits", range(3))
async def test_killed_at_any_commit_it_goes_on_where_it_was(indexer_pool: Pool, boundary: str, commits: int) -> None:
    """Hard case 103."""
    left = [commits]

    def reached(name: str) -> None:
        if name == boundary:
            left[0] -= 1
            if left[0] == -1:
                raise Killed

    async with scene(indexer_pool, history(), endpoints=1, reached=reached) as made:
        await made.daemon.follow()
        late = await added(made)
        try:
            while await late.tick():
                pass
        except Killed:
            late = await added(made)
        while await late.tick():
            pass
        await made.daemon.follow()
        assert left[0] < 0 or commits == 2
        assert await made.wrong() == []


async def test_a_reorg_while_it_is_admitted_leaves_the_rows_of_the_new_branch(indexer_pool: Pool) -> None:
    async with scene(indexer_pool, history(), endpoints=1) as made:
        await made.daemon.follow()
        late = await added(made)
        # The follower is on the old branch when the factory is admitted, and hears of the new one afterwards.
        while await late.tick():
            pass
        made.world.reorganise(2, [[("again", 0, 0), ("again", 0, 0)], [("again", 0, 0)]])
        await made.daemon.follow()
        assert await made.wrong() == []


async def test_it_becomes_live_however_far_behind_finality_is(indexer_pool: Pool) -> None:
    """Hard case 12: what is above finality is read in parts, and no part twice."""
    world = history()
    for _ in range(2 * BLOCKS_A_TICK):
        world.mine([])
    world.mine([of_second("newest", ordinal=2)])
    async with scene(indexer_pool, world, endpoints=1) as made:
        await made.daemon.follow()
        late = await added(made)
        asked = made.world.endpoints[0].asked
        blocks = world.view.head.number
        by_hash = 0
        for ticks in count():
            before = asked["eth_getLogs"]
            if not await late.tick():
                break
            by_hash += asked["eth_getLogs"] - before
            if ticks == 2:  # the chain does not wait for the parts that follow
                world.reorganise(1, [[("again", 0, 0)], []])
                await made.daemon.follow()
        assert ticks > 3
        assert by_hash < blocks + 10
        assert await made.pool.fetchval("SELECT live_at IS NOT NULL FROM factory")
        assert await made.wrong() == []


async def test_a_factory_that_does_not_become_live_is_told_and_so_is_the_sweep_that_waits_for_it(
    indexer_pool: Pool,
) -> None:
    async with scene(indexer_pool, history(), endpoints=1) as made:
        await made.daemon.follow()
        late = await added(made)
        assert await late.tick()  # its final blocks are recorded, and then the chain is always faster

        async def meanwhile() -> None:
            made.world.mine([])
            await made.daemon.follow()

        def reached(name: str) -> None:
            raise CursorMoved(name)

        late = made.daemon.late_factories(reached=reached)
        for seconds in (0, STANDSTILL_SECONDS - 1):
            made.daemon.clock.now += seconds
            assert not await late.tick()
            assert not await made.daemon.sweep.tick()
            assert (late.troubles(), made.daemon.sweep.troubles()) == ((), ())
            await meanwhile()
        made.daemon.clock.now += 1
        assert late.troubles() == ("late factories: has stood still for 10 minutes: factory.before_commit",)
        (told,) = made.daemon.sweep.troubles()
        assert told.startswith("sweep: has stood still for 10 minutes: the history of factory 0x")
        late = made.daemon.late_factories()
        assert await late.tick()
        await made.daemon.sweep_all()
        assert (late.troubles(), made.daemon.sweep.troubles()) == ((), ())


@pytest.mark.parametrize("is_first", [True, False], ids=["announced it first", "announced it again"])
async def test_a_basket_that_both_factories_announced_keeps_the_consumer_of_the_first(
    indexer_pool: Pool, *, is_first: bool
) -> None:
    """Hard case 40."""
    wishes = (
        CreateBasket(name=b"Dollar", symbol=b"USD", again=True, factory=factory)
        for factory in (FACTORY, SECOND_FACTORY)
    )
    ours, late_one = (Transaction(hash=digest("tx", "announce", n), wishes=(wish,)) for n, wish in enumerate(wishes))
    world = World()
    for number, transaction in enumerate((late_one, ours) if is_first else (ours, late_one)):
        world.mine([])
        world.mine([])
        world.mine([transaction])
        world.mine([ask(f"asked {number}", ordinal=0)])
    world.become_final(5, 0)
    async with scene(indexer_pool, world, endpoints=1) as made:
        await made.daemon.follow()
        late = await added(made)
        while await late.tick():
            pass
        await made.daemon.follow()
        made.world.become_final(100, 0)
        await made.daemon.follow()
        assert await made.wrong() == []
        await made.daemon.sweep_all()
        assert await made.found() == []


async def test_what_the_reading_of_its_history_missed_is_found_by_the_sweep_which_goes_over_it_again(
    indexer_pool: Pool,
) -> None:
    """Hard case 19, for the one reading that the history of a late factory gets."""
    async with scene(indexer_pool, history(), endpoints=1) as made:
        await made.daemon.follow()
        await made.daemon.sweep_all()
        assert await indexer_pool.fetchval("SELECT block_number FROM sweep") == 5
        late = await added(made)
        made.world.endpoints[0].fail(Fault.LOGS_CUT_AT_A_CAP, times=None, seed=3)
        while await late.tick():
            pass
        made.world.heal()
        assert await indexer_pool.fetchval("SELECT block_number FROM sweep") == SECOND.start_block_number - 1
        made.daemon.start()
        made.world.mine([])
        made.world.become_final(100, 0)
        await made.daemon.follow()
        await made.daemon.sweep_all()
        assert await made.wrong() == []
        assert {(kind, repaired) for kind, _, repaired in await made.found()} == {("missing", True)}


async def test_a_sweep_that_runs_while_it_is_admitted_does_not_pass_its_history_by(indexer_pool: Pool) -> None:
    async with scene(indexer_pool, history(), endpoints=2) as made:
        await made.daemon.follow()
        # One range is swept; the next one is being compared, with nothing late in sight, when all of it happens.
        assert await made.daemon.sweep.tick()
        at = await sweeping.position(indexer_pool, CHAIN_ID)
        examined = await made.daemon.examiner.examine(at.swept, at.finalized)
        late = await added(made)
        while await late.tick():
            pass
        with pytest.raises(CursorMoved):
            await sweeping.conclude(
                indexer_pool,
                CHAIN_ID,
                swept=(examined.first, examined.last),
                differences=examined.differences,
                repair=examined.repair,
                rules=RULES,
                sentence=examined.sentence,
            )
        assert await indexer_pool.fetchval("SELECT block_number FROM sweep") == SECOND.start_block_number - 1
        await made.daemon.sweep_all()
        assert await made.found() == []
        assert await made.wrong() == []


@pytest.mark.parametrize("is_swept", [True, False], ids=["swept", "never swept"])
async def test_a_later_factory_that_is_older_than_the_start_is_recorded_and_swept_from_its_deployment_on(
    indexer_pool: Pool, *, is_swept: bool
) -> None:
    async with scene(indexer_pool, history(), endpoints=2, start=5) as made:
        await made.daemon.follow()
        if is_swept:
            await made.daemon.sweep_all()
        assert await made.states() == []
        late = await added(made, replace(SECOND, start_block_number=1))
        while await late.tick():
            pass
        assert await made.wrong() == []
        assert {"old-1", "old-2", "old-4", "old-5", "old-6"} <= await held(indexer_pool)
        assert await indexer_pool.fetchval("SELECT block_number FROM sweep") == 0
        made.world.become_final(100, 0)
        await made.daemon.follow()
        await made.daemon.sweep_all()
        assert (await made.wrong(), await made.found()) == ([], [])
        assert await indexer_pool.fetchval("SELECT block_number FROM sweep") == made.world.finalized


async def test_a_factory_that_is_older_than_the_start_is_not_live_at_a_first_start_before_its_history_is_recorded(
    indexer_pool: Pool,
) -> None:
    async with scene(indexer_pool, history(), endpoints=1, start=5) as made:
        late = await added(made, replace(SECOND, start_block_number=1))
        await made.daemon.follow()
        assert await made.states() == []
        while await late.tick():
            pass
        await made.daemon.follow()
        assert await made.wrong() == []


async def test_where_nothing_was_swept_yet_the_sweep_begins_at_the_start_of_the_chain(indexer_pool: Pool) -> None:
    async with scene(indexer_pool, history(), endpoints=1) as made:
        await made.daemon.follow()
        late = await added(made)
        while await late.tick():
            pass
        assert await indexer_pool.fetchval("SELECT block_number FROM sweep") == 0


async def test_a_factory_of_genesis_is_read_from_block_1_on(indexer_pool: Pool) -> None:
    async with scene(indexer_pool, history(), endpoints=1) as made:
        await made.daemon.follow()
        await made.daemon.sweep_all()
        late = await added(made, replace(SECOND, start_block_number=0))
        while await late.tick():
            pass
        assert await indexer_pool.fetchval("SELECT block_number FROM sweep") == 0
        assert await made.wrong() == []


async def test_another_block_of_deployment_is_refused_where_it_would_lose_history(indexer_pool: Pool) -> None:
    async with scene(indexer_pool, history(), endpoints=1) as made:
        await made.daemon.follow()
        await added(made)
        with pytest.raises(DatastoreUnsuitable, match=r"is recorded from block 3 on, and BSKT_MORE_FACTORIES says 2: "):
            await factories.declare(indexer_pool, CHAIN_ID, [replace(SECOND, start_block_number=2)])
        await factories.declare(indexer_pool, CHAIN_ID, [replace(SECOND, start_block_number=4)])


async def test_at_a_first_start_every_factory_is_live_at_once(indexer_pool: Pool) -> None:
    async with scene(indexer_pool, history(), endpoints=1) as made:
        late = await added(made)
        assert not await late.tick()
        await made.daemon.follow()
        assert await made.wrong() == []
        assert await held(indexer_pool) == set()


async def test_a_factory_that_is_gone_from_the_settings_or_has_other_code_is_refused(indexer_pool: Pool) -> None:
    async with scene(indexer_pool, history(), endpoints=1) as made:
        await added(made)
        with pytest.raises(DatastoreUnsuitable, match="put it back into BSKT_MORE_FACTORIES"):
            await factories.declare(indexer_pool, CHAIN_ID, [])
        with pytest.raises(DatastoreUnsuitable, match="is not the one that was stored"):
            await factories.declare(indexer_pool, CHAIN_ID, [replace(SECOND, code_hash=digest("other"))])
        await factories.declare(indexer_pool, CHAIN_ID, [SECOND])
