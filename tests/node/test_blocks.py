"""A node's answers are parsed whole or not at all."""

from contextlib import suppress
from itertools import permutations
from typing import Any

import pytest
from eth_hash.auto import keccak
from hypothesis import given
from hypothesis import strategies as st

from node.blocks import (
    Header,
    Log,
    LogFilter,
    Malformed,
    merge_logs,
    parse_header,
    parse_log,
    parse_logs,
    parse_quantity,
    parse_receipt,
    parse_receipts,
    require_block,
    require_range,
)
from node.bloom import bloom_contains
from node.inconsistency import Inconsistency

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(["0x", "0x0", "0x" + "11" * 32]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def hex32(byte: int) -> str:
    return "0x" + bytes([byte] * 32).hex()


def raw_header(**changes: object) -> dict[str, object]:
    header = {
        "number": "0x10",
        "hash": hex32(1),
        "parentHash": hex32(2),
        "timestamp": "0x65aabbcc",
        "logsBloom": "0x" + "00" * 256,
    }
    return header | changes


def raw_log(**changes: object) -> dict[str, Any]:
    log = {
        "address": "0x" + "Ab" * 20,
        "topics": [hex32(7), hex32(8)],
        "data": "0x0102",
        "blockHash": hex32(1),
        "blockNumber": "0x10",
        "transactionHash": hex32(3),
        "transactionIndex": "0x0",
        "logIndex": "0x5",
        "removed": False,
        "blockTimestamp": "0x65aabbcc",
    }
    return log | changes


def raw_receipt(**changes: object) -> dict[str, Any]:
    receipt = {
        "transactionHash": hex32(3),
        "transactionIndex": "0x0",
        "status": "0x1",
        "blockHash": hex32(1),
        "blockNumber": "0x10",
        "logs": [raw_log()],
    }
    return receipt | changes


LOG = Log(
    block_number=16,
    block_hash=bytes([1] * 32),
    tx_hash=bytes([3] * 32),
    tx_index=0,
    log_index=5,
    address=b"\xab" * 20,
    topics=(bytes([7] * 32), bytes([8] * 32)),
    data=b"\1\2",
    block_timestamp=0x65AABBCC,
)


def test_a_header_is_read_from_a_block_with_members_that_we_do_not_know() -> None:
    expected = Header(
        number=16,
        hash=bytes([1] * 32),
        parent_hash=bytes([2] * 32),
        timestamp=0x65AABBCC,
        logs_bloom=bytes(256),
    )
    assert parse_header(raw_header(extraData="0x", transactions=[])) == expected


def test_a_log_is_read_whatever_the_case_of_its_address() -> None:
    """Hard case 51."""
    assert parse_log(raw_log()) == LOG
    assert parse_log(raw_log(address="0x" + "aB" * 20)) == LOG


def test_a_block_after_the_first_has_a_time_and_lists_transactions_that_its_root_does_not_deny() -> None:
    assert parse_header(raw_header(number="0x0", timestamp="0x0")).timestamp == 0
    with pytest.raises(Malformed) as caught:
        parse_header(raw_header(timestamp="0x0"))
    assert caught.value.kind is Inconsistency.BLOCK_TIME
    empty = "0x56e81f171bcc55a6ff8345e692c0f86e5b48e01b996cadc001622fb5e363b421"
    assert keccak(b"\x80").hex() == empty[2:]
    assert parse_header(raw_header(transactions=[], transactionsRoot=empty)).raw_tx_hashes == []
    assert parse_header(raw_header(transactions=[], transactionsRoot=hex32(9))).raw_tx_hashes is None
    assert parse_header(raw_header(transactions=[{"hash": hex32(9)}])).raw_tx_hashes is None


def test_a_log_without_a_block_timestamp_or_with_zero_has_none() -> None:
    assert parse_log(raw_log(blockTimestamp="0x0")).block_timestamp is None
    log = raw_log()
    del log["blockTimestamp"]
    assert parse_log(log).block_timestamp is None


@pytest.mark.parametrize(
    "changes",
    [
        {"blockHash": None},
        {"blockNumber": None},
        {"logIndex": None},
        {"transactionHash": None},
        {"removed": True},
        {"removed": "0x1"},
        {"data": "0x1"},
        {"data": "0102"},
        {"data": "0x01 02"},
        {"data": "0xzz"},
        {"data": None},
        {"address": "0x" + "ab" * 19},
        {"address": "0x" + "ab" * 21},
        {"topics": [hex32(1)] * 5},
        {"topics": "0x"},
        {"topics": [hex32(1)[:-2]]},
        {"topics": [None]},
        {"logIndex": "0x"},
        {"logIndex": "0x05"},
        {"logIndex": "5"},
        {"logIndex": 5},
        {"logIndex": "0x-5"},
        {"logIndex": "0x_5"},
        {"logIndex": "0X5"},
        {"logIndex": ["0x5"]},
        {"logIndex": hex(2**31)},
        {"transactionIndex": hex(2**31)},
        {"blockNumber": "0x1" + "0" * 16},
    ],
)
def test_a_log_with_a_member_that_is_not_as_promised_is_refused(changes: dict[str, object]) -> None:
    """Hard cases 18, 30."""
    with pytest.raises(Malformed):
        parse_log(raw_log(**changes))


@pytest.mark.parametrize(
    "parse_and_raw", [(parse_log, raw_log), (parse_header, raw_header), (parse_receipt, raw_receipt)]
)
def test_an_answer_that_lacks_a_member_is_refused(parse_and_raw: tuple[Any, Any]) -> None:
    """Hard case 30."""
    parse, raw = parse_and_raw
    for member in raw():
        if member not in {"removed", "blockTimestamp"}:
            with pytest.raises(Malformed):
                parse({name: value for name, value in raw().items() if name != member})


@given(JSON, st.sampled_from(sorted(raw_log())))
def test_no_value_in_any_member_of_a_log_does_more_than_refuse_it(value: object, member: str) -> None:
    """Hard case 30."""
    with suppress(Malformed):
        assert isinstance(parse_log(raw_log(**{member: value})), Log)


@given(st.integers(0, 2**63 - 1))
def test_a_quantity_has_exactly_one_spelling(number: int) -> None:
    assert parse_quantity(hex(number)) == number
    with pytest.raises(Malformed):
        parse_quantity(f"0x0{number:x}")


def test_a_message_about_a_huge_answer_is_short() -> None:
    """Hard case 30."""
    with pytest.raises(Malformed) as caught:
        parse_log(raw_log(data="0x" + "z" * 1_000_000))
    assert len(str(caught.value)) < 1000


def test_logs_come_in_chain_order_or_not_at_all() -> None:
    """Hard case 31."""
    later_block = raw_log(blockNumber="0x11", blockHash=hex32(9), logIndex="0x0")
    answer = [raw_log(), raw_log(logIndex="0x6"), later_block]
    assert [(log.block_number, log.log_index) for log in parse_logs(answer)] == [(16, 5), (16, 6), (17, 0)]
    for shuffled in permutations(answer):
        if shuffled != tuple(answer):
            with pytest.raises(Malformed) as caught:
                parse_logs(list(shuffled))
            assert caught.value.kind is Inconsistency.UNSORTED_LOGS


def test_what_is_wrong_with_an_answer_has_a_kind() -> None:
    """Hard cases 1, 30, 31."""
    two_blocks = [raw_log(), raw_log(blockHash=hex32(9), logIndex="0x6")]
    for answer, kind in (
        ([raw_log(), raw_log()], Inconsistency.DUPLICATE_LOGS),
        (two_blocks, Inconsistency.OTHER_BLOCK),
        ([None], Inconsistency.MALFORMED),
    ):
        with pytest.raises(Malformed) as caught:
            parse_logs(answer)
        assert caught.value.kind is kind


@pytest.mark.parametrize(
    "answer", [[raw_log(), raw_log()], [raw_log(), raw_log(blockHash=hex32(9), logIndex="0x6")], {}, None, "0x", [None]]
)
def test_logs_that_repeat_or_contradict_each_other_are_refused(answer: object) -> None:
    """Hard case 31."""
    with pytest.raises(Malformed):
        parse_logs(answer)


def test_what_two_filters_found_is_there_once() -> None:
    first, second = parse_logs([raw_log()]), parse_logs([raw_log(logIndex="0x4"), raw_log()])
    assert [log.log_index for log in merge_logs([first, second])] == [4, 5]
    assert merge_logs([]) == ()
    with pytest.raises(Malformed):
        merge_logs([first, parse_logs([raw_log(data="0x")])])


def test_logs_of_other_blocks_than_those_that_were_asked_for_are_refused() -> None:
    """Hard case 1."""
    require_range([LOG], 16, 16)
    require_block([LOG], LOG.block_hash)
    for first, last in ((17, 20), (1, 15)):
        with pytest.raises(Malformed):
            require_range([LOG], first, last)
    with pytest.raises(Malformed):
        require_block([LOG], bytes(32))


@pytest.mark.parametrize(
    "changes",
    [
        {"status": "0x2"},
        {"status": None},
        {"transactionIndex": hex(2**31), "logs": []},
        {"logs": [raw_log(transactionHash=hex32(4))]},
        {"logs": None},
    ],
)
def test_a_receipt_with_a_foreign_log_or_without_a_status_is_refused(changes: dict[str, object]) -> None:
    """Hard case 20."""
    assert parse_receipt(raw_receipt()).logs == (LOG,)
    with pytest.raises(Malformed):
        parse_receipt(raw_receipt(**changes))


def test_the_receipts_of_a_block_must_be_complete() -> None:
    second = raw_receipt(transactionIndex="0x1", transactionHash=hex32(4), logs=[])
    assert [receipt.tx_index for receipt in parse_receipts([second, raw_receipt()])] == [0, 1]
    for answer in ([second], [raw_receipt(), raw_receipt()], None):
        with pytest.raises(Malformed):
            parse_receipts(answer)


def bloom_of(*values: bytes) -> bytes:
    """The Yellow Paper's M3:2048, bit by bit."""
    bloom = 0
    for value in values:
        digest = keccak(value)
        for pair in (digest[0:2], digest[2:4], digest[4:6]):
            bloom |= 1 << (int.from_bytes(pair, "big") & 2047)
    return bloom.to_bytes(256, "big")


@given(st.lists(st.binary(min_size=20, max_size=32), min_size=1, max_size=20))
def test_a_bloom_contains_all_that_was_put_in(values: list[bytes]) -> None:
    bloom = bloom_of(*values)
    assert all(bloom_contains(bloom, value) for value in values)
    assert not bloom_contains(bytes(256), values[0])


def test_a_filter_is_written_for_the_node_and_matches_the_same_here() -> None:
    wanted = LogFilter(addresses=(LOG.address,), topics=(None, (LOG.topics[1],)))
    assert wanted.to_rpc() == {"address": ["0x" + "ab" * 20], "topics": [None, [hex32(8)]]}
    assert LogFilter().to_rpc() == {"topics": []}
    assert wanted.matches(LOG)
    assert LogFilter().matches(LOG)
    assert not LogFilter(addresses=(bytes(20),)).matches(LOG)
    assert not LogFilter(topics=((bytes(32),),)).matches(LOG)
    assert not LogFilter(topics=(None, None, None)).matches(LOG)
    with pytest.raises(ValueError, match="without topics"):
        LogFilter(topics=((),))


def test_a_filter_of_many_addresses_is_split() -> None:
    """Hard case 39."""
    addresses = tuple(number.to_bytes(20, "big") for number in range(1001))
    parts = LogFilter(addresses=addresses, topics=(None,)).split(500)
    assert [len(part.addresses) for part in parts] == [500, 500, 1]
    assert tuple(address for part in parts for address in part.addresses) == addresses
    assert all(part.topics == (None,) for part in parts)
