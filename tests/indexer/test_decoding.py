"""The decoders against eth_abi, and against everything that is no encoding at all."""

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from eth_abi import abi as eth_abi
from eth_hash.auto import keccak
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer.abi_files import load_abis
from indexer.decoding import (
    MAX_DATA_BYTES,
    ROLE_EVENTS,
    AbiUnsuitable,
    BasketCreatedEvent,
    EventCatalog,
    MintExecutedEvent,
    MintRequestedEvent,
    ReportProcessedEvent,
    Undecodable,
    build_decoder,
    display_text,
    find_mint_requested,
)

ABIS = load_abis(Path(__file__).parents[2] / "abi")
CATALOG = EventCatalog(ABIS)
A, B, C, D = (bytes([letter]) * 20 for letter in b"abcd")
REFERENCE = b"MT103-0001".ljust(32, b"\0")

SIZES = st.integers(1, 32)
STATIC_TYPES = st.one_of(
    st.sampled_from(["address", "bool"]),
    SIZES.map(lambda size: f"uint{size * 8}"),
    SIZES.map(lambda size: f"int{size * 8}"),
    SIZES.map(lambda size: f"bytes{size}"),
)
TYPES = st.one_of(
    STATIC_TYPES,
    st.sampled_from(["string", "bytes", "uint8[2]", "address[]", "string[]", "(bool,bytes)", "(int8,bytes4)[3]"]),
)


PLAIN_VALUES: dict[str, st.SearchStrategy[Any]] = {
    "address": st.binary(min_size=20, max_size=20),
    "bool": st.booleans(),
    "string": st.text(st.characters(codec="utf-8"), max_size=70),
    "bytes": st.binary(max_size=70),
}


def value_of(kind: str) -> st.SearchStrategy[Any]:
    if kind in PLAIN_VALUES:
        return PLAIN_VALUES[kind]
    if kind.endswith("]"):
        element, _, size = kind[:-1].rpartition("[")
        return st.lists(value_of(element), min_size=int(size or 0), max_size=int(size or 3))
    if kind.startswith("("):
        return st.tuples(*[value_of(member) for member in kind[1:-1].split(",")])
    size_in_kind = int(kind.lstrip("abceinstuy"))
    if kind.startswith("bytes"):
        return st.binary(min_size=size_in_kind, max_size=size_in_kind)
    low, high = (0, 2**size_in_kind) if kind.startswith("u") else (-(2 ** (size_in_kind - 1)), 2 ** (size_in_kind - 1))
    return st.integers(low, high - 1)


def entry(name: str, kind: str, *, indexed: bool) -> dict[str, object]:
    if not kind.startswith("("):
        return {"name": name, "type": kind, "indexed": indexed}
    members, _, suffix = kind[1:].rpartition(")")
    components = [{"name": "", "type": member} for member in members.split(",")]
    return {"name": name, "type": f"tuple{suffix}", "components": components, "indexed": indexed}


def event(*fields: tuple[str, str, bool], name: str = "Something") -> dict[str, object]:
    inputs = [entry(field, kind, indexed=indexed) for field, kind, indexed in fields]
    return {"type": "event", "name": name, "anonymous": False, "inputs": inputs}


def topic0_of(abi: dict[str, Any]) -> bytes:
    decoder = build_decoder(abi)
    assert keccak(decoder.signature.encode()) == decoder.topic0
    return decoder.topic0


@st.composite
def encoded_events(draw: st.DrawFn) -> tuple[dict[str, object], list[bytes], bytes, dict[str, object]]:
    """An event's ABI, the topics and data of a log of it, and the values in it."""
    indexed_types = draw(st.lists(STATIC_TYPES, max_size=3))
    other_types = draw(st.lists(TYPES, max_size=7))
    fields = [(kind, True) for kind in indexed_types] + [(kind, False) for kind in other_types]
    fields = draw(st.permutations(fields))
    abi = event(*[(f"f{place}", kind, indexed) for place, (kind, indexed) in enumerate(fields)])
    values = [draw(value_of(kind)) for kind, _ in fields]
    topics = [topic0_of(abi)]
    topics += [
        eth_abi.encode([kind], [value]) for (kind, indexed), value in zip(fields, values, strict=True) if indexed
    ]
    unindexed = [(kind, value) for (kind, indexed), value in zip(fields, values, strict=True) if not indexed]
    data = eth_abi.encode([kind for kind, _ in unindexed], [value for _, value in unindexed])
    expected = {
        f"f{place}": value.encode() if isinstance(value, str) else value
        for place, ((kind, _), value) in enumerate(zip(fields, values, strict=True))
        if not kind.endswith(("]", ")"))
    }
    return abi, topics, data, expected


