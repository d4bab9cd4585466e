"""Expressions over the columns of a table, as recipes state them: `mag_r < 22 and class in ['star', 'qso']`.

Only what is listed here is computed; nothing of Python is reached: no attributes, no keywords, no other functions.
Values are NumPy arrays with one element per row; a comparison with NaN is false.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from deepdisc.errors import InputError, nearest

_BINARY: dict[type, Callable] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: np.true_divide,
    ast.FloorDiv: np.floor_divide,
    ast.Mod: np.mod,
    ast.Pow: np.float_power,  # 10 ** -2 is an error for NumPy's integers
    ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_,
}
_COMPARE: dict[type, Callable] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
FUNCTIONS: dict[str, Callable] = {
    name: getattr(np, name)
    for name in (
        "abs", "sqrt", "exp", "log", "log10", "sin", "cos", "arctan2", "hypot", "degrees", "radians", "minimum",
        "maximum", "where", "isnan", "isfinite",
    )
}  # fmt: skip
_CONSTANTS = {"true": np.True_, "false": np.False_, "nan": np.float64("nan")}
_QUOTED = re.compile(r"`([^`]+)`")


def evaluate(text: str, columns: Mapping[str, Any], label: str) -> np.ndarray:
    """Compute an expression for every row.

    Columns are called by their names, those that are no words of Python in backticks: `` `flux-r` / 2 ``. Of a column
    of vectors `name[2]` is the third element. There are + - * / // % **, comparisons (also chained), `in` and `not in`
    a list, and, or, not, & and | for bits, and the functions of `FUNCTIONS`.

    Args:
        text: the expression.
        columns: arrays or pandas columns, all of the same length.
        label: what states the expression, for messages.

    Returns:
        (rows,) array; a constant is repeated.

    Raises:
        InputError: it cannot be understood, names an unknown column, or compares numbers with text.
    """
    tree, quoted = _parse(text, label)
    with np.errstate(all="ignore"):
        try:
            value = _Evaluator(columns, quoted, text, label).visit(tree.body)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise InputError(f"{label}: cannot compute {text!r}: {error}") from error
    rows = next((len(columns[name]) for name in columns), 0)
    return np.array(np.broadcast_to(value, (rows,)))


def select(text: str | bool, columns: Mapping[str, Any], label: str) -> np.ndarray:
    """Compute a condition for every row, bool (rows,); `True` and `False` hold for all rows.

    Raises:
        InputError: as `evaluate`; or its value is neither true nor false.
    """
    value = evaluate(str(text), columns, label)
    if value.dtype.kind != "b":
        raise InputError(f"{label}: {text!r} is not a condition such as mag < 22; its values are {value.dtype} numbers")
    return value


def column_names(text: str, label: str) -> set[str]:
    """The columns that an expression needs.

    Raises:
        InputError: it cannot be understood.
    """
    tree, quoted = _parse(text, label)
    functions = {node.func for node in ast.walk(tree) if isinstance(node, ast.Call)}
    used = (node for node in ast.walk(tree) if isinstance(node, ast.Name) and node not in functions)
    return {quoted.get(node.id, node.id) for node in used} - {*_CONSTANTS, *map(str.title, _CONSTANTS), "NaN"}


def _parse(text: str, label: str) -> tuple[ast.Expression, dict[str, str]]:
    """The expression's tree, and which stand-in is which name in backticks."""
    quoted: dict[str, str] = {}

    def stand_in(match: re.Match) -> str:
        quoted[f"_column_{len(quoted)}"] = match.group(1)
        return f"_column_{len(quoted) - 1}"

    try:
        tree = ast.parse(_QUOTED.sub(stand_in, text.strip()), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = getattr(error, "msg", None) or type(error).__name__
        raise InputError(
            f"{label}: cannot understand {text!r}: {reason}; names with odd letters: `like-this`"
        ) from error
    return tree, quoted


class _Evaluator:
    def __init__(self, columns: Mapping[str, Any], quoted: Mapping[str, str], text: str, label: str):
        self.columns, self.quoted, self.text, self.label = columns, quoted, text, label

    def visit(self, node: ast.AST) -> Any:
        """Value of a node: an array (rows,) or a NumPy scalar."""
        method = getattr(self, f"visit_{type(node).__name__}", None)
        if method is None:
            raise InputError(
                f"{self.label}: {self.text!r} holds {ast.unparse(node)!r}, which is not allowed; use arithmetic, "
                f"comparisons, and/or/not, in, and the functions {', '.join(FUNCTIONS)}"
            )
        return method(node)

    def visit_Constant(self, node: ast.Constant) -> Any:  # noqa: N802  named after the node
        value = node.value
        if type(value) is int and -(2**63) <= value < 2**63:
            return np.int64(value)
        if type(value) is float:
            return np.float64(value)
        if type(value) in (bool, str):
            return np.bool_(value) if type(value) is bool else value
        raise InputError(f"{self.label}: {self.text!r}: {value!r:.40} is no number or text that can be used")

    def visit_Name(self, node: ast.Name) -> Any:  # noqa: N802
        name = self.quoted.get(node.id, node.id)
        if name in self.columns:
            return _array(self.columns[name])
        constant = _CONSTANTS.get(name.lower())
        if constant is not None:
            return constant
        close = nearest(name, [str(column) for column in self.columns])
        hint = f"; the nearest is {close!r}" if close else ""
        some = ", ".join(list(map(str, self.columns))[:12])
        raise InputError(f"{self.label}: there is no column {name!r} (there are {some}, ...){hint}")

    def visit_Subscript(self, node: ast.Subscript) -> Any:  # noqa: N802
        index = node.slice
        if not (isinstance(index, ast.Constant) and type(index.value) is int and isinstance(node.value, ast.Name)):
            raise InputError(f"{self.label}: {ast.unparse(node)!r}: give the number of an element, as in flux[2]")
        values = self.visit(node.value)
        stacked = np.stack(list(values)) if len(values) else np.zeros((0, index.value + 1))
        if stacked.ndim != 2 or not 0 <= index.value < stacked.shape[1]:
            raise InputError(f"{self.label}: {ast.unparse(node)!r}: the column has no element {index.value}")
        return stacked[:, index.value]

    def visit_UnaryOp(self, node: ast.UnaryOp) -> Any:  # noqa: N802
        value = self.visit(node.operand)
        if isinstance(node.op, ast.Not):
            return np.logical_not(value)
        return +value if isinstance(node.op, ast.UAdd) else ~value if isinstance(node.op, ast.Invert) else -value

    def visit_BinOp(self, node: ast.BinOp) -> Any:  # noqa: N802
        if type(node.op) not in _BINARY:
            raise InputError(f"{self.label}: {self.text!r}: {ast.unparse(node)!r} is not allowed")
        return _BINARY[type(node.op)](self.visit(node.left), self.visit(node.right))

    def visit_BoolOp(self, node: ast.BoolOp) -> Any:  # noqa: N802
        combine = np.logical_and if isinstance(node.op, ast.And) else np.logical_or
        value = self.visit(node.values[0])
        for other in node.values[1:]:
            value = combine(value, self.visit(other))
        return value

    def visit_Compare(self, node: ast.Compare) -> Any:  # noqa: N802
        left, result = self.visit(node.left), np.True_
        for op, right_node in zip(node.ops, node.comparators, strict=True):
            if isinstance(op, ast.In | ast.NotIn):
                inside = self._inside(left, right_node)
                result = result & (~inside if isinstance(op, ast.NotIn) else inside)
                continue
            if type(op) not in _COMPARE:
                raise InputError(f"{self.label}: {self.text!r}: `is` is not allowed; say == or isnan(...)")
            right = self.visit(right_node)
            self._check_alike(left, right)
            result = result & _COMPARE[type(op)](left, right)
            left = right
        return result

    def _inside(self, left: Any, node: ast.AST) -> np.ndarray:
        if not isinstance(node, ast.List | ast.Tuple | ast.Set) or not node.elts:
            raise InputError(f"{self.label}: {self.text!r}: after `in` give a list such as [3, 4]")
        inside = np.False_
        for item in node.elts:
            value = self.visit(item)
            self._check_alike(left, value)
            inside = inside | (left == value)
        return inside

    def _check_alike(self, left: Any, right: Any) -> None:
        """Numbers never equal text: a comparison of both would silently select nothing."""
        kinds = ["text" if _is_text(side) else "numbers" for side in (left, right)]
        if kinds[0] != kinds[1]:
            raise InputError(f"{self.label}: {self.text!r} compares {kinds[0]} with {kinds[1]}; quote 'text' only")

    def visit_Call(self, node: ast.Call) -> Any:  # noqa: N802
        name = node.func.id if isinstance(node.func, ast.Name) else ast.unparse(node.func)
        if name not in FUNCTIONS or node.keywords:
            raise InputError(f"{self.label}: no function {name!r}; there are {', '.join(FUNCTIONS)}")
        return FUNCTIONS[name](*(self.visit(argument) for argument in node.args))


def _array(values: Any) -> np.ndarray:
    array = np.asarray(values)
    # Text comes as objects, as fixed-width or as variable-width strings: one kind, without the blanks that FITS adds.
    if array.dtype.kind in "UT" or (array.dtype == object and len(array) and isinstance(array[0], str)):
        return np.array([value.strip() if isinstance(value, str) else "" for value in array.tolist()], object)
    return array


def _is_text(value: Any) -> bool:
    if isinstance(value, str):
        return True
    array = np.asarray(value)
    return array.dtype.kind in "UT" or (array.dtype == object and array.size > 0 and isinstance(array.flat[0], str))
