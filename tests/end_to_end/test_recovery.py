"""The only node goes away, in two ways, and comes back: the first new block is a row within seconds."""

from pathlib import Path

import asyncpg
import pytest

from tests.end_to_end.processes import daemon, free_port, open_stage, pause, until
from tests.fault_proxy import BlackHole, FaultProxy, address_of

pytestmark = pytest.mark.end_to_end

SOON_SECONDS = 5.0


async def test_after_an_outage_of_the_only_node_the_first_new_block_is_a_row_within_seconds(
    anvil_binary: Path, dsn: str, tmp_path: Path
) -> None:
    async with (
        open_stage(anvil_binary) as stage,
        FaultProxy(*address_of(stage.rpc_url)) as proxy,
        daemon(
            stage.settings(
                BSKT_DATABASE_URL=dsn,
                BSKT_RPC_URL=f"http://127.0.0.1:{proxy.port}",
                BSKT_POLL_INTERVAL_SECONDS="1",
            ),
            tmp_path / "daemon.log",
        ) as running,
    ):
        await running.until_said("daemon.started")
        reader = await asyncpg.connect(dsn)

        async def recorded(requests: int) -> bool:
            return bool(await reader.fetchval("SELECT count(*) = $1 FROM mint_request", requests))

        await stage.request("DEPOSIT-0")
        await until(lambda: recorded(1), what="the request before the outage")

        upstream, proxy.upstream = proxy.upstream, ("127.0.0.1", free_port())
        proxy.reset()
        await running.until_said("part.failed")
        await stage.request("DEPOSIT-1")
        await pause(15)  # longer than the back-off grows
        assert not await recorded(2)
        proxy.upstream = upstream
        await until(lambda: recorded(2), what="the request of the first outage", patience_seconds=SOON_SECONDS)

        proxy.strike(BlackHole())
        await stage.request("DEPOSIT-2")
        await pause(25)  # one long question, and then short ones
        assert not await recorded(3)
        proxy.lift()
        await until(lambda: recorded(3), what="the request of the second outage", patience_seconds=SOON_SECONDS)
        await reader.close()
        assert await running.end() == 0
