"""Mutants of a SQL statement: each is one edit of its text that Postgres still understands.

A parameter that loses its only use has no type any more, and its statement would fail for that reason instead of ours:
so what an edit takes away stays in the text, where it decides nothing.
"""

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

STATEMENT = re.compile(r"\s*(SELECT|INSERT|UPDATE|DELETE|WITH)\b")

_TOKEN = re.compile(r"'[^']*'|\$\d+|[A-Za-z_][\w.]*|\d+|::\w+|=>|<=|>=|<>|\S")
_BEFORE = frozenset({"WHERE", "AND", "OR", "ON", "WHEN"})  # what a condition may follow
_AFTER = frozenset(
    "AND OR AS , WHERE FROM GROUP ORDER LIMIT FOR RETURNING UNION THEN ELSE JOIN LEFT CROSS".split()  # noqa: SIM905 - words
)
_OPENS_AN_OPERAND = _BEFORE | {"SELECT", ",", "THEN", "ELSE", "BY"}
_CLOCK = re.compile(r"\s*(clock|statement)_timestamp\(\)")
_SWAPS = {
    "<": "<=",
    "<=": "<",
    ">": ">=",
    ">=": ">",
    "+": "-",
    "-": "+",
    "greatest": "least",
    "least": "greatest",
    "FIRST": "LAST",
    "DISTINCT": "",
    "'day'": "'hour'",
    "'UTC'": "'Asia/Tokyo'",
}
_LOCK = re.compile(r"FOR UPDATE( OF \w+)?( SKIP LOCKED)?")
_SKIP_LOCKED = re.compile(r" SKIP LOCKED")
_NULL_TEST = re.compile(r"IS (NOT )?NULL")
_TARGET = re.compile(r"(?:UPDATE|INSERT INTO) (\w+)(?: AS)?(?: (?!SET\b)([a-z]\w*))?")


class Edit(NamedTuple):
    """Replace ``text[start:end]``."""

    start: int
    end: int
    replacement: str

    def applied(self, text: str) -> str:
        return text[: self.start] + self.replacement + text[self.end :]


class _Token(NamedTuple):
    text: str
    start: int
    end: int
    group: int  # the parenthesis or CASE that it stands in, by the number of that


def edits(text: str) -> list[Edit]:
    """All edits of a statement, in the order of the text."""
    tokens = _tokens(text)
    conditions = [*_conditions(tokens)]
    found = {
        *(_without(text, start, end, neutral) for start, end, neutral in conditions),
        *_swapped(text, tokens),
        *_unlocked(text),
        *_descending(text, tokens),
        *_unassigned(text, tokens),
    }
    for match in _NULL_TEST.finditer(text):
        if not any(start <= match.start() < end for start, end, _ in conditions):
            found.add(Edit(match.start(), match.end(), "IS NULL" if match[1] else "IS NOT NULL"))
    return sorted(found)


def _tokens(text: str) -> list[_Token]:
    tokens, groups, opened = [], [0], 0
    for match in _TOKEN.finditer(text):
        if match[0] in {")", "END"}:
            groups.pop()
        tokens.append(_Token(match[0], match.start(), match.end(), groups[-1]))
        if match[0] in {"(", "CASE"}:
            opened += 1
            groups.append(opened)
    return tokens


def _conditions(tokens: list[_Token]) -> Iterator[tuple[int, int, str]]:
    """Where each condition starts and ends, and what it has to be so that it decides nothing."""
    for at, token in enumerate(tokens):
        if token.text not in _BEFORE or tokens[at + 1].text == "CONFLICT":
            continue
        neutral = "FALSE" if token.text == "OR" else "TRUE"
        if token.text in {"AND", "OR"} and (first := _first_of_operand(tokens, at)) is not None:
            yield tokens[first].start, tokens[at - 1].end, neutral
        last = _last_of_operand(tokens, at + 1)
        follower = tokens[last + 1].text if last + 1 < len(tokens) else ""
        if token.text not in {"AND", "OR"} and follower in {"AND", "OR"}:
            continue  # the connective itself speaks of its left side
        yield tokens[at + 1].start, tokens[last].end, neutral


