"""The frozen request has the same bytes whenever it is built, and nothing hostile gets into it or stops it."""

import dataclasses
import json
import uuid

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from datastore.mint_amount import predicted_wei
from datastore.reference import expected_reference
from invocator.payload import (
    AMOUNT_NOT_REPRESENTABLE,
    DECIMALS_NOT_SUPPORTED,
    ORDER_MALFORMED,
    MintOrder,
    OrderRefused,
    request_body,
    workflow_input,
)
from invocator.signing import request_digest

NONCE = uuid.UUID("01234567-89ab-8cde-9012-3456789abcde")
ORDER = MintOrder(
    nonce=NONCE,
    workflow_id=bytes.fromhex("00da21b8b3e117e31f3a3e8a0795225cbde6c00283a84395117669691f2b7856"),
    beneficiary=bytes.fromhex("6C17b331Bf674D6F9F5AC436FE9AfbD79E9328bb"),
    amount_wei=1_500_000_000_000_000_000,
    decimals=18,
    expected_reference=b"DEPOSIT-1".ljust(32, b"\0"),
    token=bytes.fromhex("61E66d95527bb5BFC4218ef07f9F3356F6c73226"),
    consumer=bytes.fromhex("0b843F6d065977F7BBf81Dda913D76742081A8c5"),
    symbol="AUDT",
    block_timestamp=1_770_076_800,
    currency="USD",
)


def order(**changes: object) -> MintOrder:
    return dataclasses.replace(ORDER, **changes)  # type: ignore[arg-type]  # each test names a field of the order


def test_the_body_is_these_bytes_for_ever() -> None:
    """Hard case 76: another byte would be a conflict with what was sent before."""
    assert request_body(ORDER).decode() == (
        '{"id":"0123456789ab8cde90123456789abcde","jsonrpc":"2.0","method":"workflows.execute","params":{"input":{'
        '"amount":"1.5","bankReference":"DEPOSIT-1","basket":{'
        '"mintingConsumerAddress":"0x0b843F6d065977F7BBf81Dda913D76742081A8c5",'
        '"stablecoinAddress":"0x61E66d95527bb5BFC4218ef07f9F3356F6c73226","symbol":"AUDT"},'
        '"beneficiary":{"account":"0x6C17b331Bf674D6F9F5AC436FE9AfbD79E9328bb"},"currency":"USD",'
        '"messageType":"MT103","transactionId":"0123456789ab8cde90123456789abcde","valueDate":"2026-02-03"},'
        '"workflow":{"workflowID":"00da21b8b3e117e31f3a3e8a0795225cbde6c00283a84395117669691f2b7856"}}}'
    )


def test_a_simulation_gets_the_same_input() -> None:
    body = request_body(ORDER)

    assert json.loads(workflow_input(body)) == json.loads(body)["params"]["input"]


def test_a_reference_that_does_not_survive_is_replaced_by_the_nonce() -> None:
    """Hard case 89."""
    body = request_body(order(expected_reference=expected_reference(b"\xff" * 32, NONCE)))

    assert json.loads(body)["params"]["input"]["bankReference"] == NONCE.hex


@pytest.mark.parametrize(
    ("timestamp", "date"),
    [
        (1_770_163_199, "2026-02-03"),
        (1_770_163_200, "2026-02-04"),
        (0, "1970-01-01"),
        (-1, "1970-01-01"),
        (253_402_300_800, "9999-12-31"),
        (2**256 - 1, "9999-12-31"),
    ],
)
def test_the_value_date_is_the_blocks_utc_date(timestamp: int, date: str) -> None:
    """Hard cases 49 and 76."""
    assert json.loads(request_body(order(block_timestamp=timestamp)))["params"]["input"]["valueDate"] == date


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"decimals": 6}, DECIMALS_NOT_SUPPORTED),
        ({"amount_wei": 123_400_000_000_000}, AMOUNT_NOT_REPRESENTABLE),
        ({"amount_wei": 2**256 - 1}, AMOUNT_NOT_REPRESENTABLE),
        ({"amount_wei": 2**256}, ORDER_MALFORMED),
        ({"amount_wei": -1}, ORDER_MALFORMED),
        ({"expected_reference": b"\xff" * 32}, ORDER_MALFORMED),
        ({"expected_reference": b"short"}, ORDER_MALFORMED),
        ({"beneficiary": bytes(19)}, ORDER_MALFORMED),
        ({"token": bytes(21)}, ORDER_MALFORMED),
        ({"consumer": b""}, ORDER_MALFORMED),
        ({"workflow_id": bytes(31)}, ORDER_MALFORMED),
        ({"currency": ""}, ORDER_MALFORMED),
        ({"currency": "\ud800"}, ORDER_MALFORMED),
    ],
)
def test_what_would_mint_something_else_is_refused(changes: dict[str, object], code: str) -> None:
    """Hard case 52 for the decimals."""
    with pytest.raises(OrderRefused) as caught:
        request_body(order(**changes))

    assert caught.value.code == code
    assert caught.value.sentence == str(caught.value)


@pytest.mark.parametrize(
    ("symbol", "sent"),
    [
        ("", ""),
        ("€UR", "€UR"),
        ("\x00\x1b[31m\n\x7f\x9b", "\ufffd\ufffd[31m\ufffd\ufffd\ufffd"),
        ("\ud83d\ude00", "\ufffd\ufffd"),
        ("<script>&", "<script>&"),
        ("x" * 10_000, "x" * 64),
    ],
)
def test_a_hostile_symbol_is_cleaned_and_stops_nothing(symbol: str, sent: str) -> None:
    """Hard cases 43 and 50."""
    assert json.loads(request_body(order(symbol=symbol)))["params"]["input"]["basket"]["symbol"] == sent


@given(
    symbol=st.text(st.characters(), max_size=200) | st.text(st.characters(categories=["Cs", "Cc", "Cf"]), max_size=200),
    amount=st.integers(0, 10**30),
    timestamp=st.integers(),
    nonce=st.uuids(),
    reference=st.binary(min_size=32, max_size=32),
    address=st.binary(min_size=20, max_size=20),
)
def test_a_body_is_small_canonical_and_signable_or_refused(
    symbol: str, amount: int, timestamp: int, nonce: uuid.UUID, reference: bytes, address: bytes
) -> None:
    hostile = order(
        symbol=symbol,
        amount_wei=amount,
        block_timestamp=timestamp,
        nonce=nonce,
        expected_reference=expected_reference(reference, nonce),
        beneficiary=address,
    )
    try:
        body = request_body(hostile)
    except OrderRefused as refused:
        assert refused.code == AMOUNT_NOT_REPRESENTABLE  # noqa: PT017 - any other refusal is the failure
        return

    request = json.loads(body)
    sent = request["params"]["input"]
    assert body == rfc8785.dumps(request)
    assert request_digest(body).startswith("0x")
    assert len(body) < 1500
    assert request["id"] == sent["transactionId"] == nonce.hex
    assert predicted_wei(sent["amount"]) is not None
    assert set(sent["basket"]) == {"symbol", "stablecoinAddress", "mintingConsumerAddress"}
    assert "crossChain" not in sent
