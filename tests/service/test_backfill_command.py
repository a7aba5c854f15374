"""``bskt backfill``, as a person runs it, where one of the nodes fails."""

import asyncio
import json

from click.testing import CliRunner

from datastore.connection import Pool
from service.cli import main
from tests.chain_model.chain import FACTORY, FORWARDER
from tests.chain_model.daemon import SECRET
from tests.chain_model.faults import Fault
from tests.chain_model.scenes import history, scene
from tests.chain_model.world import CHAIN_ID


async def test_a_node_that_fails_in_the_middle_is_left_for_another_one(indexer_pool: Pool, dsn: str) -> None:
    async with scene(indexer_pool, history(), endpoints=2) as made:
        await made.daemon.follow()
        environment = {
            "BSKT_DATABASE_URL": dsn,
            "BSKT_INSTANCE_SECRET": SECRET.decode(),
            "BSKT_CHAIN_ID": str(CHAIN_ID),
            "BSKT_RPC_URL": ",".join(made.server.url(place) for place in range(2)),
            "BSKT_FACTORY_ADDRESS": "0x" + FACTORY.hex(),
            "BSKT_FORWARDER_ADDRESS": "0x" + FORWARDER.hex(),
            "BSKT_START_BLOCK": "1",
            "BSKT_MAX_LOG_RANGE_BLOCKS": "3",
            "BSKT_CRE_MODE": "dry-run",
        }
        first = made.world.endpoints[0]
        waits = first.pause_after(14)  # it has shown which chain it serves, and begun with the blocks

        async def break_it() -> None:
            await waits.wait()
            first.fail(Fault.SERVER_ERROR, times=None, seed=1)
            first.go_on()

        arguments = ["backfill", "--blocks", "1:finalized", "--output", "json"]
        result, _ = await asyncio.gather(
            asyncio.to_thread(CliRunner().invoke, main, arguments, env=environment), break_it()
        )
        assert result.exit_code == 0, result.output
        (row,) = [json.loads(result.stdout)]
        assert (row["last"], row["blocks"], row["requests_known"]) == (7, 7, 5)
        assert made.world.endpoints[1].asked["eth_getLogs"] > 0
