"""The daemon as processes of its own, beside a real chain, a real database and the CRE stand-in."""

import asyncio
import multiprocessing
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Self

import aiohttp

from invocator.signing import Signer
from service.demo.anvil import Anvil
from service.demo.contracts import Basket, DevChain, System, create_basket, deploy_system, request_mint
from service.demo.cre_stand_in import CreStandIn, Workflow
from service.supervision import wait
from tests.end_to_end.world import AMOUNT, CHAIN_ID, KEY, ROOT, SECRET, USER, WORKFLOW_ID, reference

PATIENCE_SECONDS = 60.0
_BEAT_SECONDS = 0.05
# A Python that starts anew imports for longer than the daemon then needs to come up.  Where a thousand lives are
# wanted, a daemon is forked from a process that has imported everything and done nothing.
_FORKING = multiprocessing.get_context("forkserver")
_FORKING.set_forkserver_preload(
    [
        __name__,
        "node.provider",
        "service.commands.run",
        "service.wiring",
        "uvicorn.lifespan.off",
        "uvicorn.protocols.http.h11_impl",
        "uvicorn.protocols.websockets.auto",
    ]
)
_ANEW = """
import sys
from tests.end_to_end.processes import run_daemon
run_daemon(sys.argv[1], *map(int, sys.argv[2:4]), *sys.argv[4:])
"""


def run_daemon(point: str, times: int, number: int, *options: str) -> None:
    """Be ``bskt run`` with options, and send this process a signal when it reaches a boundary for the n-th time."""
    from service import wiring  # noqa: PLC0415 - as late as the command itself imports it
    from service.cli import main  # noqa: PLC0415 - see above

    left = times

    def reached(at: str) -> None:
        nonlocal left
        left -= at == point
        if at == point and left == 0:
            os.kill(os.getpid(), number)

    wiring.run = partial(wiring.run, reached=reached)
    main(["run", *options])


def _run_forked(settings: Mapping[str, str], log: Path, point: str, times: int, number: int, *options: str) -> None:
    os.environ.clear()  # noqa: TID251 - becomes the process that the settings are for
    os.environ.update(settings)  # noqa: TID251 - see above
    with log.open("ab") as output, Path(os.devnull).open("r+b") as nothing:
        for stream, number_of_stream in ((nothing, 0), (nothing, 1), (output, 2)):
            os.dup2(stream.fileno(), number_of_stream)
    run_daemon(point, times, number, *options)


class NotInTime(Exception):
    """What was waited for did not come; the message says what, and what the daemon said last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AtPoint:
    """A daemon signals itself where its code tells that it reached this boundary."""

    name: str
    times: int = 1
    number: signal.Signals = signal.SIGKILL


NOWHERE = AtPoint(name="-", times=0)


def crash_points() -> tuple[str, ...]:
    """Every boundary that the daemon's parts tell of, read from their source, so that a new one is not forgotten."""
    sources = [path.read_text() for part in ("indexer", "invocator") for path in sorted((ROOT / part).glob("*.py"))]
    found = re.findall(r'reached\(\s*"((?:indexer|invocator)\.\w+)"', "\n".join(sources))
    return tuple(dict.fromkeys(found))


async def until(done: Callable[[], Awaitable[bool]], *, what: str, patience_seconds: float = PATIENCE_SECONDS) -> None:
    """Look again and again until something is so.

    Raises:
        NotInTime: It never was.
    """
    try:
        async with asyncio.timeout(patience_seconds):
            while not await done():
                await wait(asyncio.Event(), _BEAT_SECONDS)
    except TimeoutError:
        raise NotInTime(f"not within {patience_seconds:g} s: {what}") from None


async def pause(seconds: float) -> None:
    """Let time pass in which a fault is to last, or a victim to live."""
    await wait(asyncio.Event(), seconds)


