"""From a block range's logs to the rows that they mean.  Pure and total: a hostile log becomes a row with a reason.

Who is believed: ``BasketCreated`` from a configured factory only; ``MintRequested`` from a token that one of them
announced on this branch, or from a factory itself; ``MintExecuted`` from an announced consumer; ``ReportProcessed``
from the configured forwarder and for an announced consumer (hard case 37); a change of roles from an announced token,
unless the transaction that announced it made it: so it was born.  Logs are read in chain order, so that a
basket which is created and used in one block is known when it is used (hard case 35).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from datastore.identity import derive_nonce, request_identity
from datastore.mint_amount import predicted_for
from datastore.reference import expected_reference
from datastore.rows import Basket, LogRow, Mint, Report, Request, RoleChange
from indexer.decoding import (
    BasketCreatedEvent,
    EventCatalog,
    MintRequestedEvent,
    Undecodable,
    display_text,
)
from node.blocks import ByAddress, Log, LogFilter
from node.bloom import Guess

BASKET_CREATED = "BasketCreated"
MINT_REQUESTED = "MintRequested"
MINT_EXECUTED = "MintExecuted"
REPORT_PROCESSED = "ReportProcessed"

_FOREIGN: Final = Undecodable(reason="of unknown origin: counted, not kept")
_NO_BASKET: Final = Undecodable(reason="the stablecoin is no basket that was announced")
_ANNOUNCED: Final = Undecodable(reason="the stablecoin is a basket already")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Who is believed, and what nonces are derived from."""

    chain_id: int
    factory: bytes
    forwarder: bytes
    catalog: EventCatalog
    secret: bytes = field(repr=False)
    more_factories: frozenset[bytes] = frozenset()

    @property
    def factories(self) -> frozenset[bytes]:
        """All whose baskets are believed."""
        return self.more_factories | {self.factory}

    def filters(self) -> tuple[LogFilter, ...]:
        """What to ask a node for: by topic, so that baskets born in the asked blocks are found; filtered here."""
        catalog = self.catalog
        topics = (
            catalog.basket_created_topic0,
            *catalog.mint_requested_topics0,
            catalog.mint_executed_topic0,
            catalog.report_processed_topic0,
            *catalog.role_event_by_topic0,
        )
        return (LogFilter(topics=(topics,)),)

    def by_address(self, consumer_by_token: Mapping[bytes, bytes]) -> ByAddress:
        """The same as ``filters``, as far as it is kept, given these baskets; and those that the same blocks make."""

        def announced(logs: Sequence[Log]) -> Sequence[LogFilter]:
            created = [log for log in logs if log.topics[:1] == (self.catalog.basket_created_topic0,)]
            probe = Observation(self, consumer_by_token)
            probe.read(created, {})
            born = {basket.stablecoin: basket.consumer for basket in probe.observed.baskets}
            return self.filters_of(born)

        return ByAddress(filters=self.filters_by_address() + self.filters_of(consumer_by_token), announced=announced)

    def filters_by_address(self) -> tuple[LogFilter, ...]:
        """What to ask for where strangers emit too much: what is not the baskets' own, by who may say it."""
        catalog = self.catalog
        topics = (catalog.basket_created_topic0, *catalog.mint_requested_topics0, catalog.report_processed_topic0)
        return (LogFilter(addresses=(*sorted(self.factories), self.forwarder), topics=(topics,)),)

    def filters_of(self, consumer_by_token: Mapping[bytes, bytes]) -> tuple[LogFilter, ...]:
        """What to ask for beside ``filters_by_address``: the logs of these baskets; nothing if there are none."""
        addresses = tuple(dict.fromkeys((*consumer_by_token, *consumer_by_token.values())))
        catalog = self.catalog
        topics = (*catalog.mint_requested_topics0, catalog.mint_executed_topic0, *catalog.role_event_by_topic0)
        return (LogFilter(addresses=addresses, topics=(topics,)),) if addresses else ()

    def believed(self, consumer_by_token: Mapping[bytes, bytes]) -> tuple[LogFilter, ...]:
        """Whose logs matter, given these baskets: each part of one of ``filters``, for a block's bloom to deny.

        A basket that the block itself creates is in it by its ``BasketCreated``.
        """
        catalog = self.catalog
        found = [
            LogFilter(
                addresses=tuple(sorted(self.factories)),
                topics=((catalog.basket_created_topic0, *catalog.mint_requested_topics0),),
            )
        ]
        if consumer_by_token:
            tokens, consumers = tuple(consumer_by_token), tuple(set(consumer_by_token.values()))
            found += [
                LogFilter(addresses=tokens, topics=((*catalog.mint_requested_topics0, *catalog.role_event_by_topic0),)),
                LogFilter(addresses=consumers, topics=((catalog.mint_executed_topic0,),)),
                LogFilter(addresses=(self.forwarder,), topics=((catalog.report_processed_topic0,),)),
            ]
        return tuple(found)

    def guesses(self, consumer_by_token: Mapping[bytes, bytes]) -> tuple[Guess, ...]:
        """What no answer near the head may lack, each as narrow as it is known: crowded blooms admit what is wide.

        Changes of roles are no part of it: with many baskets, contracts of others have their topics in most blocks.
        A mint is part of it with the report that brings it.  What is left out the sweep after finality finds.
        """
        catalog, factories = self.catalog, tuple(sorted(self.factories))
        wanted = [LogFilter(addresses=factories, topics=((catalog.basket_created_topic0,),))]
        if catalog.requests_of_factory:
            wanted.append(LogFilter(addresses=factories, topics=(catalog.requests_of_factory,)))
        if not consumer_by_token:
            return tuple(Guess(wanted=each) for each in wanted)
        if catalog.requests_of_token:
            wanted.append(LogFilter(addresses=tuple(consumer_by_token), topics=(catalog.requests_of_token,)))
        consumers = tuple(set(consumer_by_token.values()))
        report = LogFilter(addresses=(self.forwarder,), topics=catalog.report_topics(consumers))
        mint = LogFilter(addresses=consumers, topics=((catalog.mint_executed_topic0,),))
        return (*(Guess(wanted=each) for each in (*wanted, report)), Guess(wanted=mint, beside=(report,)))


