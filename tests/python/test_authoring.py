"""Kernels written as expressions, against MLX and float64."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import zmlx
from zmlx import _ext, autograd

TOLERANCE = {mx.float32: 2e-5, mx.float16: 3e-3, mx.bfloat16: 2.4e-2}
UNARY = {
    "exp": np.exp,
    "tanh": np.tanh,
    "sin": np.sin,
    "cos": np.cos,
    "abs": np.abs,
    "floor": np.floor,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "expm1": np.expm1,
}


class Bounded:
    """A float64 value, and a bound of what float32 arithmetic may be off by on the way to it."""

    def __init__(self, value, error=0.0):
        self.value, self.error = value, error

    @staticmethod
    def of(x) -> Bounded:
        return x if isinstance(x, Bounded) else Bounded(np.float64(x))

    @staticmethod
    def rounded(value, error) -> Bounded:
        return Bounded(value, error + 2.0**-22 * np.abs(value))

    def __add__(self, other):
        other = Bounded.of(other)
        return Bounded.rounded(self.value + other.value, self.error + other.error)

    def __sub__(self, other):
        return self + -1 * Bounded.of(other)

    def __mul__(self, other):
        other = Bounded.of(other)
        error = np.abs(self.value) * other.error + np.abs(other.value) * self.error
        return Bounded.rounded(self.value * other.value, error + self.error * other.error)

    __radd__, __rmul__ = __add__, __mul__

    def __rsub__(self, other):
        return Bounded.of(other) - self

    @staticmethod
    def unary(name: str):
        """The function of that name: monotonic, or as sin, cos and abs of slope 1 at most."""
        function = UNARY[name]

        def apply(x) -> Bounded:
            x = Bounded.of(x)
            value = function(x.value)
            if name in ("sin", "cos", "abs"):
                return Bounded.rounded(value, x.error)
            ends = (function(x.value - x.error), function(x.value + x.error))
            return Bounded.rounded(value, np.maximum(*(np.abs(end - value) for end in ends)))

        return apply


def normal(*shape: int, dtype: mx.Dtype = mx.float32, seed: int = 0) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(seed)).astype(dtype)


def close(got: mx.array, want, tolerance: float = 2e-5) -> bool:
    return np.allclose(np.array(got.astype(mx.float32)), np.array(want), tolerance, tolerance)


def expressions() -> st.SearchStrategy[str]:
    def longer(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        return st.one_of(
            st.tuples(st.sampled_from(sorted(UNARY)), inner).map(lambda t: f"{t[0]}({t[1]})"),
            st.tuples(inner, st.sampled_from("+-*"), inner).map(
                lambda t: f"({t[0]} {t[1]} {t[2]})"
            ),
        )

    return st.recursive(st.sampled_from(["a", "b", "0.5", "2"]), longer, max_leaves=5)


@settings(max_examples=12, deadline=None)
@given(expressions())
def test_random_expressions_agree_with_float64(expression):
    a, b = normal(7, 1, seed=1), normal(1, 33, seed=2)
    names = {name: Bounded.unary(name) for name in UNARY}
    names |= {"a": Bounded(np.array(a, np.float64)), "b": Bounded(np.array(b, np.float64))}
    with np.errstate(all="ignore"):
        exact = Bounded.of(eval(expression, names))
    want, error = np.broadcast_to(exact.value, (7, 33)), np.broadcast_to(exact.error, (7, 33))
    got = np.array(
        zmlx.elementwise(expression, inputs=("a", "b"))(a, b).astype(mx.float32), np.float64
    )
    # Where float32 itself may be off by more, the expression is ill-conditioned.
    fair = np.isfinite(want) & (np.abs(want) < 1e30) & (error <= 1e-5 * (1 + np.abs(want)))
    assert np.allclose(got[fair], want[fair], 2e-5, 2e-5)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_floating_dtypes_keep_their_dtype_and_compute_in_float32(dtype):
    x = normal(3, 31, dtype=dtype)
    got = zmlx.elementwise("x * sigmoid(x)")(x)
    wide = x.astype(mx.float32)
    assert got.dtype == dtype
    assert close(got, wide * mx.sigmoid(wide), TOLERANCE[dtype])


@pytest.mark.parametrize(
    ("dtypes", "expression", "want"),
    [
        ((mx.int32, mx.int32), "a + b", mx.int32),
        ((mx.int32, mx.int32), "a / b", mx.float32),
        ((mx.float16, mx.bfloat16), "a + b", mx.float32),
        ((mx.float16, mx.int32), "a * b", mx.float16),
        ((mx.uint8, mx.int8), "a + b", mx.int16),
        ((mx.float32, mx.float32), "a < b", mx.bool_),
    ],
)
def test_results_have_the_dtype_that_mlx_gives(dtypes, expression, want):
    a, b = mx.array([1, 2, 3]).astype(dtypes[0]), mx.array([3, 2, 1]).astype(dtypes[1])
    got = zmlx.elementwise(expression, inputs=("a", "b"))(a, b)
    plain = eval(expression)
    assert got.dtype == plain.dtype == want
    assert close(got, plain.astype(mx.float32), 3e-3)


@pytest.mark.parametrize(
    "shape", [(), (0,), (1,), (31,), (32,), (33,), (0, 4), (3, 0, 2), (40961,)]
)
def test_shapes_empty_and_large(shape):
    x = normal(*shape)
    got = zmlx.elementwise("2 * x + 1")(x)
    assert got.shape == shape
    assert close(got, 2 * x + 1)


def strided() -> list[mx.array]:
    x = normal(6, 8, 10)
    return [
        x.transpose(2, 0, 1),
        x[:, ::2, 1:],
        x[::-1],
        mx.broadcast_to(x[:, :1], (6, 5, 10)),
        x[0].T,
    ]


@pytest.mark.parametrize("which", range(5))
def test_strided_inputs_are_read_in_place(which):
    x = strided()[which]
    y = mx.contiguous(x) * 2
    f = zmlx.elementwise("a - b * c", inputs=("a", "b", "c"))
    assert close(f(x, y, x[..., :1]), x - y * x[..., :1])


def test_many_blocks_of_a_transposed_array():
    x = normal(301, 257).T
    assert close(zmlx.elementwise("x + 1")(x), x + 1)


def test_nan_and_infinities_stay():
    x = mx.array([math.nan, math.inf, -math.inf, 0.0, -0.0, 100.0, -100.0])
    wide = np.array(x, np.float64)
    for name in ("exp", "tanh", "sigmoid", "expm1"):
        with np.errstate(all="ignore"):
            want = UNARY[name](wide).astype(np.float32)
        got = np.array(zmlx.elementwise(f"{name}(x)")(x))
        assert np.allclose(got, want, 2e-5, 1e-38, equal_nan=True)
    y = zmlx.elementwise("max(x, 1)")(x)
    assert math.isnan(y[0].item())
    assert zmlx.elementwise("softplus(x)")(mx.array(1000.0)).item() == 1000.0


def test_first_and_second_derivatives():
    f = zmlx.elementwise("x * tanh(log(1 + exp(x)))")

    def plain(x):
        return x * mx.tanh(mx.log(1 + mx.exp(x)))

    def slope(g):
        return mx.grad(lambda x: g(x).sum())

    x = normal(4, 9)
    assert close(slope(f)(x), slope(plain)(x))
    assert close(slope(slope(f))(x), slope(slope(plain))(x), 1e-4)


def test_gradients_of_broadcast_inputs_are_summed():
    f = zmlx.elementwise("a * exp(b) + c", inputs=("a", "b", "c"))
    inputs = [normal(4, 5), normal(5, seed=1), normal(4, 1, seed=2)]
    got = mx.grad(lambda *v: f(*v).sum(), argnums=(0, 1, 2))(*inputs)
    want = mx.grad(lambda a, b, c: (a * mx.exp(b) + c).sum(), argnums=(0, 1, 2))(*inputs)
    assert [g.shape for g in got] == [(4, 5), (5,), (4, 1)]
    assert all(close(g, w) for g, w in zip(got, want, strict=True))


def test_a_given_gradient_is_used_with_prelude_and_result():
    f = zmlx.elementwise("exp(x)", grad_expr="3 * t", grad_prelude="float t = g * y;")
    x = normal(5)
    assert close(mx.grad(lambda v: f(v).sum())(x), 3 * mx.exp(x))
    assert close(mx.grad(lambda v: mx.grad(lambda u: f(u).sum())(v).sum())(x), 9 * mx.exp(x))


def test_a_given_gradient_of_two_inputs():
    f = autograd.binary_from_expr(
        name="weighted", fwd_expr="a * b", vjp_lhs_expr="g * b", vjp_rhs_expr="2 * g * a"
    )
    a, b = normal(3, 4), normal(4, seed=1)
    got = mx.grad(lambda *v: f(*v).sum(), argnums=(0, 1))(a, b)
    assert close(got[0], mx.broadcast_to(b, a.shape))
    assert close(got[1], 2 * a.sum(0))


def test_given_gradients_of_three_inputs():
    f = autograd.nary_from_expr(
        name="axpy",
        fwd_expr="a * x + b",
        input_names=["a", "x", "b"],
        vjp_exprs=["t * x", "t * a", "5 * t"],
        vjp_prelude="float t = 2 * g;",
    )
    a, x, b = normal(3, 1), normal(3, 4, seed=1), normal(4, seed=2)
    assert close(f(a, x, b), a * x + b)
    got = mx.grad(lambda *v: f(*v).sum(), argnums=(0, 1, 2))(a, x, b)
    assert close(got[0], 2 * x.sum(1, keepdims=True))
    assert close(got[1], mx.broadcast_to(2 * a, (3, 4)))
    assert close(got[2], mx.full((4,), 30.0))
    message = r"\[f\] vjp_exprs must have one gradient for each of 2 inputs but got 1"
    with pytest.raises(ValueError, match=message):
        autograd.nary_from_expr(name="f", fwd_expr="a", input_names="ab", vjp_exprs=["g"])
    with pytest.raises(ValueError, match=r"\[f\] 'g' has a meaning in gradients"):
        autograd.nary_from_expr(name="f", fwd_expr="g", input_names="g", vjp_exprs=["g"])


def test_jvp_vmap_and_compile():
    f = zmlx.elementwise("a * sin(b)", inputs=("a", "b"))

    def plain(a, b):
        return a * mx.sin(b)

    a, b = normal(3, 4), normal(4, seed=1)
    tangents = [mx.ones_like(a), 2 * mx.ones_like(b)]
    assert close(mx.jvp(f, [a, b], tangents)[1][0], mx.jvp(plain, [a, b], tangents)[1][0])
    for axes, other in (((0, None), b), ((1, None), b[:3]), ((None, 0), b)):
        got, want = (mx.vmap(g, in_axes=axes)(a, other) for g in (f, plain))
        assert close(got, want)
    assert close(mx.compile(lambda a, b: f(a, b) + 1)(a, b), plain(a, b) + 1)


def test_a_new_shape_or_number_compiles_nothing():
    f = zmlx.elementwise("a * b + 0.125", inputs=("a", "b"))
    mx.eval(f(normal(3), 0.5))
    count = _ext.jit_compile_count()
    mx.eval(f(normal(5, 7), 0.25), f(normal(7, 5).T, -1.0), f(normal(2, 1), 3.0))
    assert _ext.jit_compile_count() == count


def test_numbers_do_not_widen():
    f = zmlx.elementwise("a * b", inputs=("a", "b"))
    assert f(normal(3, dtype=mx.float16), 0.1).dtype == mx.float16
    assert f(mx.array([1, 2]), 2).dtype == mx.int32


def test_the_module_keeps_its_functions():
    assert close(
        zmlx.elementwise.unary(name="s", expr="x * x", compute_dtype=mx.float32)(mx.array(3.0)), 9
    )
    two = zmlx.elementwise.binary(name="d", expr="a - b", compute_dtype=mx.float32)
    assert two(mx.array([5.0]), mx.array([[2.0], [3.0]])).tolist() == [[3.0], [2.0]]
    three = zmlx.elementwise.map(
        name="m", expr="p * q + r", input_names=["p", "q", "r"], compute_dtype=mx.float32
    )
    assert three(mx.array(2.0), mx.array(3.0), mx.array(4.0)).item() == 10


def test_header_functions_and_metal_spellings():
    f = zmlx.elementwise(
        "metal::exp(cube(T(x)))",
        header="inline float cube(float v) { float s = v * v; return s * v; }",
    )
    assert close(f(mx.array(0.5)), math.exp(0.125))


def test_without_a_compiler_kernels_run_as_plain_mlx_and_say_so_once():
    script = """
