"""A chain in memory: a tree of blocks, what each transaction does on the branch where it is mined, and what is true.

Nothing of the daemon's is used here, so that no mistake of its decoding or observing can hide in both.  A transaction
is a list of wishes; what it emits depends on the branch (the factory numbers its baskets, so after a reorg one address
may name another basket, hard case 38).  ``Block.said`` is what a perfect indexer has to record of that block.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from hashlib import sha256
from typing import Final, Literal, TypeAlias

from eth_abi.abi import encode
from eth_hash.auto import keccak

from tests.chain_model.profiles import ETHEREUM, Profile

FACTORY: Final = b"\xfa" * 20
SECOND_FACTORY: Final = b"\xfb" * 20
FORWARDER: Final = b"\xf0" * 20
STRANGER: Final = b"\x66" * 20

GENESIS_TIMESTAMP: Final = 1_700_000_000

BASKET_CREATED: Final = keccak(b"BasketCreated(address,address,address,address,string,string)")
TOKEN_FORM: Final = keccak(b"MintRequested(address,address,uint256,bytes32)")
FACTORY_FORM: Final = keccak(b"MintRequested(address,address,address,uint256,bytes32)")
MINT_EXECUTED: Final = keccak(b"MintExecuted(address,uint256,bytes32)")
REPORT_PROCESSED: Final = keccak(b"ReportProcessed(address,bytes32,bytes2,bool)")
ROLE_EVENTS: Final = {
    "MintRoleGranted": keccak(b"MintRoleGranted(address)"),
    "MintRoleRevoked": keccak(b"MintRoleRevoked(address)"),
    "BurnRoleGranted": keccak(b"BurnRoleGranted(address)"),
    "BurnRoleRevoked": keccak(b"BurnRoleRevoked(address)"),
    "OwnershipTransferred": keccak(b"OwnershipTransferred(address,address)"),
}
TRANSFER: Final = keccak(b"Transfer(address,address,uint256)")


def digest(*parts: object) -> bytes:
    """32 bytes that follow from ``parts``."""
    return sha256(repr(parts).encode()).digest()


def user(number: int) -> bytes:
    return digest("user", number)[:20]


def token_address(ordinal: int) -> bytes:
    """Where the factory's next basket goes: its nonce decides, not who asks."""
    return digest("token", ordinal)[:20]


