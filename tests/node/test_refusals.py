"""The words of nodes and providers, as they were seen, and what they mean."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.refusals import MAX_RETRY_AFTER_SECONDS, Refusal, classify_rpc_error, retry_after_seconds


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (-32005, "query returned more than 10000 results. Try with this block range [0x1, 0x2]."),  # Infura
        (
            -32602,
            "Log response size exceeded. You can make eth_getLogs requests with up to a 2K block range",
        ),  # Alchemy
        (-32600, "Under the Free tier plan, you can make eth_getLogs requests with up to a 10 block range"),  # Alchemy
        (-32614, "eth_getLogs is limited to a 10,000 range"),  # QuickNode
        (-32602, "query exceeds max block range 100000"),  # reth
        (-32602, "query exceeds max results 20000, retry with the range 1-100"),  # reth
        (-32005, "Requested range exceeds maximum RPC range limit"),  # besu
        (-32005, "Too many logs requested. Max logs per response is 20000."),  # nethermind
        (-32000, "exceed maximum block range: 5000"),  # BSC
        (-32600, "block range is too wide"),  # Ankr
        (-32000, "Block range limit exceeded."),  # Chainstack
        (35, "ranges over 10000 blocks are not supported on freetier"),  # dRPC
        (-32020, "backend response too large"),  # proxyd
        (-32008, "Response is too big"),  # jsonrpsee
        (-32000, "query timeout exceeded"),  # geth
        (-32002, "request timed out"),  # geth
        (-32000, "exceed max addresses or topics per search position"),  # geth
    ],
)
def test_ask_for_less_is_understood_whoever_says_it(code: int, message: str) -> None:
    """Hard case 22."""
    assert classify_rpc_error(code, message, 200) is Refusal.TOO_MUCH


@pytest.mark.parametrize(
    ("code", "message", "status", "expected"),
    [
        (3, "execution reverted", 200, Refusal.REVERTED),
        (-32015, "VM execution error.", 200, Refusal.REVERTED),
        (-32000, "header not found", 200, Refusal.BLOCK_UNKNOWN),
        (-39001, "Unknown block", 200, Refusal.BLOCK_UNKNOWN),
        (-32000, "block not found", 200, Refusal.BLOCK_UNKNOWN),
        (-32001, "Resource not found", 200, Refusal.BLOCK_UNKNOWN),  # anvil
        (-32602, "BlockOutOfRangeError: block height is 4 but requested was 99", 200, Refusal.BLOCK_UNKNOWN),  # anvil
        (-32001, "Unable to complete request at this time.", 200, Refusal.OUT_OF_ORDER),
        (4444, "pruned history unavailable", 200, Refusal.PRUNED),
        (-32000, "missing trie node 0abc (path ) state is not available", 200, Refusal.PRUNED),
        (-32601, "the method eth_getBlockReceipts does not exist/is not available", 200, Refusal.UNSUPPORTED),
        (-32602, "invalid argument 0: hex string without 0x prefix", 200, Refusal.INVALID_REQUEST),
        (-32005, "daily request count exceeded, request rate limited", 200, Refusal.RATE_LIMITED),
        (429, "Your app has exceeded its compute units per second capacity", 429, Refusal.RATE_LIMITED),
        (None, "", 429, Refusal.RATE_LIMITED),
        (429, "", 200, Refusal.RATE_LIMITED),  # Alchemy, of one question of a batch
        (-32600, "Monthly capacity limit exceeded", 403, Refusal.RATE_LIMITED),  # Alchemy
        (None, "", 504, Refusal.TOO_MUCH),
        (None, "", 502, Refusal.OUT_OF_ORDER),
        (-32000, "something that nobody has ever said", 200, Refusal.OUT_OF_ORDER),
    ],
)
def test_other_refusals_keep_their_own_meaning(code: int | None, message: str, status: int, expected: Refusal) -> None:
    assert classify_rpc_error(code, message, status) is expected


@given(st.none() | st.integers(), st.text(max_size=3000), st.integers(100, 599))
def test_every_error_has_a_meaning(code: int | None, message: str, status: int) -> None:
    assert classify_rpc_error(code, message, status) in Refusal


@pytest.mark.parametrize(
    ("header", "date", "expected"),
    [
        (None, None, None),
        ("7", None, 7.0),
        ("-7", None, 0.0),
        ("99999999", None, MAX_RETRY_AFTER_SECONDS),
        ("9" * 400, None, MAX_RETRY_AFTER_SECONDS),
        ("9" * 5000, None, None),
        ("soon", None, None),
        ("soon", "Wed, 21 Oct 2015 07:28:00 GMT", None),
        ("Wed, 21 Oct 2015 07:28:30 GMT", "Wed, 21 Oct 2015 07:28:00 GMT", 30.0),
        ("Wed, 21 Oct 2015 07:28:30 GMT", None, None),
        ("Wed, 21 Oct 20155555555555555555 07:28:00 GMT", "Wed, 21 Oct 2015 07:28:00 GMT", None),
        ("Wed, 21 Oct 2015 07:28:00 +9999999999999", "Wed, 21 Oct 2015 07:28:00 GMT", None),
    ],
)
def test_a_pause_is_read_from_seconds_or_from_the_servers_own_clock(
    header: str | None, date: str | None, expected: float | None
) -> None:
    """Hard case 24."""
    assert retry_after_seconds(header, date) == expected
