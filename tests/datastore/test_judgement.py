"""Who keeps a bank reference, and who waits for a person."""

import pytest

from datastore import claims, following
from datastore.connection import Pool
from datastore.judgement import Allowed, Candidate, ForReview, Holder, Undecided, Verdict, judge
from datastore.lifecycle import State
from datastore.rows import Batch, Finality
from tests.datastore.builders import (
    ALICE,
    BOB,
    CHAIN,
    CONSUMER,
    RULES,
    TOKEN,
    batch,
    block,
    pin_chain,
    request,
    with_finality,
)
from tests.datastore.workers import WORKFLOW, Worker, states

REFERENCE = b"DEPOSIT".ljust(32, b"\0")
FIRST = Candidate(
    id=1,
    bank_reference=REFERENCE,
    expected_reference=REFERENCE,
    stablecoin=TOKEN,
    consumer=CONSUMER,
    requester=ALICE,
    beneficiary=ALICE,
    amount=1,
    predicted_amount=1,
)
SECOND = FIRST._replace(id=2)
STRANGER = FIRST._replace(id=3, beneficiary=BOB)


def verdicts(*candidates: Candidate, contest: bool = True, **given: object) -> list[Verdict]:
    known: dict[str, object] = {"holders": {}, "minted": set()} | given
    return [verdict for _, verdict in judge(candidates, contest=contest, **known)]  # type: ignore[arg-type]


def codes(*candidates: Candidate, contest: bool = True, **given: object) -> list[str]:
    return [getattr(verdict, "code", "allowed") for verdict in verdicts(*candidates, contest=contest, **given)]


def test_the_first_keeps_the_reference_and_a_second_one_is_refused() -> None:
    assert codes(FIRST, SECOND) == ["allowed", "duplicate_bank_reference"]


def test_different_beneficiaries_wait_together_unless_the_first_one_shall_win() -> None:
    allowed, contested = verdicts(FIRST, STRANGER)
    assert isinstance(allowed, Allowed)
    assert isinstance(contested, ForReview)
    assert (contested.code, contested.contested_with) == ("contested_bank_reference", 1)
    assert codes(FIRST, STRANGER, contest=False) == ["allowed", "duplicate_bank_reference"]


@pytest.mark.parametrize("state", [State.IN_DOUBT, State.ACCEPTED, State.EXECUTED, State.COMPLETED, State.REVIEW])
def test_what_was_sent_cannot_be_contested_any_more(state: State) -> None:
    holder = Holder(id=9, beneficiary=BOB, state=state, sent=True)
    assert codes(FIRST, holders={REFERENCE: holder}) == ["duplicate_bank_reference"]


def test_a_mint_of_somebody_else_sends_the_request_to_a_person() -> None:
    assert codes(FIRST, minted={REFERENCE}) == ["reference_already_minted"]


def test_a_look_alike_of_a_sent_orphan_waits_for_a_person_and_takes_no_reference() -> None:
    """Hard case 99."""
    assert codes(FIRST, SECOND, look_alikes={1: 9}) == ["look_alike_of_orphaned", "allowed"]


def rival(id_: int, of: Candidate, **changes: bytes) -> Undecided:
    made = of._replace(**changes)  # type: ignore[arg-type]
    return Undecided(id=id_, bank_reference=made.bank_reference, beneficiary=made.beneficiary)


def test_a_rival_without_a_verdict_contests_unless_the_first_one_shall_win() -> None:
    rivals = {REFERENCE: [rival(1, FIRST), rival(8, FIRST, beneficiary=BOB)]}
    (contested,) = verdicts(FIRST, rivals=rivals)
    assert isinstance(contested, ForReview)
    assert (contested.code, contested.contested_with) == ("contested_bank_reference", None)
    assert codes(FIRST, contest=False, rivals=rivals) == ["allowed"]
    assert codes(FIRST, rivals={REFERENCE: [rival(8, FIRST)]}) == ["allowed"]


def test_rivals_that_are_judged_together_all_wait() -> None:
    rivals = {REFERENCE: [rival(1, FIRST), rival(3, STRANGER)]}
    assert codes(FIRST, SECOND, STRANGER, rivals=rivals) == ["contested_bank_reference"] * 3


def test_a_request_behind_a_refused_duplicate_is_refused_until_that_one_is_judged_again() -> None:
    assert codes(SECOND, in_line={2: 1}) == ["duplicate_bank_reference"]
    holder = Holder(id=9, beneficiary=BOB, state=State.REVIEW, sent=False)
    assert codes(SECOND, in_line={2: 1}, holders={REFERENCE: holder}) == ["contested_bank_reference"]


@pytest.mark.parametrize("contest", [True, False])
def test_of_two_that_read_alike_only_one_goes_on(contest: bool) -> None:
    spelled, other = (FIRST._replace(id=id_, bank_reference=text) for id_, text in ((1, b"INV-7"), (2, b"inv 7")))
    assert codes(spelled, other, contest=contest) == ["allowed", "look_alike_reference"]
    assert codes(other, contest=contest, spelled_alike={2: 1}) == ["look_alike_reference"]


def test_a_rival_that_reads_alike_makes_both_wait() -> None:
    spelled = FIRST._replace(bank_reference=b"INV-7")
    rivals = {b"INV-7": [rival(8, spelled, bank_reference=b"inv7", beneficiary=BOB)]}
    assert codes(spelled, rivals=rivals) == ["look_alike_reference"]
    assert codes(spelled, rivals=rivals, contest=False) == ["allowed"]


def trigger_up_to(made: Batch, height: int) -> Batch:
    """Final enough to be sent, and still open to a reorg."""
    return with_finality(made, Finality(finalized=-1, safe=-1, trigger=height, complete=-1))


@pytest.mark.parametrize("bank", ["d1", "another deposit"])
async def test_a_replaced_transaction_of_a_sent_request_does_not_mint_by_itself(
    indexer_pool: Pool, invocator_pool: Pool, bank: str
) -> None:
    """Hard cases 99 and 101: a higher fee gives another hash, but it is the same wish."""
    worker = Worker(pool=invocator_pool)
    one, other = block(1), block(1, fork="b", parent_fork="a")
    genesis = block(0)
    await pin_chain(indexer_pool)
    made = trigger_up_to(batch(one, on=genesis, requests=(request("d1", one),)), 1)
    await following.commit(indexer_pool, CHAIN, made, RULES)
    await claims.list_workflows(invocator_pool, CHAIN, [WORKFLOW])
    await worker.send(1)
    replaced = request("replaced", other, bank=bank)
    stranger = request("stranger", other, log_index=1, requester=BOB, beneficiary=BOB)
    made = batch(other, on=genesis, leaving=one, requests=(replaced, stranger))
    await following.commit(indexer_pool, CHAIN, made, RULES)
    two = block(2, fork="b")
    await following.commit(indexer_pool, CHAIN, trigger_up_to(batch(two, on=other), 2), RULES)
    assert await states(indexer_pool) == ["accepted", "review", "confirmed"]
    reason = await indexer_pool.fetchval("SELECT state_reason FROM mint_request WHERE id = 2")
    assert reason == "look_alike_of_orphaned"
