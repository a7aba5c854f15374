"""Reorganise a real chain again and again under continuous requests, and compare the rows with the receipts.

    python -m tests.end_to_end.reorg_storm --reorgs 500 --seed 1

The daemon is a process of its own; between it and anvil stands a relay that cuts, swallows and delays.  What a reorg
throws out is mined again elsewhere, or never: transactions keep their order by sender, baskets lose their place and may
give their address to another one.  The verdict comes from the chain alone, read beside the relay when all is final.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import monotonic
from typing import Any, TypeAlias

import asyncpg
import click

from datastore import schema
from service.demo.contracts import Call, DevChain, create_basket_call, request_mint_call
from service.embedded_postgres import EmbeddedPostgres
from tests import development_chain
from tests.chain_model.chain import BASKET_CREATED, TOKEN_FORM
from tests.end_to_end.processes import Daemon, Stage, open_stage, pause, until
from tests.fault_proxy import FaultProxy, address_of, any_fault

DEEPEST = 40
SLOTS_IN_AN_EPOCH = 25  # final 50 blocks below the head: no reorg reaches it
USERS = 100
_FIRST_BLOCK = 1
_PATIENCE_SECONDS = 120.0
_REORGS_A_LINE = 20

Row: TypeAlias = tuple[object, ...]


@dataclass(slots=True)
class Report:
    """What happened to the chain, and what the rows say of it."""

    depths: list[int] = field(default_factory=list)
    transactions: int = 0
    mined_again: int = 0
    baskets: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    resets: int = 0
    blocks: int = 0
    requests: int = 0
    orphaned: int = 0
    reorgs_seen: int = 0
    seconds: float = 0.0
    finds_a_wrong_row: bool = False
    findings: list[str] = field(default_factory=list)

    def text(self) -> str:
        """For people."""
        depths = f"depth {min(self.depths)} to {max(self.depths)}, median {median(self.depths):g}"
        faults = ", ".join(f"{count} {name}" for name, count in sorted(self.faults.items()))
        return "\n".join(
            [
                f"reorgs       {len(self.depths)}, {depths}; {self.reorgs_seen} of them met indexed blocks",
                f"transactions {self.transactions}, {self.mined_again} mined again, {self.baskets} for new baskets",
                f"relay        {faults}; {self.resets} connections reset",
                f"chain        {self.blocks} blocks, {self.requests} requests on it, {self.orphaned} that left it",
                f"time         {self.seconds:.0f} s",
                *(f"FINDING      {finding}" for finding in self.findings),
                "wrong rows   0" if not self.findings else f"wrong rows   {len(self.findings)}",
            ]
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Mined:
    """A transaction in a block that a reorg may replace."""

    sender: bytes
    raw: bytes
    number: int


class Storm:
    """One chain that is never left alone."""

    def __init__(self, *, stage: Stage, users: list[bytes], proxy: FaultProxy, chance: random.Random) -> None:
        """Nothing happens yet."""
        self.report = Report()
        self._chain: DevChain = stage.chain
        self._factory = stage.system.factory
        self._tokens = [basket.token for basket in stage.baskets]
        self._admin, *self._users = users
        self._proxy = proxy
        self._chance = chance
        self._recent: list[_Mined] = []

    async def blow(self, reader: asyncpg.Connection[asyncpg.Record], *, reorgs: int) -> None:
        """So many reorgs, each with traffic before it and often a fault of the relay around it."""
        for number in range(reorgs):
            if number % _REORGS_A_LINE == 0:
                click.echo(f"{number} reorgs, {self.report.transactions} transactions", err=True)
            for _ in range(self._chance.randint(1, 8)):
                await self._block()
            if self._chance.random() < 1 / 3:
                await self._fault()
            if self._chance.random() < 2 / 3:
                await _indexed(reader, await self._chain.head_number())
            await self._reorg()

    async def _block(self) -> None:
        """Some users ask, and now and then a basket is made whose token is used at once."""
        sent = []
        if self._chance.random() < 1 / 8:
            symbol = f"S{self.report.baskets}"
            sent.append((self._admin, create_basket_call(self._factory, name="Storm", symbol=symbol)))
            self.report.baskets += 1
        users = self._chance.sample(self._users, self._chance.randint(0, 4))
        sent += [(user, self._request(user)) for user in users]
        hashes = [(sender, await self._chain.send(what, sender=sender)) for sender, what in sent]
        await self._chain.mine()
        number = await self._chain.head_number()
        for sender, tx_hash in hashes:
            self._recent.append(_Mined(sender=sender, raw=await self._chain.raw_transaction(tx_hash), number=number))
            receipt = await self._chain.receipt(tx_hash)
            for log in receipt.logs if receipt else ():
                if log.topics[0] == BASKET_CREATED and log.topics[3][12:] not in self._tokens:
                    self._tokens.append(log.topics[3][12:])
        self.report.transactions += len(hashes)

    def _request(self, user: bytes) -> Call:
        return request_mint_call(
            self._chance.choice(self._tokens[-12:]),
            beneficiary=user,
            amount_wei=self._chance.randint(1, 10**21),
            bank_reference=self._chance.randbytes(32),
        )

    async def _fault(self) -> None:
        fault = any_fault(self._chance)
        self.report.faults[type(fault).__name__] += 1
        self._proxy.strike(fault)
        await pause(self._chance.uniform(0, 0.5))
        if self._chance.random() < 1 / 2:
            self._proxy.reset()
        self._proxy.lift()

    async def _reorg(self) -> None:
        head = await self._chain.head_number()
        depth = self._chance.randint(1, DEEPEST)
        lowest = head - depth + 1
        left = [each for each in self._recent if each.number >= lowest]
        self._recent = [each for each in self._recent if each.number < lowest]
        # All or none of a sender's, in their order: a later one alone would have the wrong nonce.
        kept = {sender for sender in {each.sender for each in left} if self._chance.random() < 2 / 3}
        places: dict[bytes, int] = {}
        again: list[tuple[_Mined, int]] = []
        for each in left:
            if each.sender in kept:
                lag = self._chance.choice((0, 0, 1, 3))
                place = min(depth - 1, max(places.get(each.sender, 0), each.number - lowest + lag))
                places[each.sender] = place
                again.append((each, place))
        again.sort(key=lambda pair: pair[1])
        await self._chain.reorg(depth, [(each.raw, place) for each, place in again])
        self._recent += [_Mined(sender=e.sender, raw=e.raw, number=lowest + place) for e, place in again]
        self.report.depths.append(depth)
        self.report.mined_again += len(again)

    async def end(self, reader: asyncpg.Connection[asyncpg.Record]) -> None:
        """Let all become final, and the daemon come to rest."""
        self._proxy.lift()
        await self._chain.mine(2 * SLOTS_IN_AN_EPOCH + 1)
        head = await self._chain.head_number()

        async def final() -> bool:
            row = await reader.fetchrow("SELECT block_number, finalized_number FROM cursor")
            return row is not None and row["block_number"] == head and row["finalized_number"] > head - 60

        await until(final, what=f"block {head} indexed, and the storm final", patience_seconds=_PATIENCE_SECONDS)


async def _indexed(reader: asyncpg.Connection[asyncpg.Record], number: int) -> None:
    async def done() -> bool:
        at: int = await reader.fetchval("SELECT coalesce(max(block_number), -1) FROM cursor")
        return at >= number

    await until(done, what=f"block {number} indexed", patience_seconds=_PATIENCE_SECONDS)


# ---------------------------------------------------------------------------------------------------------------------
# What the chain says, read and understood without the code under test
# ---------------------------------------------------------------------------------------------------------------------
@dataclass(slots=True)
class Truth:
    """The chain's blocks, and what their receipts mean."""

    hash_by_number: dict[int, bytes] = field(default_factory=dict)
    logs: list[Row] = field(default_factory=list)
    baskets: list[Row] = field(default_factory=list)
    requests: list[Row] = field(default_factory=list)


