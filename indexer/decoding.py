"""What a log says, by its contract's ABI (``bskt.md`` §1, hard cases 43 to 52).  Pure.

A decoder is generated once for each event and checks as strictly as eth_abi does, at some fifty times its speed.
Decoding is total: whatever the bytes are, the outcome is values or ``Undecodable``, never an exception, because an
exception would stop the block, and the indexer with it.  Text is never decoded here: names stay raw bytes.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeAlias, cast

from eth_hash.auto import keccak

Value: TypeAlias = bytes | int | bool
Abis: TypeAlias = Mapping[str, Sequence[Mapping[str, object]]]  # what each ABI file holds, by the file's name

# Above this an event with text is not decoded: 2 MB names cost us no more than their raw row (hard case 48).
MAX_DATA_BYTES: Final = 65_536
DISPLAY_CHARACTERS: Final = 64
_WORD: Final = 32
_MAX_INDEXED: Final = 3
_DYNAMIC: Final = frozenset({"string", "bytes"})
_STATIC: Final = re.compile(
    r"address|bool|bytes([1-9]|[12]\d|3[0-2])|u?int(8|16|24|32|40|48|56|64|72|80|88|96|104|112|"
    r"120|128|136|144|152|160|168|176|184|192|200|208|216|224|232|240|248|256)"
)
_ARRAY: Final = re.compile(r"(.+)\[([1-9]\d{0,3})?\]")
# Letters and marks that show nothing, beside the categories of controls, formats (bidi, zero width) and surrogates.
_INVISIBLE: Final = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0") | {
    chr(c) for c in range(0xFE00, 0xFE10)
}


class AbiUnsuitable(Exception):
    """The configured ABI does not describe what we need: do not start, correct the file.  The message says what."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Undecodable:
    """The log is not what its event's ABI says; ``reason`` comes from a closed set for each event."""

    reason: str