@settings(max_examples=2500, deadline=None)
@given(encoded_events())
def test_a_decoder_gives_back_what_eth_abi_encoded_for_any_layout(
    encoded: tuple[dict[str, object], list[bytes], bytes, dict[str, object]],
) -> None:
    abi, topics, data, expected = encoded
    assert build_decoder(abi).decode(topics, data) == expected


@settings(max_examples=1500, deadline=None)
@given(encoded_events(), st.data())
def test_whatever_a_decoder_takes_from_damaged_data_eth_abi_takes_too(
    encoded: tuple[dict[str, object], list[bytes], bytes, dict[str, object]], data_source: st.DataObject
) -> None:
    """Hard cases 43, 47: a flipped byte or a cut is either refused, or is another valid encoding."""
    abi, topics, data, _ = encoded
    if data:
        place = data_source.draw(st.integers(0, len(data) - 1))
        data = data[:place] + data_source.draw(st.binary(max_size=2)) + data[place + 1 :]
    decoder = build_decoder(abi)
    decoded = decoder.decode(topics, data)
    kinds = [kind for _, kind, indexed in decoder.layout if not indexed]
    if isinstance(decoded, Undecodable) or any(kind.endswith(("]", ")")) for kind in kinds):
        return
    theirs = eth_abi.decode([kind.replace("string", "bytes") for kind in kinds], data)
    names = [name for name, _, indexed in decoder.layout if not indexed]
    for name, kind, value in zip(names, kinds, theirs, strict=True):
        assert (bytes.fromhex(value[2:]) if kind == "address" else value) == decoded[name]


@settings(max_examples=1000, deadline=None)
@given(
    st.lists(st.one_of(st.binary(max_size=40), st.sampled_from([*CATALOG.mint_requested_topics0])), max_size=6),
    st.binary(max_size=400),
)
def test_decoding_is_total_on_random_bytes(topics: list[bytes], data: bytes) -> None:
    """Hard case 43."""
    outcomes = (
        CATALOG.decode_basket_created([CATALOG.basket_created_topic0, *topics], data),
        CATALOG.decode_mint_executed([CATALOG.mint_executed_topic0, *topics], data),
        CATALOG.decode_report_processed([CATALOG.report_processed_topic0, *topics], data),
        CATALOG.decode_mint_requested(topics, data, from_factory=True),
        CATALOG.decode_mint_requested(topics, data, from_factory=False),
    )
    assert all(outcome is not None for outcome in outcomes)


def word(value: int) -> bytes:
    return value.to_bytes(32, "big")


def padded(address: bytes) -> bytes:
    return address.rjust(32, b"\0")


def basket_log(name: bytes, symbol: bytes) -> tuple[list[bytes], bytes]:
    topics = [CATALOG.basket_created_topic0, padded(A), padded(B), padded(C)]
    return topics, eth_abi.encode(["address", "bytes", "bytes"], [D, name, symbol])


def test_a_basket_keeps_its_names_as_raw_bytes_even_if_they_are_not_text() -> None:
    """Hard case 43: invalid UTF-8 and NUL."""
    decoded = CATALOG.decode_basket_created(*basket_log(b"\xff\xfe\0", b"B\0"))
    assert decoded == BasketCreatedEvent(
        creator=A, admin=B, stablecoin=C, consumer=D, name=b"\xff\xfe\0", symbol=b"B\0"
    )


def test_a_basket_with_a_name_of_two_megabytes_is_undecodable() -> None:
    """Hard case 48."""
    outcome = CATALOG.decode_basket_created(*basket_log(b"x" * 2_000_000, b"B"))
    assert outcome == Undecodable(reason=f"not 96 to {MAX_DATA_BYTES} bytes of data")


@pytest.mark.parametrize("offset", [0, 31, 95, 97, 2**255, 2**256 - 1, 2**256 - 32, 10_000])
def test_a_basket_with_an_offset_that_points_elsewhere_is_undecodable(offset: int) -> None:
    """Hard case 43: offset bomb."""
    topics, data = basket_log(b"Basket", b"B")
    outcome = CATALOG.decode_basket_created(topics, data[:32] + word(offset) + data[64:])
    assert isinstance(outcome, Undecodable)


