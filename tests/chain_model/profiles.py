"""Chains that differ from Ethereum's in what a follower may trip over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """How a chain makes its blocks.

    ``seconds`` a block: below 1, several blocks have the same time.  ``system_type`` is the type of a transaction that
    each block begins with, made by the chain itself.  ``system_logs``: it emits one log of a stranger,
    which is in no bloom.  ``receipts_of_system`` is false where ``eth_getBlockReceipts`` leaves its receipt out.
    """

    name: str
    seconds: float
    bloom: Literal["true", "empty", "full"] = "true"
    system_type: str | None = None
    system_logs: bool = False
    receipts_of_system: bool = True


ETHEREUM: Final = Profile(name="ethereum", seconds=12)
PROFILES: Final = {
    each.name: each
    for each in (
        ETHEREUM,
        Profile(name="optimism", seconds=2, system_type="0x7e"),
        Profile(name="base", seconds=2, system_type="0x7e", bloom="full"),
        Profile(name="arbitrum", seconds=0.25, system_type="0x6a"),
        Profile(name="polygon", seconds=2, system_type="0x7f", system_logs=True, receipts_of_system=False),
        Profile(name="bnb", seconds=0.75, system_type="0x0", system_logs=True),
        Profile(name="no_bloom", seconds=1, bloom="empty", system_type="0x7e"),
    )
}
