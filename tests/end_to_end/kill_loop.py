"""Kill the daemon a thousand times under continuous requests, and ask the chain what came of it.

    python -m tests.end_to_end.kill_loop --kills 1000 --seed 1

Real processes, a durable Postgres, anvil and the CRE stand-in.  Between the daemon and each of the three stands a relay
that cuts, swallows and delays.  The daemon lives many short lives; how each one ends is drawn from the seed:

* SIGKILL at a random time, from the first instruction of its start on;
* SIGKILL at a named boundary around a commit or a call, each of them in turn;
* SIGSTOP until its lease is over and a second replica has taken its place, then SIGCONT;
* SIGTERM, which must end with exit code 0;
* a crash of Postgres (immediate shutdown, then a start), or all of its sessions terminated;
* a fault of one of the three connections, during its life or from its start on.

The verdict comes from outside: from the logs and the supply of the chain, and from what the stand-in counted.  The
daemon's own rows are asked only when a block was indexed, and at the end whether they agree.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import signal
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import monotonic
from typing import TypeAlias

import aiohttp
import asyncpg
import click
from yarl import URL

from datastore import schema
from service.demo.contracts import total_supply
from service.demo.cre_stand_in import faults as cre_faults
from service.demo.cre_stand_in.ledger import Ledger
from service.embedded_postgres import EmbeddedPostgres
from service.supervision import wait
from tests import development_chain
from tests.end_to_end.processes import (
    NOWHERE,
    AtPoint,
    Daemon,
    NotInTime,
    Stage,
    crash_points,
    free_port,
    open_stage,
    pause,
    until,
)
from tests.end_to_end.world import AMOUNT, minted, reference
from tests.fault_proxy import FaultProxy, address_of, any_fault

LEASE_SECONDS = 2.5
CRE_TIMEOUT_SECONDS = 2.0
BLOCK_SECONDS = 0.25
USERS = 5
MOST_OUTSTANDING = 30
POSTGRES_RECOVERY_SECONDS = 5.0
TRANSACTION_SECONDS = 60.0  # what the datastore allows one
SETTLE_SECONDS = 300.0
_DUPLICATES_SHARE = 0.05
_FORKED_SHARE = 0.8
_ANEW, _FORKED = "started by Python anew", "forked with everything imported"
_LOG_TAIL_CHARACTERS = 6_000
_NOT_READY = 3
_ENDED = frozenset({"completed", "rejected"})
_LIVES_A_LINE = 20

CRE_CHANCES = {
    cre_faults.answer_lost(): 0.03,
    cre_faults.answer_cut_short(): 0.02,
    cre_faults.truncated_json(): 0.02,
    cre_faults.drop_before_forwarding(): 0.03,
    cre_faults.unavailable(): 0.02,
    cre_faults.bad_gateway(forwards=True): 0.02,
    cre_faults.foreign_id(): 0.01,
    cre_faults.html_page(): 0.01,
    cre_faults.time_out(): 0.02,
    cre_faults.slow_answer(0.3): 0.1,
}


Life: TypeAlias = Callable[[], Awaitable[None]]
Deposit: TypeAlias = tuple[bytes, bytes]
"""Consumer and bank reference."""


@dataclass(slots=True)
class Report:
    """What was done to the daemon, and what the chain and CRE say of it."""

    kills: Counter[str] = field(default_factory=Counter)
    points: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    exits: Counter[int] = field(default_factory=Counter)
    starts: Counter[str] = field(default_factory=Counter)
    recoveries_seconds: dict[str, list[float]] = field(default_factory=lambda: {_ANEW: [], _FORKED: []})
    postgres_recoveries_seconds: list[float] = field(default_factory=list)
    transactions: int = 0
    requests: int = 0
    attempts: int = 0
    request_ids: int = 0
    runs: int = 0
    mints: int = 0
    findings: list[str] = field(default_factory=list)

    def text(self) -> str:
        """For people."""
        slow = sum(seconds > POSTGRES_RECOVERY_SECONDS for seconds in self.postgres_recoveries_seconds)
        return "\n".join(
            [
                f"kills      {sum(self.kills.values())}: {_counted(self.kills)}",
                f"boundaries {_counted(self.points)}",
                f"faults     {sum(self.faults.values())}: {_counted(self.faults)}",
                f"exits      {_counted(self.exits)}",
                f"requests   {self.requests} deposits in {self.transactions} transactions",
                f"CRE        {self.attempts} attempts, {self.request_ids} ids, {self.runs} runs",
                f"chain      {self.mints} mints",
                f"starts     {_counted(self.starts)}",
                "recovery   to the first new indexed block:",
                *(f"  {_spread(seconds)}, {how}" for how, seconds in self.recoveries_seconds.items()),
                f"  {_spread(self.postgres_recoveries_seconds)}, after Postgres was back, {slow} of them too slow",
                *(f"FINDING    {finding}" for finding in self.findings),
                "no duplicate, no loss" if not self.findings else f"{len(self.findings)} FINDINGS",
            ]
        )


def _counted(counter: Counter[str] | Counter[int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counter.items(), key=str))


def _spread(seconds: list[float]) -> str:
    if not seconds:
        return "not measured"
    return f"p50 {statistics.median(seconds):.2f} s, max {max(seconds):.2f} s, n {len(seconds)}"


def _name(life: Life) -> str:
    return " ".join((life.func.__name__, *life.args)) if isinstance(life, partial) else life.__name__


class Loop:
    """One chain, one database, one CRE; one daemon after the other."""

    def __init__(
        self,
        *,
        stage: Stage,
        postgres: EmbeddedPostgres,
        proxies: dict[str, FaultProxy],
        log: Path,
        chance: random.Random,
    ) -> None:
        """Nothing runs yet."""
        self.report = Report()
        self._stage = stage
        self._postgres = postgres
        self._proxies = proxies
        self._log = log
        self._chance = chance
        self._deposits: dict[str, int] = {}
        self._ending = asyncio.Event()
        self._living: list[Daemon] = []
        self._reader: asyncpg.Connection[asyncpg.Record] | None = None
        self._settings = [self._environment() for _ in range(2)]

    def _environment(self) -> dict[str, str]:
        dsn = URL(self._postgres.dsn).with_port(self._proxies["database"].port)
        return self._stage.settings(
            BSKT_DATABASE_URL=str(dsn),
            BSKT_RPC_URL=f"http://127.0.0.1:{self._proxies['node'].port}",
            BSKT_CRE_GATEWAY_URL=f"http://127.0.0.1:{self._proxies['gateway'].port}/",
            BSKT_TRIGGER_FINALITY="depth:2",
            BSKT_COMPLETE_FINALITY="depth:3",
            # A kill after an attempt leaves a doubt for some seconds: doubts must not use up the room of new requests.
            BSKT_CRE_MAX_IN_FLIGHT=str(MOST_OUTSTANDING),
            BSKT_CRE_TIMEOUT_SECONDS=str(CRE_TIMEOUT_SECONDS),
            BSKT_CLAIM_LEASE_SECONDS=str(LEASE_SECONDS),
            BSKT_LISTEN=f"127.0.0.1:{free_port()}",
        )

    # -- traffic ----------------------------------------------------------------------------------------------------

    async def traffic(self) -> None:
        """Several users who never stop asking, and now and then use one deposit twice."""
        accounts = (await self._stage.chain.accounts())[2:][:USERS]
        async with asyncio.TaskGroup() as users:
            for number, account in enumerate(accounts):
                users.create_task(self._user(number, account))

    async def _user(self, number: int, account: bytes) -> None:
        chance = random.Random(f"{number} {self._chance.random()}")  # noqa: S311 - a repeatable plan, not a secret
        mine: list[str] = []
        while not self._ending.is_set():
            if await self.outstanding() < MOST_OUTSTANDING:
                again = bool(mine) and chance.random() < _DUPLICATES_SHARE
                deposit = chance.choice(mine) if again else f"USER-{number}-{len(mine)}"
                basket = self._deposits.get(deposit, chance.randrange(len(self._stage.baskets)))
                # Known before it is asked for: a mint of it is never a surprise.
                self._deposits[deposit] = basket
                mine += [] if again else [deposit]
                await self._stage.request(deposit, basket=basket, requester=account)
                self.report.transactions += 1
            await wait(self._ending, chance.uniform(0, 2))

    async def outstanding(self) -> int:
        """Deposits that were asked for and are not minted, by the chain's own supply."""
        supplies = [await total_supply(self._stage.chain, basket.token) for basket in self._stage.baskets]
        return len(self._deposits) - sum(supplies) // AMOUNT

    # -- what is seen of the daemon -----------------------------------------------------------------------------------

    async def indexed_number(self) -> int:
        """The last indexed block, read beside the relays; -1 while Postgres is away or there is none."""
        try:
            if self._reader is None or self._reader.is_closed():
                self._reader = await asyncpg.connect(self._postgres.dsn, timeout=5, command_timeout=5)
            found = await self._reader.fetchval("SELECT max(block_number) FROM cursor")
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
            return -1
        return -1 if found is None else int(found)

    async def until_indexed(self, running: Daemon, *, patience_seconds: float = 60.0) -> float:
        """Wait for the next new indexed block; the seconds that it took.

        Raises:
            NotInTime: It did not come, or the daemon ended.
        """
        started, before = monotonic(), await self.indexed_number()

        async def done() -> bool:
            if not running.is_running:
                raise NotInTime(f"the daemon ended by itself with exit code {running.process.returncode}")
            return await self.indexed_number() > max(before, 0)

        await until(done, what="a new indexed block", patience_seconds=patience_seconds)
        return monotonic() - started

    async def start(self, *, at: AtPoint = NOWHERE, replica: int = 0) -> Daemon:
        """Start a daemon, which does not outlive this life; mostly without Python's own start."""
        forked = self._chance.random() < _FORKED_SHARE
        self.report.starts[_FORKED if forked else _ANEW] += 1
        self._living.append(await Daemon.start(self._settings[replica], self._log, at=at, forked=forked))
        return self._living[-1]

    async def kill(self, running: Daemon, how: str) -> None:
        """SIGKILL it; a daemon that ended by itself before is a finding."""
        if running.is_running:
            self.report.kills[how] += 1
        code = await running.end(signal.SIGKILL)
        self.report.exits[code] += 1
        if code != -signal.SIGKILL:
            self.find(f"{how}: the daemon had ended by itself with exit code {code}", running)

    def find(self, finding: str, running: Daemon | None = None) -> None:
        """Note what must not be; the loop goes on, so that one run shows everything."""
        said = f"\n{running.said[-_LOG_TAIL_CHARACTERS:]}" if running else ""
        self.report.findings.append(finding + said)
        click.echo(f"FINDING: {finding}", err=True)

    # -- one life and its end, each -----------------------------------------------------------------------------------

    async def killed_at_random(self) -> None:
        """From the first instruction of its start on."""
        running = await self.start()
        if self._chance.random() < 1 / 2:
            await pause(self._chance.uniform(0, 3))
        else:
            seconds = await self.until_indexed(running)
            self.report.recoveries_seconds[_FORKED if running.is_forked else _ANEW].append(seconds)
            await pause(self._chance.uniform(0, 1))
        await self.kill(running, "at random")

    async def killed_at(self, point: str) -> None:
        """At a named boundary."""
        running = await self.start(at=AtPoint(name=point, times=self._chance.choice((1, 1, 2, 5))))

        async def ended() -> bool:
            return not running.is_running

        try:
            await until(ended, what=f"the boundary {point}", patience_seconds=30)
        except NotInTime:
            self.report.faults["boundary not reached"] += 1
            await self.kill(running, "at random")
            return
        code = await running.process.wait()
        self.report.exits[code] += 1
        if code == -signal.SIGKILL:
            self.report.kills["at a boundary"] += 1
            self.report.points[point] += 1
        else:
            self.find(f"{point}: the daemon ended with exit code {code}", running)

    async def stopped_beyond_its_lease(self) -> None:
        """It wakes up beside a replica that has taken its work over (hard case 67)."""
        point = self._chance.choice((None, *(each for each in crash_points() if each.startswith("invocator."))))
        running = await self.start(
            at=NOWHERE
            if point is None
            else AtPoint(name=point, times=self._chance.choice((1, 2)), number=signal.SIGSTOP)
        )

        async def stopped() -> bool:
            return running.is_stopped

        if point is None:
            await self.until_indexed(running)
            await pause(self._chance.uniform(0, 1))
            running.send(signal.SIGSTOP)
        await until(stopped, what=f"the daemon stopped at {point}")
        self.report.faults["SIGSTOP beyond the lease"] += 1
        second = await self.start(replica=1)
        # What the stopped one had locked is free when the server ends its transaction.
        await self.until_indexed(second, patience_seconds=2 * TRANSACTION_SECONDS)
        await pause(LEASE_SECONDS)
        running.send(signal.SIGCONT)
        await pause(self._chance.uniform(0, 1.5))
        for each in self._chance.sample((running, second), 2):
            await self.kill(each, "after SIGCONT")

    async def terminated(self) -> None:
        """Gracefully (hard case 102)."""
        running = await self.start()
        if self._chance.random() < 1 / 2:
            await self.until_indexed(running)
        await pause(self._chance.uniform(0, 1))
        self.report.faults["SIGTERM"] += 1
        code = await running.end(signal.SIGTERM)
        self.report.exits[code] += 1
        # Before its handler is there, while Python still imports, the signal ends it as it ends any process.
        if code not in {0, -signal.SIGTERM}:
            self.find(f"SIGTERM: exit code {code}", running)

    async def loses_postgres(self) -> None:
        """Postgres crashes, and is back after a moment."""
        running = await self.start()
        await self.until_indexed(running)
        self.report.faults["Postgres crash"] += 1
        await self._postgres.kill_immediate()
        await pause(self._chance.uniform(0, 6))
        await self._postgres.start()
        self._proxies["database"].upstream = address_of(self._postgres.dsn)
        await self._recovers_from_postgres(running)
        await self.kill(running, "after a Postgres crash")

    async def loses_its_sessions(self) -> None:
        """An administrator terminates them, several times."""
        running = await self.start()
        await self.until_indexed(running)
        for _ in range(self._chance.randint(1, 4)):
            self.report.faults["sessions terminated"] += 1
            connection = await asyncpg.connect(self._postgres.dsn)
            await connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'bskt\\_%'"
            )
            await connection.close()
            await pause(self._chance.uniform(0, 0.5))
        await self._recovers_from_postgres(running)
        await self.kill(running, "after terminated sessions")

    async def _recovers_from_postgres(self, running: Daemon) -> None:
        self.report.postgres_recoveries_seconds.append(await self.until_indexed(running))

    async def suffers_the_network(self) -> None:
        """One of the three connections fails for a while; it is killed in the middle of it, or must recover."""
        running = await self.start()
        await self.until_indexed(running)
        async with self._fault():
            if self._chance.random() < 1 / 2:
                await self.kill(running, "in a network fault")
                return
        await self.until_indexed(running)
        await self.kill(running, "after a network fault")

    async def starts_in_a_network_fault(self) -> None:
        """It may say that it is not ready, and then whoever runs it starts it again; else it must come up."""
        async with self._fault():
            running = await self.start()
            await pause(self._chance.uniform(0, 3))
        try:
            await self.until_indexed(running)
        except NotInTime:
            if running.process.returncode != _NOT_READY:
                raise
            self.report.exits[_NOT_READY] += 1
            return
        await self.kill(running, "after a start in a network fault")

    @asynccontextmanager
    async def _fault(self) -> AsyncIterator[None]:
        name = self._chance.choice(sorted(self._proxies))
        proxy = self._proxies[name]
        fault = any_fault(self._chance)
        self.report.faults[f"{type(fault).__name__} of the {name}"] += 1
        proxy.strike(fault)
        await pause(self._chance.uniform(0, 2))
        try:
            yield
        finally:
            if self._chance.random() < 1 / 2:
                proxy.reset()
            proxy.lift()

    # -- the whole ----------------------------------------------------------------------------------------------------

    async def lives(self, *, kills: int, times_each_point: int) -> None:
        """Every boundary so many times, each other end at least once, and more until there were so many kills."""
        others: dict[Life, int] = {
            self.killed_at_random: 50,
            self.stopped_beyond_its_lease: 5,
            self.terminated: 5,
            self.loses_postgres: 8,
            self.loses_its_sessions: 7,
            self.suffers_the_network: 15,
            self.starts_in_a_network_fault: 10,
        }
        plan: list[Life] = [*others, *(partial(self.killed_at, point) for point in crash_points() * times_each_point)]
        plan += self._chance.choices(list(others), list(others.values()), k=max(0, kills - len(plan)))
        self._chance.shuffle(plan)
        while plan or sum(self.report.kills.values()) < kills:
            if len(plan) % _LIVES_A_LINE == 0:
                click.echo(await self._progress(), err=True)
            await self._live(plan.pop() if plan else self.killed_at_random)

    async def _progress(self) -> str:
        kills, findings = sum(self.report.kills.values()), len(self.report.findings)
        return (
            f"{kills} kills, {len(self._deposits)} deposits, {await self.outstanding()} of them outstanding, "
            f"{findings} findings; recovery {_spread(self.report.recoveries_seconds[_FORKED])}"
        )

    async def _live(self, life: Life) -> None:
        try:
            await life()
        except NotInTime as error:
            self.find(f"{_name(life)}: {error}", self._living[-1])
        finally:
            for daemon in self._living:
                await daemon.end(signal.SIGKILL)
            self._living.clear()

    async def settle(self) -> None:
        """End the traffic, let one last daemon finish everything, and compare."""
        self._ending.set()
        last = await self.start()

        async def all_minted() -> bool:
            return await self.outstanding() == 0

        async def all_ended() -> bool:
            return not any(count for state, count in (await self._states()).items() if state not in _ENDED)

        try:
            await self.until_indexed(last)
            await until(all_minted, what="every deposit minted", patience_seconds=SETTLE_SECONDS)
            await until(all_ended, what="every request ended", patience_seconds=SETTLE_SECONDS)
        except NotInTime as error:
            self.find(str(error), last)
        states = await self._states()
        code = await last.end(signal.SIGTERM)
        if code != 0:
            self.find(f"the last daemon ended with exit code {code}", last)
        await self._compare(states)
        if self._reader is not None:
            await self._reader.close()

    async def _states(self) -> dict[str, int]:
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://{self._settings[0]['BSKT_LISTEN']}/status") as answer,
        ):
            requests: dict[str, int] = (await answer.json())["requests"]
        return requests

    async def _compare(self, states: dict[str, int]) -> None:
        report, ledger = self.report, self._stage.cre.ledger
        mints = Counter((mint.consumer, mint.bank_reference) for mint in await minted(self._stage.chain))
        wanted = {
            (self._stage.baskets[basket].consumer, reference(deposit)) for deposit, basket in self._deposits.items()
        }
        report.requests = len(wanted)
        report.attempts = len(ledger.attempts)
        report.request_ids = len(ledger.request_ids())
        report.runs = len(ledger.runs)
        report.mints = mints.total()
        for finding in (*_against_the_chain(wanted, mints), *_against_cre(ledger, len(wanted))):
            self.find(finding)
        if states["completed"] != len(wanted) or states["rejected"] != report.transactions - len(wanted):
            self.find(f"the rows disagree: {states}")


