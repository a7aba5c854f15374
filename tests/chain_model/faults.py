"""What goes wrong between a chain and whoever asks it: each mode obeys the protocol, and lies or fails in one way.

The letters of the modes' comments are those of the cases in which systems of this kind were bitten: an answer may be
late, cut, doubled, of another branch, of another chain, or made up; a server may refuse, stall, or not be one.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum, StrEnum
from typing import Final, TypeAlias

from tests.chain_model.chain import Block, digest
from tests.chain_model.rpc import HonestNode, Json, Refused, View


class Fault(StrEnum):
    """One way in which an endpoint fails."""

    # Logs
    LOGS_MISSING = "logs_missing"
    LOGS_MISSING_IN_RECEIPTS_TOO = "logs_missing_in_receipts_too"
    LOGS_CUT_AT_A_CAP = "logs_cut_at_a_cap"
    LOGS_DOUBLED = "logs_doubled"
    LOGS_UNSORTED = "logs_unsorted"
    LOGS_OF_ANOTHER_BLOCK = "logs_of_another_block"
    LOGS_OF_A_FORK = "logs_of_a_fork"
    LOGS_WITH_OTHER_CONTENT = "logs_with_other_content"
    LOGS_REMOVED = "logs_removed"
    LOGS_OF_TIME_ZERO = "logs_of_time_zero"
    HISTORY_EMPTY = "history_empty"
    RECEIPTS_CUT = "receipts_cut"
    RANGE_REFUSED = "range_refused"
    # Blocks
    HEAD_STALE = "head_stale"
    HEAD_STEPS_BACK = "head_steps_back"
    BLOCK_NULL = "block_null"
    BLOCK_OF_A_FORK = "block_of_a_fork"
    OTHER_CHAIN = "other_chain"
    BLOOM_EMPTY = "bloom_empty"
    BLOOM_FULL = "bloom_full"
    # Finality
    FINALITY_STALLS = "finality_stalls"
    FINALITY_UNKNOWN = "finality_unknown"
    FINALITY_ABOVE_HEAD = "finality_above_head"
    FINALITY_TOO_EARLY = "finality_too_early"
    # The protocol
    HEX_ODD = "hex_odd"
    FIELD_MISSING = "field_missing"
    INTERNAL_ERROR = "internal_error"
    BATCH_PARTIAL = "batch_partial"
    BATCH_SHUFFLED = "batch_shuffled"
    ID_OF_ANOTHER_QUESTION = "id_of_another_question"
    # HTTP
    TOO_MANY_REQUESTS = "too_many_requests"
    SERVER_ERROR = "server_error"
    HTML = "html"
    JSON_CUT = "json_cut"
    REDIRECT = "redirect"
    HUNG = "hung"
    CONNECTION_LOST = "connection_lost"


SILENT: Final = frozenset(
    {
        Fault.LOGS_MISSING,
        Fault.LOGS_MISSING_IN_RECEIPTS_TOO,
        Fault.LOGS_CUT_AT_A_CAP,
        Fault.LOGS_OF_A_FORK,
        Fault.LOGS_WITH_OTHER_CONTENT,
        Fault.HISTORY_EMPTY,
        Fault.HEAD_STALE,
        Fault.BLOOM_EMPTY,
    }
)
"""What no single answer of one endpoint can show: the rows may be wrong until the second sweep has passed."""

_LOG_ANSWERS: Final = frozenset({"eth_getLogs"})
_RECEIPT_ANSWERS: Final = frozenset({"eth_getBlockReceipts", "eth_getTransactionReceipt"})
_BLOCK_ANSWERS: Final = frozenset({"eth_getBlockByNumber", "eth_getBlockByHash"})


class Untouched(Enum):
    """Not an answer: JSON has its own null."""

    UNTOUCHED = "untouched"


UNTOUCHED: Final = Untouched.UNTOUCHED
Answer: TypeAlias = "Json | Untouched"
Twist: TypeAlias = Callable[["Question"], Answer]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One question to an endpoint with a fault, and the dice that decide what it does."""

    node: HonestNode
    method: str
    params: list[Json]
    place: int
    dice: random.Random

    def honest(self) -> Json:
        return self.node.answer(self.method, self.params)

    def under(self, view: View) -> Json:
        """What a node with another view would answer, which knows no block above its head."""
        blocks = self.node.blocks_by_hash
        known = {block_hash: block for block_hash, block in blocks.items() if block.number <= view.head.number}
        return HonestNode(view, known).answer(self.method, self.params)

    @property
    def is_about_tag(self) -> str | None:
        name = self.params[0] if self.method == "eth_getBlockByNumber" else None
        return name if isinstance(name, str) and not name.startswith("0x") else None


