"""The little JSON-RPC that a transmitter needs: the forwarder's `report`, receipts, the head (cre.md §5)."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count

import aiohttp
from eth_abi.abi import encode

REPORT_SELECTOR = bytes.fromhex("11289565")
ALREADY_ATTEMPTED_SELECTOR = "0xa53dc8ca"
REPORT_PROCESSED_TOPIC = "0x3617b009e9785c42daebadb6d3fb553243a4bf586d07ea72d65d80013ce116b5"
REPORT_GAS = 5_000_000
CALL_TIMEOUT_SECONDS = 30


class ChainUnavailable(Exception):
    """The node did not answer, or not with JSON-RPC; whether a transaction left is not known."""

    def __init__(self, method: str, cause: object) -> None:
        super().__init__(f"{method} got no answer from the node: {cause!r}")


class ChainRefused(Exception):
    """The node answered with an error; `data` is the revert data of a call, if there is any."""

    def __init__(self, method: str, message: str, data: str) -> None:
        super().__init__(f"the node refused {method}: {message}")
        self.data = data


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """A mined transaction; `report_results` holds ReportProcessed's verdict for each execution id."""

    block_number: int
    succeeded: bool
    report_results: Mapping[bytes, bool]


class Chain:
    """One node with unlocked accounts (anvil), and one forwarder on it."""

    def __init__(
        self, *, session: aiohttp.ClientSession, rpc_url: str, forwarder: bytes, transmitter: str | None
    ) -> None:
        self._session = session
        self._rpc_url = rpc_url
        self._forwarder = "0x" + forwarder.hex()
        self._transmitter = transmitter
        self._request_numbers = count(1)

    async def _call(self, method: str, *params: object) -> object:
        request = {"jsonrpc": "2.0", "id": next(self._request_numbers), "method": method, "params": params}
        timeout = aiohttp.ClientTimeout(total=CALL_TIMEOUT_SECONDS)
        try:
            async with self._session.post(self._rpc_url, json=request, timeout=timeout) as response:
                answer = await response.json(content_type=None)
        except (TimeoutError, aiohttp.ClientError, ValueError) as error:
            raise ChainUnavailable(method, error) from error
        if not isinstance(answer, dict) or ("result" not in answer and "error" not in answer):
            raise ChainUnavailable(method, answer)
        if refusal := answer.get("error"):
            raise ChainRefused(method, str(refusal.get("message")), str(refusal.get("data", "")))
        return answer["result"]

    async def head_number(self) -> int:
        """Give the number of the newest block."""
        return int(str(await self._call("eth_blockNumber")), 16)

    async def receipt(self, tx_hash: str) -> Receipt | None:
        """Give the receipt on the current branch; None while pending and after a reorg took it."""
        receipt = await self._call("eth_getTransactionReceipt", tx_hash)
        if not isinstance(receipt, dict):
            return None
        return Receipt(
            block_number=int(receipt["blockNumber"], 16),
            succeeded=int(receipt["status"], 16) == 1,
            report_results={
                bytes.fromhex(log["topics"][2][2:]): int(log["data"], 16) == 1
                for log in receipt["logs"]
                if log["address"].lower() == self._forwarder and log["topics"][0] == REPORT_PROCESSED_TOPIC
            },
        )

    async def knows(self, tx_hash: str) -> bool:
        """Tell whether the node still has the transaction, mined or waiting."""
        return await self._call("eth_getTransactionByHash", tx_hash) is not None

    async def already_attempted(self, *, receiver: bytes, raw_report: bytes) -> bool:
        """Ask the forwarder itself, by a call that is not sent, whether it would refuse the report as delivered."""
        try:
            await self._call("eth_call", await self._transaction(receiver, raw_report, gas=REPORT_GAS), "latest")
        except ChainRefused as refused:
            return refused.data.startswith(ALREADY_ATTEMPTED_SELECTOR)
        return False

    async def send_report(self, *, receiver: bytes, raw_report: bytes, attempt: int) -> str:
        """Send the report in a transaction whose hash differs for each attempt, as with another transmitter."""
        # After a reorg the nonce is free again: only another gas limit makes the same call another transaction.
        transaction = await self._transaction(receiver, raw_report, gas=REPORT_GAS + attempt)
        return str(await self._call("eth_sendTransaction", transaction))

    async def _transaction(self, receiver: bytes, raw_report: bytes, *, gas: int) -> dict[str, str]:
        if self._transmitter is None:
            accounts = await self._call("eth_accounts")
            if not isinstance(accounts, list) or not accounts:
                raise ChainUnavailable("eth_accounts", accounts)
            # The last account, so that the nonces of the demo's users, who are the first ones, stay their own.
            self._transmitter = str(accounts[-1])
        # The reference forwarder checks no signatures; context and signature only have their real sizes.
        arguments = ["0x" + receiver.hex(), raw_report, bytes(96), [bytes(65)]]
        data = REPORT_SELECTOR + encode(["address", "bytes", "bytes", "bytes[]"], arguments)
        return {"from": self._transmitter, "to": self._forwarder, "gas": hex(gas), "data": "0x" + data.hex()}