def _against_the_chain(wanted: set[Deposit], mints: Counter[Deposit]) -> Iterator[str]:
    """What the chain holds against us, by consumer and bank reference."""
    for (_, bank_reference), times in mints.items():
        if times > 1:
            yield f"duplicate: {bank_reference!r} was minted {times} times"
    for _, bank_reference in wanted - mints.keys():
        yield f"lost: {bank_reference!r} was never minted"
    for _, bank_reference in mints.keys() - wanted:
        yield f"invented: {bank_reference!r} was minted and nobody asked for it"


def _against_cre(ledger: Ledger, deposits: int) -> Iterator[str]:
    """What CRE holds against us."""
    for request_id, times in Counter(run.request_id for run in ledger.runs).items():
        if times > 1:
            yield f"CRE ran {request_id} {times} times"
    ids = ledger.request_ids()
    if len(ids) != deposits:
        yield f"{len(ids)} ids for {deposits} deposits"
    if len({(attempt.request_id, attempt.body_sha256) for attempt in ledger.attempts}) != len(ids):
        yield "an id was sent with two different bodies"
    if ledger.wrong_targets():
        yield f"{ledger.wrong_targets()} runs for a wrong target"


async def run(*, anvil_binary: Path, seed: int, kills: int, times_each_point: int, folder: Path) -> Report:
    """Do it all; the report's ``findings`` are empty when everything held."""
    async with AsyncExitStack() as stack:
        stage = await stack.enter_async_context(
            open_stage(anvil_binary, baskets=2, block_time_seconds=BLOCK_SECONDS, check_interval_seconds=0.25)
        )
        stage.cre.faults.at_random(CRE_CHANCES, seed=seed)
        postgres = await stack.enter_async_context(EmbeddedPostgres(folder / "postgres"))
        await schema.apply(postgres.dsn)
        servers = {"database": postgres.dsn, "node": stage.rpc_url, "gateway": stage.cre.url}
        proxies = {name: await stack.enter_async_context(FaultProxy(*address_of(url))) for name, url in servers.items()}
        loop = Loop(
            stage=stage,
            postgres=postgres,
            proxies=proxies,
            log=folder / "daemon.log",
            chance=random.Random(seed),  # noqa: S311 - a repeatable plan, not a secret
        )
        async with asyncio.TaskGroup() as group:
            group.create_task(loop.traffic())
            await loop.lives(kills=kills, times_each_point=times_each_point)
            await loop.settle()
    return loop.report


@click.command(help=(__doc__ or "").partition("\n")[0])
@click.option("--kills", default=1000, show_default=True, help="SIGKILLs, at least.")
@click.option("--seed", default=1, show_default=True, help="Of everything that is drawn.")
@click.option("--keep", is_flag=True, help="Keep the daemon's log and the database, and say where they are.")
def main(*, kills: int, seed: int, keep: bool) -> None:
    """Run the loop; exit code 1 when something did not hold."""
    folder = Path(tempfile.mkdtemp(prefix="bskt-kill-loop-"))
    folder.chmod(0o755)  # the server runs as another user than root
    try:
        report = asyncio.run(
            run(
                anvil_binary=development_chain.binary(),
                seed=seed,
                kills=kills,
                times_each_point=max(2, kills // 60),
                folder=folder,
            )
        )
    finally:
        if keep:
            click.echo(f"kept in {folder}", err=True)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    click.echo(report.text())
    sys.exit(bool(report.findings))


if __name__ == "__main__":
    main()