import mlx.core as mx, zmlx
from zmlx import _ext
mx.set_default_device(mx.cpu)  # a GPU's kernels need no C++ compiler
f, x = zmlx.elementwise("x * sigmoid(x)"), mx.array([1.0, -2.0])
y = f(x)
assert mx.allclose(y, x * mx.sigmoid(x)).item()
assert mx.allclose(f(2 * x), 2 * x * mx.sigmoid(2 * x)).item()
assert mx.allclose(zmlx.map_reduce("x * x", "max", 0)(x), mx.array(4.0)).item()
assert mx.grad(zmlx.map_reduce("x * x"))(x).tolist() == [2, -4]
assert _ext.jit_compile_count() == 0
"""
    env = {**os.environ, "ZMLX_CXX": "/nowhere/c++"}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("there is no C++ compiler (set ZMLX_CXX)") == 1


def test_sources_are_the_same_each_time():
    texts = {zmlx.elementwise("x * x + 1").source() for _ in range(2)}
    assert len(texts) == 1
    assert "zmlx_run" in texts.pop()
    assert "__global__" in zmlx.elementwise("x * x + 1").source("cuda")
    assert "thread_position_in_grid" in zmlx.elementwise("x * x + 1").source("metal")


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        (
            "x * sigmod(x)",
            r"unknown name 'sigmod'; did you mean 'sigmoid'\?\n  x \* sigmod\(x\)\n      \^",
        ),
        ("x +", r"expected a value but got the end:\n  x \+\n     \^"),
        ("pow(x)", r"pow takes 2 arguments but got 1:\n  pow\(x\)\n  \^"),
        ("(x", r"expected '\)' but got the end"),
        ("", "expected an expression"),
    ],
)
def test_wrong_text_is_shown_with_a_caret(expression, message):
    with pytest.raises(ValueError, match=message):
        zmlx.elementwise(expression)


def test_wrong_inputs_are_named():
    f = zmlx.elementwise("a + b", inputs=("a", "b"), name="plus")
    with pytest.raises(ValueError, match=r"\[plus\] takes 2 inputs but got 1"):
        f(mx.array(1.0))
    with pytest.raises(ValueError, match=r"\[plus\] shapes must broadcast but got \(2,\), \(3,\)"):
        f(mx.ones(2), mx.ones(3))
    with pytest.raises(ValueError, match=r"\[plus\] b must be real"):
        f(mx.ones(2), mx.array(1j))
    with pytest.raises(TypeError, match=r"\[plus\] inputs must be arrays or numbers but got str"):
        f(mx.ones(2), "1")
    with pytest.raises(ValueError, match="grad_expr takes one input but got 2"):
        zmlx.elementwise("a + b", inputs=("a", "b"), grad_expr="g")
    with pytest.raises(ValueError, match="compute_dtype must be real"):
        zmlx.elementwise("x", compute_dtype=mx.complex64)
    with pytest.raises(ValueError, match="bit_and takes integers but got float32"):
        zmlx.elementwise("x & 1")(mx.array(1.0))
