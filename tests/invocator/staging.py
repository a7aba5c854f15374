"""What the tests of the invocator share: its terms, a gateway that answers as planned, and a basket's contracts."""

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace

import orjson

from datastore import claims
from datastore.claims import Pacing
from datastore.identity import execution_id_candidates
from datastore.rows import Basket, Block, Request
from invocator.classification import HttpReply, Reply
from invocator.invocation import SIMULATED_WORKFLOW, Invocator, Terms
from invocator.preflight import Contracts
from invocator.signing import Signer
from tests.datastore.builders import (
    ALICE,
    CONSUMER,
    TOKEN,
    request,
)

KEY = "0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80"  # the first well-known anvil key
SIGNER = Signer.from_text(KEY)
WORKFLOW_ID = bytes(range(32))
RIGHT = Contracts(is_minter=True, stablecoin=TOKEN, decimals=18)
TERMS = Terms(
    gateway_url="https://gateway.example/",
    workflow_ids=(WORKFLOW_ID,),
    currency="USD",
    pacing=Pacing(seconds_per_trigger=0, burst=1, max_in_flight=100),
    timeout_seconds=90,
    lease_seconds=120,
    completion_deadline_seconds=2400,
    give_up_seconds=86_400,
)
SIMULATING = replace(TERMS, mode=claims.SIMULATE, workflow_ids=(SIMULATED_WORKFLOW,), gateway_url="cre")


def accepted(body: bytes) -> Reply:
    document = orjson.loads(body)
    request_id, workflow_id = document["id"], bytes.fromhex(document["params"]["workflow"]["workflowID"])
    answer = {
        "jsonrpc": "2.0",
        "id": request_id,
        "method": "workflows.execute",
        "result": {
            "workflow_id": "0x" + workflow_id.hex(),
            "workflow_execution_id": "0x" + execution_id_candidates(workflow_id, request_id)[1].hex(),
            "status": "ACCEPTED",
        },
    }
    return HttpReply(status=200, body=json.dumps(answer).encode())


@dataclass(kw_only=True)
class Cre:
    """Answers with what is planned, else ACCEPTED; keeps what it got."""

    planned: list[Reply | Callable[[bytes], Reply]] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)

    async def post(self, body: bytes, token: str, timeout_seconds: float) -> Reply:
        assert timeout_seconds > 0
        self.bodies.append(body)
        self.tokens.append(token)
        planned = self.planned.pop(0) if self.planned else accepted
        return planned(body) if callable(planned) else planned


@dataclass(kw_only=True)
class Chain:
    """What the contracts of every basket say."""

    contracts: Contracts | None = RIGHT
    consumer: bytes = CONSUMER

    async def look_at(self, token: bytes, consumer: bytes) -> Contracts | None:
        assert (token, consumer) == (TOKEN, self.consumer)
        return self.contracts


Make = Callable[..., Invocator]


def announced(at: Block) -> Basket:
    return Basket(
        block_number=at.number,
        block_hash=at.hash,
        log_index=0,
        stablecoin=TOKEN,
        consumer=CONSUMER,
        creator=ALICE,
        admin=ALICE,
        name_raw=b"Test Dollar",
        symbol_raw=b"TUSD",
        name="Test Dollar",
        symbol="TUSD",
    )


def asked_for(name: str, at: Block, number: int = 0) -> Request:
    return request(name, at, log_index=number + 1)


async def run(invocator: Invocator) -> None:
    while await invocator.tick():
        pass


Ask = Callable[..., Awaitable[Block]]


def gateway_error(code: int, message: str, *, status: int = 400, date: int | None = None) -> Callable[[bytes], Reply]:
    def reply(body: bytes) -> Reply:
        answer = {
            "jsonrpc": "2.0",
            "id": orjson.loads(body)["id"],
            "method": "",
            "error": {"code": code, "message": message},
        }
        return HttpReply(status=status, body=orjson.dumps(answer), server_date=date)

    return reply


EXPIRED = "Auth failure: token is expired"
