"""Operators of our own, beside those of cosmic-ray: what is wrong in a table, a guard, a word or a statement.

An operator is asked for each node of the module's syntax tree how many mutants it makes of it, and then for each of
them to change the node in place.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, Protocol, TypeAlias

from tests.mutants import sql

Node: TypeAlias = Any  # of parso, which has no types
Position: TypeAlias = tuple[tuple[int, int], tuple[int, int]]
Change: TypeAlias = Callable[[], None]

_LITERAL: Final = re.compile(r"""(?P<prefix>r?)(?P<quotes>\"{3}|"|')(?P<text>.*)(?P=quotes)""", re.DOTALL)
_DISPLAYS: Final = frozenset({"testlist_comp", "dictorsetmaker"})
_PROSE: Final = re.compile(r"[A-Z].* .*[.:;] ?", re.DOTALL)


class Operator(Protocol):
    """What cosmic-ray's visitor asks of an operator."""

    def mutation_positions(self, node: Node) -> Iterator[Position]: ...

    def mutate(self, node: Node, index: int) -> Node: ...


class _InPlace:
    """An operator that lists the changes that it can make of a node."""

    def changes(self, node: Node) -> Sequence[Change]:
        raise NotImplementedError

    def mutation_positions(self, node: Node) -> Iterator[Position]:
        for _ in self.changes(node):
            yield node.start_pos, node.end_pos

    def mutate(self, node: Node, index: int) -> Node:
        self.changes(node)[index]()
        return node


def _set(node: Node, attribute: str, value: object) -> Change:
    return lambda: setattr(node, attribute, value)


class Sql(_InPlace):
    """A statement that asks less, asks the contrary, or leaves a column as it was (``tests.mutants.sql``)."""

    def changes(self, node: Node) -> Sequence[Change]:
        literal = _LITERAL.fullmatch(node.value) if node.type == "string" else None
        if literal is None or not sql.STATEMENT.match(literal["text"]):
            return []
        start, end = literal.span("text")
        return [
            _set(node, "value", node.value[:start] + edit.applied(literal["text"]) + node.value[end:])
            for edit in sql.edits(literal["text"])
        ]


class Word(_InPlace):
    """Another word.  Sentences that only people read are left alone, and so are statements."""

    def changes(self, node: Node) -> Sequence[Change]:
        literal = _LITERAL.fullmatch(node.value) if node.type == "string" else None
        if literal is None or sql.STATEMENT.match(literal["text"]) or _PROSE.fullmatch(literal["text"]):
            return []
        return [_set(node, "value", f"{node.value[: literal.start('text')]}~{node.value[literal.start('text') :]}")]


class Element(_InPlace):
    """A tuple, list or set without one of its elements; not a record, which is a tuple in another one."""

    def changes(self, node: Node) -> Sequence[Change]:
        if node.type not in _DISPLAYS or node.parent.parent.type in _DISPLAYS:
            return []
        elements, commas = node.children[::2], node.children[1::2]
        if not commas or any(comma.type != "operator" or comma.value != "," for comma in commas):
            return []
        return [
            _set(node, "children", [leaf for other in elements if other is not element for leaf in (other, commas[0])])
            for element in elements
        ]


class Operand(_InPlace):
    """A conjunction or disjunction without one of its operands."""

    def changes(self, node: Node) -> Sequence[Change]:
        if node.type not in {"and_test", "or_test"}:
            return []
        children = node.children
        return [
            _set(node, "children", children[2:] if at == 0 else children[: at - 1] + children[at + 1 :])
            for at in range(0, len(children), 2)
        ]


class Member(_InPlace):
    """The next member of those that the module names of the same enumeration."""

    def changes(self, node: Node) -> Sequence[Change]:
        if (named := _member(node)) is None:
            return []
        owner, name = named
        names = sorted({other for of, other in _members(node.get_root_node()) if of == owner})
        following = names[(names.index(name) + 1) % len(names)]
        return [_set(node.children[1].children[1], "value", following)] if following != name else []


def _member(node: Node) -> tuple[str, str] | None:
    if node.type not in {"atom_expr", "power"} or len(node.children) != 2:
        return None
    owner, trailer = node.children
    if owner.type != "name" or trailer.type != "trailer" or trailer.children[0].value != ".":
        return None
    name = trailer.children[1].value
    return (owner.value, name) if name.isupper() else None


def _members(node: Node) -> Iterator[tuple[str, str]]:
    if (named := _member(node)) is not None:
        yield named
    for child in getattr(node, "children", ()):
        yield from _members(child)


class Call(_InPlace):
    """A statement that only calls, left out."""

    def changes(self, node: Node) -> Sequence[Change]:
        if node.type != "simple_stmt" or node.children[0].type not in {"atom_expr", "power"}:
            return []
        first = node.children[0].get_first_leaf()

        def leave_out() -> None:
            first.value = "pass"
            node.children = [first, node.children[-1]]

        return [leave_out]


OURS: Final[tuple[Operator, ...]] = (Sql(), Word(), Element(), Operand(), Member(), Call())


def without_pointless(tree: ast.Module) -> ast.Module:
    """The module without what no test should depend on: annotations, docstrings, and how a data class is declared."""
    _Pointless().visit(tree)
    return tree


_CONTRARY: Final[dict[type[ast.cmpop], type[ast.cmpop]]] = {
    one: other
    for pair in ((ast.Eq, ast.NotEq), (ast.Is, ast.IsNot), (ast.Lt, ast.GtE), (ast.Gt, ast.LtE), (ast.In, ast.NotIn))
    for one, other in (pair, pair[::-1])
}


class _Pointless(ast.NodeTransformer):
    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST | None:
        if isinstance(node.annotation, ast.Name) and node.annotation.id == "TypeAlias":
            return None
        node.annotation = ast.Constant(value=None)
        return self.generic_visit(node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            return ast.Pass()
        return self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
        """What is denied twice, or by its operator, has a twin that says so."""
        denied = self.generic_visit(node)
        if not isinstance(denied, ast.UnaryOp) or not isinstance(denied.op, ast.Not):
            return denied
        match denied.operand:
            case ast.UnaryOp(op=ast.Not(), operand=inner):
                return inner
            case ast.Compare(left=left, ops=[operator], comparators=comparators):
                return ast.Compare(left=left, ops=[_CONTRARY[type(operator)]()], comparators=comparators)
            case _:
                return denied

    def visit_Call(self, node: ast.Call) -> ast.AST:
        if isinstance(node.func, ast.Name) and node.func.id == "dataclass":
            node.keywords = []
        return self.generic_visit(node)
