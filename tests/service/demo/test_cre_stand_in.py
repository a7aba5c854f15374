"""The stand-in obeys the protocol: it refuses what CRE refuses, forgets what CRE forgets, and counts all of it."""

import asyncio
import base64
import hashlib
import json
import os
import signal
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from eth_abi.abi import decode
from eth_account import Account
from eth_account.messages import encode_defunct
from hypothesis import given
from hypothesis import strategies as st

from service.demo.cre_stand_in import Clock, CreStandIn, RateLimit, Workflow, faults, protocol, workflow
from service.demo.cre_stand_in.chain import ALREADY_ATTEMPTED_SELECTOR, REPORT_PROCESSED_TOPIC, REPORT_SELECTOR
from service.demo.cre_stand_in.faults import FAULTS, FaultPlan
from service.demo.cre_stand_in.gateway import Gateway

NOW = 1_767_225_600.0
# The first two well-known anvil keys.
KEY = "0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80"
OTHER_KEY = "0x59c6995e998f97a5a0044966f0945389dc9e86dae88c7a8412f4603b6b78690d"
SIGNER = bytes.fromhex(Account.from_key(KEY).address[2:])
WORKFLOW = Workflow(
    workflow_id=bytes.fromhex("00da21b8b3e117e31f3a3e8a0795225cbde6c00283a84395117669691f2b7856"),
    authorized_keys=frozenset({SIGNER}),
)
FORWARDER = bytes.fromhex("f0" * 20)
CONSUMER = bytes.fromhex("c0" * 20)
RECIPIENT = bytes.fromhex("ee" * 20)
VECTORS: dict[str, Any] = json.loads(Path(__file__).with_name("cre_vectors.json").read_text())


def mint_input(**changes: object) -> dict[str, object]:
    return {
        "messageType": "MT103",
        "transactionId": "T1",
        "beneficiary": {"account": "0x" + RECIPIENT.hex()},
        "amount": "1.5",
        "currency": "USD",
        "bankReference": "REF-1",
        "basket": {
            "symbol": "AUDT",
            "stablecoinAddress": "0x" + "aa" * 20,
            "mintingConsumerAddress": "0x" + CONSUMER.hex(),
        },
        **changes,
    }


def body_of(request_id: object, **changes: object) -> dict[str, Any]:
    selector = {"workflowID": WORKFLOW.workflow_id.hex()}
    params = {"input": mint_input(), "workflow": selector}
    return {"jsonrpc": "2.0", "id": request_id, "method": "workflows.execute", "params": params, **changes}


