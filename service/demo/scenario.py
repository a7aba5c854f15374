"""``bskt demo``: users, an outage, a reorg, a lost answer and a kill -9; the chain itself must confirm the summary."""

from __future__ import annotations

import asyncio
import itertools
import os
import secrets
import shutil
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import aiohttp
from rich.console import Console
from rich.live import Live
from rich.table import Table

from datastore import inspection, schema
from datastore.connection import Pool, Role, open_pool
from datastore.inspection import Request
from datastore.reference import reference_text
from invocator.signing import Signer
from service.demo.anvil import EXEC_AND_DIE_WITH_PARENT, Anvil, find_or_install_anvil
from service.demo.contracts import (
    Basket,
    DevChain,
    System,
    call,
    create_basket,
    deploy_system,
    request_mint,
    total_supply,
)
from service.demo.cre_stand_in import CreStandIn, Workflow, faults
from service.embedded_postgres import EmbeddedPostgres
from service.supervision import EXIT_INTERRUPTED, Stop, wait

CHAIN_ID: Final = 31337
SIGNER_KEY: Final = (
    "0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80"  # the first well-known anvil key
)
WORKFLOW_ID: Final = bytes(range(32))
TOKEN: Final = 10**18
ENDED: Final = frozenset({"completed", "rejected", "failed", "review", "dropped", "cancelled"})
LONGEST_SECONDS: Final = 80.0
OUTAGE_BEATS: Final = 12
_BEAT_SECONDS: Final = 0.25


@dataclass(slots=True, kw_only=True)
class Stage:
    """Everything that runs, and what the users were promised: the amount that each deposit backs, once."""

    chain: DevChain
    system: System
    cre: CreStandIn
    pool: Pool
    environment: dict[str, str]
    folder: Path
    console: Console
    stop: Stop
    started_at: float
    baskets: dict[str, Basket] = field(default_factory=dict)
    promised: dict[str, dict[str, int]] = field(default_factory=dict)
    daemon: asyncio.subprocess.Process | None = None
    kills: int = 0
    last: dict[int, str] = field(default_factory=dict)

    @property
    def log_file(self) -> Path:
        """What the daemon says."""
        return self.folder / "daemon.log"

    def say(self, sentence: str) -> None:
        """One line of the story."""
        self.console.print(f"• {time.monotonic() - self.started_at:3.0f} s  {sentence}", soft_wrap=True)

    async def start_daemon(self) -> None:
        """Start ``bskt run`` as its own process; its log goes to a file, and it never outlives the demo."""
        with self.log_file.open("ab") as log:
            self.daemon = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", "-c", EXEC_AND_DIE_WITH_PARENT, str(os.getpid())),
                *(sys.executable, "-c", "from service.cli import main; main()", "run"),
                env=self.environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=log,
            )

    async def stop_daemon(self, *, kill: bool = False) -> None:
        """SIGTERM, or SIGKILL, and wait for the end."""
        if self.daemon is not None and self.daemon.returncode is None:
            self.daemon.kill() if kill else self.daemon.terminate()
            await self.daemon.wait()

    async def request(self, symbol: str, deposit: str, tokens: int, user: int) -> bytes:
        """A user asks for a mint; the transaction's hash."""
        accounts = await self.chain.accounts()
        self.promised.setdefault(symbol, {})[deposit] = tokens * TOKEN
        receipt = await request_mint(
            self.chain,
            self.baskets[symbol].token,
            beneficiary=accounts[user],
            amount_wei=tokens * TOKEN,
            bank_reference=deposit.encode().ljust(32, b"\0"),
            requester=accounts[user],
        )
        return receipt.tx_hash

    async def beat(self, live: Live | None, *, mine: bool = True) -> list[Request]:
        """Mine a block, look at the requests, and show them."""
        if mine:
            await self.chain.mine()
        lines = await _requests(self.pool)
        if live is not None:
            live.update(_table(self, lines))
        else:
            for line in lines:
                if self.last.get(line.id) != line.state:
                    self.last[line.id] = line.state
                    self.console.print(f"  request {line.id} {_deposit(line)}: {line.state}", highlight=False)
        await wait(asyncio.Event(), _BEAT_SECONDS)
        return lines

    async def until(self, live: Live | None, done: Callable[[Sequence[Request]], bool], *, mine: bool = True) -> bool:
        """Beat until ``done``; ``False`` if the time is over first, or somebody wants an end."""
        try:
            async with asyncio.timeout(LONGEST_SECONDS):
                while not done(await self.beat(live, mine=mine)):
                    if self.stop.asked.is_set():
                        return False
        except TimeoutError:
            return False
        return True


async def run(*, keep: bool, cache_dir: Path) -> int:
    """Set the stage, play the story, and compare: 0 only if the chain agrees with the requests."""
    console = Console(stderr=True)
    stop = Stop()
    with stop.on_signals():
        async with _staged(console, cache_dir, stop) as stage:
            live = Live(console=console, refresh_per_second=8) if console.is_terminal else None
            if live is not None:
                live.start()
            try:
                ended = await _play(stage, live)
            finally:
                if live is not None:
                    live.stop()
            if stop.asked.is_set():
                console.print("Interrupted.")
                return EXIT_INTERRUPTED
            agrees = await _summary(stage) and ended
            if keep:
                await _stay(stage)
    return 0 if agrees else 1


