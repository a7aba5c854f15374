"""What is refused before the trigger: hard cases 45, 52 and 117.  Each refusal has its own code and a sentence."""

from dataclasses import replace

import pytest

from datastore.judgement import Candidate
from datastore.mint_amount import amount_text, predicted_wei
from indexer.policy import Policy

ETHER = 10**18
TOKEN, CONSUMER, FACTORY = b"\x70" * 20, b"\xc0" * 20, b"\xfa" * 20
GOOD = Candidate(
    id=1,
    bank_reference=b"DEPOSIT".ljust(32, b"\0"),
    expected_reference=b"DEPOSIT".ljust(32, b"\0"),
    stablecoin=TOKEN,
    consumer=CONSUMER,
    requester=b"\xa1" * 20,
    beneficiary=b"\xb0" * 20,
    amount=5 * ETHER,
    predicted_amount=5 * ETHER,
)
POLICY = Policy(
    max_mint_wei=10 * ETHER,
    min_mint_wei=ETHER,
    max_drift_wei=1_000,
    forbidden_beneficiaries=frozenset({FACTORY}),
)


@pytest.mark.parametrize(
    "candidate",
    [
        GOOD,
        replace(GOOD, decimals=18),
        replace(GOOD, amount=ETHER, predicted_amount=ETHER),
        replace(GOOD, amount=10 * ETHER, predicted_amount=10 * ETHER),
        replace(GOOD, predicted_amount=5 * ETHER - 1_000),
        replace(GOOD, beneficiary=(0x400).to_bytes(20, "big")),
    ],
)
def test_what_is_within_every_limit_is_allowed(candidate: Candidate) -> None:
    assert POLICY(candidate) is None


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"amount": 0}, "amount_zero"),
        ({"amount": ETHER - 1}, "amount_below_minimum"),
        ({"amount": 10 * ETHER + 1}, "amount_above_cap"),
        ({"amount": 2**256 - 1, "predicted_amount": None}, "amount_above_cap"),
        ({"decimals": 6}, "decimals_not_supported"),
        ({"decimals": 0}, "decimals_not_supported"),
        ({"predicted_amount": None}, "amount_not_representable"),
        ({"predicted_amount": 5 * ETHER + 1_001}, "amount_drifts"),
        ({"predicted_amount": 5 * ETHER - 1_001}, "amount_drifts"),
        ({"beneficiary": bytes(20)}, "beneficiary_special"),
        ({"beneficiary": (1).to_bytes(20, "big")}, "beneficiary_special"),
        ({"beneficiary": (0x3FF).to_bytes(20, "big")}, "beneficiary_special"),
        ({"beneficiary": TOKEN}, "beneficiary_is_protocol"),
        ({"beneficiary": CONSUMER}, "beneficiary_is_protocol"),
        ({"beneficiary": FACTORY}, "beneficiary_is_protocol"),
        ({"bank_reference": bytes(32)}, "bank_reference_missing"),
    ],
)
def test_each_reason_has_its_code_and_a_sentence(changes: dict[str, object], code: str) -> None:
    refused = POLICY(replace(GOOD, **changes))  # type: ignore[arg-type]
    assert refused is not None
    assert refused.code == code
    assert refused.sentence.endswith(".")


def test_without_limits_only_what_can_never_be_right_is_refused() -> None:
    lax = Policy(max_mint_wei=None)
    assert lax(replace(GOOD, amount=1, predicted_amount=2)) is None
    assert lax(replace(GOOD, amount=0)) is not None


def test_a_drift_is_exact_however_large_the_amount() -> None:
    """A driver's decimals keep 28 digits; wei need 78."""
    amount = 123_456_789_012_345_678_901_234_567_890 * ETHER + 1
    predicted = predicted_wei(amount_text(amount))
    assert predicted is not None
    policy = Policy(max_mint_wei=None, max_drift_wei=abs(predicted - amount) - 1)
    refused = policy(replace(GOOD, amount=amount, predicted_amount=predicted))
    assert refused is not None
    assert refused.code == "amount_drifts"
    assert f"{predicted - amount:+}" in refused.sentence
