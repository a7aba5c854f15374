"""From a request on chain, through the stand-in, to a proven mint on chain: the stand-in and our contracts agree."""

import asyncio
import base64
import hashlib
import json
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from eth_account import Account
from eth_account.messages import encode_defunct
from eth_utils.crypto import keccak

from service.demo.anvil import Anvil
from service.demo.contracts import (
    Basket,
    DevChain,
    Receipt,
    System,
    call,
    create_basket,
    deploy_system,
    request_mint,
    total_supply,
)
from service.demo.cre_stand_in import CreStandIn, Workflow

# The first well-known anvil key.
KEY = "0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80"
SIGNER = bytes.fromhex(Account.from_key(KEY).address[2:])
WORKFLOW = Workflow(workflow_id=bytes(range(32)), authorized_keys=frozenset({SIGNER}))
USER = bytes.fromhex("3C44CdDdB6a900fa2b585dd299e03d12FA4293BC")
REFERENCE = b"DEP-2026-0001".ljust(32, b"\0")
# Exact in the workflow's arithmetic, so that what is minted is what was asked for.
AMOUNT_TEXT, AMOUNT_WEI = "2.5", 2_500_000_000_000_000_000

MINT_EXECUTED = keccak(text="MintExecuted(address,uint256,bytes32)")
REPORT_PROCESSED = keccak(text="ReportProcessed(address,bytes32,bytes2,bool)")


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    session: aiohttp.ClientSession
    chain: DevChain
    system: System
    basket: Basket
    cre: CreStandIn

    async def trigger(self, request_id: str) -> None:
        """Ask for the workflow's run as a caller does, and wait until it ended."""
        body = self._body(request_id)
        token = token_of(body, issued_at=int(self.cre.clock.now()))
        async with self.session.post(
            self.cre.url, data=json.dumps(body), headers={"Authorization": f"Bearer {token}"}
        ) as response:
            assert (await response.json(content_type=None))["result"]["status"] == "ACCEPTED"
        await self.cre.idle()

    def _body(self, request_id: str) -> dict[str, Any]:
        mint = {
            "messageType": "MT103",
            "transactionId": request_id,
            "beneficiary": {"account": "0x" + USER.hex()},
            "amount": AMOUNT_TEXT,
            "currency": "USD",
            "bankReference": REFERENCE.rstrip(b"\0").decode(),
            "basket": {
                "symbol": "AUDT",
                "stablecoinAddress": "0x" + self.basket.token.hex(),
                "mintingConsumerAddress": "0x" + self.basket.consumer.hex(),
            },
        }
        params = {"input": mint, "workflow": {"workflowID": WORKFLOW.workflow_id.hex()}}
        return {"jsonrpc": "2.0", "id": request_id, "method": "workflows.execute", "params": params}

    async def mined_delivery(self) -> tuple[str, Receipt]:
        """Give the only delivery's state and receipt, once its newest transaction is mined."""
        async with asyncio.timeout(20):
            while True:
                await self.cre.check_deliveries()
                (delivery,) = self.cre.ledger.deliveries
                receipt = await self.chain.receipt(bytes.fromhex(delivery.transactions[-1][2:]))
                if receipt is not None and delivery.block_number == receipt.block_number:
                    return delivery.state, receipt


def token_of(body: dict[str, Any], *, issued_at: int) -> str:
    """Sign with this test's own JSON: ASCII texts only, where json.dumps is RFC 8785 too."""

    def encoded(part: bytes) -> str:
        return base64.urlsafe_b64encode(part).rstrip(b"=").decode()

    digest = hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    claims = {"digest": "0x" + digest, "iss": "0x" + SIGNER.hex(), "iat": issued_at, "exp": issued_at + 300}
    parts = [{"alg": "ETH", "typ": "JWT"}, {**claims, "jti": str(uuid.uuid4())}]
    signing_input = ".".join(encoded(json.dumps(part).encode()) for part in parts)
    return f"{signing_input}.{encoded(Account.sign_message(encode_defunct(text=signing_input), KEY).signature)}"


@pytest.fixture
async def world(anvil_binary: Path) -> AsyncIterator[World]:
    async with await Anvil.start(anvil_binary) as anvil, aiohttp.ClientSession() as session:
        chain = DevChain(session=session, url=anvil.url)
        system = await deploy_system(chain)
        basket = await create_basket(chain, system.factory, name="Australian Dollar Token", symbol="AUDT")
        async with CreStandIn(
            rpc_url=anvil.url,
            forwarder=system.forwarder,
            workflows=[WORKFLOW],
            # Even an anvil that mines at once may answer before it has mined.
            check_interval_seconds=0.05,
        ) as cre:
            yield World(session=session, chain=chain, system=system, basket=basket, cre=cre)


async def test_a_request_on_chain_ends_in_a_mint_and_its_report_in_one_transaction(world: World) -> None:
    request = await request_mint(
        world.chain, world.basket.token, beneficiary=USER, amount_wei=AMOUNT_WEI, bank_reference=REFERENCE
    )
    await world.trigger("request-1")
    state, delivered = await world.mined_delivery()
    minted, reported = delivered.logs[-2:]
    assert state == "delivered"
    assert delivered.block_number > request.block_number
    assert (minted.address, minted.topics[0], minted.topics[2]) == (world.basket.consumer, MINT_EXECUTED, REFERENCE)
    assert (reported.address, reported.topics[0]) == (world.system.forwarder, REPORT_PROCESSED)
    assert reported.topics[1][12:] == world.basket.consumer
    assert reported.topics[2] == world.cre.ledger.deliveries[0].execution_id
    assert int.from_bytes(reported.data, "big") == 1
    assert await total_supply(world.chain, world.basket.token) == AMOUNT_WEI


async def test_a_request_id_that_comes_again_mints_once(world: World) -> None:
    await world.trigger("request-1")
    await world.trigger("request-1")
    await world.mined_delivery()
    assert await total_supply(world.chain, world.basket.token) == AMOUNT_WEI


async def test_a_policy_rejection_is_a_report_with_result_false_and_no_mint(world: World) -> None:
    await world.chain.transact(call(world.basket.consumer, "setPolicyRejects(bool)", True))
    await world.trigger("request-1")
    state, rejected = await world.mined_delivery()
    assert state == "rejected"
    assert [log.topics[0] for log in rejected.logs] == [REPORT_PROCESSED]
    assert int.from_bytes(rejected.logs[0].data, "big") == 0


async def test_a_delivery_that_a_reorg_took_comes_again_under_another_hash_and_mints_once(world: World) -> None:
    await world.trigger("request-1")
    _, before = await world.mined_delivery()
    await world.chain.reorg(1)
    assert await total_supply(world.chain, world.basket.token) == 0
    state, after = await world.mined_delivery()
    assert state == "delivered"
    assert after.tx_hash != before.tx_hash
    assert await total_supply(world.chain, world.basket.token) == AMOUNT_WEI
