"""Deploy BSKT's contracts on anvil, and play everyone who touches them: issuers, users, transmitters, reorgs.

A `Call` says what is to be called; a `DevChain` sends it (`send`: only the hash; `transact`: mined and successful),
asks it (`ask`), or mines it elsewhere (`reorg`).  What is built of these two comes after them.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

import aiohttp
from eth_abi.abi import decode, encode
from eth_abi.grammar import TupleType, parse
from eth_utils.crypto import keccak

TxHash: TypeAlias = bytes

ADMIN = bytes.fromhex("f39Fd6e51aad88F6F4ce6aB8827279cffFb92266")
"""The first well-known account of anvil; it deploys, it owns the baskets, and it sends where no sender is named."""
TRANSMITTER = bytes.fromhex("70997970C51812dc3A010C7d01b50e0d17dc79C8")
"""The second one; it delivers reports, so that requests and deliveries never compete for a nonce."""

GAS = 8_000_000
MINT_INSTRUCTION = 1
HEADER_VERSION = 1

_INSTALLED_ARTIFACTS = Path(__file__).with_name("artifacts")
_CHECKED_OUT_ARTIFACTS = Path(__file__).parents[2] / "contracts" / "artifacts"


class ChainRefused(Exception):
    """The node said no; `data` is the revert data of a call, if there is any."""

    def __init__(self, method: str, message: str, data: bytes) -> None:
        super().__init__(f"the node refused {method}: {message}")
        self.data = data


class TransactionReverted(Exception):
    """Mined and undone: it left no logs, only `tx_hash`."""

    def __init__(self, tx_hash: TxHash) -> None:
        super().__init__(f"transaction 0x{tx_hash.hex()} reverted")
        self.tx_hash = tx_hash


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """One compiled contract; `bytecode` is its creation's, without the constructor's arguments."""

    abi: Sequence[Mapping[str, Any]]
    bytecode: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A transaction without its sender; without `to` it creates a contract."""

    to: bytes | None
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """One log of a receipt; `index` counts within the block."""

    address: bytes
    topics: tuple[bytes, ...]
    data: bytes
    index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """A mined transaction on the current branch."""

    tx_hash: TxHash
    block_number: int
    block_hash: bytes
    succeeded: bool
    created: bytes | None
    logs: tuple[Log, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """What the protocol deploys once a chain, and `batch` for tests."""

    factory: bytes
    forwarder: bytes
    batch: bytes
    deployed_at_block: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Basket:
    """A token and the consumer that mints it."""

    token: bytes
    consumer: bytes


@cache
def load_artifact(name: str) -> Artifact:
    """Read a contract by its Solidity name, from the installed wheel or from the checkout."""
    folder = _INSTALLED_ARTIFACTS if _INSTALLED_ARTIFACTS.is_dir() else _CHECKED_OUT_ARTIFACTS
    artifact = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    return Artifact(abi=artifact["abi"], bytecode=_from_hex(artifact["bytecode"]))


def call(to: bytes, signature: str, *arguments: object) -> Call:
    """Build a call from a function's canonical signature, e.g. `mint(address,uint256)`; addresses are bytes."""
    return Call(to=to, data=keccak(text=signature)[:4] + encode(_argument_types(signature), arguments))


def deploy_call(name: str, constructor: str = "()", *arguments: object) -> Call:
    """Build the creation of a contract; `constructor` is the list of its types, e.g. `(bool)`."""
    return Call(to=None, data=load_artifact(name).bytecode + encode(_argument_types(constructor), arguments))


def create_basket_call(factory: bytes, *, name: str | bytes, symbol: str | bytes, admin: bytes = ADMIN) -> Call:
    """Build the creation of a basket; names as bytes need not be UTF-8, as the chain does not check it."""
    # `bytes` and `string` are encoded alike; eth_abi would insist on UTF-8 for the second.
    names = [text.encode() if isinstance(text, str) else text for text in (name, symbol)]
    arguments = encode(["bytes", "bytes", "address"], [*names, admin])
    return Call(to=factory, data=keccak(text="createBasket(string,string,address)")[:4] + arguments)


def request_mint_call(token: bytes, *, beneficiary: bytes, amount_wei: int, bank_reference: bytes) -> Call:
    """Build a request to the token itself; `bank_reference` is the event's 32 bytes."""
    return call(token, "requestMint(address,uint256,bytes32)", beneficiary, amount_wei, bank_reference)


def request_mint_at_factory_call(
    factory: bytes, *, token: bytes, beneficiary: bytes, amount_wei: int, bank_reference: bytes
) -> Call:
    """Build a request to the factory, where the basket is a field."""
    signature = "requestMint(address,address,uint256,bytes32)"
    return call(factory, signature, token, beneficiary, amount_wei, bank_reference)


def batch_call(batch: bytes, calls: Sequence[Call]) -> Call:
    """Build one transaction of several calls; `batch` is their sender, and one that reverts undoes all."""
    return call(batch, "run((address,bytes)[])", [(each.to, each.data) for each in calls])


def mint_report(*, recipient: bytes, amount_wei: int, bank_reference: bytes) -> bytes:
    """Encode what the consumer is told to mint (bskt.md §1)."""
    types = ["uint8", "address", "uint256", "bytes32"]
    return encode(types, [MINT_INSTRUCTION, recipient, amount_wei, bank_reference])


def raw_report(
    report: bytes, *, workflow_id: bytes, execution_id: bytes, report_id: bytes = b"\x00\x01", timestamp: int = 0
) -> bytes:
    """Put the forwarder's 109 bytes in front of a report (cre.md §5)."""
    forwarder_part = bytes([HEADER_VERSION]) + execution_id + timestamp.to_bytes(4, "big") + bytes(4) + bytes(4)
    name_and_owner = bytes(10) + bytes(20)
    return forwarder_part + workflow_id + name_and_owner + report_id + report


def report_call(forwarder: bytes, *, receiver: bytes, raw: bytes) -> Call:
    """Build a delivery; context and signature only have their real sizes, as ours verifies none."""
    return call(forwarder, "report(address,bytes,bytes,bytes[])", receiver, raw, bytes(96), [bytes(65)])


class DevChain:
    """One anvil and its unlocked accounts; the session is the caller's."""

    def __init__(self, *, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url
        self._request_numbers = count(1)

    async def rpc(self, method: str, *params: object) -> Any:
        """Give the result of any JSON-RPC method.

        Raises:
            ChainRefused: The node answered with an error.
        """
        request = {"jsonrpc": "2.0", "id": next(self._request_numbers), "method": method, "params": params}
        async with self._session.post(self._url, json=request) as response:
            answer = await response.json(content_type=None)
        if "error" in answer:
            data = answer["error"].get("data")
            revert_data = _from_hex(data) if isinstance(data, str) else b""
            raise ChainRefused(method, answer["error"]["message"], revert_data)
        return answer["result"]

    async def accounts(self) -> list[bytes]:
        """Give the unlocked accounts."""
        return [_from_hex(account) for account in await self.rpc("eth_accounts")]

    async def head_number(self) -> int:
        """Give the number of the newest block."""
        return int(await self.rpc("eth_blockNumber"), 16)

    async def send(self, what: Call, *, sender: bytes = ADMIN, gas: int = GAS, nonce: int | None = None) -> TxHash:
        """Put a transaction into the pool.  Even where each one is mined at once, it may not be mined by now.

        Without `nonce` it follows the sender's others in the pool, also those that a reorg made impossible.
        """
        transaction = _transaction(what, sender=sender, gas=gas)
        if nonce is not None:
            transaction["nonce"] = hex(nonce)
        return _from_hex(await self.rpc("eth_sendTransaction", transaction))

    async def nonce(self, sender: bytes) -> int:
        """Give the number of the sender's mined transactions, which is the nonce of its next one."""
        return int(await self.rpc("eth_getTransactionCount", _to_hex(sender), "latest"), 16)

    async def transact(self, what: Call, *, sender: bytes = ADMIN, gas: int = GAS) -> Receipt:
        """Send a transaction and return when it is mined, which somebody must do where automining is off.

        Raises:
            TransactionReverted: It is mined and undone.
        """
        transaction = _transaction(what, sender=sender, gas=gas)
        receipt = _receipt(await self.rpc("eth_sendTransactionSync", transaction))
        if not receipt.succeeded:
            raise TransactionReverted(receipt.tx_hash)
        return receipt

    async def deploy(self, name: str, constructor: str = "()", *arguments: object) -> bytes:
        """Deploy a contract and give its address; see `deploy_call`."""
        created = (await self.transact(deploy_call(name, constructor, *arguments))).created
        return cast("bytes", created)  # a creation that succeeded has an address

    async def ask(self, what: Call, *answer_types: str, sender: bytes = ADMIN) -> tuple[Any, ...]:
        """Call without sending, at the newest block; addresses in the answer are bytes.

        Raises:
            ChainRefused: It would revert, with this `data`.
        """
        answer = _from_hex(await self.rpc("eth_call", _transaction(what, sender=sender, gas=GAS), "latest"))
        return tuple(
            _from_hex(value) if kind == "address" else value
            for kind, value in zip(answer_types, decode(answer_types, answer), strict=True)
        )

    async def receipt(self, tx_hash: TxHash) -> Receipt | None:
        """Give a transaction's receipt; None while it is pending and after a reorg took it."""
        receipt = await self.rpc("eth_getTransactionReceipt", _to_hex(tx_hash))
        return None if receipt is None else _receipt(receipt)

    async def mine(self, blocks: int = 1) -> None:
        """Mine so many blocks; the first takes what is in the pool."""
        await self.rpc("anvil_mine", hex(blocks))

    async def set_automine(self, enabled: bool) -> None:
        """Mine each transaction at once, or none until `mine`."""
        await self.rpc("evm_setAutomine", enabled)

    async def raw_transaction(self, tx_hash: TxHash) -> bytes:
        """Give the signed bytes of a transaction: what `reorg` needs to mine the very same one elsewhere."""
        return _from_hex(await self.rpc("eth_getRawTransactionByHash", _to_hex(tx_hash)))

    async def reorg(self, depth: int, transactions: Sequence[tuple[bytes | Call, int]] = ()) -> None:
        """Replace the last `depth` blocks by as many others.

        What was in them is gone, also from the pool, unless it is in `transactions`: signed bytes (the same
        transaction, the same hash) or a call from `ADMIN` (a new one), each with the place of its new block from 0.
        """
        pairs = [
            (_to_hex(what) if isinstance(what, bytes) else _transaction(what, sender=ADMIN, gas=GAS), place)
            for what, place in transactions
        ]
        await self.rpc("anvil_reorg", depth, pairs)

    async def snapshot(self) -> str:
        """Remember the whole chain; give what `restore` needs to come back once."""
        return str(await self.rpc("evm_snapshot"))

    async def restore(self, snapshot: str) -> None:
        """Go back to a snapshot, as if nothing had happened since."""
        await self.rpc("evm_revert", snapshot)

    async def drop_transaction(self, tx_hash: TxHash) -> None:
        """Take a transaction out of the pool."""
        await self.rpc("anvil_dropTransaction", _to_hex(tx_hash))


async def deploy_system(chain: DevChain, *, factory: Literal["plain", "once"] = "plain") -> System:
    """Deploy factory, forwarder and batch; consumers of the `once` factory refuse a used bank reference.

    Both factories can emit the factory form of MintRequested (`request_mint_at_factory_call`).
    """
    deployed_at_block = await chain.head_number() + 1
    return System(
        factory=await chain.deploy("BasketFactory", "(bool)", factory == "once"),
        forwarder=await chain.deploy("KeystoneForwarder"),
        batch=await chain.deploy("Batch"),
        deployed_at_block=deployed_at_block,
    )


async def create_basket(
    chain: DevChain, factory: bytes, *, name: str | bytes, symbol: str | bytes, admin: bytes = ADMIN
) -> Basket:
    """Create a basket and read its addresses from the factory's own event."""
    receipt = await chain.transact(create_basket_call(factory, name=name, symbol=symbol, admin=admin))
    created = receipt.logs[-1]  # the factory speaks last
    return Basket(token=created.topics[3][12:], consumer=created.data[12:32])


async def next_basket(chain: DevChain, factory: bytes) -> Basket:
    """Give the addresses that the factory's next basket will have, for a batch that creates it and uses it."""
    token, consumer = await chain.ask(create_basket_call(factory, name="", symbol=""), "address", "address")
    return Basket(token=token, consumer=consumer)


async def request_mint(
    chain: DevChain,
    token: bytes,
    *,
    beneficiary: bytes,
    amount_wei: int,
    bank_reference: bytes,
    requester: bytes = ADMIN,
) -> Receipt:
    """Ask a basket's token for a mint, and return when the request is mined."""
    what = request_mint_call(token, beneficiary=beneficiary, amount_wei=amount_wei, bank_reference=bank_reference)
    return await chain.transact(what, sender=requester)


async def deliver(
    chain: DevChain,
    forwarder: bytes,
    receiver: bytes,
    *,
    workflow_id: bytes,
    execution_id: bytes,
    report: bytes,
    report_id: bytes = b"\x00\x01",
    gas: int = GAS,
) -> Receipt:
    """Deliver a report as CRE does; success means that ReportProcessed is there, whatever its result."""
    raw = raw_report(report, workflow_id=workflow_id, execution_id=execution_id, report_id=report_id)
    return await chain.transact(report_call(forwarder, receiver=receiver, raw=raw), sender=TRANSMITTER, gas=gas)


async def total_supply(chain: DevChain, token: bytes) -> int:
    """Give all that was minted and not burnt, in wei."""
    (supply,) = await chain.ask(call(token, "totalSupply()"), "uint256")
    return int(supply)


async def balance_of(chain: DevChain, token: bytes, account: bytes) -> int:
    """Give an account's tokens, in wei."""
    (balance,) = await chain.ask(call(token, "balanceOf(address)", account), "uint256")
    return int(balance)


def _argument_types(signature: str) -> list[str]:
    arguments = signature[signature.index("(") :]
    if arguments == "()":
        return []
    return [kind.to_type_str() for kind in cast("TupleType", parse(arguments)).components]


def _transaction(what: Call, *, sender: bytes, gas: int) -> dict[str, str]:
    # With gas stated the node does not estimate, so that what will revert is mined too.
    transaction = {"from": _to_hex(sender), "data": _to_hex(what.data), "gas": hex(gas)}
    return transaction if what.to is None else {**transaction, "to": _to_hex(what.to)}


def _receipt(answer: Mapping[str, Any]) -> Receipt:
    return Receipt(
        tx_hash=_from_hex(answer["transactionHash"]),
        block_number=int(answer["blockNumber"], 16),
        block_hash=_from_hex(answer["blockHash"]),
        succeeded=int(answer["status"], 16) == 1,
        created=_from_hex(answer["contractAddress"]) if answer["contractAddress"] else None,
        logs=tuple(
            Log(
                address=_from_hex(log["address"]),
                topics=tuple(_from_hex(topic) for topic in log["topics"]),
                data=_from_hex(log["data"]),
                index=int(log["logIndex"], 16),
            )
            for log in answer["logs"]
        ),
    )


def _to_hex(value: bytes) -> str:
    return "0x" + value.hex()


def _from_hex(value: str) -> bytes:
    return bytes.fromhex(value.removeprefix("0x"))
