"""The wire protocol of CRE's gateway, as pure functions (protocol cre.md §1 and §2).

Nothing here knows the time, the network or what was asked before: a clock reading comes in as `now`, and what
needs memory (jti, rate, ids in flight) is the gateway's.  The order in which the gateway calls these functions is
the protocol's order of checks (§1.5), and the caller under test depends on it.
"""

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NoReturn, TypeAlias

import rfc8785
from eth_account import Account
from eth_account.messages import encode_defunct

Json: TypeAlias = "dict[str, Json] | list[Json] | str | float | bool | None"
ExecutionIdForm: TypeAlias = Literal["trigger_index", "legacy"]

METHOD = "workflows.execute"

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INTERNAL = -32603
OVERLOADED = -32000
LIMIT_EXCEEDED = -32002
CONFLICT = -32003

# §2.2: how the gateway maps its own errors; an error that the nodes agreed on travels inside HTTP 200 instead.
HTTP_STATUS = {
    PARSE_ERROR: 400,
    INVALID_REQUEST: 400,
    METHOD_NOT_FOUND: 400,
    INTERNAL: 500,
    OVERLOADED: 504,
    LIMIT_EXCEEDED: 429,
    CONFLICT: 409,
}

MAX_REQUEST_ID_BYTES = 200
MAX_WORKFLOW_ID_CHARACTERS = 66
MAX_OWNER_CHARACTERS = 42
MAX_NAME_CHARACTERS = 64
MAX_TAG_CHARACTERS = 32
MAX_TOKEN_LIFETIME_SECONDS = 300
ISSUED_AT_TOLERANCE_SECONDS = 300
SIGNATURE_BYTES = 65
MAX_CONTAINERS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One HTTP answer; the content type is the gateway's own unless something else is to be imitated (§1.1)."""

    status: int
    body: bytes = b""
    content_type: str = "application/jsonrpc"
    headers: Mapping[str, str] = field(default_factory=dict)


