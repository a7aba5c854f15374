import asyncio

import asyncpg
import pytest

from datastore import following
from datastore.connection import Pool
from datastore.errors import DatastoreUnavailable
from datastore.listening import listen
from tests.datastore.builders import CHAIN, RULES, batch, block, pin_chain, request


async def test_the_commit_that_confirms_a_request_is_heard_with_its_chain(dsn: str, indexer_pool: Pool) -> None:
    """Hard case 61."""
    genesis, one = await pin_chain(indexer_pool), block(1)
    await following.commit(indexer_pool, CHAIN, batch(one, on=genesis, requests=(request("d", one),)), RULES)
    told: list[str] = []
    ready, heard = asyncio.Event(), asyncio.Event()

    def hear(text: str) -> None:
        told.append(text)
        heard.set()

    async def wait(event: asyncio.Event, _: float) -> None:
        ready.set()
        await event.wait()

    async with asyncio.TaskGroup() as tasks:
        ear = tasks.create_task(listen(dsn, following.CONFIRMED_CHANNEL, heard=hear, wait=wait))
        await ready.wait()
        await following.commit(indexer_pool, CHAIN, batch(block(2), on=one, final=1), RULES)
        await heard.wait()
        ear.cancel()
    assert told == [str(CHAIN)]


async def end_the_listener(dsn: str) -> None:
    owner = await asyncpg.connect(dsn)
    ended = await owner.fetchval(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
        "WHERE application_name = 'bskt_listener' AND datname = current_database()"
    )
    await owner.close()
    if not ended:
        pytest.fail("nobody listened")


async def test_a_lost_connection_is_told_so_that_somebody_listens_again(dsn: str) -> None:
    async def wait(event: asyncio.Event, _: float) -> None:
        await end_the_listener(dsn)
        await event.wait()

    with pytest.raises(DatastoreUnavailable, match="listening connection ended"):
        await listen(dsn, "any", heard=lambda _: None, wait=wait)


async def test_a_connection_that_died_silently_is_noticed_by_the_heartbeat(dsn: str) -> None:
    beats = 0

    async def wait(_: asyncio.Event, __: float) -> None:
        nonlocal beats
        beats += 1
        if beats == 3:
            await end_the_listener(dsn)

    with pytest.raises(DatastoreUnavailable, match="listening connection ended"):
        await listen(dsn, "any", heard=lambda _: None, wait=wait)
    assert beats == 3


async def test_a_server_that_refuses_us_only_costs_the_ears(dsn: str) -> None:
    async def wait(_: asyncio.Event, __: float) -> None:
        raise AssertionError

    for wrong in (dsn.rpartition("/")[0] + "/no_such_database", "postgresql://bskt@127.0.0.1:1/none"):
        with pytest.raises(DatastoreUnavailable, match="cannot listen"):
            await listen(wrong, "any", heard=lambda _: None, wait=wait)
