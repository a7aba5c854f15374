"""What can go wrong between a caller and CRE, on request.

A fault strikes a call that has passed every check of the gateway, at the moment of forwarding, so that it never hides a
mistake of the caller, and a refusal by the checks never uses one up.  Each is built from three choices: is the
request forwarded, does it run, and what comes back.
"""

import random
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from service.demo.cre_stand_in.protocol import (
    CONFLICT,
    HTTP_STATUS,
    INTERNAL,
    LIMIT_EXCEEDED,
    OVERLOADED,
    Reply,
    error_reply,
    in_flight,
)

GIGANTIC_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Answer:
    """Send what this makes of the request id and of the right reply (which is None when nothing was forwarded)."""

    make: Callable[[str, Reply | None], Reply]


@dataclass(frozen=True, slots=True)
class CloseSocket:
    """Close the connection without a byte of an answer."""


@dataclass(frozen=True, slots=True)
class CutShort:
    """Promise the whole answer in the headers, send half of it and close the connection."""


@dataclass(frozen=True, slots=True)
class StaySilent:
    """Keep the connection open and say nothing until the stand-in stops."""


Ending: TypeAlias = Answer | CloseSocket | CutShort | StaySilent


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing that goes wrong.

    `forwards`: the nodes get the request.  `runs`: the nodes that accept it also run it.  `sticks`: the gateway keeps
    the id as in flight, so that a retry meets 409 until the id is reaped after 10 minutes (cre.md §2.3).
    """

    name: str
    ending: Ending
    forwards: bool
    runs: bool = True
    sticks: bool = False
    delay_seconds: float = 0


def _fixed(reply: Reply) -> Answer:
    return Answer(lambda _request_id, _right: reply)


def _as_it_should_be(_request_id: str, right: Reply | None) -> Reply:
    if right is None:
        raise ValueError("only a forwarded request has a right reply")
    return right


def _html(status: int, title: str) -> Reply:
    return Reply(status=status, body=f"<html><h1>{title}</h1></html>".encode(), content_type="text/html")


def refuse(status: int, code: int, message: str, *, forwards: bool = False) -> Fault:
    """Answer with a JSON-RPC error; status 200 imitates an error that the nodes agreed on."""
    return Fault(
        name="refuse",
        ending=Answer(lambda request_id, _right: error_reply(request_id, code, message, status=status)),
        forwards=forwards,
    )


def time_out(*, sticks: bool = False) -> Fault:
    """Accept, run, and never answer."""
    return Fault(name="time_out", ending=StaySilent(), forwards=True, sticks=sticks)


def drop_before_forwarding() -> Fault:
    """Close the connection; nobody heard of the request."""
    return Fault(name="drop_before_forwarding", ending=CloseSocket(), forwards=False)


def answer_lost(*, sticks: bool = False) -> Fault:
    """Accept, run, and close the connection instead of answering."""
    return Fault(name="answer_lost", ending=CloseSocket(), forwards=True, sticks=sticks)


def answer_cut_short() -> Fault:
    """Accept, run, and lose the connection in the middle of the answer."""
    return Fault(name="answer_cut_short", ending=CutShort(), forwards=True)


def accept_then_drop() -> Fault:
    """Answer ACCEPTED and never run."""
    return Fault(name="accept_then_drop", ending=Answer(_as_it_should_be), forwards=True, runs=False)


def conflict() -> Fault:
    """Answer 409, as if the first call were still in flight."""
    return Fault(
        name="conflict",
        ending=Answer(
            lambda request_id, _right: error_reply(
                request_id, CONFLICT, in_flight(request_id).message, status=HTTP_STATUS[CONFLICT]
            )
        ),
        forwards=False,
    )


def too_many_requests() -> Fault:
    """Answer 429 -32002; nothing is forwarded."""
    return Fault(
        name="too_many_requests",
        ending=refuse(HTTP_STATUS[LIMIT_EXCEEDED], LIMIT_EXCEEDED, "rate limit exceeded").ending,
        forwards=False,
    )


def internal_error(*, forwards: bool = False) -> Fault:
    """Answer 500 -32603."""
    message = "Internal server error occurred while processing the request"
    return Fault(name="internal_error", ending=refuse(500, INTERNAL, message).ending, forwards=forwards)


def bad_gateway(*, forwards: bool = False) -> Fault:
    """Answer 502 with the HTML page of something that stands in front of the gateway."""
    return Fault(name="bad_gateway", ending=_fixed(_html(502, "502 Bad Gateway")), forwards=forwards)


def unavailable(*, forwards: bool = False) -> Fault:
    """Answer 503 in plain text, as Go's own timeout handler does."""
    reply = Reply(status=503, body=b"Request timed out", content_type="text/plain")
    return Fault(name="unavailable", ending=_fixed(reply), forwards=forwards)