class Refused(Exception):
    """The gateway refuses before forwarding: answer with `reply(request_id)`; nothing ran.

    `reason` is one word for the ledger, `code` and `message` go to the caller.
    """

    def __init__(self, reason: str, code: int, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.code = code
        self.message = message

    def reply(self, request_id: str) -> Reply:
        """Give the JSON-RPC error under the HTTP status of its code."""
        return error_reply(request_id, self.code, self.message, status=HTTP_STATUS[self.code])


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A parsed `workflows.execute`; numbers in `params` are already the doubles that Go makes of them (§1.4)."""

    request_id: str
    version: str
    method: str
    params: Mapping[str, Json]
    token: str
    duplicate_member: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """What a verified token says, and the lower-case `0x` address that signed it (`iss` is not checked: §1.5)."""

    signer: str
    jti: str
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Workflow:
    """A deployed workflow: who may trigger it and by which names it is found (§1.2, §1.6)."""

    workflow_id: bytes
    owner: bytes = bytes(20)
    name: str = "bskt-mint"
    tag: str = "bskt-mint"
    authorized_keys: frozenset[bytes]


class _Members(dict[str, Json]):
    """A JSON object that remembers whether a member came twice: legal to parse, impossible to digest (§1.3)."""

    duplicate: str | None = None


def _members(pairs: list[tuple[str, Json]]) -> _Members:
    members = _Members(pairs)
    names = [name for name, _ in pairs]
    members.duplicate = (
        next((name for name in names if names.count(name) > 1), None) if len(members) < len(names) else None
    )
    return members


def _first_duplicate(value: Json) -> str | None:
    if isinstance(value, _Members):
        return value.duplicate or next(filter(None, map(_first_duplicate, value.values())), None)
    if isinstance(value, list):
        return next(filter(None, map(_first_duplicate, value)), None)
    return None


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def parse(body: bytes, *, header_token: str) -> Request:
    """Read the body as the gateway does (§1.2); the token in the body wins over the header (§1.1)."""
    # Python's parser recurses, and a library of eth-account raises the recursion limit beyond what the C stack holds:
    # a deep nest would kill the process.  Go has its own, higher limit; no input of ours comes near either.
    if body.count(b"[") + body.count(b"{") > MAX_CONTAINERS:
        raise Refused("parse", PARSE_ERROR, "parse error: exceeded max depth")
    try:
        document: Json = json.loads(
            body.decode("utf-8"), parse_int=float, parse_constant=_refuse_constant, object_pairs_hook=_members
        )
        duplicate = _first_duplicate(document.get("params")) if isinstance(document, dict) else None
    except (ValueError, RecursionError) as error:
        raise Refused("parse", PARSE_ERROR, f"parse error: {error}") from error
    if not isinstance(document, dict):
        raise Refused("parse", PARSE_ERROR, "parse error: cannot unmarshal into a request")
    if document.get("jsonrpc") != "2.0":
        raise Refused("parse", PARSE_ERROR, "incorrect jsonrpc version")
    request_id, method, token = (document.get(name, "") for name in ("id", "method", "auth"))
    if not isinstance(request_id, str) or not isinstance(method, str) or not isinstance(token, str):
        raise Refused("parse", PARSE_ERROR, "parse error: id, method and auth must be strings")
    if len(request_id.encode("utf-8", "surrogatepass")) > MAX_REQUEST_ID_BYTES:
        raise Refused("parse", PARSE_ERROR, "request ID is too long")
    params = document.get("params")
    if not isinstance(params, dict):
        raise Refused("parse", PARSE_ERROR, "invalid params")
    return Request(
        request_id=request_id,
        version="2.0",
        method=method,
        params=params,
        token=token or header_token,
        duplicate_member=duplicate,
    )


def check_method(request: Request) -> None:
    """Check the method and the id, which the same handler refuses (§1.2)."""
    if request.method.partition(".")[0] != "workflows":
        raise Refused("method", INVALID_REQUEST, "Service name not found")
    if request.method != METHOD:
        raise Refused(
            "method",
            METHOD_NOT_FOUND,
            f"'{request.method}' is not a valid method. Ensure that method is set to '{METHOD}'",
        )
    if not request.request_id:
        raise Refused("request_id", INVALID_REQUEST, "'id' field is required and cannot be empty")
    if "/" in request.request_id:
        raise Refused("request_id", INVALID_REQUEST, "request ID must not contain '/'")


def check_input(request: Request) -> None:
    """Only an object or an array may be a workflow's input (§1.2)."""
    if not isinstance(request.params.get("input"), (dict, list)):
        raise Refused(
            "input",
            INVALID_REQUEST,
            "'params' must be {} or [] (JSON object or array). Primitives (null, '', numbers, booleans) are not "
            "allowed. Use {} if none.",
        )


def check_selector(request: Request) -> None:
    """Check the fields that select the workflow (§1.2)."""
    workflow_id, owner, name, tag = _selector(request)
    if not workflow_id:
        for field_name, value in (("workflowName", name), ("workflowOwner", owner), ("workflowTag", tag)):
            if not value:
                raise _bad_selector(f"{field_name} is required when workflowID is not provided")
    _check_hex("workflowID", workflow_id, MAX_WORKFLOW_ID_CHARACTERS)
    _check_hex("workflowOwner", owner, MAX_OWNER_CHARACTERS)
    for field_name, value, limit in (
        ("workflowName", name, MAX_NAME_CHARACTERS),
        ("workflowTag", tag, MAX_TAG_CHARACTERS),
    ):
        length = len(value.encode("utf-8", "surrogatepass"))
        if length > limit:
            raise _bad_selector(f"{field_name} cannot exceed {limit} characters, got {length}")


def find_workflow(request: Request, workflows: Sequence[Workflow]) -> Workflow:
    """Find the selected workflow: a short id is padded on the left; name and tag match exactly (§1.2)."""
    workflow_id, owner, name, tag = _selector(request)
    for workflow in workflows:
        if workflow_id:
            if workflow_id.removeprefix("0x").zfill(64) == workflow.workflow_id.hex():
                return workflow
        elif (owner.removeprefix("0x").zfill(40), name, tag) == (workflow.owner.hex(), workflow.name, workflow.tag):
            return workflow
    raise Refused(
        "workflow_unknown",
        INVALID_REQUEST,
        f"Workflow not found. 'workflowID' 0x{workflow_id.removeprefix('0x').zfill(64)} is not a valid workflow ID"
        if workflow_id
        else "Workflow not found. Provide either a valid 'workflowID' or a valid combination of 'workflowOwner', "
        "'workflowName', and 'workflowTag'",
    )


def _selector(request: Request) -> tuple[str, str, str, str]:
    selector = request.params.get("workflow") or {}
    if not isinstance(selector, dict):
        raise Refused("parse", PARSE_ERROR, "payload is not a valid JSON")
    values = [selector.get(name) or "" for name in ("workflowID", "workflowOwner", "workflowName", "workflowTag")]
    texts = [value for value in values if isinstance(value, str)]
    if len(texts) < len(values):
        raise Refused("parse", PARSE_ERROR, "payload is not a valid JSON")
    return texts[0], texts[1], texts[2], texts[3]


def _bad_selector(message: str) -> Refused:
    return Refused("workflow_fields", INVALID_REQUEST, message)


def _check_hex(field_name: str, text: str, limit: int) -> None:
    if text != text.lower():
        raise _bad_selector(f"{field_name} must be lowercase")
    if len(text) > limit:
        raise _bad_selector(f"{field_name} hex string too long: expected at most {limit} characters, got {len(text)}")
    digits = text.removeprefix("0x")
    if len(digits) % 2 or set(digits) - set("0123456789abcdef"):
        raise _bad_selector(f"{field_name} must be a valid hex string")


def request_digest(request: Request) -> str:
    """Digest the whole request without `auth` and unknown members: RFC 8785, SHA-256, `0x` hex (§1.3)."""
    if request.duplicate_member is not None:
        raise _auth_failure(
            "digest", f'error marshaling JSON: duplicate object member name "{request.duplicate_member}"'
        )
    whole = {
        "id": request.request_id,
        "jsonrpc": request.version,
        "method": request.method,
        "params": request.params,
    }
    return "0x" + _canonical_sha256(whole)


def payload_digest(request: Request, *, signer: str) -> str:
    """Digest what the nodes compare for a repeated id: key, workflow and input, but not the id (§2.3)."""
    key = {"keyType": "ecdsa_evm", "publicKey": signer}
    return _canonical_sha256(
        {"input": request.params.get("input"), "key": key, "workflow": request.params.get("workflow")}
    )


def _canonical_sha256(value: object) -> str:
    try:
        return hashlib.sha256(rfc8785.dumps(value)).hexdigest()  # type: ignore[arg-type]  # any JSON, checked inside
    except (ValueError, RecursionError) as error:  # a lone surrogate, a number that is no double, a deep nest
        raise _auth_failure("digest", f"error marshaling JSON: {error}") from error


def verify_token(request: Request, *, now: float) -> Claims:
    """Recover the signer of the token and check its claims against the request and this clock (§1.5).

    A token that is right may still be refused by the gateway: replayed jti, key not authorised.
    """
    parts = request.token.split(".")
    if len(parts) != 3:  # noqa: PLR2004 - header, payload, signature
        raise _auth_failure("token", "invalid JWT format: expected 3 parts")
    signer = _recover(f"{parts[0]}.{parts[1]}", _decode(parts[2], "signature"))
    header, claims = _members_of(parts[0], "header"), _members_of(parts[1], "payload")
    if header.get("alg") != "ETH":
        raise _auth_failure("token", f"unsupported JWT 'alg': '{header.get('alg')}'. Expected 'ETH'")
    issued_at, expires_at = _seconds(claims, "iat"), _seconds(claims, "exp")
    if expires_at is not None and now >= expires_at:
        raise _auth_failure("token_expired", "token has invalid claims: token is expired")
    digest = request_digest(request)
    jti = claims.get("jti")
    if not isinstance(jti, str) or not jti:
        raise _auth_failure("token", "JWT ID (jti) is required but missing")
    if expires_at is None:
        raise _auth_failure("token", "expiredAt (exp) is required but missing")
    if issued_at is None:
        raise _auth_failure("token", "issuedAt (iat) is required but missing")
    if issued_at > now + ISSUED_AT_TOLERANCE_SECONDS:
        raise _auth_failure(
            "token_early",
            f"issuedAt (iat) is too far in the future (beyond tolerance of {ISSUED_AT_TOLERANCE_SECONDS} seconds)",
        )
    if expires_at - issued_at > MAX_TOKEN_LIFETIME_SECONDS:
        raise _auth_failure(
            "token_lifetime",
            f"token lifetime {expires_at - issued_at:.0f} sec exceeds the maximum allowed "
            f"{MAX_TOKEN_LIFETIME_SECONDS} sec",
        )
    if claims.get("digest") != digest:
        raise _auth_failure(
            "digest", f"claim digest '{claims.get('digest')}' does not match calculated request digest '{digest}'"
        )
    return Claims(signer=signer, jti=jti, digest=digest)


def check_authorized(claims: Claims, workflow: Workflow) -> None:
    """Only the keys that the workflow lists may trigger it (§1.6)."""
    if bytes.fromhex(claims.signer[2:]) not in workflow.authorized_keys:
        raise _auth_failure(
            "key_not_authorized",
            f"signer '{claims.signer}' is not authorized for workflow '0x{workflow.workflow_id.hex()}'",
        )


def replayed() -> Refused:
    """Refuse a jti that was used before: every attempt needs a fresh one (§1.5)."""
    return _auth_failure("jti_replayed", "JWT token has already been used. Please generate a new one with new id (jti)")


def rate_limited() -> Refused:
    """Refuse a trigger that comes too early: before forwarding, after its jti is spent (§1.7)."""
    return Refused("rate_limited", LIMIT_EXCEEDED, "rate limit exceeded")


def in_flight(request_id: str) -> Refused:
    """Refuse an id whose first call the nodes have not answered yet (§2.3)."""
    return Refused(
        "in_flight",
        CONFLICT,
        f"requestID: {request_id} has already been used. Ensure the requestID is unique for each request.",
    )


def _auth_failure(reason: str, message: str) -> Refused:
    return Refused(reason, INVALID_REQUEST, f"Auth failure: {message}")


def _decode(segment: str, what: str) -> bytes:
    try:
        # Padding is refused by name: with ours appended it would still be valid.
        return base64.b64decode(segment.replace("=", "!") + "=" * (-len(segment) % 4), altchars=b"-_", validate=True)
    except ValueError as error:
        raise _auth_failure("token", f"{what} segment is not valid base64url: {error}") from error


def _members_of(segment: str, what: str) -> dict[str, Json]:
    try:
        members: Json = json.loads(_decode(segment, what))
    except (ValueError, RecursionError) as error:
        raise _auth_failure("token", f"token is malformed: {what}: {error}") from error
    if not isinstance(members, dict):
        raise _auth_failure("token", f"token is malformed: {what} is not an object")
    return members


def _seconds(claims: Mapping[str, Json], name: str) -> float | None:
    value = claims.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise _auth_failure("token", f"token is malformed: {name} is not a number")
    return float(value)


def _recover(signing_input: str, signature: bytes) -> str:
    if len(signature) != SIGNATURE_BYTES:
        raise _auth_failure("token", f"signature must be {SIGNATURE_BYTES} bytes, got {len(signature)}")
    recovery = signature[64]
    if recovery in (0, 1):  # eth-account wants Ethereum's 27 and 28; the gateway takes both forms
        recovery += 27
    try:
        signer = Account.recover_message(
            encode_defunct(text=signing_input), signature=signature[:64] + bytes([recovery])
        )
    except Exception as error:  # eth-keys raises several unrelated types for a point that is not on the curve
        raise _auth_failure("token", "signature is not valid") from error
    return str(signer).lower()


def execution_id(workflow_id: bytes, request_id: str, *, form: ExecutionIdForm) -> bytes:
    """Derive the id of the run from the texts of workflow id and request id (§2.5)."""
    text = workflow_id.hex() + request_id + ("0" if form == "trigger_index" else "")
    return hashlib.sha256(text.encode()).digest()


def accepted_reply(request_id: str, *, workflow_id: bytes, run_id: bytes) -> Reply:
    """Say that a quorum of nodes queued the trigger; it promises nothing more (§2.1)."""
    result = {
        "workflow_id": "0x" + workflow_id.hex(),
        "workflow_execution_id": "0x" + run_id.hex(),
        "status": "ACCEPTED",
    }
    answer = {"jsonrpc": "2.0", "id": request_id, "method": METHOD, "result": result}
    return Reply(status=200, body=json.dumps(answer).encode())


def error_reply(request_id: str, code: int, message: str, *, status: int) -> Reply:
    """Give a JSON-RPC error; with status 200 it is one that the nodes agreed on (§2.2)."""
    answer = {"jsonrpc": "2.0", "id": request_id, "method": "", "error": {"code": code, "message": message}}
    return Reply(status=status, body=json.dumps(answer).encode())