def b64(text: str | bytes) -> str:
    raw = text.encode() if isinstance(text, str) else text
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def token_of(body: Mapping[str, Any], *, key: str = KEY, alg: str = "ETH", **claims: object) -> str:
    """Sign as a caller does, with its own canonical JSON: ASCII texts only, where json.dumps is RFC 8785 too."""
    whole = {name: body[name] for name in ("id", "jsonrpc", "method", "params")}
    digest = hashlib.sha256(json.dumps(whole, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    payload = {"digest": "0x" + digest, "iat": int(NOW), "exp": int(NOW) + 300, "jti": str(uuid.uuid4()), **claims}
    stated = {name: value for name, value in payload.items() if value is not None}
    signing_input = f"{b64(json.dumps({'alg': alg, 'typ': 'JWT'}))}.{b64(json.dumps(stated))}"
    return f"{signing_input}.{b64(Account.sign_message(encode_defunct(text=signing_input), key).signature)}"


@dataclass
class FakeChain:
    """A node that mines at once and knows one forwarder: `reorg` forgets blocks, `pending` transactions wait."""

    transactions: dict[str, dict[str, str]] = field(default_factory=dict)
    pending: set[str] = field(default_factory=set)
    rejecting: bool = False
    mines_at_once: bool = True
    down: bool = False
    head: int = 1
    sent: list[str] = field(default_factory=list)

    def reorg(self) -> None:
        self.transactions.clear()

    def mine(self, blocks: int = 1) -> None:
        self.pending.clear()
        self.head += blocks

    def answer(self, method: str, params: list[Any]) -> dict[str, object]:
        first: Any = params[0] if params else None
        if method == "eth_call" and self._delivered(report_of(first)[1]):
            return {"error": {"code": 3, "message": "reverted", "data": ALREADY_ATTEMPTED_SELECTOR + "00" * 32}}
        results: dict[str, Callable[[], object]] = {
            "eth_accounts": lambda: ["0x" + "01" * 20, "0x" + "02" * 20],
            "eth_blockNumber": lambda: hex(self.head),
            "eth_call": lambda: "0x",
            "eth_sendTransaction": lambda: self._send(first),
            "eth_getTransactionByHash": lambda: self.transactions.get(first),
            "eth_getTransactionReceipt": lambda: self._receipt(first),
        }
        return {"result": results[method]()}

    def _send(self, transaction: dict[str, str]) -> str:
        tx_hash = "0x" + hashlib.sha256(json.dumps(transaction).encode()).hexdigest()
        self.sent.append(tx_hash)
        self.transactions[tx_hash] = transaction
        self.head += 1
        if not self.mines_at_once:
            self.pending.add(tx_hash)
        return tx_hash

    def _delivered(self, execution_id: bytes) -> bool:
        mined = [tx for tx_hash, tx in self.transactions.items() if tx_hash not in self.pending]
        return not self.rejecting and any(report_of(tx)[1] == execution_id for tx in mined)

    def _receipt(self, tx_hash: str) -> dict[str, object] | None:
        if tx_hash not in self.transactions or tx_hash in self.pending:
            return None
        receiver, execution_id, _ = report_of(self.transactions[tx_hash])
        topics = [
            REPORT_PROCESSED_TOPIC,
            "0x" + receiver.hex().zfill(64),
            "0x" + execution_id.hex(),
            "0x0001" + "00" * 30,
        ]
        log = {
            "address": "0x" + FORWARDER.hex(),
            "topics": topics,
            "data": "0x" + ("0" if self.rejecting else "1").zfill(64),
        }
        return {"blockNumber": hex(self.head), "status": "0x1", "logs": [log]}


def report_of(transaction: Mapping[str, str]) -> tuple[bytes, bytes, bytes]:
    data = bytes.fromhex(transaction["data"][2:])
    assert data[:4] == REPORT_SELECTOR
    receiver, raw_report, _, _ = decode(["address", "bytes", "bytes", "bytes[]"], data[4:])
    return bytes.fromhex(receiver[2:]), raw_report[1:33], raw_report


@asynccontextmanager
async def serving(chain: FakeChain) -> AsyncIterator[str]:
    async def handle(request: web.Request) -> web.Response:
        if chain.down:
            return web.Response(status=503, text="down")
        call = await request.json()
        return web.json_response({"jsonrpc": "2.0", "id": call["id"], **chain.answer(call["method"], call["params"])})

    application = web.Application()
    application.router.add_post("/", handle)
    async with TestServer(application) as server:
        yield str(server.make_url("/"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    status: int
    text: str
    content_type: str

    @property
    def json(self) -> dict[str, Any]:
        return json.loads(self.text)  # type: ignore[no-any-return]

    @property
    def error(self) -> tuple[int, int]:
        return self.status, self.json["error"]["code"]


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    cre: CreStandIn
    chain: FakeChain
    session: aiohttp.ClientSession

    async def post_raw(self, body: bytes, token: str = "", *, seconds: float = 5) -> Answered:
        async with self.session.post(
            self.cre.url,
            data=body,
            headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
            timeout=aiohttp.ClientTimeout(total=seconds),
            allow_redirects=False,
        ) as response:
            text = await response.text()
            return Answered(status=response.status, text=text, content_type=response.headers.get("Content-Type", ""))

    async def post(self, body: Mapping[str, Any], *, seconds: float = 5, **signing: Any) -> Answered:
        issued_at = int(self.cre.clock.now())
        token = token_of(body, **{"iat": issued_at, "exp": issued_at + 300, **signing})
        return await self.post_raw(json.dumps(body).encode(), token, seconds=seconds)

    async def control(self, method: str, path: str, order: object = None) -> tuple[int, Any]:
        async with self.session.request(method, f"{self.cre.url}control/{path}", json=order) as response:
            return response.status, json.loads(await response.text()) if response.status == 200 else None


@asynccontextmanager
async def world(**options: Any) -> AsyncIterator[World]:
    chain = FakeChain()
    clock = Clock(source=lambda: NOW)
    async with (
        serving(chain) as rpc_url,
        CreStandIn(rpc_url=rpc_url, forwarder=FORWARDER, workflows=[WORKFLOW], clock=clock, **options) as cre,
        aiohttp.ClientSession() as session,
    ):
        yield World(cre=cre, chain=chain, session=session)


# --- the protocol, pure


@pytest.mark.parametrize("vector", VECTORS["vectors"], ids=lambda vector: vector["name"])
def test_every_vector_is_verified_to_its_signer_digest_and_execution_ids(vector: dict[str, Any]) -> None:
    request = protocol.parse(vector["wire_body"].encode(), header_token=vector["token"])
    claims = protocol.verify_token(request, now=vector["issued_at"])
    assert claims == protocol.Claims(signer=VECTORS["signer"].lower(), jti=vector["jti"], digest=vector["digest"])
    if vector["workflow_id"]:
        workflow_id = bytes.fromhex(vector["workflow_id"])
        for form in ("legacy", "trigger_index"):
            assert "0x" + protocol.execution_id(workflow_id, request.request_id, form=form).hex() == vector[form]


@pytest.mark.parametrize("case", VECTORS["edge_cases"], ids=lambda case: case["name"])
def test_every_edge_case_is_digested_or_refused_as_the_go_code_does(case: dict[str, Any]) -> None:
    def digest() -> str:
        return protocol.request_digest(protocol.parse(case["wire_body"].encode(), header_token=""))

    if case["digest"]:
        assert digest() == case["digest"]
        return
    with pytest.raises(protocol.Refused) as refused:
        digest()
    expected = (
        protocol.INVALID_REQUEST if case["name"] in ("duplicate_member", "lone_surrogate") else protocol.PARSE_ERROR
    )
    assert refused.value.code == expected


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(
    members=st.fixed_dictionaries(
        {},
        optional={
            "jsonrpc": st.just("2.0") | JSON,
            "id": st.text() | JSON,
            "method": st.just("workflows.execute") | JSON,
            "params": st.fixed_dictionaries({}, optional={"input": JSON, "workflow": JSON}) | JSON,
            "auth": st.just("e30.e30." + b64(bytes(65))) | JSON,
        },
    )
)
def test_no_body_gets_past_the_checks_or_breaks_them(members: dict[str, Any]) -> None:
    gateway = Gateway(clock=Clock(source=lambda: NOW), workflows=[WORKFLOW], rate_limit=None)
    with pytest.raises(protocol.Refused):
        pass_checks(gateway, json.dumps(members).encode())


@pytest.mark.parametrize("depth", [100, 500, 1000, 5000, 40_000])
def test_deep_nest_is_refused_and_not_a_crash(depth: int) -> None:
    """Hard case 119."""
    text = json.dumps(body_of("a")).replace('"MT103"', "[" * depth + "]" * depth)
    with pytest.raises(protocol.Refused):
        pass_checks(Gateway(clock=Clock(), workflows=[WORKFLOW], rate_limit=None), text.encode())


def pass_checks(gateway: Gateway, body: bytes) -> None:
    request = protocol.parse(body, header_token="e30.e30." + b64(bytes(65)))
    target = gateway.identify(request)
    protocol.request_digest(request)
    gateway.admit(request, target, gateway.authenticate(request))


# --- the workflow, pure


@pytest.mark.parametrize(
    ("amount", "amount_wei"),
    [
        ("1", 10**18),
        ("1.1", 1_100_000_000_000_000_128),
        ("1,000", 10**18),
        (" 12abc", 12 * 10**18),
        ("1e3", 1000 * 10**18),
        ("0", 0),
        ("100000", 99_999_999_999_999_991_611_392),
    ],
)
def test_amount_is_what_javascript_makes_of_it(amount: str, amount_wei: int) -> None:
    outcome = workflow.run(mint_input(amount=amount))  # type: ignore[arg-type]
    assert isinstance(outcome, workflow.Mint)
    assert outcome.amount_wei == amount_wei


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"amount": "0.0001234"}, workflow.Threw),
        ({"amount": "tokens"}, workflow.Threw),
        ({"amount": "Infinity"}, workflow.Threw),
        ({"amount": "-1"}, workflow.Threw),
        ({"amount": 1}, workflow.Threw),
        ({"amount": "1e60"}, workflow.Threw),
        ({"amount": "100001"}, workflow.ReturnedFailure),
        ({"bankReference": "Überweisung"}, workflow.Threw),
        ({"beneficiary": {"account": "0xF39Fd6e51aad88F6F4ce6aB8827279cffFb92266"}}, workflow.Threw),
        ({"beneficiary": {"name": "nobody"}}, workflow.Threw),
        ({"crossChain": {"enabled": True}}, workflow.WrongTarget),
        ({"basket": {"symbol": "AUDT"}}, workflow.Threw),
    ],
)
def test_inputs_that_mint_nothing(changes: dict[str, object], expected: type) -> None:
    assert isinstance(workflow.run(mint_input(**changes)), expected)  # type: ignore[arg-type]


