"""What is refused before anything is sent, whatever the bank reference says.  Pure (hard case 45)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from datastore.judgement import Asked, Refused

_NO_REFERENCE: Final = bytes(32)
_FIRST_ORDINARY_ADDRESS: Final = (0x400).to_bytes(20, "big")
"""Addresses below are the chain's own (precompiles and system contracts); tokens sent there are lost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The instance's limits; ``max_mint_wei`` is ``None`` for no limit of ours."""

    max_mint_wei: int | None
    forbidden_beneficiaries: frozenset[bytes] = frozenset()

    def __call__(self, candidate: Asked) -> Refused | None:  # noqa: PLR0911 - one return a reason reads best
        """Why ``candidate`` is refused, or ``None``."""
        if candidate.amount == 0:
            return Refused(code="amount_zero", sentence="The request asks for nothing.")
        if candidate.predicted_amount is None:
            return Refused(
                code="amount_not_representable",
                sentence="The workflow's floating-point arithmetic cannot mint this amount: it would throw.",
            )
        if self.max_mint_wei is not None and candidate.amount > self.max_mint_wei:
            return Refused(
                code="amount_above_cap", sentence=f"More than {self.max_mint_wei} wei (BSKT_MAX_MINT_TOKENS)."
            )
        if candidate.bank_reference == _NO_REFERENCE:
            return Refused(code="bank_reference_missing", sentence="No bank reference, so no deposit backs this mint.")
        if candidate.beneficiary < _FIRST_ORDINARY_ADDRESS:
            return Refused(
                code="beneficiary_special", sentence="The beneficiary is the zero address or one of the chain's own."
            )
        own = (candidate.stablecoin, candidate.consumer)
        if candidate.beneficiary in own or candidate.beneficiary in self.forbidden_beneficiaries:
            return Refused(
                code="beneficiary_is_protocol", sentence="The beneficiary is a contract of the protocol itself."
            )
        return None
