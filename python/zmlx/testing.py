# zmlx/testing.py: a kernel against a reference on random inputs.
"""`assert_matches` and `assert_gradient_matches`, for tests of one's own kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx

Function = Callable[..., Any]


def assert_matches(
    kernel_fn: Function,
    ref_fn: Function,
    shapes: Sequence[tuple[int, ...]],
    *,
    dtypes: Sequence[mx.Dtype] | None = None,
    atol: float = 1e-5,
    rtol: float = 1e-5,
    n_inputs: int = 1,
    seed: int = 42,
) -> None:
    """Checks that two functions of `n_inputs` arrays agree on normally distributed inputs.

    Results may be arrays or tuples of them; NaN and infinities must be in the same places.

    Args:
        shapes: of the inputs, one case each; all inputs of a case have one shape.
        dtypes: of the inputs, by default float32.
        atol, rtol: the largest difference is atol + rtol * |reference|.
        seed: of the inputs.

    Raises:
        AssertionError: with the shape, dtype and largest difference of the first case that fails.
    """
    for shape in shapes:
        for dtype in dtypes or [mx.float32]:
            inputs = _normal(shape, dtype, n_inputs, seed)
            _compare("value", shape, dtype, kernel_fn(*inputs), ref_fn(*inputs), atol, rtol)


def assert_gradient_matches(
    kernel_fn: Function,
    ref_fn: Function,
    shapes: Sequence[tuple[int, ...]],
    *,
    dtypes: Sequence[mx.Dtype] | None = None,
    atol: float = 1e-4,
    rtol: float = 1e-4,
    n_inputs: int = 1,
    seed: int = 42,
) -> None:
    """assert_matches for the gradients, in all inputs, of the sum of a result's elements.

    The elements are weighted at random: in a plain sum, mistakes of one sign and the other cancel.
    """
    places = list(range(n_inputs))

    def gradients(fn: Function, inputs: list[mx.array]) -> Any:
        def loss(*arrays: mx.array) -> mx.array:
            result = fn(*arrays).astype(mx.float32)
            return (result * mx.random.normal(result.shape, key=mx.random.key(seed))).sum()

        return mx.grad(loss, argnums=places)(*inputs)

    for shape in shapes:
        for dtype in dtypes or [mx.float32]:
            inputs = _normal(shape, dtype, n_inputs, seed)
            got, want = gradients(kernel_fn, inputs), gradients(ref_fn, inputs)
            _compare("gradient", shape, dtype, got, want, atol, rtol)


def _normal(shape: tuple[int, ...], dtype: mx.Dtype, count: int, seed: int) -> list[mx.array]:
    keys = mx.random.split(mx.random.key(seed), count)
    return [mx.random.normal(shape, key=key).astype(dtype) for key in keys]


def _compare(
    what: str,
    shape: tuple[int, ...],
    dtype: mx.Dtype,
    got: Any,
    want: Any,
    atol: float,
    rtol: float,
) -> None:
    case = f"for shape {shape} and {dtype}"
    gots, wants = ([x] if isinstance(x, mx.array) else list(x) for x in (got, want))
    if len(gots) != len(wants):
        raise AssertionError(f"{what}: {len(wants)} arrays expected {case} but got {len(gots)}.")
    for a, b in zip(gots, wants, strict=True):
        if a.shape != b.shape:
            raise AssertionError(f"{what}: shape {b.shape} expected {case} but got {a.shape}.")
        a, b = a.astype(mx.float32), b.astype(mx.float32)
        if not mx.allclose(a, b, rtol, atol, equal_nan=True).item():
            worst = mx.abs(a - b).max().item()
            raise AssertionError(
                f"{what}s differ by up to {worst:.3g} {case} (atol {atol}, rtol {rtol})."
            )


__all__ = ["assert_gradient_matches", "assert_matches"]
