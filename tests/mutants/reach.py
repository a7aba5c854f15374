"""Which functions a change of one of a module's lines can reach: only tests that call one of them are run.

What a change does in other modules is theirs to test.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import TypeAlias

Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef


class Reach:
    """A module's definitions and who names them."""

    def __init__(self, source: str) -> None:
        self._statements = ast.parse(source).body

    def definition(self, line: int) -> str:
        """What the top-level statement of a line defines."""
        return next((" ".join(_defines(each)) for each in self._statements if _spans(each, line)), "")

    def functions(self, line: int) -> frozenset[str] | None:
        """The functions that a change of this line changes, or ``None`` where that cannot be told."""
        for statement in self._statements:
            if _spans(statement, line):
                return self._reached(statement, frozenset()) or None
        return None

    def _reached(self, statement: ast.stmt, before: frozenset[str]) -> frozenset[str]:
        if isinstance(statement, Function):
            return frozenset({statement.name})
        reached: frozenset[str] = frozenset()
        for name in _defines(statement):
            if name in before:
                continue
            for user in self._statements:
                if user is statement or name not in _names(user):
                    continue
                reached |= self._reached(user, before | {name})
        return reached


def _spans(statement: ast.stmt, line: int) -> bool:
    decorators = getattr(statement, "decorator_list", [])
    first: int = min([statement.lineno, *(decorator.lineno for decorator in decorators)])
    return first <= line <= (statement.end_lineno or first)


def _defines(statement: ast.stmt) -> Iterator[str]:
    if isinstance(statement, Function | ast.ClassDef):
        yield statement.name
    elif isinstance(statement, ast.Assign | ast.AnnAssign):
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        yield from (target.id for target in targets if isinstance(target, ast.Name))


def _names(statement: ast.stmt) -> set[str]:
    return {node.id for node in ast.walk(statement) if isinstance(node, ast.Name)}
