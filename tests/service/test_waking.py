import asyncio

import asyncpg

from datastore.following import CONFIRMED_CHANNEL
from service.supervision import Part
from service.wiring import _ear


async def test_the_invocator_is_woken_by_its_own_chain_only(dsn: str) -> None:
    async def tick() -> bool:
        return False

    part = Part(name="invocator", tick=tick, pause_seconds=60, wake=asyncio.Event())

    async def hear() -> None:
        await _ear(dsn, 31337, part).run()

    speaker = await asyncpg.connect(dsn)
    async with asyncio.TaskGroup() as tasks:
        ear = tasks.create_task(hear())
        listening = (
            "SELECT count(*) FROM pg_stat_activity "
            "WHERE application_name = 'bskt_listener' AND query LIKE 'LISTEN%' AND state = 'idle'"
        )
        while await speaker.fetchval(f"{listening} AND datname = current_database()") == 0:
            pass
        await speaker.execute("SELECT pg_notify($1, '1')", CONFIRMED_CHANNEL)
        await speaker.execute("SELECT pg_notify($1, '31337')", CONFIRMED_CHANNEL)
        await part.wake.wait()
        part.wake.clear()
        # Notices arrive in order, so the other chain's one has been heard by now and woke nobody.
        await speaker.execute("SELECT pg_notify($1, '1')", CONFIRMED_CHANNEL)
        await speaker.execute("SELECT pg_notify($1, '31337')", CONFIRMED_CHANNEL)
        await part.wake.wait()
        ear.cancel()
    await speaker.close()
