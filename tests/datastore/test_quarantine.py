import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID, uuid4

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datastore import claims, following, quarantine, schema
from datastore.claims import Frozen, Order, Pacing
from datastore.connection import Connection, Pool, Role, open_pool
from datastore.errors import DatastoreUnsuitable
from datastore.following import Committed
from datastore.identity import derive_nonce, execution_id_candidates
from datastore.pinning import Pin, pinned
from datastore.quarantine import Suspect, lost_sends
from datastore.rows import Batch, Block, Request
from service.embedded_postgres import EmbeddedPostgres
from tests.datastore.builders import ALICE, CHAIN, RULES, batch, block, hash_of, mint, pin_chain, report, request

PACING = Pacing(seconds_per_trigger=0, burst=1, max_in_flight=5)
WORKFLOWS = (hash_of("workflow 0"), hash_of("workflow 1"))
SECRET = bytes(range(32))
QUARANTINE_RULES = replace(RULES, nonce_of=lambda identity, generation: derive_nonce(SECRET, identity, generation))


def asked(name: str, at: Block, *, bank: str | None = None, log_index: int = 0, beneficiary: bytes = ALICE) -> Request:
    """A request whose nonce is derived, as the indexer derives it."""
    made = request(name, at, bank=bank, log_index=log_index, beneficiary=beneficiary)
    return made._replace(nonce=derive_nonce(SECRET, made.identity, 0))


def execution_ids(of: Request, *, workflow: bytes = WORKFLOWS[0], generation: int = 0) -> tuple[bytes, bytes]:
    return execution_id_candidates(workflow, derive_nonce(SECRET, of.identity, generation).hex)


def frozen(workflow: bytes = WORKFLOWS[0]) -> Frozen:
    return Frozen(
        mode="gateway", workflow_id=workflow, receiver=b"\xc0" * 20, gateway="https://x/", signer=ALICE, body=b"{}"
    )


async def commit(pool: Pool, made: Batch) -> Committed:
    return await following.commit(pool, CHAIN, made, QUARANTINE_RULES)


async def begin(pool: Pool, order: Order) -> int | None:
    return await claims.begin_attempt(
        pool,
        CHAIN,
        order,
        frozen(),
        jti=uuid4(),
        worker_id=uuid4(),
        pacing=PACING,
        retry_seconds=lambda _: 90,
        deadline_seconds=2400,
    )


async def claimed(pool: Pool, request_id: int) -> Order | None:
    return await claims.claim(pool, CHAIN, request_id, worker_id=uuid4(), lease_seconds=60, pacing=PACING)


async def states(pool: Pool) -> list[tuple[str, bool]]:
    rows = await pool.fetch("SELECT state, holds_reference FROM mint_request ORDER BY id")
    return [(row["state"], row["holds_reference"]) for row in rows]


@asynccontextmanager
async def owner(dsn: str) -> AsyncIterator[Connection]:
    connection = await asyncpg.connect(dsn)
    try:
        yield connection
    finally:
        await connection.close()


async def move_server(dsn: str) -> None:
    """As if these rows had been restored on the server that answers now."""
    async with owner(dsn) as connection:
        await connection.execute("UPDATE control SET server_identifier = server_identifier - 1")


async def pass_deadline(dsn: str, until: datetime) -> None:
    async with owner(dsn) as connection:
        await connection.execute("UPDATE control SET quarantined_until = $1", until)


@pytest.fixture
async def genesis(indexer_pool: Pool, invocator_pool: Pool) -> Block:
    made = await pin_chain(indexer_pool)
    await claims.list_workflows(invocator_pool, CHAIN, WORKFLOWS)
    return made


@given(
    workflows=st.lists(st.binary(min_size=32, max_size=32), min_size=1, max_size=4, unique=True),
    nonces=st.lists(st.uuids(), min_size=1, max_size=3, unique=True),
    data=st.data(),
)
def test_a_lost_send_is_found_by_either_of_its_execution_ids_and_nothing_else_is(
    workflows: list[bytes], nonces: list[UUID], data: st.DataObject
) -> None:
    suspect = Suspect(request_id=7, generation=0, nonces=tuple(enumerate(nonces)))
    generation = data.draw(st.integers(0, len(nonces) - 1))
    workflow = data.draw(st.sampled_from(workflows))
    shown = data.draw(st.sampled_from(execution_id_candidates(workflow, nonces[generation].hex)))
    (found,) = lost_sends(suspect, workflows, {shown, hash_of("somebody else's")})
    assert (found.request_id, found.generation, found.workflow_id) == (7, generation, workflow)
    assert shown in found.execution_ids
    assert list(lost_sends(suspect, workflows, {hash_of("somebody else's")})) == []


