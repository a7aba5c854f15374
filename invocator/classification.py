"""What an answer of the gateway means for a mint (cre.md §2.2 and §2.3, hard cases 75 to 88).  Pure and total.

The question behind every line is: may the nodes have this request?  The gateway checks in a known order and forwards
last (cre.md §1.5), so its own JSON-RPC errors under their own HTTP status prove that nothing was forwarded.  An error
inside HTTP 200 comes from the nodes, so it proves the contrary.  Everything that is not understood is `Unknown`: the
same bytes are sent again under the same id, which is always safe.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, Final, TypeAlias

import orjson

from datastore.identity import execution_id_candidates

RATE_LIMIT_SECONDS: Final = 60
"""The gateway names no time after a refused slot; its own rate is one trigger in this many seconds."""


class Outcome(StrEnum):
    """What is stored of an attempt, and the label of its metric."""

    ACCEPTED = "accepted"
    REFUSED_NOW = "refused_now"
    REFUSED_FOR_GOOD = "refused_for_good"
    INSTANCE_REFUSED = "instance_refused"
    NEVER_CONNECTED = "never_connected"
    IN_FLIGHT = "in_flight"
    PAYLOAD_CONFLICT = "payload_conflict"
    UNKNOWN = "unknown"


class Code(StrEnum):
    """Why, as a closed set; the sentence beside it is for people."""

    RATE_LIMITED = "rate_limited"
    TOKEN_REPLAYED = "token_replayed"  # noqa: S105 - names a reason, holds no token
    TOKEN_REFUSED = "token_refused"  # noqa: S105 - names a reason, holds no token
    REQUEST_INVALID = "request_invalid"
    CLOCK_OFF = "clock_off"
    SIGNER_NOT_AUTHORIZED = "signer_not_authorized"
    WORKFLOW_NOT_FOUND = "workflow_not_found"
    WORKFLOW_UNAVAILABLE = "workflow_unavailable"
    WRONG_GATEWAY = "wrong_gateway"
    NOT_CONNECTED = "not_connected"
    NO_ANSWER = "no_answer"
    NODE_ERROR = "node_error"
    GATEWAY_ERROR = "gateway_error"
    NOT_UNDERSTOOD = "not_understood"


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpReply:
    """An answer whose headers arrived; ``body`` is its beginning only if ``truncated``.

    ``server_date`` is the gateway's clock in Unix seconds when its headers came, ``read_seconds`` how much later the
    body had ended, ``retry_after_seconds`` what a ``Retry-After`` header said.
    """

    status: int
    body: bytes
    truncated: bool = False
    server_date: int | None = None
    read_seconds: float = 0.0
    retry_after_seconds: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NeverConnected:
    """Proven: no byte of the request left, for no connection was ready to carry it."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NoAnswer:
    """The request may have been read; no complete answer came back."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Broadcast:
    """A simulated workflow says that this transaction delivered its report.  Its receipt decides, not this word."""

    tx_hash: bytes


Reply: TypeAlias = HttpReply | NeverConnected | NoAnswer | Broadcast


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """The nodes queued the trigger under ``execution_id``; that promises no mint.

    Not ``expected``: the id is none of the two that follow from our request.  The call is accepted all the same (an
    unexpected formula must not make us send again); the id joins those that are watched, and somebody is told.
    """

    outcome: ClassVar[Outcome] = Outcome.ACCEPTED
    execution_id: bytes
    expected: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedNow:
    """Not forwarded: no slot was free.  The same request may succeed after the pause."""

    outcome: ClassVar[Outcome] = Outcome.REFUSED_NOW
    code: Code
    sentence: str
    retry_after_seconds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedForGood:
    """Not forwarded, and these bytes never will be: our bug.  A person must look."""

    outcome: ClassVar[Outcome] = Outcome.REFUSED_FOR_GOOD
    code: Code
    sentence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceRefused:
    """Not forwarded, and no request (of this workflow) would be: key, workflow, clock or address.  Open a breaker."""

    outcome: ClassVar[Outcome] = Outcome.INSTANCE_REFUSED
    code: Code
    sentence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NeverSent:
    """No connection was opened: nothing was sent."""

    outcome: ClassVar[Outcome] = Outcome.NEVER_CONNECTED
    code: Code
    sentence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class InFlight:
    """An earlier call with this id waits for its answer at this gateway (for up to 20 minutes): keep the id."""

    outcome: ClassVar[Outcome] = Outcome.IN_FLIGHT
    sentence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PayloadConflict:
    """The nodes know this id with other bytes, another workflow form or another signer.  A person must look."""

    outcome: ClassVar[Outcome] = Outcome.PAYLOAD_CONFLICT
    sentence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Unknown:
    """It may have been forwarded.  Send the same bytes again under the same id."""

    outcome: ClassVar[Outcome] = Outcome.UNKNOWN
    code: Code
    sentence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulated:
    """Delivered, it says, by ``tx_hash``: unknown until the indexer has seen the mint in that transaction."""

    outcome: ClassVar[Outcome] = Outcome.UNKNOWN
    tx_hash: bytes
    sentence: str


Answer: TypeAlias = (
    Accepted
    | RefusedNow
    | RefusedForGood
    | InstanceRefused
    | NeverSent
    | InFlight
    | PayloadConflict
    | Unknown
    | Simulated
)

_PARSE_ERROR: Final = -32700
_CONFLICT: Final = -32003
_OK: Final = 200
_BAD_REQUEST: Final = 400

_HEX_32_BYTES: Final = re.compile(r"(?:0x)?([0-9a-fA-F]{64})", re.ASCII)
_SENTENCE_CHARACTERS: Final = 300

# Refusals that every request would get, told apart by their text only.
_INSTANCE_TEXTS: Final = (
    ("is not authorized", Code.SIGNER_NOT_AUTHORIZED),
    ("workflow not found", Code.WORKFLOW_NOT_FOUND),
    ("service name not found", Code.WRONG_GATEWAY),
    ("token is expired", Code.CLOCK_OFF),
    ("too far in the future", Code.CLOCK_OFF),
)


# What the nodes, or the gateway for them, say of a workflow that takes no trigger now.  This request may have been
# forwarded; those of the workflow that wait would get the same.
_WORKFLOW_TEXTS: Final = (
    "workflow not registered",
    "workflow is closed",
    "channel is full",
    "is not assigned to any dons",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Error:
    code: int
    message: str


def classify(reply: Reply, *, request_id: str, workflow_id: bytes) -> Answer:
    """Judge the reply to a call with ``request_id`` for ``workflow_id`` (32 bytes).  Never raises."""
    if isinstance(reply, NeverConnected):
        return NeverSent(code=Code.NOT_CONNECTED, sentence=one_line(f"Nothing was sent: {reply.reason}"))
    if isinstance(reply, NoAnswer):
        return Unknown(code=Code.NO_ANSWER, sentence=one_line(f"No answer: {reply.reason}"))
    if isinstance(reply, Broadcast):
        sentence = f"The simulation names transaction 0x{reply.tx_hash.hex()}; the chain decides."
        return Simulated(tx_hash=reply.tx_hash, sentence=sentence)
    return _judge_http(reply, request_id, workflow_id)


def _judge_http(reply: HttpReply, request_id: str, workflow_id: bytes) -> Answer:
    if reply.truncated:
        return _not_understood(reply, "is too long")
    if reply.status == _BAD_REQUEST and not reply.body:
        # Too large, or unreadable: the gateway's server says so before it parses.
        return RefusedForGood(code=Code.REQUEST_INVALID, sentence="The gateway refused to read the request (HTTP 400).")
    envelope = _envelope(reply.body)
    if envelope is None:
        return _not_understood(reply, "is not JSON-RPC")
    if envelope.get("error") is None:
        return _judge_result(reply, envelope, request_id, workflow_id)
    return _judge_error(reply, envelope, request_id)


def _judge_error(reply: HttpReply, envelope: dict[str, object], request_id: str) -> Answer:
    error = _error(envelope["error"])
    if error is None:
        return _not_understood(reply, "has an error of unknown form")
    if not _is_about(request_id, envelope.get("id"), error):
        return _not_understood(reply, "is about another request")
    return _judge_node_error(error) if reply.status == _OK else _judge_gateway_error(reply, error)


def _judge_result(
    reply: HttpReply, envelope: dict[str, object], request_id: str, workflow_id: bytes
) -> Accepted | Unknown:
    """Hard case 84: believe ACCEPTED only if every part of it is about our request."""
    if reply.status != _OK:
        return _not_understood(reply, "has no error")
    if envelope.get("id") != request_id:
        return _not_understood(reply, "is about another request")
    result = envelope.get("result")
    if not isinstance(result, dict) or result.get("status") != "ACCEPTED":
        return _not_understood(reply, "is not ACCEPTED")
    if _hash(result.get("workflow_id")) != workflow_id:
        return _not_understood(reply, "is about another workflow")
    execution_id = _hash(result.get("workflow_execution_id"))
    if execution_id is None:
        return _not_understood(reply, "has no execution id")
    expected = execution_id in execution_id_candidates(workflow_id, request_id)
    return Accepted(execution_id=execution_id, expected=expected)


def _judge_node_error(error: _Error) -> PayloadConflict | Unknown:
    sentence = one_line(f"The nodes answered with an error ({error.code}): {error.message}")
    if error.code == _CONFLICT and "different payload" in error.message.casefold():
        return PayloadConflict(sentence=sentence)
    return _unknown(error, sentence, Code.NODE_ERROR)


def _unknown(error: _Error, sentence: str, code: Code) -> Unknown:
    is_of_workflow = any(text in error.message.casefold() for text in _WORKFLOW_TEXTS)
    return Unknown(code=Code.WORKFLOW_UNAVAILABLE if is_of_workflow else code, sentence=sentence)


def _judge_gateway_error(reply: HttpReply, error: _Error) -> Answer:
    sentence = one_line(f"The gateway answered HTTP {reply.status} ({error.code}): {error.message}")
    match (reply.status, error.code):
        case (400, -32700 | -32601 | -32602):
            return RefusedForGood(code=Code.REQUEST_INVALID, sentence=sentence)
        case (400, -32600):
            return _judge_invalid_request(error.message.casefold(), sentence)
        case (429, -32002):
            pause_seconds = max(RATE_LIMIT_SECONDS, reply.retry_after_seconds or 0)
            return RefusedNow(code=Code.RATE_LIMITED, sentence=sentence, retry_after_seconds=pause_seconds)
        case (409, -32003):
            return InFlight(sentence=sentence)
        case _:
            return _unknown(error, sentence, Code.GATEWAY_ERROR)


def _judge_invalid_request(message: str, sentence: str) -> RefusedForGood | InstanceRefused | Unknown:
    about_token = "auth failure" in message
    if about_token and "already been used" in message:
        # We never send a jti twice, so something between us and the gateway delivered this call twice, and the first
        # delivery may have been forwarded.
        return Unknown(code=Code.TOKEN_REPLAYED, sentence=sentence)
    for text, code in _INSTANCE_TEXTS:
        if text in message:
            return InstanceRefused(code=code, sentence=sentence)
    # The digest is about these bytes.  Any other fault of the token is one of our key or our code, so every request
    # would meet it: no request pays (hard case 85), although cre.md calls it permanent.
    if about_token and not ("digest" in message or "marshaling" in message):
        return InstanceRefused(code=Code.TOKEN_REFUSED, sentence=sentence)
    return RefusedForGood(code=Code.REQUEST_INVALID, sentence=sentence)


def _not_understood(reply: HttpReply, why: str) -> Unknown:
    return Unknown(code=Code.NOT_UNDERSTOOD, sentence=f"The answer (HTTP {reply.status}) {why}.")


def _envelope(body: bytes) -> dict[str, object] | None:
    try:
        document = orjson.loads(body)  # bounds the depth, and refuses NaN and lone surrogates
    except orjson.JSONDecodeError:
        return None
    return document if isinstance(document, dict) and document.get("jsonrpc") == "2.0" else None


def _error(value: object) -> _Error | None:
    if not isinstance(value, dict):
        return None
    code, message = value.get("code"), value.get("message")
    if not isinstance(code, int) or isinstance(code, bool) or not isinstance(message, str):
        return None
    return _Error(code=code, message=message)


def _is_about(request_id: str, answered_id: object, error: _Error) -> bool:
    # A body that could not be parsed has no id to repeat.
    return answered_id == request_id or (error.code == _PARSE_ERROR and not answered_id)


def _hash(value: object) -> bytes | None:
    match = _HEX_32_BYTES.fullmatch(value) if isinstance(value, str) else None
    return bytes.fromhex(match[1]) if match else None


def one_line(text: str) -> str:
    """``text`` as one short line for logs, rows and terminals, whatever the other side wrote (hard case 113)."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text[:_SENTENCE_CHARACTERS])
