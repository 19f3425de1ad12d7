"""Which patches are taken: by their stored verdict, by a rule on their columns, or by name."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from msdask.errors import SpecError

__all__ = ["Keep", "kept"]

Keep: TypeAlias = "bool | str | Callable[[pd.DataFrame], Any] | pd.DataFrame | Mapping[str, Sequence[int]]"
"""True: patches whose verdict `keep` is True; False: all. A rule on the columns, as text ("tissue > 0.9 and contrast >=
0.1") or as a function from the table to bools. Or rows: a table with the columns slide_id and row, such as
`PatchSet.table` gives, or slide id -> rows."""

_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.In: lambda values, found: np.isin(values, found),
    ast.NotIn: lambda values, found: ~np.isin(values, found),
}
_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_EXAMPLE = "such as 'tissue > 0.9 and contrast >= 0.1 and split != \"test\"'"


def kept(keep: Keep, table: pd.DataFrame) -> NDArray[np.bool_]:
    """Which rows of a table of patches are taken.

    Parameters
    ----------
    keep : what to take
    table : a row a patch, with slide_id, row, keep and whatever else is known

    Returns
    -------
    taken : (patches,) bool

    Raises
    ------
    SpecError
        The rule cannot be read, or asks for a column that there is not; or a function gives something else than a bool
        a patch. Names that no patch has are not looked at here: other sets may have them.

    Examples
    --------
    >>> table = pd.DataFrame({"slide_id": ["a", "a", "b"], "row": [0, 1, 0], "tissue": [0.8, 1.0, 0.9]})
    >>> kept("tissue >= 0.9 and slide_id in ['a', 'c']", table).tolist()
    [False, True, False]
    >>> kept({"a": [0], "b": [0]}, table).tolist()
    [True, False, True]
    """
    if isinstance(keep, bool):
        return table["keep"].to_numpy(bool) if keep else np.ones(len(table), bool)
    if isinstance(keep, str):
        return _by_text(keep, table)
    if isinstance(keep, (pd.DataFrame, Mapping)):
        return _by_rows(keep, table)
    if not callable(keep):
        raise SpecError(f"keep={keep!r}: expected True, False, a rule {_EXAMPLE}, a function of the table, or rows")
    return _bools(keep(table), table, "the function")


def _by_rows(keep: pd.DataFrame | Mapping[str, Sequence[int]], table: pd.DataFrame) -> NDArray[np.bool_]:
    if isinstance(keep, pd.DataFrame):
        if missing := [name for name in ("slide_id", "row") if name not in keep]:
            raise SpecError(
                f"keep=...: the table lacks {missing}; expected slide_id and row, as PatchSet.table has them"
            )
        keep = {str(slide_id): rows.tolist() for slide_id, rows in keep.groupby("slide_id")["row"]}
    taken = np.zeros(len(table), bool)
    ids, rows = table["slide_id"].to_numpy(object), table["row"].to_numpy()
    for slide_id, chosen in keep.items():
        mine = np.flatnonzero(ids == slide_id)
        taken[mine] = np.isin(rows[mine], np.asarray(chosen))
    return taken


def _by_text(rule: str, table: pd.DataFrame) -> NDArray[np.bool_]:
    try:
        tree = ast.parse(rule.strip(), mode="eval")
    except SyntaxError as error:
        raise SpecError(f"keep={rule!r} cannot be read: {error.msg}; expected a rule {_EXAMPLE}") from error
    try:
        value = _value(tree.body, rule, table)
    except TypeError as error:
        raise SpecError(f"keep={rule!r}: text and numbers are compared: {error}") from error
    return _bools(value, table, f"{rule!r}")


def _bools(value: Any, table: pd.DataFrame, what: str) -> NDArray[np.bool_]:
    found = np.asarray(value)
    if found.dtype != np.bool_ or found.shape not in ((), (len(table),)):
        raise SpecError(
            f"keep=...: {what} gives {found.dtype} of shape {found.shape}; expected a bool for each of "
            f"{len(table)} patches"
        )
    return np.broadcast_to(found, len(table)).copy()


def _value(node: ast.expr, rule: str, table: pd.DataFrame) -> Any:
    """The value of a part of a rule: a column, a constant, or what is made of them; nothing is called."""

    def of(part: ast.expr) -> Any:
        return _value(part, rule, table)

    if isinstance(node, ast.Name):
        if node.id not in table:
            raise SpecError(f"keep={rule!r}: no column {node.id!r}; there are {list(table)}")
        return table[node.id].to_numpy()
    if isinstance(node, ast.Constant) and isinstance(node.value, (bool, int, float, str)):
        return node.value
    if isinstance(node, (ast.List, ast.Tuple)):
        return [of(part) for part in node.elts]
    if isinstance(node, ast.BoolOp):
        combine = np.logical_and if isinstance(node.op, ast.And) else np.logical_or
        return combine.reduce([np.broadcast_to(of(part), len(table)) for part in node.values])
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return np.logical_not(of(node.operand))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -of(node.operand)
    if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
        return _ARITHMETIC[type(node.op)](of(node.left), of(node.right))
    if isinstance(node, ast.Compare) and all(type(op) in _COMPARISONS for op in node.ops):
        values = [of(part) for part in (node.left, *node.comparators)]
        pairs = zip(node.ops, values, values[1:], strict=False)
        return np.logical_and.reduce([_COMPARISONS[type(op)](a, b) for op, a, b in pairs])
    part = ast.unparse(node)
    raise SpecError(f"keep={rule!r}: {part!r} is not understood; expected a rule on columns {_EXAMPLE}")