def test_input_without_a_basket_is_a_wrong_target() -> None:
    lost = mint_input()
    del lost["basket"]
    assert workflow.run(lost) == workflow.WrongTarget(reason="basket")  # type: ignore[arg-type]


def test_reference_is_padded_and_cut_as_text() -> None:
    assert workflow.on_chain_reference("REF") == b"REF" + bytes(29)
    assert workflow.on_chain_reference("0x" + "ab" * 32) == ("0x" + "ab" * 15).encode()


def test_report_is_the_header_and_the_mint_instruction() -> None:
    mint = workflow.Mint(consumer=CONSUMER, recipient=RECIPIENT, amount_wei=7, bank_reference=b"r" * 32)
    named = replace(WORKFLOW, name="my_workflow", owner=b"o" * 20)
    report = workflow.raw_report(mint, workflow=named, execution_id=b"e" * 32, timestamp_seconds=5)
    header, instruction = report[: workflow.HEADER_BYTES], report[workflow.HEADER_BYTES :]
    assert header[:33] == b"\x01" + b"e" * 32
    assert header[33:37] == bytes([0, 0, 0, 5])
    assert header[45:77] == WORKFLOW.workflow_id
    assert header[77:87] == bytes.fromhex("62373666336165316465")
    assert header[87:] == b"o" * 20 + workflow.REPORT_ID
    recipient = "0x" + RECIPIENT.hex()
    assert decode(["uint8", "address", "uint256", "bytes32"], instruction) == (1, recipient, 7, b"r" * 32)


