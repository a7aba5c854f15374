"""Reorganise a real chain hundreds of times under continuous requests, and compare every row with the receipts.

    python -m tests.end_to_end.reorg_storm --reorgs 500 --seed 1

Anvil, a durable Postgres and ``bskt run --part indexer`` as a process of its own.  Between the daemon and anvil stands
a relay that cuts, swallows and delays.  Drawn from the seed:

* what many users send all the time: requests to tokens and through the factory, several in one transaction and twice
  the same, baskets that are used in the block or the transaction that creates them, forged mints, strangers' logs;
* 1 to 40 blocks deep reorgs, where finality is 40 blocks below the head.  A transaction of a block that goes stays at
  its place, moves to another block or log index, is replaced by another of its nonce, comes back later, or never does;
* whether the daemon sees a branch whole before it goes, or has to return from one that the chain's finality has passed;
* the weather on the wire.

When the storm is over, blocks are mined until all is final.  What the rows have to be is read from anvil, not through
the relay (``receipts``).
"""

from __future__ import annotations

import asyncio
import random
import shutil
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from time import monotonic
from typing import Any, Final

import asyncpg
import click

from datastore import schema
from service.demo.contracts import (
    Basket,
    Call,
    ChainRefused,
    batch_call,
    create_basket_call,
    mint_report,
    next_basket,
    raw_report,
    report_call,
    request_mint_at_factory_call,
    request_mint_call,
)
from service.embedded_postgres import EmbeddedPostgres
from service.supervision import wait
from tests import development_chain
from tests.chain_model.oracle import Oracle
from tests.end_to_end.processes import Daemon, NotInTime, Stage, daemon, open_stage, pause, until
from tests.end_to_end.receipts import read_canon, wrong_rows
from tests.end_to_end.world import AMOUNT, CHAIN_ID, WORKFLOW_ID, reference
from tests.fault_proxy import BlackHole, Cut, FaultProxy, address_of, any_fault

FINAL_AFTER_BLOCKS: Final = 40
DEEPEST_BLOCKS: Final = FINAL_AFTER_BLOCKS
USERS: Final = 6
# A sender's turn comes again after more transactions than a deep reorg takes: re-mined ones seldom wait for each other.
SENDERS: Final = 240
MEAN_PAUSE_SECONDS: Final = 0.7  # of one user
SETTLE_SECONDS: Final = 180.0  # the daemon's longest back-off is a minute
_SEEN_SHARE: Final = 0.6  # of the branches, which the daemon has indexed whole before they go
_PASSED_SHARE: Final = 0.05  # of the reorgs, after which finality passes the daemon's branch at once
_COMING_BACK_SHARE: Final = 0.3  # of the blocks, with a transaction that an earlier reorg took
_CUT_AGAIN_SECONDS: Final = 0.002
_REORGS_A_LINE: Final = 20
_LOG_TAIL_CHARACTERS: Final = 6_000

_STAYS, _MOVES, _GOES, _IS_REPLACED = "stayed", "moved", "went away", "were replaced"
_FATES: Final = {_STAYS: 3, _MOVES: 4, _GOES: 2, _IS_REPLACED: 1}
_REQUEST, _SEVERAL, _AT_FACTORY, _BASKET, _BASKET_AND_USE, _FORGED_MINT = range(6)
_KINDS: Final = {_REQUEST: 10, _SEVERAL: 4, _AT_FACTORY: 3, _BASKET: 1, _BASKET_AND_USE: 1, _FORGED_MINT: 1}