def handler_timeout(*, forwards: bool = True, sticks: bool = True) -> Fault:
    """Answer 504 -32000: the quorum did not answer in time, but some nodes may run the request."""
    message = "handler timeout: context deadline exceeded"
    return Fault(
        name="handler_timeout", ending=refuse(504, OVERLOADED, message).ending, forwards=forwards, sticks=sticks
    )


def html_page(*, forwards: bool = True) -> Fault:
    """Answer 200 with somebody's HTML page."""
    return Fault(name="html_page", ending=_fixed(_html(200, "Welcome")), forwards=forwards)


def truncated_json() -> Fault:
    """Accept, run, and answer with the first half of the JSON text."""

    def half(request_id: str, right: Reply | None) -> Reply:
        body = _as_it_should_be(request_id, right).body
        return Reply(status=200, body=body[: len(body) // 2])

    return Fault(name="truncated_json", ending=Answer(half), forwards=True)


def foreign_id() -> Fault:
    """Accept, run, and answer with somebody else's request id."""

    def foreign(request_id: str, right: Reply | None) -> Reply:
        body = _as_it_should_be(request_id, right).body
        return Reply(status=200, body=body.replace(request_id.encode(), request_id[::-1].encode() + b"x"))

    return Fault(name="foreign_id", ending=Answer(foreign), forwards=True)


def gigantic_body(*, forwards: bool = True) -> Fault:
    """Answer 200 with four megabytes."""
    return Fault(name="gigantic_body", ending=_fixed(Reply(status=200, body=b" " * GIGANTIC_BYTES)), forwards=forwards)


def redirect(location: str = "/elsewhere", *, forwards: bool = False) -> Fault:
    """Answer 307, which a careless client follows with the same body and token."""
    reply = Reply(status=307, headers={"Location": location})
    return Fault(name="redirect", ending=_fixed(reply), forwards=forwards)


def slow_answer(seconds: float) -> Fault:
    """Accept and run at once, answer ACCEPTED only after so many seconds on the stand-in's clock."""
    return Fault(name="slow_answer", ending=Answer(_as_it_should_be), forwards=True, delay_seconds=seconds)


FAULTS: Mapping[str, Callable[..., Fault]] = {
    make.__name__: make
    for make in (
        refuse,
        time_out,
        drop_before_forwarding,
        answer_lost,
        answer_cut_short,
        accept_then_drop,
        conflict,
        too_many_requests,
        internal_error,
        bad_gateway,
        unavailable,
        handler_timeout,
        html_page,
        truncated_json,
        foreign_id,
        gigantic_body,
        redirect,
        slow_answer,
    )
}


class FaultPlan:
    """Which call meets which fault: first the plan of its id, then the next in line, then chance."""

    def __init__(self) -> None:
        self._by_request: defaultdict[str, deque[Fault]] = defaultdict(deque)
        self._next: deque[Fault] = deque()
        self._chances: list[tuple[Fault, float]] = []
        self._random = random.Random(0)  # noqa: S311 - a repeatable plan, not a secret

    def next(self, *faults: Fault, count: int = 1) -> None:
        """Let the next calls meet these faults in order, the whole list `count` times."""
        self._next.extend(faults * count)

    def for_request(self, request_id: str, *faults: Fault) -> None:
        """Let the next calls with this id meet these faults in order."""
        self._by_request[request_id].extend(faults)

    def at_random(self, chances: Mapping[Fault, float], *, seed: int) -> None:
        """Let every call that no plan covers meet each fault with its probability; the sum is at most 1."""
        if sum(chances.values()) > 1 or any(chance < 0 for chance in chances.values()):
            raise ValueError(f"chances must be positive and sum to at most 1, got {sorted(chances.values())}")
        self._chances = list(chances.items())
        self._random = random.Random(seed)  # noqa: S311 - a repeatable plan, not a secret

    def clear(self) -> None:
        """Let everything go well from now on."""
        self._by_request.clear()
        self._next.clear()
        self._chances = []

    def take(self, request_id: str) -> Fault | None:
        """Take the fault that the next call with this id meets, if any."""
        if planned := self._by_request.get(request_id):
            return planned.popleft()
        if self._next:
            return self._next.popleft()
        drawn = self._random.random() if self._chances else 1.0
        for fault, chance in self._chances:
            if drawn < chance:
                return fault
            drawn -= chance
        return None