def _octets(value: str) -> bytes:
    return bytes.fromhex(value.removeprefix("0x"))


async def truth(chain: DevChain, factory: bytes) -> Truth:
    """Every block from the first to the head, one by one."""
    found = Truth()
    consumers: dict[bytes, bytes] = {}
    for number in range(_FIRST_BLOCK, await chain.head_number() + 1):
        header: dict[str, Any] = await chain.rpc("eth_getBlockByNumber", hex(number), False)
        found.hash_by_number[number] = _octets(header["hash"])
        for receipt in await chain.rpc("eth_getBlockReceipts", hex(number)):
            for log in receipt["logs"]:
                _understand(found, consumers, log, factory)
    return found


def _understand(found: Truth, consumers: dict[bytes, bytes], log: dict[str, Any], factory: bytes) -> None:
    address, data = _octets(log["address"]), _octets(log["data"])
    topics = [_octets(topic) for topic in log["topics"]]
    place = (_octets(log["blockHash"]), int(log["logIndex"], 16))
    if topics[0] == BASKET_CREATED and address == factory:
        token, consumer = topics[3][12:], data[12:32]
        consumers[token] = consumer
        found.baskets.append((*place, token, consumer))
    elif topics[0] == TOKEN_FORM and address in consumers:
        requester, beneficiary, reference = topics[1][12:], topics[2][12:], topics[3]
        amount = int.from_bytes(data, "big")
        tx_hash = _octets(log["transactionHash"])
        found.requests.append((*place, tx_hash, address, consumers[address], requester, beneficiary, amount, reference))
    else:
        return
    found.logs.append((*place, _octets(log["transactionHash"]), address, b"".join(topics), data))


_BLOCKS = "SELECT number, hash FROM block WHERE canonical AND number > 0"
_LOGS = "SELECT block_hash, log_index, tx_hash, address, topics, data FROM log WHERE canonical"
_BASKETS = "SELECT block_hash, log_index, stablecoin, consumer FROM basket WHERE canonical"
_REQUESTS = """
SELECT block_hash, log_index, tx_hash, stablecoin, consumer, requester, beneficiary, amount, bank_reference
FROM mint_request WHERE chain_status <> 'orphaned'
"""
_SPOIL = """
UPDATE mint_request SET amount = amount + 1
WHERE id = (SELECT min(id) FROM mint_request WHERE chain_status <> 'orphaned')
"""
_ORPHANS = "SELECT block_hash FROM mint_request WHERE chain_status = 'orphaned'"


