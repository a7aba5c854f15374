"""Sign a request for the gateway: its digest, and the token that carries it (cre.md §1.3 and §1.5).

A token belongs to one HTTP attempt: the gateway remembers its ``jti`` for a day, also when it then refuses.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final
from uuid import UUID

import orjson
import rfc8785

if TYPE_CHECKING:
    from eth_account.signers.local import LocalAccount

TOKEN_LIFETIME_SECONDS: Final = 300
"""The longest lifetime that the gateway takes."""

_DIGESTED: Final = frozenset({"id", "jsonrpc", "method", "params"})
_HEX_KEY: Final = re.compile(r"(?:0x)?([0-9a-fA-F]{64})", re.ASCII)
_CURVE_ORDER: Final = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
_ETHEREUM_RECOVERY_OFFSET: Final = 27


class BodyNotSignable(ValueError):
    """The body is not what `payload.request_body` makes; signing it would burn a call or sign other bytes."""


class SignerKeyUnusable(ValueError):
    """Do not start: the configured key is no private key.  Never shows any of it."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Signer:
    """The key that the workflow authorises; ``address`` is its 20 bytes.  The key shows up in no repr or error."""

    address: bytes
    checksum_address: str
    _account: LocalAccount = field(compare=False)

    @classmethod
    def from_text(cls, text: str) -> Signer:
        """Read a private key: 64 hexadecimal digits, with or without ``0x``, blanks around it ignored.

        Raises:
            SignerKeyUnusable: Do not start.
        """
        match = _HEX_KEY.fullmatch(text.strip())
        if match is None:
            raise SignerKeyUnusable("the signer key is not 64 hexadecimal digits")
        key = bytes.fromhex(match[1])
        if not 0 < int.from_bytes(key, "big") < _CURVE_ORDER:
            raise SignerKeyUnusable("the signer key is outside the range of secp256k1")
        from eth_account import Account  # noqa: PLC0415 - takes a second to import; only a sender needs it

        account: LocalAccount = Account.from_key(key)
        checksum_address = str(account.address)
        return cls(address=bytes.fromhex(checksum_address[2:]), checksum_address=checksum_address, _account=account)

    def __repr__(self) -> str:
        return f"Signer(address={self.checksum_address})"

    def sign(self, message: bytes) -> bytes:
        """EIP-191 personal signature: ``r ‖ s ‖ v`` with ``v`` 0 or 1, the same for the same message (RFC 6979)."""
        from eth_account.messages import encode_defunct  # noqa: PLC0415 - as above

        signature = bytes(self._account.sign_message(encode_defunct(primitive=message)).signature)
        return signature[:-1] + bytes([signature[-1] - _ETHEREUM_RECOVERY_OFFSET])


def request_digest(body: bytes) -> str:
    """``0x`` and the SHA-256 of the canonical request, which ``body`` must already be, byte for byte.

    The gateway digests its own canonical form of what it parsed.  Requiring that form of what we send settles at once
    what could differ: key order, escapes, rounded numbers, members given twice or dropped (hard case 83).

    Raises:
        BodyNotSignable: Another form.
    """
    try:
        request = orjson.loads(body)
        canonical = rfc8785.dumps(request)
    except (ValueError, RecursionError) as error:
        raise BodyNotSignable(f"the body has no canonical form (RFC 8785): {error}") from error
    if canonical != body:
        raise BodyNotSignable("the body is not in its canonical form (RFC 8785); are all its numbers strings?")
    if not isinstance(request, dict) or request.keys() != _DIGESTED:
        raise BodyNotSignable("the body must have exactly id, jsonrpc, method and params")
    return "0x" + hashlib.sha256(body).hexdigest()


def signed_token(body: bytes, *, key: Signer, issued_at: int, jti: UUID) -> str:
    """The bearer token for one attempt to send ``body``.

    Args:
        body: From `payload.request_body`.
        key: Who signs.
        issued_at: Unix seconds by the gateway's clock; the token ends 300 s later (hard case 82).
        jti: Fresh for each attempt, whatever became of the last one (hard case 81).

    Raises:
        BodyNotSignable: Nothing may be sent.
    """
    claims: dict[str, str | int] = {
        "digest": request_digest(body),
        "iss": key.checksum_address,
        "iat": issued_at,
        "exp": issued_at + TOKEN_LIFETIME_SECONDS,
        "jti": str(jti),
    }
    signing_input = f"{_segment({'alg': 'ETH', 'typ': 'JWT'})}.{_segment(claims)}"
    return f"{signing_input}.{_base64url(key.sign(signing_input.encode('ascii')))}"


def _segment(members: Mapping[str, str | int]) -> str:
    return _base64url(json.dumps(members, separators=(",", ":")).encode("ascii"))


def _base64url(octets: bytes) -> str:
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode("ascii")