_Values: TypeAlias = Callable[[Sequence[bytes], bytes], "tuple[Value, ...] | Undecodable"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EventDecoder:
    """One event of an ABI.  ``fields`` names what ``values`` gives, in that order; ``types`` are the ABI's own.

    Of an indexed ``string`` or ``bytes`` only the hash is in the log: its name is in ``hashed`` and not in ``fields``.
    Arrays and tuples are stepped over; nothing that we need is one.
    """

    name: str
    signature: str
    topic0: bytes
    fields: tuple[str, ...]
    types: Mapping[str, str]
    hashed: frozenset[str]
    layout: tuple[tuple[str, str, bool], ...]
    values: _Values = field(compare=False)

    def decode(self, topics: Sequence[bytes], data: bytes) -> dict[str, Value] | Undecodable:
        """Give the values by field name: addresses and ``bytesN`` as bytes, text as raw bytes."""
        values = self.values(topics, data)
        return values if isinstance(values, Undecodable) else dict(zip(self.fields, values, strict=True))


def build_decoder(event_abi: Mapping[str, object], fields: Sequence[str] | None = None) -> EventDecoder:
    """Generate the decoder of one event.

    Args:
        event_abi: An entry of a contract's ABI with ``"type": "event"``.
        fields: Which fields ``values`` gives, in which order; without it, all that can be decoded, in the ABI's order.

    Raises:
        AbiUnsuitable: It is no event, is anonymous, has a type we do not know, or lacks one of ``fields``.
    """
    name = event_abi.get("name")
    if event_abi.get("type") != "event" or not isinstance(name, str) or not name.isidentifier():
        raise AbiUnsuitable(f"{name!r} is not an event with a name")
    if event_abi.get("anonymous", False) is not False:
        raise AbiUnsuitable(f"{name} is anonymous: its logs cannot be recognised")
    layout = tuple(_field(name, entry) for entry in _entries(name, event_abi.get("inputs")))
    signature = f"{name}({','.join(kind for _, kind, _ in layout)})"
    if sum(indexed for _, _, indexed in layout) > _MAX_INDEXED:
        raise AbiUnsuitable(f"{signature} has more than {_MAX_INDEXED} indexed fields")
    names = [field_name for field_name, _, _ in layout if field_name]
    if len(set(names)) != len(names):
        raise AbiUnsuitable(f"{signature} has two fields of one name")
    hashed = frozenset(field_name for field_name, kind, indexed in layout if indexed and kind in _DYNAMIC)
    decodable = tuple(
        field_name
        for field_name, kind, indexed in layout
        if field_name and (_STATIC.fullmatch(kind) or (kind in _DYNAMIC and not indexed))
    )
    wanted = decodable if fields is None else tuple(fields)
    for field_name in wanted:
        if field_name in hashed:
            raise AbiUnsuitable(f"{signature} has {field_name} indexed: only its hash would be in the log")
        if field_name not in decodable:
            raise AbiUnsuitable(f"{signature} has no field {field_name} that can be decoded")
    topic0 = keccak(signature.encode())
    return EventDecoder(
        name=name,
        signature=signature,
        topic0=topic0,
        fields=wanted,
        types={field_name: kind for field_name, kind, _ in layout},
        hashed=hashed,
        layout=layout,
        values=_generate(topic0, layout, wanted),
    )


def _entries(owner: str, inputs: object) -> Sequence[Mapping[str, object]]:
    if not isinstance(inputs, list) or not all(isinstance(entry, dict) for entry in inputs):
        raise AbiUnsuitable(f"{owner} has no list of fields")
    return cast("Sequence[Mapping[str, object]]", inputs)


def _field(event: str, entry: Mapping[str, object]) -> tuple[str, str, bool]:
    name, indexed = entry.get("name", ""), entry.get("indexed", False)
    if not isinstance(name, str) or not isinstance(indexed, bool):
        raise AbiUnsuitable(f"{event} has a field with a malformed name or indexed")
    kind = _canonical_type(event, entry)
    _head_words(kind)
    return name, kind, indexed


def _canonical_type(event: str, entry: Mapping[str, object]) -> str:
    """Give a type as signatures spell it: a tuple as its members in parentheses."""
    kind = entry.get("type")
    if not isinstance(kind, str):
        raise AbiUnsuitable(f"{event} has a field without a type")
    if kind == "tuple" or kind.startswith("tuple["):
        members = ",".join(_canonical_type(event, member) for member in _entries(event, entry.get("components")))
        return f"({members}){kind.removeprefix('tuple')}"
    return kind


def _head_words(kind: str) -> int | None:
    """Give how many words of the data's head a type takes, or ``None`` for a dynamic one (which takes an offset)."""
    if _STATIC.fullmatch(kind):
        return 1
    if kind in _DYNAMIC:
        return None
    if array := _ARRAY.fullmatch(kind):
        words = _head_words(array[1])
        return None if words is None or array[2] is None else words * int(array[2])
    if kind.startswith("(") and kind.endswith(")") and kind != "()":
        words_of_members = [_head_words(member) for member in _members(kind[1:-1])]
        return None if None in words_of_members else sum(words for words in words_of_members if words)
    raise AbiUnsuitable(f"{kind!r} is not a type that we know")


def _members(text: str) -> Iterable[str]:
    depth, start = 0, 0
    for place, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if character == "," and depth == 0:
            yield text[start:place]
            start = place + 1
    if text:
        yield text[start:]


def _generate(topic0: bytes, layout: Sequence[tuple[str, str, bool]], wanted: Sequence[str]) -> _Values:
    """Compile the function behind ``EventDecoder.values``: straight lines without a loop or a lookup by type.

    Only places, sizes and constants of ours become code; names from the file are values that the code refers to.
    """
    head_bytes = sum(_WORD * (_head_words(kind) or 1) for _, kind, indexed in layout if not indexed)
    dynamic = any(_head_words(kind) is None for _, kind, indexed in layout if not indexed)
    topic_count = 1 + sum(indexed for _, _, indexed in layout)
    scope: dict[str, object] = {
        **{f"zeros{size}": bytes(size) for size in range(_WORD)},
        "topic0": topic0,
        "number": int.from_bytes,
        "tail": _tail,
        "other_event": Undecodable(reason="topic0 is another event's"),
        "topic_size": Undecodable(reason="a topic has not 32 bytes"),
        "topics_wrong": Undecodable(reason=f"not {topic_count} topics"),
        "size_wrong": Undecodable(
            reason=f"not {head_bytes} to {MAX_DATA_BYTES} bytes of data"
            if dynamic
            else f"not {head_bytes} bytes of data"
        ),
    }
    lines = [
        "def values(topics, data):",
        f"    if len(topics) != {topic_count}: return topics_wrong",
        "    if topics[0] != topic0: return other_event",
        f"    if not {head_bytes} <= len(data) <= {MAX_DATA_BYTES if dynamic else head_bytes}: return size_wrong",
    ]
    topic, head = 1, 0
    variables: dict[str, str] = {}
    for place, (name, kind, indexed) in enumerate(layout):
        if indexed:
            lines += [f"    word = topics[{topic}]", "    if len(word) != 32: return topic_size"]
            topic += 1
        start = head
        head += 0 if indexed else _WORD * (_head_words(kind) or 1)
        if kind not in _DYNAMIC and not _STATIC.fullmatch(kind):
            continue
        scope[f"bad{place}"] = Undecodable(reason=f"{name or 'a field'} is no {kind}")
        if not indexed:
            lines.append(f"    word = data[{start}:{start + _WORD}]")
            if kind in _DYNAMIC:
                lines.append(f"    v{place} = tail(data, number(word, 'big'), {head_bytes})")
                lines.append(f"    if v{place} is None: return bad{place}")
        if kind not in _DYNAMIC:
            lines += [f"    {line}" for line in _static_lines(kind, f"v{place}", f"bad{place}")]
        variables[name] = f"v{place}"
    lines.append(f"    return ({''.join(f'{variables[name]}, ' for name in wanted)})")
    exec("\n".join(lines), scope)  # noqa: S102 - the text is made above of numbers and our own words only
    return cast("_Values", scope["values"])


def _static_lines(kind: str, variable: str, bad: str) -> list[str]:
    """Give the code that turns ``word`` into the value, or returns ``bad`` for a dirty padding (hard case 47)."""
    if kind == "address":
        return [f"if word[:12] != zeros12: return {bad}", f"{variable} = word[12:]"]
    if kind == "bool":
        return ["n = number(word, 'big')", f"if n > 1: return {bad}", f"{variable} = n == 1"]
    if kind.startswith("bytes"):
        size = int(kind.removeprefix("bytes"))
        if size == _WORD:
            return [f"{variable} = word"]
        return [f"if word[{size}:] != zeros{_WORD - size}: return {bad}", f"{variable} = word[:{size}]"]
    bits = int(kind.lstrip("uint"))
    if kind.startswith("u"):
        check = [] if bits == _WORD * 8 else [f"if {variable} >> {bits}: return {bad}"]
        return [f"{variable} = number(word, 'big')", *check]
    limit = 1 << (bits - 1)
    return [f"{variable} = number(word, 'big', signed=True)", f"if not {-limit} <= {variable} < {limit}: return {bad}"]


def _tail(data: bytes, offset: int, head_bytes: int) -> bytes | None:
    """Give the bytes at ``offset``, or ``None`` if offset, length or padding are not those of an honest encoder."""
    start = offset + _WORD
    if offset < head_bytes or start > len(data):
        return None
    size = int.from_bytes(data[offset:start], "big")
    padding = -size % _WORD
    if start + size + padding > len(data) or any(data[start + size : start + size + padding]):
        return None
    return data[start : start + size]


class BasketCreatedEvent(NamedTuple):
    """A new basket; ``name`` and ``symbol`` are raw: they need not be UTF-8, nor short, nor honest."""

    creator: bytes
    admin: bytes
    stablecoin: bytes
    consumer: bytes
    name: bytes
    symbol: bytes


class MintRequestedEvent(NamedTuple):
    """A wish for a mint of ``amount`` wei; ``stablecoin`` is ``None`` in the token form: there the emitter is it."""

    requester: bytes
    beneficiary: bytes
    amount: int
    bank_reference: bytes
    stablecoin: bytes | None


class MintExecutedEvent(NamedTuple):
    """A mint of ``amount`` wei; by itself it proves nothing (``bskt.md`` §1, "Who to believe")."""

    recipient: bytes
    amount: int
    bank_reference: bytes


class ReportProcessedEvent(NamedTuple):
    """A delivery by the forwarder; ``report_id`` has 2 bytes, ``result`` is false where the consumer reverted."""

    receiver: bytes
    execution_id: bytes
    report_id: bytes
    result: bool


_BASKET_CREATED: Final = {
    "creator": "address",
    "admin": "address",
    "stablecoin": "address",
    "mintingConsumer": "address",
    "name": "string",
    "symbol": "string",
}
_MINT_REQUESTED: Final = {
    "requester": "address",
    "beneficiary": "address",
    "amount": "uint256",
    "bankReference": "bytes32",
}
_MINT_EXECUTED: Final = {"recipient": "address", "amount": "uint256", "bankReference": "bytes32"}
_REPORT_PROCESSED: Final = {
    "receiver": "address",
    "workflowExecutionId": "bytes32",
    "reportId": "bytes2",
    "result": "bool",
}
_STABLECOIN: Final = {"stablecoin": "address"}
ROLE_EVENTS: Final = (
    "MintRoleGranted",
    "MintRoleRevoked",
    "BurnRoleGranted",
    "BurnRoleRevoked",
    "OwnershipTransferred",
)
"""What a token says when somebody else may mint, burn or rule it from then on."""


class EventCatalog:
    """The events that the daemon lives by, as the configured ABI files describe them.

    Topics are for filters; they say nothing about who may emit an event: that is the caller's to check.
    """

    def __init__(self, abis: Abis) -> None:
        """Find the events by name in all files.

        Raises:
            AbiUnsuitable: One is missing, ambiguous, or not usable for what we need.
        """
        self._basket_created = _find_one(abis, "BasketCreated", _BASKET_CREATED)
        self._mint_executed = _find_one(abis, "MintExecuted", _MINT_EXECUTED)
        self._report_processed = _find_one(abis, "ReportProcessed", _REPORT_PROCESSED)
        forms = find_mint_requested(abis)
        self._factory_forms = {form.topic0: form for form in forms if "stablecoin" in form.fields}
        self._token_forms = {form.topic0: form for form in forms if "stablecoin" not in form.fields}
        self.basket_created_topic0 = self._basket_created.topic0
        self.mint_executed_topic0 = self._mint_executed.topic0
        self.report_processed_topic0 = self._report_processed.topic0
        self.mint_requested_topics0 = tuple(dict.fromkeys(form.topic0 for form in forms))
        self.requests_of_factory = tuple(self._factory_forms)
        self.requests_of_token = tuple(self._token_forms)
        self._role_forms = _find_role_events(abis)
        self.role_event_by_topic0 = {topic0: forms[0].name for topic0, forms in self._role_forms.items()}

    def report_topics(self, receivers: Iterable[bytes]) -> tuple[tuple[bytes, ...] | None, ...]:
        """The topics of a ``ReportProcessed`` for any of these contracts, as far as the ABI has the receiver as one."""
        indexed = [name for name, _, is_indexed in self._report_processed.layout if is_indexed]
        named: tuple[tuple[bytes, ...] | None, ...] = ()
        if "receiver" in indexed:
            named = (
                *(None for _ in range(indexed.index("receiver"))),
                tuple(each.rjust(_WORD, b"\0") for each in receivers),
            )
        return ((self.report_processed_topic0,), *named)

    def decode_basket_created(self, topics: Sequence[bytes], data: bytes) -> BasketCreatedEvent | Undecodable:
        """Read a ``BasketCreated`` of the factory."""
        values = self._basket_created.values(topics, data)
        if isinstance(values, Undecodable):
            return values
        return BasketCreatedEvent(*cast("tuple[bytes, bytes, bytes, bytes, bytes, bytes]", values))

    def decode_mint_requested(
        self, topics: Sequence[bytes], data: bytes, *, from_factory: bool
    ) -> MintRequestedEvent | Undecodable:
        """Read a ``MintRequested`` in the form that its emitter may use, for both forms may share their topic0.

        A token that emits the factory's form is refused: it would speak for another basket.
        """
        forms = self._factory_forms if from_factory else self._token_forms
        form = forms.get(topics[0]) if topics else None
        if form is None:
            return Undecodable(
                reason=f"not the form of MintRequested that a {'factory' if from_factory else 'token'} emits"
            )
        values = form.values(topics, data)
        if isinstance(values, Undecodable):
            return values
        stablecoin = () if from_factory else (None,)
        return MintRequestedEvent(*cast("tuple[bytes, bytes, int, bytes, bytes | None]", values + stablecoin))

    def decode_mint_executed(self, topics: Sequence[bytes], data: bytes) -> MintExecutedEvent | Undecodable:
        """Read a ``MintExecuted`` of a consumer."""
        values = self._mint_executed.values(topics, data)
        if isinstance(values, Undecodable):
            return values
        return MintExecutedEvent(*cast("tuple[bytes, int, bytes]", values))

    def decode_report_processed(self, topics: Sequence[bytes], data: bytes) -> ReportProcessedEvent | Undecodable:
        """Read a ``ReportProcessed`` of the forwarder."""
        values = self._report_processed.values(topics, data)
        if isinstance(values, Undecodable):
            return values
        return ReportProcessedEvent(*cast("tuple[bytes, bytes, bytes, bool]", values))

    def describe_role_event(self, topics: Sequence[bytes], data: bytes) -> str | Undecodable:
        """Say what a log of ``role_event_by_topic0`` changes, as in ``MintRoleRevoked(minter=0x…)``."""
        verdict = Undecodable(reason="not a role event that the ABI has")
        for form in self._role_forms.get(topics[0], ()) if topics else ():
            values = form.decode(topics, data)
            if not isinstance(values, Undecodable):
                fields = ", ".join(f"{name}={_shown(value, form.types[name])}" for name, value in values.items())
                return f"{form.name}({fields})"
            verdict = values
        return verdict


def find_mint_requested(abis: Abis) -> list[EventDecoder]:
    """Give the decoders of all forms of ``MintRequested``, by field name, in any order and with any choice of indexed.

    Those that also give ``stablecoin`` (as their last value) are the factory's forms, the others the token's.

    Raises:
        AbiUnsuitable: There is none, one lacks a field, or two of one side differ only in what is indexed.
    """
    forms: dict[tuple[bool, bytes], EventDecoder] = {}
    for file, entry in _events(abis, "MintRequested"):
        of_factory = any(found.get("name") == "stablecoin" for found in _entries("MintRequested", entry.get("inputs")))
        types = _MINT_REQUESTED | _STABLECOIN if of_factory else _MINT_REQUESTED
        form = _build_checked(file, entry, types)
        if forms.setdefault((of_factory, form.topic0), form).layout != form.layout:
            raise AbiUnsuitable(f"{file}: another file has {form.signature} with other fields indexed")
    if not forms:
        raise AbiUnsuitable("no ABI file has the event MintRequested")
    return list(forms.values())


def _find_one(abis: Abis, name: str, types: Mapping[str, str]) -> EventDecoder:
    found = [_build_checked(file, entry, types) for file, entry in _events(abis, name)]
    if not found:
        raise AbiUnsuitable(f"no ABI file has the event {name}")
    if any(other.layout != found[0].layout for other in found):
        raise AbiUnsuitable(f"the ABI files have several different events {name}")
    return found[0]


def _find_role_events(abis: Abis) -> dict[bytes, list[EventDecoder]]:
    """By topic0, the events of a token's roles; none need be there, and contracts may differ in what they index."""
    found: dict[bytes, list[EventDecoder]] = {}
    for name in ROLE_EVENTS:
        for file, entry in _events(abis, name):
            form = _build_checked(file, entry, None)
            forms = found.setdefault(form.topic0, [])
            if all(other.layout != form.layout for other in forms):
                forms.append(form)
    return found


def _events(abis: Abis, name: str) -> Iterable[tuple[str, Mapping[str, object]]]:
    for file, entries in abis.items():
        for entry in entries:
            if entry.get("type") == "event" and entry.get("name") == name:
                yield file, entry


def _build_checked(file: str, entry: Mapping[str, object], types: Mapping[str, str] | None) -> EventDecoder:
    try:
        decoder = build_decoder(entry, None if types is None else tuple(types))
    except AbiUnsuitable as error:
        raise AbiUnsuitable(f"{file}: {error}") from error
    for name, kind in (types or {}).items():
        if decoder.types[name] != kind:
            raise AbiUnsuitable(f"{file}: {decoder.signature} has {name} as {decoder.types[name]}, not {kind}")
    return decoder


def display_text(raw: bytes, limit: int = DISPLAY_CHARACTERS) -> str:
    """Make hostile bytes fit for people: at most ``limit`` characters, cut with an ellipsis, none of them tricky.

    Invalid UTF-8, NUL, controls, line ends, bidirectional marks, zero-width and other invisible characters each become
    U+FFFD (hard cases 43, 50).  Look-alike letters stay: nothing is ever chosen by name.
    """
    # A character has at most four bytes, so this prefix holds one character more than is shown, however long the name.
    text = raw[: 4 * (limit + 1)].decode("utf-8", errors="replace")
    if len(text) > limit:
        text = text[: limit - 1] + "…"
    return "".join("\ufffd" if _is_tricky(character) else character for character in text)


def _shown(value: Value, kind: str) -> str:
    if not isinstance(value, bytes):
        return str(value)
    return display_text(value if kind == "string" else f"0x{value.hex()}".encode(), limit=2 + 2 * _WORD)


def _is_tricky(character: str) -> bool:
    category = unicodedata.category(character)
    return category[0] == "C" or category in {"Zl", "Zp"} or character in _INVISIBLE
