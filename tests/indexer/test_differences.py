"""What the comparison of rows with a node's answer finds where the raw log is right; the sweep's tests see the rest."""

import pytest
from eth_abi.abi import encode

from datastore.rows import Difference, Kind, StoredRange
from indexer.differences import Word, compare, is_settled, of_places
from indexer.observation import Observation, Observed
from node.blocks import Log
from tests.chain_model.chain import FACTORY, FACTORY_FORM, ROLE_EVENTS, digest
from tests.chain_model.daemon import SOURCES

TOKEN, CONSUMER, USER = b"\x70" * 20, b"\xc0" * 20, b"\x11" * 20
REQUEST = Log(
    block_number=1,
    block_hash=digest("block"),
    tx_hash=digest("tx"),
    tx_index=0,
    log_index=3,
    address=FACTORY,
    topics=(FACTORY_FORM, *(address.rjust(32, b"\0") for address in (TOKEN, USER, USER))),
    data=encode(["uint256", "bytes32"], [10**18, digest("deposit")]),
    block_timestamp=None,
)


REVOKED = REQUEST._replace(address=TOKEN, topics=(ROLE_EVENTS["MintRoleRevoked"], CONSUMER.rjust(32, b"\0")), data=b"")


def meaning(baskets: dict[bytes, bytes], *logs: Log, time: int = 12) -> Observed:
    observation = Observation(SOURCES, baskets)
    observation.read(logs or [REQUEST], {1: time})
    return observation.observed


def differences(*, stored: Observed, told: Observed) -> list[Difference]:
    rows = StoredRange(
        hash_by_number={1: REQUEST.block_hash},
        logs={(row.block_hash, row.log_index): row for row in stored.logs},
        requests={
            (request.block_hash, request.log_index): (request.identity, request.consumer, request.block_timestamp)
            for request in stored.requests
        },
    )
    return compare(rows, {1: REQUEST.block_hash}, told)


WITH, WITHOUT, OF_ANOTHER = meaning({TOKEN: CONSUMER}), meaning({}), meaning({TOKEN: USER})


@pytest.mark.parametrize("same", [WITH, WITHOUT], ids=["a request", "no request"])
def test_what_means_the_same_is_no_difference(same: Observed) -> None:
    assert differences(stored=same, told=same) == []


def test_a_request_whose_basket_was_not_known_when_its_log_was_recorded_is_missing() -> None:
    assert [found.kind for found in differences(stored=WITHOUT, told=WITH)] == [Kind.MISSING]


def test_a_request_with_another_consumer_than_its_basket_was_announced_with_is_missing() -> None:
    assert [found.kind for found in differences(stored=OF_ANOTHER, told=WITH)] == [Kind.MISSING]


def test_a_request_whose_basket_was_made_up_is_not_what_its_log_means() -> None:
    (found,) = differences(stored=WITH, told=WITHOUT)
    assert found.kind is Kind.DIFFERENT
    assert found.stored == WITH.logs[0]


def test_requests_with_another_time_than_their_block_are_one_difference() -> None:
    both = (REQUEST, REQUEST._replace(log_index=4))
    told = meaning({TOKEN: CONSUMER}, *both)
    assert differences(stored=told, told=told) == []
    (found,) = differences(stored=meaning({TOKEN: CONSUMER}, *both, time=0), told=told)
    assert (found.kind, found.event, found.block_hash, found.log_index) == (
        Kind.MISTIMED,
        "block",
        REQUEST.block_hash,
        None,
    )


@pytest.mark.parametrize(
    ("words", "adds", "takes", "takes_by_hand"),
    [
        ([Word.CONFIRMS], True, False, True),
        ([Word.CONFIRMS, Word.CONFIRMS], True, True, True),
        ([Word.CONFIRMS, Word.CONFIRMS, Word.DENIES], False, False, False),
        ([Word.CONFIRMS, Word.CONFIRMS, Word.PROVES_NOTHING], True, False, False),
        ([Word.CONFIRMS, Word.CONFIRMS, Word.IS_SILENT], True, False, False),
        ([Word.DENIES], False, False, False),
        ([Word.PROVES_NOTHING, Word.PROVES_NOTHING], False, False, False),
        ([Word.IS_SILENT], False, False, False),
        ([], False, False, False),
    ],
)
def test_one_proof_adds_and_only_the_proofs_of_all_take(
    words: list[Word], adds: bool, takes: bool, takes_by_hand: bool
) -> None:
    assert is_settled(words, takes=False, by_hand=False) is adds
    assert is_settled(words, takes=False, by_hand=True) is adds
    assert is_settled(words, takes=True, by_hand=False) is takes
    assert is_settled(words, takes=True, by_hand=True) is takes_by_hand


def test_a_change_of_roles_has_nothing_but_its_raw_row_and_a_right_one_is_no_difference() -> None:
    told = meaning({TOKEN: CONSUMER}, REVOKED)
    assert differences(stored=told, told=told) == []
    (found,) = differences(stored=Observed(), told=told)
    assert (found.kind, found.event) == (Kind.MISSING, "MintRoleRevoked")
    assert of_places(told, [found]).role_changes == told.role_changes
    assert of_places(told, []).role_changes == []


def test_a_change_of_roles_of_what_is_no_basket_is_not_on_the_chain() -> None:
    (found,) = differences(stored=meaning({TOKEN: CONSUMER}, REVOKED), told=meaning({}, REVOKED))
    assert found.kind is Kind.EXTRA