def twisted(fault: Fault, question: Question) -> Answer:
    """The answer of an endpoint with ``fault``; ``UNTOUCHED`` where the fault has no hold on this question.

    Raises:
        Refused: The endpoint says no.
    """
    methods, twist = _TWISTS.get(fault, (frozenset(), lambda _: UNTOUCHED))
    return twist(question) if question.method in methods else UNTOUCHED


def _fewer(logs: Json, dice: random.Random) -> Answer:
    if not isinstance(logs, list) or not logs:
        return UNTOUCHED
    kept = [log for log in logs if dice.random() < 0.5]
    return kept if len(kept) < len(logs) else kept[:-1]


def _logs_missing(question: Question) -> Answer:
    return _fewer(question.honest(), question.dice)


def _logs_missing_in_receipts_too(question: Question) -> Answer:
    """The same logs are missing whichever way one asks."""
    answer = question.honest()
    if question.method in _LOG_ANSWERS and isinstance(answer, list):
        kept = [log for log in answer if not _is_hidden(log, question.place)]
        return kept if len(kept) < len(answer) else UNTOUCHED
    receipts = answer if isinstance(answer, list) else [answer]
    twisted_receipts: list[Json] = [
        receipt | {"logs": [log for log in _list(receipt["logs"]) if not _is_hidden(log, question.place)]}
        for receipt in receipts
        if isinstance(receipt, dict)
    ]
    if twisted_receipts == receipts:
        return UNTOUCHED
    return twisted_receipts if isinstance(answer, list) else twisted_receipts[0]


def _is_hidden(log: Json, place: int) -> bool:
    return isinstance(log, dict) and int(str(log["blockHash"])[-1], 16) % 3 == place


def _list(value: Json) -> list[Json]:
    return value if isinstance(value, list) else []