# --- the gateway


async def test_accepted_request_runs_once_and_mints_once() -> None:
    async with world() as here:
        answer = await here.post(body_of("a"))
        await here.cre.idle()
        execution_id = protocol.execution_id(WORKFLOW.workflow_id, "a", form="trigger_index")
        assert answer.content_type == "application/jsonrpc"
        assert answer.json == {
            "jsonrpc": "2.0",
            "id": "a",
            "method": "workflows.execute",
            "result": {
                "workflow_id": "0x" + WORKFLOW.workflow_id.hex(),
                "workflow_execution_id": "0x" + execution_id.hex(),
                "status": "ACCEPTED",
            },
        }
        [mint] = here.cre.ledger.mints()
        assert (mint.execution_id, mint.amount_wei, mint.bank_reference[:5]) == (execution_id, 15 * 10**17, b"REF-1")
        assert [len(here.cre.ledger.request_ids()), len(here.cre.ledger.runs_of("a"))] == [1, 1]


async def test_legacy_form_gives_the_other_execution_id() -> None:
    async with world(execution_id_form="legacy") as here:
        answer = await here.post(body_of("a"))
        expected = protocol.execution_id(WORKFLOW.workflow_id, "a", form="legacy")
        assert answer.json["result"]["workflow_execution_id"] == "0x" + expected.hex()


def _with_params(**changes: object) -> dict[str, Any]:
    return body_of("a", params={**body_of("a")["params"], **changes})


@pytest.mark.parametrize(
    ("body", "error", "sentence"),
    [
        (body_of(1), (400, -32700), "strings"),
        (body_of("x" * 201), (400, -32700), "too long"),
        (body_of("a", jsonrpc="1.0"), (400, -32700), "version"),
        (body_of("a", params=None), (400, -32700), "invalid params"),
        (body_of("a", method="vault.get"), (400, -32600), "Service name not found"),
        (body_of("a", method="workflows.run"), (400, -32601), "not a valid method"),
        (body_of(""), (400, -32600), "'id' field is required"),
        (body_of("a/b"), (400, -32600), "must not contain"),
        (_with_params(input="text"), (400, -32600), "Primitives"),
        (_with_params(workflow={}), (400, -32600), "workflowName is required"),
        (_with_params(workflow={"workflowID": "AB"}), (400, -32600), "lowercase"),
        (_with_params(workflow={"workflowID": "ab" * 34}), (400, -32600), "too long"),
        (_with_params(workflow={"workflowID": "xy"}), (400, -32600), "valid hex"),
        (_with_params(workflow={"workflowID": "ab"}), (400, -32600), "Workflow not found"),
    ],
)
async def test_wrong_request_is_refused_with_its_code(
    body: dict[str, Any], error: tuple[int, int], sentence: str
) -> None:
    async with world() as here:
        # A worthless token: everything here is checked before the token is.
        answer = await here.post_raw(json.dumps(body).encode(), "worthless")
        assert answer.error == error
        assert sentence in answer.json["error"]["message"]
        assert (sum(here.cre.ledger.refusals.values()), here.cre.ledger.runs) == (1, [])


@pytest.mark.parametrize(
    "selector",
    ["00" + WORKFLOW.workflow_id.hex()[2:], "0x" + WORKFLOW.workflow_id.hex(), WORKFLOW.workflow_id.hex()[2:]],
)
async def test_workflow_id_may_carry_0x_and_lack_leading_zeros(selector: str) -> None:
    async with world() as here:
        answer = await here.post(_with_params(workflow={"workflowID": selector}))
        assert answer.json["result"]["status"] == "ACCEPTED"


