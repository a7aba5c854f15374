"""In which ways an endpoint can contradict the protocol, the question, or itself: a closed set, for counting.  Pure."""

from __future__ import annotations

from enum import StrEnum


class Inconsistency(StrEnum):
    """What was seen; the label of ``bskt_rpc_inconsistencies_total``.

    The first group makes the answer invalid.  The second is settled or survived: it is counted, and the answer that is
    used is a proven one.
    """

    MALFORMED = "malformed"
    OTHER_BLOCK = "other_block"
    OTHER_TRANSACTION = "other_transaction"
    OTHER_CHAIN = "other_chain"
    OTHER_FORK = "other_fork"
    DUPLICATE_LOGS = "duplicate_logs"
    UNSORTED_LOGS = "unsorted_logs"
    FINALITY_ABOVE_HEAD = "finality_above_head"
    RECEIPTS_MISSING = "receipts_missing"
    BLOCK_TIME = "block_time"

    LOGS_MISSING = "logs_missing"
    BLOOM_MISMATCH = "bloom_mismatch"
    ROUND_COUNT = "round_count"
    HEAD_BACKWARDS = "head_backwards"
    FINALIZED_BACKWARDS = "finalized_backwards"