def free_port() -> int:
    """A port that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _size(log: Path) -> int:
    return log.stat().st_size if log.exists() else 0


class _Forked:
    """The few members of an asyncio subprocess that are used here, for a forked process."""

    def __init__(self, process: ForkServerProcess) -> None:
        self._process = process
        self.pid = process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: signal.Signals) -> None:
        if self.pid is not None and self.returncode is None:
            os.kill(self.pid, number)

    async def wait(self) -> int:
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self._process.sentinel, ended.set)
        try:
            while (code := self.returncode) is None:
                await ended.wait()
        finally:
            loop.remove_reader(self._process.sentinel)
        return code


class Daemon:
    """One process of ``bskt run``; its log goes to a file, so that it never waits for a reader."""

    def __init__(self, process: asyncio.subprocess.Process | _Forked, log: Path, log_start_bytes: int) -> None:
        self.process = process
        self._log = log
        self._log_start_bytes = log_start_bytes

    @classmethod
    async def start(
        cls,
        settings: Mapping[str, str],
        log: Path,
        *,
        at: AtPoint = NOWHERE,
        forked: bool = False,
        options: Sequence[str] = (),
    ) -> Self:
        """Start it; it is not ready yet when this returns.

        Args:
            settings: Its whole environment.
            log: Where it logs to, behind what is there.
            at: Where it signals itself.
            forked: From a process that has imported everything, instead of a Python that starts anew.
            options: Of ``bskt run``.
        """
        log_start_bytes = _size(log)
        arguments = (at.name, at.times, int(at.number), *options)
        if forked:
            process = _FORKING.Process(target=_run_forked, args=(dict(settings), log, *arguments))
            await asyncio.to_thread(process.start)
            return cls(_Forked(process), log, log_start_bytes)
        with log.open("ab") as output:
            anew = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", _ANEW, *map(str, arguments)),
                env=dict(settings),
                cwd=ROOT,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=output,
            )
        return cls(anew, log, log_start_bytes)

    @property
    def is_forked(self) -> bool:
        """Whether it was spared Python's own start."""
        return isinstance(self.process, _Forked)

    @property
    def said(self) -> str:
        """Everything that it logged so far."""
        return "" if not self._log.exists() else self._log.read_bytes()[self._log_start_bytes :].decode()

    @property
    def is_running(self) -> bool:
        """Whether the process lives, stopped or not."""
        return self.process.returncode is None

    async def until_said(self, text: str) -> None:
        """Wait until it logged ``text``.

        Raises:
            NotInTime: It did not, or it ended before.
        """

        async def done() -> bool:
            if text not in (said := self.said) and not self.is_running:
                raise NotInTime(f"the daemon ended with {self.process.returncode}, without {text!r}:\n{said}")
            return text in said

        await until(done, what=f"{text!r} in the log {self._log}")

    @property
    def is_stopped(self) -> bool:
        """Whether SIGSTOP has taken effect."""
        try:
            stat = Path(f"/proc/{self.process.pid}/stat").read_text()
        except FileNotFoundError:
            return False
        return stat.rpartition(")")[2].split()[0] == "T"

    def send(self, number: signal.Signals) -> None:
        """Send a signal, if the process lives."""
        if self.is_running:
            self.process.send_signal(number)

    async def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal that ends it, and give its exit code (negative: the signal that killed it)."""
        self.send(number)
        return await self.process.wait()


@asynccontextmanager
async def daemon(
    settings: Mapping[str, str], log: Path, *, at: AtPoint = NOWHERE, options: Sequence[str] = ()
) -> AsyncIterator[Daemon]:
    """A daemon that does not outlive the block; see ``Daemon.start``."""
    started = await Daemon.start(settings, log, at=at, options=options)
    try:
        yield started
    finally:
        await started.end(signal.SIGKILL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Everything that a daemon needs but its database, and the settings that name it."""

    rpc_url: str
    chain: DevChain
    system: System
    baskets: tuple[Basket, ...]
    cre: CreStandIn

    def settings(self, **changes: str) -> dict[str, str]:
        """The environment of a daemon; name the database, and what else is different."""
        return {
            "PATH": os.environ["PATH"],  # noqa: TID251 - the child needs a PATH, and no other setting of ours
            "BSKT_CHAIN_ID": str(CHAIN_ID),
            "BSKT_RPC_URL": self.rpc_url,
            "BSKT_INSTANCE_SECRET": SECRET.hex(),
            "BSKT_FACTORY_ADDRESS": "0x" + self.system.factory.hex(),
            "BSKT_FORWARDER_ADDRESS": "0x" + self.system.forwarder.hex(),
            "BSKT_START_BLOCK": "1",
            "BSKT_TRIGGER_FROM_BLOCK": "0",
            "BSKT_TRIGGER_FINALITY": "depth:1",
            "BSKT_COMPLETE_FINALITY": "depth:1",
            "BSKT_POLL_INTERVAL_SECONDS": "0.05",
            "BSKT_CRE_GATEWAY_URL": self.cre.url,
            "BSKT_CRE_WORKFLOW": WORKFLOW_ID.hex(),
            "BSKT_CRE_SIGNER_KEY": KEY,
            "BSKT_CRE_SECONDS_PER_TRIGGER": "0",
            "BSKT_CRE_TIMEOUT_SECONDS": "2",
            "BSKT_CLAIM_LEASE_SECONDS": "3",
            "BSKT_LISTEN": f"127.0.0.1:{free_port()}",
            **changes,
        }

    async def request(self, bank: str, *, basket: int = 0, requester: bytes = USER) -> None:
        """A user asks for ``AMOUNT``; the request is mined when this returns."""
        await request_mint(
            self.chain,
            self.baskets[basket].token,
            beneficiary=requester,
            amount_wei=AMOUNT,
            bank_reference=reference(bank),
            requester=requester,
        )


@asynccontextmanager
async def open_stage(
    anvil_binary: Path,
    *,
    baskets: int = 1,
    slots_in_an_epoch: int = 1,
    block_time_seconds: float | None = None,
    accounts: int = 10,
    check_interval_seconds: float = 0.05,
) -> AsyncIterator[Stage]:
    """Start a chain with contracts, and CRE.

    Args:
        anvil_binary: From the fixture of that name.
        baskets: How many are created.
        slots_in_an_epoch: A block is final when twice as many are above it.
        block_time_seconds: A block every so often; without it, one for each transaction.
        accounts: How many users there are.
        check_interval_seconds: How often CRE looks whether its deliveries are mined.
    """
    async with (
        await Anvil.start(
            anvil_binary,
            slots_in_an_epoch=slots_in_an_epoch,
            block_time_seconds=block_time_seconds,
            accounts=accounts,
        ) as anvil,
        aiohttp.ClientSession() as session,
    ):
        chain = DevChain(session=session, url=anvil.url)
        system = await deploy_system(chain)
        created = [
            await create_basket(chain, system.factory, name=f"Test Dollar {number}", symbol=f"TUSD{number}")
            for number in range(baskets)
        ]
        workflow = Workflow(workflow_id=WORKFLOW_ID, authorized_keys=frozenset({Signer.from_text(KEY).address}))
        async with CreStandIn(
            rpc_url=anvil.url,
            forwarder=system.forwarder,
            workflows=[workflow],
            check_interval_seconds=check_interval_seconds,
        ) as cre:
            yield Stage(rpc_url=anvil.url, chain=chain, system=system, baskets=tuple(created), cre=cre)