async def test_a_server_that_the_rows_were_not_written_on_sends_nothing_even_before_anybody_noticed(
    dsn: str, indexer_pool: Pool, invocator_pool: Pool, genesis: Block
) -> None:
    """Hard case 55: the claim and the attempt ask in their own transactions."""
    one = block(1)
    requests = (asked("a", one), asked("b", one, log_index=1))
    await commit(indexer_pool, batch(one, on=genesis, requests=requests, final=1))
    order = await claimed(invocator_pool, 1)
    assert order is not None
    assert await claims.free_workflows(invocator_pool, CHAIN, PACING, WORKFLOWS) == frozenset(WORKFLOWS)
    await move_server(dsn)
    assert await claims.free_workflows(invocator_pool, CHAIN, PACING, WORKFLOWS) == frozenset()
    assert await claimed(invocator_pool, 2) is None
    assert await begin(invocator_pool, order) is None
    assert await indexer_pool.fetchval("SELECT count(*) FROM attempt") == 0


async def test_a_start_and_a_commit_on_another_server_enter_quarantine_once_with_an_alarm(
    dsn: str, indexer_pool: Pool, genesis: Block
) -> None:
    assert await quarantine.notice(indexer_pool, CHAIN, deadline_seconds=2400) is None
    await move_server(dsn)
    committed = await commit(indexer_pool, batch(block(1), on=genesis))
    assert committed.quarantine_entered is not None
    again = await quarantine.notice(indexer_pool, CHAIN, deadline_seconds=2400)
    assert again == replace(committed.quarantine_entered, entered=False)
    assert "moved to another server or was restored" in str(again)
    assert (again.until - again.at).total_seconds() == 2400 + 300
    assert await indexer_pool.fetchval("SELECT array_agg(kind) FROM alarm") == ["quarantine_entered"]
    # A second move begins the time anew.
    await move_server(dsn)
    second = await quarantine.notice(indexer_pool, CHAIN, deadline_seconds=2400)
    assert second is not None
    assert (second.entered, second.until > again.until) == (True, True)


async def test_a_quarantine_ends_with_the_first_final_block_that_is_young_enough_and_not_before(
    dsn: str, indexer_pool: Pool, invocator_pool: Pool, genesis: Block
) -> None:
    one = block(1)
    await commit(indexer_pool, batch(one, on=genesis, requests=(asked("a", one),), final=1))
    await move_server(dsn)
    await quarantine.notice(indexer_pool, CHAIN, deadline_seconds=2400)
    # The deadline by our clock is over long ago; the chain must have got as far.
    until = datetime.fromtimestamp(one.timestamp + 100, UTC)
    await pass_deadline(dsn, until)
    too_old = replace(block(2), timestamp=one.timestamp + 99)
    young = replace(block(3), timestamp=one.timestamp + 100)
    younger = replace(block(4), timestamp=one.timestamp + 200)
    for made in (
        batch(too_old, on=one, final=2),  # final, but a lost send might still show after it
        batch(young, on=too_old, final=2),  # young, but not final
    ):
        assert (await commit(indexer_pool, made)).quarantine_ended is False
        assert await claimed(invocator_pool, 1) is None
    assert (await commit(indexer_pool, batch(younger, on=young, final=3))).quarantine_ended is True
    assert await quarantine.notice(indexer_pool, CHAIN, deadline_seconds=2400) is None
    assert await claimed(invocator_pool, 1) is not None


async def test_a_chain_from_the_future_does_not_end_a_quarantine_before_our_clock_does(
    dsn: str, indexer_pool: Pool, genesis: Block
) -> None:
    await move_server(dsn)
    future = replace(block(1), timestamp=4_000_000_000)
    assert (await commit(indexer_pool, batch(future, on=genesis, final=1))).quarantine_ended is False


async def lose_a_send(dsn: str, pool: Pool, genesis: Block) -> tuple[Block, Request]:
    """A request that is confirmed here, and whose send was lost with the server that made it."""
    one = block(1)
    lost = asked("lost", one, bank="D")
    await commit(pool, batch(one, on=genesis, requests=(lost,), final=1))
    await move_server(dsn)
    return one, lost


