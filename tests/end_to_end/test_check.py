"""``bskt check`` on a real chain and the real wire protocol: it finds what is wrong, and triggers nothing."""

import json
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from invocator.signing import Signer
from service.console import Exit
from service.demo.anvil import Anvil
from service.demo.contracts import DevChain, System, create_basket, deploy_system
from service.demo.cre_stand_in import CreStandIn, Workflow
from service.demo.cre_stand_in.ledger import Run
from tests.service.rows import bskt

pytestmark = pytest.mark.end_to_end

KEY = "0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80"  # the first well-known anvil key
WORKFLOW_ID = bytes(range(32))


@dataclass
class World:
    system: System
    cre: CreStandIn
    settings: dict[str, str]

    async def check(self, dsn: str, **changes: str) -> tuple[int, dict[str, list[Any]]]:
        answer = await bskt(dsn, "--output", "json", "check", **self.settings | changes)
        by_check: dict[str, list[Any]] = {}
        for finding in answer.json:
            by_check.setdefault(finding["check"], []).append(finding)
        return answer.code, by_check

    def runs(self) -> list[Run]:
        ledger = self.cre.ledger
        return [run for request_id in ledger.request_ids() for run in ledger.runs_of(request_id)]


@pytest.fixture
async def world(anvil_binary: Path) -> AsyncIterator[World]:
    signer = Signer.from_text(KEY)
    async with (
        await Anvil.start(anvil_binary, slots_in_an_epoch=1, block_time_seconds=None) as anvil,
        aiohttp.ClientSession() as session,
    ):
        chain = DevChain(session=session, url=anvil.url)
        system = await deploy_system(chain)
        await create_basket(chain, system.factory, name="Test Dollar", symbol="TUSD")
        workflow = Workflow(workflow_id=WORKFLOW_ID, authorized_keys=frozenset({signer.address}))
        async with CreStandIn(rpc_url=anvil.url, forwarder=system.forwarder, workflows=[workflow]) as cre:
            yield World(
                system,
                cre,
                {
                    "BSKT_INSTANCE_SECRET": "ab" * 32,
                    "BSKT_CHAIN_ID": "31337",
                    "BSKT_RPC_URL": anvil.url,
                    "BSKT_FACTORY_ADDRESS": "0x" + system.factory.hex(),
                    "BSKT_FORWARDER_ADDRESS": "0x" + system.forwarder.hex(),
                    "BSKT_START_BLOCK": "1",
                    "BSKT_CRE_GATEWAY_URL": cre.url,
                    "BSKT_CRE_WORKFLOW": WORKFLOW_ID.hex(),
                    "BSKT_CRE_SIGNER_KEY": KEY,
                    "BSKT_MAX_MINT_TOKENS": "1000",
                    "BSKT_DAILY_CAP_TOKENS": "none",
                },
            )


async def test_an_instance_in_order_has_nothing_to_mend_and_nothing_was_triggered(world: World, dsn: str) -> None:
    code, found = await world.check(dsn)
    bad = [each for findings in found.values() for each in findings if each["severity"] in {"warning", "error"}]
    assert (code, bad) == (Exit.DONE, [])
    assert [each["sentence"] for each in found["workflow 00010203…"]] == ["The gateway knows it."]
    assert "the gateway's clock" in found
    assert (world.runs(), world.cre.ledger.mints()) == ([], [])


async def test_what_is_wrong_on_the_chain_and_at_the_gateway_is_found(world: World, dsn: str) -> None:
    """Hard cases 14 and 85."""
    code, found = await world.check(
        dsn,
        BSKT_FACTORY_ADDRESS="0x" + "11" * 20,
        BSKT_START_BLOCK="2",
        BSKT_CRE_WORKFLOW=f"{WORKFLOW_ID.hex()},{'07' * 32}",
    )
    assert code == Exit.FINDINGS
    assert [each["sentence"] for each in found["node 0"] if each["severity"] == "error"] == [
        "There is no contract at BSKT_FACTORY_ADDRESS."
    ]
    assert [each["severity"] for each in found["workflow 00010203…"]] == ["ok"]
    assert [each["severity"] for each in found["workflow 07070707…"]] == ["error"]
    assert (world.runs(), world.cre.ledger.mints()) == ([], [])


async def test_another_chain_or_a_start_after_the_deployment_is_found(world: World, dsn: str) -> None:
    _, found = await world.check(dsn, BSKT_CHAIN_ID="1")
    assert [each["sentence"] for each in found["node 0"]] == ["It serves chain 31337."]
    _, found = await world.check(dsn, BSKT_START_BLOCK="3")
    assert any("deployed before BSKT_START_BLOCK" in each["sentence"] for each in found["node 0"])


def test_the_installed_command_says_the_same_with_its_exit_code() -> None:
    answer = subprocess.run(  # noqa: S603 - our own program
        [str(Path(sys.executable).with_name("bskt")), "--output", "json", "check"],
        env={"BSKT_DATA_DIR": "/nonexistent/bskt"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == Exit.FINDINGS
    assert "BSKT_CHAIN_ID: not set" in json.loads(answer.stdout)[0]["sentence"]
    assert answer.stderr.endswith("findings to mend.\n")
