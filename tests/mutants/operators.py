"""The changes that are made: a selection of cosmic-ray's, and two that it lacks."""

from collections.abc import Iterator, Sequence
from typing import Any

import parso
from cosmic_ray.operators.operator import Example, Operator

# An operator becomes one other, which keeps most results of a right type: a TypeError is noticed by any test.
_BINARY = {
    "Add": ("Sub",),
    "Sub": ("Add",),
    "Mul": ("Div",),
    "Div": ("Mul",),
    "FloorDiv": ("Mul",),
    "LShift": ("RShift",),
    "RShift": ("LShift",),
    "BitOr": ("BitAnd",),
    "BitAnd": ("BitOr",),
}
# A comparison becomes its opposite, and its neighbour: the boundary on the other side.
_COMPARISON = {
    "Eq": ("NotEq",),
    "NotEq": ("Eq",),
    "Lt": ("LtE", "GtE"),
    "LtE": ("Lt", "Gt"),
    "Gt": ("GtE", "LtE"),
    "GtE": ("Gt", "Lt"),
    "Is": ("IsNot",),
    "IsNot": ("Is",),
}
SELECTED = {
    *(f"core/ReplaceBinaryOperator_{old}_{new}" for old, others in _BINARY.items() for new in others),
    *(f"core/ReplaceComparisonOperator_{old}_{new}" for old, others in _COMPARISON.items() for new in others),
    "core/ReplaceUnaryOperator_USub_UAdd",
    "core/ReplaceUnaryOperator_Delete_Not",
    "core/AddNot",
    "core/ReplaceTrueWithFalse",
    "core/ReplaceFalseWithTrue",
    "core/ReplaceAndWithOr",
    "core/ReplaceOrWithAnd",
    "core/ReplaceBreakWithContinue",
    "core/ReplaceContinueWithBreak",
    "core/ExceptionReplacer",
    "core/NumberReplacer",
    "core/ZeroIterationForLoop",
    "own/RemoveStatement",
    "own/RemoveElement",
}


class RemoveStatement(Operator):  # type: ignore[misc]  # cosmic-ray has no types
    """Puts `pass` in the place of a call, an assignment to an attribute, or a `raise`.

    A local name that is never assigned is an error in itself, so those assignments stay.
    """

    def mutation_positions(self, node: Any) -> Iterator[tuple[Any, Any]]:
        if node.type != "simple_stmt" or parso.python.tree.search_ancestor(node, "funcdef") is None:
            return
        statement = node.children[0]
        local = statement.type == "expr_stmt" and statement.children[0].type != "atom_expr"
        augmented = local and statement.children[1].type == "operator" and statement.children[1].value != "="
        if statement.type in ("expr_stmt", "atom_expr", "raise_stmt") and (not local or augmented):
            yield statement.start_pos, statement.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        node.children[0] = parso.parse(node.children[0].get_first_leaf().prefix + "pass")
        return node

    @classmethod
    def examples(cls) -> Sequence[Example]:
        return (Example("def f():\n    close()\n", "def f():\n    pass\n"),)


class RemoveElement(Operator):  # type: ignore[misc]  # cosmic-ray has no types
    """Takes one alternative out of `in (A, B)` or `except (A, B)`."""

    def mutation_positions(self, node: Any) -> Iterator[tuple[Any, Any]]:
        for element in self._elements(node):
            yield element.start_pos, element.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        alternatives = node.children[-1].children[1]
        kept = [each.get_code() for each in alternatives.children[::2]]
        del kept[index]
        alternatives.children[:] = [parso.parse(", ".join(kept) + ",")]
        return node

    @staticmethod
    def _elements(node: Any) -> list[Any]:
        chooses = node.type == "except_clause" or (node.type == "comparison" and node.children[1] == "in")
        if not chooses or node.children[-1].type != "atom":
            return []
        inner = node.children[-1].children[1]
        return inner.children[::2] if inner.type == "testlist_comp" else []

    @classmethod
    def examples(cls) -> Sequence[Example]:
        return (Example("x in (A, B)", "x in (B,)"),)


OWN = {each.__name__: each for each in (RemoveStatement, RemoveElement)}