@dataclass(slots=True, kw_only=True)
class Observed:
    """The rows of some blocks; ``foreign`` counts logs of unknown origin by event, ``undecodable`` those kept raw."""

    logs: list[LogRow] = field(default_factory=list)
    baskets: list[Basket] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    mints: list[Mint] = field(default_factory=list)
    reports: list[Report] = field(default_factory=list)
    role_changes: list[RoleChange] = field(default_factory=list)
    foreign: Counter[str] = field(default_factory=Counter)
    undecodable: int = 0


class Observation:
    """Turns logs into rows, on top of the baskets that are canonical below them."""

    def __init__(self, sources: Sources, consumer_by_token: Mapping[bytes, bytes]) -> None:
        """Begin a branch.

        Args:
            sources: Who is believed.
            consumer_by_token: The baskets that were announced on this branch before the logs that will be read.
        """
        self._sources = sources
        self._factories = sources.factories
        self.consumer_by_token = dict(consumer_by_token)
        self._consumers = set(self.consumer_by_token.values())
        self.observed = Observed()
        catalog = sources.catalog
        # Functions and no bound methods: in a cycle, all the rows would stay until the next look for cycles.
        self._readers: dict[bytes, tuple[str, Callable[[Observation, Log], Undecodable | None]]] = {
            catalog.basket_created_topic0: (BASKET_CREATED, Observation._basket_created),
            catalog.mint_executed_topic0: (MINT_EXECUTED, Observation._mint_executed),
            catalog.report_processed_topic0: (REPORT_PROCESSED, Observation._report_processed),
            **dict.fromkeys(catalog.mint_requested_topics0, (MINT_REQUESTED, Observation._mint_requested)),
            **{topic0: (name, Observation._role_changed) for topic0, name in catalog.role_event_by_topic0.items()},
        }
        self._birth_by_token: dict[bytes, bytes] = {}
        # A request's rank counts the same logs of its transaction before it.
        self._ranks: dict[tuple[bytes, bytes, tuple[bytes, ...], bytes], int] = {}
        self._timestamp_by_block: Mapping[int, int] = {}

    def read(self, logs: Iterable[Log], timestamp_by_block: Mapping[int, int]) -> None:
        """Read what follows in chain order.

        Args:
            logs: As ``Sources.filters`` finds them.
            timestamp_by_block: The time of each block that holds one of them.
        """
        self._timestamp_by_block = timestamp_by_block
        observed = self.observed
        for log in logs:
            reader = self._readers.get(log.topics[0]) if log.topics else None
            if reader is None:
                continue
            event, read = reader
            verdict = read(self, log)
            if verdict is _FOREIGN:
                observed.foreign[event] += 1
                continue
            reason = None if verdict is None else verdict.reason
            observed.undecodable += reason is not None
            observed.logs.append(
                LogRow(
                    log.block_number,
                    log.block_hash,
                    log.log_index,
                    log.tx_hash,
                    log.tx_index,
                    log.address,
                    b"".join(log.topics),
                    log.data,
                    event,
                    reason,
                )
            )

    def _basket_created(self, log: Log) -> Undecodable | None:
        if log.address not in self._factories:
            return _FOREIGN
        event = self._sources.catalog.decode_basket_created(log.topics, log.data)
        if isinstance(event, Undecodable):
            return event
        return self._basket(log, event)

    def _mint_requested(self, log: Log) -> Undecodable | None:
        from_factory = log.address in self._factories
        if not from_factory and log.address not in self.consumer_by_token:
            return _FOREIGN
        event = self._sources.catalog.decode_mint_requested(log.topics, log.data, from_factory=from_factory)
        if isinstance(event, Undecodable):
            return event
        content = (log.tx_hash, log.address, log.topics, log.data)
        rank = self._ranks.get(content, 0)
        self._ranks[content] = rank + 1
        return self._request(log, event, rank)

    def _mint_executed(self, log: Log) -> Undecodable | None:
        if log.address not in self._consumers:
            return _FOREIGN
        event = self._sources.catalog.decode_mint_executed(log.topics, log.data)
        if isinstance(event, Undecodable):
            return event
        self.observed.mints.append(
            Mint(
                block_number=log.block_number,
                block_hash=log.block_hash,
                log_index=log.log_index,
                tx_hash=log.tx_hash,
                consumer=log.address,
                recipient=event.recipient,
                amount=event.amount,
                bank_reference=event.bank_reference,
            )
        )
        return None

    def _report_processed(self, log: Log) -> Undecodable | None:
        if log.address != self._sources.forwarder:
            return _FOREIGN
        event = self._sources.catalog.decode_report_processed(log.topics, log.data)
        if isinstance(event, Undecodable):
            return event
        if event.receiver not in self._consumers:
            return _FOREIGN
        self.observed.reports.append(
            Report(
                block_number=log.block_number,
                block_hash=log.block_hash,
                log_index=log.log_index,
                tx_hash=log.tx_hash,
                receiver=event.receiver,
                execution_id=event.execution_id,
                report_id=event.report_id,
                result=event.result,
            )
        )
        return None

    def _role_changed(self, log: Log) -> Undecodable | None:
        if log.address not in self.consumer_by_token or self._birth_by_token.get(log.address) == log.tx_hash:
            return _FOREIGN
        catalog = self._sources.catalog
        told = catalog.describe_role_event(log.topics, log.data)
        # Its name alone says that somebody else may rule the token now; what cannot be read is no reason to send.
        unread = f"{catalog.role_event_by_topic0[log.topics[0]]}, whose fields cannot be read"
        self.observed.role_changes.append(
            RoleChange(
                block_number=log.block_number,
                block_hash=log.block_hash,
                log_index=log.log_index,
                stablecoin=log.address,
                sentence=unread if isinstance(told, Undecodable) else told,
            )
        )
        return told if isinstance(told, Undecodable) else None

    def _basket(self, log: Log, event: BasketCreatedEvent) -> Undecodable | None:
        """Add the basket; or say why there is none: a token keeps the consumer that it was born with."""
        if event.stablecoin in self.consumer_by_token:
            return _ANNOUNCED
        self.consumer_by_token[event.stablecoin] = event.consumer
        self._birth_by_token[event.stablecoin] = log.tx_hash
        self._consumers.add(event.consumer)
        self.observed.baskets.append(
            Basket(
                block_number=log.block_number,
                block_hash=log.block_hash,
                log_index=log.log_index,
                stablecoin=event.stablecoin,
                consumer=event.consumer,
                creator=event.creator,
                admin=event.admin,
                name_raw=event.name,
                symbol_raw=event.symbol,
                name=display_text(event.name),
                symbol=display_text(event.symbol),
            )
        )
        return None

    def _request(self, log: Log, event: MintRequestedEvent, rank: int) -> Undecodable | None:
        """Add the request; or say why there is none, for a factory may name a token that it never announced."""
        stablecoin = log.address if event.stablecoin is None else event.stablecoin
        consumer = self.consumer_by_token.get(stablecoin)
        if consumer is None:
            return _NO_BASKET
        sources = self._sources
        identity = request_identity(
            chain_id=sources.chain_id,
            emitter=log.address,
            tx_hash=log.tx_hash,
            topic0=log.topics[0],
            topics=b"".join(log.topics),
            data=log.data,
            rank=rank,
        )
        nonce = derive_nonce(sources.secret, identity, 0)
        self.observed.requests.append(
            Request(  # by position, in the order of its fields: twice as fast
                identity,
                nonce,
                log.address,
                log.tx_hash,
                log.block_number,
                log.block_hash,
                self._timestamp_by_block[log.block_number],
                log.log_index,
                stablecoin,
                consumer,
                event.requester,
                event.beneficiary,
                event.amount,
                predicted_for(event.amount),
                event.bank_reference,
                expected_reference(event.bank_reference, nonce),
            )
        )
        return None
