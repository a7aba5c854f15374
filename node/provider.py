"""JSON-RPC over a bounded exchange, as a web3 provider.

web3's own ``AsyncHTTPProvider`` reads answers of any size, repeats refused requests on its own, logs the URL with the
account's key, and returns batches by position, so that a missing item shifts all that follow.

This module imports web3, which takes a second: import it only where a provider is made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeGuard

from web3.providers.async_base import AsyncJSONBaseProvider
from web3.types import RPCEndpoint, RPCRequest, RPCResponse

from node.exchange import AnswerUnreadable, HttpExchange


class BoundedHTTPProvider(AsyncJSONBaseProvider):
    """A web3 provider over ``exchange``; what the exchange raises passes through."""

    def __init__(self, exchange: HttpExchange) -> None:
        super().__init__()
        self._exchange = exchange

    async def make_request(self, method: str, params: object) -> RPCResponse:
        """Ask one question.

        Raises:
            AnswerUnreadable: Not the answer to this question.
        """
        request = self.form_request(RPCEndpoint(method), params)
        answer = await self._exchange.post(request)
        if not _answers(answer, request):
            raise AnswerUnreadable("not a JSON-RPC answer to this question")
        return answer

    async def make_batch_request(self, batch_requests: Sequence[tuple[str, object]]) -> list[RPCResponse] | RPCResponse:
        """Ask several questions at once; answers are paired by id, an unanswered one is ``{}`` (hard case 25).

        The single answer of an endpoint that refuses the batch as a whole is returned as it is.

        Raises:
            AnswerUnreadable: Not answers to these questions, or two to one of them.
        """
        requests = [self.form_request(RPCEndpoint(method), params) for method, params in batch_requests]
        answers = await self._exchange.post(requests)
        if _is_response(answers):
            return answers
        if not isinstance(answers, list):
            raise AnswerUnreadable("not a JSON-RPC answer to a batch")
        unanswered: dict[object, RPCRequest] = {request["id"]: request for request in requests}
        by_id: dict[object, RPCResponse] = {}
        for answer in answers:
            request = unanswered.pop(_id(answer), None)
            if request is None or not _answers(answer, request):
                raise AnswerUnreadable("a batch holds an answer to no question, or two to one")
            by_id[request["id"]] = answer
        return [by_id.get(request["id"], {}) for request in requests]

    async def disconnect(self) -> None:
        """Close the connections."""
        await self._exchange.close()


def _id(answer: object) -> object:
    number = answer.get("id") if isinstance(answer, Mapping) else None
    return number if type(number) is int else None  # True == 1, and an array is no key


def _is_response(answer: object) -> TypeGuard[RPCResponse]:
    # Some endpoints write both, one of them null.
    return isinstance(answer, dict) and ("result" in answer or isinstance(answer.get("error"), dict))


def _answers(answer: object, request: RPCRequest) -> TypeGuard[RPCResponse]:
    # An endpoint that could not even read the question answers an error with the id null.
    return _is_response(answer) and (_id(answer) == request["id"] or ("error" in answer and answer.get("id") is None))
