"""The questions that the daemon asks a chain."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial, wraps
from typing import Concatenate, Final, Literal, ParamSpec, TypeAlias, TypeVar

from eth_hash.auto import keccak

from node.blocks import (
    ByAddress,
    Header,
    Log,
    LogFilter,
    Malformed,
    Receipt,
    in_block_order,
    merge_logs,
    parse_header,
    parse_logs,
    parse_octets,
    parse_optional,
    parse_quantity,
    parse_receipt,
    parse_receipts,
    parse_transaction_hashes,
    require_block,
    require_header,
    require_range,
    to_hex,
)
from node.bloom import Guess, bloom_admits, bloom_admits_log, bloom_of
from node.capabilities import Feature
from node.completeness import all_logs
from node.endpoint import GET_LOGS, RpcEndpoint
from node.errors import (
    AnswerLate,
    AnswerTooMuch,
    BlockUnknown,
    CallReverted,
    EndpointOnOtherFork,
    HistoryPruned,
    NodeAnswerInvalid,
    NodeError,
    NodeRefused,
    RangeLate,
    RangeRefused,
)
from node.identity import ChainIdentity, require_identity
from node.inconsistency import Inconsistency
from node.pool import EndpointPool, EndpointReport, Member
from node.refusals import CANNOT, Refusal

P = ParamSpec("P")
T = TypeVar("T")

Tag: TypeAlias = Literal["earliest", "finalized", "safe", "latest"]
Block: TypeAlias = Tag | int | bytes
"""A block by tag, number or hash."""

DEFAULT_MAX_FILTER_ADDRESSES: Final = 500
DEFAULT_MAX_LOGS: Final = 50_000
PROBED_BATCH: Final = 16
"""Questions in the batch that an endpoint shows itself with: more than the strictest take, less than a rate limit."""

_FEW_LOGS: Final = 1_000
"""No provider calls so many logs of one block too many."""

_NOTHING: Final = LogFilter(topics=((b"\xff" * 32,),))
_NOTHING_BY_ADDRESS: Final = ByAddress(filters=(replace(_NOTHING, addresses=(b"\xff" * 20,)),))

_SUSPICIOUS_COUNTS: Final = frozenset({100, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000})
"""An answer with exactly so many logs may have been cut by a provider that does not say so (hard case 22)."""

_WORD_BYTES: Final = 32

_NO_SUCH_TAG: Final = frozenset({Refusal.UNSUPPORTED, Refusal.BLOCK_UNKNOWN, Refusal.INVALID_REQUEST})


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One endpoint for many questions: a ``node`` that asks only it, and its ``head`` at the beginning."""

    node: Node
    head: Header


