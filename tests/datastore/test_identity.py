"""The identity survives re-mining, the nonce follows from it, and neither can be guessed or confused."""

import hmac
import json
import uuid
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datastore.errors import DatastoreError
from datastore.identity import (
    InstanceSecretTooShort,
    derive_nonce,
    execution_id_candidates,
    request_identity,
    secret_check_value,
)

SECRET = bytes(range(32))
VECTORS: list[dict[str, Any]] = json.loads(
    Path(__file__).parents[1].joinpath("invocator", "vectors.json").read_text(encoding="utf-8")
)["vectors"]


def identity(**changes: Any) -> bytes:
    log: dict[str, Any] = {
        "chain_id": 31337,
        "emitter": bytes.fromhex("aa" * 20),
        "tx_hash": bytes.fromhex("bb" * 32),
        "topic0": bytes.fromhex("cc" * 32),
        "topics": bytes.fromhex("cc" * 32 + "dd" * 32),
        "data": bytes.fromhex("ee" * 64),
        "rank": 0,
    }
    return request_identity(**{**log, **changes})


def test_an_identity_is_these_bytes_for_ever() -> None:
    """Hard case 4: the block is no part of it.  Another value here would mint open requests again."""
    assert identity().hex() == "91415a221b49adc4ba0f1a95610d9e1ae2d3f9b129b0d9d3526f37a01f49af50"


@pytest.mark.parametrize(
    "change",
    [
        {"chain_id": 1},
        {"emitter": bytes(20)},
        {"tx_hash": bytes(32)},
        {"topic0": bytes(32)},
        {"topics": bytes.fromhex("cc" * 32)},
        {"data": b""},
        {"rank": 1},
    ],
)
def test_each_part_changes_the_identity(change: dict[str, Any]) -> None:
    """Hard case 17: two logs of one transaction differ in content, or in rank."""
    assert identity(**change) != identity()


def test_a_topic_is_never_taken_for_the_first_word_of_the_data() -> None:
    moved = identity(topics=bytes.fromhex("cc" * 32), data=bytes.fromhex("dd" * 32 + "ee" * 64))

    assert moved != identity()


@pytest.mark.parametrize(
    "change", [{"emitter": bytes(19)}, {"tx_hash": bytes(33)}, {"topic0": b""}, {"topics": bytes(31)}]
)
def test_a_wrong_length_is_refused_instead_of_padded(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="bytes"):
        identity(**change)


def test_a_nonce_is_these_bytes_for_ever() -> None:
    """Hard case 55: the same again after a lost database."""
    assert derive_nonce(SECRET, bytes(32), 0) == uuid.UUID("d5dc0a70-0163-8464-bd61-e73bddbb38b4")


@given(st.binary(min_size=32, max_size=64), st.binary(min_size=32, max_size=32), st.integers(0, 2**31 - 1))
def test_a_nonce_is_an_rfc_9562_uuid_of_version_8(secret: bytes, request: bytes, generation: int) -> None:
    nonce = derive_nonce(secret, request, generation)

    assert nonce.version == 8
    assert nonce.variant == uuid.RFC_4122
    assert len(nonce.hex) == 32


def test_a_nonce_depends_on_secret_identity_and_generation() -> None:
    """Hard case 66: the same for every attempt, another one only for another generation."""
    nonces = {
        derive_nonce(SECRET, bytes(32), 0),
        derive_nonce(SECRET, bytes(32), 1),
        derive_nonce(SECRET, identity(), 0),
        derive_nonce(SECRET[::-1], bytes(32), 0),
    }

    assert len(nonces) == 4
    assert derive_nonce(SECRET, bytes(32), 0) in nonces


def test_a_short_secret_is_refused_without_showing_it() -> None:
    """Hard case 74."""
    secret = b"much too short, but secret"

    with pytest.raises(InstanceSecretTooShort, match="26 bytes; at least 32") as caught:
        secret_check_value(secret)
    with pytest.raises(DatastoreError):
        derive_nonce(secret, bytes(32), 0)

    assert "secret," not in str(caught.value)
    assert "much" not in repr(caught.value)


def test_the_check_value_tells_a_changed_secret_and_is_neither_the_secret_nor_a_nonce() -> None:
    check = secret_check_value(SECRET)

    assert check == secret_check_value(bytes(range(32)))
    assert check != secret_check_value(SECRET[::-1])
    assert check != SECRET
    assert not check.startswith(derive_nonce(SECRET, b"", 0).bytes[:4])


@pytest.mark.parametrize(
    "vector",
    [vector for vector in VECTORS if vector["execution_id_candidates"] is not None],
    ids=lambda vector: str(vector["name"]),
)
def test_execution_id_candidates_are_those_of_the_vectors(vector: dict[str, Any]) -> None:
    candidates = vector["execution_id_candidates"]
    workflow_id = bytes.fromhex(candidates["workflow_id_stripped"])
    request_id = json.loads(vector["wire_body"])["id"]

    legacy, trigger_index_0 = execution_id_candidates(workflow_id, request_id)

    assert "0x" + legacy.hex() == candidates["legacy"]
    assert "0x" + trigger_index_0.hex() == candidates["trigger_index_0"]


def test_a_workflow_id_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        execution_id_candidates(bytes(31), "x")


@given(st.binary(min_size=32, max_size=200), st.binary(min_size=32, max_size=32), st.integers(0, 2**31 - 1))
def test_a_nonce_is_cut_from_the_hmac_of_the_library(secret: bytes, request: bytes, generation: int) -> None:
    mac = hmac.digest(secret, b"bskt-mint-v1" + request + generation.to_bytes(4, "big"), "sha256")
    nonce = derive_nonce(secret, request, generation).bytes
    free = int.from_bytes(b"\xff" * 6 + b"\x0f\xff\x3f" + b"\xff" * 7, "big")
    assert int.from_bytes(nonce, "big") & free == int.from_bytes(mac[:16], "big") & free
