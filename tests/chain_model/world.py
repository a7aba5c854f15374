"""The world around the daemon: a chain that grows, forks and becomes final, and the endpoints that tell of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Final, TypeAlias

from tests.chain_model.chain import (
    NOISES,
    ROLE_EVENTS,
    Ask,
    ChangeRole,
    CreateBasket,
    Garble,
    Noise,
    OnEven,
    Transaction,
    Wish,
    digest,
    genesis,
    mine,
    user,
)
from tests.chain_model.faults import SILENT, Fault
from tests.chain_model.profiles import ETHEREUM, Profile
from tests.chain_model.rpc import HonestNode, View
from tests.chain_model.server import Endpoint

CHAIN_ID: Final = 31337
ETHER: Final = 10**18

KINDS: Final = (
    "create",
    "create_again",
    "create_and_ask",
    "create_with_roles",
    "change_role",
    "ask_token",
    "ask_token",
    "ask_factory",
    "ask_twice",
    "ask_stranger",
    "ask_shifted",
    "ask_on_even",
    "garble",
    "noise",
    *["again"] * 8,
)
"""What may be ordered of a block; ``again`` mines a transaction that no block of this branch holds."""

Order: TypeAlias = tuple[str, int, int]
"""One transaction: a kind, and two small numbers that vary it."""

_NAMES: Final = (b"Dollar", b"\xff\xfe\x00", "\u202eolleH".encode(), b"")
_AMOUNTS: Final = (0, 1, ETHER, 2**256 - 1, 10**14, 3 * ETHER, ETHER, ETHER)


class World:
    """One chain and its endpoints.

    ``floor`` is the number of the highest block that anybody may have taken for final, by the chain's word or by a lie
    about it; no reorg goes below it, for what follows then is that the daemon stops.
    """

    def __init__(self, profile: Profile = ETHEREUM) -> None:
        self.genesis = genesis(profile)
        self.blocks_by_hash = {self.genesis.hash: self.genesis}
        self.transactions: dict[bytes, Transaction] = {}
        self.view = View(chain_id=CHAIN_ID, head=self.genesis)
        self.finalized = -1
        self.floor = 0
        self.endpoints: tuple[Endpoint, ...] = ()
        self.liar = 0
        self._count = 0

    def next_number(self) -> int:
        """One that was not given before."""
        self._count += 1
        return self._count

    # -- endpoints ------------------------------------------------------------------------------------------------

    def open_endpoints(self, number: int, liar: int, injected: Counter[Fault]) -> None:
        """Serve the chain ``number`` times; one endpoint may lie in ways that no single answer shows.

        Two that lie alike cannot be told from the truth, so there is one.
        """
        node = HonestNode(self.view, self.blocks_by_hash)
        self.endpoints = tuple(Endpoint(node, place=place, injected=injected) for place in range(number))
        self.liar = liar % number

    def fail(self, place: int, fault: Fault, *, times: int, seed: int) -> None:
        """Let an endpoint begin to fail."""
        place = self.liar if fault in SILENT else place % len(self.endpoints)
        self.endpoints[place].fail(fault, times=times, seed=seed)

    def heal(self) -> None:
        for endpoint in self.endpoints:
            endpoint.heal()

    def note_lies(self) -> None:
        """Before a question: what may be taken for final by its answer."""
        if any(Fault.FINALITY_TOO_EARLY in endpoint.faults for endpoint in self.endpoints):
            self.floor = max(self.floor, self.view.head.number)

    @property
    def is_lied_to(self) -> bool:
        """Whether an endpoint may lie silently at the next question."""
        return any(SILENT & endpoint.faults.keys() for endpoint in self.endpoints)

    # -- the chain ------------------------------------------------------------------------------------------------

    def grow(self, orders: Sequence[Order]) -> None:
        """Mine a block on the head."""
        mined = {transaction.hash for block in self.view.head.branch() for transaction in block.transactions}
        waiting = {tx_hash: each for tx_hash, each in self.transactions.items() if tx_hash not in mined}
        self.mine([self._transaction(waiting, *order) for order in orders])

    def mine(self, transactions: Sequence[Transaction]) -> None:
        """Mine exactly these."""
        block = mine(self.view.head, transactions, salt=self.next_number())
        self.transactions |= {transaction.hash: transaction for transaction in transactions}
        self.blocks_by_hash[block.hash] = block
        self.view.head = block

    def steal(self, a: int, b: int) -> None:
        """Mine a request, and in the block before it somebody else's copy of its reference, or a look-alike of it."""
        number = self.next_number()
        owners = Ask(
            ordinal=a % 3,
            form="token",
            requester=user(a),
            beneficiary=user(2 + b % 2),
            amount=ETHER,
            reference=f"Bank {number}-{a}".encode().ljust(32, b"\0"),
        )
        spelled = (f"Bank {number}-{a}", f"BANK{number}{a}", f"bank-{number} {a}")[b % 3]
        copy = replace(owners, requester=user(5), beneficiary=user(5), reference=spelled.encode().ljust(32, b"\0"))
        for name, wish in (("copy", copy), ("owner", owners)):
            self.mine([Transaction(hash=digest("tx", name, number), wishes=(wish,))])

    def reorganise(self, depth: int, branch: Sequence[Sequence[Order]]) -> None:
        """Another branch takes over; what the old one held waits to be mined again, replaced, or lost."""
        ancestor = self.view.head
        while depth and ancestor.number > self.floor and ancestor.parent is not None:
            ancestor, depth = ancestor.parent, depth - 1
        if ancestor is not self.view.head:
            self.view.head = ancestor
            for orders in branch:
                self.grow(orders)
            self._leave_tags()

    def flip(self, choice: int) -> None:
        """Any block that was ever mined above the floor is the head now: A→B→A, a shorter chain, a step back."""
        final = self.view.head.at(self.floor)
        living = [block for block in self.blocks_by_hash.values() if final and block.descends_from(final)]
        self.view.head = living[choice % len(living)]
        self._leave_tags()

    def become_final(self, number: int, safe: int) -> None:
        """Finality goes on by so many blocks, and safety as many before it."""
        head = self.view.head
        self.finalized = min(max(self.finalized, 0) + number, head.number)
        self.floor = max(self.floor, self.finalized)
        self.view.finalized = head.at(self.finalized)
        self.view.safe = head.at(min(self.finalized + safe, head.number))

    def _leave_tags(self) -> None:
        """``safe`` may be left by a reorg, ``finalized`` never is."""
        head, safe = self.view.head, self.view.safe
        if safe is not None and not head.descends_from(safe):
            self.view.safe = self.view.finalized

    def _transaction(self, waiting: dict[bytes, Transaction], kind: str, a: int, b: int) -> Transaction:
        number = self.next_number()
        if kind == "again" and waiting:
            # The newest are those that the last reorg threw out.
            again = waiting.pop(list(waiting)[-1 - a % len(waiting)])
            if b < 6:  # the same transaction elsewhere
                return again
            # Replaced by its sender: another hash, the same wish (hard case 99).
            return Transaction(hash=digest("tx", "replaced", again.hash, number), wishes=again.wishes)
        return Transaction(hash=digest("tx", number), wishes=tuple(self._wishes(kind, a, b)))

    def _wishes(self, kind: str, a: int, b: int) -> list[Wish]:  # noqa: C901, PLR0911, PLR0912 - a table of kinds
        create = CreateBasket(name=_NAMES[b % 4], symbol=b"USD" * (b + 1))
        ask = Ask(
            ordinal=a % 3,
            form="token",
            requester=user(a),
            beneficiary=user(2 + b % 2),
            amount=_AMOUNTS[b],
            reference=self._reference(a, b),
        )
        of_factory = replace(ask, form="factory")
        change = ChangeRole(ordinal=a % 3, event=list(ROLE_EVENTS)[b % 5])
        baskets = len(self.view.head.consumer_by_token)
        match kind:
            case "create":
                return [create]
            case "create_again":
                return [replace(create, again=True)]
            case "create_and_ask":
                return [create, replace(ask, ordinal=baskets)]
            case "create_with_roles":
                born = replace(change, ordinal=baskets)
                return [born, create, born, change, replace(ask, ordinal=baskets)]
            case "change_role":
                return [change]
            case "ask_factory":
                return [of_factory]
            case "ask_twice":
                return [ask, ask]
            case "ask_stranger":
                return [replace(of_factory, ordinal=99)]
            case "ask_shifted":
                return [OnEven(wish=Noise(kind="transfer")), OnEven(wish=of_factory), ask]
            case "ask_on_even":
                return [OnEven(wish=ask)]
            case "garble":
                return [Garble(ordinal=a, event=("BasketCreated", "MintRequested", "MintRoleRevoked")[b % 3])]
            case "noise":
                return [Noise(kind=NOISES[a % len(NOISES)])]
            case _:
                return [ask]

    def _reference(self, a: int, b: int) -> bytes:
        if b < 2:  # a deposit that several ask for
            return f"deposit-{a % 3}".encode().ljust(32, b"\0")
        number = self.next_number()
        return digest("reference", number) if b < 4 else f"bank-{number}".encode().ljust(32, b"\0")
