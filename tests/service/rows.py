"""Rows as a running daemon leaves them, and the command line that looks at them."""

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from click.testing import CliRunner, Result

from datastore import claims, following
from datastore.claims import Answered, Frozen, Pacing, Says
from datastore.connection import Pool
from datastore.rows import Batch, Block, Finality, LogRow, Request
from service.cli import main
from tests.datastore.builders import (
    ALICE,
    BOB,
    CHAIN,
    CONSUMER,
    RULES,
    basket,
    batch,
    block,
    hash_of,
    pin_chain,
    with_finality,
)
from tests.datastore.workers import let_probe

PACING = Pacing(seconds_per_trigger=60, burst=1, max_in_flight=5)
WORKFLOW = hash_of("workflow")
SIGNER = bytes.fromhex("f39Fd6e51aad88F6F4ce6aB8827279cffFb92266")  # of the first well-known anvil key


def execution_id(request_id: int) -> bytes:
    return hash_of("execution", request_id)


def asked_for(request: Request, at: Block) -> LogRow:
    """The raw log of a request."""
    return LogRow(
        block_number=at.number,
        block_hash=at.hash,
        log_index=request.log_index,
        tx_hash=request.tx_hash,
        tx_index=0,
        address=request.emitter,
        topics=bytes(32),
        data=b"",
        event="MintRequested",
        undecodable=None,
    )


@dataclass
class Chain:
    """A chain that grows block by block, and an invocator that works when it is told to."""

    indexer: Pool
    invocator: Pool
    tip: Block
    worker: Any = field(default_factory=uuid4)

    @classmethod
    async def pinned(cls, indexer: Pool, invocator: Pool) -> "Chain":
        tip = await pin_chain(indexer)
        await claims.list_workflows(invocator, CHAIN, [WORKFLOW])
        return cls(indexer, invocator, tip)

    async def commit(self, made: Batch) -> None:
        await following.commit(self.indexer, CHAIN, made, RULES)
        if made.blocks:
            self.tip = made.blocks[-1]

    async def grow(self, *, final: int = -1, trigger: int | None = None, **contents: Any) -> Block:
        """One more block, with what it holds; up to ``trigger`` it is final enough to be sent."""
        after = block(self.tip.number + 1)
        made = batch(after, on=self.tip, final=final, **contents)
        if trigger is not None:
            made = with_finality(made, Finality(finalized=final, safe=final, trigger=trigger, complete=final))
        await self.commit(made)
        return after

    def next(self) -> Block:
        return block(self.tip.number + 1)

    async def claim(self) -> claims.Order:
        (order, *_) = await claims.waiting(self.invocator, CHAIN, limit=1)
        claimed = await claims.claim(
            self.invocator, CHAIN, order.request_id, worker_id=self.worker, lease_seconds=60, pacing=PACING
        )
        assert claimed is not None
        return claimed

    async def let_probe(self) -> None:
        """As if the pause of the breaker were over."""
        await let_probe(self.invocator)

    async def send(
        self, outcome: str | None, sentence: str | None = None, *, refused: Says = Says.INSTANCE_REFUSED
    ) -> int:
        """Claim the next waiting request and call CRE for it; without an outcome its answer is never known."""
        order = await self.claim()
        frozen = order.frozen or Frozen(
            mode="gateway",
            workflow_id=WORKFLOW,
            receiver=CONSUMER,
            gateway="https://gateway.example/",
            signer=SIGNER,
            body=b"{}",
        )
        ids = (execution_id(order.request_id), hash_of("other execution", order.request_id))
        if order.frozen is None:
            assert await claims.freeze(self.invocator, CHAIN, order, frozen, ids)
        number = await claims.begin_attempt(
            self.invocator,
            CHAIN,
            order,
            frozen,
            jti=uuid4(),
            worker_id=self.worker,
            pacing=Pacing(seconds_per_trigger=0, burst=1, max_in_flight=5),
            retry_seconds=lambda _: 90,
            deadline_seconds=2400,
        )
        assert number is not None
        if outcome is not None:
            is_refused = outcome in {"instance_refused", "never_connected"}
            answered = Answered(
                outcome=outcome,
                http_status=200,
                sentence=sentence,
                answer=None,
                deadline_seconds=2400,
                says=refused if is_refused else Says.WORKS,
                code="signer_not_authorized" if is_refused else None,
            )
            await claims.record_answer(self.invocator, CHAIN, order, frozen, number, answered)
        return order.request_id


@dataclass(frozen=True)
class Answer:
    """What a command wrote, and its exit code."""

    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        return json.loads(self.stdout)


async def bskt(dsn: str, *arguments: str, **environment: str) -> Answer:
    """Run the command line on a database, in a thread: it has an event loop of its own."""
    settings = {
        "BSKT_DATABASE_URL": dsn,
        "BSKT_TRIGGER_FINALITY": "depth:4",
        "BSKT_COMPLETE_FINALITY": "depth:4",
        "BSKT_CRE_WORKFLOW": WORKFLOW.hex(),
    }

    def run() -> Result:
        return CliRunner().invoke(main, arguments, env=settings | environment, catch_exceptions=False)

    result = await asyncio.to_thread(run)
    return Answer(result.exit_code, result.stdout, result.stderr)


__all__ = ["ALICE", "BOB", "CHAIN", "Answer", "Chain", "asked_for", "basket", "bskt", "execution_id"]