@pytest.mark.parametrize("length", [33, 10_000, 2**64, 2**256 - 1])
def test_a_basket_with_a_length_beyond_its_data_is_undecodable(length: int) -> None:
    """Hard case 43: length bomb."""
    topics, data = basket_log(b"Basket", b"B")
    symbol_at = int.from_bytes(data[64:96], "big")
    outcome = CATALOG.decode_basket_created(topics, data[:symbol_at] + word(length) + data[symbol_at + 32 :])
    assert isinstance(outcome, Undecodable)


def test_every_truncation_of_a_basket_is_undecodable() -> None:
    """Hard case 43."""
    topics, data = basket_log(b"Basket of everything", b"BSKT")
    for size in range(len(data)):
        assert isinstance(CATALOG.decode_basket_created(topics, data[:size]), Undecodable), size


REQUESTED = MintRequestedEvent(stablecoin=None, requester=A, beneficiary=B, amount=2**256 - 1, bank_reference=REFERENCE)


def token_form() -> bytes:
    return build_decoder(next(e for e in ABIS["StablecoinERC20.json"] if e["name"] == "MintRequested")).topic0


def factory_form() -> bytes:
    return build_decoder(next(e for e in ABIS["BasketFactory.json"] if e["name"] == "MintRequested")).topic0


def test_a_mint_request_of_a_token_keeps_every_bit_of_its_amount() -> None:
    """Hard case 44."""
    topics = [token_form(), padded(A), padded(B), REFERENCE]
    decoded = CATALOG.decode_mint_requested(topics, word(2**256 - 1), from_factory=False)
    assert decoded == REQUESTED
    assert type(decoded.amount) is int


def test_a_mint_request_of_the_factory_names_its_stablecoin() -> None:
    topics = [factory_form(), padded(C), padded(A), padded(B)]
    decoded = CATALOG.decode_mint_requested(topics, word(5) + REFERENCE, from_factory=True)
    assert decoded == MintRequestedEvent(stablecoin=C, requester=A, beneficiary=B, amount=5, bank_reference=REFERENCE)


def test_a_token_cannot_speak_for_another_basket_in_the_factorys_form() -> None:
    """Hard case 37."""
    topics = [factory_form(), padded(C), padded(A), padded(B)]
    outcome = CATALOG.decode_mint_requested(topics, word(5) + REFERENCE, from_factory=False)
    assert outcome == Undecodable(reason="not the form of MintRequested that a token emits")


@pytest.mark.parametrize(
    ("topics", "data"),
    [
        ([padded(A), padded(B)], word(1) + REFERENCE),  # the same topic0 with another field indexed
        ([padded(A), padded(B), REFERENCE, word(0)], word(1)),
        ([padded(A), padded(B), REFERENCE], b""),
        ([padded(A), padded(B), REFERENCE], word(1) + b"\0"),
        ([padded(A), padded(B), REFERENCE], word(1)[1:]),
        ([b"\1" + padded(A)[1:], padded(B), REFERENCE], word(1)),  # dirty padding
        ([padded(A), B, REFERENCE], word(1)),  # an unpadded topic
        ([padded(A), padded(B), REFERENCE + b"\0"], word(1)),
    ],
)
def test_another_layout_under_the_same_topic_is_undecodable(topics: list[bytes], data: bytes) -> None:
    """Hard cases 46, 47."""
    outcome = CATALOG.decode_mint_requested([token_form(), *topics], data, from_factory=False)
    assert isinstance(outcome, Undecodable)


def test_executions_and_reports_are_decoded_by_the_shipped_abi() -> None:
    executed = CATALOG.decode_mint_executed([CATALOG.mint_executed_topic0, padded(B), REFERENCE], word(7))
    assert executed == MintExecutedEvent(recipient=B, amount=7, bank_reference=REFERENCE)
    topics = [CATALOG.report_processed_topic0, padded(D), b"e" * 32, b"\0\1".ljust(32, b"\0")]
    report = CATALOG.decode_report_processed(topics, word(1))
    assert report == ReportProcessedEvent(receiver=D, execution_id=b"e" * 32, report_id=b"\0\1", result=True)
    assert CATALOG.decode_report_processed(topics, word(2)) == Undecodable(reason="result is no bool")


