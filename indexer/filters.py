"""Whether to ask a node for everybody's logs of our events, or for those of our contracts only.  Pure.

By topic alone one call finds everything, baskets born in the asked blocks too, and also what strangers emit under the
same topics.  By address nothing foreign comes, but a node takes only so many addresses in one call.
"""

from __future__ import annotations

from typing import Final

A_CALL_IN_LOGS: Final = 2_000
"""A call costs about as much as the reading of so many logs: some 20 ms."""

_CONTRACTS_A_BASKET: Final = 2


def calls_by_address(*, baskets: int, max_filter_addresses: int) -> int:
    """How many calls read one range by address: the factory's and the forwarder's, then the baskets' in chunks."""
    return 1 + -(-_CONTRACTS_A_BASKET * baskets // max_filter_addresses)


def by_address_is_cheaper(*, baskets: int, foreign_logs: int, max_filter_addresses: int) -> bool:
    """Whether the calls by address cost less than the foreign logs that one call by topic brings along.

    Args:
        baskets: How many are known.
        foreign_logs: How many logs of strangers a range of this size held.
        max_filter_addresses: How many addresses a node takes in one filter.
    """
    more_calls = calls_by_address(baskets=baskets, max_filter_addresses=max_filter_addresses) - 1
    return foreign_logs > A_CALL_IN_LOGS * more_calls
