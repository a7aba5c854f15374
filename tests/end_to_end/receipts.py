"""What the rows have to be, read from the receipts of every canonical block.

It shares no code with the indexer: each block is asked for by number, each receipt is read log by log, and what is
believed is decided here once more.  The rows are compared in both directions, so that nothing is missing and nothing is
extra.  The chain must stand still, and everything that matters must be final on it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from hashlib import sha256
from typing import Any, Final, TypeAlias

from eth_abi.abi import decode
from eth_utils.crypto import keccak

from datastore.connection import Connection
from service.demo.contracts import DevChain, System

Row: TypeAlias = tuple[object, ...]

_AT_ONCE: Final = 50
"""Questions to anvil."""
_SHOWN: Final = 10
"""Wrong rows of one kind that are told one by one."""

BASKET_CREATED: Final = keccak(text="BasketCreated(address,address,address,address,string,string)")
REQUESTED_OF_TOKEN: Final = keccak(text="MintRequested(address,address,uint256,bytes32)")
REQUESTED_OF_FACTORY: Final = keccak(text="MintRequested(address,address,address,uint256,bytes32)")
MINT_EXECUTED: Final = keccak(text="MintExecuted(address,uint256,bytes32)")
REPORT_PROCESSED: Final = keccak(text="ReportProcessed(address,bytes32,bytes2,bool)")

# What is compared of each table, in the order in which ``Canon`` builds the same rows.  $1 chain
_STATEMENTS: Final = {
    "log": """
        SELECT block_hash, log_index, block_number, tx_hash, tx_index, address, topics, data, event, undecodable IS NULL
        FROM log WHERE chain_id = $1 AND canonical
    """,
    "basket": """
        SELECT block_hash, log_index, block_number, stablecoin, consumer, creator, admin, name_raw, symbol_raw
        FROM basket WHERE chain_id = $1 AND canonical
    """,
    "mint_request": """
        SELECT
            block_hash, log_index, block_number, block_timestamp, identity, emitter, tx_hash, stablecoin, consumer,
            requester, beneficiary, amount::text, bank_reference
        FROM mint_request WHERE chain_id = $1 AND chain_status <> 'orphaned'
    """,
    "mint_execution": """
        SELECT block_hash, log_index, block_number, tx_hash, consumer, recipient, amount::text, bank_reference
        FROM mint_execution WHERE chain_id = $1 AND canonical
    """,
    "report": """
        SELECT block_hash, log_index, block_number, tx_hash, receiver, execution_id, report_id, result
        FROM report WHERE chain_id = $1 AND canonical
    """,
}
_BLOCKS: Final = "SELECT number, hash, parent_hash, timestamp FROM block WHERE chain_id = $1 AND canonical"
_CURSOR: Final = "SELECT block_number, block_hash, finalized_number FROM cursor WHERE chain_id = $1"
_REQUESTS: Final = "SELECT id, identity, state, chain_status, orphaned_for_good FROM mint_request WHERE chain_id = $1"
_SWEPT: Final = "SELECT kind, event, block_number FROM sweep_difference WHERE chain_id = $1"
_HALTED: Final = "SELECT halted_reason FROM control WHERE chain_id = $1"


class _Meant(Enum):
    """What comes of a log: nothing at all, the raw row alone, or also a row of what it means."""

    BY_A_STRANGER = auto()
    NOTHING = auto()
    SOMETHING = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One canonical block; ``timestamp`` in seconds."""

    number: int
    hash: bytes
    parent_hash: bytes
    timestamp: int


@dataclass(slots=True, kw_only=True)
class Canon:
    """What a perfect indexer holds of the chain; ``rows`` by table, ``blocks`` ascending.

    ``asked_in``: the hash of each request's transaction.
    """

    chain_id: int
    finalized: int
    blocks: list[Block] = field(default_factory=list)
    rows: dict[str, list[Row]] = field(default_factory=lambda: {table: [] for table in _STATEMENTS})
    transactions: int = 0
    asked_in: list[bytes] = field(default_factory=list)

    @property
    def tip(self) -> Block:
        """The head."""
        return self.blocks[-1]


async def read_canon(chain: DevChain, system: System, *, chain_id: int) -> Canon:
    """Ask a chain that stands still for every block and every receipt.

    Args:
        chain: Asked directly, whatever stands between it and the daemon.
        system: Whose factory and forwarder are believed.
        chain_id: A part of each request's identity.
    """
    finalized = await chain.rpc("eth_getBlockByNumber", "finalized", False)
    canon = Canon(chain_id=chain_id, finalized=int(finalized["number"], 16))
    reading = _Reading(canon, system)
    after_head = await chain.head_number() + 1
    for first in range(0, after_head, _AT_ONCE):
        numbers = range(first, min(first + _AT_ONCE, after_head))
        for block, receipts in await asyncio.gather(*(_block_and_receipts(chain, number) for number in numbers)):
            canon.blocks.append(block)
            canon.transactions += len(receipts)
            for receipt in receipts:
                reading.receipt(block, receipt)
    return canon