def _first_of_operand(tokens: list[_Token], connective: int) -> int | None:
    """Of the operand at the left of a connective, unless that was the right one of an earlier connective."""
    group = tokens[connective].group
    for at in range(connective - 1, -1, -1):
        opens_group = tokens[at].text in {"(", "CASE"} and tokens[at].group != group and tokens[at + 1].group == group
        if opens_group or (tokens[at].group == group and tokens[at].text in _OPENS_AN_OPERAND):
            return None if tokens[at].text in {"AND", "OR"} else at + 1
    return None


def _last_of_operand(tokens: list[_Token], first: int) -> int:
    # A parenthesis belongs to the group around it.
    group = tokens[first].group
    for at in range(first + 1, len(tokens)):
        if tokens[at].group < group or (tokens[at].group == group and tokens[at].text in _AFTER):
            return at - 1
    return len(tokens) - 1


def _without(text: str, start: int, end: int, neutral: str) -> Edit:
    connective = "OR" if neutral == "TRUE" else "AND"
    return Edit(start, end, f"(({text[start:end]}) {connective} {neutral})")


def _swapped(text: str, tokens: list[_Token]) -> Iterator[Edit]:
    for before, token in pairwise(tokens):
        word = token.text
        if word[0] in "<>" and _CLOCK.match(text, token.end):
            continue  # no test can make an instant equal to the clock's
        if before.text == "LIMIT" and word[0] == "$":
            yield Edit(token.start, token.end, f"{word} + 1")
        elif word in _SWAPS:
            yield Edit(token.start, token.end, _SWAPS[word])
        elif word.isdigit():
            yield Edit(token.start, token.end, str(int(word) + 1))
        elif word[0] == "'":
            number = re.match(r"'(\d+) ", word)
            yield Edit(
                token.start, token.end, f"'{int(number[1]) + 1} {word[number.end() :]}" if number else "'nothing'"
            )


def _unlocked(text: str) -> Iterator[Edit]:
    for lock in (_LOCK, _SKIP_LOCKED):
        yield from (Edit(match.start(), match.end(), "") for match in lock.finditer(text))


def _descending(text: str, tokens: list[_Token]) -> Iterator[Edit]:
    """The keys of each ORDER BY, one at a time the other way round."""
    for at, (order, by) in enumerate(pairwise(tokens)):
        if (order.text, by.text) != ("ORDER", "BY"):
            continue
        for token, follower in pairwise([*tokens[at + 2 :], _Token(")", len(text), len(text), -1)]):
            ends = follower.group < order.group or follower.text in {"LIMIT", "FOR", "ON"}
            if (
                token.group == order.group
                and (ends or follower.text in {",", "NULLS"})
                and token.text not in {"FIRST", "LAST", "DESC"}
            ):
                yield Edit(token.end, token.end, " DESC")
            if ends:
                break


def _unassigned(text: str, tokens: list[_Token]) -> Iterator[Edit]:
    """Each column of a SET left as it was."""
    for at, token in enumerate(tokens):
        if token.text != "SET":
            continue
        # ON CONFLICT DO UPDATE names no table: it is that of the INSERT.
        *_, target = (match for match in _TARGET.finditer(text, 0, token.start) if match[1] != "SET")
        first = at + 1
        while True:
            column, last = tokens[first], _end_of_assignment(tokens, first)
            start, end = tokens[first + 2].start, tokens[last].end
            kept = f"{target[2] or target[1]}.{column.text}"
            yield Edit(start, end, f"CASE WHEN FALSE THEN {text[start:end]} ELSE {kept} END")
            if last + 1 == len(tokens) or tokens[last + 1].text != ",":
                break
            first = last + 2


def _end_of_assignment(tokens: list[_Token], first: int) -> int:
    group = tokens[first].group
    for at in range(first, len(tokens)):
        if tokens[at].group < group or (
            tokens[at].group == group and tokens[at].text in {",", "WHERE", "FROM", "RETURNING"}
        ):
            return at - 1
    return len(tokens) - 1