@dataclass(slots=True)
class Report:
    """What was done to the chain, and what the rows say of it.

    ``taken``: transactions of blocks that left the chain, by what became of them.  ``undone_blocks`` and
    ``orphanings``: of each reorg that the indexer recorded; it may see several of ours as one.
    """

    depths: list[int] = field(default_factory=list)
    blocks: int = 0
    sent: int = 0
    refused: int = 0
    taken: Counter[str] = field(default_factory=Counter)
    came_back: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    resets: int = 0
    troubles: int = 0
    canonical_blocks: int = 0
    canonical_transactions: int = 0
    canonical: dict[str, int] = field(default_factory=dict)
    orphaned_requests: int = 0
    requests_mined_again: int = 0
    undone_blocks: list[int] = field(default_factory=list)
    orphanings: int = 0
    seconds: float = 0
    findings: list[str] = field(default_factory=list)

    def text(self) -> str:
        """For people."""
        canonical = ", ".join(f"{count} {table}" for table, count in self.canonical.items())
        undone, requests = self.undone_blocks, self.canonical.get("mint_request", 0)
        lines = {
            "reorgs": f"{len(self.depths)}, {_spread(self.depths)} blocks deep",
            "as indexed": f"{len(undone)}, {_spread(undone)} blocks deep, a request orphaned {self.orphanings} times",
            "blocks": f"{self.blocks} mined, {self.canonical_blocks} canonical",
            "transactions": f"{self.sent} sent, {self.refused} refused, {self.canonical_transactions} canonical",
            "taken": f"{self.taken.total()}: {_counted(self.taken)}; {self.came_back} came back later",
            "requests": f"{requests} canonical, {self.requests_mined_again} of them mined more than once",
            "orphaned": f"{self.orphaned_requests} requests for good",
            "faults": f"{self.faults.total()}: {_counted(self.faults)}; {self.resets} connections reset",
            "failed ticks": str(self.troubles),
            "compared": canonical,
            "seconds": f"{self.seconds:.0f}",
            "wrong rows": str(len(self.findings)),
        }
        return "\n".join([*(f"{name:13}{text}" for name, text in lines.items()), *self.findings])


def _counted(counter: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counter.items()))


def _spread(numbers: list[int]) -> str:
    return f"{min(numbers)} to {max(numbers)} (median {statistics.median(numbers):g})" if numbers else "no"


