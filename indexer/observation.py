"""From a block range's logs to the rows that they mean.  Pure and total: a hostile log becomes a row with a reason.

Who is believed: ``BasketCreated`` from a configured factory only; ``MintRequested`` from a token that one of them
announced on this branch, or from a factory itself; ``MintExecuted`` from an announced consumer; ``ReportProcessed``
from the configured forwarder and for an announced consumer (hard case 37).  Logs are read in chain order, so that a
basket which is created and used in one block is known when it is used (hard case 35).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from datastore.identity import derive_nonce, request_identity
from datastore.mint_amount import amount_text, predicted_wei
from datastore.reference import expected_reference
from datastore.rows import Basket, LogRow, Mint, Report, Request
from indexer.decoding import (
    BasketCreatedEvent,
    EventCatalog,
    MintExecutedEvent,
    MintRequestedEvent,
    ReportProcessedEvent,
    Undecodable,
    display_text,
)
from node.blocks import Log, LogFilter

Decoded: TypeAlias = BasketCreatedEvent | MintRequestedEvent | MintExecutedEvent | ReportProcessedEvent | Undecodable

BASKET_CREATED = "BasketCreated"
MINT_REQUESTED = "MintRequested"
MINT_EXECUTED = "MintExecuted"
REPORT_PROCESSED = "ReportProcessed"


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
        topics = (catalog.basket_created_topic0, *catalog.mint_requested_topics0, catalog.mint_executed_topic0)
        return (
            LogFilter(topics=(topics,)),
            LogFilter(addresses=(self.forwarder,), topics=((catalog.report_processed_topic0,),)),
        )

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
                LogFilter(addresses=tokens, topics=(catalog.mint_requested_topics0,)),
                LogFilter(addresses=consumers, topics=((catalog.mint_executed_topic0,),)),
                LogFilter(addresses=(self.forwarder,), topics=((catalog.report_processed_topic0,),)),
            ]
        return tuple(found)


@dataclass(slots=True, kw_only=True)
class Observed:
    """The rows of some blocks; ``foreign`` counts logs of unknown origin by event, ``undecodable`` those kept raw."""

    logs: list[LogRow] = field(default_factory=list)
    baskets: list[Basket] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    mints: list[Mint] = field(default_factory=list)
    reports: list[Report] = field(default_factory=list)
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

    def read(self, logs: Iterable[Log], timestamp_by_block: Mapping[int, int]) -> None:
        """Read logs in chain order, whole transactions at a time (a request's rank counts within its transaction).

        Args:
            logs: As ``Sources.filters`` finds them.
            timestamp_by_block: The time of each block that holds one of them.
        """
        ranks: Counter[tuple[bytes, bytes, tuple[bytes, ...], bytes]] = Counter()
        for log in logs:
            event, decoded = self._decode(log)
            if event is None:
                continue
            reason: str | None = None
            match decoded:
                case Undecodable():
                    reason = decoded.reason
                case BasketCreatedEvent():
                    reason = self._basket(log, decoded)
                case MintRequestedEvent():
                    content = (log.tx_hash, log.address, log.topics, log.data)
                    reason = self._request(log, decoded, ranks[content], timestamp_by_block[log.block_number])
                    ranks[content] += 1
                case MintExecutedEvent():
                    self.observed.mints.append(
                        Mint(
                            block_number=log.block_number,
                            block_hash=log.block_hash,
                            log_index=log.log_index,
                            tx_hash=log.tx_hash,
                            consumer=log.address,
                            recipient=decoded.recipient,
                            amount=decoded.amount,
                            bank_reference=decoded.bank_reference,
                        )
                    )
                case ReportProcessedEvent():
                    if decoded.receiver not in self._consumers:
                        self.observed.foreign[event] += 1
                        continue
                    self._report(log, decoded)
            self._raw(log, event, reason)

    def _decode(
        self, log: Log
    ) -> tuple[
        str | None,
        BasketCreatedEvent | MintRequestedEvent | MintExecutedEvent | ReportProcessedEvent | Undecodable | None,
    ]:
        """The event and its values, or ``(None, None)`` for a log of unknown origin, which is counted."""
        catalog, sources = self._sources.catalog, self._sources
        topic0 = log.topics[0] if log.topics else b""
        if topic0 == catalog.basket_created_topic0:
            if log.address in self._factories:
                return BASKET_CREATED, catalog.decode_basket_created(log.topics, log.data)
            self.observed.foreign[BASKET_CREATED] += 1
        elif topic0 in catalog.mint_requested_topics0:
            of_factory = log.address in self._factories
            if of_factory or log.address in self.consumer_by_token:
                return MINT_REQUESTED, catalog.decode_mint_requested(log.topics, log.data, from_factory=of_factory)
            self.observed.foreign[MINT_REQUESTED] += 1
        elif topic0 == catalog.mint_executed_topic0:
            if log.address in self._consumers:
                return MINT_EXECUTED, catalog.decode_mint_executed(log.topics, log.data)
            self.observed.foreign[MINT_EXECUTED] += 1
        elif topic0 == catalog.report_processed_topic0 and log.address == sources.forwarder:
            return REPORT_PROCESSED, catalog.decode_report_processed(log.topics, log.data)
        return None, None

    def _raw(self, log: Log, event: str, reason: str | None) -> None:
        self.observed.undecodable += reason is not None
        self.observed.logs.append(
            LogRow(
                block_number=log.block_number,
                block_hash=log.block_hash,
                log_index=log.log_index,
                tx_hash=log.tx_hash,
                tx_index=log.tx_index,
                address=log.address,
                topics=b"".join(log.topics),
                data=log.data,
                event=event,
                undecodable=reason,
            )
        )

    def _basket(self, log: Log, event: BasketCreatedEvent) -> str | None:
        """Add the basket; or say why there is none: a token keeps the consumer that it was born with."""
        if event.stablecoin in self.consumer_by_token:
            return "the stablecoin is a basket already"
        self.consumer_by_token[event.stablecoin] = event.consumer
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

    def _request(self, log: Log, event: MintRequestedEvent, rank: int, timestamp: int) -> str | None:
        """Add the request; or say why there is none, for a factory may name a token that it never announced."""
        stablecoin = log.address if event.stablecoin is None else event.stablecoin
        consumer = self.consumer_by_token.get(stablecoin)
        if consumer is None:
            return "the stablecoin is no basket that was announced"
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
            Request(
                identity=identity,
                nonce=nonce,
                emitter=log.address,
                tx_hash=log.tx_hash,
                block_number=log.block_number,
                block_hash=log.block_hash,
                block_timestamp=timestamp,
                log_index=log.log_index,
                stablecoin=stablecoin,
                consumer=consumer,
                requester=event.requester,
                beneficiary=event.beneficiary,
                amount=event.amount,
                predicted_amount=predicted_wei(amount_text(event.amount)),
                bank_reference=event.bank_reference,
                expected_reference=expected_reference(event.bank_reference, nonce),
            )
        )
        return None

    def _report(self, log: Log, event: ReportProcessedEvent) -> None:
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
