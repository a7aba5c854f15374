"""Tens of thousands of requests through a gateway that fails in every way it knows, on virtual time, over real rows.

What must come of it: every request is completed, each by one mint of its own amount, whatever was answered; one id and
one body a request for ever; a fresh token for each attempt; and as many attempts in the rows as the gateway saw.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from time import perf_counter

from datastore import following
from datastore.claims import Pacing
from datastore.connection import Pool
from datastore.identity import derive_nonce
from datastore.mint_amount import amount_text, predicted_wei
from datastore.reference import expected_reference
from datastore.rows import Basket, Batch, Block, Mint, Report, Request
from invocator.invocation import Invocator, Terms
from invocator.preflight import Contracts
from invocator.signing import Signer
from service.demo.cre_stand_in import Workflow, faults
from service.demo.cre_stand_in.faults import Fault
from tests.attempt_storm.cre import Cre, Minted
from tests.attempt_storm.virtual_time import VirtualTime
from tests.datastore.builders import CHAIN, RULES, batch, block, hash_of, pin_chain

KEY = "0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80"  # the first well-known anvil key
SECRET = b"a secret of this storm, 32 bytes"
WORKFLOWS = tuple(hash_of("storm workflow", n) for n in range(3))
BASKETS, REQUESTERS = 10, 40
REQUESTS_A_BLOCK = 200
LEAST_WAITING = 100
LEAST_PAUSE_SECONDS = 60.0  # of virtual time: many become due together, as on a busy day
TIDIED_EVERY = 5_000  # attempts
TOLD_EVERY = 1_000  # attempts
RESEND_AFTER_SECONDS = 49 * 3600.0  # when every node has forgotten the id

# What strikes a call that passed every check: together a bit more than half of them.
CHANCES: dict[Fault, float] = {
    faults.time_out(): 0.13,
    faults.time_out(sticks=True): 0.02,
    faults.answer_lost(): 0.06,
    faults.answer_lost(sticks=True): 0.01,
    faults.answer_cut_short(): 0.03,
    faults.accept_then_drop(): 0.01,
    faults.drop_before_forwarding(): 0.03,
    faults.conflict(): 0.03,
    faults.too_many_requests(): 0.03,
    faults.internal_error(): 0.02,
    faults.internal_error(forwards=True): 0.02,
    faults.bad_gateway(): 0.02,
    faults.bad_gateway(forwards=True): 0.02,
    faults.unavailable(): 0.02,
    faults.unavailable(forwards=True): 0.02,
    faults.handler_timeout(): 0.03,
    faults.html_page(): 0.02,
    faults.truncated_json(): 0.02,
    faults.foreign_id(): 0.02,
    faults.redirect(): 0.02,
    faults.redirect(forwards=True): 0.01,
    faults.refuse(200, -32603, "internal", forwards=True): 0.01,
    faults.refuse(200, -32000, "workflowID channel is full, cannot send trigger"): 0.01,
    faults.refuse(400, -32600, "Auth failure: signer '0x1' is not authorized for workflow '0x2'"): 0.005,
    faults.refuse(400, -32600, "Workflow not found. Ensure that the workflow exists"): 0.005,
}

# Seconds until something may be done again.  $1 chain, $2 seconds before a resend
NEXT = """
SELECT extract(epoch FROM min(at) - clock_timestamp()) FROM (
    SELECT min(next_attempt_at) AS at FROM mint_request WHERE chain_id = $1 AND state IN ('in_doubt', 'confirmed')
    UNION ALL SELECT min(deadline_at) FROM mint_request WHERE chain_id = $1 AND state = 'accepted'
    UNION ALL SELECT min(state_changed_at) + make_interval(secs => $2) FROM mint_request
        WHERE chain_id = $1 AND state = 'failed' AND state_reason = 'not_delivered'
    UNION ALL SELECT min(probe_at) FROM breaker WHERE chain_id = $1
) soon
"""
NOW = "SELECT ceil(extract(epoch FROM clock_timestamp()))::bigint"
# $1 chain
WAITING = """
SELECT count(*) FROM mint_request
WHERE chain_id = $1 AND state = 'confirmed' AND held_at IS NULL AND chain_status <> 'orphaned'
"""
# $1 chain
UNSETTLED = """
SELECT EXISTS (
    SELECT FROM mint_request
    WHERE chain_id = $1 AND state IN ('seen', 'confirmed', 'claimed', 'in_doubt', 'accepted', 'executed', 'failed')
)
"""


@dataclass(kw_only=True)
class Tally:
    """What a storm did."""

    requests: int
    attempts: int
    time_outs_after_acceptance: int
    outcomes: Counter[str]
    faults: Counter[str]
    resends: int
    second_deliveries_refused: int
    virtual_days: float
    seconds: float


@dataclass(kw_only=True)
class Storm:
    """The rows, the gateway, the workers, and the chain that both sides see."""

    indexer: Pool
    time: VirtualTime
    cre: Cre
    workers: Sequence[Invocator]
    tip: Block
    requests: list[Request] = field(default_factory=list)
    _indexed: int = 0
    _tidied: int = 0
    _passed_seconds: float = 0

    @classmethod
    async def brew(cls, indexer: Pool, invocator: Pool, time: VirtualTime, *, seed: int, workers: int) -> "Storm":
        signer = Signer.from_text(KEY)
        known = [Workflow(workflow_id=each, authorized_keys=frozenset({signer.address})) for each in WORKFLOWS]
        cre = Cre(workflows=known)
        cre.faults.at_random(CHANCES, seed=seed)
        terms = Terms(
            gateway_url="https://gateway.example/",
            workflow_ids=WORKFLOWS,
            currency="USD",
            pacing=Pacing(seconds_per_trigger=0, burst=1, max_in_flight=1_000_000),
            timeout_seconds=90,
            lease_seconds=120,
            completion_deadline_seconds=2_400,
            give_up_seconds=86_400 * 30,
            resend_after_seconds=RESEND_AFTER_SECONDS,
        )
        made = [
            Invocator(
                pool=invocator,
                chain_id=CHAIN,
                gateway=cre,
                signer=signer,
                terms=terms,
                clock=cre.clock.now,
                look_at=right_contracts,
            )
            for _ in range(workers)
        ]
        storm = cls(indexer=indexer, time=time, cre=cre, workers=made, tip=await pin_chain(indexer))
        first = await storm._next()
        await storm._commit(replace(batch(first, on=storm.tip, final=first.number), baskets=tuple(baskets(first))))
        return storm

    async def rage(self, *, attempts: int, tell: Callable[[str], None] = lambda _: None) -> Tally:
        """Let requests come until so many attempts were made, then let everything end; ``tell`` hears how far it is."""
        started, told = perf_counter(), 0
        while (made := len(self.cre.ledger.attempts)) < attempts:
            if made >= told + TOLD_EVERY:
                told = made
                minted = len(self.cre.forwarder.minted)
                tell(
                    f"{made} attempts, {len(self.requests)} requests, {minted} mints, {perf_counter() - started:.0f} s"
                )
            if await self.indexer.fetchval(WAITING, CHAIN) < LEAST_WAITING:
                await self._ask()
            await self._work()
        tell("no new requests; now everything ends")
        while await self.indexer.fetchval(UNSETTLED, CHAIN):
            await self._work()
        return await self._judged(perf_counter() - started)

    async def _work(self) -> None:
        """Everything that can be done now; then what was delivered is indexed, and time passes until there is more."""
        while any(await asyncio.gather(*(worker.tick() for worker in self.workers))):
            if len(self.cre.forwarder.minted) - self._indexed >= REQUESTS_A_BLOCK:
                await self._index()
        if len(self.cre.forwarder.minted) > self._indexed:
            await self._index()
        if len(self.cre.ledger.attempts) - self._tidied >= TIDIED_EVERY:
            self._tidied = len(self.cre.ledger.attempts)
            await self.time.tidy()
        soon = await self.indexer.fetchval(NEXT, CHAIN, RESEND_AFTER_SECONDS)
        seconds = max(LEAST_PAUSE_SECONDS, float(soon or 0))
        self.cre.clock.advance(seconds)
        await self.time.advance(seconds)
        self._passed_seconds += seconds
        await self._index()

    async def _next(self) -> Block:
        """The next block, of this very moment."""
        return replace(block(self.tip.number + 1), timestamp=await self.indexer.fetchval(NOW))

    async def _commit(self, made: Batch) -> None:
        await following.commit(self.indexer, CHAIN, made, RULES)
        self.tip = made.blocks[-1]

    async def _ask(self) -> None:
        at = await self._next()
        asked = tuple(request(len(self.requests) + n, at, n) for n in range(REQUESTS_A_BLOCK))
        self.requests += asked
        await self._commit(batch(at, on=self.tip, requests=asked, final=at.number))

    async def _index(self) -> None:
        """Index what the forwarder did since the last look, as one block that is final at once.

        A block without anything in it counts too: what time decides waits for one that is as late.
        """
        new = self.cre.forwarder.minted[self._indexed :]
        self._indexed += len(new)
        at = await self._next()
        mints = tuple(mint_of(each, at, number) for number, each in enumerate(new))
        reports = tuple(report_of(each, at, number) for number, each in enumerate(new))
        await self._commit(batch(at, on=self.tip, mints=mints, reports=reports, final=at.number))

    async def _judged(self, seconds: float) -> Tally:
        """Check every promise against what the gateway, the forwarder and the rows saw."""
        ledger, minted = self.cre.ledger, self.cre.forwarder.minted
        wanted = {each.expected_reference: (each.beneficiary, each.predicted_amount) for each in self.requests}
        got = Counter(each.bank_reference for each in minted)
        assert set(got) == set(wanted), "minted for nobody, or not at all"
        assert set(got.values()) == {1}, "minted twice"
        assert all(wanted[each.bank_reference] == (each.recipient, each.amount) for each in minted), "minted otherwise"
        rows = await self.indexer.fetch("SELECT state, count(*) AS requests FROM mint_request GROUP BY state")
        assert [tuple(row) for row in rows] == [("completed", len(self.requests))]
        bodies = {(each.request_id, each.body_sha256, each.digest) for each in ledger.attempts}
        assert {request_id for request_id, _, _ in bodies} == {each.nonce.hex for each in self.requests}
        assert len(bodies) == len(self.requests), "other bytes under the same id"
        assert len({each.jti for each in ledger.attempts}) == len(ledger.attempts), "a token was used twice"
        assert ledger.wrong_targets() == 0
        assert await self.indexer.fetchval("SELECT count(*) FROM attempt") == len(ledger.attempts)
        assert await self.indexer.fetchval("SELECT count(*) FROM attempt WHERE outcome IS NULL") == 0
        alarms = await self.indexer.fetch("SELECT DISTINCT kind FROM alarm")
        assert {row["kind"] for row in alarms} <= {"instance_refused", "workflow_refused"}
        outcomes = await self.indexer.fetch("SELECT outcome, count(*) AS n FROM attempt GROUP BY outcome")
        struck = Counter(each.outcome.removeprefix("fault:") for each in ledger.attempts if "fault:" in each.outcome)
        return Tally(
            requests=len(self.requests),
            attempts=len(ledger.attempts),
            time_outs_after_acceptance=struck["time_out"],
            outcomes=Counter({row["outcome"]: row["n"] for row in outcomes}),
            faults=struck,
            resends=await self.indexer.fetchval("SELECT count(*) FROM mint_transition WHERE reason = 'resend'"),
            second_deliveries_refused=self.cre.forwarder.refused_again,
            virtual_days=self._passed_seconds / 86_400,
            seconds=seconds,
        )


async def right_contracts(stablecoin: bytes, consumer: bytes) -> Contracts | None:
    assert consumer == consumer_of(stablecoin)
    return Contracts(is_minter=True, stablecoin=stablecoin, decimals=18)


def token(number: int) -> bytes:
    return sha256(b"storm token %d" % number).digest()[:20]


def consumer_of(stablecoin: bytes) -> bytes:
    return sha256(b"consumer of" + stablecoin).digest()[:20]


def baskets(at: Block) -> list[Basket]:
    return [
        Basket(
            block_number=at.number,
            block_hash=at.hash,
            log_index=number,
            stablecoin=token(number),
            consumer=consumer_of(token(number)),
            creator=bytes(20),
            admin=bytes(20),
            name_raw=b"Storm",
            symbol_raw=b"STRM",
            name="Storm",
            symbol="STRM",
        )
        for number in range(BASKETS)
    ]


def request(number: int, at: Block, log_index: int) -> Request:
    identity = hash_of("storm", number)
    nonce = derive_nonce(SECRET, identity, 0)
    bank_reference = (b"STORM-%d" % number).ljust(32, b"\0")
    amount = (number % 997 + 1) * 10**16
    stablecoin = token(number % BASKETS)
    return Request(
        identity=identity,
        nonce=nonce,
        emitter=stablecoin,
        tx_hash=hash_of("storm tx", number),
        block_number=at.number,
        block_hash=at.hash,
        block_timestamp=at.timestamp,
        log_index=log_index,
        stablecoin=stablecoin,
        consumer=consumer_of(stablecoin),
        requester=sha256(b"requester %d" % (number % REQUESTERS)).digest()[:20],
        beneficiary=sha256(b"beneficiary %d" % number).digest()[:20],
        amount=amount,
        predicted_amount=predicted_wei(amount_text(amount)),
        bank_reference=bank_reference,
        expected_reference=expected_reference(bank_reference, nonce),
    )


def mint_of(minted: Minted, at: Block, number: int) -> Mint:
    return Mint(
        block_number=at.number,
        block_hash=at.hash,
        log_index=2 * number,
        tx_hash=hash_of("tx", at.number, number),
        consumer=minted.consumer,
        recipient=minted.recipient,
        amount=minted.amount,
        bank_reference=minted.bank_reference,
    )


def report_of(minted: Minted, at: Block, number: int) -> Report:
    return Report(
        block_number=at.number,
        block_hash=at.hash,
        log_index=2 * number + 1,
        tx_hash=hash_of("tx", at.number, number),
        receiver=minted.consumer,
        execution_id=minted.execution_id,
        report_id=b"\0\1",
        result=True,
    )
