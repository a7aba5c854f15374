"""Which logs of ours an answer near the head may not lack, and what no bloom of strangers' logs makes of them."""

from pathlib import Path

import pytest

from indexer.abi_files import load_abis
from indexer.decoding import EventCatalog
from node.blocks import Log
from node.bloom import bloom_admits, bloom_of
from tests.indexer.ledger import CATALOG, FACTORY, FORWARDER, SOURCES, TOKEN_FORM, USER, consumer, token

KNOWN = {token(number): consumer(number) for number in range(3)}
ABI_FOLDER = Path(__file__).parents[2] / "abi"
REPORT_FIELDS = {"receiver": "address", "workflowExecutionId": "bytes32", "reportId": "bytes2", "result": "bool"}
STRANGER = b"\x66" * 20
(FACTORY_FORM,) = CATALOG.requests_of_factory


def log(address: bytes, *topics: bytes) -> Log:
    return Log(1, 0, b"", b"", 0, address, topics, b"", None)


def word(address: bytes) -> bytes:
    return bytes(12) + address


REPORT = log(FORWARDER, CATALOG.report_processed_topic0, word(consumer(1)), b"\x01" * 32, b"\x02" * 32)
MINT = log(consumer(1), CATALOG.mint_executed_topic0, word(USER), b"\x03" * 32)


@pytest.mark.parametrize(
    ("lacked", "given"),
    [
        (log(FACTORY, CATALOG.basket_created_topic0, word(USER), word(USER), word(token(9))), []),
        (log(FACTORY, FACTORY_FORM, word(token(1)), word(USER), word(USER)), []),
        (log(token(2), TOKEN_FORM, word(USER), word(USER), b"\x03" * 32), []),
        (REPORT, []),
        (REPORT, [MINT]),
        (MINT, [REPORT]),
    ],
)
def test_what_an_answer_lacks_is_guessed_until_the_answer_has_it(lacked: Log, given: list[Log]) -> None:
    block = [lacked, *given]
    bloom = bloom_of(block)
    assert any(each.is_open(bloom, given) for each in SOURCES.guesses(KNOWN))
    assert not any(each.is_open(bloom, block) for each in SOURCES.guesses(KNOWN))
    assert any(bloom_admits(bloom, each) for each in SOURCES.believed(KNOWN))


@pytest.mark.parametrize(
    "block",
    [
        # The topic of an event that many contracts have, beside a transfer of a basket of ours.
        [log(STRANGER, topic0) for topic0 in CATALOG.role_event_by_topic0] + [log(token(1), b"\x09" * 32)],
        # A report for a contract of others, by the forwarder that all have in common, not shown in the answer.
        [log(FORWARDER, CATALOG.report_processed_topic0, word(STRANGER)), log(consumer(1), b"\x09" * 32)],
        # A contract of others that has our consumer's event, beside a log of the consumer.
        [log(STRANGER, CATALOG.mint_executed_topic0), log(consumer(1), b"\x09" * 32)],
        # The factory's form of a request, beside a transfer of a basket of ours.
        [log(STRANGER, FACTORY_FORM), log(token(1), b"\x09" * 32)],
    ],
)
def test_logs_of_strangers_beside_one_of_ours_are_no_guess(block: list[Log]) -> None:
    bloom = bloom_of(block)
    assert any(bloom_admits(bloom, each) for each in SOURCES.believed(KNOWN))
    assert not any(each.is_open(bloom, ()) for each in SOURCES.guesses(KNOWN))


def test_a_report_is_known_by_its_emitter_alone_where_the_abi_does_not_index_its_receiver() -> None:
    inputs = [{"name": name, "type": kind, "indexed": False} for name, kind in REPORT_FIELDS.items()]
    forwarder = [{"type": "event", "name": "ReportProcessed", "inputs": inputs}]
    catalog = EventCatalog({**load_abis(ABI_FOLDER), "KeystoneForwarder.json": forwarder})
    assert catalog.report_topics([consumer(1)]) == ((catalog.report_processed_topic0,),)
    assert CATALOG.report_topics([consumer(1)]) == ((catalog.report_processed_topic0,), (word(consumer(1)),))
