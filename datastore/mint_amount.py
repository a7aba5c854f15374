"""Amounts on their way through the workflow (bskt.md §2): exact text out, what it mints for it foretold.  Pure.

The workflow computes ``BigInt(parseFloat(amount) * 10**18)``.  Python's float is the same IEEE double with the same
rounding, and 10**18 is a double exactly, so `predicted_wei` is that arithmetic and no approximation of it.
"""

from __future__ import annotations

import re
from typing import Final

MAX_UINT256: Final = 2**256 - 1
MAX_DECIMALS: Final = 18

_AMOUNT: Final = re.compile(r"[0-9]+(?:\.[0-9]{1,18})?", re.ASCII)
_WEI_PER_TOKEN: Final = 1e18
_WEI: Final = 10**18


def amount_text(wei: int, decimals: int = MAX_DECIMALS) -> str:
    """``wei`` of a token with ``decimals`` as exact decimal tokens, without trailing zeros: ``[0-9]+(.[0-9]{1,18})?``.

    The workflow assumes 18 decimals whatever the token says: for any other number this text is for people only.

    Raises:
        ValueError: No uint256, or more than 18 decimals.
    """
    if not 0 <= wei <= MAX_UINT256:
        raise ValueError("an amount is a uint256")
    if not 0 <= decimals <= MAX_DECIMALS:
        raise ValueError(f"{decimals} decimals; the workflow's amounts have at most {MAX_DECIMALS}")
    tokens, rest = divmod(wei, 10**decimals)
    if not rest:
        return str(tokens)
    return f"{tokens}.{rest:0{decimals}d}".rstrip("0")


def predicted_wei(text: str) -> int | None:
    """What the workflow mints for ``text``; ``None`` where it throws (a fraction of a wei, or no uint256).

    The result may differ from the exact amount: ``1.1`` becomes 1100000000000000128 wei.

    Raises:
        ValueError: ``text`` is not as `amount_text` writes it.
    """
    if not _AMOUNT.fullmatch(text):
        raise ValueError("an amount is sent as plain decimal digits")
    return _minted(float(text))


def predicted_for(wei: int) -> int | None:
    """``predicted_wei(amount_text(wei))`` without the text, ten times as fast.

    Both `float` and Python's division of integers give the double nearest to the exact value.
    """
    return _minted(wei / _WEI)


def _minted(tokens: float) -> int | None:
    product = tokens * _WEI_PER_TOKEN
    if not product.is_integer():  # an infinity is no integer either
        return None
    wei = int(product)
    return wei if wei <= MAX_UINT256 else None
