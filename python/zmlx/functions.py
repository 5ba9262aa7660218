# zmlx/functions.py: `compile` and `rewrite` for trees of arrays, over the extension's lists.
"""Any function of arrays, rewritten with fused ops and replayed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import mlx.core as mx

from zmlx import _ext
from zmlx.patch import check_activations

Tree = TypeVar("Tree")


class _Array:
    """Stands where an array was in a tree's outline."""

    __slots__ = ()


_ARRAY = _Array()


def compile(
    fn: Callable[..., Any],
    patterns: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    exact: bool = False,
    activations: str = "exact",
) -> Callable[..., Any]:
    """A function that computes what `fn` computes, faster, as `mx.compile` does.

    Args:
        fn: takes and returns trees (lists, tuples, dicts) of arrays. Other leaves of its arguments
            must be hashable: they are constants of the trace. It must have no side effects, and
            arrays that it captures are constants.
        patterns: names of the patterns to use, by default all.
        exclude: names of patterns not to use.
        exact: round intermediate values where the unfused graph rounds them.
        activations: "int8" rounds what quantised weights are multiplied with, as for `patch`.

    `fn` is traced once for each structure, constants, shapes and dtypes of its arguments.

    Raises:
        TypeError: an argument that is neither a tree, nor an array, nor hashable.
        ValueError: `activations` is unknown, or "int8" where MLX's default device is a GPU.
    """
    check_activations("compile", activations)
    traces: dict[Hashable, tuple[Callable[[list[mx.array]], list[mx.array]], list[Any]]] = {}

    def trace(outline: Any) -> tuple[Callable[[list[mx.array]], list[mx.array]], list[Any]]:
        result: list[Any] = []

        def flat(arrays: list[mx.array]) -> list[mx.array]:
            args, kwargs = _fill(outline, arrays)
            outputs, made = _split(fn(*args, **kwargs))
            result[:] = [made]
            return outputs

        include, leave = list(patterns or []), list(exclude or [])
        return _ext.compile(flat, include, leave, exact, activations), result

    @functools.wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        arrays, outline = _split((args, kwargs))
        key = (_key(outline), tuple((tuple(a.shape), a.dtype) for a in arrays))
        if key not in traces:
            traces[key] = trace(outline)
        compiled, result = traces[key]
        outputs = compiled(arrays)
        return _fill(result[0], outputs)

    return call


def rewrite(arrays: Tree) -> Tree:
    """Rewrites the lazy graph below a tree of arrays, in place, and returns the tree.

    Every reference to an array of the graph sees its new inputs. Values stay what they were, but
    for rounding.
    """
    flat, outline = _split(arrays)
    return _fill(outline, _ext.rewrite(flat))


def _split(tree: Any) -> tuple[list[mx.array], Any]:
    """A tree's arrays in order, and its outline: the tree without them."""
    arrays: list[mx.array] = []

    def walk(node: Any) -> Any:
        if isinstance(node, mx.array):
            arrays.append(node)
            return _ARRAY
        if type(node) in (list, tuple):
            return type(node)(walk(child) for child in node)
        if isinstance(node, dict):
            return {name: walk(child) for name, child in node.items()}
        return node

    outline = walk(tree)
    return arrays, outline


def _fill(outline: Any, arrays: list[mx.array]) -> Any:
    """The tree of an outline and its arrays."""
    rest = iter(arrays)

    def walk(node: Any) -> Any:
        if node is _ARRAY:
            return next(rest)
        if type(node) in (list, tuple):
            return type(node)(walk(child) for child in node)
        if isinstance(node, dict):
            return {name: walk(child) for name, child in node.items()}
        return node

    return walk(outline)


def _key(outline: Any) -> Hashable:
    """Equal for equal outlines only: 1, 1.0 and True are three constants."""
    if type(outline) in (list, tuple):
        return (type(outline), tuple(_key(child) for child in outline))
    if isinstance(outline, dict):
        return (dict, tuple((name, _key(child)) for name, child in outline.items()))
    try:
        hash(outline)
    except TypeError as error:
        raise TypeError(
            "[compile] arguments must be trees of arrays and hashable constants but got "
            f"{type(outline).__name__}."
        ) from error
    return (type(outline), outline)
