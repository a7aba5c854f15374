"""Who a request is: its identity on chain, its nonce, and the execution ids it may appear under (design §3).  Pure.

The identity survives re-mining in another block; the nonce follows from it, so both are the same again after a lost
database or a failover.  Changing one byte of any formula here mints open requests again.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from functools import lru_cache
from typing import Final
from uuid import UUID

from datastore.errors import DatastoreError

MINIMUM_SECRET_BYTES: Final = 32

# chain id, emitter, transaction hash, topic0, content hash, number of topics, rank: nothing has a variable width.
_IDENTITY: Final = struct.Struct(">Q20s32s32s32sBI")
_TOPIC_BYTES: Final = 32
_ADDRESS_BYTES: Final = 20
_HASH_BYTES: Final = 32
_NONCE_DOMAIN: Final = b"bskt-mint-v1"
# RFC 9562: bits 48 to 51 are the version, 64 and 65 the variant.
_NONCE_BITS: Final = ~((0xF << 76) | (0x3 << 62))
_VERSION_8: Final = (0x8 << 76) | (0x2 << 62)
_HMAC_BLOCK_BYTES: Final = 64
_CHECK_DOMAIN: Final = b"bskt-secret-check-v1"


class InstanceSecretTooShort(DatastoreError):
    """Do not start: nonces could be guessed and squatted.  Configure at least 32 random bytes."""

    def __init__(self, length_bytes: int) -> None:
        super().__init__(f"the instance secret has {length_bytes} bytes; at least {MINIMUM_SECRET_BYTES} are needed")


def request_identity(
    *, chain_id: int, emitter: bytes, tx_hash: bytes, topic0: bytes, topics: bytes, data: bytes, rank: int
) -> bytes:
    """The 32 bytes under which a request is found again, in whichever block it is mined.

    Args:
        chain_id: The chain.
        emitter: 20 bytes.
        tx_hash: 32 bytes.
        topic0: 32 bytes.
        topics: All topics of the raw log (topic0 too), concatenated.
        data: The raw log's data.
        rank: Position (from 0) among the logs of this transaction with the same emitter, topics and data.

    Raises:
        ValueError: A length is wrong: the log was not checked before.
    """
    if len(emitter) != _ADDRESS_BYTES or len(tx_hash) != _HASH_BYTES or len(topic0) != _HASH_BYTES:
        raise ValueError("emitter, tx_hash and topic0 have 20, 32 and 32 bytes")  # struct would pad and cut silently
    topic_count, remainder = divmod(len(topics), _TOPIC_BYTES)
    if remainder:
        raise ValueError("topics have 32 bytes each")
    content = hashlib.sha256(topics + data).digest()
    # Without their number, a topic could be taken for the first word of the data.
    fields = _IDENTITY.pack(chain_id, emitter, tx_hash, topic0, content, topic_count, rank)
    return hashlib.sha256(fields).digest()


def derive_nonce(secret: bytes, identity: bytes, generation: int) -> UUID:
    """The request's id for CRE: unpredictable without ``secret``, the same whenever it is derived again.

    An RFC 9562 UUID of version 8.  Hard cases 55, 66 and 74.

    Raises:
        InstanceSecretTooShort: Nothing may be sent under a guessable id.
    """
    inner, outer = _hmac_states(secret)
    inner, outer = inner.copy(), outer.copy()
    inner.update(identity + generation.to_bytes(4, "big"))
    outer.update(inner.digest())
    number = int.from_bytes(outer.digest()[:16], "big")
    return UUID(int=number & _NONCE_BITS | _VERSION_8)


@lru_cache(maxsize=4)  # an instance has one secret
def _hmac_states(secret: bytes) -> tuple[hashlib._Hash, hashlib._Hash]:
    """HMAC-SHA256 (RFC 2104) as far as the secret decides it; a third of the cost of the library's own copy."""
    _require_strong(secret)
    key = (secret if len(secret) <= _HMAC_BLOCK_BYTES else hashlib.sha256(secret).digest()).ljust(
        _HMAC_BLOCK_BYTES, b"\0"
    )
    inner = hashlib.sha256(bytes(octet ^ 0x36 for octet in key) + _NONCE_DOMAIN)
    return inner, hashlib.sha256(bytes(octet ^ 0x5C for octet in key))


def secret_check_value(secret: bytes) -> bytes:
    """32 bytes to store: they tell a changed secret and reveal nothing about it.

    Raises:
        InstanceSecretTooShort: Do not start.
    """
    _require_strong(secret)
    return hmac.digest(secret, _CHECK_DOMAIN, "sha256")


def execution_id_candidates(workflow_id: bytes, request_id: str) -> tuple[bytes, bytes]:
    """The execution ids CRE may give ``request_id``: ``(legacy, with trigger index 0)`` (cre.md §2.5).

    Which one production uses is not published, so the chain is searched for both.
    """
    if len(workflow_id) != _HASH_BYTES:
        raise ValueError("a workflow id has 32 bytes")
    text = (workflow_id.hex() + request_id).encode()
    return hashlib.sha256(text).digest(), hashlib.sha256(text + b"0").digest()


def _require_strong(secret: bytes) -> None:
    if len(secret) < MINIMUM_SECRET_BYTES:
        raise InstanceSecretTooShort(len(secret))
