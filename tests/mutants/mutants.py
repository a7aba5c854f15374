"""The mutants of a module: cosmic-ray's operators and ours, less what would be pointless."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.operators.provider import OperatorProvider

from tests.mutants.operators import OURS, Node, without_pointless

# Of cosmic-ray's operators those whose mutants are not killed by whatever kills another one: each comparison turned
# round and moved by one, each sum turned round.
_COSMIC_RAY: Final = (
    "AddNot",
    "ExceptionReplacer",
    "NumberReplacer",
    "RemoveDecorator",
    "ReplaceAndWithOr",
    "ReplaceBinaryOperator_Add_Sub",
    "ReplaceBinaryOperator_Div_Mul",
    "ReplaceBinaryOperator_Mul_Div",
    "ReplaceBinaryOperator_Sub_Add",
    "ReplaceComparisonOperator_Eq_NotEq",
    "ReplaceComparisonOperator_GtE_Gt",
    "ReplaceComparisonOperator_GtE_Lt",
    "ReplaceComparisonOperator_Gt_GtE",
    "ReplaceComparisonOperator_Gt_LtE",
    "ReplaceComparisonOperator_IsNot_Is",
    "ReplaceComparisonOperator_Is_IsNot",
    "ReplaceComparisonOperator_LtE_Gt",
    "ReplaceComparisonOperator_LtE_Lt",
    "ReplaceComparisonOperator_Lt_GtE",
    "ReplaceComparisonOperator_Lt_LtE",
    "ReplaceComparisonOperator_NotEq_Eq",
    "ReplaceFalseWithTrue",
    "ReplaceOrWithAnd",
    "ReplaceTrueWithFalse",
    "ReplaceUnaryOperator_Delete_Not",
    "ReplaceUnaryOperator_Delete_USub",
    "ZeroIterationForLoop",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """One change of a module; ``number`` is the same as long as the module and the operators are."""

    number: int
    operator: str
    line: int
    diff: str
    source: str


def mutants(module: Path) -> list[Mutant]:
    """All mutants of a module that compile, and that are neither pointless nor another one's twin."""
    source = module.read_text()
    seen, found = {_meaning(source)}, []
    for operator, line, changed in _changed(source):
        meaning = _meaning(changed)
        if meaning is None or meaning in seen:
            continue
        seen.add(meaning)
        found.append((line, operator, changed))
    found.sort(key=lambda each: each[0])
    return [
        Mutant(number=number, operator=operator, line=line, diff=_diff(source, changed), source=changed)
        for number, (line, operator, changed) in enumerate(found, start=1)
    ]


def _meaning(source: str) -> str | None:
    try:
        tree = ast.parse(source)
        compile(source, "mutant", "exec", dont_inherit=True)
    except (SyntaxError, ValueError):
        return None
    return ast.dump(without_pointless(tree))


def _changed(source: str) -> Iterator[tuple[str, int, str]]:
    provider = OperatorProvider()
    operators: list[tuple[str, Any]] = [(name, provider[name]()) for name in _COSMIC_RAY]
    operators += [(type(operator).__name__, operator) for operator in OURS]
    tree = get_ast(source)
    for name, operator in operators:
        for node in [*ast_nodes(tree)]:
            if node.parent is not None and node.parent.type == "parameters":
                continue  # cosmic-ray takes the star of keyword-only parameters for a product
            for index, (start, _) in enumerate([*operator.mutation_positions(node)]):
                yield name, start[0], _mutated(tree, node, operator, index)
                if tree.get_code() != source:
                    raise AssertionError(f"{name} left its mark in line {start[0]}")


def _mutated(tree: Node, node: Node, operator: Any, index: int) -> str:
    """The module's text with one change, which is then undone: to parse it for each mutant would take minutes."""
    inside = [*ast_nodes(node)]
    leaves = [(leaf, leaf.value, leaf.prefix) for leaf in inside if hasattr(leaf, "value")]
    branches = [(branch, [*branch.children]) for branch in (*inside, node.parent) if hasattr(branch, "children")]
    made = operator.mutate(node, index)
    if made is not node:
        siblings = node.parent.children
        at = next(at for at, sibling in enumerate(siblings) if sibling is node)
        siblings[at : at + 1] = [] if made is None else [made]
    code: str = tree.get_code()
    for branch, children in branches:
        branch.children = children
    for leaf, value, prefix in leaves:
        leaf.value, leaf.prefix = value, prefix
    return code


def _diff(before: str, after: str) -> str:
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=0)
    return "\n".join(line for line in lines if not line.startswith(("---", "+++", "@@")))