def _logs_cut(question: Question) -> Answer:
    logs = _list(question.honest())
    return logs[: len(logs) // 2] if logs else UNTOUCHED


def _logs_doubled(question: Question) -> Answer:
    logs = _list(question.honest())
    return [*logs, question.dice.choice(logs)] if logs else UNTOUCHED


def _logs_unsorted(question: Question) -> Answer:
    logs = _list(question.honest())
    return logs[::-1] if len(logs) > 1 else UNTOUCHED


def _logs_of_another_block(question: Question) -> Answer:
    """The right filter, the wrong block: a proxy that mixes its answers up."""
    filters = question.params[0]
    if not isinstance(filters, dict):
        return UNTOUCHED
    first, last = (int(str(filters.get(bound, "0x0")), 16) for bound in ("fromBlock", "toBlock"))
    # Not of a height that was asked for: a range that is answered by one of its blocks is LOGS_MISSING by another name.
    others = [
        block
        for block in question.node.blocks_by_hash.values()
        if block.logs and not ("fromBlock" in filters and first <= block.number <= last)
    ]
    if not others:
        return UNTOUCHED
    asked = {name: value for name, value in filters.items() if name in {"address", "topics"}}
    block = question.dice.choice(others)
    found = question.node.answer("eth_getLogs", [asked | {"blockHash": "0x" + block.hash.hex()}])
    return found if found and found != question.honest() else UNTOUCHED


def _logs_of_a_fork(question: Question) -> Answer:
    """A range answered from a branch that has lost: right heights, wrong blocks."""
    filters = question.params[0]
    if not isinstance(filters, dict) or "fromBlock" not in filters:
        return UNTOUCHED
    last = int(str(filters["toBlock"]), 16)
    fork = _a_fork(question, at_least=last)
    if fork is None:
        return UNTOUCHED
    found = question.under(replace(question.node.view, head=fork))
    return found if found != question.honest() else UNTOUCHED


def _a_fork(question: Question, *, at_least: int) -> Block | None:
    view = question.node.view
    own = set(map(id, view.head.branch()))
    forks = [b for b in question.node.blocks_by_hash.values() if b.number >= at_least and id(b) not in own]
    return question.dice.choice(forks) if forks else None


def _logs_with_other_content(question: Question) -> Answer:
    logs = _list(question.honest())
    if not logs:
        return UNTOUCHED
    place = question.dice.randrange(len(logs))
    wrong = logs[place]
    if not isinstance(wrong, dict):
        return UNTOUCHED
    return [
        *logs[:place],
        wrong | {"transactionHash": "0x" + digest(wrong["transactionHash"]).hex()},
        *logs[place + 1 :],
    ]


def _logs_removed(question: Question) -> Answer:
    logs = _list(question.honest())
    return [log | {"removed": True} for log in logs if isinstance(log, dict)] if logs else UNTOUCHED


def _logs_of_time_zero(question: Question) -> Answer:
    """As geth writes "not known"; the header knows."""
    answer = question.honest()
    untimed = _untimed(answer)
    return UNTOUCHED if untimed == answer else untimed


def _untimed(value: Json) -> Json:
    if isinstance(value, list):
        return [_untimed(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "logs" in value:
        return value | {"logs": _untimed(value["logs"])}
    return value | {"blockTimestamp": "0x0"}


def _history_empty(question: Question) -> Answer:
    """What was never synced, or thrown away, is answered as if nothing had happened; the headers are there."""
    answer = question.honest()
    if not answer:
        return UNTOUCHED
    return [] if isinstance(answer, list) else None


def _receipts_cut(question: Question) -> Answer:
    receipts = _list(question.honest())
    return receipts[: question.dice.randrange(len(receipts))] if receipts else UNTOUCHED


def _range_refused(question: Question) -> Answer:
    filters = question.params[0]
    if not isinstance(filters, dict):
        return UNTOUCHED
    is_single = "blockHash" in filters or filters["fromBlock"] == filters["toBlock"]
    if is_single and question.dice.random() < 0.7:
        return UNTOUCHED
    code, message = question.dice.choice(
        [
            (-32005, "query returned more than 10000 results. Try with this block range [0x0, 0x0]."),
            (-32602, "Log response size exceeded. this block range should work: [0x0, 0x0]"),
            (-32000, "query timeout exceeded"),
            (-32614, "eth_getLogs is limited to a 1 range"),
        ]
    )
    raise Refused(code, message)


def _head_stale(question: Question) -> Answer:
    return _with_head_back(question, question.dice.randint(1, 5))


def _head_steps_back(question: Question) -> Answer:
    return _with_head_back(question, 1) if question.is_about_tag == "latest" else UNTOUCHED


def _with_head_back(question: Question, steps: int) -> Answer:
    view = question.node.view
    head = view.head
    lowest = view.finalized.number if view.finalized else 0
    while steps and head.parent is not None and head.number > lowest:
        head, steps = head.parent, steps - 1
    if head is view.head:
        return UNTOUCHED
    safe = view.safe if view.safe is None or view.safe.number <= head.number else head
    try:
        answer = question.under(replace(view, head=head, safe=safe))
    except Refused as refused:
        if question.dice.random() < 0.5 and question.method in _LOG_ANSWERS:
            return []  # the backend does not say that it is behind
        raise refused from refused
    return answer


def _block_null(question: Question) -> Answer:
    return None if question.is_about_tag is None else UNTOUCHED


def _block_of_a_fork(question: Question) -> Answer:
    """By number from a branch that lost, while the head is of the branch that won."""
    if question.method != "eth_getBlockByNumber" or question.is_about_tag is not None:
        return UNTOUCHED
    number = int(str(question.params[0]), 16)
    fork = _a_fork(question, at_least=number)
    if fork is None or number == 0:
        return UNTOUCHED
    answer = question.under(replace(question.node.view, head=fork))
    return answer if answer != question.honest() else UNTOUCHED


def _other_chain(question: Question) -> Answer:
    """A chain of the same shape, none of whose blocks is ours."""
    if question.method == "eth_chainId":
        return hex(question.node.view.chain_id + 1)
    asked = question.params[0]
    if question.method in {"eth_getBlockByHash", "eth_getBlockReceipts", "eth_getTransactionReceipt"}:
        return None
    if isinstance(asked, dict) and "blockHash" in asked:
        raise Refused(-32000, "unknown block")
    return _of_another_chain(question.honest())


def _of_another_chain(value: Json) -> Json:
    if isinstance(value, list):
        return [_of_another_chain(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        name: "0x" + digest("another chain", item).hex() if name in {"hash", "parentHash", "blockHash"} else item
        for name, item in value.items()
    }


def _bloom_of(octet: str) -> Twist:
    def twist(question: Question) -> Answer:
        answer = question.honest()
        return answer | {"logsBloom": "0x" + octet * 256} if isinstance(answer, dict) else UNTOUCHED

    return twist


def _finality_stalls(question: Question) -> Answer:
    """The tag of long ago."""
    view = question.node.view
    if question.is_about_tag not in {"finalized", "safe"} or view.finalized is None:
        return UNTOUCHED
    old = view.head.at(view.finalized.number // 2)
    return question.under(replace(view, finalized=old, safe=old))


def _finality_unknown(question: Question) -> Answer:
    if question.is_about_tag not in {"finalized", "safe"}:
        return UNTOUCHED
    if question.dice.random() < 0.5:
        raise Refused(-32602, "invalid argument 0: hex string without 0x prefix")
    return None


def _finality_above_head(question: Question) -> Answer:
    answer = question.honest()
    if question.is_about_tag != "finalized" or not isinstance(answer, dict):
        return UNTOUCHED
    return answer | {"number": hex(question.node.view.head.number + 7)}


def _finality_too_early(question: Question) -> Answer:
    """The newest block is called final."""
    view = question.node.view
    if question.is_about_tag not in {"finalized", "safe"}:
        return UNTOUCHED
    return question.under(replace(view, finalized=view.head, safe=view.head))


def _hex_odd(question: Question) -> Answer:
    answer = question.honest()
    if isinstance(answer, dict) and "number" in answer:
        return answer | {"number": question.dice.choice(["0x", "0x01", "1", "0X1", "-0x1", 17, None, []])}
    logs = _list(answer)
    if logs and isinstance(logs[0], dict):
        odd: dict[str, Json] = question.dice.choice(
            [{"data": "0xZZ"}, {"topics": "0x"}, {"blockHash": None}, {"logIndex": "0x00"}]
        )
        return [logs[0] | odd, *logs[1:]]
    return UNTOUCHED


def _field_missing(question: Question) -> Answer:
    answer = question.honest()
    if isinstance(answer, dict) and "parentHash" in answer:
        return {name: value for name, value in answer.items() if name != "parentHash"}
    logs = _list(answer)
    if logs and isinstance(logs[0], dict):
        return [{name: value for name, value in logs[0].items() if name != "transactionHash"}, *logs[1:]]
    return UNTOUCHED


def _internal_error(question: Question) -> Answer:
    raise Refused(
        *question.dice.choice([(-32000, "header not found"), (-32603, "internal error"), (-32000, "missing trie node")])
    )


_ALL: Final = _LOG_ANSWERS | _RECEIPT_ANSWERS | _BLOCK_ANSWERS | {"eth_chainId", "eth_getCode"}

_TWISTS: Final[Mapping[Fault, tuple[frozenset[str], Twist]]] = {
    Fault.LOGS_MISSING: (_LOG_ANSWERS, _logs_missing),
    Fault.LOGS_MISSING_IN_RECEIPTS_TOO: (_LOG_ANSWERS | _RECEIPT_ANSWERS, _logs_missing_in_receipts_too),
    Fault.LOGS_CUT_AT_A_CAP: (_LOG_ANSWERS, _logs_cut),
    Fault.LOGS_DOUBLED: (_LOG_ANSWERS, _logs_doubled),
    Fault.LOGS_UNSORTED: (_LOG_ANSWERS, _logs_unsorted),
    Fault.LOGS_OF_ANOTHER_BLOCK: (_LOG_ANSWERS, _logs_of_another_block),
    Fault.LOGS_OF_A_FORK: (_LOG_ANSWERS, _logs_of_a_fork),
    Fault.LOGS_WITH_OTHER_CONTENT: (_LOG_ANSWERS, _logs_with_other_content),
    Fault.LOGS_REMOVED: (_LOG_ANSWERS, _logs_removed),
    Fault.LOGS_OF_TIME_ZERO: (_LOG_ANSWERS | _RECEIPT_ANSWERS, _logs_of_time_zero),
    Fault.HISTORY_EMPTY: (_LOG_ANSWERS | _RECEIPT_ANSWERS, _history_empty),
    Fault.RECEIPTS_CUT: (_RECEIPT_ANSWERS, _receipts_cut),
    Fault.RANGE_REFUSED: (_LOG_ANSWERS, _range_refused),
    Fault.HEAD_STALE: (_ALL, _head_stale),
    Fault.HEAD_STEPS_BACK: (_BLOCK_ANSWERS, _head_steps_back),
    Fault.BLOCK_NULL: (_BLOCK_ANSWERS | _RECEIPT_ANSWERS, _block_null),
    Fault.BLOCK_OF_A_FORK: (_BLOCK_ANSWERS, _block_of_a_fork),
    Fault.OTHER_CHAIN: (_ALL, _other_chain),
    Fault.BLOOM_EMPTY: (_BLOCK_ANSWERS, _bloom_of("00")),
    Fault.BLOOM_FULL: (_BLOCK_ANSWERS, _bloom_of("ff")),
    Fault.FINALITY_STALLS: (_BLOCK_ANSWERS, _finality_stalls),
    Fault.FINALITY_UNKNOWN: (_BLOCK_ANSWERS, _finality_unknown),
    Fault.FINALITY_ABOVE_HEAD: (_BLOCK_ANSWERS, _finality_above_head),
    Fault.FINALITY_TOO_EARLY: (_BLOCK_ANSWERS, _finality_too_early),
    Fault.HEX_ODD: (_LOG_ANSWERS | _BLOCK_ANSWERS, _hex_odd),
    Fault.FIELD_MISSING: (_LOG_ANSWERS | _BLOCK_ANSWERS, _field_missing),
    Fault.INTERNAL_ERROR: (_ALL, _internal_error),
}
