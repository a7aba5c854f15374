"""The installed daemon as a process of its own: an embedded Postgres, real signals, kill -9."""

import asyncio
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from invocator.signing import Signer
from service.demo.anvil import Anvil, find_or_install_anvil
from service.demo.contracts import Basket, DevChain, System, create_basket, deploy_system, request_mint, total_supply
from service.demo.cre_stand_in import CreStandIn, Workflow

pytestmark = pytest.mark.end_to_end

ROOT = Path(__file__).parents[2]
KEY = "0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80"  # the first well-known anvil key
WORKFLOW_ID = bytes(range(32))
USER = bytes.fromhex("3C44CdDdB6a900fa2b585dd299e03d12FA4293BC")
AMOUNT = 2_500_000_000_000_000_000
CRASH_POINTS = (
    "indexer.before_commit",
    "indexer.after_commit",
    "invocator.before_claim",
    "invocator.after_claim",
    "invocator.after_freeze",
    "invocator.before_attempt",
    "invocator.after_attempt",
    "invocator.after_answer",
    "invocator.after_record",
)
# Runs the daemon, and kills it with SIGKILL when it reaches the named boundary.
RUN_UNTIL = """
import asyncio, os, signal, sys
from service import settings, wiring
from service.supervision import Stop
def reached(point):
    if point == sys.argv[1]:
        os.kill(os.getpid(), signal.SIGKILL)
sys.exit(asyncio.run(wiring.run(settings.load({}), parts=wiring.PARTS, stop=Stop(), reached=reached)))
"""


@pytest.fixture
def data_dir() -> Iterator[Path]:
    # Not pytest's own folder: as root its parents are closed to the user that the embedded server runs as.
    folder = Path(tempfile.mkdtemp(prefix="bskt-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Daemon:
    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[str] = []

    async def until(self, text: str) -> None:
        """Read the daemon's log until a line holds ``text``."""
        assert self.process.stderr is not None
        while line := (await self.process.stderr.readline()).decode():
            self.lines.append(line)
            if text in line:
                return
        pytest.fail(f"the daemon ended without {text!r}:\n{''.join(self.lines)}")

    async def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        await self.process.communicate()
        return await self.process.wait()


class World:
    def __init__(self, chain: DevChain, system: System, basket: Basket, cre: CreStandIn, environment: dict[str, str]):
        self.chain, self.system, self.basket, self.cre, self.environment = chain, system, basket, cre, environment

    @asynccontextmanager
    async def daemon(self, crash_point: str = "never") -> AsyncIterator[Daemon]:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            RUN_UNTIL,
            crash_point,
            env=self.environment,
            cwd=ROOT,
            stderr=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
        )
        try:
            yield Daemon(process)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

    async def request(self, bank: str) -> None:
        await request_mint(
            self.chain,
            self.basket.token,
            beneficiary=USER,
            amount_wei=AMOUNT,
            bank_reference=bank.encode().ljust(32, b"\0"),
        )


@pytest.fixture
async def world(data_dir: Path) -> AsyncIterator[World]:
    binary = find_or_install_anvil(configured=None, cache_dir=ROOT / ".cache")
    signer = Signer.from_text(KEY)
    async with (
        await Anvil.start(binary, slots_in_an_epoch=1, block_time_seconds=None) as anvil,
        aiohttp.ClientSession() as session,
    ):
        chain = DevChain(session=session, url=anvil.url)
        system = await deploy_system(chain)
        basket = await create_basket(chain, system.factory, name="Test Dollar", symbol="TUSD")
        workflow = Workflow(workflow_id=WORKFLOW_ID, authorized_keys=frozenset({signer.address}))
        async with CreStandIn(
            rpc_url=anvil.url, forwarder=system.forwarder, workflows=[workflow], check_interval_seconds=0.05
        ) as cre:
            environment = {
                "PATH": os.environ["PATH"],  # noqa: TID251 - the child needs a PATH, and no other setting of ours
                "BSKT_DATA_DIR": str(data_dir / "bskt"),
                "BSKT_CHAIN_ID": "31337",
                "BSKT_RPC_URL": anvil.url,
                "BSKT_FACTORY_ADDRESS": "0x" + system.factory.hex(),
                "BSKT_FORWARDER_ADDRESS": "0x" + system.forwarder.hex(),
                "BSKT_START_BLOCK": "1",
                "BSKT_TRIGGER_FROM_BLOCK": "0",
                "BSKT_TRIGGER_FINALITY": "depth:1",
                "BSKT_COMPLETE_FINALITY": "depth:1",
                "BSKT_POLL_INTERVAL_SECONDS": "0.05",
                "BSKT_CRE_GATEWAY_URL": cre.url,
                "BSKT_CRE_WORKFLOW": WORKFLOW_ID.hex(),
                "BSKT_CRE_SIGNER_KEY": KEY,
                "BSKT_CRE_SECONDS_PER_TRIGGER": "0",
                "BSKT_CRE_TIMEOUT_SECONDS": "2",
                "BSKT_CLAIM_LEASE_SECONDS": "3",
                "BSKT_LISTEN": f"127.0.0.1:{_free_port()}",
            }
            yield World(chain, system, basket, cre, environment)


async def test_the_daemon_brings_its_own_database_mints_once_and_stops_gracefully(world: World) -> None:
    """Hard case 102."""
    await world.request("DEPOSIT-1")
    async with world.daemon() as daemon:
        await daemon.until("to_state=completed")
        base = f"http://{world.environment['BSKT_LISTEN']}"
        async with aiohttp.ClientSession() as session:
            for path in ("/livez", "/readyz", "/metrics", "/status"):
                async with session.get(base + path) as answer:
                    assert (path, answer.status) == (path, 200)
                    body = await answer.read()
        status = json.loads(body)
        assert (status["requests"]["completed"], status["chain"]["lag_blocks"]) == (1, 0)
        assert await daemon.stop() == 0
    assert await total_supply(world.chain, world.basket.token) == AMOUNT
    assert len(world.cre.ledger.request_ids()) == 1


@pytest.mark.parametrize("crash_point", CRASH_POINTS)
async def test_a_daemon_killed_at_a_commit_boundary_mints_exactly_once_after_its_restart(
    world: World, crash_point: str
) -> None:
    """Hard cases 3, 53, 70 and 103."""
    await world.request("DEPOSIT-1")
    async with world.daemon(crash_point) as daemon:
        await daemon.process.communicate()
        assert daemon.process.returncode == -signal.SIGKILL
    async with world.daemon() as daemon:
        await daemon.until("to_state=completed")
        assert await daemon.stop() == 0
    assert await total_supply(world.chain, world.basket.token) == AMOUNT
    assert len(world.cre.ledger.request_ids()) == 1