async def test_workflow_is_found_by_owner_name_and_tag() -> None:
    async with world() as here:
        names = {"workflowOwner": "0x" + "00" * 20, "workflowName": "bskt-mint", "workflowTag": "bskt-mint"}
        assert (await here.post(_with_params(workflow=names))).status == 200
        assert (await here.post(_with_params(workflow={**names, "workflowTag": "other"}))).error == (400, -32600)


@pytest.mark.parametrize(
    ("signing", "reason"),
    [
        ({"alg": "ES256K"}, "token"),
        ({"exp": int(NOW)}, "token_expired"),
        ({"iat": int(NOW) + 301, "exp": int(NOW) + 400}, "token_early"),
        ({"exp": int(NOW) + 301}, "token_lifetime"),
        ({"exp": None}, "token"),
        ({"iat": None}, "token"),
        ({"jti": None}, "token"),
        ({"digest": "0x" + "00" * 32}, "digest"),
        ({"key": OTHER_KEY}, "key_not_authorized"),
    ],
)
async def test_wrong_token_is_an_auth_failure(signing: dict[str, Any], reason: str) -> None:
    """Hard cases 82 and 83: skewed clocks and wrong digests."""
    async with world() as here:
        answer = await here.post(body_of("a"), **signing)
        assert answer.error == (400, -32600)
        assert answer.json["error"]["message"].startswith("Auth failure: ")
        assert here.cre.ledger.refusals == {reason: 1}


@pytest.mark.parametrize("token", ["", "a.b", "a.b.c", "e30.e30.!!!!", "e30.e30." + b64(bytes(65))])
async def test_malformed_token_is_an_auth_failure(token: str) -> None:
    async with world() as here:
        assert (await here.post_raw(json.dumps(body_of("a")).encode(), token)).error == (400, -32600)


async def test_token_in_the_body_wins_over_the_header_and_is_not_digested() -> None:
    async with world() as here:
        body = body_of("a")
        inside = {**body, "auth": token_of(body)}
        assert (await here.post_raw(json.dumps(inside).encode(), "worthless")).status == 200


async def test_signature_with_v_27_is_accepted_too() -> None:
    async with world() as here:
        body = body_of("a")
        signing_input, _, signature = token_of(body).rpartition(".")
        raw = base64.urlsafe_b64decode(signature + "==")
        other = raw[:64] + bytes([raw[64] - 27 if raw[64] >= 27 else raw[64] + 27])
        assert (await here.post_raw(json.dumps(body).encode(), f"{signing_input}.{b64(other)}")).status == 200


async def test_used_jti_is_refused_for_a_day_even_with_another_request() -> None:
    """Hard case 81."""
    async with world() as here:
        assert (await here.post(body_of("a"), jti="once")).status == 200
        again = await here.post(body_of("b"), jti="once")
        assert "already been used" in again.json["error"]["message"]
        here.cre.clock.advance(24 * 3600)
        assert (await here.post(body_of("b"), jti="once")).status == 200


async def test_rate_limit_refuses_after_the_burst_and_spends_the_jti() -> None:
    """Hard case 78."""
    async with world(rate_limit=RateLimit(seconds_per_trigger=60, burst=2)) as here:
        statuses = [(await here.post(body_of(request_id), jti=request_id)).status for request_id in "abc"]
        assert statuses == [200, 200, 429]
        assert "already been used" in (await here.post(body_of("c"), jti="c")).json["error"]["message"]
        here.cre.clock.advance(59)
        assert (await here.post(body_of("c"))).error == (429, -32002)
        here.cre.clock.advance(1)
        assert (await here.post(body_of("c"))).status == 200


async def test_oversize_body_is_400_with_nothing_in_it() -> None:
    async with world() as here:
        answer = await here.post(body_of("a", params={"input": {"x": "y" * 100_000}}))
        assert (answer.status, answer.text) == (400, "")


async def test_health_answers_ok() -> None:
    async with world() as here, here.session.get(here.cre.url + "health") as response:
        assert await response.text() == "OK"


def test_listening_beyond_loopback_is_refused() -> None:
    with pytest.raises(ValueError, match="loopback"):
        CreStandIn(rpc_url="", forwarder=FORWARDER, workflows=[], host="0.0.0.0")  # noqa: S104 - what must be refused


async def test_error_of_the_body_comes_out_as_itself() -> None:
    async def fail() -> None:
        async with world() as here:
            await here.post(body_of("a"))
            raise LookupError

    with pytest.raises(LookupError):
        await fail()


async def test_port_in_use_is_an_os_error() -> None:
    async with world() as here:
        port = int(here.cre.url.rstrip("/").rpartition(":")[2])
        second = CreStandIn(rpc_url="", forwarder=FORWARDER, workflows=[], port=port)
        with pytest.raises(OSError, match="address already in use"):
            await second.__aenter__()


# --- the nodes and the engine


