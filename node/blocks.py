"""Blocks, logs and receipts, parsed once and strictly from what a node answers.  Pure.

A node is not believed: what is missing, of another type or length, out of its block or there twice makes the whole
answer malformed, never a row (hard cases 18, 30, 31).  What is parsed is trusted from here on: hashes are 32 bytes,
addresses 20, numbers fit a signed 64-bit integer (indices one of 32 bits), logs are in chain order and each is there
once.
"""

from __future__ import annotations

import reprlib
from binascii import unhexlify
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import chain, pairwise
from operator import attrgetter, itemgetter
from typing import Final, NamedTuple, TypeVar

from node.inconsistency import Inconsistency

T = TypeVar("T")

ADDRESS_BYTES: Final = 20
HASH_BYTES: Final = 32
BLOOM_BYTES: Final = 256
MAX_TOPICS: Final = 4

_QUANTITY_LIMIT: Final = 2**63  # Postgres's bigint
_INDEX_LIMIT: Final = 2**31  # Postgres's integer
_QUANTITY_CHARACTERS: Final = len("0x") + 16
_HASH_CHARACTERS: Final = len("0x") + 2 * HASH_BYTES
_PLACE: Final = itemgetter(0, 1)
_ROOT_OF_NOTHING: Final = "0x56e81f171bcc55a6ff8345e692c0f86e5b48e01b996cadc001622fb5e363b421"
"""Of an empty trie: the Keccak-256 hash of the RLP of the empty string."""