def test_the_shipped_abi_has_the_topics_that_the_protocol_page_lists() -> None:
    assert CATALOG.basket_created_topic0.hex().startswith("5fcf38708b94ecdb53e489a693b3450a")
    assert CATALOG.mint_executed_topic0.hex().startswith("836ff5fb67ec4713e238ab7ba20ad732")
    assert CATALOG.report_processed_topic0.hex().startswith("3617b009e9785c42daebadb6d3fb5532")
    assert set(CATALOG.mint_requested_topics0) == {token_form(), factory_form()}


def role_topic0(name: str) -> bytes:
    return next(topic0 for topic0, event in CATALOG.role_event_by_topic0.items() if event == name)


def test_a_role_event_is_told_by_its_name_and_fields() -> None:
    revoked = CATALOG.describe_role_event([role_topic0("MintRoleRevoked"), padded(A)], b"")
    assert revoked == f"MintRoleRevoked(minter=0x{A.hex()})"
    moved = CATALOG.describe_role_event([role_topic0("OwnershipTransferred"), padded(A), padded(B)], b"")
    assert moved == f"OwnershipTransferred(from=0x{A.hex()}, to=0x{B.hex()})"


@pytest.mark.parametrize(
    ("topics", "data"),
    [([], b""), ([padded(A), padded(A)], b""), ([padded(A)], b"\0"), ([b"\1" * 32], b""), ([A], b"")],
)
def test_a_role_event_of_another_layout_is_undecodable(topics: list[bytes], data: bytes) -> None:
    outcome = CATALOG.describe_role_event([role_topic0("MintRoleGranted"), *topics], data)
    assert isinstance(outcome, Undecodable)


@given(st.lists(st.binary(max_size=40), max_size=4), st.binary(max_size=80))
def test_a_role_event_is_told_or_undecodable_whatever_its_bytes(topics: list[bytes], data: bytes) -> None:
    for known in ([], [role_topic0("BurnRoleRevoked")]):
        assert isinstance(CATALOG.describe_role_event([*known, *topics], data), str | Undecodable)


def test_an_abi_need_not_have_role_events() -> None:
    requested = [entry for entry in ABIS["StablecoinERC20.json"] if entry.get("name") not in ROLE_EVENTS]
    assert EventCatalog({**ABIS, "StablecoinERC20.json": requested}).role_event_by_topic0 == {}
    assert set(CATALOG.role_event_by_topic0.values()) == set(ROLE_EVENTS)


def test_each_overload_of_a_role_event_is_known_and_hostile_text_in_it_is_cleaned() -> None:
    more = [
        event(("who", "address", False), name="MintRoleGranted"),  # the shipped one has it indexed
        event(("who", "address", True), ("why", "string", False), name="MintRoleGranted"),
    ]
    catalog = EventCatalog({**ABIS, "Other.json": more})
    granted = role_topic0("MintRoleGranted")
    assert catalog.describe_role_event([granted, padded(A)], b"") == f"MintRoleGranted(minter=0x{A.hex()})"
    assert catalog.describe_role_event([granted], padded(A)) == f"MintRoleGranted(who=0x{A.hex()})"
    data = eth_abi.encode(["string"], ["\u202e" + "x" * 100])
    told = catalog.describe_role_event([topic0_of(more[1]), padded(A)], data)
    assert isinstance(told, str)
    assert told.startswith(f"MintRoleGranted(who=0x{A.hex()}, why=\ufffdxxx")
    assert len(told) < 140


FIELDS = {"requester": "address", "beneficiary": "address", "amount": "uint256", "bankReference": "bytes32"}


@given(st.permutations(sorted(FIELDS)), st.sets(st.sampled_from(sorted(FIELDS)), max_size=3))
def test_a_mint_request_is_found_by_its_field_names_in_any_order_and_indexing(
    order: list[str], indexed: set[str]
) -> None:
    abi = event(*[(name, FIELDS[name], name in indexed) for name in order], name="MintRequested")
    catalog = EventCatalog({**ABIS, "StablecoinERC20.json": [abi]})
    words = {"requester": padded(A), "beneficiary": padded(B), "amount": word(2**256 - 1), "bankReference": REFERENCE}
    topics = [topic0_of(abi), *[words[name] for name in order if name in indexed]]
    data = b"".join(words[name] for name in order if name not in indexed)
    assert catalog.decode_mint_requested(topics, data, from_factory=False) == REQUESTED


