"""Each row of the protocol's tables, and the promise that nothing else is ever taken for an acceptance or a refusal."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datastore.identity import execution_id_candidates
from invocator.classification import (
    Accepted,
    Answer,
    Broadcast,
    Code,
    HttpReply,
    InFlight,
    InstanceRefused,
    NeverConnected,
    NeverSent,
    NoAnswer,
    Outcome,
    PayloadConflict,
    RefusedForGood,
    RefusedNow,
    Reply,
    Simulated,
    Unknown,
    classify,
    one_line,
)

REQUEST_ID = "0123456789ab8cde90123456789abcde"
WORKFLOW_ID = bytes.fromhex("00da21b8b3e117e31f3a3e8a0795225cbde6c00283a84395117669691f2b7856")
LEGACY, TRIGGER_INDEX_0 = execution_id_candidates(WORKFLOW_ID, REQUEST_ID)
USED = f"requestID: {REQUEST_ID} has already been used. Ensure the requestID is unique for each request."


def judged(reply: Reply) -> Answer:
    return classify(reply, request_id=REQUEST_ID, workflow_id=WORKFLOW_ID)


def error_reply(status: int, code: object, message: object, *, request_id: object = REQUEST_ID) -> HttpReply:
    envelope = {"jsonrpc": "2.0", "id": request_id, "method": "", "error": {"code": code, "message": message}}
    return HttpReply(status=status, body=json.dumps(envelope).encode())


def accepted_envelope(**result: object) -> dict[str, Any]:
    return {
        "jsonrpc": "2.0",
        "id": REQUEST_ID,
        "method": "workflows.execute",
        "result": {
            "workflow_id": "0x" + WORKFLOW_ID.hex(),
            "workflow_execution_id": "0x" + TRIGGER_INDEX_0.hex(),
            "status": "ACCEPTED",
            **result,
        },
    }


def ok(envelope: object) -> HttpReply:
    return HttpReply(status=200, body=json.dumps(envelope).encode())


@pytest.mark.parametrize("execution_id", [LEGACY, TRIGGER_INDEX_0])
@pytest.mark.parametrize("prefix", ["0x", ""])
def test_accepted_with_either_execution_id_is_expected(execution_id: bytes, prefix: str) -> None:
    envelope = accepted_envelope(
        workflow_id=prefix + WORKFLOW_ID.hex(), workflow_execution_id=prefix + execution_id.hex()
    )

    assert judged(ok(envelope)) == Accepted(execution_id=execution_id, expected=True)


def test_accepted_with_another_execution_id_is_accepted_and_flagged() -> None:
    """Refusing to believe it would send again; a person is told."""
    envelope = accepted_envelope(workflow_execution_id="0x" + "77" * 32)

    assert judged(ok(envelope)) == Accepted(execution_id=bytes.fromhex("77" * 32), expected=False)


@pytest.mark.parametrize(
    "envelope",
    [
        {**accepted_envelope(), "jsonrpc": "1.0"},
        {**accepted_envelope(), "id": "f" * 32},
        {**accepted_envelope(), "id": [REQUEST_ID]},
        {**accepted_envelope(), "id": None},
        {**accepted_envelope(), "result": None},
        {**accepted_envelope(), "result": "ACCEPTED"},
        accepted_envelope(status="QUEUED"),
        accepted_envelope(status=["ACCEPTED"]),
        accepted_envelope(workflow_id="0x" + "11" * 32),
        accepted_envelope(workflow_id=None),
        accepted_envelope(workflow_execution_id="0x77"),
        accepted_envelope(workflow_execution_id="0x" + "zz" * 32),
        accepted_envelope(workflow_execution_id="\u0661" * 64),
        accepted_envelope(workflow_execution_id=7),
        {"jsonrpc": "2.0", "id": REQUEST_ID},
        [accepted_envelope()],
        "ACCEPTED",
        None,
    ],
)
def test_an_acceptance_that_is_not_wholly_about_our_request_is_unknown(envelope: object) -> None:
    """Hard case 84."""
    answer = judged(ok(envelope))

    assert isinstance(answer, Unknown)
    assert answer.code is Code.NOT_UNDERSTOOD


@pytest.mark.parametrize("status", [201, 202, 301, 400, 409, 429, 500])
def test_an_acceptance_under_another_http_status_is_unknown(status: int) -> None:
    reply = HttpReply(status=status, body=json.dumps(accepted_envelope()).encode())

    assert judged(reply).outcome is Outcome.UNKNOWN


def test_an_error_beside_a_result_wins() -> None:
    envelope = {**accepted_envelope(), "error": {"code": -32603, "message": "internal"}}

    assert judged(ok(envelope)).outcome is Outcome.UNKNOWN


def test_a_truncated_acceptance_is_unknown() -> None:
    reply = HttpReply(status=200, body=json.dumps(accepted_envelope()).encode(), truncated=True)

    assert judged(reply).outcome is Outcome.UNKNOWN


# cre.md §2.2 and §2.3, line by line: what the gateway says before it forwards.
@pytest.mark.parametrize(
    ("status", "code", "message", "kind", "reason"),
    [
        (400, -32700, "request ID is too long: 300", RefusedForGood, Code.REQUEST_INVALID),
        (400, -32700, "incorrect jsonrpc version", RefusedForGood, Code.REQUEST_INVALID),
        (400, -32601, "'x' is not a valid method.", RefusedForGood, Code.REQUEST_INVALID),
        (400, -32602, "unsupported DON", RefusedForGood, Code.REQUEST_INVALID),
        (400, -32600, "workflowID must be lowercase", RefusedForGood, Code.REQUEST_INVALID),
        (400, -32600, "Auth failure: error marshaling JSON: duplicate", RefusedForGood, Code.REQUEST_INVALID),
        (400, -32600, "Auth failure: claim digest 'a' does not match", RefusedForGood, Code.REQUEST_INVALID),
        (400, -32600, "Service name not found", InstanceRefused, Code.WRONG_GATEWAY),
        (400, -32600, "Workflow not found. 'workflowID' 0x1 is not valid", InstanceRefused, Code.WORKFLOW_NOT_FOUND),
        (
            400,
            -32600,
            "Auth failure: signer '0x1' is not authorized for workflow '0x2'",
            InstanceRefused,
            Code.SIGNER_NOT_AUTHORIZED,
        ),
        (400, -32600, "Auth failure: token has invalid claims: token is expired", InstanceRefused, Code.CLOCK_OFF),
        (400, -32600, "Auth failure: issuedAt (iat) is too far in the future", InstanceRefused, Code.CLOCK_OFF),
        (400, -32600, "Auth failure: invalid JWT format", InstanceRefused, Code.TOKEN_REFUSED),
        (429, -32002, "rate limit exceeded", RefusedNow, Code.RATE_LIMITED),
    ],
)
def test_what_the_gateway_refuses_before_forwarding(
    status: int, code: int, message: str, kind: type, reason: Code
) -> None:
    """Hard cases 82, 83 and 85."""
    answer = judged(error_reply(status, code, message))

    assert type(answer) is kind
    assert isinstance(answer, RefusedNow | RefusedForGood | InstanceRefused)
    assert answer.code is reason
    assert message in answer.sentence


@pytest.mark.parametrize(
    ("reply", "code", "sentence"),
    [
        (NeverConnected(reason="refused"), Code.NOT_CONNECTED, "Nothing was sent: refused"),
        (NoAnswer(reason="timed out"), Code.NO_ANSWER, "No answer: timed out"),
        (
            HttpReply(status=400, body=b""),
            Code.REQUEST_INVALID,
            "The gateway refused to read the request (HTTP 400).",
        ),
        (
            HttpReply(status=200, body=b"{}", truncated=True),
            Code.NOT_UNDERSTOOD,
            "The answer (HTTP 200) is too long.",
        ),
        (HttpReply(status=502, body=b"{}"), Code.NOT_UNDERSTOOD, "The answer (HTTP 502) is not JSON-RPC."),
        (error_reply(400, "x", "x"), Code.NOT_UNDERSTOOD, "The answer (HTTP 400) has an error of unknown form."),
        (error_reply(400, True, "x"), Code.NOT_UNDERSTOOD, "The answer (HTTP 400) has an error of unknown form."),
        (
            error_reply(409, -32003, USED, request_id="f"),
            Code.NOT_UNDERSTOOD,
            "The answer (HTTP 409) is about another request.",
        ),
        (
            HttpReply(status=500, body=json.dumps(accepted_envelope()).encode()),
            Code.NOT_UNDERSTOOD,
            "The answer (HTTP 500) has no error.",
        ),
        (
            ok({**accepted_envelope(), "id": "f"}),
            Code.NOT_UNDERSTOOD,
            "The answer (HTTP 200) is about another request.",
        ),
        (ok(accepted_envelope(status="QUEUED")), Code.NOT_UNDERSTOOD, "The answer (HTTP 200) is not ACCEPTED."),
        (
            ok(accepted_envelope(workflow_id="11" * 32)),
            Code.NOT_UNDERSTOOD,
            "The answer (HTTP 200) is about another workflow.",
        ),
        (
            ok(accepted_envelope(workflow_execution_id="77")),
            Code.NOT_UNDERSTOOD,
            "The answer (HTTP 200) has no execution id.",
        ),
        (error_reply(200, -32603, "oh"), Code.NODE_ERROR, "The nodes answered with an error (-32603): oh"),
        (error_reply(500, -32603, "oh"), Code.GATEWAY_ERROR, "The gateway answered HTTP 500 (-32603): oh"),
    ],
)
def test_a_person_is_told_what_was_answered(reply: Reply, code: Code, sentence: str) -> None:
    answer = judged(reply)

    assert isinstance(answer, NeverSent | RefusedForGood | Unknown)
    assert (answer.code, answer.sentence) == (code, sentence)


def test_a_simulation_s_word_is_no_proof() -> None:
    sentence = f"The simulation names transaction 0x{'07' * 32}; the chain decides."

    assert judged(Broadcast(tx_hash=b"\7" * 32)) == Simulated(tx_hash=b"\7" * 32, sentence=sentence)
    assert Simulated.outcome is Outcome.UNKNOWN


def test_an_empty_400_says_that_the_body_was_never_parsed() -> None:
    assert judged(HttpReply(status=400, body=b"")).outcome is Outcome.REFUSED_FOR_GOOD


@pytest.mark.parametrize("request_id", ["", None])
def test_a_parse_error_has_no_id_to_repeat(request_id: object) -> None:
    assert judged(error_reply(400, -32700, "bad JSON", request_id=request_id)).outcome is Outcome.REFUSED_FOR_GOOD
    assert judged(error_reply(400, -32600, "bad field", request_id=request_id)).outcome is Outcome.UNKNOWN


@pytest.mark.parametrize(("header", "pause"), [(None, 60), (5, 60), (300, 300)])
def test_a_refused_slot_waits_at_least_a_minute(header: int | None, pause: int) -> None:
    """Hard case 78."""
    body = error_reply(429, -32002, "rate limit exceeded").body
    answer = judged(HttpReply(status=429, body=body, retry_after_seconds=header))

    assert isinstance(answer, RefusedNow)
    assert answer.retry_after_seconds == pause


def test_a_replay_of_a_token_that_we_sent_once_means_that_somebody_else_delivered_it_before() -> None:
    """Hard case 81: the earlier delivery may have been forwarded, so this is no refusal."""
    answer = judged(error_reply(400, -32600, "Auth failure: JWT token has already been used"))

    assert isinstance(answer, Unknown)
    assert answer.code is Code.TOKEN_REPLAYED
    # What is not about a token is no replay of one.
    assert isinstance(judged(error_reply(400, -32600, "The id has already been used")), RefusedForGood)


def test_an_id_in_flight_at_the_gateway_is_kept() -> None:
    """Hard case 80."""
    assert isinstance(judged(error_reply(409, -32003, USED)), InFlight)


def test_another_payload_under_our_id_is_a_conflict() -> None:
    """Hard case 76."""
    message = "Request already in progress with different payload"

    assert isinstance(judged(error_reply(200, -32003, message)), PayloadConflict)
    assert isinstance(judged(error_reply(200, -32003, message.upper())), PayloadConflict)
    assert isinstance(judged(error_reply(200, -32600, message)), Unknown)


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (200, -32600, "Workflow not found"),
        (200, -32600, "Auth failure: signer '0x1' is not authorized"),
        (200, -32002, "rate limit exceeded"),
        (200, -32700, "parse error"),
        (200, -32003, USED),
        (200, -32603, "internal"),
    ],
)
def test_an_error_inside_http_200_comes_from_the_nodes_and_proves_no_refusal(
    status: int, code: int, message: str
) -> None:
    """Hard case 86."""
    answer = judged(error_reply(status, code, message))

    assert isinstance(answer, Unknown)
    assert answer.code is Code.NODE_ERROR


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (200, -32600, "Workflow not registered"),
        (200, -32600, "workflow is closed, cannot send trigger"),
        (200, -32000, "workflowID channel is full, cannot send trigger"),
        (500, -32603, "Workflow 0x12 is not assigned to any DONs"),
    ],
)
def test_a_workflow_that_takes_no_trigger_is_told_from_other_errors_and_proves_no_refusal_either(
    status: int, code: int, message: str
) -> None:
    answer = judged(error_reply(status, code, message))

    assert isinstance(answer, Unknown)
    assert answer.code is Code.WORKFLOW_UNAVAILABLE


@pytest.mark.parametrize(
    "reply",
    [
        error_reply(500, -32603, "Internal server error occurred while processing the request"),
        error_reply(500, -32603, "Workflow 0x1 is not assigned to any DONs"),
        error_reply(500, -32001, "unknown"),
        error_reply(504, -32000, "handler timeout: context deadline exceeded"),
        error_reply(400, -32002, "rate limit exceeded"),
        error_reply(429, -32600, "Workflow not found"),
        error_reply(500, -32600, "Auth failure: token is expired"),
        error_reply(503, -32002, "rate limit exceeded"),
        error_reply(409, -32600, USED),
        error_reply(400, -32600, "Workflow not found", request_id="f" * 32),
        error_reply(409, -32003, USED, request_id="f" * 32),
        error_reply(400, -32700, "parse error", request_id="f" * 32),
        error_reply(400, -32600, "Workflow not found", request_id=[REQUEST_ID]),
        error_reply(400, "-32600", "Workflow not found"),
        error_reply(400, True, "Workflow not found"),
        error_reply(400, -32600, None),
        HttpReply(status=400, body=b'{"jsonrpc":"2.0","id":"x","error":"no"}'),
        HttpReply(status=400, body=b"", truncated=True),
        HttpReply(status=400, body=b"<html>400 Bad Request</html>"),
        HttpReply(status=429, body=b"slow down"),
        HttpReply(status=409, body=b""),
        HttpReply(status=503, body=b"Request timed out"),
        HttpReply(status=502, body=b"<html>Bad Gateway</html>"),
        HttpReply(status=403, body=b"<html>Forbidden</html>"),
        HttpReply(status=302, body=b""),
        HttpReply(status=200, body=b""),
        HttpReply(status=200, body=b"\x1f\x8b\x08\x00"),
        HttpReply(status=200, body=b"[" * 65_536),
        HttpReply(status=200, body=b'{"jsonrpc":"2.0","id":' + b"9" * 5000 + b"}"),
        HttpReply(status=200, body=b"\xff\xfe{}"),
        NoAnswer(reason="timed out"),
    ],
)
def test_everything_else_is_unknown(reply: Reply) -> None:
    """Hard cases 75, 84 and 86: it may have been forwarded."""
    assert judged(reply).outcome is Outcome.UNKNOWN


def test_without_a_connection_nothing_was_sent() -> None:
    answer = judged(NeverConnected(reason="ClientConnectorError"))

    assert isinstance(answer, NeverSent)
    assert answer.outcome is Outcome.NEVER_CONNECTED


def test_a_sentence_is_one_short_harmless_line() -> None:
    """Hard case 113."""
    answer = judged(error_reply(400, -32600, "Workflow not found\n\x1b[2J\x00\u202e" + "x" * 10_000))

    assert isinstance(answer, InstanceRefused)
    assert answer.sentence.isprintable()
    assert len(answer.sentence) <= 300


def test_a_sentence_is_cut_after_three_hundred_characters_and_says_where_one_was_not_printable() -> None:
    assert one_line("a\nb\x1bc") == "a\ufffdb\ufffdc"
    assert one_line("x" * 300) == "x" * 300
    assert one_line("x" * 301) == "x" * 300


def test_outcomes_and_codes_are_stored_and_shown_under_their_names() -> None:
    """A word that changes orphans the rows and the labels of yesterday."""
    schema = (Path(__file__).parents[2] / "schema.sql").read_text()
    known = schema.split("CONSTRAINT attempt_outcome_is_known CHECK (outcome IN (")[1].split("))")[0]

    assert {word.strip().strip("'") for word in known.split(",")} == {outcome.value for outcome in Outcome}
    assert [code.value for code in Code] == [code.name.lower() for code in Code]


def test_each_outcome_has_an_answer() -> None:
    kinds = (Accepted, RefusedNow, RefusedForGood, InstanceRefused, NeverSent, InFlight, PayloadConflict, Unknown)

    assert {kind.outcome for kind in kinds} == set(Outcome)


LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
    | st.sampled_from(
        [
            REQUEST_ID,
            "2.0",
            "ACCEPTED",
            "0x" + WORKFLOW_ID.hex(),
            LEGACY.hex(),
            "0x" + "77" * 32,
            -32600,
            -32003,
            -32700,
        ]
    )
)
KEYS = st.sampled_from(
    ["jsonrpc", "id", "result", "error", "code", "message", "status", "workflow_id", "workflow_execution_id"]
)
DOCUMENTS = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=9), max_leaves=20
)
STATUSES = st.sampled_from([200, 400, 409, 429, 500, 503, 504]) | st.integers(100, 599)


def mutated(document: Any) -> st.SearchStrategy[Any]:
    """An acceptance of which any member may be replaced or taken away."""
    result = st.fixed_dictionaries({}, optional={key: st.just(value) | LEAVES for key, value in document.items()})
    whole = {"jsonrpc": st.just("2.0") | LEAVES, "id": st.just(REQUEST_ID) | LEAVES, "result": result | LEAVES}
    return st.fixed_dictionaries({}, optional={**whole, "error": LEAVES})


@given(
    status=STATUSES,
    body=st.binary(max_size=200)
    | (DOCUMENTS | mutated(accepted_envelope()["result"])).map(lambda document: json.dumps(document).encode()),
    truncated=st.booleans(),
)
def test_nothing_raises_and_only_a_perfect_acceptance_is_accepted(status: int, body: bytes, truncated: bool) -> None:
    """Hard case 84."""
    answer = judged(HttpReply(status=status, body=body, truncated=truncated))

    if isinstance(answer, Accepted):
        document = json.loads(body)
        assert (status, truncated) == (200, False)
        assert document["jsonrpc"] == "2.0"
        assert document["id"] == REQUEST_ID
        assert document.get("error") is None
        assert document["result"]["status"] == "ACCEPTED"
        assert document["result"]["workflow_id"].removeprefix("0x") == WORKFLOW_ID.hex()
        assert document["result"]["workflow_execution_id"].removeprefix("0x").lower() == answer.execution_id.hex()
        assert answer.expected == (answer.execution_id in {LEGACY, TRIGGER_INDEX_0})


@given(status=st.integers(100, 599), body=st.binary(max_size=100))
def test_only_the_gateways_own_words_prove_that_nothing_was_forwarded(status: int, body: bytes) -> None:
    answer = judged(HttpReply(status=status, body=body))

    assert answer.outcome is Outcome.UNKNOWN or (status, body) == (400, b"")