async def test_repeated_id_is_answered_from_the_cache_and_runs_once() -> None:
    """Hard case 75."""
    async with world() as here:
        first, second = [await here.post(body_of("a")) for _ in range(2)]
        await here.cre.idle()
        assert first == second
        assert [len(here.cre.ledger.attempts_of("a")), len(here.cre.ledger.runs_of("a"))] == [2, 1]
        assert [len(here.cre.ledger.jtis()), len(here.cre.ledger.bodies_of("a"))] == [2, 1]


async def test_repeated_id_with_another_payload_is_a_conflict_inside_200() -> None:
    """Hard case 76."""
    async with world() as here:
        await here.post(body_of("a"))
        other_input = await here.post(_with_params(input=mint_input(amount="2")))
        other_selector = await here.post(_with_params(workflow={"workflowID": "0x" + WORKFLOW.workflow_id.hex()}))
        assert (other_input.error, other_selector.error) == ((200, -32003), (200, -32003))
        assert "different payload" in other_input.json["error"]["message"]
        assert len(here.cre.ledger.digests_of("a")) == 3


async def test_repeated_id_with_another_signer_is_a_conflict() -> None:
    async with world() as here:
        other = bytes.fromhex(Account.from_key(OTHER_KEY).address[2:])
        here.cre.gateway.workflows[:] = [replace(WORKFLOW, authorized_keys=frozenset({SIGNER, other}))]
        await here.post(body_of("a"))
        assert (await here.post(body_of("a"), key=OTHER_KEY)).error == (200, -32003)


async def test_after_a_day_the_same_id_runs_again_but_mints_once() -> None:
    """Hard case 79."""
    async with world() as here:
        await here.post(body_of("a"))
        await here.cre.idle()
        here.cre.clock.advance(24 * 3600)
        await here.post(body_of("a"))
        await here.cre.idle()
        assert len({run.execution_id for run in here.cre.ledger.runs_of("a")}) == 1
        states = [delivery.state for delivery in here.cre.ledger.deliveries_of("a")]
        assert (len(here.cre.ledger.runs), states, len(here.chain.sent)) == (2, ["delivered", "prior_transmission"], 1)


async def test_an_owner_runs_five_at_once_and_an_old_queue_is_dropped_silently() -> None:
    """Hard case 79."""
    async with world() as here:
        here.cre.hold_deliveries()
        answers = [await here.post(body_of(f"r{number}")) for number in range(7)]
        assert {answer.status for answer in answers} == {200}
        assert [run.request_id for run in here.cre.ledger.runs] == ["r0", "r1", "r2", "r3", "r4"]
        here.cre.clock.advance(601)
        await here.cre.release_deliveries()
        await here.cre.idle()
        assert (here.cre.ledger.dropped, len(here.cre.ledger.mints())) == (["r5", "r6"], 5)


async def test_young_queue_runs_when_a_run_ends_and_a_full_queue_is_an_error_of_the_nodes() -> None:
    async with world() as here:
        here.cre.hold_deliveries()
        for number in range(55):
            assert "result" in (await here.post(body_of(f"r{number}"))).json
        assert (await here.post(body_of("late"))).error == (200, -32000)
        await here.cre.release_deliveries()
        await here.cre.idle()
        assert (len(here.cre.ledger.mints()), here.cre.ledger.dropped) == (55, [])


# --- faults


@pytest.mark.parametrize(
    ("fault", "status", "runs"),
    [
        (faults.refuse(400, -32600, "Auth failure: no"), 400, 0),
        (faults.accept_then_drop(), 200, 0),
        (faults.conflict(), 409, 0),
        (faults.too_many_requests(), 429, 0),
        (faults.internal_error(), 500, 0),
        (faults.internal_error(forwards=True), 500, 1),
        (faults.bad_gateway(), 502, 0),
        (faults.unavailable(), 503, 0),
        (faults.handler_timeout(), 504, 1),
        (faults.html_page(), 200, 1),
        (faults.truncated_json(), 200, 1),
        (faults.foreign_id(), 200, 1),
        (faults.gigantic_body(), 200, 1),
        (faults.redirect(), 307, 0),
    ],
    ids=lambda value: getattr(value, "name", None),
)
async def test_fault_answers_with_its_status_and_runs_or_not(fault: faults.Fault, status: int, runs: int) -> None:
    """Hard cases 80, 84 and 86."""
    async with world() as here:
        here.cre.faults.next(fault)
        answer = await here.post(body_of("a"))
        assert (answer.status, len(here.cre.ledger.runs)) == (status, runs)
        assert [attempt.outcome for attempt in here.cre.ledger.attempts] == [f"fault:{fault.name}"]


