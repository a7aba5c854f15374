"""The bank's reference on its way through the workflow (bskt.md §2).  Pure.

The workflow takes ``bankReference`` as text, pads it with NUL, cuts it to 32 characters and encodes it as UTF-8; that
becomes the ``bytes32`` of ``MintExecuted``.  It does not trim, so blanks survive at both ends, and ``0x…`` is text like
any other.  Between us and the workflow the gateway writes ``<``, ``>`` and ``&`` as escapes; decoding that JSON
gives the same characters back, so nothing needs to be excluded for it.
"""

from __future__ import annotations

import re
from typing import Final
from uuid import UUID

# Printable ASCII, then only NUL: anything else comes back changed, or makes the workflow fail.
_TEXT: Final = re.compile(rb"(?=.{32}\Z)([\x20-\x7e]+)\0*", re.DOTALL)


def reference_text(bank_reference: bytes) -> str | None:
    """The text that the workflow turns into exactly these 32 bytes; ``None`` where there is none."""
    match = _TEXT.fullmatch(bank_reference)
    return match[1].decode("ascii") if match else None


def expected_reference(bank_reference: bytes, nonce: UUID) -> bytes:
    """The 32 bytes that ``MintExecuted`` will carry: the bank's reference, or the nonce's 32 hex digits as text.

    Hard case 89: a reference that does not survive would come back truncated and might match another request's.
    """
    return bank_reference if _TEXT.fullmatch(bank_reference) else nonce.hex.encode("ascii")


def folded_reference(bank_reference: bytes) -> bytes:
    """What is left of a reference without case, spaces and dashes: two that a person would read as one fold alike.

    ``folded_reference`` of ``schema.sql`` is the same rule, for its indexes.
    """
    return bank_reference.rstrip(b"\0").lower().translate(None, b" -")


def sent_reference(expected: bytes) -> str:
    """The text to send so that ``expected`` (from `expected_reference`) appears on chain.

    Raises:
        ValueError: No text gives these bytes: they do not come from `expected_reference`.
    """
    text = reference_text(expected)
    if text is None:
        raise ValueError("no text becomes this reference on chain")
    return text
