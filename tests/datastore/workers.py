"""A worker for tests: the claims API with everything that a test is not about already chosen."""

from dataclasses import dataclass, field, replace
from uuid import UUID, uuid4

from datastore import claims, following
from datastore.claims import Answered, Frozen, Order, Pacing
from datastore.connection import Pool
from datastore.lifecycle import State
from datastore.rows import Block, Request
from tests.datastore.builders import ALICE, CHAIN, CONSUMER, RULES, batch, block, hash_of, pin_chain

WORKFLOW = hash_of("workflow")
PACING = Pacing(seconds_per_trigger=0, burst=1, max_in_flight=1_000)


def frozen(order: Order, *, mode: str = claims.GATEWAY, workflow_id: bytes = WORKFLOW) -> Frozen:
    body = order.nonce.hex.encode()
    return Frozen(mode=mode, workflow_id=workflow_id, receiver=CONSUMER, gateway="https://x/", signer=ALICE, body=body)


def execution_ids(order: Order) -> tuple[bytes, bytes]:
    return hash_of("legacy", order.nonce), hash_of("trigger index", order.nonce)


@dataclass(kw_only=True)
class Worker:
    pool: Pool
    pacing: Pacing = PACING
    mode: str = claims.GATEWAY
    lease_seconds: float = 60
    worker_id: UUID = field(default_factory=uuid4)

    async def claim(self, request_id: int) -> Order | None:
        return await claims.claim(
            self.pool,
            CHAIN,
            request_id,
            worker_id=self.worker_id,
            lease_seconds=self.lease_seconds,
            pacing=self.pacing,
        )

    async def claimed(self, request_id: int) -> Order:
        order = await self.claim(request_id)
        assert order is not None
        return order

    async def freeze(self, order: Order) -> bool:
        ids = () if self.mode == claims.SIMULATE else execution_ids(order)
        return await claims.freeze(self.pool, CHAIN, order, frozen(order, mode=self.mode), ids)

    async def begin(self, order: Order, *, workflow_id: bytes = WORKFLOW) -> int | None:
        return await claims.begin_attempt(
            self.pool,
            CHAIN,
            order,
            frozen(order, mode=self.mode, workflow_id=workflow_id),
            jti=uuid4(),
            worker_id=self.worker_id,
            pacing=self.pacing,
            retry_seconds=lambda number: 89 + number,
            deadline_seconds=2400,
        )

    async def answer(self, order: Order, number: int, outcome: str, **more: object) -> State:
        answered = Answered(
            outcome=outcome,
            http_status=200,
            answer=None,
            deadline_seconds=2400,
            **({"sentence": None} | more),  # type: ignore[arg-type]
        )
        return await claims.record_answer(self.pool, CHAIN, order, frozen(order), number, answered)

    async def send(self, request_id: int, outcome: str | None = "accepted", **more: object) -> Order:
        """Claim, freeze and attempt; record an answer unless the worker dies before it."""
        order = await self.claimed(request_id)
        if order.frozen is None:
            assert await self.freeze(order)
        number = await self.begin(order)
        assert number is not None
        if outcome is not None:
            await self.answer(order, number, outcome, **more)
        return order

    async def sweep(self, *, resend_after_seconds: float | None = None) -> claims.Swept:
        return await claims.sweep(
            self.pool, CHAIN, give_up_seconds=3600, deadline_seconds=2400, resend_after_seconds=resend_after_seconds
        )


async def confirmed(pool: Pool, *requests: Request) -> Block:
    """Pin the chain, record these requests of block 1, and let them be confirmed; the tip."""
    genesis, one = await pin_chain(pool), block(1)
    await following.commit(pool, CHAIN, batch(ahead(one), on=genesis, requests=requests, final=1), RULES)
    return one


def ahead(indexed: Block) -> Block:
    """The block with a time after every deadline of a test: with it indexed, the indexer's last look alone decides."""
    return replace(indexed, timestamp=4_000_000_000)


async def states(pool: Pool) -> list[str]:
    return [row["state"] for row in await pool.fetch("SELECT state FROM mint_request ORDER BY id")]


async def let_pass(pool: Pool, request_id: int, **seconds_by_column: float) -> None:
    """Set some of a request's times back, as if the seconds had passed and the index had looked since."""
    for column, seconds in seconds_by_column.items():
        assert column in {"state_changed_at", "next_attempt_at", "deadline_at", "lease_ends_at"}
        await pool.execute(
            f"UPDATE mint_request SET {column} = {column} - make_interval(secs => $2) WHERE id = $1",  # noqa: S608 - a name of ours
            request_id,
            seconds,
        )
    await look_again(pool)


async def look_again(pool: Pool) -> None:
    """As if the indexer had committed at this moment."""
    await pool.execute("UPDATE cursor SET indexed_at = clock_timestamp()")


async def let_probe(pool: Pool) -> None:
    """As if the pauses of the breakers were over, and of what was refused as well."""
    await pool.execute("UPDATE breaker SET probe_at = clock_timestamp()")
    await pool.execute("UPDATE mint_request SET next_attempt_at = clock_timestamp() WHERE state = 'confirmed'")
