from pathlib import Path

import asyncpg
import pytest

from tests.end_to_end.receipts import read_canon, wrong_rows
from tests.end_to_end.reorg_storm import DEEPEST_BLOCKS, run
from tests.end_to_end.world import CHAIN_ID, OTHER_USER, World

pytestmark = pytest.mark.end_to_end

# What may be wrong with the rows, and the beginning of what is said about it.
CORRUPTIONS = {
    "UPDATE log SET data = data || '\\x00' WHERE canonical": "log is missing",
    "UPDATE log SET canonical = false WHERE canonical": "log is missing",
    "UPDATE log SET canonical = true WHERE NOT canonical": "log is extra",
    "UPDATE log SET undecodable = 'what is it?' WHERE canonical": "log is missing",
    "DELETE FROM basket WHERE canonical": "basket is missing",
    "UPDATE basket SET consumer = stablecoin WHERE canonical": "basket is missing",
    "DELETE FROM mint_request WHERE chain_status = 'finalized'": "mint_request is missing",
    "UPDATE mint_request SET amount = amount + 1 WHERE chain_status = 'finalized'": "mint_request is missing",
    "UPDATE mint_request SET beneficiary = consumer WHERE chain_status = 'finalized'": "mint_request is missing",
    "UPDATE mint_request SET bank_reference = identity WHERE chain_status = 'finalized'": "mint_request is missing",
    "UPDATE mint_request SET identity = tx_hash WHERE chain_status = 'finalized'": "mint_request is missing",
    "UPDATE mint_request SET tx_hash = identity WHERE chain_status = 'finalized'": "mint_request is missing",
    "UPDATE mint_request SET block_hash = identity WHERE chain_status = 'finalized'": "mint_request is missing",
    "UPDATE mint_request SET log_index = log_index + 1 WHERE chain_status = 'finalized'": "mint_request is missing",
    "UPDATE mint_request SET chain_status = 'canonical' WHERE chain_status = 'finalized'": "mint_request",
    "UPDATE mint_request SET chain_status = 'finalized', orphaned_for_good = false WHERE orphaned_for_good": (
        "mint_request is extra"
    ),
    "UPDATE mint_request SET orphaned_for_good = false WHERE orphaned_for_good": "mint_request",
    "UPDATE block SET hash = sha256(hash) WHERE canonical": "block",
    "UPDATE block SET parent_hash = hash WHERE canonical AND parent_hash IS NOT NULL": "block",
    "UPDATE block SET canonical = false WHERE number = (SELECT max(number) FROM block)": "block",
    "UPDATE cursor SET block_number = block_number - 1, finalized_number = finalized_number - 1": "cursor is",
    "UPDATE cursor SET block_hash = sha256(block_hash)": "cursor is",
    "UPDATE control SET halted_at = now(), halted_reason = 'a test'": "indexing is halted",
}


@pytest.mark.timeout(180)
async def test_after_a_storm_of_reorgs_behind_a_bad_wire_every_row_is_what_the_receipts_say(
    anvil_binary: Path, dsn: str, tmp_path: Path
) -> None:
    """Hard cases 1 to 6 and 35; the five hundred reorgs are one command, see the module."""
    report = await run(anvil_binary=anvil_binary, dsn=dsn, seed=1, reorgs=12, log=tmp_path / "daemon.log")
    print(f"\n{report.text()}")  # noqa: T201 - the measurement, shown by pytest -s
    assert report.findings == []
    assert (min(report.depths), max(report.depths), len(report.depths)) == (1, DEEPEST_BLOCKS, 12)
    assert report.requests_mined_again > 0
    assert report.orphaned_requests > 0
    assert report.undone_blocks
    assert report.faults


async def test_a_wrong_row_is_found(world: World, dsn: str) -> None:
    receipts = [await world.request("DEPOSIT-1"), await world.request("DEPOSIT-2", requester=OTHER_USER)]
    await world.follow()
    (_, raw) = [await world.chain.raw_transaction(receipt.tx_hash) for receipt in receipts]
    await world.chain.reorg(2, [(raw, 1)])
    await world.follow()
    await world.chain.mine(3)
    await world.follow()
    canon = await read_canon(world.chain, world.system, chain_id=CHAIN_ID)
    connection = await asyncpg.connect(dsn)
    assert await wrong_rows(connection, canon) == []
    await connection.execute("SET session_replication_role = replica")  # as a superuser may: no trigger, no key
    for corruption, sentence in CORRUPTIONS.items():
        transaction = connection.transaction()
        await transaction.start()
        changed = await connection.execute(corruption)
        found = await wrong_rows(connection, canon)
        await transaction.rollback()
        assert (corruption, changed) != (corruption, "UPDATE 0")
        assert [each for each in found if each.startswith(sentence)] != [], corruption
    await connection.close()
