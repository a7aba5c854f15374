"""One call to CRE without its HTTP: the gateway's checks in their order, a fault if one is planned, then the nodes."""

import hashlib
from dataclasses import dataclass

from service.demo.cre_stand_in import protocol
from service.demo.cre_stand_in.faults import Answer, Ending, FaultPlan
from service.demo.cre_stand_in.gateway import Gateway
from service.demo.cre_stand_in.ledger import Attempt, Ledger
from service.demo.cre_stand_in.nodes import Nodes
from service.demo.cre_stand_in.protocol import Claims, Refused, Reply, Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """How a call ends, and how long after its forwarding; `right` is the reply that a faultless call would get."""

    request_id: str
    ending: Ending
    right: Reply | None = None
    delay_seconds: float = 0

    def reply(self) -> Reply | None:
        """Give what the caller reads; None where it reads no whole answer."""
        return self.ending.make(self.request_id, self.right) if isinstance(self.ending, Answer) else None


def exchange(
    body: bytes, *, header_token: str, gateway: Gateway, nodes: Nodes, faults: FaultPlan, ledger: Ledger
) -> Exchange:
    """Handle one call in the gateway's order (cre.md §1.5), then forward it, with or without a planned fault."""
    try:
        request = protocol.parse(body, header_token=header_token)
    except Refused as refused:
        ledger.record_refusal(refused.reason)
        return _answered("", refused.reply(""))
    claims: Claims | None = None
    try:
        target = gateway.identify(request)
        claims = gateway.authenticate(request)
        gateway.admit(request, target, claims)
    except Refused as refused:
        ledger.record_attempt(_attempt(request, body, claims, f"refused:{refused.reason}"))
        return _answered(request.request_id, refused.reply(request.request_id))
    fault = faults.take(request.request_id)
    if fault is None:
        outcome, reply = nodes.trigger(request, target, signer=claims.signer, runs=True)
        ledger.record_attempt(_attempt(request, body, claims, outcome))
        return _answered(request.request_id, reply)
    ledger.record_attempt(_attempt(request, body, claims, f"fault:{fault.name}"))
    right: Reply | None = None
    if fault.forwards:
        _, right = nodes.trigger(request, target, signer=claims.signer, runs=fault.runs)
    if fault.sticks or fault.delay_seconds:
        gateway.forwarded(request.request_id)
    return Exchange(request_id=request.request_id, ending=fault.ending, right=right, delay_seconds=fault.delay_seconds)


def _answered(request_id: str, reply: Reply) -> Exchange:
    return Exchange(request_id=request_id, ending=Answer(lambda *_: reply), right=reply)


def _attempt(request: Request, body: bytes, claims: Claims | None, outcome: str) -> Attempt:
    return Attempt(
        request_id=request.request_id,
        body_sha256=hashlib.sha256(body).hexdigest(),
        digest=claims.digest if claims else None,
        jti=claims.jti if claims else None,
        outcome=outcome,
    )