async def wrong_rows(reader: asyncpg.Connection[asyncpg.Record], told: Truth) -> list[str]:
    """A sentence for each row that is missing, and for each that should not be there."""
    found = [
        f"canonical block {row['number']} is not the chain's"
        for row in await reader.fetch(_BLOCKS)
        if told.hash_by_number.get(row["number"]) != row["hash"]
    ]
    for table, statement, expected in (
        ("log", _LOGS, told.logs),
        ("basket", _BASKETS, told.baskets),
        ("request", _REQUESTS, told.requests),
    ):
        found += _compared(table, [_plain(row) for row in await reader.fetch(statement)], expected)
    canonical = set(told.hash_by_number.values())
    found += ["a request on the chain is orphaned" for row in await reader.fetch(_ORPHANS) if row[0] in canonical]
    return found


def _plain(row: asyncpg.Record) -> Row:
    return tuple(value if isinstance(value, bytes) else int(value) for value in row)


def _compared(table: str, rows: Iterable[Row], expected: Iterable[Row]) -> list[str]:
    there, wanted = Counter(rows), Counter(expected)
    return [
        *(f"{table} is missing: {_shown(row)}" for row in (wanted - there)),
        *(f"{table} is extra: {_shown(row)}" for row in (there - wanted)),
    ]


def _shown(row: Row) -> str:
    return ", ".join(value.hex()[:12] if isinstance(value, bytes) else str(value) for value in row)


async def _finds_a_wrong_row(reader: asyncpg.Connection[asyncpg.Record], told: Truth) -> bool:
    """Whether one wrong amount among all rows would be found; undone at once."""
    transaction = reader.transaction()
    await transaction.start()
    await reader.execute("SET LOCAL session_replication_role = replica")
    await reader.execute(_SPOIL)
    found = await wrong_rows(reader, told)
    await transaction.rollback()
    return len(found) == 2  # one is missing, one is extra


async def run(*, anvil_binary: Path, seed: int, reorgs: int, folder: Path) -> Report:
    """Do it all; the report's ``findings`` are empty when the rows are the chain's."""
    chance = random.Random(seed)  # noqa: S311 - a repeatable plan, not a secret
    started = monotonic()
    async with (
        open_stage(anvil_binary, baskets=3, slots_in_an_epoch=SLOTS_IN_AN_EPOCH, accounts=USERS) as stage,
        EmbeddedPostgres(folder / "postgres") as postgres,
        FaultProxy(*address_of(stage.rpc_url)) as proxy,
    ):
        await schema.apply(postgres.dsn)
        await stage.chain.set_automine(False)
        # A reorg may be as deep as the chain is high at first.
        await stage.chain.mine(DEEPEST)
        settings = stage.settings(
            BSKT_DATABASE_URL=postgres.dsn,
            BSKT_RPC_URL=f"http://127.0.0.1:{proxy.port}",
            BSKT_TRIGGER_FROM_BLOCK="1000000000",  # everything is held: this is about the index
            BSKT_TRIGGER_FINALITY="depth:3",
            BSKT_COMPLETE_FINALITY="finalized",
        )
        running = await Daemon.start(settings, folder / "daemon.log")
        reader = await asyncpg.connect(postgres.dsn)
        storm = Storm(stage=stage, users=await stage.chain.accounts(), proxy=proxy, chance=chance)
        report = storm.report
        try:
            await _indexed(reader, 1)
            await storm.blow(reader, reorgs=reorgs)
            await storm.end(reader)
            told = await truth(stage.chain, stage.system.factory)
            report.findings += await wrong_rows(reader, told)
            report.finds_a_wrong_row = await _finds_a_wrong_row(reader, told)
            report.blocks, report.requests = len(told.hash_by_number), len(told.requests)
            report.orphaned = await reader.fetchval("SELECT count(*) FROM mint_request WHERE chain_status = 'orphaned'")
            report.reorgs_seen = await reader.fetchval("SELECT count(*) FROM reorg")
            report.resets, report.seconds = proxy.resets, monotonic() - started
            if not running.is_running:
                report.findings.append(f"the daemon ended by itself:\n{running.said[-6_000:]}")
        finally:
            await reader.close()
            await running.end()
    return report


@click.command(help=(__doc__ or "").partition("\n")[0])
@click.option("--reorgs", default=500, show_default=True, help="How many.")
@click.option("--seed", default=1, show_default=True, help="Of everything that is drawn.")
def main(*, reorgs: int, seed: int) -> None:
    """Run the storm; exit code 1 when a row is wrong."""
    folder = Path(tempfile.mkdtemp(prefix="bskt-reorg-storm-"))
    folder.chmod(0o755)  # the server runs as another user than root
    try:
        report = asyncio.run(run(anvil_binary=development_chain.binary(), seed=seed, reorgs=reorgs, folder=folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    click.echo(report.text())
    sys.exit(bool(report.findings))


if __name__ == "__main__":
    main()
