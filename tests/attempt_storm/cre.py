"""CRE in this process: the stand-in's own layers, before a forwarder that keeps the real one's promise."""

from collections.abc import Coroutine
from dataclasses import dataclass, field

from eth_abi.abi import decode

from invocator.classification import HttpReply, NoAnswer, Reply
from invocator.cre_gateway import MAX_ANSWER_BYTES
from service.demo.cre_stand_in.chain import Receipt
from service.demo.cre_stand_in.clock import Clock
from service.demo.cre_stand_in.deliveries import Deliveries
from service.demo.cre_stand_in.exchange import exchange
from service.demo.cre_stand_in.faults import FaultPlan, StaySilent
from service.demo.cre_stand_in.gateway import Gateway
from service.demo.cre_stand_in.ledger import Ledger
from service.demo.cre_stand_in.nodes import Limits, Nodes
from service.demo.cre_stand_in.protocol import Workflow

HEADER_BYTES = 109


@dataclass(frozen=True, slots=True, kw_only=True)
class Minted:
    """What one report on chain did."""

    consumer: bytes
    execution_id: bytes
    recipient: bytes
    amount: int
    bank_reference: bytes


@dataclass(kw_only=True)
class Forwarder:
    """A chain that mines at once: each report is delivered once (cre.md §5), and mints what it says."""

    minted: list[Minted] = field(default_factory=list)
    refused_again: int = 0
    _delivered: set[tuple[bytes, bytes, bytes]] = field(default_factory=set)
    _receipts: dict[str, Receipt] = field(default_factory=dict)

    async def head_number(self) -> int:
        return len(self._receipts)

    async def receipt(self, tx_hash: str) -> Receipt | None:
        return self._receipts.get(tx_hash)

    async def knows(self, tx_hash: str) -> bool:
        return tx_hash in self._receipts

    async def already_attempted(self, *, receiver: bytes, raw_report: bytes) -> bool:
        attempted = _key(receiver, raw_report) in self._delivered
        self.refused_again += attempted
        return attempted

    async def send_report(self, *, receiver: bytes, raw_report: bytes, attempt: int) -> str:
        assert attempt >= 0
        key = _key(receiver, raw_report)
        tx_hash = f"0x{len(self._receipts):064x}"
        succeeded = key not in self._delivered
        if succeeded:
            types = ["uint8", "address", "uint256", "bytes32"]
            _, recipient, amount, reference = decode(types, raw_report[HEADER_BYTES:])
            self._delivered.add(key)
            self.minted.append(
                Minted(
                    consumer=receiver,
                    execution_id=key[1],
                    recipient=bytes.fromhex(recipient[2:]),
                    amount=amount,
                    bank_reference=reference,
                )
            )
        self._receipts[tx_hash] = Receipt(
            block_number=len(self._receipts), succeeded=succeeded, report_results={key[1]: True} if succeeded else {}
        )
        return tx_hash


def _key(receiver: bytes, raw_report: bytes) -> tuple[bytes, bytes, bytes]:
    """What the forwarder delivers once: receiver, execution id, report id."""
    return receiver, raw_report[1:33], raw_report[107:109]


class Cre:
    """Stands where the invocator's gateway is."""

    def __init__(self, *, workflows: list[Workflow]) -> None:
        self.clock, self.ledger, self.faults, self.forwarder = Clock(), Ledger(), FaultPlan(), Forwarder()
        self.gateway = Gateway(clock=self.clock, workflows=workflows, rate_limit=None)
        self._runs: list[Coroutine[None, None, None]] = []
        self.nodes = Nodes(
            clock=self.clock,
            ledger=self.ledger,
            deliveries=Deliveries(
                chain=self.forwarder,  # type: ignore[arg-type]  # all that is asked of a chain, and no more
                ledger=self.ledger,
                final_depth_blocks=0,
            ),
            spawn=self._runs.append,
            execution_id_form="trigger_index",
            limits=Limits(runs_per_owner=1_000_000),
            delivery_delay_seconds=0,
        )

    async def post(self, body: bytes, token: str, timeout_seconds: float) -> Reply:
        call = exchange(
            body, header_token=token, gateway=self.gateway, nodes=self.nodes, faults=self.faults, ledger=self.ledger
        )
        while self._runs:
            await self._runs.pop()
        reply = call.reply()
        if reply is None:
            silent = isinstance(call.ending, StaySilent)
            return NoAnswer(reason=f"timed out after {timeout_seconds:g} s" if silent else "ServerDisconnectedError")
        return HttpReply(
            status=reply.status,
            body=reply.body[:MAX_ANSWER_BYTES],
            truncated=len(reply.body) > MAX_ANSWER_BYTES,
            server_date=int(self.clock.now()),
        )
