"""Block ranges as people write them: ``16M:17M``, ``-1000:``, ``15M:+1000``, ``latest``, ``safe``, ``finalized``.

Both ends belong to the range.  ``A:B`` is from A to B; an end that is left out is block 0 or the latest; a single block
stands for itself.  ``-N`` counts back from the latest block, ``A:+N`` is N blocks from A on.  ``k`` and ``M`` are
thousand and million, ``_`` may separate digits.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

Tag: TypeAlias = Literal["latest", "safe", "finalized"]

_TAGS: Final[Mapping[str, Tag]] = {"latest": "latest", "safe": "safe", "finalized": "finalized"}
_FACTORS: Final = {"": 1, "k": 1_000, "K": 1_000, "M": 1_000_000}
_NUMBER: Final = re.compile(r"(\d+(?:_\d+)*)(?:\.(\d+))?([kKM]?)", re.ASCII)
_HIGHEST: Final = 2**63 - 1


class BlockRangeUnreadable(ValueError):
    """The text is no block range, or one without blocks; the message says what is expected."""

    def __init__(self, text: str, wrong: str) -> None:
        super().__init__(f"{text!r}: {wrong}; expected for example 16M:17M, -1000:, 15M:+1000 or finalized")


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockRange:
    """Numbers of the first and the last block, both in the range."""

    first: int
    last: int

    def __len__(self) -> int:
        return self.last - self.first + 1


def parse(text: str, heads: Mapping[Tag, int]) -> BlockRange:
    """The range that ``text`` means while the chain's tagged blocks have these numbers.

    Raises:
        BlockRangeUnreadable: A mistake of the person who wrote it, or a range that ends beyond the latest block.
    """
    start, colon, end = (part.strip() for part in text.partition(":"))
    if not colon:
        first = last = _block(text, start, heads)
    elif not start and not end:
        raise BlockRangeUnreadable(text, "both ends are left out")
    else:
        first = _block(text, start, heads) if start else 0
        last = _last(text, first, end, heads)
    if last < first:
        raise BlockRangeUnreadable(text, f"it ends at block {last}, before it begins at block {first}")
    if last > heads["latest"]:
        raise BlockRangeUnreadable(text, f"block {last} is beyond the latest block {heads['latest']}")
    return BlockRange(first=first, last=last)


def _last(text: str, first: int, end: str, heads: Mapping[Tag, int]) -> int:
    if not end:
        return heads["latest"]
    if end.startswith("+"):
        return first + _number(text, end[1:]) - 1
    return _block(text, end, heads)


def _block(text: str, block: str, heads: Mapping[Tag, int]) -> int:
    if (tag := _TAGS.get(block)) is not None:
        return heads[tag]
    if block.startswith("-"):
        # A chain shorter than that is read from its beginning.
        return max(0, heads["latest"] - _number(text, block[1:]) + 1)
    return _number(text, block)


def _number(text: str, number: str) -> int:
    match = _NUMBER.fullmatch(number)
    if match is None:
        raise BlockRangeUnreadable(text, f"{number!r} is not a block number")
    whole, fraction, unit = match[1], match[2] or "", match[3]
    scaled = int(whole + fraction) * _FACTORS[unit] if len(number) <= 20 else _HIGHEST + 1  # noqa: PLR2004 - 2**63 has 19
    parts: int = 10 ** len(fraction)
    value, rest = divmod(scaled, parts)
    if rest or value > _HIGHEST:
        raise BlockRangeUnreadable(text, f"{number!r} is not a block number")
    return value