async def _block_and_receipts(chain: DevChain, number: int) -> tuple[Block, Sequence[Mapping[str, Any]]]:
    told = await chain.rpc("eth_getBlockByNumber", hex(number), False)
    block = Block(
        number=number,
        hash=_octets(told["hash"]),
        parent_hash=_octets(told["parentHash"]),
        timestamp=int(told["timestamp"], 16),
    )
    receipts = await chain.rpc("eth_getBlockReceipts", hex(number)) if told["transactions"] else []
    if [receipt["transactionHash"] for receipt in receipts] != told["transactions"]:
        raise AssertionError(f"anvil has other receipts than transactions in block {number}")
    return block, receipts


@dataclass(frozen=True, slots=True, kw_only=True)
class _Log:
    """One log of a receipt; ``rank``: how many equal ones its transaction has before it."""

    block: Block
    index: int
    tx_hash: bytes
    tx_index: int
    address: bytes
    topics: tuple[bytes, ...]
    data: bytes
    rank: int

    @property
    def place(self) -> Row:
        return self.block.hash, self.index, self.block.number


class _Reading:
    """Reads logs in chain order, for a basket is one only from its announcement on."""

    def __init__(self, canon: Canon, system: System) -> None:
        self._canon = canon
        self._system = system
        self._consumer_by_token: dict[bytes, bytes] = {}
        # Each tells whether somebody known says it, and adds what it means, if anything.
        self._readers: dict[bytes, tuple[str, Callable[[_Log], _Meant]]] = {
            BASKET_CREATED: ("BasketCreated", self._basket_created),
            REQUESTED_OF_TOKEN: ("MintRequested", self._requested_of_token),
            REQUESTED_OF_FACTORY: ("MintRequested", self._requested_of_factory),
            MINT_EXECUTED: ("MintExecuted", self._mint_executed),
            REPORT_PROCESSED: ("ReportProcessed", self._report_processed),
        }

    def receipt(self, block: Block, receipt: Mapping[str, Any]) -> None:
        """Read one transaction's logs."""
        ranks: Counter[Row] = Counter()
        for told in receipt["logs"]:
            address, data = _octets(told["address"]), _octets(told["data"])
            topics = tuple(_octets(topic) for topic in told["topics"])
            content = (address, topics, data)
            self._log(
                _Log(
                    block=block,
                    index=int(told["logIndex"], 16),
                    tx_hash=_octets(receipt["transactionHash"]),
                    tx_index=int(receipt["transactionIndex"], 16),
                    address=address,
                    topics=topics,
                    data=data,
                    rank=ranks[content],
                )
            )
            ranks[content] += 1

    def _log(self, log: _Log) -> None:
        if not log.topics or log.topics[0] not in self._readers:
            return
        event, read = self._readers[log.topics[0]]
        if (meant := read(log)) is not _Meant.BY_A_STRANGER:
            raw = (log.tx_hash, log.tx_index, log.address, b"".join(log.topics), log.data)
            self._canon.rows["log"].append((*log.place, *raw, event, meant is _Meant.SOMETHING))

    def _basket_created(self, log: _Log) -> _Meant:
        if log.address != self._system.factory:
            return _Meant.BY_A_STRANGER
        creator, admin, token = (_address(topic) for topic in log.topics[1:])
        # `string` is encoded as `bytes` is, and need not be UTF-8.
        _, name, symbol = decode(["address", "bytes", "bytes"], log.data)
        consumer = self._consumer_by_token[token] = _address(log.data[:32])
        self._canon.rows["basket"].append((*log.place, token, consumer, creator, admin, name, symbol))
        return _Meant.SOMETHING

    def _requested_of_token(self, log: _Log) -> _Meant:
        if log.address not in self._consumer_by_token:
            return _Meant.BY_A_STRANGER
        _, requester, beneficiary, bank_reference = log.topics
        return self._requested(log, log.address, requester, beneficiary, int.from_bytes(log.data), bank_reference)

    def _requested_of_factory(self, log: _Log) -> _Meant:
        if log.address != self._system.factory:
            return _Meant.BY_A_STRANGER
        _, token, requester, beneficiary = log.topics
        amount, bank_reference = int.from_bytes(log.data[:32]), log.data[32:]
        return self._requested(log, _address(token), requester, beneficiary, amount, bank_reference)

    def _requested(
        self, log: _Log, token: bytes, requester: bytes, beneficiary: bytes, amount: int, bank_reference: bytes
    ) -> _Meant:
        if token not in self._consumer_by_token:
            return _Meant.NOTHING
        content = sha256(b"".join(log.topics) + log.data).digest()
        identity = sha256(
            self._canon.chain_id.to_bytes(8)
            + (log.address + log.tx_hash + log.topics[0] + content)
            + (len(log.topics).to_bytes(1) + log.rank.to_bytes(4))
        ).digest()
        found = (*log.place, log.block.timestamp, identity, log.address, log.tx_hash)
        basket = (token, self._consumer_by_token[token])
        asked = (_address(requester), _address(beneficiary), str(amount), bank_reference)
        self._canon.rows["mint_request"].append((*found, *basket, *asked))
        self._canon.asked_in.append(log.tx_hash)
        return _Meant.SOMETHING

    def _mint_executed(self, log: _Log) -> _Meant:
        if log.address not in self._consumer_by_token.values():
            return _Meant.BY_A_STRANGER
        _, recipient, bank_reference = log.topics
        minted = (log.address, _address(recipient), str(int.from_bytes(log.data)), bank_reference)
        self._canon.rows["mint_execution"].append((*log.place, log.tx_hash, *minted))
        return _Meant.SOMETHING

    def _report_processed(self, log: _Log) -> _Meant:
        _, receiver, execution_id, report_id = log.topics
        if log.address != self._system.forwarder or _address(receiver) not in self._consumer_by_token.values():
            return _Meant.BY_A_STRANGER
        processed = (_address(receiver), execution_id, report_id[:2], bool(int.from_bytes(log.data)))
        self._canon.rows["report"].append((*log.place, log.tx_hash, *processed))
        return _Meant.SOMETHING


