"""`bskt run` in its other two modes, as a process of its own."""

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
from eth_hash.auto import keccak

from service.demo.anvil import Anvil, find_or_install_anvil
from service.demo.contracts import Basket, DevChain, create_basket, deploy_system, request_mint, total_supply

pytestmark = pytest.mark.end_to_end

ROOT = Path(__file__).parents[2]
USER = bytes.fromhex("3C44CdDdB6a900fa2b585dd299e03d12FA4293BC")
AMOUNT = 2_500_000_000_000_000_000

# What `cre workflow simulate --broadcast` does for one run: it mints through the chain's node, whoever asks, as often
# as it is asked.  It counts its runs.
CRE = """#!{python}
import json, os, sys, urllib.request
assert "BSKT_INSTANCE_SECRET" not in os.environ and os.environ["CRE_API_KEY"] == "an-api-key"
order = json.load(open(sys.argv[sys.argv.index("--http-payload") + 1]))
def rpc(method, *params):
    body = json.dumps({{"jsonrpc": "2.0", "id": 1, "method": method, "params": params}}).encode()
    request = urllib.request.Request("{rpc_url}", body, {{"Content-Type": "application/json"}})
    return json.load(urllib.request.urlopen(request))["result"]
whole, _, fraction = order["amount"].partition(".")
wei = int(whole) * 10**18 + int(fraction.ljust(18, "0") or 0)
words = [1, int(order["beneficiary"]["account"], 16), wei]
report = b"".join(word.to_bytes(32, "big") for word in words) + order["bankReference"].encode().ljust(32, b"\\0")
data = bytes.fromhex("{selector}") + (32).to_bytes(32, "big") + len(report).to_bytes(32, "big") + report
with open("{runs}", "a") as runs:
    print(order["bankReference"], file=runs)
tx = rpc("eth_sendTransaction", {{"from": rpc("eth_accounts")[-1], "to": order["basket"]["mintingConsumerAddress"],
    "gas": hex(1_000_000), "data": "0x" + data.hex()}})
print("\\n\u2713 Workflow Simulation Result:\\n" + json.dumps({{"mintTransaction": tx}}))
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="bskt-test-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made, ignore_errors=True)


class World:
    def __init__(self, chain: DevChain, basket: Basket, environment: dict[str, str]) -> None:
        self.chain, self.basket, self.environment = chain, basket, environment

    async def request(self, bank: str) -> None:
        reference = bank.encode().ljust(32, b"\0")
        await request_mint(self.chain, self.basket.token, beneficiary=USER, amount_wei=AMOUNT, bank_reference=reference)

    @asynccontextmanager
    async def daemon(self, **settings: str) -> AsyncIterator[asyncio.subprocess.Process]:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            "from service.cli import main; main()",
            "run",
            env=self.environment | settings,
            cwd=ROOT,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
            await process.communicate()


@pytest.fixture
async def world(folder: Path) -> AsyncIterator[World]:
    binary = find_or_install_anvil(configured=None, cache_dir=ROOT / ".cache")
    async with await Anvil.start(binary, slots_in_an_epoch=1) as anvil, aiohttp.ClientSession() as session:
        chain = DevChain(session=session, url=anvil.url)
        system = await deploy_system(chain)
        basket = await create_basket(chain, system.factory, name="Test Dollar", symbol="TUSD")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        environment = {
            "PATH": os.environ["PATH"],  # noqa: TID251 - the child needs a PATH, and no other setting of ours
            "BSKT_DATA_DIR": str(folder / "bskt"),
            "BSKT_CHAIN_ID": "31337",
            "BSKT_RPC_URL": anvil.url,
            "BSKT_FACTORY_ADDRESS": "0x" + system.factory.hex(),
            "BSKT_FORWARDER_ADDRESS": "0x" + system.forwarder.hex(),
            "BSKT_START_BLOCK": "1",
            "BSKT_TRIGGER_FROM_BLOCK": "0",
            "BSKT_TRIGGER_FINALITY": "depth:1",
            "BSKT_COMPLETE_FINALITY": "depth:1",
            "BSKT_POLL_INTERVAL_SECONDS": "0.05",
            "BSKT_CRE_SECONDS_PER_TRIGGER": "0",
            "BSKT_LISTEN": f"127.0.0.1:{port}",
        }
        yield World(chain, basket, environment)


async def until(stream: asyncio.StreamReader | None, text: str, count: int = 1) -> list[str]:
    """Read lines until ``count`` of them hold ``text``."""
    assert stream is not None
    lines: list[str] = []
    while sum(text in line for line in lines) < count:
        line = (await stream.readline()).decode()
        if not line:
            pytest.fail(f"the daemon ended without {text!r}:\n{''.join(lines)}")
        lines.append(line)
    return lines


async def test_a_simulated_mint_is_proven_by_its_transaction_and_run_once(world: World, folder: Path) -> None:
    """Hard case 77."""
    runs = folder / "runs"
    selector = keccak(b"processMintReport(bytes)")[:4].hex()
    cre = folder / "cre"
    cre.write_text(
        CRE.format(python=sys.executable, rpc_url=world.environment["BSKT_RPC_URL"], selector=selector, runs=runs)
    )
    cre.chmod(0o755)
    await world.request("DEPOSIT-1")
    async with world.daemon(
        BSKT_CRE_MODE="simulate",
        BSKT_CRE_COMMAND=str(cre),
        BSKT_CRE_PROJECT_DIR=str(folder),
        BSKT_CRE_WORKFLOW_FOLDER="bskt-workflow",
        BSKT_CRE_TARGET="staging-settings",
        BSKT_CRE_API_KEY="an-api-key",
        BSKT_CRE_ETH_PRIVATE_KEY="0x" + "11" * 32,
    ) as daemon:
        lines = await until(daemon.stderr, "attempt.answered")
        await world.chain.mine(2)
        lines += await until(daemon.stderr, "to_state=completed")
        assert not [line for line in lines if "unattributed" in line]
    assert runs.read_text().split() == ["DEPOSIT-1"]
    assert await total_supply(world.chain, world.basket.token) == AMOUNT


async def test_a_dry_run_prints_each_request_and_sends_none(world: World) -> None:
    await world.request("DEPOSIT-1")
    # Nobody listens where the gateway would be.
    gateway = "http://127.0.0.1:1/"
    async with world.daemon(
        BSKT_CRE_MODE="dry-run", BSKT_CRE_WORKFLOW="01" * 32, BSKT_CRE_GATEWAY_URL=gateway
    ) as daemon:
        first = await until(daemon.stdout, "DEPOSIT-1")
        await world.request("DEPOSIT-2")
        second = await until(daemon.stdout, "DEPOSIT-2")
        daemon.send_signal(signal.SIGTERM)
        rest, _ = await daemon.communicate()
        assert daemon.returncode == 0
    shown = [json.loads(line)["body"]["params"]["input"]["bankReference"] for line in (*first, *second)]
    assert (shown, rest) == (["DEPOSIT-1", "DEPOSIT-2"], b"")
    assert await total_supply(world.chain, world.basket.token) == 0
