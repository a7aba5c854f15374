"""Every vector of the protocol comes out byte for byte, and the key never shows."""

import json
import uuid
from pathlib import Path
from typing import Any

import pytest

from invocator.signing import BodyNotSignable, Signer, SignerKeyUnusable, request_digest, signed_token

DOCUMENT: dict[str, Any] = json.loads(Path(__file__).with_name("vectors.json").read_text(encoding="utf-8"))
SIGNABLE = [vector for vector in DOCUMENT["vectors"] if vector["name"] != "numbers_trap"]
KEY = DOCUMENT["private_key"]


@pytest.fixture(scope="module")
def signer() -> Signer:
    return Signer.from_text(KEY)


@pytest.mark.parametrize("vector", SIGNABLE, ids=lambda vector: str(vector["name"]))
def test_each_vector_is_reproduced_byte_for_byte(vector: dict[str, Any], signer: Signer) -> None:
    """Hard case 83."""
    body = vector["wire_body"].encode()
    claims = vector["payload"]

    assert request_digest(body) == vector["digest"]
    token = signed_token(body, key=signer, issued_at=claims["iat"], jti=uuid.UUID(claims["jti"]))
    assert token == vector["token"]


def test_the_digest_is_upstreams_known_answer() -> None:
    answer = DOCUMENT["upstream_known_answer"]

    assert request_digest(answer["canonical"].encode()) == answer["digest"]


def test_numbers_that_would_be_rounded_are_refused_by_name() -> None:
    trap = next(vector for vector in DOCUMENT["vectors"] if vector["name"] == "numbers_trap")

    with pytest.raises(BodyNotSignable, match="9007199254740993 exceeds safe integer"):
        request_digest(trap["wire_body"].encode())


@pytest.mark.parametrize("case", DOCUMENT["edge_cases"], ids=lambda case: str(case["name"]))
def test_no_edge_case_is_signed(case: dict[str, Any]) -> None:
    """Some the gateway would take; none is what we make, so none is worth a call."""
    with pytest.raises(BodyNotSignable):
        request_digest(case["wire_body"].encode())


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"not json",
        b"\xff",
        b'{"id":"x","jsonrpc":"2.0","method":"m"}',
        b'{"auth":"T","id":"x","jsonrpc":"2.0","method":"m","params":{}}',
        b'{"id":"x","jsonrpc":"2.0","method":"m","params":{"a":1,"a":2}}',
        b'{"id":"x","jsonrpc":"2.0","method":"m","params":{"a":9007199254740993}}',
        b'{"id":"x","jsonrpc":"2.0","method":"m","params":{"a":"\\ud800"}}',
        b'{"id":"x", "jsonrpc":"2.0","method":"m","params":{}}',
        b'{"id":"x","jsonrpc":"2.0","method":"m","params":' + b"[" * 5000,
    ],
)
def test_what_is_no_canonical_request_is_refused(body: bytes) -> None:
    with pytest.raises(BodyNotSignable):
        request_digest(body)


def test_the_same_body_gets_another_token_for_another_jti(signer: Signer) -> None:
    """Hard case 81: each attempt has its own."""
    body = SIGNABLE[0]["wire_body"].encode()
    tokens = {signed_token(body, key=signer, issued_at=1, jti=uuid.UUID(int=jti)) for jti in (1, 2)}

    assert len(tokens) == 2


def test_the_signer_knows_its_address(signer: Signer) -> None:
    assert signer.checksum_address == DOCUMENT["signer"]
    assert signer.address == bytes.fromhex(DOCUMENT["signer"][2:])


@pytest.mark.parametrize("form", [KEY, KEY[2:], KEY.upper().replace("0X", "0x"), f"  {KEY}\n"])
def test_a_key_may_be_written_in_several_ways(form: str, signer: Signer) -> None:
    assert Signer.from_text(form).address == signer.address


@pytest.mark.parametrize(
    "text", ["", "0x", KEY[:-1], KEY + "0", "zz" * 32, "0x" + "0" * 64, "0x" + "f" * 64, "\u0661" * 64, "secret words"]
)
def test_an_unusable_key_is_refused_without_showing_it(text: str) -> None:
    """Hard case 110."""
    with pytest.raises(SignerKeyUnusable) as caught:
        Signer.from_text(text)

    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    if len(text) > 2:
        assert text[2:] not in repr(caught.value)


def test_the_key_shows_in_no_representation_of_the_signer(signer: Signer) -> None:
    """Hard case 110."""
    for text in (repr(signer), str(signer), f"{signer}", repr([signer]), repr({"key": signer})):
        assert DOCUMENT["signer"] in text
        assert KEY[2:] not in text.lower()
        assert repr(bytes.fromhex(KEY[2:]))[2:-1] not in text


def test_signers_are_equal_by_address(signer: Signer) -> None:
    assert signer == Signer.from_text(KEY)
