"""Rows for tests, each valid by itself; name only what the test is about."""

from dataclasses import replace
from hashlib import sha256
from uuid import UUID

from datastore.connection import Pool
from datastore.following import Rules
from datastore.pinning import Pin, pin_first_start
from datastore.reference import expected_reference
from datastore.rows import Basket, Batch, Block, BlockRef, Finality, LogRow, Mint, Report, Request, RoleChange

CHAIN = 31337
TOKEN, CONSUMER, ALICE, BOB = (bytes([n]) * 20 for n in (0x70, 0xC0, 0xA1, 0xB0))
ETHER = 10**18


def hash_of(*parts: object) -> bytes:
    return sha256(repr(parts).encode()).digest()


def block(number: int, *, fork: str = "a", parent_fork: str | None = None) -> Block:
    parent = hash_of("block", number - 1, parent_fork or fork)
    return Block(
        number=number, hash=hash_of("block", number, fork), parent_hash=parent, timestamp=1_700_000_000 + number
    )


def reference(text: str) -> bytes:
    return text.encode().ljust(32, b"\0")


def request(name: str, at: Block, *, log_index: int = 0, bank: str | None = None, **changes: object) -> Request:
    nonce = UUID(bytes=hash_of("nonce", name)[:16])
    bank_reference = reference(bank or name)
    made = Request(
        identity=hash_of("identity", name),
        nonce=nonce,
        emitter=TOKEN,
        tx_hash=hash_of("tx", name),
        block_number=at.number,
        block_hash=at.hash,
        block_timestamp=at.timestamp,
        log_index=log_index,
        stablecoin=TOKEN,
        consumer=CONSUMER,
        requester=ALICE,
        beneficiary=ALICE,
        amount=ETHER,
        predicted_amount=ETHER,
        bank_reference=bank_reference,
        expected_reference=expected_reference(bank_reference, nonce),
    )
    return made._replace(**changes)  # type: ignore[arg-type]


def mint(at: Block, *, of: Request, log_index: int = 1, tx: str = "delivery", amount: int | None = None) -> Mint:
    return Mint(
        block_number=at.number,
        block_hash=at.hash,
        log_index=log_index,
        tx_hash=hash_of("tx", tx),
        consumer=of.consumer,
        recipient=of.beneficiary,
        amount=of.amount if amount is None else amount,
        bank_reference=of.expected_reference,
    )


def report(at: Block, *, execution_id: bytes, result: bool = True, log_index: int = 2, tx: str = "delivery") -> Report:
    return Report(
        block_number=at.number,
        block_hash=at.hash,
        log_index=log_index,
        tx_hash=hash_of("tx", tx),
        receiver=CONSUMER,
        execution_id=execution_id,
        report_id=b"\0\1",
        result=result,
    )


def basket(
    at: Block, *, log_index: int = 0, token: bytes = TOKEN, symbol: str = "AUD", name: str = "Australian Dollar"
) -> Basket:
    return Basket(
        block_number=at.number,
        block_hash=at.hash,
        log_index=log_index,
        stablecoin=token,
        consumer=CONSUMER,
        creator=BOB,
        admin=BOB,
        name_raw=name.encode(),
        symbol_raw=symbol.encode(),
        name=name,
        symbol=symbol,
    )


def role_change(at: Block, *, log_index: int = 91, token: bytes = TOKEN, event: str = "MintRoleRevoked") -> RoleChange:
    return RoleChange(
        block_number=at.number,
        block_hash=at.hash,
        log_index=log_index,
        stablecoin=token,
        sentence=f"{event}(minter=0x{CONSUMER.hex()})",
    )


def _log_of(change: RoleChange) -> LogRow:
    return LogRow(
        block_number=change.block_number,
        block_hash=change.block_hash,
        log_index=change.log_index,
        tx_hash=hash_of("tx", change.block_hash, change.log_index),
        tx_index=0,
        address=change.stablecoin,
        topics=bytes(32),
        data=b"",
        event=change.sentence.partition("(")[0],
        undecodable=None,
    )


def batch(
    *blocks: Block,
    on: Block,
    leaving: Block | None = None,
    final: int = -1,
    baskets: tuple[Basket, ...] = (),
    logs: tuple[LogRow, ...] = (),
    requests: tuple[Request, ...] = (),
    mints: tuple[Mint, ...] = (),
    reports: tuple[Report, ...] = (),
    role_changes: tuple[RoleChange, ...] = (),
) -> Batch:
    """Blocks on top of ``on``; ``leaving`` is the tip that is left for them; everything up to ``final`` is final.

    A change of roles brings its raw log along.
    """
    expected = leaving or on
    return Batch(
        expected=BlockRef(number=expected.number, hash=expected.hash),
        ancestor=BlockRef(number=on.number, hash=on.hash),
        blocks=blocks,
        head_number=blocks[-1].number,
        finality=Finality(finalized=final, safe=final, trigger=final, complete=final),
        baskets=baskets,
        logs=(*logs, *(_log_of(change) for change in role_changes)),
        requests=requests,
        mints=mints,
        reports=reports,
        role_changes=role_changes,
    )


def with_finality(made: Batch, finality: Finality) -> Batch:
    return replace(made, finality=finality)


RULES = Rules(policy=lambda _: None, contest=True, first_trigger_block_number=0)


async def pin_chain(pool: Pool) -> Block:
    """Pin the chain so that block 1 is the next to index; gives the block before it."""
    pin = Pin(
        chain_id=CHAIN,
        genesis_hash=hash_of("genesis"),
        factory_address=bytes(20),
        factory_code_hash=hash_of("code"),
        forwarder_address=bytes(20),
        secret_check=b"check",
    )
    await pin_first_start(pool, pin, start=block(1), first_trigger_block_number=0)
    return block(0)
