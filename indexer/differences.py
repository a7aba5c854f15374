"""In what the rows of final blocks are not what a node says of them.  Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from enum import Enum, auto

from datastore.rows import Difference, Kind, LogRow, Place, StoredRange
from indexer.observation import Observed
from node.blocks import Log

BLOCK = "block"
"""``Difference.event`` of a block itself."""


class Word(Enum):
    """What an endpoint says about the differences of one block, whichever endpoint's answer they were found with."""

    CONFIRMS = auto()
    DENIES = auto()
    PROVES_NOTHING = auto()
    """It cannot show that its receipts are all of the block's."""
    IS_SILENT = auto()
    """It cannot be asked."""


def is_settled(words: Collection[Word], *, takes: bool, by_hand: bool) -> bool:
    """Whether the rows of a block may be changed to what these endpoints say.

    Something is added if an endpoint proves it and none proves otherwise.  Something is taken only if every endpoint
    that keeps the block proves that it is not there, and there are two of them, or a person asked for it.

    Args:
        words: Of each endpoint.
        takes: Whether a row would be taken or rewritten.
        by_hand: Whether a person asked.
    """
    if takes:
        return all(word is Word.CONFIRMS for word in words) and len(words) >= (1 if by_hand else 2)
    return Word.CONFIRMS in words and Word.DENIES not in words


def compare(stored: StoredRange, told_hash_by_number: Mapping[int, bytes], observed: Observed) -> list[Difference]:
    """What differs, by block and place.

    Args:
        stored: The rows of some blocks.
        told_hash_by_number: What the node says of each block in ``stored``.
        observed: What the node's logs of all of these blocks mean, on top of the baskets that are stored below them.
    """
    found = [
        Difference(kind=Kind.DIFFERENT, event=BLOCK, block_number=number, block_hash=block_hash)
        for number, block_hash in stored.hash_by_number.items()
        if told_hash_by_number[number] != block_hash
    ]
    found += _logs(stored, {(row.block_hash, row.log_index): row for row in observed.logs}, _meant(observed))
    return sorted(dict.fromkeys(found), key=_order)  # the requests of a block have one time


def _logs(
    stored: StoredRange, told: Mapping[Place, LogRow], meant: Mapping[Place, tuple[bytes, bytes, int] | None]
) -> Iterator[Difference]:
    for place, row in stored.logs.items():
        if place not in told:
            yield _difference(Kind.EXTRA, row, stored=row)
        elif not _same(row, told[place]):
            yield _difference(Kind.DIFFERENT, row, stored=row)
        elif place in meant:
            # The raw row is right; what was made of it may still not be there, or be another's.
            yield from _meaning(stored, row, meant[place])
        elif row.undecodable is None and told[place].undecodable is not None:
            # The raw row is right, but never meant what was made of it: a basket was made up, or was there already.
            yield _difference(Kind.DIFFERENT, row, stored=row)
    for place, row in told.items():
        if place not in stored.logs:
            yield _difference(Kind.MISSING, row)


def _meaning(stored: StoredRange, row: LogRow, meant: tuple[bytes, bytes, int] | None) -> Iterator[Difference]:
    place = (row.block_hash, row.log_index)
    request = stored.requests.get(place)
    is_there = place in stored.decoded if meant is None else request is not None and request[:2] == meant[:2]
    if not is_there:
        yield _difference(Kind.MISSING, row)
    elif request != meant:
        yield Difference(kind=Kind.MISTIMED, event=BLOCK, block_number=row.block_number, block_hash=row.block_hash)


def _meant(observed: Observed) -> dict[Place, tuple[bytes, bytes, int] | None]:
    """Where something was decoded; for a request, its identity, consumer and block time."""
    meant: dict[Place, tuple[bytes, bytes, int] | None] = {}
    meant |= {(basket.block_hash, basket.log_index): None for basket in observed.baskets}
    meant |= {(mint.block_hash, mint.log_index): None for mint in observed.mints}
    meant |= {(report.block_hash, report.log_index): None for report in observed.reports}
    return meant | {
        (request.block_hash, request.log_index): (request.identity, request.consumer, request.block_timestamp)
        for request in observed.requests
    }


def _difference(kind: Kind, row: LogRow, *, stored: LogRow | None = None) -> Difference:
    return Difference(
        kind=kind,
        event=row.event,
        block_number=row.block_number,
        block_hash=row.block_hash,
        log_index=row.log_index,
        stored=stored,
    )


def _same(stored: LogRow, told: LogRow) -> bool:
    """The same log; why it could not be decoded is our word, which another version may put differently."""
    return stored._replace(undecodable=None) == told._replace(undecodable=None)


def _order(difference: Difference) -> tuple[int, int]:
    return difference.block_number, -1 if difference.log_index is None else difference.log_index


def is_confirmed(
    difference: Difference,
    told_logs: Mapping[Place, LogRow],
    told_block: tuple[bytes, int | None],
    *,
    second_block: tuple[bytes, int],
    second_logs: Sequence[Log],
) -> bool:
    """Whether a second reading of the block says the same about it as the first.

    Args:
        difference: Between the rows and the first reading.
        told_logs: The first reading's, of known origin.
        told_block: Hash and time of the block in the first reading; the time only where a log of interest is in it.
        second_block: Hash and time of the block in the second reading.
        second_logs: Everything that the block holds by the second reading, if that has the same hash.
    """
    if second_block[0] != told_block[0]:
        return False
    if difference.kind is Kind.MISTIMED:
        return second_block == told_block
    if difference.log_index is None:
        return True
    place = (difference.block_hash, difference.log_index)
    second = {(log.block_hash, log.log_index): log for log in second_logs}
    told = told_logs.get(place)
    if told is not None:
        return place in second and _is_log(told, second[place])
    return place not in second or difference.stored is None or not _is_log(difference.stored, second[place])


def _is_log(row: LogRow, log: Log) -> bool:
    return (row.tx_hash, row.tx_index, row.address, row.topics, row.data) == (
        log.tx_hash,
        log.tx_index,
        log.address,
        b"".join(log.topics),
        log.data,
    )


def of_places(observed: Observed, differences: Sequence[Difference]) -> Observed:
    """Of what was observed, that which these differences are about."""
    places = {(difference.block_hash, difference.log_index) for difference in differences}
    return Observed(
        logs=[row for row in observed.logs if (row.block_hash, row.log_index) in places],
        baskets=[row for row in observed.baskets if (row.block_hash, row.log_index) in places],
        requests=[row for row in observed.requests if (row.block_hash, row.log_index) in places],
        mints=[row for row in observed.mints if (row.block_hash, row.log_index) in places],
        reports=[row for row in observed.reports if (row.block_hash, row.log_index) in places],
        role_changes=[row for row in observed.role_changes if (row.block_hash, row.log_index) in places],
    )
