"""Build the frozen request: the exact bytes that every attempt for a mint sends (bskt.md §2, cre.md §1.2).  Pure.

The bytes are canonical JSON (RFC 8785), so the same order gives the same bytes on any machine and Python version, and
the digest is taken over exactly what is sent.  Every value that matters is a string: a JSON number would be rounded to
a double on its way.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

import orjson
import rfc8785
from eth_utils.address import to_checksum_address

from datastore.mint_amount import amount_text, predicted_wei
from datastore.reference import sent_reference

METHOD: Final = "workflows.execute"

DECIMALS_NOT_SUPPORTED: Final = "decimals_not_supported"
AMOUNT_NOT_REPRESENTABLE: Final = "amount_not_representable"
ORDER_MALFORMED: Final = "order_malformed"

# The workflow multiplies by 10**18, whatever the token's decimals() says.
_WORKFLOW_DECIMALS: Final = 18
_ADDRESS_BYTES: Final = 20
_HASH_BYTES: Final = 32
_SYMBOL_CHARACTERS: Final = 64
_CURRENCY: Final = re.compile(r"[A-Z0-9]{1,12}", re.ASCII)
_LAST_SECOND_OF_YEAR_9999: Final = 253_402_300_799

# Named by code points and not by str.isprintable(), whose answer changes with Python's Unicode tables: a request that
# is frozen again after a failover must get the same bytes.
_UNSENDABLE: Final = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


class OrderRefused(Exception):
    """Nothing must be sent for this order.  ``code`` is closed; a person must look (state ``review``)."""

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code
        self.sentence = sentence


@dataclass(frozen=True, slots=True, kw_only=True)
class MintOrder:
    """What the frozen request of one mint is made of.

    ``workflow_id`` and ``expected_reference`` have 32 bytes, addresses 20.  ``symbol`` only decorates: routing goes by
    address.  ``block_timestamp`` is the request's block's; the value date must not change at midnight (hard case 76).
    """

    nonce: UUID
    workflow_id: bytes
    beneficiary: bytes
    amount_wei: int
    decimals: int
    expected_reference: bytes
    token: bytes
    consumer: bytes
    symbol: str
    block_timestamp: int
    currency: str


def request_body(order: MintOrder) -> bytes:
    """The bytes of the JSON-RPC request: about 600, never near the gateway's limit of 100 000.

    Raises:
        OrderRefused: The workflow would mint something else, or nothing, or cannot be asked.
    """
    _require_well_formed(order)
    request = {
        "jsonrpc": "2.0",
        "id": order.nonce.hex,
        "method": METHOD,
        "params": {
            "workflow": {"workflowID": order.workflow_id.hex()},
            # Without `basket` the workflow would mint in its default one; with `crossChain`, for another recipient.
            "input": {
                "messageType": "MT103",
                "transactionId": order.nonce.hex,
                "beneficiary": {"account": to_checksum_address(order.beneficiary)},
                "amount": _sendable_amount(order),
                "currency": order.currency,
                "valueDate": _value_date(order.block_timestamp),
                "bankReference": _sendable_reference(order.expected_reference),
                "basket": {
                    "symbol": _UNSENDABLE.sub("\ufffd", order.symbol[:_SYMBOL_CHARACTERS]),
                    "stablecoinAddress": to_checksum_address(order.token),
                    "mintingConsumerAddress": to_checksum_address(order.consumer),
                },
            },
        },
    }
    return rfc8785.dumps(request)  # type: ignore[arg-type]  # only texts and objects of texts


def workflow_input(body: bytes) -> bytes:
    """The part of a `request_body` that the workflow receives: what ``cre workflow simulate`` takes as payload."""
    return rfc8785.dumps(orjson.loads(body)["params"]["input"])


def _require_well_formed(order: MintOrder) -> None:
    addresses = (order.beneficiary, order.token, order.consumer)
    if any(len(address) != _ADDRESS_BYTES for address in addresses):
        raise OrderRefused(ORDER_MALFORMED, "An address does not have 20 bytes.")
    if len(order.workflow_id) != _HASH_BYTES:
        raise OrderRefused(ORDER_MALFORMED, "The workflow id does not have 32 bytes.")
    if not _CURRENCY.fullmatch(order.currency):
        raise OrderRefused(ORDER_MALFORMED, "The currency is not a code like USD.")


def _sendable_amount(order: MintOrder) -> str:
    if order.decimals != _WORKFLOW_DECIMALS:
        raise OrderRefused(
            DECIMALS_NOT_SUPPORTED,
            f"The token has {order.decimals} decimals; the workflow assumes {_WORKFLOW_DECIMALS}.",
        )
    try:
        text = amount_text(order.amount_wei)
    except ValueError as error:
        raise OrderRefused(ORDER_MALFORMED, "The amount is no uint256.") from error
    if predicted_wei(text) is None:
        raise OrderRefused(
            AMOUNT_NOT_REPRESENTABLE, f"The workflow's arithmetic makes no whole number of wei of {text} tokens."
        )
    return text


def _sendable_reference(expected_reference: bytes) -> str:
    try:
        return sent_reference(expected_reference)
    except ValueError as error:
        raise OrderRefused(ORDER_MALFORMED, "No text becomes the expected reference on chain.") from error


def _value_date(block_timestamp: int) -> str:
    # Hard case 49: a chain may say any number.
    capped = min(max(block_timestamp, 0), _LAST_SECOND_OF_YEAR_9999)
    return datetime.fromtimestamp(capped, tz=UTC).date().isoformat()