class Storm:
    """One chain under one daemon: ``rage``, then ``settle``; ``report`` has what came of it."""

    def __init__(
        self,
        *,
        stage: Stage,
        proxy: FaultProxy,
        running: Daemon,
        reader: asyncpg.Connection[asyncpg.Record],
        senders: list[bytes],
        baskets: list[Basket],
        seed: int,
    ) -> None:
        """Nothing happens yet.

        Args:
            stage: The chain; nothing is mined there but by us.
            proxy: What the daemon takes for the chain.
            running: The daemon.
            reader: Of its database, beside it.
            senders: Who have no other transactions.
            baskets: What is asked for at first; some may be a stranger's.
            seed: Of everything that is drawn.
        """
        self.report = Report()
        self._stage = stage
        self._chain = stage.chain
        self._proxy = proxy
        self._running = running
        self._reader = reader
        self._senders = senders
        self._baskets = baskets
        self._seed = seed
        self._chance = self._drawn_for("reorgs")
        self._ending = asyncio.Event()
        self._away: list[bytes] = []
        self._mined_again: set[bytes] = set()
        self._started = monotonic()

    def _drawn_for(self, what: str) -> random.Random:
        # One source for each: what one task draws does not depend on how fast the others are.
        return random.Random(f"{what} {self._seed}")  # noqa: S311 - a repeatable plan, not a secret

    # -- traffic ------------------------------------------------------------------------------------------------------

    async def _user(self, number: int) -> None:
        """Sends all the time, from one account after the other; a refusal is what happens in a storm."""
        chance = self._drawn_for(f"user {number}")
        senders = cycle(self._senders[number::USERS])
        asked = 0
        while not self._ending.is_set():
            asked += 1
            # Now and then a deposit that was used before: which request may have it is judged anew on each branch.
            bank = f"USER-{number}-{chance.randint(1, asked) if chance.random() < 1 / 20 else asked}"
            for call in await self._calls(chance, reference(bank)):
                await self._send(call, next(senders))
            await wait(self._ending, chance.uniform(0, 2 * MEAN_PAUSE_SECONDS))

    async def _calls(self, chance: random.Random, bank: bytes) -> list[Call]:
        """One wish; the second call, if there is one, is sent at once from another account."""
        system = self._stage.system
        kind = chance.choices(list(_KINDS), list(_KINDS.values()))[0]
        basket = self._baskets[-1] if chance.random() < 1 / 4 else chance.choice(self._baskets)
        name = chance.choice((b"Basket", b"\xff\x00", "\u202ebasket".encode(), b"long " * 20))
        if kind in {_BASKET, _BASKET_AND_USE}:
            # Where it will be if nothing comes between; else the requests are for another basket, or for nobody.
            with suppress(ChainRefused):  # asked in the middle of a reorg, anvil has no state to look at
                basket = await next_basket(self._chain, system.factory)
                self._baskets.append(basket)
        create = create_basket_call(system.factory, name=name, symbol=b"B")
        requests = [
            request_mint_call(
                basket.token,
                beneficiary=chance.choice(self._senders),
                amount_wei=chance.choice((AMOUNT, 1, 0, 2**200)),
                bank_reference=bank,
            )
            for _ in range(2)
        ]
        match kind:
            case k if k == _SEVERAL:
                return [batch_call(system.batch, [*requests, requests[0]])]
            case k if k == _AT_FACTORY:
                return [
                    request_mint_at_factory_call(
                        system.factory,
                        token=basket.token,
                        beneficiary=chance.choice(self._senders),
                        amount_wei=AMOUNT,
                        bank_reference=bank,
                    )
                ]
            case k if k == _BASKET:
                return [create, requests[0]]
            case k if k == _BASKET_AND_USE:
                return [batch_call(system.batch, [requests[0], create, *requests])]
            case k if k == _FORGED_MINT:
                report = mint_report(recipient=chance.choice(self._senders), amount_wei=AMOUNT, bank_reference=bank)
                raw = raw_report(report, workflow_id=WORKFLOW_ID, execution_id=chance.randbytes(32))
                return [report_call(system.forwarder, receiver=basket.consumer, raw=raw)]
        return requests[:1]

    async def _send(self, call: Call, sender: bytes, *, nonce: int | None = None) -> None:
        try:
            await self._chain.send(
                call, sender=sender, nonce=await self._chain.nonce(sender) if nonce is None else nonce
            )
        except ChainRefused:  # a reorg, or an older transaction in the pool, took the nonce between the two questions
            self.report.refused += 1
        else:
            self.report.sent += 1

    # -- weather ------------------------------------------------------------------------------------------------------

    async def _weather(self) -> None:
        """A fault after the other on the way to the chain, with some calm between them."""
        chance = self._drawn_for("weather")
        while not self._ending.is_set():
            await wait(self._ending, chance.uniform(0, 1))
            fault = any_fault(chance)
            self.report.faults[type(fault).__name__] += 1
            self._proxy.strike(fault)
            ends_at = monotonic() + chance.uniform(0.05, 1)
            # A cut strikes once, and what was asked is asked again at once.  Some go on until that fails, too.
            again = isinstance(fault, Cut) and chance.random() < 1 / 2
            while not self._ending.is_set() and (left := ends_at - monotonic()) > 0:
                await wait(self._ending, _CUT_AGAIN_SECONDS if again else left)
                if again:
                    self._proxy.strike(Cut(after_bytes=0))
            if isinstance(fault, BlackHole) and chance.random() < 1 / 2:
                self._proxy.reset()
            self._proxy.lift()

    # -- the chain ----------------------------------------------------------------------------------------------------

    async def rage(self, *, reorgs: int) -> None:
        """Reorganise the chain so many times, at least once each as shallow and as deep as may be.

        It ends early where the daemon does, or does not come on: that is a finding.
        """
        depths = [1, DEEPEST_BLOCKS, *(self._chance.randint(1, DEEPEST_BLOCKS) for _ in range(reorgs))][:reorgs]
        self._chance.shuffle(depths)
        async with asyncio.TaskGroup() as group:
            for number in range(USERS):
                group.create_task(self._user(number))
            group.create_task(self._weather())
            try:
                for depth in depths:
                    await self._strike(depth)
            except NotInTime as error:
                self.find(str(error))
            finally:
                self._ending.set()

    async def _strike(self, depth: int) -> None:
        await self._grow()
        if self._chance.random() < _SEEN_SHARE:
            await self._until_indexed()
        await self._reorganise(depth)
        if self._chance.random() < _PASSED_SHARE:
            await self._mine(FINAL_AFTER_BLOCKS + self._chance.randint(1, 20))
        if len(self.report.depths) % _REORGS_A_LINE == 0:
            click.echo(await self._progress(), err=True)

    async def _grow(self) -> None:
        for _ in range(self._chance.choice((0, 1, 2, 3, 5, 8))):
            await self._mine()
            if self._away and self._chance.random() < _COMING_BACK_SHARE:
                raw = self._away.pop(self._chance.randrange(len(self._away)))
                with suppress(ChainRefused):  # its sender may have used the nonce for another one
                    await self._chain.rpc("eth_sendRawTransaction", "0x" + raw.hex())
                    self.report.came_back += 1
            await pause(self._chance.uniform(0, 0.2))

    async def _mine(self, blocks: int = 1) -> None:
        await self._chain.mine(blocks)
        self.report.blocks += blocks

    async def _reorganise(self, depth: int) -> None:
        head = await self._chain.head_number()
        numbers = range(head - depth + 1, head + 1)
        taken = await asyncio.gather(*(self._transactions(number) for number in numbers))
        again: list[tuple[bytes, int]] = []
        replaced: list[dict[str, Any]] = []
        for place, transactions in enumerate(taken):
            for transaction, raw in transactions:
                fate = self._chance.choices(list(_FATES), list(_FATES.values()))[0]
                self.report.taken[fate] += 1
                if fate in {_STAYS, _MOVES}:
                    again.append((raw, place if fate == _STAYS else self._chance.randrange(depth)))
                    self._mined_again.add(bytes.fromhex(transaction["hash"][2:]))
                elif fate == _IS_REPLACED:
                    replaced.append(transaction)
                elif self._chance.random() < 1 / 2:
                    self._away.append(raw)
        # In another order than before, and so at other log indexes.
        self._chance.shuffle(again)
        await self._chain.reorg(depth, again)
        self.report.depths.append(depth)
        self.report.blocks += depth
        for transaction in replaced:
            data = bytes.fromhex(transaction["input"][2:])
            # The same wish under another hash, or another wish.
            same = Call(to=bytes.fromhex(transaction["to"][2:]), data=data)
            (call, *_) = [same] if self._chance.random() < 1 / 2 else await self._calls(self._chance, data[-32:])
            sender, nonce = bytes.fromhex(transaction["from"][2:]), int(transaction["nonce"], 16)
            await self._send(call, sender, nonce=nonce)

    async def _transactions(self, number: int) -> list[tuple[dict[str, Any], bytes]]:
        block = await self._chain.rpc("eth_getBlockByNumber", hex(number), True)
        return [
            (transaction, await self._chain.raw_transaction(bytes.fromhex(transaction["hash"][2:])))
            for transaction in block["transactions"]
        ]

    async def _until_indexed(self) -> None:
        """Wait for the daemon; the chain has to stand still meanwhile.

        Raises:
            NotInTime: It does not come, or it ended.
        """
        head = await self._chain.rpc("eth_getBlockByNumber", "latest", False)
        wanted = bytes.fromhex(head["hash"][2:])

        async def done() -> bool:
            if not self._running.is_running:
                raise NotInTime(f"the daemon ended by itself with exit code {self._running.process.returncode}")
            return bool(await self._reader.fetchval("SELECT block_hash FROM cursor") == wanted)

        await until(done, what=f"block {int(head['number'], 16)} indexed", patience_seconds=SETTLE_SECONDS)

    async def _progress(self) -> str:
        undone, requests = await self._reader.fetchrow(
            "SELECT (SELECT count(*) FROM reorg), (SELECT count(*) FROM mint_request)"
        ) or (0, 0)
        report = self.report
        return (
            f"{len(report.depths)} reorgs, {undone} of them as indexed, {report.blocks} blocks, {report.sent} "
            f"transactions, {requests} requests, {report.faults.total()} faults, {monotonic() - self._started:.0f} s"
        )

    # -- afterwards ---------------------------------------------------------------------------------------------------

    async def settle(self) -> None:
        """Let everything become final and the daemon end, and compare."""
        await self._mine(FINAL_AFTER_BLOCKS + 1)  # the first block takes what is still in the pool
        head_number = await self._chain.head_number()

        async def swept() -> bool:
            final = head_number - FINAL_AFTER_BLOCKS
            return bool(await self._reader.fetchval("SELECT block_number = $1 FROM sweep", final))

        try:
            await self._until_indexed()
            await until(swept, what="every final block swept", patience_seconds=SETTLE_SECONDS)
        except NotInTime as error:
            self.find(str(error))
        if (code := await self._running.end()) != 0:
            self.find(f"the daemon ended with exit code {code}\n{self._running.said[-_LOG_TAIL_CHARACTERS:]}")
        await self._compare()
        self.report.seconds = monotonic() - self._started

    def find(self, finding: str) -> None:
        """Note what must not be."""
        self.report.findings.append(finding)

    async def _compare(self) -> None:
        report, reader = self.report, self._reader
        canon = await read_canon(self._chain, self._stage.system, chain_id=CHAIN_ID)
        for finding in await wrong_rows(reader, canon):
            self.find(finding)
        for finding in await Oracle(chain_id=CHAIN_ID, blocks_by_hash={}).wrong_stories(reader):
            self.find(finding)
        report.resets = self._proxy.resets
        report.troubles = self._running.said.count("part.failed")
        report.canonical_blocks, report.canonical_transactions = len(canon.blocks), canon.transactions
        report.canonical = {table: len(rows) for table, rows in canon.rows.items()}
        report.requests_mined_again = sum(tx_hash in self._mined_again for tx_hash in canon.asked_in)
        report.orphaned_requests = await reader.fetchval("SELECT count(*) FROM mint_request WHERE orphaned_for_good")
        undone = await reader.fetch("SELECT orphaned_blocks, orphaned_requests FROM reorg ORDER BY id")
        report.undone_blocks = [row["orphaned_blocks"] for row in undone]
        report.orphanings = sum(row["orphaned_requests"] for row in undone)


