import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.block_range import BlockRange, BlockRangeUnreadable, Tag, parse

HEADS: dict[Tag, int] = {"latest": 20_000_000, "safe": 19_999_968, "finalized": 19_999_936}


@pytest.mark.parametrize(
    ("text", "first", "last"),
    [
        ("16M:17M", 16_000_000, 17_000_000),
        ("15M:+1000", 15_000_000, 15_000_999),
        ("-1000:", 19_999_001, 20_000_000),
        ("-1:", 20_000_000, 20_000_000),
        ("-2k:-1k", 19_998_001, 19_999_001),
        (":100", 0, 100),
        ("16.5M:", 16_500_000, 20_000_000),
        ("17", 17, 17),
        ("1_000:2_000", 1_000, 2_000),
        ("latest", 20_000_000, 20_000_000),
        ("safe", 19_999_968, 19_999_968),
        (" 19M : finalized ", 19_000_000, 19_999_936),
        ("-30M:", 0, 20_000_000),
    ],
)
def test_a_range_is_read_as_people_mean_it(text: str, first: int, last: int) -> None:
    assert parse(text, HEADS) == BlockRange(first=first, last=last)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("", "'' is not a block number"),
        (":", "both ends are left out"),
        ("17M:16M", "before it begins"),
        ("15M:+0", "before it begins"),
        ("19M:21M", "beyond the latest block"),
        ("1:2:3", "'2:3' is not a block number"),
        ("1.5", "'1.5' is not a block number"),
        ("1.0005k:", "'1.0005k' is not a block number"),
        ("pending", "'pending' is not a block number"),
        ("+5:", "'+5' is not a block number"),
        ("--5:", "'-5' is not a block number"),
        ("0x10", "'0x10' is not a block number"),
        ("٣", "is not a block number"),
        ("9" * 5_000, "is not a block number"),
        (f"0:+{2**63}", "is not a block number"),
    ],
)
def test_what_is_no_range_is_refused_with_the_reason(text: str, wrong: str) -> None:
    with pytest.raises(BlockRangeUnreadable, match="expected for example") as caught:
        parse(text, HEADS)
    assert wrong in str(caught.value)


@given(st.text(alphabet="0123456789kM_:+-. latestsafefinalized", max_size=30))
def test_any_text_is_a_range_of_existing_blocks_or_refused(text: str) -> None:
    try:
        read = parse(text, HEADS)
    except BlockRangeUnreadable:
        return
    assert 0 <= read.first <= read.last <= HEADS["latest"]
    assert len(read) == read.last - read.first + 1
