"""Whether the receipts that an endpoint gives of a block are all of them.  Pure.

Nodes answer with nothing, or with less than there is, and do not say so: where receipts were pruned
(paradigmxyz/reth#21122, paradigmxyz/reth#27002, erigontech/erigon#16042, erigontech/erigon#19404), where those of one
block were lost (paradigmxyz/reth#23394), or where a system transaction is left out (0xPolygon/erigon#64).  Their
headers still list the transactions.  So an absence is never taken from an answer alone: the header proves it.
"""

from __future__ import annotations

from collections.abc import Sequence

from node.blocks import Header, Log, Malformed, Receipt, to_hex
from node.bloom import bloom_is_explained
from node.inconsistency import Inconsistency


def all_logs(receipts: Sequence[Receipt], header: Header, *, by_bloom: bool) -> tuple[Log, ...]:
    """The logs of a block in order, none of which can be missing.

    Each transaction that the header lists must have its receipt, and (``by_bloom``) the logs must explain every bit of
    the header's bloom.  Receipts beyond that list are taken, too: some chains have system transactions outside of it.

    Raises:
        Malformed: A receipt is missing, or a log, or the header lists no transactions to count by
            (``RECEIPTS_MISSING``).
    """
    listed = header.raw_tx_hashes
    if listed is None:
        raise _missing(f"the transactions of block {header.number} are not listed, so its receipts prove nothing")
    given = [to_hex(receipt.tx_hash) for receipt in receipts[: len(listed)]]
    if given != [tx_hash.lower() for tx_hash in listed]:
        raise _missing(f"{len(receipts)} receipts, but not of all {len(listed)} transactions of block {header.number}")
    logs = tuple(log for receipt in receipts for log in receipt.logs)
    if by_bloom and not bloom_is_explained(header.logs_bloom, logs):
        raise _missing(f"the bloom of block {header.number} speaks for logs that its receipts do not hold")
    return logs


def _missing(reason: str) -> Malformed:
    return Malformed(reason, Inconsistency.RECEIPTS_MISSING)
