"""A bloom is evidence after it has proven itself."""

from hypothesis import given
from hypothesis import strategies as st

from node.blocks import Log, LogFilter
from node.bloom import (
    BLOCKS_TO_PROVE,
    BloomTrust,
    bloom_admits,
    bloom_admits_log,
    bloom_contains,
    bloom_is_explained,
    bloom_of,
)
from tests.node.rpc_stand_in import Emitted, bloom

WORDS = st.binary(min_size=32, max_size=32)
ADDRESSES = st.binary(min_size=20, max_size=20)
EMITTED = st.builds(
    lambda address, topics: Emitted(address=address, topics=tuple(topics)), ADDRESSES, st.lists(WORDS, max_size=4)
)


def log(emitted: Emitted, index: int = 0) -> Log:
    return Log(
        block_number=1,
        block_hash=bytes(32),
        tx_hash=bytes(32),
        tx_index=index,
        log_index=index,
        address=emitted.address,
        topics=emitted.topics,
        data=b"",
        block_timestamp=None,
    )


@given(st.lists(EMITTED, max_size=20))
def test_a_bloom_is_that_of_its_logs_and_admits_each_of_them(emitted: list[Emitted]) -> None:
    logs = [log(each, index) for index, each in enumerate(emitted)]
    assert bloom_of(logs) == bloom(emitted)
    for each in logs:
        assert bloom_admits_log(bloom_of(logs), each)
        # Whatever filter a log matches is admitted: a "no" is never wrong.
        for wanted in (
            LogFilter(addresses=(b"\x01" * 20, each.address)),
            LogFilter(topics=tuple((topic,) for topic in each.topics)),
            LogFilter(addresses=(each.address,), topics=(*((None,) * len(each.topics[:1])),)),
        ):
            assert wanted.matches(each)
            assert bloom_admits(bloom_of(logs), wanted)


@given(st.lists(EMITTED, min_size=1, max_size=20), st.data())
def test_a_bloom_is_explained_by_all_logs_of_its_block_and_by_fewer_only_if_they_set_the_same_bits(
    emitted: list[Emitted], data: st.DataObject
) -> None:
    logs = [log(each, index) for index, each in enumerate(emitted)]
    assert bloom_is_explained(bloom_of(logs), logs)
    fewer = data.draw(st.lists(st.sampled_from(logs), unique=True, max_size=len(logs) - 1))
    assert bloom_is_explained(bloom_of(logs), fewer) == (bloom_of(fewer) == bloom_of(logs))
    assert bloom_is_explained(bloom_of(fewer), logs)
    assert bloom_is_explained(bytes(256), fewer)
    assert bloom_is_explained(b"\xff" * 256, fewer)


def test_an_empty_bloom_admits_only_what_asks_for_nothing() -> None:
    empty = bytes(256)
    assert not bloom_contains(empty, b"\x01" * 20)
    assert not bloom_admits(empty, LogFilter(addresses=(b"\x01" * 20,)))
    assert not bloom_admits(empty, LogFilter(topics=((b"\x01" * 32, b"\x02" * 32),)))
    assert bloom_admits(empty, LogFilter(topics=(None,)))


def test_trust_is_earned_by_several_blocks_and_lost_by_one_for_good() -> None:
    trust = BloomTrust()
    for _ in range(BLOCKS_TO_PROVE):
        assert (trust.is_on_trial, trust.is_proven) == (True, False)
        trust = trust.agreed()
    assert (trust.is_on_trial, trust.is_proven) == (False, True)
    caught = trust.caught().agreed().agreed().agreed()
    assert (caught.is_on_trial, caught.is_proven) == (False, False)