@pytest.mark.parametrize(
    ("fault", "runs"),
    [(faults.drop_before_forwarding(), 0), (faults.answer_lost(), 1), (faults.answer_cut_short(), 1)],
    ids=lambda value: getattr(value, "name", None),
)
async def test_lost_connection_runs_or_not_and_a_retry_mints_once(fault: faults.Fault, runs: int) -> None:
    """Hard case 75."""
    async with world() as here:
        here.cre.faults.next(fault)
        with pytest.raises(aiohttp.ClientError):
            await here.post(body_of("a"))
        assert len(here.cre.ledger.runs) == runs
        assert (await here.post(body_of("a"))).status == 200
        await here.cre.idle()
        assert (len(here.cre.ledger.runs), len(here.cre.ledger.mints())) == (1, 1)


async def test_time_out_runs_and_never_answers() -> None:
    """Hard case 75."""
    async with world() as here:
        here.cre.faults.next(faults.time_out())
        with pytest.raises(TimeoutError):
            await here.post(body_of("a"), seconds=0.2)
        await here.cre.idle()
        assert len(here.cre.ledger.mints()) == 1


async def test_id_that_sticks_is_in_flight_until_it_is_reaped() -> None:
    """Hard case 80."""
    async with world() as here:
        here.cre.faults.next(faults.handler_timeout())
        assert (await here.post(body_of("a"))).error == (504, -32000)
        assert (await here.post(body_of("a"))).error == (409, -32003)
        here.cre.clock.advance(600)
        assert (await here.post(body_of("a"))).status == 200
        assert len(here.cre.ledger.runs) == 1


async def test_slow_answer_comes_when_its_time_has_passed_and_is_in_flight_until_then() -> None:
    async with world() as here:
        here.cre.faults.for_request("a", faults.slow_answer(30))
        async with asyncio.TaskGroup() as group:
            slow = group.create_task(here.post(body_of("a")))
            while not here.cre.ledger.attempts:
                await here.post_raw(b"")  # a round trip: the slow call arrives meanwhile
            assert (await here.post(body_of("a"))).error == (409, -32003)
            here.cre.clock.advance(30)
        assert slow.result().json["result"]["status"] == "ACCEPTED"


async def test_refused_request_uses_no_fault_up() -> None:
    async with world() as here:
        here.cre.faults.next(faults.bad_gateway())
        assert (await here.post(body_of("a"), key=OTHER_KEY)).status == 400
        assert (await here.post(body_of("a"))).status == 502


def test_plan_of_an_id_goes_before_the_line_and_the_line_before_chance() -> None:
    plan = FaultPlan()
    plan.next(faults.unavailable())
    plan.for_request("a", faults.conflict(), faults.redirect())
    plan.at_random({faults.answer_lost(): 1.0}, seed=7)
    names = [fault.name for request_id in "aaab" if (fault := plan.take(request_id))]
    assert names == ["conflict", "redirect", "unavailable", "answer_lost"]


def test_chance_is_repeatable_by_its_seed() -> None:
    def drawn(seed: int) -> list[bool]:
        plan = FaultPlan()
        plan.at_random({faults.answer_lost(): 0.5}, seed=seed)
        return [plan.take("a") is not None for _ in range(64)]

    assert drawn(1) == drawn(1) != drawn(2)


# --- deliveries


async def test_rejected_report_is_not_a_mint() -> None:
    async with world() as here:
        here.chain.rejecting = True
        await here.post(body_of("a"))
        await here.cre.idle()
        assert [delivery.state for delivery in here.cre.ledger.deliveries] == ["rejected"]
        assert here.cre.ledger.mints() == []


async def test_held_report_waits_until_it_is_released() -> None:
    async with world() as here:
        here.cre.hold_deliveries()
        await here.post(body_of("a"))
        await here.cre.check_deliveries()
        assert here.chain.sent == []
        await here.cre.release_deliveries()
        assert [delivery.state for delivery in here.cre.ledger.deliveries] == ["delivered"]


async def test_delayed_report_is_sent_when_its_time_has_come() -> None:
    async with world(delivery_delay_seconds=20) as here:
        await here.post(body_of("a"))
        here.cre.clock.advance(19)
        assert here.cre.ledger.deliveries == []
        here.cre.clock.advance(1)
        await here.cre.idle()
        assert len(here.cre.ledger.mints()) == 1


async def test_reorged_report_is_sent_again_in_another_transaction() -> None:
    """Hard case 94."""
    async with world() as here:
        await here.post(body_of("a"))
        await here.cre.idle()
        here.chain.reorg()
        await here.cre.check_deliveries()
        [delivery] = here.cre.ledger.deliveries
        assert (delivery.state, len(set(delivery.transactions))) == ("delivered", 2)
        reports = {report_of(transaction)[2] for transaction in here.chain.transactions.values()}
        assert reports == {delivery.raw_report}


