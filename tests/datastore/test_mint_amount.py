"""Amounts are sent exactly, and what the workflow's floats make of them is known before."""

import json
import random
import re
import shutil
import subprocess
from decimal import Decimal, localcontext

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datastore.mint_amount import amount_text, predicted_for, predicted_wei

JAVASCRIPT = """
const texts = JSON.parse(require("fs").readFileSync(0, "utf8"));
const mint = (text) => {
  try {
    const wei = BigInt(parseFloat(text) * 10 ** 18);
    return wei < 2n ** 256n ? wei.toString() : null;
  } catch { return null; }
};
console.log(JSON.stringify(texts.map(mint)));
"""


@pytest.mark.parametrize(
    ("wei", "decimals", "text"),
    [
        (0, 18, "0"),
        (1, 18, "0.000000000000000001"),
        (10**18, 18, "1"),
        (1_100_000_000_000_000_000, 18, "1.1"),
        (10**17, 18, "0.1"),
        (1_500_000, 6, "1.5"),
        (1_500_000, 0, "1500000"),
        (2**256 - 1, 18, "115792089237316195423570985008687907853269984665640564039457.584007913129639935"),
    ],
)
def test_amount_text_is_exact(wei: int, decimals: int, text: str) -> None:
    assert amount_text(wei, decimals) == text


@given(st.integers(0, 2**256 - 1), st.integers(0, 18))
def test_amount_text_has_the_only_allowed_form_and_loses_nothing(wei: int, decimals: int) -> None:
    """Hard case 44."""
    text = amount_text(wei, decimals)

    assert re.fullmatch(r"[0-9]+(\.[0-9]{1,18})?", text)
    with localcontext() as context:
        context.prec = 100
        assert Decimal(text).scaleb(decimals) == wei


@pytest.mark.parametrize(("wei", "decimals"), [(-1, 18), (2**256, 18), (1, -1), (1, 19)])
def test_amount_text_refuses_what_is_no_amount(wei: int, decimals: int) -> None:
    with pytest.raises(ValueError, match=r"decimals|uint256"):
        amount_text(wei, decimals)


# What Node.js answers.
@pytest.mark.parametrize(
    ("text", "wei"),
    [
        ("0", 0),
        ("0.000000000000000001", 1),
        ("0.1", 100_000_000_000_000_000),
        ("1.1", 1_100_000_000_000_000_128),
        ("1.005", 1_004_999_999_999_999_872),
        ("1000.10", 1_000_100_000_000_000_000_000),
        ("33.333333333333333333", 33_333_333_333_333_336_064),
        ("9007199254740993", 9_007_199_254_740_992_000_000_000_000_000_000),
        ("0.0001234", None),
        ("115792089237316195423570985008687907853269984665640564039457.584007913129639935", None),
        ("9" * 400, None),
    ],
)
def test_predicted_wei_is_javascripts(text: str, wei: int | None) -> None:
    assert predicted_wei(text) == wei


@pytest.mark.parametrize(
    "text", ["", "1,000", "1e3", "1_000", "-1", "+1", " 1", "1.", ".5", "inf", "nan", "0x1", "\u0661"]
)
def test_predicted_wei_refuses_what_is_never_sent(text: str) -> None:
    with pytest.raises(ValueError, match="plain decimal digits"):
        predicted_wei(text)


@given(st.integers(0, 2**256 - 1))
def test_a_predicted_amount_is_a_uint256_within_two_roundings_of_the_exact_one(wei: int) -> None:
    predicted = predicted_wei(amount_text(wei))

    if predicted is not None:
        assert 0 <= predicted < 2**256
        assert abs(predicted - wei) <= wei // 2**51 + 1


@pytest.mark.skipif(shutil.which("node") is None, reason="the committed examples stand alone without Node.js")
def test_predicted_wei_equals_node_on_thousands_of_amounts() -> None:
    chance = random.Random(20_260_203)  # noqa: S311 - reproducible amounts, nothing secret
    texts = [amount_text(chance.getrandbits(chance.randint(1, 256))) for _ in range(2000)]
    texts += [amount_text(chance.randint(0, 10**8) * 10**16) for _ in range(2000)]
    texts += [amount_text(chance.randint(0, 10**12) * 10 ** chance.randint(6, 14)) for _ in range(2000)]

    node = subprocess.run(  # noqa: S603 - our own script, no shell
        [str(shutil.which("node")), "-e", JAVASCRIPT],
        input=json.dumps(texts),
        text=True,
        capture_output=True,
        check=True,
    )
    answers = [None if answer is None else int(answer) for answer in json.loads(node.stdout)]

    assert [predicted_wei(text) for text in texts] == answers
    assert None in answers


@given(st.one_of(st.integers(0, 2**256 - 1), st.integers(0, 10**24)))
def test_what_is_predicted_without_the_text_is_what_is_predicted_with_it(wei: int) -> None:
    assert predicted_for(wei) == predicted_wei(amount_text(wei))