class Malformed(ValueError):
    """An answer is not what the protocol says, or not to the question; nothing may be taken from it."""

    def __init__(self, reason: str, kind: Inconsistency = Inconsistency.MALFORMED) -> None:
        self.kind = kind
        super().__init__(reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """A mined block without its transactions.

    ``raw_tx_hashes`` are the hashes of these as the node wrote them, ``None`` if it did not: few are ever looked at.
    """

    number: int
    hash: bytes
    parent_hash: bytes
    timestamp: int
    logs_bloom: bytes
    raw_tx_hashes: Sequence[str] | None = field(default=None, repr=False, compare=False)


class Log(NamedTuple):
    """A log of a mined block; ``block_timestamp`` only where the node tells it, ``log_index`` counts in the block.

    A tuple and no dataclass, because logs come by the hundred thousand: it is made five times as fast.  Its first two
    fields are its place, so that logs sort into chain order.
    """

    block_number: int
    log_index: int
    block_hash: bytes
    tx_hash: bytes
    tx_index: int
    address: bytes
    topics: tuple[bytes, ...]
    data: bytes
    block_timestamp: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What a mined transaction did; ``status`` is 1, or 0 where it reverted (and left no logs)."""

    tx_hash: bytes
    tx_index: int
    status: int
    block_hash: bytes
    block_number: int
    logs: tuple[Log, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LogFilter:
    """Which logs: from any of ``addresses`` (none named: from anyone), with one of the topics at each position.

    A position that is ``None`` takes any topic, as do positions after the last; an empty one is refused, because
    nodes take it for "any".
    """

    addresses: tuple[bytes, ...] = ()
    topics: tuple[tuple[bytes, ...] | None, ...] = ()

    def __post_init__(self) -> None:
        if any(position is not None and not position for position in self.topics):
            raise ValueError("a topic position without topics: name some, or None for any")

    def to_rpc(self) -> dict[str, object]:
        """The filter's part of the parameter of ``eth_getLogs``; the caller adds the blocks."""
        rpc: dict[str, object] = {
            "topics": [position and [to_hex(topic) for topic in position] for position in self.topics]
        }
        if self.addresses:
            rpc["address"] = [to_hex(address) for address in self.addresses]
        return rpc

    def matches(self, log: Log) -> bool:
        """What a node does with the filter, done here."""
        return (
            (not self.addresses or log.address in self.addresses)
            and len(log.topics) >= len(self.topics)
            and all(
                wanted is None or topic in wanted
                for wanted, topic in zip(self.topics, log.topics, strict=False)  # a log may have more topics
            )
        )

    def split(self, max_addresses: int) -> tuple[LogFilter, ...]:
        """The same filter as several, none with more addresses than a node takes (hard case 39)."""
        if len(self.addresses) <= max_addresses:
            return (self,)
        starts = range(0, len(self.addresses), max_addresses)
        return tuple(replace(self, addresses=self.addresses[start : start + max_addresses]) for start in starts)


@dataclass(frozen=True, slots=True, kw_only=True)
class ByAddress:
    """Logs asked for by who may emit them: nothing that strangers emit comes along.

    ``announced`` says whom the logs that were found make known, as filters: these are asked about the same blocks.
    """

    filters: tuple[LogFilter, ...]
    announced: Callable[[Sequence[Log]], Sequence[LogFilter]] = lambda _: ()


def to_hex(octets: bytes) -> str:
    """Data for a node."""
    return "0x" + octets.hex()


def parse_optional(parse: Callable[[object], T]) -> Callable[[object], T | None]:
    """``parse``, for a method that may answer null."""
    return lambda value: None if value is None else parse(value)


@lru_cache(maxsize=16_384)  # block numbers, indices and times repeat from log to log
def parse_quantity(value: object) -> int:
    """A number below 2⁶³ in the protocol's only spelling: no leading zeros.

    Raises:
        Malformed: It is something else.
    """
    if type(value) is not str or len(value) > _QUANTITY_CHARACTERS or not value.startswith("0x"):
        raise _malformed("quantity", value)
    try:
        number = int(value, 16)
    except ValueError as error:
        raise _malformed("quantity", value) from error
    # int() takes signs, blanks and underscores too; what it read must be what was written.
    if number >= _QUANTITY_LIMIT or hex(number) != value.lower():
        raise _malformed("quantity", value)
    return number


@lru_cache(maxsize=16_384)
def parse_index(value: object) -> int:
    """The place of a log or a transaction in its block: below 2³¹, which no block comes near.

    Raises:
        Malformed: It is something else.
    """
    index = parse_quantity(value)
    if index >= _INDEX_LIMIT:
        raise _malformed("index", value)
    return index


def parse_hash(value: object) -> bytes:
    """32 bytes.

    Raises:
        Malformed: It is something else.
    """
    if type(value) is str and len(value) == _HASH_CHARACTERS and value.startswith("0x"):
        try:
            return unhexlify(value[2:])
        except ValueError:
            pass
    raise _malformed("hash", value)


@lru_cache(maxsize=4_096)  # few contracts emit, and their logs share the memory of the address
def parse_address(value: object) -> bytes:
    """20 bytes; upper case carries no meaning (hard case 51).

    Raises:
        Malformed: It is something else.
    """
    return _octets_of_length(value, ADDRESS_BYTES)


_parse_repeated_hash = lru_cache(maxsize=1_024)(parse_hash)  # the logs of a block and a transaction follow each other


def parse_octets(value: object) -> bytes:
    """Any number of bytes.

    Raises:
        Malformed: It is not hex of whole bytes.
    """
    if type(value) is not str or not value.startswith("0x"):
        raise _malformed("data", value)
    try:
        return unhexlify(value[2:])  # bytes.fromhex() would skip blanks
    except ValueError as error:
        raise _malformed("data", value) from error


def parse_header(value: object) -> Header:
    """One block as ``eth_getBlockBy…`` gives it; a pending one (no hash) is malformed, as is a time of 0 after block 0.

    Raises:
        Malformed: It is something else.
    """
    block = _object("block", value)
    try:
        header = Header(
            number=parse_quantity(block["number"]),
            hash=parse_hash(block["hash"]),
            parent_hash=parse_hash(block["parentHash"]),
            timestamp=parse_quantity(block["timestamp"]),
            logs_bloom=_octets_of_length(block["logsBloom"], BLOOM_BYTES),
            raw_tx_hashes=_listed_transactions(block),
        )
    except (KeyError, TypeError) as error:
        raise _malformed("block", value) from error
    if header.number and not header.timestamp:
        raise Malformed(f"block {header.number} has the time 0", Inconsistency.BLOCK_TIME)
    return header


def parse_transaction_hashes(value: object) -> tuple[bytes, ...]:
    """The transactions of a block that was asked for without their bodies.

    Raises:
        Malformed: It is something else.
    """
    transactions = _object("block", value).get("transactions")
    try:
        return tuple(parse_hash(tx_hash) for tx_hash in _array("transactions", transactions))
    except TypeError as error:
        raise _malformed("transactions", transactions) from error


def parse_log(value: object) -> Log:
    """One log of a mined block; one that is pending or was removed is malformed (hard case 18).

    A time of 0 is none: geth writes it in receipts for "not known" (ethereum/go-ethereum#32334).

    Raises:
        Malformed: It is something else.
    """
    entry = _object("log", value)
    try:
        topics = entry["topics"]
        if entry.get("removed", False) is not False or type(topics) is not list or len(topics) > MAX_TOPICS:
            raise _malformed("log", value)
        timestamp = entry.get("blockTimestamp")
        return Log(
            parse_quantity(entry["blockNumber"]),
            parse_index(entry["logIndex"]),
            _parse_repeated_hash(entry["blockHash"]),
            _parse_repeated_hash(entry["transactionHash"]),
            parse_index(entry["transactionIndex"]),
            parse_address(entry["address"]),
            tuple(map(parse_hash, topics)),
            parse_octets(entry["data"]),
            None if timestamp is None else parse_quantity(timestamp) or None,
        )
    except (KeyError, TypeError) as error:  # TypeError: an array or object where a string belongs cannot be looked up
        raise _malformed("log", value) from error


def parse_logs(value: object) -> tuple[Log, ...]:
    """An answer of ``eth_getLogs``, which is in chain order.

    Raises:
        Malformed: It is something else, a log is there twice or out of order, or two blocks claim one height.
    """
    logs = [parse_log(entry) for entry in _array("logs", value)]
    ordered = in_chain_order(logs)
    # Every node gives them in order: an answer that is not was put together by something that may lose some.
    if ordered != tuple(logs):
        raise Malformed("logs out of order", Inconsistency.UNSORTED_LOGS)
    return ordered


def in_chain_order(logs: Iterable[Log]) -> tuple[Log, ...]:
    """``logs`` by block and index.

    Raises:
        Malformed: Two logs claim one place, or two blocks one height (hard case 31).
    """
    ordered = sorted(logs, key=_PLACE)
    for (earlier, index, its_hash, *_), (later, later_index, later_hash, *_) in pairwise(ordered):
        if earlier == later:
            if index == later_index:
                raise Malformed(f"two logs {index} in block {later}", Inconsistency.DUPLICATE_LOGS)
            if its_hash != later_hash:
                raise Malformed(f"two blocks {later}", Inconsistency.OTHER_BLOCK)
    return tuple(ordered)


def merge_logs(answers: Sequence[tuple[Log, ...]]) -> tuple[Log, ...]:
    """The logs of several filters over the same blocks; what more than one filter found is there once.

    Raises:
        Malformed: The answers contradict each other.
    """
    found = [answer for answer in answers if answer]
    if len(found) <= 1:
        return found[0] if found else ()
    return in_chain_order(dict.fromkeys(chain.from_iterable(found)))


def require_range(logs: Sequence[Log], first: int, last: int) -> None:
    """Check that ordered logs are from the blocks ``first`` to ``last``.

    Raises:
        Malformed: The node answered another question.
    """
    if logs and not first <= logs[0].block_number <= logs[-1].block_number <= last:
        raise Malformed(f"logs outside the blocks {first} to {last}", Inconsistency.OTHER_BLOCK)


def require_block(items: Iterable[Log | Receipt], block_hash: bytes) -> None:
    """Check that all are from that block (hard case 1).

    Raises:
        Malformed: The node answered for another branch.
    """
    for item in items:
        if item.block_hash != block_hash:
            raise Malformed(
                f"asked for block {to_hex(block_hash)}, got one of {to_hex(item.block_hash)}", Inconsistency.OTHER_BLOCK
            )


def require_header(items: Iterable[Log], header: Header) -> None:
    """Check that all are from the block of that header, of its time, and from its transactions (hard cases 1, 20).

    A log under another transaction's hash would be another request, and another mint.

    Raises:
        Malformed: The node answered for another block, or mixed transactions up.
    """
    for log in items:
        if (log.block_hash, log.block_number) != (header.hash, header.number):
            raise Malformed(
                f"a log of block {header.number} says that it is of block {log.block_number}", Inconsistency.OTHER_BLOCK
            )
        if log.block_timestamp not in {None, header.timestamp}:
            raise Malformed(
                f"a log of block {header.number} says that its time is {log.block_timestamp}, not {header.timestamp}",
                Inconsistency.BLOCK_TIME,
            )
        listed = [tx_hash.lower() for tx_hash in (header.raw_tx_hashes or ())[log.tx_index : log.tx_index + 1]]
        if header.raw_tx_hashes and listed != [to_hex(log.tx_hash)]:
            raise Malformed(
                f"transaction {log.tx_index} of block {header.number} is not {to_hex(log.tx_hash)}",
                Inconsistency.OTHER_TRANSACTION,
            )


def parse_receipt(value: object) -> Receipt:
    """One receipt, whose logs are its own.

    Raises:
        Malformed: It is something else.
    """
    entry = _object("receipt", value)
    try:
        receipt = Receipt(
            tx_hash=parse_hash(entry["transactionHash"]),
            tx_index=parse_index(entry["transactionIndex"]),
            status=parse_quantity(entry["status"]),
            block_hash=parse_hash(entry["blockHash"]),
            block_number=parse_quantity(entry["blockNumber"]),
            logs=parse_logs(entry["logs"]),
        )
    except (KeyError, TypeError) as error:
        raise _malformed("receipt", value) from error
    place = (receipt.tx_hash, receipt.tx_index, receipt.block_hash, receipt.block_number)
    if any((log.tx_hash, log.tx_index, log.block_hash, log.block_number) != place for log in receipt.logs):
        raise Malformed(f"the receipt of {to_hex(receipt.tx_hash)} holds a log of another transaction")
    if receipt.status not in {0, 1}:
        raise _malformed("receipt", value)
    return receipt


def parse_receipts(value: object) -> tuple[Receipt, ...]:
    """The receipts of one block, in the order of its transactions.

    Raises:
        Malformed: They are something else, or not those of all transactions of one block.
    """
    return in_block_order([parse_receipt(entry) for entry in _array("receipts", value)])


def in_block_order(receipts: Iterable[Receipt]) -> tuple[Receipt, ...]:
    """``receipts`` of one block by transaction.

    Raises:
        Malformed: One is missing or there twice, or two logs claim one place.
    """
    ordered = tuple(sorted(receipts, key=attrgetter("tx_index")))
    if [receipt.tx_index for receipt in ordered] != list(range(len(ordered))):
        raise Malformed("receipts that do not number the transactions of a block", Inconsistency.RECEIPTS_MISSING)
    in_chain_order(log for receipt in ordered for log in receipt.logs)
    return ordered


def _octets_of_length(value: object, length: int) -> bytes:
    # The length comes first: a megabyte where a hash belongs is not even decoded.
    if type(value) is not str or len(value) != 2 + 2 * length:
        raise _malformed(f"{length} bytes", value)
    return parse_octets(value)


def _object(what: str, value: object) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise _malformed(what, value)
    return value


def _array(what: str, value: object) -> Sequence[object]:
    if not isinstance(value, list):
        raise _malformed(what, value)
    return value


def _listed_transactions(block: Mapping[str, object]) -> Sequence[str] | None:
    """The hashes of a block's transactions; ``None`` where they are not listed.

    A list that is empty against the root of the transactions' trie was left out, too.
    """
    listed, root = block.get("transactions"), block.get("transactionsRoot", _ROOT_OF_NOTHING)
    if not isinstance(listed, list) or not all(isinstance(entry, str) for entry in listed):
        return None
    return listed if listed or root == _ROOT_OF_NOTHING else None


def _malformed(what: str, value: object) -> Malformed:
    return Malformed(f"not a {what}: {reprlib.repr(value)}")
