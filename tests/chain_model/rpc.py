"""An honest node over the modelled chain: answers JSON-RPC questions from the branch that it follows now."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from tests.chain_model.chain import Block, MinedLog, Transaction

Json: TypeAlias = "bool | int | str | list[Json] | dict[str, Json] | None"

FACTORY_CODE: Final = b"\x60\x00"


class Refused(Exception):
    """The node answers with an error."""

    def __init__(self, code: int, message: str) -> None:
        self.code = code
        self.message = message
        super().__init__(message)


@dataclass(slots=True, kw_only=True)
class View:
    """What one node believes at this moment; ``None`` for a tag that it does not know yet."""

    chain_id: int
    head: Block
    safe: Block | None = None
    finalized: Block | None = None


class HonestNode:
    """Answers as geth does: by hash about any block that it ever saw, by number about its own branch."""

    def __init__(self, view: View, blocks_by_hash: Mapping[bytes, Block]) -> None:
        self.view = view
        self.blocks_by_hash = blocks_by_hash
        self.code = FACTORY_CODE
        self._methods: Final[dict[str, Callable[..., Json]]] = {
            "eth_chainId": lambda: hex(self.view.chain_id),
            "eth_getBlockByNumber": self._block_by_number,
            "eth_getBlockByHash": self._block_by_hash,
            "eth_getLogs": self._logs,
            "eth_getBlockReceipts": self._block_receipts,
            "eth_getTransactionReceipt": self._transaction_receipt,
            "eth_getCode": lambda _address, _block: to_hex(self.code),
        }

    def answer(self, method: str, params: Sequence[Json]) -> Json:
        """The result.

        Raises:
            Refused: The node says no.
        """
        if method not in self._methods:
            raise Refused(-32601, f"the method {method} does not exist/is not available")
        return self._methods[method](*params)

    def on_branch(self, number: int) -> Block | None:
        """The block of this height on the node's own branch."""
        return self.view.head.at(number)

    def _named(self, name: Json) -> Block | None:
        view = self.view
        if name == "earliest":
            return self.on_branch(0)
        tagged = {"latest": view.head, "safe": view.safe, "finalized": view.finalized}
        if isinstance(name, str) and name in tagged:
            return tagged[name]
        return self.on_branch(_number(name))

    def _block_by_number(self, name: Json, _full: Json) -> Json:
        block = self._named(name)
        return None if block is None else block_json(block)

    def _block_by_hash(self, block_hash: Json, _full: Json) -> Json:
        block = self.blocks_by_hash.get(_octets(block_hash))
        return None if block is None else block_json(block)

    def _logs(self, question: Json) -> Json:
        if not isinstance(question, dict):
            raise Refused(-32602, "invalid argument 0")
        if "blockHash" in question:
            block = self.blocks_by_hash.get(_octets(question["blockHash"]))
            if block is None:
                raise Refused(-32000, "unknown block")
            blocks: Iterable[Block] = [block]
        else:
            first, last = _number(question["fromBlock"]), _number(question["toBlock"])
            if last > self.view.head.number:
                raise Refused(-32000, "block range extends beyond current head block")
            blocks = reversed([block for block in self.view.head.branch() if first <= block.number <= last])
        return [log_json(block, mined) for block in blocks for mined in block.logs if _matches(question, mined)]

    def _block_receipts(self, name: Json) -> Json:
        by_hash = isinstance(name, str) and len(name) == 2 + 64
        block = self.blocks_by_hash.get(_octets(name)) if by_hash else self._named(name)
        if block is None:
            return None
        given = [
            index
            for index in range(len(block.transactions))
            if block.profile.receipts_of_system or not block.is_system(index)
        ]
        return [receipt_json(block, index) for index in given]

    def _transaction_receipt(self, tx_hash: Json) -> Json:
        wanted = _octets(tx_hash)
        for block in self.view.head.branch():
            for index, transaction in enumerate(block.transactions):
                if transaction.hash == wanted:
                    return receipt_json(block, index)
        return None


def _matches(question: Mapping[str, Json], mined: MinedLog) -> bool:
    addresses, topics = question.get("address"), question.get("topics", [])
    if isinstance(addresses, list) and addresses and to_hex(mined.emitted.address) not in addresses:
        return False
    if not isinstance(topics, list) or len(topics) > len(mined.emitted.topics):
        return False
    return all(
        wanted is None or to_hex(topic) == wanted or (isinstance(wanted, list) and to_hex(topic) in wanted)
        for wanted, topic in zip(topics, mined.emitted.topics, strict=False)
    )


def to_hex(octets: bytes) -> str:
    return "0x" + octets.hex()


def _octets(text: Json) -> bytes:
    if not isinstance(text, str):
        raise Refused(-32602, "invalid argument 0")
    return bytes.fromhex(text.removeprefix("0x"))


def _number(text: Json) -> int:
    if not isinstance(text, str):
        raise Refused(-32602, "invalid argument 0")
    return int(text, 16)


def block_json(block: Block) -> dict[str, Json]:
    return {
        "number": hex(block.number),
        "hash": to_hex(block.hash),
        "parentHash": to_hex(block.parent_hash),
        "timestamp": hex(block.timestamp),
        "logsBloom": to_hex(block.bloom),
        "transactions": [to_hex(transaction.hash) for transaction in block.transactions],
    }


def log_json(block: Block, mined: MinedLog) -> dict[str, Json]:
    made: dict[str, Json] = {
        "blockNumber": hex(mined.block_number),
        "blockHash": to_hex(mined.block_hash),
        "transactionHash": to_hex(mined.tx_hash),
        "transactionIndex": hex(mined.tx_index),
        "logIndex": hex(mined.log_index),
        "address": to_hex(mined.emitted.address),
        "topics": [to_hex(topic) for topic in mined.emitted.topics],
        "data": to_hex(mined.emitted.data),
        "removed": False,
    }
    if block.number % 2:  # some nodes tell the time, others do not
        made["blockTimestamp"] = hex(block.timestamp)
    return made


def receipt_json(block: Block, index: int) -> dict[str, Json]:
    transaction: Transaction = block.transactions[index]
    return {
        "transactionHash": to_hex(transaction.hash),
        "transactionIndex": hex(index),
        "status": "0x1",
        "type": (block.profile.system_type if block.is_system(index) else None) or "0x2",
        "blockHash": to_hex(block.hash),
        "blockNumber": hex(block.number),
        "logs": [log_json(block, mined) for mined in block.logs if mined.tx_index == index],
    }