async def wrong_rows(connection: Connection, canon: Canon) -> list[str]:
    """A sentence for each row that is not what the receipts say; ``connection`` may read everything."""
    found = [*await _cursor(connection, canon), *await _blocks(connection, canon)]
    for table, statement in _STATEMENTS.items():
        rows = [tuple(row) for row in await connection.fetch(statement, canon.chain_id)]
        found += _compared(table, rows, canon.rows[table])
    found += await _standing(connection, canon)
    found += [
        f"the sweep had to look again: {row['kind']} {row['event']} in block {row['block_number']}"
        for row in await connection.fetch(_SWEPT, canon.chain_id)
    ]
    return found


async def _cursor(connection: Connection, canon: Canon) -> list[str]:
    found = []
    if (halted := await connection.fetchval(_HALTED, canon.chain_id)) is not None:
        found.append(f"indexing is halted: {halted}")
    row = await connection.fetchrow(_CURSOR, canon.chain_id)
    expected = (canon.tip.number, canon.tip.hash, canon.finalized)
    if row is None or tuple(row) != expected:
        found.append(f"cursor is {_short(tuple(row) if row else ())}, not {_short(expected)}")
    return found


async def _blocks(connection: Connection, canon: Canon) -> list[str]:
    """Canonical rows are the chain's; none is missing that is not final or holds a log."""
    rows = await connection.fetch(_BLOCKS, canon.chain_id)
    by_number = {block.number: block for block in canon.blocks}
    found = [f"block {number} is canonical twice" for number in _twice(row["number"] for row in rows)]
    for row in rows:
        block = by_number.get(row["number"])
        if block is None or row["hash"] != block.hash:
            found.append(f"block {row['number']} is canonical with hash {_short(row['hash'])}, not the chain's")
        elif row["number"] == 0:
            pass  # the anchor of the first block: its hash is all that was ever asked
        elif row["parent_hash"] not in {None, block.parent_hash} or row["timestamp"] != block.timestamp:
            found.append(f"block {row['number']} has another parent or time")
    needed = {row[2] for row in canon.rows["log"]} | set(range(canon.finalized + 1, canon.tip.number + 1))
    return found + [f"block {number} is missing" for number in needed - {row["number"] for row in rows}]


async def _standing(connection: Connection, canon: Canon) -> list[str]:
    """Where the requests stand; nothing was sent, so that one without a block is dropped, or a person's."""
    rows = await connection.fetch(_REQUESTS, canon.chain_id)
    found = [f"identity {_short(identity)} has two rows" for identity in _twice(row["identity"] for row in rows)]
    for row in rows:
        about = f"mint_request {row['id']} ({row['state']}, {row['chain_status']})"
        if row["chain_status"] != "orphaned":
            if row["chain_status"] != "finalized" or row["state"] in {"seen", "dropped"}:
                found.append(f"{about} is in a final block")
        elif not row["orphaned_for_good"] or row["state"] not in {"dropped", "review"}:
            found.append(f"{about} is in no block, for good")
    return found


def _compared(table: str, rows: list[Row], expected: list[Row]) -> Iterator[str]:
    there, wanted = Counter(rows), Counter(expected)
    for word, difference in (("missing", wanted - there), ("extra", there - wanted)):
        yield from (f"{table} is {word}: {_short(row)}" for row in list(difference)[:_SHOWN])
        if len(difference) > _SHOWN:
            yield f"{table}: {len(difference) - _SHOWN} more rows are {word}"


def _twice(items: Iterable[object]) -> list[object]:
    return [item for item, times in Counter(items).items() if times > 1]


def _address(word: bytes) -> bytes:
    return word[12:]


def _octets(text: str) -> bytes:
    return bytes.fromhex(text.removeprefix("0x"))


def _short(value: object) -> str:
    values = value if isinstance(value, tuple) else (value,)
    return ", ".join(each.hex()[:12] if isinstance(each, bytes) else repr(each) for each in values)
