"""What we send as reference comes back byte for byte, whatever the bank wrote."""

import json
import os
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datastore.connection import Pool
from datastore.reference import expected_reference, folded_reference, reference_text, sent_reference

NONCE = uuid.UUID("01234567-89ab-8cde-9012-3456789abcde")
PRINTABLE = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=32)


def on_chain(text: str) -> bytes:
    """The workflow's own rule: pad with NUL, cut to 32 characters, encode."""
    return text.ljust(32, "\0")[:32].encode()


def through_go(text: str) -> str:
    """The gateway writes the input again with Go's HTML escapes; the workflow decodes that."""
    escaped = json.dumps(text).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return str(json.loads(escaped))


@pytest.mark.parametrize(
    "text",
    [
        "DEPOSIT-2026-000123",
        "x",
        " both ends blank ",
        " ",
        "0x" + "ab" * 15,
        '<b>&"quoted"\\</b>',
        "exactly thirty-two characters ok",
    ],
)
def test_printable_ascii_survives(text: str) -> None:
    stored = text.encode().ljust(32, b"\0")

    assert reference_text(stored) == text
    assert expected_reference(stored, NONCE) == stored
    assert sent_reference(stored) == text


@pytest.mark.parametrize(
    "stored",
    [
        bytes(32),
        b"\0text after a NUL".ljust(32, b"\0"),
        b"NUL\0inside".ljust(32, b"\0"),
        b"line\nbreak".ljust(32, b"\0"),
        b"ends with a line break\n".ljust(32, b"\0"),
        b"delete\x7f".ljust(32, b"\0"),
        "Überweisung".encode().ljust(32, b"\0"),
        b"\xff" * 32,
        bytes(31) + b"1",
        b"too short",
        b"longer than a bytes32, which no chain ever gives us",
    ],
)
def test_anything_else_is_replaced_by_the_nonce(stored: bytes) -> None:
    """Hard case 89."""
    expected = expected_reference(stored, NONCE)

    assert reference_text(stored) is None
    assert expected == NONCE.hex.encode()
    assert sent_reference(expected) == NONCE.hex


@given(PRINTABLE)
def test_every_printable_text_survives(text: str) -> None:
    assert reference_text(text.encode().ljust(32, b"\0")) == text


@given(st.binary(min_size=32, max_size=32) | PRINTABLE.map(lambda text: text.encode().ljust(32, b"\0")), st.uuids())
def test_the_expected_reference_is_what_the_workflow_makes_of_the_sent_one(stored: bytes, nonce: uuid.UUID) -> None:
    """Hard case 89: by the workflow's own rule, after the gateway's re-encoding."""
    expected = expected_reference(stored, nonce)

    assert len(expected) == 32
    assert on_chain(through_go(sent_reference(expected))) == expected
    assert expected in {stored, nonce.hex.encode()}


def test_bytes_that_no_text_becomes_are_never_sent() -> None:
    with pytest.raises(ValueError, match="no text"):
        sent_reference(b"\xff" * 32)


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        (b"INV-2026-17", b"inv 202617", True),
        (b"A B", b"a-b", True),
        (b"- -", b"\0", True),
        (b"INV-100", b"INV-10", False),
        (b"INV_1", b"INV1", False),
        (b"a\\b", b"a\\\\b", False),
        (b"\xc0", b"\xe0", False),  # only ASCII has a case here
    ],
)
def test_references_that_differ_only_in_case_spaces_or_dashes_fold_alike(one: bytes, other: bytes, alike: bool) -> None:
    one, other = one.ljust(32, b"\0"), other.ljust(32, b"\0")
    assert (folded_reference(one) == folded_reference(other)) is alike


async def test_postgres_folds_a_reference_as_python_does(indexer_pool: Pool) -> None:
    every_byte = [bytes(range(start, start + 32)) for start in range(0, 256, 32)]
    texts = [text.ljust(32, b"\0") for text in (b"", b" ", b"INV-2026 a\\Z", b"x" * 32, b"a\0 B-\0c", b"100 -00")]
    references = [*every_byte, *texts, *(os.urandom(32) for _ in range(100))]
    rows = await indexer_pool.fetch("SELECT folded_reference(n) FROM unnest($1::bytea[]) AS n", references)
    assert [row[0] for row in rows] == [folded_reference(reference) for reference in references]