# -- what a transaction wants -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateBasket:
    """With ``again`` the factory announces its first token once more, which no honest one can do."""

    name: bytes
    symbol: bytes
    again: bool = False
    factory: bytes = FACTORY


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A ``MintRequested``; of a basket that the branch does not have, the token form reverts and emits nothing."""

    ordinal: int
    form: Literal["token", "factory"]
    requester: bytes
    beneficiary: bytes
    amount: int
    reference: bytes
    factory: bytes = FACTORY


@dataclass(frozen=True, slots=True, kw_only=True)
class Deliver:
    """What a forwarder does: the consumer mints (or somebody forges that), then the report is processed."""

    consumer: bytes
    recipient: bytes
    amount: int
    reference: bytes
    execution_id: bytes
    mints: bool
    report: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeRole:
    """Somebody else may mint, burn or rule a token; in the transaction that announces it, so it was born."""

    ordinal: int
    event: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Garble:
    """A log with a known emitter and topic that no honest encoder made."""

    ordinal: int
    event: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """A log of unknown origin, or one that nobody asks for."""

    kind: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OnEven:
    """Happens in blocks of even number only: the same transaction, other logs."""

    wish: Noise | Ask


Wish: TypeAlias = CreateBasket | Ask | Deliver | ChangeRole | Garble | Noise | OnEven


@dataclass(frozen=True, slots=True, kw_only=True)
class Transaction:
    hash: bytes
    wishes: tuple[Wish, ...]


# -- what a block holds, and what it says -----------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Emitted:
    address: bytes
    topics: tuple[bytes, ...]
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class MinedLog:
    block_hash: bytes
    block_number: int
    tx_hash: bytes
    tx_index: int
    log_index: int
    emitted: Emitted


@dataclass(frozen=True, slots=True, order=True)
class RequestKey:
    """Who a request is, whichever block it is in (design §3)."""

    emitter: bytes
    tx_hash: bytes
    topics: bytes
    data: bytes
    rank: int


# Rows as the oracle reads them from the tables; see there for the columns.
Row: TypeAlias = tuple[object, ...]


@dataclass(slots=True, kw_only=True)
class Said:
    logs: list[Row] = field(default_factory=list)
    baskets: list[Row] = field(default_factory=list)
    requests: dict[RequestKey, Row] = field(default_factory=dict)
    mints: list[Row] = field(default_factory=list)
    reports: list[Row] = field(default_factory=list)


@dataclass(eq=False, kw_only=True)
class Block:
    number: int
    hash: bytes
    parent: Block | None
    timestamp: int
    transactions: tuple[Transaction, ...]
    logs: tuple[MinedLog, ...]
    said: Said
    consumer_by_token: dict[bytes, bytes]
    """The baskets of this branch after this block, in the order of their birth."""
    profile: Profile = ETHEREUM

    @property
    def parent_hash(self) -> bytes:
        return self.parent.hash if self.parent else bytes(32)

    @cached_property
    def bloom(self) -> bytes:
        if self.profile.bloom != "true":
            return (b"\xff" if self.profile.bloom == "full" else b"\0") * 256
        bits = 0
        for mined in self.logs:
            if self.is_system(mined.tx_index):
                continue
            for value in (mined.emitted.address, *mined.emitted.topics):
                bits |= _bloom_bits(value)
        return bits.to_bytes(256, "big")

    def is_system(self, tx_index: int) -> bool:
        """Whether the chain itself made this transaction."""
        return self.profile.system_type is not None and tx_index == 0 and self.parent is not None

    def branch(self) -> Iterator[Block]:
        """This block and its ancestors, downwards."""
        block: Block | None = self
        while block is not None:
            yield block
            block = block.parent

    def at(self, number: int) -> Block | None:
        return next((block for block in self.branch() if block.number == number), None)

    def descends_from(self, other: Block) -> bool:
        return any(block is other for block in self.branch())


@lru_cache(maxsize=65_536)
def _bloom_bits(value: bytes) -> int:
    octets = keccak(value)
    return sum({1 << (int.from_bytes(octets[pair : pair + 2], "big") & 2047) for pair in (0, 2, 4)})


def genesis(profile: Profile = ETHEREUM) -> Block:
    return Block(
        profile=profile,
        number=0,
        hash=digest("genesis"),
        parent=None,
        timestamp=GENESIS_TIMESTAMP,
        transactions=(),
        logs=(),
        said=Said(),
        consumer_by_token={},
    )


def mine(parent: Block, transactions: Sequence[Transaction], *, salt: int) -> Block:
    """The block that holds these transactions on top of ``parent``; ``salt`` tells twins apart."""
    number, profile = parent.number + 1, parent.profile
    if profile.system_type is not None:
        emitted = (Noise(kind="transfer"),) if profile.system_logs else ()
        transactions = (Transaction(hash=digest("system", parent.hash, salt), wishes=emitted), *transactions)
    block_hash = digest(parent.hash, salt, [transaction.hash for transaction in transactions])
    timestamp = GENESIS_TIMESTAMP + int(profile.seconds * number)
    mining = _Mining(
        block_hash=block_hash,
        number=number,
        timestamp=timestamp,
        consumer_by_token=dict(parent.consumer_by_token),
    )
    for index, transaction in enumerate(transactions):
        mining.run(index, transaction)
    return Block(
        number=number,
        hash=block_hash,
        parent=parent,
        timestamp=timestamp,
        transactions=tuple(transactions),
        logs=tuple(mining.logs),
        said=mining.said,
        consumer_by_token=mining.consumer_by_token,
        profile=profile,
    )


class _Mining:
    """One block in the making."""

    def __init__(
        self, *, block_hash: bytes, number: int, timestamp: int, consumer_by_token: dict[bytes, bytes]
    ) -> None:
        self.logs: list[MinedLog] = []
        self.said = Said()
        self.consumer_by_token = consumer_by_token
        self._block_hash = block_hash
        self._number = number
        self._timestamp = timestamp
        self._index = 0
        self._transaction = Transaction(hash=b"", wishes=())
        self._ranks: Counter[Emitted] = Counter()
        self._born: set[bytes] = set()

    def run(self, index: int, transaction: Transaction) -> None:
        self._index, self._transaction, self._ranks, self._born = index, transaction, Counter(), set()
        for wish in transaction.wishes:
            self._do(wish)

    def _do(self, wish: Wish) -> None:
        match wish:
            case OnEven():
                if self._number % 2 == 0:
                    self._do(wish.wish)
            case CreateBasket():
                self._create(wish)
            case Ask():
                self._ask(wish)
            case Deliver():
                self._deliver(wish)
            case ChangeRole():
                self._change_role(wish)
            case Garble():
                self._garble(wish)
            case Noise():
                self._emit(_NOISE[wish.kind])

    def _emit(self, emitted: Emitted, *, event: str | None = None, decodable: bool = True) -> tuple[bytes, int]:
        """Add a log; with an ``event`` it is one to keep.  Gives its key."""
        mined = MinedLog(
            block_hash=self._block_hash,
            block_number=self._number,
            tx_hash=self._transaction.hash,
            tx_index=self._index,
            log_index=len(self.logs),
            emitted=emitted,
        )
        self.logs.append(mined)
        if event is not None:
            self.said.logs.append(
                (
                    self._block_hash,
                    mined.log_index,
                    self._number,
                    mined.tx_hash,
                    mined.tx_index,
                    emitted.address,
                    b"".join(emitted.topics),
                    emitted.data,
                    event,
                    decodable,
                )
            )
        return self._block_hash, mined.log_index

    def _create(self, wish: CreateBasket) -> None:
        is_known = wish.again and bool(self.consumer_by_token)
        token = token_address(0 if is_known else len(self.consumer_by_token))
        consumer = digest("consumer", self._transaction.hash, token)[:20]
        creator, admin = user(0), user(1)
        emitted = Emitted(
            address=wish.factory,
            topics=(BASKET_CREATED, _word(creator), _word(admin), _word(token)),
            data=encode(["address", "bytes", "bytes"], [consumer, wish.name, wish.symbol]),
        )
        key = self._emit(emitted, event="BasketCreated", decodable=not is_known)
        if is_known:
            return
        self.consumer_by_token[token] = consumer
        self._born.add(token)
        self.said.baskets.append((*key, token, consumer, creator, admin, wish.name, wish.symbol))

    def _ask(self, wish: Ask) -> None:
        token = token_address(wish.ordinal)
        consumer = self.consumer_by_token.get(token)
        if wish.form == "token":
            if consumer is None:
                return
            emitted = Emitted(
                address=token,
                topics=(TOKEN_FORM, _word(wish.requester), _word(wish.beneficiary), wish.reference),
                data=encode(["uint256"], [wish.amount]),
            )
        else:
            emitted = Emitted(
                address=wish.factory,
                topics=(FACTORY_FORM, _word(token), _word(wish.requester), _word(wish.beneficiary)),
                data=encode(["uint256", "bytes32"], [wish.amount, wish.reference]),
            )
        rank = self._ranks[emitted]
        self._ranks[emitted] += 1
        block_hash, log_index = self._emit(emitted, event="MintRequested", decodable=consumer is not None)
        if consumer is None:
            return  # a factory may name a token that it never announced: kept, but no request
        key = RequestKey(emitted.address, self._transaction.hash, b"".join(emitted.topics), emitted.data, rank)
        self.said.requests[key] = (
            block_hash,
            log_index,
            self._number,
            self._timestamp,
            emitted.address,
            self._transaction.hash,
            token,
            consumer,
            wish.requester,
            wish.beneficiary,
            wish.amount,
            wish.reference,
        )

    def _deliver(self, wish: Deliver) -> None:
        known = wish.consumer in self.consumer_by_token.values()
        if wish.mints:
            emitted = Emitted(
                address=wish.consumer,
                topics=(MINT_EXECUTED, _word(wish.recipient), wish.reference),
                data=encode(["uint256"], [wish.amount]),
            )
            key = self._emit(emitted, event="MintExecuted" if known else None)
            if known:
                minted = (*key, self._transaction.hash, wish.consumer, wish.recipient, wish.amount, wish.reference)
                self.said.mints.append(minted)
        if wish.report is not None:
            topics = (REPORT_PROCESSED, _word(wish.consumer), wish.execution_id, b"\0\1" + bytes(30))
            emitted = Emitted(address=FORWARDER, topics=topics, data=encode(["bool"], [wish.report]))
            key = self._emit(emitted, event="ReportProcessed" if known else None)
            if known:
                row = (*key, self._transaction.hash, wish.consumer, wish.execution_id, b"\0\1", wish.report)
                self.said.reports.append(row)

    def _change_role(self, wish: ChangeRole) -> None:
        token = token_address(wish.ordinal)
        who = (user(1), user(2)) if wish.event == "OwnershipTransferred" else (user(1),)
        emitted = Emitted(address=token, topics=(ROLE_EVENTS[wish.event], *map(_word, who)), data=b"")
        is_kept = token in self.consumer_by_token and token not in self._born
        self._emit(emitted, event=wish.event if is_kept else None)

    def _garble(self, wish: Garble) -> None:
        tokens = list(self.consumer_by_token)
        if wish.event == "BasketCreated":
            bomb = encode(["uint256"] * 3, [1, 2**255, 2**256 - 1])
            self._emit(
                Emitted(address=FACTORY, topics=(BASKET_CREATED,) * 4, data=bomb), event=wish.event, decodable=False
            )
        elif tokens:
            dirty = b"\xff" * 32
            topics = (
                (ROLE_EVENTS[wish.event], dirty) if wish.event in ROLE_EVENTS else (TOKEN_FORM, dirty, dirty, dirty)
            )
            emitted = Emitted(address=tokens[wish.ordinal % len(tokens)], topics=topics, data=bytes(32))
            self._emit(emitted, event=wish.event, decodable=False)


def _word(address: bytes) -> bytes:
    return bytes(12) + address


_NOISE: Final = {
    # An impostor's basket, request, role and mint, a transfer that nobody filters for, a report for another's contract.
    "basket": Emitted(
        address=STRANGER,
        topics=(BASKET_CREATED, _word(user(0)), _word(user(0)), _word(STRANGER)),
        data=encode(["address", "bytes", "bytes"], [STRANGER, b"Impostor", b"IMP"]),
    ),
    "request": Emitted(
        address=STRANGER, topics=(TOKEN_FORM, _word(user(0)), _word(user(0)), bytes(32)), data=encode(["uint256"], [1])
    ),
    "transfer": Emitted(
        address=token_address(0), topics=(TRANSFER, _word(user(0)), _word(user(1))), data=encode(["uint256"], [1])
    ),
    "report": Emitted(
        address=FORWARDER,
        topics=(REPORT_PROCESSED, _word(STRANGER), digest("foreign"), b"\0\1" + bytes(30)),
        data=encode(["bool"], [True]),
    ),
    "role": Emitted(address=STRANGER, topics=(ROLE_EVENTS["MintRoleGranted"], _word(STRANGER)), data=b""),
    "mint": Emitted(address=STRANGER, topics=(MINT_EXECUTED, _word(user(0)), bytes(32)), data=encode(["uint256"], [1])),
}
NOISES: Final = tuple(_NOISE)


def said_by(blocks: Iterable[Block]) -> Said:
    """What a perfect indexer has to hold of these blocks, all of one branch."""
    total = Said()
    for block in blocks:
        total.logs += block.said.logs
        total.baskets += block.said.baskets
        total.requests |= block.said.requests
        total.mints += block.said.mints
        total.reports += block.said.reports
    return total