@pytest.mark.parametrize("form", [0, 1])
@pytest.mark.parametrize("workflow", WORKFLOWS)
async def test_the_mint_of_a_lost_send_executes_its_request(
    dsn: str, indexer_pool: Pool, genesis: Block, workflow: bytes, form: int
) -> None:
    one, lost = await lose_a_send(dsn, indexer_pool, genesis)
    two = block(2)
    made = batch(
        two,
        on=one,
        mints=(mint(two, of=lost),),
        reports=(report(two, execution_id=execution_ids(lost, workflow=workflow)[form]),),
    )
    await commit(indexer_pool, made)
    assert await states(indexer_pool) == [("executed", True)]
    story = await indexer_pool.fetch("SELECT to_state, reason FROM mint_transition ORDER BY id OFFSET 2")
    assert [tuple(row) for row in story] == [("failed", "lost_send_found"), ("executed", "mint_proven")]
    kinds = await indexer_pool.fetch("SELECT kind, sentence FROM alarm ORDER BY id")
    assert [row["kind"] for row in kinds] == ["quarantine_entered", "lost_send_found", "unexpected_mint"]
    assert workflow.hex() in kinds[1]["sentence"]


async def test_a_false_report_of_a_lost_send_fails_its_request_and_freezes_its_workflow(
    dsn: str, indexer_pool: Pool, genesis: Block
) -> None:
    one, lost = await lose_a_send(dsn, indexer_pool, genesis)
    two = block(2)
    refused = report(two, execution_id=execution_ids(lost, workflow=WORKFLOWS[1])[1], result=False)
    await commit(indexer_pool, batch(two, on=one, reports=(refused,)))
    assert await states(indexer_pool) == [("failed", True)]
    assert await indexer_pool.fetchval("SELECT is_sent(1)")
    rows = await indexer_pool.fetch("SELECT source, generation, found_workflow_id FROM execution_id")
    assert {tuple(row) for row in rows} == {("found", 0, WORKFLOWS[1])}


async def test_a_report_that_was_indexed_before_a_quarantine_by_hand_is_found_before_it_ends(
    dsn: str, indexer_pool: Pool, genesis: Block
) -> None:
    one, two = block(1), block(2)
    lost = asked("lost", one)
    await commit(indexer_pool, batch(one, on=genesis, requests=(lost,), final=1))
    shown = batch(two, on=one, mints=(mint(two, of=lost),), reports=(report(two, execution_id=execution_ids(lost)[0]),))
    await commit(indexer_pool, shown)
    assert await states(indexer_pool) == [("review", True)]  # a mint that nothing accounts for
    async with indexer_pool.acquire() as connection, connection.transaction():
        await quarantine.enter(connection, CHAIN, reason="restored a snapshot", deadline_seconds=2400)
    await pass_deadline(dsn, datetime.fromtimestamp(one.timestamp, UTC))
    committed = await commit(indexer_pool, batch(block(3), on=two, final=2))
    assert committed.quarantine_ended is True
    assert await states(indexer_pool) == [("completed", True)]
    unattributed = await indexer_pool.fetchval("SELECT count(*) FROM alarm WHERE kind = 'unattributed_mint'")
    assert unattributed == 1


async def test_a_lost_send_of_a_new_generation_is_found_too(dsn: str, indexer_pool: Pool, genesis: Block) -> None:
    one, lost = await lose_a_send(dsn, indexer_pool, genesis)
    two = block(2)
    refused = report(two, execution_id=execution_ids(lost, generation=1)[0], result=False)
    await commit(indexer_pool, batch(two, on=one, reports=(refused,)))
    assert await states(indexer_pool) == [("failed", True)]
    assert await indexer_pool.fetchval("SELECT DISTINCT generation FROM execution_id") == 1


async def test_the_rival_of_a_lost_send_goes_to_review_and_gives_up_the_reference(
    dsn: str, indexer_pool: Pool, genesis: Block
) -> None:
    """One deposit, one mint: what was sent keeps it, though the restored rows had judged otherwise."""
    one = block(1)
    first = asked("first", one, bank="D")
    second = asked("second", one, bank="D", log_index=1)
    await commit(indexer_pool, batch(one, on=genesis, requests=(first, second), final=1))
    assert await states(indexer_pool) == [("confirmed", True), ("rejected", False)]
    await move_server(dsn)
    two = block(2)
    refused = report(two, execution_id=execution_ids(second)[0], result=False)
    await commit(indexer_pool, batch(two, on=one, reports=(refused,)))
    assert await states(indexer_pool) == [("review", False), ("failed", True)]
    reasons = await indexer_pool.fetch("SELECT state_reason FROM mint_request ORDER BY id")
    assert [row["state_reason"] for row in reasons] == ["rival_sent", "lost_send_found"]


