"""What the indexer hands to the datastore: rows, already decoded and checked.

Hashes are 32 bytes, addresses 20, amounts wei.  ``Mint`` and ``Report`` are kept whether they were expected or not.

What comes by the hundred thousand is a named tuple: it is made five times as fast as a frozen dataclass, and ``COPY``
takes it as it is.  Its fields are the columns of its table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple, TypeAlias
from uuid import UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockRef:
    """A block by number and hash."""

    number: int
    hash: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A header to store; ``parent_hash`` is ``None`` for a final block whose header was not needed."""

    number: int
    hash: bytes
    parent_hash: bytes | None
    timestamp: int


class LogRow(NamedTuple):
    """A raw log of known origin; ``topics`` are concatenated; ``undecodable`` says why it could not be decoded."""

    block_number: int
    block_hash: bytes
    log_index: int
    tx_hash: bytes
    tx_index: int
    address: bytes
    topics: bytes
    data: bytes
    event: str
    undecodable: str | None


class Basket(NamedTuple):
    """A ``BasketCreated`` of the configured factory."""

    block_number: int
    block_hash: bytes
    log_index: int
    stablecoin: bytes
    consumer: bytes
    creator: bytes
    admin: bytes
    name_raw: bytes
    symbol_raw: bytes
    name: str
    symbol: str


class Request(NamedTuple):
    """A ``MintRequested`` with everything that follows from it (design §3)."""

    identity: bytes
    nonce: UUID
    emitter: bytes
    tx_hash: bytes
    block_number: int
    block_hash: bytes
    block_timestamp: int
    log_index: int
    stablecoin: bytes
    consumer: bytes
    requester: bytes
    beneficiary: bytes
    amount: int
    predicted_amount: int | None
    bank_reference: bytes
    expected_reference: bytes


class Mint(NamedTuple):
    """A ``MintExecuted`` of a known consumer."""

    block_number: int
    block_hash: bytes
    log_index: int
    tx_hash: bytes
    consumer: bytes
    recipient: bytes
    amount: int
    bank_reference: bytes


class Report(NamedTuple):
    """A ``ReportProcessed`` of the configured forwarder for a known consumer."""

    block_number: int
    block_hash: bytes
    log_index: int
    tx_hash: bytes
    receiver: bytes
    execution_id: bytes
    report_id: bytes
    result: bool


class RoleChange(NamedTuple):
    """A basket's token has another minter, burner or owner than it was born with; ``sentence`` says which."""

    block_number: int
    block_hash: bytes
    log_index: int
    stablecoin: bytes
    sentence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Finality:
    """Up to which block number something is final enough, seen from the commit's new tip.

    ``finalized`` and ``safe`` are the chain's own tags (never above the tip); ``trigger`` and ``complete`` follow from
    the settings: a tag, or the linked depth.
    """

    finalized: int
    safe: int
    trigger: int
    complete: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One commit of the indexer: leave what is above ``ancestor``, add what follows it.

    ``expected`` is the cursor that the batch was built on; ``ancestor`` equals it unless the branch was left.
    ``blocks`` ascend; the last one is the new cursor.  Everything else belongs to these blocks.  ``baskets_version`` is
    of the baskets that it was made with; ``None`` where that does not matter.
    """

    expected: BlockRef
    ancestor: BlockRef
    blocks: Sequence[Block]
    head_number: int
    finality: Finality
    logs: Sequence[LogRow] = ()
    baskets: Sequence[Basket] = ()
    requests: Sequence[Request] = ()
    mints: Sequence[Mint] = ()
    reports: Sequence[Report] = ()
    role_changes: Sequence[RoleChange] = ()
    baskets_version: int | None = None


Place: TypeAlias = tuple[bytes, int]
"""Where a log is: the hash of its block, and its index there."""


class Kind(StrEnum):
    """In which way a row is not what the chain says."""

    MISSING = "missing"
    EXTRA = "extra"
    DIFFERENT = "different"
    MISTIMED = "mistimed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One thing in which the rows of a final block are not what the chain says.

    ``event`` is what the log says, or ``block`` for the block itself.  Of a block, ``block_hash`` is the one that is
    stored and ``log_index`` is ``None``.  ``stored`` is the raw row where there is one.  A block that is ``MISTIMED`` is
    on the chain, and a request in it has another time than the block's header.
    """

    kind: Kind
    event: str
    block_number: int
    block_hash: bytes
    log_index: int | None = None
    stored: LogRow | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRange:
    """The canonical rows of some blocks, by the place of the log that they came from.

    Of a request: identity, consumer and block time.
    """

    hash_by_number: Mapping[int, bytes] = field(default_factory=dict)
    logs: Mapping[Place, LogRow] = field(default_factory=dict)
    decoded: frozenset[Place] = frozenset()
    requests: Mapping[Place, tuple[bytes, bytes, int]] = field(default_factory=dict)
