"""Which logs of a token change its roles, and which only tell how it was born."""

import pytest
from eth_abi.abi import encode

from datastore.rows import RoleChange
from indexer.observation import Observation, Observed
from node.blocks import Log
from tests.chain_model.chain import BASKET_CREATED, FACTORY, ROLE_EVENTS, digest
from tests.chain_model.daemon import SOURCES

TOKEN, CONSUMER, USER, STRANGER = b"\x70" * 20, b"\xc0" * 20, b"\x11" * 20, b"\x66" * 20


def word(address: bytes) -> bytes:
    return address.rjust(32, b"\0")


CHANGED = Log(
    block_number=1,
    block_hash=digest("block"),
    tx_hash=digest("later"),
    tx_index=1,
    log_index=9,
    address=TOKEN,
    topics=(ROLE_EVENTS["MintRoleRevoked"], word(CONSUMER)),
    data=b"",
    block_timestamp=None,
)
CREATED = CHANGED._replace(
    tx_hash=digest("birth"),
    tx_index=0,
    log_index=4,
    address=FACTORY,
    topics=(BASKET_CREATED, word(USER), word(USER), word(TOKEN)),
    data=encode(["address", "bytes", "bytes"], [CONSUMER, b"Dollar", b"USD"]),
)


def observed(*logs: Log, baskets: dict[bytes, bytes] | None = None) -> Observed:
    observation = Observation(SOURCES, {} if baskets is None else baskets)
    observation.read(logs, {1: 0})
    return observation.observed


KNOWN = {TOKEN: CONSUMER}


def test_a_change_of_a_known_basket_is_kept_and_told() -> None:
    found = observed(CHANGED, baskets=KNOWN)
    assert [row.event for row in found.logs] == ["MintRoleRevoked"]
    sentence = f"MintRoleRevoked(minter=0x{CONSUMER.hex()})"
    assert found.role_changes == [RoleChange(1, CHANGED.block_hash, 9, TOKEN, sentence)]


@pytest.mark.parametrize("place", [2, 5], ids=["before its announcement", "after it"])
def test_what_the_announcing_transaction_does_is_a_birth_and_counts_as_foreign(place: int) -> None:
    birth = CHANGED._replace(tx_hash=CREATED.tx_hash, tx_index=0, log_index=place)
    found = observed(*sorted([birth, CREATED], key=lambda log: log.log_index))
    assert ([row.event for row in found.logs], found.role_changes) == (["BasketCreated"], [])
    assert found.foreign == {"MintRoleRevoked": 1}


def test_a_change_later_in_the_block_of_its_birth_is_one() -> None:
    assert len(observed(CREATED, CHANGED).role_changes) == 1


def test_a_second_announcement_makes_no_second_birth() -> None:
    again = CHANGED._replace(tx_hash=CREATED.tx_hash)
    assert len(observed(CREATED, again, baskets=KNOWN).role_changes) == 1


@pytest.mark.parametrize("emitter", [STRANGER, FACTORY, CONSUMER])
def test_a_change_that_nobody_but_the_token_tells_is_foreign(emitter: bytes) -> None:
    found = observed(CHANGED._replace(address=emitter), baskets=KNOWN)
    assert (found.logs, found.role_changes, found.foreign.total()) == ([], [], 1)


def test_a_change_that_cannot_be_read_is_kept_raw_and_told_all_the_same() -> None:
    found = observed(CHANGED._replace(topics=(CHANGED.topics[0], b"\xff" * 32)), baskets=KNOWN)
    assert [row.undecodable for row in found.logs] == ["minter is no address"]
    assert [each.sentence for each in found.role_changes] == ["MintRoleRevoked, whose fields cannot be read"]
    assert found.undecodable == 1


def test_every_filter_that_finds_requests_of_a_token_finds_its_changes() -> None:
    everybodys, of_baskets = SOURCES.filters(), SOURCES.filters_of(KNOWN)
    tokens = [each for each in SOURCES.believed(KNOWN) if TOKEN in each.addresses]
    for filters in (everybodys, of_baskets, tokens):
        assert any(set(ROLE_EVENTS.values()) <= set(each.topics[0] or ()) for each in filters)