@dataclass(frozen=True, slots=True, kw_only=True)
class FinalityTags:
    """Block numbers under the tags; -1 where the node has no such block, or does not know the tag.

    ``hash_by_number`` says which blocks these are: the answer may be of another branch than the head.
    ``finalized_at`` is the time of the finalized block, Unix seconds; 0 without one.
    """

    finalized: int
    safe: int
    finalized_at: int = 0
    hash_by_number: Mapping[int, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundLogs:
    """The logs of some blocks, in order; ``of_known_only``: of contracts that were known, or that these blocks made."""

    logs: tuple[Log, ...]
    of_known_only: bool


_Refused: TypeAlias = tuple[Feature, ...]


def _asked_of_one(
    question: Callable[Concatenate[Node, P], Awaitable[T]],
) -> Callable[Concatenate[Node, P], Coroutine[object, object, T]]:
    """Let one endpoint answer a question whole: the session's, or the first that can."""

    @wraps(question)
    async def ask(self: Node, /, *args: P.args, **kwargs: P.kwargs) -> T:
        if self._member is not None:
            return await question(self, *args, **kwargs)
        return await self._pool.ask(lambda member: question(self._bound(member), *args, **kwargs))

    return ask


class Node:
    """One chain, asked through its endpoints.

    Every question may raise ``NodeUnavailable`` (call again later) and its kinds; what else it may raise is with the
    method.  Outside of a session each question goes to the first endpoint that can answer it, and two questions may go
    to two endpoints.  What must fit together is asked in a ``session``.
    """

    def __init__(
        self,
        endpoints: Sequence[RpcEndpoint] | EndpointPool,
        *,
        max_filter_addresses: int = DEFAULT_MAX_FILTER_ADDRESSES,
        max_logs: int = DEFAULT_MAX_LOGS,
    ) -> None:
        """Takes the endpoints over.

        Args:
            endpoints: In order of preference, at least one; or a pool, where its limits matter.
            max_filter_addresses: How many addresses an endpoint takes in one filter.
            max_logs: The most logs that are taken from one answer; what holds more is asked for in another way.
        """
        self._pool = endpoints if isinstance(endpoints, EndpointPool) else EndpointPool(endpoints)
        self._max_filter_addresses = max_filter_addresses
        self._max_logs = max_logs
        self._member: Member | None = None

    def _bound(self, member: Member) -> Node:
        bound = Node(self._pool, max_filter_addresses=self._max_filter_addresses, max_logs=self._max_logs)
        bound._member = member
        return bound

    @property
    def _endpoint(self) -> Member:
        if self._member is None:
            raise AssertionError("a question is asked of one endpoint")
        return self._member

    @asynccontextmanager
    async def session(self, *, reaching: int = 0, from_block: int | None = None) -> AsyncIterator[Session]:
        """Ask one endpoint only: the best one whose head is not below block ``reaching``, if there is one.

        Begins with the question for the head.  An error that leaves the session is the endpoint's, and so is a
        ``BlockUnknown`` if it happens again and again.  ``from_block`` is the oldest block that will be asked about,
        where that may be thrown away by now (hard case 34).

        Raises:
            EndpointChanged: The endpoint failed and another is at hand; begin again at once.
            NodeUnavailable: No endpoint can be asked, or the last one failed.
        """
        member, head = await self._pool.chosen(self._head_of, reaching=reaching, from_block=from_block)
        with self._pool.session(member, caught_up=head.number >= reaching, from_block=from_block):
            yield Session(node=self._bound(member), head=head)

    @asynccontextmanager
    async def second_opinion(
        self, *, than: str | None = None, reaching: int, from_block: int | None = None
    ) -> AsyncIterator[Session]:
        """Ask one endpoint only, if possible another one ``than`` this, or than the one that answered last.

        ``from_block`` as in ``session``.

        Raises:
            EndpointChanged: The endpoint failed and another is at hand; begin again.
            NodeUnavailable: No endpoint whose head is at least ``reaching`` can be asked.
        """
        member, head = await self._pool.another(
            self._head_of, than=than or self._pool.asked, reaching=reaching, from_block=from_block
        )
        with self._pool.session(member, caught_up=True, from_block=from_block):
            yield Session(node=self._bound(member), head=head)

    @asynccontextmanager
    async def opinion_of(self, name: str, *, reaching: int, from_block: int) -> AsyncIterator[Session | None]:
        """Ask this endpoint only; ``None`` if it cannot be asked now, or its head is below ``reaching``.

        Raises:
            EndpointChanged: The endpoint failed and another is at hand; begin again.
            NodeUnavailable: It failed, and there is no other.
        """
        found = await self._pool.named(self._head_of, name, reaching=reaching)
        if found is None:
            yield None
            return
        member, head = found
        with self._pool.session(member, caught_up=True, from_block=from_block):
            yield Session(node=self._bound(member), head=head)

    def keepers(self, from_block: int) -> tuple[str, ...]:
        """The names of the endpoints that may still have block ``from_block``, whether they can be asked or not."""
        return tuple(member.name for member in self._pool.members if member.keeps(from_block))

    def has_another(self, than: str, *, from_block: int) -> bool:
        """Whether there is another endpoint ``than`` this that may still have block ``from_block``."""
        return any(name != than for name in self.keepers(from_block))

    def expect(self, identity: ChainIdentity) -> None:
        """From now on believe only endpoints that serve this chain."""
        self._pool.expect(identity)

    async def prove_all(self) -> None:
        """Look at every endpoint, at a start.

        Raises:
            ChainMismatch: None can be used, and one serves another chain.  Stop: do not call again (hard case 14).
            NodeUnavailable: None answers.
        """
        await self._pool.prove_all(self._shown_by)

    async def _shown_by(self, member: Member) -> Header:
        """Its head, after it has shown what it can do; what it does not answer to that is found out later."""
        bound = self._bound(member)
        head = await bound.head()
        with suppress(NodeError):
            await bound.show(head)
        return head

    @_asked_of_one
    async def show(self, head: Header) -> None:
        """Let an endpoint show what it can do, with few small questions about the newest blocks.

        Raises:
            NodeError: It may answer all the same what is asked of it later.
        """
        await self.finality(head)
        await self.headers_by_number(range(max(0, head.number - PROBED_BATCH + 1), head.number + 1))
        await self._logs_some_way(head.hash, [_NOTHING], _NOTHING_BY_ADDRESS, None)

    @_asked_of_one
    async def show_all(self, most_blocks: int) -> int:
        """As ``show``, and the receipts of a block; the number of blocks that it gives the logs of at once.

        Raises:
            NodeError: It does not answer.
        """
        head = await self.head()
        await self.show(head)
        await self.receipts(head.hash)
        await self.final_logs(head.number, head.number, [_NOTHING], _NOTHING_BY_ADDRESS, last_hash=head.hash)
        blocks = min(most_blocks, head.number + 1)
        while blocks:
            try:
                await self.logs_in_range(head.number - blocks + 1, head.number, _NOTHING_BY_ADDRESS)
            except RangeRefused:
                blocks //= 2
            except NodeRefused as refused:
                _require_cannot(refused)
                return 0
            else:
                break
        return blocks

    async def probe(self) -> bool:
        """Look at one endpoint that is due for it; ``True`` if another one is.  Never fails."""
        return await self._pool.probe(self._head_of)

    def contradiction(self, kind: Inconsistency, reason: str) -> NodeAnswerInvalid:
        """The error to raise where several answers of a session's endpoint do not fit together."""
        return self._invalid("several answers", reason, kind)

    async def final_block_denied(self, number: int, block_hash: bytes) -> EndpointOnOtherFork:
        """The error to raise where the session's endpoint leaves a block that is stored as final.

        Raises:
            NodeAnswerInvalid: It shows that block after all, so it contradicts itself.
            NodeUnavailable, BlockUnknown: Not known.
        """
        found = (await self.header_by_number(number)).hash
        if found == block_hash:
            raise self.contradiction(
                Inconsistency.OTHER_BLOCK, f"its block {number} is our final one, and is not on the branch of its head"
            )
        also = await self._pool.denying(self._endpoint, number, block_hash, found)
        return EndpointOnOtherFork(self.endpoint_name, number=number, expected=block_hash, found=found, also=also)

    @property
    def on_other_fork(self) -> tuple[str, ...]:
        """The endpoints that denied a block that is stored as final, and have not shown it since."""
        return tuple(member.name for member in self._pool.members if member.denied is not None)

    @property
    def is_alone(self) -> bool:
        """Whether no second endpoint is configured."""
        return len(self._pool.members) == 1

    @property
    def endpoint_name(self) -> str:
        """The session's endpoint."""
        return self._endpoint.name

    @property
    def blocks_at_once(self) -> int:
        """How many blocks to ask a session's endpoint about in one tick near the head: a header and logs for each."""
        return max(1, self._endpoint.questions_at_once // 2)

    def reports(self) -> tuple[EndpointReport, ...]:
        """Every endpoint at this moment."""
        return self._pool.reports()

    def troubles(self) -> tuple[str, ...]:
        """Why the chain cannot be followed well now, a sentence each."""
        return self._pool.troubles()

    async def close(self) -> None:
        """Close the connections of all endpoints."""
        await self._pool.close()

    async def _head_of(self, member: Member) -> Header:
        return await self._bound(member).head()

    @_asked_of_one
    async def chain_id(self) -> int:
        """The id of the chain that the node serves."""
        return await self._endpoint.call("eth_chainId", [], parse_quantity)

    @_asked_of_one
    async def genesis_hash(self) -> bytes:
        """The hash of block 0, which tells a restarted development chain from the one before."""
        return (await self.header_by_number(0)).hash

    @_asked_of_one
    async def require_chain(self, *, chain_id: int, genesis_hash: bytes | None) -> None:
        """Check that the node serves the configured chain; a genesis of ``None`` is not known yet.

        Raises:
            ChainMismatch: Stop.
        """
        await require_identity(self._endpoint, ChainIdentity(chain_id=chain_id, genesis_hash=genesis_hash))

    @_asked_of_one
    async def code_hash(self, address: bytes, block: Block = "latest") -> bytes | None:
        """The keccak of the contract's code; ``None`` if there is no code.

        Raises:
            BlockUnknown: Read the tip again.
        """
        code = await self.code(address, block)
        return keccak(code) if code else None

    @_asked_of_one
    async def code(self, address: bytes, block: Block = "latest") -> bytes:
        """The contract's code; empty if there is no contract.

        Raises:
            BlockUnknown: Read the tip again.
        """
        with _about(block):
            return await self._endpoint.call("eth_getCode", [to_hex(address), _block_parameter(block)], parse_octets)

    @_asked_of_one
    async def storage(self, address: bytes, slot: bytes, block: Block = "latest") -> bytes:
        """The 32 bytes that a contract keeps at ``slot`` (32 bytes as well).

        Raises:
            BlockUnknown: Read the tip again.
        """

        def parse(value: object) -> bytes:
            word = parse_octets(value)
            if len(word) > _WORD_BYTES:
                raise Malformed(f"a word of {len(word)} bytes")
            return word.rjust(_WORD_BYTES, b"\0")

        question = [to_hex(address), to_hex(slot), _block_parameter(block)]
        with _about(block):
            return await self._endpoint.call("eth_getStorageAt", question, parse)

    @_asked_of_one
    async def call(self, to: bytes, data: bytes, block: Block = "latest") -> bytes:
        """What a contract's function returns; empty if there is no contract.

        Raises:
            CallReverted: The contract refused.
            BlockUnknown: Read the tip again.
        """
        question = {"to": to_hex(to), "data": to_hex(data)}
        try:
            with _about(block):
                return await self._endpoint.call("eth_call", [question, _block_parameter(block)], parse_octets)
        except NodeRefused as refused:
            if refused.refusal is Refusal.REVERTED:
                raise CallReverted(to, refused.revert_data) from refused
            raise

    @_asked_of_one
    async def head(self) -> Header:
        """The newest block."""
        header = await self._endpoint.call("eth_getBlockByNumber", ["latest", False], parse_header)
        self._endpoint.saw_head(header.number)
        return header

    @_asked_of_one
    async def finality(self, head: Header) -> FinalityTags:
        """The tags that are about finality, in one exchange where the endpoint knows both (hard case 33).

        Args:
            head: The newest block, asked before.

        Raises:
            NodeAnswerInvalid: A tag is above the head.
        """
        questions = [["finalized", False], ["safe", False]]
        try:
            found = await self._endpoint.batch("eth_getBlockByNumber", questions, parse_optional(parse_header))
        except NodeRefused as refused:
            if refused.refusal not in _NO_SUCH_TAG:
                raise
            found = [await self.tagged("finalized"), await self.tagged("safe")]
        finalized, safe = (-1 if header is None else header.number for header in found)
        self._endpoint.showed(Feature.FINALIZED_TAG, is_there=finalized >= 0)
        if max(finalized, safe) > head.number and max(finalized, safe) > (newest := await self.head()).number:
            raise self._invalid(
                "eth_getBlockByNumber",
                f"finalized block {finalized} or safe block {safe} is above the head {newest.number}",
                Inconsistency.FINALITY_ABOVE_HEAD,
            )
        if finalized >= 0:
            self._endpoint.saw_finalized(finalized)
        hash_by_number = {header.number: header.hash for header in found if header is not None}
        return FinalityTags(
            finalized=finalized,
            safe=safe,
            finalized_at=0 if found[0] is None else found[0].timestamp,
            hash_by_number=hash_by_number,
        )

    @_asked_of_one
    async def tagged(self, tag: Tag) -> Header | None:
        """The block under a tag; ``None`` if the node has no such block, or does not know the tag (hard case 33)."""
        try:
            return await self._endpoint.call("eth_getBlockByNumber", [tag, False], parse_optional(parse_header))
        except NodeRefused as refused:
            if refused.refusal in _NO_SUCH_TAG:
                return None
            raise

    @_asked_of_one
    async def header_by_hash(self, block_hash: bytes) -> Header:
        """One block of any branch.

        Raises:
            BlockUnknown: Read the tip again.
        """

        def parse(value: object) -> Header:
            header = parse_header(value)
            if header.hash != block_hash:
                raise Malformed(
                    f"asked for block {to_hex(block_hash)}, got {to_hex(header.hash)}", Inconsistency.OTHER_BLOCK
                )
            return header

        with _about(block_hash):
            header = await self._endpoint.call("eth_getBlockByHash", [to_hex(block_hash), False], parse_optional(parse))
        if header is None:
            raise BlockUnknown(self._endpoint.name, block_hash)
        return header

    @_asked_of_one
    async def header_by_number(self, number: int) -> Header:
        """One block of the node's branch of this moment.

        Raises:
            BlockUnknown: The node is not there yet.
        """
        return (await self.headers_by_number([number]))[number]

    @_asked_of_one
    async def headers_by_number(self, numbers: Sequence[int]) -> dict[int, Header]:
        """Many blocks at once; near the head they need not be of one branch.

        Raises:
            BlockUnknown: The node is not there yet; with the first number that it does not know.
        """
        questions = [[hex(number), False] for number in numbers]
        with _about(max(numbers, default=0)):
            found = await self._endpoint.batch("eth_getBlockByNumber", questions, parse_optional(parse_header))
        headers: dict[int, Header] = {}
        for number, header in zip(numbers, found, strict=True):
            if header is None:
                raise BlockUnknown(self._endpoint.name, number)
            if header.number != number:
                raise self._invalid(
                    "eth_getBlockByNumber",
                    f"asked for block {number}, got {header.number}",
                    Inconsistency.OTHER_BLOCK,
                )
            headers[number] = header
        return headers

    @_asked_of_one
    async def logs_in_block(
        self,
        block_hash: bytes,
        filters: Sequence[LogFilter],
        *,
        by_address: ByAddress | None = None,
        final_number: int | None = None,
    ) -> tuple[Log, ...]:
        """The logs of one block of any branch that match any of ``filters``, in order.

        Each way is the last resort of the one before: by ``filters``, ``by_address``, the receipts of the block, the
        receipt of each transaction.  So neither what strangers emit nor what an endpoint lacks hides a block for ever.

        Args:
            block_hash: Of the block.
            filters: What to ask for.
            by_address: The same, as far as it matters; then the answer may have less of what does not.
            final_number: Of a final block: where there are no logs by hash, they are asked for by number.

        Raises:
            BlockUnknown: Read the tip again.
        """
        return (await self._logs_some_way(block_hash, filters, by_address, final_number)).logs

    async def _logs_some_way(
        self,
        block_hash: bytes,
        filters: Sequence[LogFilter],
        by_address: ByAddress | None,
        final_number: int | None,
        *,
        refused: _Refused = (),
    ) -> FoundLogs:
        """As ``logs_in_block``; ``refused`` is what was refused of the same block by its number."""
        by_hash = self._endpoint.has(Feature.LOGS_BY_HASH)
        blocks = {"blockHash": to_hex(block_hash)} if by_hash else None
        if blocks is None and final_number is not None:
            blocks = _blocks(final_number, final_number)
        found: FoundLogs | _Refused = ()
        if blocks is not None:
            with _about(block_hash):
                found = await self._logs_by_filter(partial(self._logs_in, blocks), filters, by_address)
        if isinstance(found, FoundLogs):
            with self._believing(GET_LOGS):
                require_block(found.logs, block_hash)
            return found
        logs = await self._logs_of_receipts(await self.header_by_hash(block_hash))
        if len(logs) < _FEW_LOGS:  # so these refusals were not about how many logs there are
            self._lacks((*refused, Feature.LOGS_BY_HASH) if by_hash and Feature.LOGS_BY_ADDRESS in found else refused)
        return FoundLogs(logs=_matching(filters, logs), of_known_only=False)

    async def _logs_by_filter(
        self,
        ask: Callable[[Sequence[LogFilter] | ByAddress], Awaitable[tuple[Log, ...]]],
        filters: Sequence[LogFilter] | None,
        by_address: ByAddress | None,
        *,
        can_be_fewer: bool = False,
    ) -> FoundLogs | _Refused:
        """What ``filters`` find, else what ``by_address`` finds; where neither is answered, which of them were refused.

        Raises:
            RangeRefused: It would be too much, and ``can_be_fewer`` blocks be asked about.
        """
        refused: dict[Feature, NodeRefused | RangeRefused] = {}
        for feature, wanted in ((Feature.LOGS_BY_TOPIC, filters), (Feature.LOGS_BY_ADDRESS, by_address)):
            if wanted is None or not self._endpoint.has(feature):
                continue
            try:
                logs = await ask(wanted)
            except RangeLate:
                raise  # another time-out would not be better
            except (NodeRefused, RangeRefused) as error:
                _require_cannot(error)
                refused[feature] = error
                continue
            self._lacks(each for each, error in refused.items() if isinstance(error, NodeRefused))
            return FoundLogs(logs=logs, of_known_only=wanted is by_address)
        too_much = [error for error in refused.values() if isinstance(error, RangeRefused)]
        if too_much and can_be_fewer:
            raise too_much[0]
        return tuple(refused)

    def _lacks(self, features: Iterable[Feature]) -> None:
        for feature in features:
            self._endpoint.showed(feature, is_there=False)

    async def _logs_in(self, blocks: Mapping[str, str], wanted: Sequence[LogFilter] | ByAddress) -> tuple[Log, ...]:
        """The logs of some blocks in one way; of ``ByAddress``, also what these make known in the same blocks."""
        is_by_address = isinstance(wanted, ByAddress)
        with self._hanging_at(Feature.LOGS_BY_ADDRESS if is_by_address else Feature.LOGS_BY_TOPIC, blocks):
            answers = await self._log_answers(blocks, wanted.filters if isinstance(wanted, ByAddress) else wanted)
            if isinstance(wanted, ByAddress) and (announced := wanted.announced(self._merged(answers))):
                answers += await self._log_answers(blocks, announced)
        return self._merged(answers)

    @_asked_of_one
    async def logs_of(
        self,
        header: Header,
        filters: Sequence[LogFilter],
        believed: Sequence[LogFilter],
        guesses: Sequence[Guess],
        *,
        by_address: ByAddress | None = None,
    ) -> tuple[Log, ...]:
        """The logs of a block near the head that match any of ``filters``, checked against the header's bloom.

        Costs nothing where a proven bloom denies all that is believed; one question where it does not; the receipts of
        the block where it admits one of ``guesses`` that the answer lacks.  A bloom may do so without reason, and in
        crowded blocks it does: then a block in ``BLOCKS_A_FALSE_HIT`` is settled by receipts, and of the others the
        answer stands.

        Args:
            header: The block.
            filters: What to ask for.
            believed: Whose logs matter, as narrow as it is known: each is part of one of ``filters``.
            guesses: Of these, what an answer must not lack.
            by_address: As with ``logs_in_block``.

        Raises:
            BlockUnknown: Read the tip again.
        """
        trust = self._endpoint.bloom
        if trust.is_proven:
            logs = await self._logs_by_bloom(header, filters, believed, guesses, by_address)
        elif trust.is_on_trial:
            logs = _matching(filters, await self._logs_on_trial(header, filters, by_address))
        else:
            logs = await self.logs_in_block(header.hash, filters, by_address=by_address)
        with self._believing(GET_LOGS):
            require_header(logs, header)
        return logs

    async def _logs_by_bloom(
        self,
        header: Header,
        filters: Sequence[LogFilter],
        believed: Sequence[LogFilter],
        guesses: Sequence[Guess],
        by_address: ByAddress | None,
    ) -> tuple[Log, ...]:
        """What a proven bloom admits, and the receipts where the answer lacks it."""
        bloom = header.logs_bloom
        self._endpoint.bloom = self._endpoint.bloom.read_block()
        if not any(bloom_admits(bloom, each) for each in believed):
            return ()
        asked = [each for each in filters if bloom_admits(bloom, each)]
        logs = await self.logs_in_block(header.hash, asked, by_address=by_address)
        if not all(bloom_admits_log(bloom, log) for log in logs):
            self._endpoint.caught(Inconsistency.BLOOM_MISMATCH)
            self._endpoint.bloom = self._endpoint.bloom.caught()
            # What was not asked because of this bloom is asked now.
            return await self.logs_in_block(header.hash, filters, by_address=by_address)
        if not self._endpoint.bloom.is_worth_receipts or not any(each.is_open(bloom, logs) for each in guesses):
            return logs
        try:
            settled = _matching(asked, await self._logs_of_receipts(header))
        except AnswerTooMuch:
            settled = logs  # a stranger can make a transaction that has no readable receipt: that must stop no block
        if _are_same(settled, logs):
            self._endpoint.bloom = self._endpoint.bloom.was_wrong()
        else:
            self._endpoint.caught(Inconsistency.LOGS_MISSING)
        return settled

    async def _logs_on_trial(
        self, header: Header, filters: Sequence[LogFilter], by_address: ByAddress | None
    ) -> tuple[Log, ...]:
        """All logs of a block; the bloom must be exactly theirs, or the receipts say who is wrong.

        A block that cannot be read whole is no proof of the bloom, and is read as one without.
        """
        try:
            everything = await self.logs_in_block(header.hash, [LogFilter()])
        except AnswerTooMuch:
            return await self.logs_in_block(header.hash, filters, by_address=by_address)
        if bloom_of(everything) == header.logs_bloom:
            if everything:
                self._endpoint.bloom = self._endpoint.bloom.agreed()
            return everything
        settled = await self._logs_of_receipts(header, by_bloom=False)
        differ = not _are_same(_matching(filters, settled), _matching(filters, everything))
        if bloom_of(settled) == header.logs_bloom:
            if differ:
                self._endpoint.caught(Inconsistency.LOGS_MISSING)
            return settled
        self._endpoint.caught(Inconsistency.BLOOM_MISMATCH)
        self._endpoint.bloom = self._endpoint.bloom.caught()
        if differ:
            raise self._invalid(GET_LOGS, "logs, receipts and bloom tell three stories", Inconsistency.LOGS_MISSING)
        return everything

    @_asked_of_one
    async def proven_logs(self, header: Header) -> tuple[Log, ...] | None:
        """All logs of a block that is long mined; ``None`` where the endpoint cannot prove that these are all.

        Nothing follows from what it leaves out then.  That is counted, but no failure: it says nothing about the tip.
        """
        try:
            return await self._logs_of_receipts(header)
        except NodeAnswerInvalid as error:
            if error.kind is not Inconsistency.RECEIPTS_MISSING:
                raise
        except BlockUnknown:
            pass  # null for a block whose header it has just given
        self._endpoint.caught(Inconsistency.RECEIPTS_MISSING)
        return None

    async def _logs_of_receipts(self, header: Header, *, by_bloom: bool = True) -> tuple[Log, ...]:
        """All logs of a block, proven by its header; ``by_bloom`` where its bloom is not what is on trial."""
        receipts = await self.receipts(header.hash)
        if header.raw_tx_hashes is not None and len(receipts) < len(header.raw_tx_hashes):
            # The system transaction may be the last one, and then its receipt's absence shows only here.
            with self._believing("eth_getTransactionReceipt"):
                receipts = await self._receipts_one_by_one(to_hex(header.hash)) or receipts
                require_block(receipts, header.hash)
        with self._believing("eth_getBlockReceipts"):
            return all_logs(receipts, header, by_bloom=by_bloom and not self._endpoint.bloom.was_caught)

    @_asked_of_one
    async def logs_in_range(self, first: int, last: int, wanted: Sequence[LogFilter] | ByAddress) -> tuple[Log, ...]:
        """The logs of the blocks from ``first`` to ``last``, both included, in order.

        Only for final blocks: near the head the answer may mix branches.

        Raises:
            RangeRefused: Ask for fewer blocks; read a single one by its hash.
            NodeRefused: So too of fewer blocks.
            BlockUnknown: The node is not there yet.
        """
        count = last - first + 1
        try:
            logs = await self._range(first, last, wanted)
        except RangeRefused:
            self._endpoint.asked_range(count, is_answered=False)
            raise
        except AnswerLate as late:
            if count == 1:
                raise
            # A range that always takes too long would never be read if less were not asked for.
            self._endpoint.asked_range(count, is_answered=False)
            raise RangeLate(late.endpoint, late.method, late.reason) from late
        except NodeRefused as refused:
            _require_cannot(refused)
            if count == 1:
                raise
            # Whatever it says: if it gives the logs of one block, then it is about the number of blocks.
            await self._range(first, first, wanted)
            self._endpoint.asked_range(count, is_answered=False)
            raise RangeRefused(refused.endpoint, refused.method, refused.reason) from refused
        self._endpoint.asked_range(count, is_answered=True)
        return logs

    async def _range(self, first: int, last: int, wanted: Sequence[LogFilter] | ByAddress) -> tuple[Log, ...]:
        with _about(first):
            logs = await self._logs_in(_blocks(first, last), wanted)
        with self._believing(GET_LOGS):
            require_range(logs, first, last)
        return logs

    @_asked_of_one
    async def final_logs(
        self,
        first: int,
        last: int,
        filters: Sequence[LogFilter],
        by_address: ByAddress,
        *,
        last_hash: bytes,
        address_first: bool = False,
    ) -> FoundLogs:
        """The logs of final blocks, in whichever way the endpoint gives them; as ``logs_in_block`` of a single one.

        Args:
            first: The first block.
            last: The last block.
            filters: What to ask for.
            by_address: The same, as far as it matters and is known.
            last_hash: Of the last block.
            address_first: Whether asking by address is cheaper now.

        Raises:
            RangeRefused: Ask for fewer blocks; never of a single one.
        """
        found = await self._logs_by_filter(
            partial(self.logs_in_range, first, last),
            None if address_first else filters,
            by_address,
            can_be_fewer=first < last,
        )
        if isinstance(found, FoundLogs):
            return found
        if first < last:
            raise RangeRefused(self._endpoint.name, GET_LOGS, "it gives no logs by range")
        return await self._logs_some_way(last_hash, filters, by_address, last, refused=found)

    @_asked_of_one
    async def receipts(self, block_hash: bytes) -> tuple[Receipt, ...]:
        """The receipts of all transactions of one block, in order.

        Raises:
            BlockUnknown: Read the tip again.
        """
        parameter = to_hex(block_hash)
        with _about(block_hash), self._believing("eth_getBlockReceipts"):
            try:
                receipts = await self._receipts_at_once(parameter)
            except AnswerTooMuch:
                receipts = await self._receipts_one_by_one(parameter)
            except NodeAnswerInvalid as invalid:
                # Some nodes leave a system transaction out here and give its receipt where it is asked for
                # (0xPolygon/erigon#64).
                if invalid.kind is not Inconsistency.RECEIPTS_MISSING:
                    raise
                receipts = await self._receipts_one_by_one(parameter)
                if receipts is None:
                    raise
            except NodeRefused as refused:
                _require_cannot(refused)
                receipts = await self._receipts_one_by_one(parameter)
                self._endpoint.showed(Feature.BLOCK_RECEIPTS, is_there=False)
            if receipts is None:
                raise BlockUnknown(self._endpoint.name, block_hash)
            require_block(receipts, block_hash)
        return receipts

    @_asked_of_one
    async def transaction_receipt(self, tx_hash: bytes) -> Receipt | None:
        """What a transaction did on the node's branch of this moment; ``None`` if it is not mined there."""
        receipt = await self._endpoint.call(
            "eth_getTransactionReceipt", [to_hex(tx_hash)], parse_optional(parse_receipt)
        )
        if receipt is not None and receipt.tx_hash != tx_hash:
            raise self._invalid(
                "eth_getTransactionReceipt", "the receipt of another transaction", Inconsistency.OTHER_BLOCK
            )
        return receipt

    async def _receipts_at_once(self, block_hash: str) -> tuple[Receipt, ...] | None:
        if not self._endpoint.has(Feature.BLOCK_RECEIPTS):
            return await self._receipts_one_by_one(block_hash)
        with self._hanging_at(Feature.BLOCK_RECEIPTS):
            found = await self._endpoint.call("eth_getBlockReceipts", [block_hash], parse_optional(parse_receipts))
        self._endpoint.showed(Feature.BLOCK_RECEIPTS, is_there=True)
        return found

    async def _receipts_one_by_one(self, block_hash: str) -> tuple[Receipt, ...] | None:
        tx_hashes = await self._endpoint.call(
            "eth_getBlockByHash", [block_hash, False], parse_optional(parse_transaction_hashes)
        )
        if tx_hashes is None:
            return None
        found = await self._endpoint.batch(
            "eth_getTransactionReceipt", [[to_hex(tx_hash)] for tx_hash in tx_hashes], parse_optional(parse_receipt)
        )
        receipts = [receipt for receipt in found if receipt is not None]
        # A transaction without a receipt has left the branch in between, and so has the block.
        return in_block_order(receipts) if len(receipts) == len(tx_hashes) else None

    async def _log_answers(self, blocks: Mapping[str, str], filters: Sequence[LogFilter]) -> list[tuple[Log, ...]]:
        pieces = [piece for wanted in filters for piece in wanted.split(self._max_filter_addresses)]
        answers = await self._endpoint.batch(GET_LOGS, [[{**blocks, **piece.to_rpc()}] for piece in pieces], self._logs)
        for logs in answers:
            if len(logs) in _SUSPICIOUS_COUNTS:
                self._endpoint.caught(Inconsistency.ROUND_COUNT)
                raise RangeRefused(self._endpoint.name, GET_LOGS, f"exactly {len(logs)} logs: the answer may be cut")
        return answers

    def _logs(self, value: object) -> tuple[Log, ...]:
        if isinstance(value, list) and len(value) > self._max_logs:
            # Before each is parsed.
            raise RangeRefused(self._endpoint.name, GET_LOGS, f"{len(value)} logs, more than {self._max_logs}")
        return parse_logs(value)

    def _merged(self, answers: Sequence[tuple[Log, ...]]) -> tuple[Log, ...]:
        with self._believing(GET_LOGS):
            return merge_logs(answers)

    @contextmanager
    def _hanging_at(self, feature: Feature, blocks: Mapping[str, str] | None = None) -> Iterator[None]:
        """Where one block's answer does not come in time, take another way next time; the endpoint is to blame."""
        try:
            yield
        except AnswerLate:
            if blocks is None or blocks.get("fromBlock") == blocks.get("toBlock"):
                self._endpoint.hung_at(feature)
            raise

    @contextmanager
    def _believing(self, method: str) -> Iterator[None]:
        """Answers that contradict the question or each other are the endpoint's fault."""
        try:
            yield
        except Malformed as error:
            raise self._invalid(method, str(error), error.kind) from error

    def _invalid(self, method: str, reason: str, kind: Inconsistency) -> NodeAnswerInvalid:
        return NodeAnswerInvalid(self._endpoint.name, method, reason, kind=kind)


def _matching(filters: Sequence[LogFilter], logs: Iterable[Log]) -> tuple[Log, ...]:
    return tuple(log for log in logs if any(wanted.matches(log) for wanted in filters))


def _are_same(one: Sequence[Log], other: Sequence[Log]) -> bool:
    """Whether both are the same logs; not every answer tells the block's time."""
    return [log._replace(block_timestamp=None) for log in one] == [log._replace(block_timestamp=None) for log in other]


@contextmanager
def _about(block: Block) -> Iterator[None]:
    """Name the block in the refusals that are about it."""
    try:
        yield
    except NodeRefused as refused:
        if refused.refusal is Refusal.BLOCK_UNKNOWN:
            raise BlockUnknown(refused.endpoint, block) from refused
        if refused.refusal is Refusal.PRUNED:
            name = to_hex(block) if isinstance(block, bytes) else block
            reason = f"block {name} is no longer kept: {refused.reason}"
            raise HistoryPruned(refused.endpoint, refused.method, reason) from refused
        raise


def _require_cannot(refused: NodeRefused | RangeRefused) -> None:
    """Go on with another way only where the endpoint may never answer this one."""
    if isinstance(refused, NodeRefused) and refused.refusal not in CANNOT:
        raise refused


def _blocks(first: int, last: int) -> dict[str, str]:
    return {"fromBlock": hex(first), "toBlock": hex(last)}


def _block_parameter(block: Block) -> object:
    if isinstance(block, bytes):
        return {"blockHash": to_hex(block)}  # EIP-1898
    return hex(block) if isinstance(block, int) else block
