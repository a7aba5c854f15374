"""What the daemon decodes is what the contracts emit, and both are what the protocol's table says."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from eth_utils.crypto import keccak

from service.demo.contracts import load_artifact

ABI_DIR = Path(__file__).parents[2] / "abi"
ABI_NAMES = sorted(file.stem for file in ABI_DIR.iterdir())

TOPICS = {
    ("BasketFactory", "BasketCreated"): "5fcf38708b94ecdb53e489a693b3450a31cfba90c94dab9df7c2e751c1cbce87",
    ("MintingConsumer", "MintInstructionReceived"): "8f85d95b646693446d957532a1026d323cbc57874bc89f3f28723b9712e500af",
    ("MintingConsumer", "MintExecuted"): "836ff5fb67ec4713e238ab7ba20ad732e30c646a841a1b8b1d58a9df10dd2fca",
    ("MintingConsumer", "RedeemExecuted"): "3f9bff40aa00e04febb1a95fc32dcb72ee8dab5851e95c5cda9c79b41c5049a2",
    ("KeystoneForwarder", "ReportProcessed"): "3617b009e9785c42daebadb6d3fb553243a4bf586d07ea72d65d80013ce116b5",
    ("StablecoinERC20", "Transfer"): "ddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef",
}
MINT_REQUESTED = {
    "StablecoinERC20": [
        "address indexed requester",
        "address indexed beneficiary",
        "uint256 amount",
        "bytes32 indexed bankReference",
    ],
    "BasketFactory": [
        "address indexed stablecoin",
        "address indexed requester",
        "address indexed beneficiary",
        "uint256 amount",
        "bytes32 bankReference",
    ],
}


def abi_file(contract: str) -> list[Mapping[str, Any]]:
    entries: list[Mapping[str, Any]] = json.loads((ABI_DIR / f"{contract}.json").read_text())
    return entries


def entry_named(abi: Sequence[Mapping[str, Any]], name: str) -> Mapping[str, Any]:
    (entry,) = [entry for entry in abi if entry.get("name") == name]
    return entry


def topic0(entry: Mapping[str, Any]) -> bytes:
    return keccak(text=f"{entry['name']}({','.join(field['type'] for field in entry['inputs'])})")


def without_solidity_types(value: Any) -> Any:
    """`internalType` tells Solidity's name of a type and says nothing to a decoder."""
    if isinstance(value, list):
        return [without_solidity_types(item) for item in value]
    if isinstance(value, dict):
        return {key: without_solidity_types(item) for key, item in value.items() if key != "internalType"}
    return value


@pytest.mark.parametrize(("contract", "event"), TOPICS)
def test_an_event_has_the_topic_that_the_protocol_names(contract: str, event: str) -> None:
    assert topic0(entry_named(load_artifact(contract).abi, event)).hex() == TOPICS[contract, event]


@pytest.mark.parametrize("contract", MINT_REQUESTED)
def test_mint_requested_has_the_published_fields_in_the_published_order(contract: str) -> None:
    fields = [
        f"{field['type']}{' indexed' if field['indexed'] else ''} {field['name']}"
        for field in entry_named(abi_file(contract), "MintRequested")["inputs"]
    ]
    assert fields == MINT_REQUESTED[contract]


@pytest.mark.parametrize("contract", ABI_NAMES)
def test_every_entry_of_an_abi_file_is_in_the_contract_as_it_stands_there(contract: str) -> None:
    compiled = without_solidity_types(list(load_artifact(contract).abi))
    assert [entry for entry in abi_file(contract) if entry not in compiled] == []


def test_receiver_and_refusals_have_the_selectors_that_the_protocol_names() -> None:
    assert keccak(text="onReport(bytes,bytes)")[:4].hex() == "805f2132"
    assert keccak(text="report(address,bytes,bytes,bytes[])")[:4].hex() == "11289565"
    assert keccak(text="AlreadyAttempted(bytes32)")[:4].hex() == "a53dc8ca"
    assert keccak(text="PolicyRunRejected(address,string,(bytes4,address,bytes,bytes))")[:4].hex() == "fbdad4f4"