async def _stay(stage: Stage) -> None:
    """Keep everything up, with a block every beat, until somebody wants an end."""
    env_file = stage.folder / "env"
    env_file.write_text("".join(f"{name}={value}\n" for name, value in stage.environment.items() if name != "PATH"))
    for line in (
        "Everything stays up, with a block every moment.  Look at it from another terminal:",
        f"  bskt --env-file {env_file} status --watch",
        f"  bskt --env-file {env_file} requests list",
        f"  bskt --env-file {env_file} requests timeline 7",
        f"  curl http://{stage.environment['BSKT_LISTEN']}/status",
        f"  the chain: {stage.environment['BSKT_RPC_URL']}, CRE: {stage.cre.url}, the daemon's log: {stage.log_file}",
        "Ctrl-C (or SIGTERM) ends it.",
    ):
        stage.console.print(line, highlight=False, markup=False, soft_wrap=True)
    while not stage.stop.asked.is_set():
        await stage.beat(None)


async def _play(stage: Stage, live: Live | None) -> bool:
    await stage.start_daemon()
    stage.say("Three baskets were created; four users ask for mints.")
    for number, (symbol, deposit, tokens) in enumerate(
        (("AUD", "DEP-1001", 100), ("AUD", "DEP-1002", 250), ("EUR", "DEP-1003", 75), ("EUR", "DEP-1004", 40))
    ):
        await stage.request(symbol, deposit, tokens, number + 1)
    stage.say("One deposit reference is used a second time, by the same user.")
    await stage.request("AUD", "DEP-1001", 100, 1)
    stage.say("A request in a basket whose on-chain policy rejects every mint.")
    await stage.request("BAD", "DEP-1005", 10, 5)
    stage.promised["BAD"] = {}
    if not await _outage(stage, live):
        return False
    if not await stage.until(live, lambda lines: sum(line.state in ENDED for line in lines) >= len(lines) > 0):
        return False

    stage.say("A reorg of two blocks: it takes a request away and mines the very same transaction again.")
    tx_hash = await stage.request("EUR", "DEP-1006", 60, 2)
    raw = await stage.chain.raw_transaction(tx_hash)
    await stage.chain.mine()
    # Without another block until it is recorded: the reorg must reach it, and find it unsent.
    if not await stage.until(live, lambda lines: any(_deposit(line) == "DEP-1006" for line in lines), mine=False):
        return False
    await stage.chain.reorg(2, [(raw, 1)])

    stage.say("The gateway fails: it takes the next request, runs it, and its answer is lost.")
    stage.cre.faults.next(faults.answer_lost())
    await stage.request("AUD", "DEP-1007", 30, 3)
    if not await stage.until(live, lambda lines: any(line.attempts and line.state not in ENDED for line in lines)):
        return False

    stage.say("The daemon is killed with SIGKILL in the middle of it, and started again.")
    await stage.stop_daemon(kill=True)
    stage.kills += 1
    await stage.request("EUR", "DEP-1008", 20, 4)
    await stage.start_daemon()
    return await stage.until(live, lambda lines: len(lines) == 9 and all(line.state in ENDED for line in lines))  # noqa: PLR2004 - as many as were asked for above


async def _outage(stage: Stage, live: Live | None) -> bool:
    """The gateway is away while requests wait: nothing is lost or sent twice, and nobody has to do anything."""
    async with stage.cre.outage():
        stage.say("The gateway is down: requests wait, and the invocator pauses itself.")
        if not await stage.until(live, lambda lines: any(line.last_outcome == "never_connected" for line in lines)):
            return False
        beats = itertools.count()
        if not await stage.until(live, lambda _: next(beats) >= OUTAGE_BEATS):
            return False
    stage.say("The gateway is back: they go on by themselves.")
    return True


async def _summary(stage: Stage) -> bool:
    lines = await _requests(stage.pool)
    completed: Counter[bytes] = Counter()
    for line in lines:
        completed[line.stablecoin] += line.amount * (line.state == "completed")
    table = Table("basket", "promised", "completed", "supply on chain", "agrees", title="What the chain says")
    agrees = True
    for symbol, basket in stage.baskets.items():
        supply = await total_supply(stage.chain, basket.token)
        promised = sum(stage.promised.get(symbol, {}).values())
        right = supply == promised == completed[basket.token]
        agrees = agrees and right
        table.add_row(symbol, *(f"{wei / TOKEN:g}" for wei in (promised, completed[basket.token], supply)), str(right))
    states = Counter(line.state for line in lines)
    out = Console()
    out.print(table)
    ids = len(stage.cre.ledger.request_ids())
    out.print(
        f"{len(lines)} requests: " + ", ".join(f"{count} {state}" for state, count in sorted(states.items())),
        f"\n{ids} ids at CRE, {len(stage.cre.ledger.mints())} mints, {stage.kills} kill -9, 1 reorg, 1 lost answer, "
        "1 outage",
    )
    expected = Counter({"completed": 7, "rejected": 1, "failed": 1})
    out.print("Requests and chain agree." if agrees and states == expected else "They do NOT agree.", style="bold")
    return agrees and states == expected


