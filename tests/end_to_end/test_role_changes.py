"""A basket's admin takes the mint role from its consumer and gives it back, on a real chain."""

from datastore import operators
from datastore.connection import Role, open_pool
from datastore.operators import BasketSwitch, Person
from service.demo.contracts import call
from tests.end_to_end.world import AMOUNT, CHAIN_ID, USER, World, reference


async def test_a_basket_whose_consumer_lost_its_role_waits_for_a_person_and_then_mints_once(
    world: World, dsn: str
) -> None:
    token, consumer = world.basket.token, world.basket.consumer
    await world.request("DEPOSIT-1")
    await world.chain.transact(call(token, "revokeMintRole(address)", consumer))
    await world.chain.mine(3)
    await world.settle()
    await world.request("DEPOSIT-2")
    await world.settle()
    assert await world.alarms() == ["basket_role_changed"]
    held = await world.pool.fetch("SELECT state, held_reason FROM mint_request ORDER BY id")
    assert [tuple(row) for row in held] == [("confirmed", "basket_paused")] * 2
    await world.chain.transact(call(token, "grantMintRole(address)", consumer))
    await world.settle()
    assert await world.alarms() == ["basket_role_changed"] * 2
    assert await world.pool.fetchval("SELECT count(*) FROM attempt") == 0
    assert await world.minted() == []
    async with await open_pool(dsn, Role.OPERATOR) as pool:
        person = Person(name="alice", reason="it was a drill")
        await operators.turn_basket(pool, CHAIN_ID, token, BasketSwitch.RESUME, person)
    await world.settle()
    assert await world.states() == ["completed"] * 2
    assert sorted(await world.minted()) == [(USER, AMOUNT, reference(f"DEPOSIT-{n}")) for n in (1, 2)]
    assert await world.alarms() == ["basket_role_changed"] * 2


async def test_the_roles_that_a_basket_is_born_with_call_nobody(world: World) -> None:
    await world.request("DEPOSIT-1")
    await world.settle()
    await world.settle()
    assert (await world.states(), await world.alarms()) == (["completed"], [])