async def test_delivery_below_the_final_depth_is_looked_at_no_more() -> None:
    async with world(final_depth_blocks=10) as here:
        await here.post(body_of("a"))
        await here.cre.idle()
        here.chain.mine(blocks=10)
        here.chain.reorg()
        await here.cre.check_deliveries()
        assert len(here.chain.sent) == 1


async def test_pending_report_is_not_sent_twice_and_settles_when_mined() -> None:
    async with world() as here:
        here.chain.mines_at_once = False
        await here.post(body_of("a"))
        while not here.chain.sent:
            await here.cre.check_deliveries()
        await here.cre.check_deliveries()
        assert [delivery.state for delivery in here.cre.ledger.deliveries] == ["sent"]
        here.chain.mine()
        await here.cre.check_deliveries()
        await here.cre.idle()
        assert (len(here.chain.sent), len(here.cre.ledger.mints())) == (1, 1)


async def test_report_written_while_the_node_is_down_goes_out_later() -> None:
    async with world() as here:
        here.chain.down = True
        await here.post(body_of("a"))
        while not here.cre.ledger.deliveries:
            await here.cre.check_deliveries()
        await here.cre.check_deliveries()
        assert here.chain.sent == []
        here.chain.down = False
        await here.cre.check_deliveries()
        assert len(here.cre.ledger.mints()) == 1


# --- the remote control and the process


async def test_remote_control_plans_faults_moves_the_clock_and_shows_the_ledger() -> None:
    async with world() as here:
        assert await here.control("POST", "faults", {"fault": "bad_gateway", "count": 2}) == (200, {})
        assert await here.control("POST", "faults", {"fault": "conflict", "request_id": "b"}) == (200, {})
        assert [(await here.post(body_of(request_id))).status for request_id in "aba"] == [502, 409, 502]
        assert await here.control("POST", "faults", {"chances": {"unavailable": 1}, "seed": 1}) == (200, {})
        assert (await here.post(body_of("a"))).status == 503
        assert await here.control("DELETE", "faults") == (200, {})
        assert await here.control("POST", "clock", {"advance_seconds": 5}) == (200, {"now": NOW + 5})
        assert await here.control("POST", "deliveries/hold") == (200, {})
        assert (await here.post(body_of("a"))).status == 200
        assert await here.control("POST", "deliveries/release") == (200, {})
        assert await here.control("POST", "deliveries/check") == (200, {})
        status, ledger = await here.control("GET", "ledger")
        assert (status, ledger["totals"]["mints"], ledger["totals"]["request_ids"]) == (200, 1, 2)
        assert ledger["requests"]["a"]["attempts"] == {"fault:bad_gateway": 2, "fault:unavailable": 1, "accepted": 1}
        assert ledger["deliveries"][0]["amount_wei"] == str(15 * 10**17)


@pytest.mark.parametrize(
    ("path", "order"),
    [
        ("faults", {"fault": "no_such_fault"}),
        ("faults", {"fault": "refuse", "arguments": {"status": 400}}),
        ("faults", {"chances": {"answer_lost": 2}, "seed": 1}),
        ("faults", []),
        ("clock", {}),
    ],
)
async def test_senseless_order_is_refused(path: str, order: object) -> None:
    async with world() as here:
        assert (await here.control("POST", path, order))[0] == 400


def test_every_fault_is_known_by_its_own_name() -> None:
    arguments: dict[str, tuple[object, ...]] = {"refuse": (400, -32600, "no"), "slow_answer": (1,)}
    makers: Mapping[str, Callable[..., faults.Fault]] = FAULTS
    assert {make(*arguments.get(name, ())).name for name, make in makers.items()} == set(FAULTS)


async def test_stand_in_runs_as_its_own_process_and_keeps_a_ledger_file(tmp_path: Path) -> None:
    ledger_file = tmp_path / "ledger.jsonl"
    async with serving(FakeChain()) as rpc_url, aiohttp.ClientSession() as session:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "service.demo.cre_stand_in", "--rpc-url", rpc_url, "--forwarder", FORWARDER.hex()),
            *("--workflow", WORKFLOW.workflow_id.hex(), "--authorized-key", SIGNER.hex()),
            *("--ledger", str(ledger_file), "--check-interval-seconds", "0.05"),
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        try:
            url = (await process.stdout.readline()).decode().strip()
            async with session.get(url + "control/ledger") as response:
                assert (await response.json())["totals"]["attempts"] == 0
            async with session.post(url, json=body_of("a")) as response:
                assert response.status == 400
        finally:
            os.kill(process.pid, signal.SIGTERM)
            await process.communicate()
        assert process.returncode == 0
        assert json.loads(ledger_file.read_text())["attempt"]["outcome"] == "refused:token"
