"""Secrets that are planted in every setting, and whatever others may say, while things go wrong, at level debug."""

import asyncio
import json
import re
import sys
from pathlib import Path

import aiohttp
import asyncpg
import pytest

from service.demo.contracts import create_basket, request_mint
from service.demo.cre_stand_in import faults
from tests.end_to_end.processes import Stage, daemon, open_stage
from tests.end_to_end.world import AMOUNT, KEY, ROOT, USER, reference

pytestmark = pytest.mark.end_to_end

# Breaks a line, colours, turns the direction, and pretends to be an event and a tag.
HOSTILE = "Gold\n2026-01-01 error fake.event\x1b[31m\u202e<script>"
RPC_PATH, RPC_QUERY, RPC_PASSWORD = "canaryrpcpath0123456789abcdef", "canaryrpcquery0123456789", "canary-rpc-password"
RPC_HEADER = "canary-rpc-header-0123456789"
WS_PATH = "canarywspath0123456789abcdef"
DATABASE_PASSWORD = "canary-database-password"
INSTANCE_SECRET = "c0ffee0ddba11" * 6
API_KEY = "canary-cre-api-key-0123456789"
ETH_KEY = "deadbeef" * 8
CANARIES = (
    *(RPC_PATH, RPC_QUERY, RPC_PASSWORD, RPC_HEADER, WS_PATH, DATABASE_PASSWORD, INSTANCE_SECRET, API_KEY, ETH_KEY),
    KEY.removeprefix("0x"),
)
TOKEN = re.compile(r"eyJ[A-Za-z0-9_-]{20,}\.[A-Za-z0-9_-]{20,}")
COMMANDS = (
    ("baskets", "list"),
    ("requests", "list"),
    ("requests", "show", "1"),
    ("status",),
    ("chain", "endpoints"),
    ("keys", "show"),
    ("check",),
)


async def planted(stage: Stage, dsn: str) -> dict[str, str]:
    """Settings with a canary in every secret.  Nobody listens at the first node and at the WebSocket."""
    owner = await asyncpg.connect(dsn)
    await owner.execute("DROP ROLE IF EXISTS canary_user")
    await owner.execute(f"CREATE ROLE canary_user SUPERUSER LOGIN PASSWORD '{DATABASE_PASSWORD}'")
    await owner.close()
    return stage.settings(
        BSKT_DATABASE_URL=re.sub(r"//[^@]*@", f"//canary_user:{DATABASE_PASSWORD}@", dsn),
        BSKT_RPC_URL=f"http://u:{RPC_PASSWORD}@127.0.0.1:1/v2/{RPC_PATH}?apikey={RPC_QUERY},{stage.rpc_url}",
        BSKT_RPC_HEADERS=f"X-Api-Key: Token {RPC_HEADER}",
        BSKT_WS_URL=f"ws://127.0.0.1:1/v2/{WS_PATH}",
        BSKT_INSTANCE_SECRET=INSTANCE_SECRET,
        BSKT_CRE_API_KEY=API_KEY,
        BSKT_CRE_ETH_PRIVATE_KEY=ETH_KEY,
    )


async def heard(settings: dict[str, str]) -> dict[str, str]:
    """What the daemon's HTTP server says, by path."""
    said = {}
    async with aiohttp.ClientSession() as session:
        for path in ("/livez", "/readyz", "/status", "/metrics"):
            async with session.get(f"http://{settings['BSKT_LISTEN']}{path}") as answer:
                said[path] = await answer.text()
    return said


async def shown(settings: dict[str, str], *arguments: str) -> str:
    """What a command prints, on both streams."""
    command = (sys.executable, "-c", "from service.cli import main; main()", *arguments)
    process = await asyncio.create_subprocess_exec(
        *command, env=settings, cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await process.communicate()
    return output.decode()


def unsafe(text: str) -> list[str]:
    """Lines that hold what a terminal obeys, or that begin as an event of ours does not."""
    lines = text.split("\n")
    return [line for line in lines if any(not each.isprintable() for each in line) or line.startswith("2026-01-01")]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("log_format", ["text", "json"])
async def test_no_planted_secret_and_nothing_hostile_appears_anywhere(
    anvil_binary: Path, dsn: str, data_dir: Path, log_format: str
) -> None:
    """Hard cases 50, 110, 112 and 113."""
    completed = {"text": "to_state=completed", "json": '"to_state": "completed"'}[log_format]
    async with open_stage(anvil_binary) as stage:
        hostile = await create_basket(stage.chain, stage.system.factory, name=HOSTILE, symbol=HOSTILE)
        settings = await planted(stage, dsn) | {"BSKT_LOG_LEVEL": "debug", "BSKT_LOG_FORMAT": log_format}
        stage.cre.faults.next(
            faults.internal_error(),
            faults.html_page(),
            faults.refuse(400, -32600, f"Auth failure: signer is not authorized {HOSTILE}"),
        )
        for number, token in enumerate((stage.baskets[0].token, hostile.token, hostile.token)):
            bank = reference(f"DEPOSIT-{number}")
            await request_mint(stage.chain, token, beneficiary=USER, amount_wei=AMOUNT, bank_reference=bank)
        async with daemon(settings, data_dir / "log") as running:
            await running.until_said("not authorized")
            early = await heard(settings)
            while running.said.count(completed) < 3:
                await stage.chain.mine()
                await running.until_said(completed)
            late = await heard(settings)
            tables = [await shown(settings, *command) for command in COMMANDS]
            log = running.said
    everything = "\n".join([log, *early.values(), *late.values(), *tables])
    assert [canary for canary in CANARIES if canary.lower() in everything.lower()] == []
    assert TOKEN.findall(everything) == []
    assert unsafe(log) == []
    assert [line for table in tables for line in unsafe(table)] == []
    assert "Gold" in tables[0]
    assert "Gold" not in late["/metrics"]
    assert "fake.event" not in late["/metrics"]
    if log_format == "json":
        assert all(isinstance(json.loads(line), dict) for line in log.splitlines())


def limits_of(pid: int | None) -> str:
    return Path(f"/proc/{pid}/limits").read_text()


async def test_a_daemon_leaves_no_core(anvil_binary: Path, dsn: str, data_dir: Path) -> None:
    """Hard case 116."""
    async with open_stage(anvil_binary) as stage:
        settings = stage.settings(BSKT_DATABASE_URL=dsn)
        async with daemon(settings, data_dir / "log") as running:
            await running.until_said("daemon.started")
            limits = limits_of(running.process.pid)
    assert re.search(r"Max core file size\s+0\s+0\s", limits)


async def test_a_key_that_others_can_read_is_told_at_the_start_and_one_that_they_can_write_is_refused(
    anvil_binary: Path, dsn: str, data_dir: Path
) -> None:
    """Hard case 116."""
    key = data_dir / "key"
    key.write_text(KEY)
    async with open_stage(anvil_binary) as stage:
        settings = stage.settings(BSKT_DATABASE_URL=dsn, BSKT_CRE_SIGNER_KEY_FILE=str(key))
        del settings["BSKT_CRE_SIGNER_KEY"]
        key.chmod(0o644)
        async with daemon(settings, data_dir / "log") as running:
            await running.until_said("secret.file_open_to_others")
            await running.until_said("daemon.started")
        key.chmod(0o666)
        refused = await shown(settings, "run")
    assert f"BSKT_CRE_SIGNER_KEY_FILE: {key}: everybody may write it" in refused
