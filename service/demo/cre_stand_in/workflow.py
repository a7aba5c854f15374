"""The BSKT workflow as it really behaves, with its traps (protocol bskt.md §2), and the report that it signs.

Pure.  A trap that our daemon must never step into (no basket, cross-chain) ends in `WrongTarget`, which mints nothing
and which a test can count; the real workflow would mint in another place.
"""

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from eth_abi.abi import encode
from eth_utils.address import is_checksum_address

from service.demo.cre_stand_in.protocol import Json, Workflow

RESERVES_TOKENS = 100_000
REFERENCE_BYTES = 32
HEADER_BYTES = 109
# Simulation always says 0x0001, and so does the first report step of a deployed workflow (cre.md §5).
REPORT_ID = bytes.fromhex("0001")
MINT_INSTRUCTION = 1

_PARSE_FLOAT = re.compile(r"[\s\ufeff]*([+-]?(?:Infinity|(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?))", re.ASCII)
_ADDRESS = re.compile(r"0x[0-9a-fA-F]{40}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mint:
    """The workflow writes a report: this consumer is told to mint this amount for this recipient."""

    consumer: bytes
    recipient: bytes
    amount_wei: int
    bank_reference: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ReturnedFailure:
    """The workflow returned `{success: false}`: nothing appears on chain."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Threw:
    """The workflow threw: nothing appears on chain."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WrongTarget:
    """The input would have minted in the default basket (`basket`) or to the CCIP consumer (`cross_chain`)."""

    reason: str


Outcome: TypeAlias = Mint | ReturnedFailure | Threw | WrongTarget


class _Throws(Exception):
    pass


def run(workflow_input: Json) -> Outcome:
    """Do what the deployed workflow does with `params.input`; members that it does not know are dropped."""
    try:
        return _run(workflow_input)
    except _Throws as thrown:
        return Threw(reason=str(thrown))


def _run(workflow_input: Json) -> Outcome:
    if not isinstance(workflow_input, dict):
        raise _Throws("input is not an object")
    for name in ("messageType", "transactionId", "currency"):
        _text(workflow_input, name)
    recipient = _address(_text(_object(workflow_input, "beneficiary"), "account"))
    tokens = parse_float(_text(workflow_input, "amount"))
    amount_wei = wei(tokens)
    bank_reference = on_chain_reference(_text(workflow_input, "bankReference"))
    if "basket" not in workflow_input:
        return WrongTarget(reason="basket")
    basket = _object(workflow_input, "basket")
    for name in ("symbol", "stablecoinAddress"):
        _text(basket, name)
    consumer = _address(_text(basket, "mintingConsumerAddress"))
    cross_chain = workflow_input.get("crossChain")
    if isinstance(cross_chain, dict) and cross_chain.get("enabled") is True:
        return WrongTarget(reason="cross_chain")
    if tokens > RESERVES_TOKENS:
        return ReturnedFailure(reason="reserves")
    return Mint(consumer=consumer, recipient=recipient, amount_wei=amount_wei, bank_reference=bank_reference)


def parse_float(text: str) -> float:
    """JavaScript's `parseFloat`: the longest numeric beginning, so that `1,000` is 1; NaN where there is none."""
    match = _PARSE_FLOAT.match(text)
    return float(match[1]) if match else math.nan


def wei(tokens: float) -> int:
    """`BigInt(tokens * 10**18)`, which throws on a fraction, an infinity and NaN, then the ABI's uint256."""
    product = tokens * 1e18
    if not product.is_integer():
        raise _Throws(f"RangeError: {product} cannot be converted to a BigInt because it is not an integer")
    amount_wei = int(product)
    if not 0 <= amount_wei < 2**256:
        raise _Throws(f"{amount_wei} is no uint256")
    return amount_wei


def on_chain_reference(text: str) -> bytes:
    """Pad with NUL and cut to 32 characters, then take UTF-8: any non-ASCII character makes it too long."""
    reference = text.ljust(REFERENCE_BYTES, "\0")[:REFERENCE_BYTES].encode("utf-8", "surrogatepass")
    if len(reference) != REFERENCE_BYTES:
        raise _Throws(f"bankReference has {len(reference)} bytes, expected {REFERENCE_BYTES}")
    return reference


def _object(members: Mapping[str, Json], name: str) -> Mapping[str, Json]:
    value = members.get(name)
    if not isinstance(value, dict):
        raise _Throws(f"{name} is not an object")
    return value


def _text(members: Mapping[str, Json], name: str) -> str:
    value = members.get(name)
    if not isinstance(value, str):
        raise _Throws(f"{name} is not a string")
    return value


def _address(text: str) -> bytes:
    # One case only carries no checksum; a mixed one must be right (EIP-55), as the workflow's ABI encoder demands.
    digits = text[2:]
    one_case = digits in (digits.lower(), digits.upper())
    if not _ADDRESS.fullmatch(text) or not (one_case or is_checksum_address(text)):
        raise _Throws(f"{text!r} is not an address")
    return bytes.fromhex(digits)


def raw_report(mint: Mint, *, workflow: Workflow, execution_id: bytes, timestamp_seconds: int) -> bytes:
    """Build what the nodes sign: the header of 109 bytes, then the instruction for the consumer (cre.md §5)."""
    name = hashlib.sha256(workflow.name.encode()).hexdigest()[:10].encode()
    instruction = encode(
        ["uint8", "address", "uint256", "bytes32"],
        [MINT_INSTRUCTION, "0x" + mint.recipient.hex(), mint.amount_wei, mint.bank_reference],
    )
    header = (
        bytes([1])
        + execution_id
        + timestamp_seconds.to_bytes(4, "big")
        + (1).to_bytes(4, "big")  # DON id
        + (1).to_bytes(4, "big")  # DON configuration version
        + workflow.workflow_id
        + name
        + workflow.owner
        + REPORT_ID
    )
    return header + instruction
