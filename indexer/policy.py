"""What is refused before anything is sent, whatever the bank reference says.  Pure (hard case 45)."""

from __future__ import annotations

from dataclasses import dataclass

from datastore.judgement import Candidate, Refused

ZERO_ADDRESS = bytes(20)
_PRECOMPILES_BELOW = 0x400
"""Addresses below this number are the chain's own (precompiles and system contracts); tokens sent there are lost."""


_WORKFLOW_DECIMALS = 18
"""The workflow multiplies by 10**18, whatever the token's ``decimals()`` says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The instance's limits, in wei; ``None`` for no limit of ours.

    ``max_drift_wei``: how far the amount that the workflow's arithmetic mints may be from the one that was asked for.
    """

    max_mint_wei: int | None
    min_mint_wei: int | None = None
    max_drift_wei: int | None = None
    forbidden_beneficiaries: frozenset[bytes] = frozenset()

    def __call__(self, candidate: Candidate) -> Refused | None:
        """Why ``candidate`` is refused, or ``None``."""
        return (
            self._about_amount(candidate)
            or self._about_arithmetic(candidate)
            or self._about_beneficiary(candidate)
            or _about_deposit(candidate)
        )

    def _about_amount(self, candidate: Candidate) -> Refused | None:
        if candidate.amount == 0:
            return Refused(code="amount_zero", sentence="The request asks for nothing.")
        if self.min_mint_wei is not None and candidate.amount < self.min_mint_wei:
            sentence = f"Less than {self.min_mint_wei} wei (BSKT_MIN_MINT_TOKENS)."
            return Refused(code="amount_below_minimum", sentence=sentence)
        if self.max_mint_wei is not None and candidate.amount > self.max_mint_wei:
            sentence = f"More than {self.max_mint_wei} wei (BSKT_MAX_MINT_TOKENS)."
            return Refused(code="amount_above_cap", sentence=sentence)
        return None

    def _about_arithmetic(self, candidate: Candidate) -> Refused | None:
        """What the workflow would make of the amount."""
        if candidate.decimals is not None and candidate.decimals != _WORKFLOW_DECIMALS:
            sentence = f"The token has {candidate.decimals} decimals; the workflow assumes {_WORKFLOW_DECIMALS}."
            return Refused(code="decimals_not_supported", sentence=sentence)
        if candidate.predicted_amount is None:
            return Refused(
                code="amount_not_representable",
                sentence="The workflow's floating-point arithmetic cannot mint this amount: it would throw.",
            )
        drift = candidate.predicted_amount - candidate.amount
        if self.max_drift_wei is not None and abs(drift) > self.max_drift_wei:
            sentence = f"The workflow's arithmetic would mint it {drift:+} wei off (BSKT_MAX_DRIFT_TOKENS)."
            return Refused(code="amount_drifts", sentence=sentence)
        return None

    def _about_beneficiary(self, candidate: Candidate) -> Refused | None:
        if int.from_bytes(candidate.beneficiary) < _PRECOMPILES_BELOW:
            return Refused(
                code="beneficiary_special", sentence="The beneficiary is the zero address or one of the chain's own."
            )
        protocol = {candidate.stablecoin, candidate.consumer} | self.forbidden_beneficiaries
        if candidate.beneficiary in protocol:
            return Refused(
                code="beneficiary_is_protocol", sentence="The beneficiary is a contract of the protocol itself."
            )
        return None


def _about_deposit(candidate: Candidate) -> Refused | None:
    if candidate.bank_reference == bytes(32):
        return Refused(code="bank_reference_missing", sentence="No bank reference, so no deposit backs this mint.")
    return None