def test_both_forms_may_share_their_topic_and_are_told_apart_by_the_emitter() -> None:
    kinds = ("address", "address", "address", "uint256", "bytes32")
    factory_names = ("stablecoin", "requester", "beneficiary", "amount", "bankReference")
    token_names = ("requester", "beneficiary", "operator", "amount", "bankReference")
    both = [
        event(*[(n, k, False) for n, k in zip(names, kinds, strict=True)], name="MintRequested")
        for names in (factory_names, token_names)
    ]
    catalog = EventCatalog(
        {**ABIS, "BasketFactory.json": [both[0], ABIS["BasketFactory.json"][0]], "StablecoinERC20.json": [both[1]]}
    )
    assert len(catalog.mint_requested_topics0) == 1
    topics, data = [*catalog.mint_requested_topics0], padded(A) + padded(B) + padded(C) + word(1) + REFERENCE
    by_factory = catalog.decode_mint_requested(topics, data, from_factory=True)
    by_token = catalog.decode_mint_requested(topics, data, from_factory=False)
    assert isinstance(by_factory, MintRequestedEvent)
    assert isinstance(by_token, MintRequestedEvent)
    assert (by_factory.stablecoin, by_factory.requester, by_factory.beneficiary) == (A, B, C)
    assert (by_token.stablecoin, by_token.requester, by_token.beneficiary) == (None, A, B)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda abi: abi["inputs"].pop(0), "no field requester"),
        (lambda abi: abi["inputs"][2].update(type="uint128"), "amount as uint128, not uint256"),
        (lambda abi: abi["inputs"][3].update(type="string"), "bankReference indexed: only its hash"),
        (lambda abi: abi["inputs"][3].update(type="fixed128x18"), "not a type that we know"),
        (lambda abi: abi["inputs"][3].update(name="amount"), "two fields of one name"),
        (lambda abi: abi["inputs"][2].update(indexed=True), "more than 3 indexed"),
        (lambda abi: abi["inputs"][2].update(indexed="yes"), "malformed name or indexed"),
        (lambda abi: abi.update(anonymous=True), "anonymous"),
        (lambda abi: abi.update(inputs=None), "no list of fields"),
        (lambda abi: abi.update(name="Other"), "no ABI file has the event MintRequested"),
    ],
)
def test_an_abi_that_cannot_serve_is_refused_at_the_start(change: Any, complaint: str) -> None:
    abi = json.loads(json.dumps(event(*[(n, k, n != "amount") for n, k in FIELDS.items()], name="MintRequested")))
    change(abi)
    with pytest.raises(AbiUnsuitable, match=complaint):
        find_mint_requested({"token.json": [abi]})


def test_two_files_that_differ_only_in_what_is_indexed_are_refused() -> None:
    plain = event(*[(name, kind, False) for name, kind in FIELDS.items()], name="MintRequested")
    other = event(*[(name, kind, name == "amount") for name, kind in FIELDS.items()], name="MintRequested")
    assert len(find_mint_requested({"a.json": [plain], "b.json": [plain]})) == 1
    with pytest.raises(AbiUnsuitable, match="other fields indexed"):
        find_mint_requested({"a.json": [plain], "b.json": [other]})


def test_a_directory_without_usable_abi_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AbiUnsuitable, match="no ABI files"):
        load_abis(tmp_path)
    (tmp_path / "a.json").write_text('{"abi": [{"type": "event"}]}')
    assert load_abis(tmp_path) == {"a.json": [{"type": "event"}]}
    for broken in ("{", "3", "[3]"):
        (tmp_path / "a.json").write_text(broken)
        with pytest.raises(AbiUnsuitable, match=r"a\.json"):
            load_abis(tmp_path)


@given(st.one_of(st.binary(max_size=600), st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace"))))
def test_a_display_text_is_short_and_has_nothing_that_hides_or_moves_text(raw: bytes) -> None:
    """Hard cases 43, 50."""
    text = display_text(raw)
    assert len(text) <= 64
    assert not [character for character in text if unicodedata.category(character) in {"Cc", "Cf", "Cs", "Zl", "Zp"}]
    assert text.encode("utf-8").decode() == text


def test_a_display_text_shows_the_honest_and_marks_the_tricky() -> None:
    """Hard case 50."""
    assert display_text("Früh €".encode()) == "Früh €"
    assert display_text("a\u202eb\u200bc\x1b[2J\nd\0".encode()) == "a\ufffdb\ufffdc\ufffd[2J\ufffdd\ufffd"
    assert display_text(b"\xed\xa0\x80") == "\ufffd" * 3
    assert display_text(b"x" * 2_000_000) == "x" * 63 + "…"
    assert display_text("é".encode() * 64) == "é" * 64