async def test_a_rival_that_was_sent_itself_keeps_the_reference_and_waits_for_a_person(
    dsn: str, indexer_pool: Pool, invocator_pool: Pool, genesis: Block
) -> None:
    one = block(1)
    first, second = asked("first", one, bank="D"), asked("second", one, bank="D", log_index=1, beneficiary=ALICE)
    await commit(indexer_pool, batch(one, on=genesis, requests=(first, second), final=1))
    order = await claimed(invocator_pool, 1)
    assert order is not None
    assert await claims.freeze(invocator_pool, CHAIN, order, frozen(), execution_ids(first))
    assert await begin(invocator_pool, order) == 1
    await move_server(dsn)
    two = block(2)
    refused = report(two, execution_id=execution_ids(second)[0], result=False)
    await commit(indexer_pool, batch(two, on=one, reports=(refused,)))
    assert await states(indexer_pool) == [("review", True), ("failed", False)]


async def test_a_lost_send_of_a_request_that_is_gone_from_the_chain_is_unbacked(
    dsn: str, indexer_pool: Pool, genesis: Block
) -> None:
    one, other, two = block(1), block(1, fork="b", parent_fork="a"), block(2, fork="b")
    lost = asked("lost", one)
    await commit(indexer_pool, batch(one, on=genesis, requests=(lost,)))
    await commit(indexer_pool, batch(other, on=genesis, leaving=one))
    await commit(indexer_pool, batch(two, on=other, final=1))
    assert await states(indexer_pool) == [("dropped", False)]
    await move_server(dsn)
    three = block(3, fork="b")
    refused = report(three, execution_id=execution_ids(lost)[0], result=False)
    await commit(indexer_pool, batch(three, on=two, reports=(refused,)))
    assert await states(indexer_pool) == [("review", True)]


async def test_outside_of_a_quarantine_a_report_of_an_unknown_id_is_only_recorded(
    indexer_pool: Pool, genesis: Block
) -> None:
    one, two = block(1), block(2)
    lost = asked("lost", one)
    await commit(indexer_pool, batch(one, on=genesis, requests=(lost,), final=1))
    refused = report(two, execution_id=execution_ids(lost)[0], result=False)
    await commit(indexer_pool, batch(two, on=one, reports=(refused,)))
    assert await states(indexer_pool) == [("confirmed", True)]


async def test_a_changed_secret_is_refused_before_anything_is_derived_from_it(indexer_pool: Pool) -> None:
    """Hard case 74."""
    await pin_chain(indexer_pool)
    pin = Pin(
        chain_id=CHAIN,
        genesis_hash=hash_of("genesis"),
        factory_address=bytes(20),
        factory_code_hash=hash_of("code"),
        forwarder_address=bytes(20),
        secret_check=b"check",
    )
    assert await pinned(indexer_pool, pin) is not None
    with pytest.raises(DatastoreUnsuitable, match="restore the secret"):
        await pinned(indexer_pool, replace(pin, secret_check=b"another"))


@pytest.fixture
def data_dir() -> Iterator[Path]:
    # Not pytest's own folder: as root its parents are closed to the user that the server runs as.
    folder = Path(tempfile.mkdtemp(prefix="bskt-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


async def test_a_real_recovery_from_an_archive_is_noticed_by_its_timeline(data_dir: Path) -> None:
    """Restored to a point in time or promoted, Postgres itself begins a new timeline."""
    server = EmbeddedPostgres(
        data_dir / "pg", durable=False, options={"wal_level": "replica", "restore_command": "/bin/false"}
    )
    async with server:
        await schema.apply(server.dsn)
        async with await open_pool(server.dsn, Role.INDEXER) as pool:
            await pin_chain(pool)
        await server.restart()
        async with await open_pool(server.dsn, Role.INDEXER) as pool:
            assert await quarantine.notice(pool, CHAIN, deadline_seconds=2400) is None
        cluster = data_dir / "pg" / "postgres"
        marker = cluster / "recovery.signal"
        marker.touch()
        owner_of_cluster = cluster.stat()
        os.chown(marker, owner_of_cluster.st_uid, owner_of_cluster.st_gid)
        await server.restart()
        async with await open_pool(server.dsn, Role.INDEXER) as pool:
            while await pool.fetchval("SELECT pg_is_in_recovery()"):
                pass  # a standby sends nothing either: it is nobody's home, and takes no writes
            before, after = await pool.fetchrow(
                "SELECT server_timeline, (SELECT timeline FROM this_server()) FROM control"
            ) or (0, 0)
            assert (before, after) == (1, 2)
            entered = await quarantine.notice(pool, CHAIN, deadline_seconds=2400)
            assert entered is not None
            assert entered.entered is True


async def test_every_role_may_ask_which_server_this_is(dsn: str) -> None:
    for role in Role:
        async with await open_pool(dsn, role) as pool:
            assert (await pool.fetchrow("SELECT * FROM this_server()")) is not None
