"""Hear what other sessions notify of.  Nobody may rely on it: a notice can be lost, polling is the truth."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import asyncpg

from datastore.connection import Role
from datastore.errors import DatastoreUnavailable

HEARTBEAT_SECONDS: Final = 30.0
_ANSWER_SECONDS: Final = 10.0
# Whatever it is: without ears the invocator still polls, so nothing here may end the process.
_LOST: Final = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError)


async def listen(
    dsn: str,
    channel: str,
    *,
    heard: Callable[[str], None],
    wait: Callable[[asyncio.Event, float], Awaitable[None]],
) -> None:
    """Call ``heard`` with the text of each notice, until cancelled.

    ``wait`` returns when an event is set or seconds are over.  After each of them the server is asked whether it is
    still there, for a connection that died silently is silent (hard case 61).

    Raises:
        DatastoreUnavailable: The connection is lost; listen again.
    """
    try:
        connection = await asyncpg.connect(
            dsn,
            timeout=_ANSWER_SECONDS,
            command_timeout=_ANSWER_SECONDS,
            server_settings={"role": Role.READER.value, "application_name": "bskt_listener"},
        )
    except _LOST as error:
        raise DatastoreUnavailable(f"postgres: cannot listen: {type(error).__name__}") from error
    lost = asyncio.Event()
    connection.add_termination_listener(lambda _: lost.set())
    try:
        await connection.add_listener(channel, lambda *notice: heard(str(notice[-1])))
        while not lost.is_set():
            await wait(lost, HEARTBEAT_SECONDS)
            await connection.execute("SELECT 1")
    except _LOST as error:
        raise DatastoreUnavailable(f"postgres: the listening connection ended: {type(error).__name__}") from error
    finally:
        connection.terminate()
    raise DatastoreUnavailable("postgres: the listening connection ended")
