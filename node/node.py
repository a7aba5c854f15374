"""The questions that the daemon asks a chain."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final, Literal, TypeAlias

from eth_hash.auto import keccak

from node.blocks import (
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
    require_range,
    to_hex,
)
from node.endpoint import GET_LOGS, RpcEndpoint
from node.errors import (
    BlockUnknown,
    CallReverted,
    ChainMismatch,
    HistoryPruned,
    NodeAnswerInvalid,
    NodeRefused,
    RangeRefused,
)
from node.refusals import Refusal

Tag: TypeAlias = Literal["earliest", "finalized", "safe", "latest"]
Block: TypeAlias = Tag | int | bytes
"""A block by tag, number or hash."""

DEFAULT_MAX_FILTER_ADDRESSES: Final = 500

_SUSPICIOUS_COUNTS: Final = frozenset({100, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000})
"""An answer with exactly so many logs may have been cut by a provider that does not say so (hard case 22)."""


class Node:
    """One chain, asked through its endpoints.

    Every method may raise ``NodeUnavailable`` (call again later) and its kinds, ``NodeAnswerInvalid`` and
    ``HistoryPruned``; what else it may raise is with the method.
    """

    def __init__(
        self, endpoints: Sequence[RpcEndpoint], *, max_filter_addresses: int = DEFAULT_MAX_FILTER_ADDRESSES
    ) -> None:
        """Takes the endpoints over; the first is asked.

        Args:
            endpoints: In order of preference, at least one.
            max_filter_addresses: How many addresses an endpoint takes in one filter.
        """
        self._endpoints = tuple(endpoints)
        self._endpoint = self._endpoints[0]
        self._max_filter_addresses = max_filter_addresses

    async def close(self) -> None:
        """Close the connections of all endpoints."""
        for endpoint in self._endpoints:
            await endpoint.close()

    async def chain_id(self) -> int:
        """The id of the chain that the node serves."""
        return await self._endpoint.call("eth_chainId", [], parse_quantity)

    async def genesis_hash(self) -> bytes:
        """The hash of block 0, which tells a restarted development chain from the one before."""
        return (await self.header_by_number(0)).hash

    async def require_chain(self, *, chain_id: int, genesis_hash: bytes | None) -> None:
        """Check that the node serves the configured chain; a genesis of ``None`` is not known yet.

        Raises:
            ChainMismatch: Stop.
        """
        found_id = await self.chain_id()
        if found_id != chain_id:
            raise ChainMismatch(what="chain id", expected=str(chain_id), found=str(found_id))
        if genesis_hash is not None and (found := await self.genesis_hash()) != genesis_hash:
            raise ChainMismatch(what="genesis hash", expected=to_hex(genesis_hash), found=to_hex(found))

    async def code_hash(self, address: bytes, block: Block = "latest") -> bytes | None:
        """The keccak of the contract's code; ``None`` if there is no code.

        Raises:
            BlockUnknown: Read the tip again.
        """
        with _about(block):
            code = await self._endpoint.call("eth_getCode", [to_hex(address), _block_parameter(block)], parse_octets)
        return keccak(code) if code else None

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

    async def head(self) -> Header:
        """The newest block."""
        return await self._endpoint.call("eth_getBlockByNumber", ["latest", False], parse_header)

    async def tagged(self, tag: Tag) -> Header | None:
        """The block under a tag; ``None`` if the node has no such block, or does not know the tag (hard case 33)."""
        try:
            return await self._endpoint.call("eth_getBlockByNumber", [tag, False], parse_optional(parse_header))
        except NodeRefused as refused:
            if refused.refusal in {Refusal.UNSUPPORTED, Refusal.BLOCK_UNKNOWN, Refusal.INVALID_REQUEST}:
                return None
            raise

    async def header_by_hash(self, block_hash: bytes) -> Header:
        """One block of any branch.

        Raises:
            BlockUnknown: Read the tip again.
        """

        def parse(value: object) -> Header:
            header = parse_header(value)
            if header.hash != block_hash:
                raise Malformed(f"asked for block {to_hex(block_hash)}, got {to_hex(header.hash)}")
            return header

        with _about(block_hash):
            header = await self._endpoint.call("eth_getBlockByHash", [to_hex(block_hash), False], parse_optional(parse))
        if header is None:
            raise BlockUnknown(block_hash)
        return header

    async def header_by_number(self, number: int) -> Header:
        """One block of the node's branch of this moment.

        Raises:
            BlockUnknown: The node is not there yet.
        """
        return (await self.headers_by_number([number]))[number]

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
                raise BlockUnknown(number)
            if header.number != number:
                raise self._invalid("eth_getBlockByNumber", f"asked for block {number}, got {header.number}")
            headers[number] = header
        return headers

    async def logs_in_block(self, block_hash: bytes, filters: Sequence[LogFilter]) -> tuple[Log, ...]:
        """The logs of one block of any branch that match any of ``filters``, in order (hard case 1).

        Where the endpoint refuses, or its answer looks cut, they are taken from the block's receipts.

        Raises:
            BlockUnknown: Read the tip again.
        """
        try:
            with _about(block_hash):
                answers = await self._log_answers({"blockHash": to_hex(block_hash)}, filters)
        except RangeRefused:
            receipts = await self.receipts(block_hash)
            logs = (log for receipt in receipts for log in receipt.logs)
            return tuple(log for log in logs if any(wanted.matches(log) for wanted in filters))
        with self._believing(GET_LOGS):
            require_block((log for logs in answers for log in logs), block_hash)
            return merge_logs(answers)

    async def logs_in_range(self, first: int, last: int, filters: Sequence[LogFilter]) -> tuple[Log, ...]:
        """The logs of the blocks from ``first`` to ``last``, both included, that match any of ``filters``, in order.

        Only for final blocks: near the head the answer may mix branches.

        Raises:
            RangeRefused: Ask for fewer blocks; read a single one by its hash.
            BlockUnknown: The node is not there yet.
        """
        with _about(first):
            answers = await self._log_answers({"fromBlock": hex(first), "toBlock": hex(last)}, filters)
        with self._believing(GET_LOGS):
            for logs in answers:
                require_range(logs, first, last)
            return merge_logs(answers)

    async def receipts(self, block_hash: bytes) -> tuple[Receipt, ...]:
        """The receipts of all transactions of one block, in order.

        Raises:
            BlockUnknown: Read the tip again.
        """
        parameter = to_hex(block_hash)
        with _about(block_hash), self._believing("eth_getBlockReceipts"):
            try:
                receipts = await self._endpoint.call(
                    "eth_getBlockReceipts", [parameter], parse_optional(parse_receipts)
                )
            except NodeRefused as refused:
                if refused.refusal not in {Refusal.UNSUPPORTED, Refusal.INVALID_REQUEST}:
                    raise
                receipts = await self._receipts_one_by_one(parameter)
            if receipts is None:
                raise BlockUnknown(block_hash)
            require_block(receipts, block_hash)
        return receipts

    async def transaction_receipt(self, tx_hash: bytes) -> Receipt | None:
        """What a transaction did on the node's branch of this moment; ``None`` if it is not mined there."""
        receipt = await self._endpoint.call(
            "eth_getTransactionReceipt", [to_hex(tx_hash)], parse_optional(parse_receipt)
        )
        if receipt is not None and receipt.tx_hash != tx_hash:
            raise self._invalid("eth_getTransactionReceipt", "the receipt of another transaction")
        return receipt

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

    async def _log_answers(self, blocks: dict[str, str], filters: Sequence[LogFilter]) -> list[tuple[Log, ...]]:
        pieces = [piece for wanted in filters for piece in wanted.split(self._max_filter_addresses)]
        answers = await self._endpoint.batch(GET_LOGS, [[blocks | piece.to_rpc()] for piece in pieces], parse_logs)
        for logs in answers:
            if len(logs) in _SUSPICIOUS_COUNTS:
                raise RangeRefused(self._endpoint.name, GET_LOGS, f"exactly {len(logs)} logs: the answer may be cut")
        return answers

    @contextmanager
    def _believing(self, method: str) -> Iterator[None]:
        """Answers that contradict the question or each other are the endpoint's fault."""
        try:
            yield
        except Malformed as error:
            raise self._invalid(method, str(error)) from error

    def _invalid(self, method: str, reason: str) -> NodeAnswerInvalid:
        return NodeAnswerInvalid(self._endpoint.name, method, reason)


@contextmanager
def _about(block: Block) -> Iterator[None]:
    """Name the block in the refusals that are about it."""
    try:
        yield
    except NodeRefused as refused:
        if refused.refusal is Refusal.BLOCK_UNKNOWN:
            raise BlockUnknown(block) from refused
        if refused.refusal is Refusal.PRUNED:
            name = to_hex(block) if isinstance(block, bytes) else block
            reason = f"block {name} is no longer kept: {refused.reason}"
            raise HistoryPruned(refused.endpoint, refused.method, reason) from refused
        raise


def _block_parameter(block: Block) -> object:
    if isinstance(block, bytes):
        return {"blockHash": to_hex(block)}  # EIP-1898
    return hex(block) if isinstance(block, int) else block