@asynccontextmanager
async def _staged(console: Console, cache_dir: Path, stop: Stop) -> AsyncIterator[Stage]:
    started_at = time.monotonic()
    async with AsyncExitStack() as stack:
        folder = _folder()
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        with console.status("Preparing a database, a chain and contracts…"):
            binary = await asyncio.to_thread(find_or_install_anvil, configured=None, cache_dir=cache_dir)
            anvil = await stack.enter_async_context(await Anvil.start(binary))
            postgres = await stack.enter_async_context(EmbeddedPostgres(folder / "postgres"))
            await schema.apply(postgres.dsn)
            pool = await open_pool(postgres.dsn, Role.READER)
            stack.push_async_callback(pool.close)
            chain = DevChain(
                session=await stack.enter_async_context(aiohttp.ClientSession()),
                url=anvil.url,
            )
            system = await deploy_system(chain)
            baskets = {
                symbol: await create_basket(chain, system.factory, name=name, symbol=symbol)
                for symbol, name in (("AUD", "Australian Dollar"), ("EUR", "Euro"), ("BAD", "Rejected by policy"))
            }
            await chain.transact(call(baskets["BAD"].consumer, "setPolicyRejects(bool)", True))
            signer = await asyncio.to_thread(Signer.from_text, SIGNER_KEY)
            workflow = Workflow(workflow_id=WORKFLOW_ID, authorized_keys=frozenset({signer.address}))
            cre = await stack.enter_async_context(
                CreStandIn(
                    rpc_url=anvil.url, forwarder=system.forwarder, workflows=[workflow], check_interval_seconds=0.1
                )
            )
        stage = Stage(
            chain=chain,
            system=system,
            cre=cre,
            pool=pool,
            environment=_environment(postgres.dsn, anvil.url, cre.url, system),
            folder=folder,
            console=console,
            stop=stop,
            started_at=started_at,
            baskets=baskets,
        )
        stack.push_async_callback(stage.stop_daemon)
        yield stage


def _folder() -> Path:
    # Not in the checkout: as root, the server runs as another user, who may not be let in there.
    folder = Path(tempfile.mkdtemp(prefix="bskt-demo-"))
    folder.chmod(0o755)
    return folder


def _environment(dsn: str, rpc_url: str, gateway_url: str, system: System) -> dict[str, str]:
    return {
        "PATH": os.defpath,
        "BSKT_DATABASE_URL": dsn,
        "BSKT_INSTANCE_SECRET": secrets.token_hex(32),
        "BSKT_CHAIN_ID": str(CHAIN_ID),
        "BSKT_RPC_URL": rpc_url,
        "BSKT_FACTORY_ADDRESS": "0x" + system.factory.hex(),
        "BSKT_FORWARDER_ADDRESS": "0x" + system.forwarder.hex(),
        "BSKT_START_BLOCK": "1",
        "BSKT_TRIGGER_FROM_BLOCK": "0",
        "BSKT_TRIGGER_FINALITY": "depth:4",
        "BSKT_COMPLETE_FINALITY": "depth:6",
        "BSKT_POLL_INTERVAL_SECONDS": "0.2",
        "BSKT_HEAD_TIMEOUT_SECONDS": "0",  # this chain makes a block only when something happens
        "BSKT_CRE_GATEWAY_URL": gateway_url,
        "BSKT_CRE_WORKFLOW": WORKFLOW_ID.hex(),
        "BSKT_CRE_SIGNER_KEY": SIGNER_KEY,
        "BSKT_CRE_SECONDS_PER_TRIGGER": "0.5",
        "BSKT_MAX_MINT_TOKENS": "100000",
        "BSKT_DAILY_CAP_TOKENS": "1000000",
        "BSKT_CRE_TIMEOUT_SECONDS": "2",
        "BSKT_CLAIM_LEASE_SECONDS": "3",
        "BSKT_LISTEN": f"127.0.0.1:{_free_port()}",
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def _requests(pool: Pool) -> list[Request]:
    """Oldest first."""
    return (await inspection.requests(pool, CHAIN_ID))[::-1]


def _deposit(line: Request) -> str:
    return reference_text(line.bank_reference) or line.bank_reference.hex()


def _table(stage: Stage, lines: Sequence[Request]) -> Table:
    symbols = {basket.token: symbol for symbol, basket in stage.baskets.items()}
    table = Table("id", "basket", "deposit", "tokens", "state", "why", "attempts", "on chain")
    for line in lines:
        table.add_row(
            str(line.id),
            symbols.get(line.stablecoin, "?"),
            _deposit(line),
            f"{line.amount / TOKEN:g}",
            line.state,
            line.state_reason or "",
            str(line.attempts),
            line.chain_status,
        )
    return table
