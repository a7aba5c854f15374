"""From a block that is mined to its request's row, beside the daemon as it is: ``python -m bench.latency``.

``bskt run --part indexer`` follows a real anvil that mines five blocks a second, each with one request.  The clock runs
from the moment before the block is ordered to the moment after the row was seen from another connection, so both the
mining and the looking (every 3 ms) count against us.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import aiohttp
import asyncpg

from bench.chain import CACHE_DIR
from datastore import schema
from service.demo.anvil import Anvil, find_or_install_anvil
from service.demo.contracts import DevChain, create_basket, deploy_system, request_mint_call
from service.embedded_postgres import EmbeddedPostgres

BLOCK_SECONDS: Final = 0.2
_LOOK_SECONDS: Final = 0.003
_GIVE_UP_SECONDS: Final = 30.0
_WARM_UP_BLOCKS: Final = 10
_RUN: Final = "from service.cli import main; main()"
_SEEN: Final = "SELECT max(block_number) FROM mint_request"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def _mine(chain: DevChain, token: bytes, number: int) -> tuple[float, int]:
    """One block with one request; when it was ordered, and its number."""
    bank = b"LATENCY-%d" % number
    what = request_mint_call(token, beneficiary=b"\x11" * 20, amount_wei=10**18, bank_reference=bank.ljust(32, b"\0"))
    await chain.send(what)
    ordered = time.perf_counter()
    await chain.rpc("evm_mine")
    return ordered, await chain.head_number()


async def _seen_at(connection: asyncpg.Connection[asyncpg.Record], block: int) -> float:
    started = time.perf_counter()
    while (await connection.fetchval(_SEEN) or 0) < block:
        if time.perf_counter() - started > _GIVE_UP_SECONDS:
            raise SystemExit(
                f"block {block} was not indexed within {_GIVE_UP_SECONDS:.0f} s: see the daemon's messages"
            )
        await asyncio.sleep(_LOOK_SECONDS)  # noqa: TID251 - a measure waits
    return time.perf_counter()


async def measure(*, blocks: int, poll_seconds: float, ws_url: str | None) -> list[float]:
    """Seconds for each block; ``ws_url`` is ``"anvil"`` for the node's own, or an address."""
    folder = Path(tempfile.mkdtemp(prefix="bskt-bench-"))
    folder.chmod(0o755)
    binary = await asyncio.to_thread(find_or_install_anvil, configured=None, cache_dir=CACHE_DIR)
    latencies: list[float] = []
    daemon = None
    try:
        async with (
            EmbeddedPostgres(folder / "postgres") as postgres,
            await Anvil.start(binary, slots_in_an_epoch=1) as anvil,
            aiohttp.ClientSession() as session,
        ):
            await schema.apply(postgres.dsn)
            chain = DevChain(session=session, url=anvil.url)
            system = await deploy_system(chain)
            basket = await create_basket(chain, system.factory, name="Test Dollar", symbol="TUSD")
            await chain.mine(5)
            await chain.set_automine(False)
            environment = {
                "PATH": os.environ["PATH"],  # noqa: TID251 - the child needs a PATH, and no other setting of ours
                "BSKT_DATABASE_URL": postgres.dsn,
                "BSKT_INSTANCE_SECRET": "a secret of this bench, 32 bytes",
                "BSKT_CHAIN_ID": "31337",
                "BSKT_RPC_URL": anvil.url,
                "BSKT_FACTORY_ADDRESS": "0x" + system.factory.hex(),
                "BSKT_FORWARDER_ADDRESS": "0x" + system.forwarder.hex(),
                "BSKT_START_BLOCK": "1",
                "BSKT_POLL_INTERVAL_SECONDS": str(poll_seconds),
                "BSKT_CRE_GATEWAY_URL": "http://127.0.0.1:9",
                "BSKT_CRE_WORKFLOW": "11" * 32,
                "BSKT_CRE_SIGNER_KEY": "0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80",
                "BSKT_LISTEN": f"127.0.0.1:{_free_port()}",
            }
            if ws_url is not None:
                environment["BSKT_WS_URL"] = anvil.url.replace("http://", "ws://") if ws_url == "anvil" else ws_url
            daemon = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", _RUN, "--log-level", "error", "run", "--part", "indexer"), env=environment
            )
            connection = await asyncpg.connect(postgres.dsn)
            for number in range(_WARM_UP_BLOCKS + blocks):
                begun = time.perf_counter()
                ordered, block = await _mine(chain, basket.token, number)
                seconds = await _seen_at(connection, block) - ordered
                if number >= _WARM_UP_BLOCKS:
                    latencies.append(seconds)
                await asyncio.sleep(max(0.0, BLOCK_SECONDS - (time.perf_counter() - begun)))  # noqa: TID251 - as above
            await connection.close()
            daemon.terminate()
            await daemon.wait()
    finally:
        if daemon is not None and daemon.returncode is None:
            daemon.kill()
            await daemon.wait()
        shutil.rmtree(folder, ignore_errors=True)
    return latencies


def _print(name: str, seconds: Sequence[float]) -> None:
    cuts = statistics.quantiles(seconds, n=100)
    figures = {"p50": cuts[49], "p90": cuts[89], "p99": cuts[98], "max": max(seconds)}
    print(f"{name:28}" + "".join(f"{label:>6} {value * 1000:5.0f} ms" for label, value in figures.items()))


def main() -> None:
    """Measure with polling, and with slow polling that the node's WebSocket wakes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=200)
    parser.add_argument("--ws-url", default="anvil", help="who tells of new heads; default: anvil itself")
    given = parser.parse_args()
    polled = asyncio.run(measure(blocks=given.blocks, poll_seconds=0.1, ws_url=None))
    _print("polling every 100 ms", polled)
    woken = asyncio.run(measure(blocks=given.blocks, poll_seconds=2.0, ws_url=given.ws_url))
    _print("polling every 2 s, and woken", woken)


if __name__ == "__main__":
    main()