@asynccontextmanager
async def open_storm(*, anvil_binary: Path, dsn: str, seed: int, log: Path) -> AsyncIterator[Storm]:
    """Start a chain with some baskets and nothing else above its finality, and a daemon behind the relay.

    Args:
        anvil_binary: From the fixture of that name.
        dsn: Of a database with the schema and no rows.
        seed: Of everything that is drawn.
        log: Where the daemon logs to.
    """
    async with (
        open_stage(anvil_binary, baskets=3, slots_in_an_epoch=FINAL_AFTER_BLOCKS // 2, accounts=SENDERS + 2) as stage,
        FaultProxy(*address_of(stage.rpc_url)) as proxy,
    ):
        chain = stage.chain
        # It says the same as a basket's token does, and nobody announced it.
        stranger = await chain.deploy("StablecoinERC20", "(string,string)", "No basket", "NONE")
        await chain.set_automine(enabled=False)
        await chain.mine(FINAL_AFTER_BLOCKS)
        settings = stage.settings(BSKT_DATABASE_URL=dsn, BSKT_RPC_URL=f"http://127.0.0.1:{proxy.port}")
        async with daemon(settings, log, options=("--part", "indexer")) as running:
            await running.until_said("daemon.started")
            reader = await asyncpg.connect(dsn)
            try:
                yield Storm(
                    stage=stage,
                    proxy=proxy,
                    running=running,
                    reader=reader,
                    senders=(await chain.accounts())[2:],
                    baskets=[*stage.baskets, Basket(token=stranger, consumer=stranger)],
                    seed=seed,
                )
            finally:
                await reader.close()


async def run(*, anvil_binary: Path, dsn: str, seed: int, reorgs: int, log: Path) -> Report:
    """Do it all; the report's ``findings`` are empty when every row is right.  For the arguments see ``open_storm``."""
    async with open_storm(anvil_binary=anvil_binary, dsn=dsn, seed=seed, log=log) as storm:
        await storm.rage(reorgs=reorgs)
        await storm.settle()
        return storm.report


async def _on_its_own(*, seed: int, reorgs: int, folder: Path) -> Report:
    async with EmbeddedPostgres(folder / "postgres") as postgres:
        await schema.apply(postgres.dsn)
        return await run(
            anvil_binary=development_chain.binary(),
            dsn=postgres.dsn,
            seed=seed,
            reorgs=reorgs,
            log=folder / "daemon.log",
        )


@click.command(help=(__doc__ or "").partition("\n")[0])
@click.option("--reorgs", default=500, show_default=True, help="How many.")
@click.option("--seed", default=1, show_default=True, help="Of everything that is drawn.")
@click.option("--keep", is_flag=True, help="Keep the daemon's log and the database, and say where they are.")
def main(*, reorgs: int, seed: int, keep: bool) -> None:
    """Run the storm; exit code 1 when a row is wrong."""
    folder = Path(tempfile.mkdtemp(prefix="bskt-reorg-storm-"))
    folder.chmod(0o755)  # the server runs as another user than root
    try:
        report = asyncio.run(_on_its_own(seed=seed, reorgs=reorgs, folder=folder))
    finally:
        if keep:
            click.echo(f"kept in {folder}", err=True)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    click.echo(f"seed         {seed}\n{report.text()}")
    sys.exit(bool(report.findings))


if __name__ == "__main__":
    main()
