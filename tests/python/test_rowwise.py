"""Kernels that reduce rows and use the results, against float64 and MLX's gradients."""

from __future__ import annotations

import os
import subprocess
import sys

import mlx.core as mx
import numpy as np
import pytest

import zmlx
from zmlx import _ext

TOLERANCE = {mx.float32: 2e-5, mx.float16: 3e-3, mx.bfloat16: 2.4e-2}
SOFTMAX = "exp(x - row_max(x)) / row_sum(exp(x - row_max(x)))"
RMS_NORM = "x * rsqrt(row_mean(x * x) + eps) * w"
LAYER_NORM = "c = x - row_mean(x); c * rsqrt(row_mean(c * c) + 1e-5) * w + b"


def normal(*shape: int, dtype: mx.Dtype = mx.float32, seed: int = 0) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(seed)).astype(dtype)


def wide(x: mx.array) -> np.ndarray:
    return np.array(x.astype(mx.float32), np.float64)


def check(got: mx.array, want, tolerance: float = 2e-5) -> None:
    want = wide(want) if isinstance(want, mx.array) else want
    assert got.shape == want.shape
    assert np.allclose(wide(got), want, tolerance, tolerance, equal_nan=True)


def np_softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def rms_norm(x, w, eps):
    return x * mx.rsqrt(mx.mean(x * x, -1, keepdims=True) + eps) * w


def layer_norm(x, w, b):
    c = x - mx.mean(x, -1, keepdims=True)
    return c * mx.rsqrt(mx.mean(c * c, -1, keepdims=True) + 1e-5) * w + b


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(
    "shape", [(1,), (5, 1), (3, 31), (2, 2, 32), (33,), (7, 100), (3, 4099), (2, 20011), (900, 64)]
)
def test_softmax_of_rows_of_any_length(shape, dtype):
    x = normal(*shape, dtype=dtype) * 4
    got = zmlx.rowwise(SOFTMAX)(x)
    assert got.dtype == dtype
    check(got, np_softmax(wide(x)), TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_norms_with_columns_and_numbers(dtype):
    x, w, b = (normal(*s, dtype=dtype, seed=i) for i, s in enumerate([(5, 70), (70,), (70,)]))
    f = zmlx.rowwise(RMS_NORM, inputs=("x", "w", "eps"))
    check(f(x, w, 1e-5), rms_norm(wide_array(x), wide_array(w), 1e-5), TOLERANCE[dtype])
    g = zmlx.rowwise(LAYER_NORM, inputs=("x", "w", "b"))
    want = layer_norm(wide_array(x), wide_array(w), wide_array(b))
    check(g(x, w, b), want, TOLERANCE[dtype])


def wide_array(x: mx.array) -> mx.array:
    return x.astype(mx.float32)


@pytest.mark.parametrize("op", ["sum", "mean", "prod", "max", "min"])
@pytest.mark.parametrize(
    "dtype", [mx.bool_, mx.int8, mx.uint8, mx.int32, mx.int64, mx.float16, mx.float32], ids=str
)
def test_reductions_have_the_dtype_that_mlx_gives(op, dtype):
    x = mx.array([[1, 0, 2, 3], [1, 1, 3, 1]]).astype(dtype)
    got, want = zmlx.rowwise(f"row_{op}(x)")(x), getattr(mx, op)(x, -1, keepdims=True)
    assert got.dtype == want.dtype
    check(got, want, 2e-3)


def test_several_outputs_of_elements_and_rows():
    f = zmlx.rowwise(
        "m = row_max(x); e = exp(x - m); s = row_sum(e); y = e / s; total = m + log(s);",
        outputs=("y", "total"),
        keepdims=False,
    )
    x = normal(4, 3, 50)
    y, total = f(x)
    check(y, mx.softmax(x, -1))
    check(total, mx.logsumexp(x, -1))
    assert zmlx.rowwise("row_sum(x) / row_size", keepdims=False)(x).shape == (4, 3)
    assert zmlx.rowwise("row_sum(x)")(x).shape == (4, 3, 1)


def test_values_of_rows_and_of_columns_broadcast():
    x, r, c = normal(4, 3, 50), normal(4, 1, 1, seed=1), normal(50, seed=2)
    f = zmlx.rowwise("r * row_sum(x * c) + row_sum(r)", inputs=("x", "r", "c"))
    check(f(x, r, c), r * (x * c).sum(-1, keepdims=True) + 50 * r, 1e-4)
    g = zmlx.rowwise("x - r * row_mean(c)", inputs=("x", "r", "c"))
    check(g(x[0], r, c), x[0] - r * c.mean(), 1e-4)


@pytest.mark.parametrize("which", range(6))
def test_strided_inputs(which):
    x = normal(6, 8, 10)
    v = [
        x.transpose(2, 0, 1),
        x[:, ::2, 1:],
        x[::-1],
        mx.broadcast_to(x[:, :1], (6, 5, 10)),
        x[0].T,
        mx.broadcast_to(x[..., :1], (6, 8, 10)),
    ][which]
    f = zmlx.rowwise("a * row_sum(a * b)", inputs=("a", "b"))
    b = mx.contiguous(v) + 1
    check(f(v, b), v * (v * b).sum(-1, keepdims=True), 1e-4)
    check(f(v, v[..., :1]), v * (v * v[..., :1]).sum(-1, keepdims=True), 1e-4)


def losses():
    """Names, kernels, the same in MLX, inputs."""
    x = normal(4, 33)
    w, b, r = normal(33, seed=1), normal(33, seed=2), normal(4, 1, seed=3)
    return {
        "softmax": (zmlx.rowwise(SOFTMAX), lambda x: mx.softmax(x, -1), [x]),
        "composite": (zmlx.rowwise("row_softmax(x)"), lambda x: mx.softmax(x, -1), [x]),
        "logsumexp": (
            zmlx.rowwise("row_logsumexp(x)"),
            lambda x: mx.logsumexp(x, -1, keepdims=True),
            [x],
        ),
        "rms_norm": (
            zmlx.rowwise(RMS_NORM, inputs=("x", "w", "eps")),
            rms_norm,
            [x, w, mx.array(0.1)],
        ),
        "layer_norm": (zmlx.rowwise(LAYER_NORM, inputs=("x", "w", "b")), layer_norm, [x, w, b]),
        "rows": (
            zmlx.rowwise("r * row_sum(x * r) + x * row_mean(r) + r", inputs=("x", "r")),
            lambda x, r: r * mx.sum(x * r, -1, keepdims=True) + x * r + r,
            [x, r],
        ),
        "row of rows": (
            zmlx.rowwise("r * row_sum(x * w) + r", inputs=("x", "w", "r")),
            lambda x, w, r: r * mx.sum(x * w, -1, keepdims=True) + r,
            [x, w, r],
        ),
        "nested": (
            zmlx.rowwise("row_sum(x * row_sum(x * row_mean(x * x)))"),
            lambda x: mx.sum(
                x * mx.sum(x * mx.mean(x * x, -1, keepdims=True), -1, keepdims=True),
                -1,
                keepdims=True,
            ),
            [0.2 * x],
        ),
        "max": (
            zmlx.rowwise("x * row_max(x * w) - row_min(x)", inputs=("x", "w")),
            lambda x, w: x * mx.max(x * w, -1, keepdims=True) - mx.min(x, -1, keepdims=True),
            [x, w],
        ),
        "prod": (
            zmlx.rowwise("row_prod(1 + 0.1 * x)"),
            lambda x: mx.prod(1 + 0.1 * x, -1, keepdims=True),
            [x],
        ),
        "var": (
            zmlx.rowwise("row_var(x) * x"),
            lambda x: mx.var(x, -1, keepdims=True) * x,
            [x],
        ),
    }


@pytest.mark.parametrize("name", losses())
def test_gradients_of_first_and_second_order(name):
    f, plain, inputs = losses()[name]
    check(f(*inputs), plain(*inputs), 1e-4)
    argnums = tuple(range(len(inputs)))

    def slopes(g):
        weights = normal(*plain(*inputs).shape, seed=9)
        return mx.grad(lambda *v: (weights * g(*v)).sum(), argnums=argnums)

    def curves(g):
        return mx.grad(
            lambda *v: sum((s * normal(*s.shape, seed=8)).sum() for s in slopes(g)(*v)),
            argnums=argnums,
        )

    for of, tolerance in ((slopes, 1e-4), (curves, 1e-3)):
        for got, want in zip(of(f)(*inputs), of(plain)(*inputs), strict=True):
            scale = max(1.0, float(mx.max(mx.abs(want)).item()))
            check(got / scale, want / scale, tolerance)


def test_gradients_agree_with_finite_differences():
    f = zmlx.rowwise("x * row_max(x) + log(row_sum(exp(x) * w)) / row_size", inputs=("x", "w"))
    x, w = normal(3, 5), mx.abs(normal(5, seed=1)) + 0.5
    step = normal(3, 5, seed=2)

    def loss(t):
        return f(x + t * step, w).sum()

    got = mx.grad(loss)(mx.array(0.0)).item()
    h = 1e-2
    want = (loss(mx.array(h)) - loss(mx.array(-h))).item() / (2 * h)
    assert abs(got - want) < 2e-3 * max(1, abs(want))


def test_ties_share_the_gradient():
    x = mx.array([[1.0, 3.0, 3.0, 2.0], [2.0, 2.0, 2.0, 2.0]])
    got = mx.grad(lambda v: zmlx.rowwise("row_max(x)")(v).sum())(x)
    assert got.tolist() == [[0, 0.5, 0.5, 0], [0.25] * 4]


def test_the_gradient_of_a_product_with_zeros():
    x = mx.array([[2.0, 0.0, 3.0], [0.0, 0.0, 3.0], [1.0, 2.0, 3.0]])
    got = mx.grad(lambda v: zmlx.rowwise("row_prod(x)")(v).sum())(x)
    assert got.tolist() == [[0, 6, 0], [0, 0, 0], [6, 3, 2]]


def test_weights_of_half_precision_are_summed_in_float32():
    x, w = normal(5000, 8, dtype=mx.bfloat16), mx.ones(8, mx.bfloat16)
    f = zmlx.rowwise(RMS_NORM, inputs=("x", "w", "eps"))
    got = mx.grad(lambda v: f(x * x, v, 1e-5).astype(mx.float32).sum())(w)
    want = mx.grad(lambda v: rms_norm(wide_array(x * x), v, 1e-5).sum())(wide_array(w))
    assert got.dtype == mx.bfloat16
    check(got, want, 2.4e-2)


def test_jvp_vmap_and_compile():
    f = zmlx.rowwise(RMS_NORM, inputs=("x", "w", "eps"))
    x, w, eps = normal(4, 33), normal(33, seed=1), mx.array(1e-3)
    tangents = [normal(4, 33, seed=2), normal(33, seed=3), mx.array(0.5)]
    for got, want in zip(
        mx.jvp(f, [x, w, eps], tangents)[1], mx.jvp(rms_norm, [x, w, eps], tangents)[1], strict=True
    ):
        check(got, want, 1e-4)
    check(mx.vmap(f, in_axes=(1, None, None))(x.T, w, eps), rms_norm(x, w, eps))
    check(
        mx.vmap(f, in_axes=(0, None, 0))(x, w, mx.arange(4) * 0.1),
        rms_norm(x, w, mx.arange(4)[:, None] * 0.1),
    )
    check(mx.compile(lambda v: f(v, w, eps) + 1)(x), rms_norm(x, w, eps) + 1)


def test_a_new_shape_compiles_nothing():
    f = zmlx.rowwise("x / (1 + row_sum(abs(x)))")
    mx.eval(f(normal(3, 5)))
    count = _ext.jit_compile_count()
    mx.eval(f(normal(5, 7)), f(normal(7, 5).T), f(normal(100)), f(normal(2, 3, 4096)))
    assert _ext.jit_compile_count() == count


def test_an_input_may_become_the_output():
    f = zmlx.rowwise(SOFTMAX)
    x = normal(40, 300)
    check(f(x + 0.0), mx.softmax(x, -1))
    pair = zmlx.rowwise("a = x - row_mean(x); b = x * row_max(x);", outputs=("a", "b"))
    a, b = pair(x + 0.0)
    check(a, x - x.mean(-1, keepdims=True))
    check(b, x * x.max(-1, keepdims=True))


def test_nan_and_infinities():
    nan, inf = float("nan"), float("inf")
    x = mx.array([[1.0, nan, 2.0], [1.0, inf, 2.0], [1.0, -inf, 2.0], [-inf, -inf, -inf]])
    check(zmlx.rowwise("row_max(x)")(x), mx.max(x, -1, keepdims=True))
    check(zmlx.rowwise("row_min(x)")(x), mx.min(x, -1, keepdims=True))
    check(zmlx.rowwise("row_softmax(x)")(x), mx.softmax(x, -1))
    check(zmlx.rowwise("row_logsumexp(x)")(x), mx.logsumexp(x, -1, keepdims=True))


def test_of_nothing():
    assert zmlx.rowwise(SOFTMAX)(mx.zeros((0, 8))).shape == (0, 8)
    assert zmlx.rowwise(SOFTMAX)(mx.zeros((3, 0))).shape == (3, 0)
    assert zmlx.rowwise("row_sum(x)")(mx.zeros((3, 0))).tolist() == [[0], [0], [0]]
    with pytest.raises(ValueError, match=r"\[rowwise\] row_max takes at least 1 element but got 0"):
        zmlx.rowwise("row_max(x)")(mx.zeros((3, 0)))


def test_results_do_not_depend_on_the_number_of_threads():
    script = (
        "import mlx.core as mx, zmlx, hashlib\n"
        "x = mx.random.normal((100, 5003), key=mx.random.key(1))\n"
        f"y = zmlx.rowwise({SOFTMAX!r})(x)\n"
        "print(hashlib.sha256(bytes(memoryview(y))).hexdigest())"
    )
    made = set()
    for threads in ("1", "2", "3"):
        env = {**os.environ, "ZMLX_NUM_THREADS": threads}
        made.add(subprocess.check_output([sys.executable, "-c", script], env=env))
    assert len(made) == 1


def test_without_a_compiler_it_runs_as_plain_mlx_and_says_so_once():
    script = f"""
import mlx.core as mx, zmlx
from zmlx import _ext
mx.set_default_device(mx.cpu)  # a GPU's kernels need no C++ compiler
f, x = zmlx.rowwise({SOFTMAX!r}), mx.random.normal((3, 8))
assert mx.allclose(f(x), mx.softmax(x, -1), atol=1e-6).item()
assert zmlx.rowwise("row_max(x) + row_sum(1)", keepdims=False)(x).shape == (3,)
g, h = (mx.grad(lambda v: (k(v) ** 2).sum())(x) for k in (f, lambda v: mx.softmax(v, -1)))
assert mx.allclose(g, h, atol=1e-6).item()
decay = zmlx.reduce(init="0", update="acc * 0.5f + v")
assert mx.allclose(decay(mx.array([[1.0, 2.0, 3.0]])), mx.array([4.25])).item()
assert _ext.jit_compile_count() == 0
"""
    env = {**os.environ, "ZMLX_CXX": "/nowhere/c++"}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("there is no C++ compiler (set ZMLX_CXX)") == 1


def test_sources_are_shown():
    f = zmlx.rowwise(SOFTMAX)
    assert "zmlx_rows" in f.source()
    assert "__global__" in f.source("cuda")
    assert "threadgroup_position_in_grid" in f.source("metal")
    assert f.source() == zmlx.rowwise(SOFTMAX).source()


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=str)
@pytest.mark.parametrize("threads", [32, 96])
def test_metal_texts_compute_the_same_on_the_cpu(dtype, threads):
    f = zmlx.rowwise(
        "c = x - row_mean(x); c * rsqrt(row_var(x) + 0.1) * row_max(w) + w", inputs="xw"
    )
    x, w = normal(70, 3, dtype=dtype).T, mx.broadcast_to(normal(70, dtype=dtype, seed=1), (3, 70))
    text = f.source("metal", [dtype, dtype])
    body = text.index("const int64_t row =")
    kernel = zmlx.metal.kernel(
        name="rows",
        input_names=["in0", "in1"],
        output_names=["out0"],
        header=text[:body],
        source=text[body:],
        ensure_row_contiguous=False,
    )
    got = kernel(
        x,
        w,
        grid=(3 * threads, 1, 1),
        threadgroup=(threads, 1, 1),
        output_shapes=[x.shape],
        output_dtypes=[dtype],
    )[0]
    check(got, f(x, w), TOLERANCE[dtype])


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"\[rowwise\] a row needs an axis"):
        zmlx.rowwise("x / row_sum(x)")(mx.array(1.0))
    with pytest.raises(ValueError, match=r"row_sum takes 1 argument but got 2"):
        zmlx.rowwise("row_sum(x, x)")
    with pytest.raises(ValueError, match=r"did you mean 'row_sum'"):
        zmlx.rowwise("row_sun(x)")
    with pytest.raises(ValueError, match=r"\[rowwise\] shapes must broadcast"):
        zmlx.rowwise("a * row_sum(b)", inputs=("a", "b"))(mx.ones((2, 3)), mx.ones((2, 4)))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_loops_in_the_form_of_the_python_package(dtype):
    x = normal(5, 70, dtype=dtype)
    f = zmlx.reduce(init="0", update="acc + v * v", finalize="sqrt(acc)")
    assert f(x).dtype == dtype
    check(f(x), np.sqrt((wide(x) ** 2).sum(-1)), TOLERANCE[dtype])
    g = zmlx.map_reduce(
        pass1={"init": "-INFINITY", "update": "max(acc1, x)", "reduce": "max(a, b)"},
        pass2={"init": "0.0f", "update": "acc2 + exp(x - s1)", "reduce": "a + b"},
        write="exp(x - s1) / s2",
        threadgroup=128,
    )
    assert g(x).dtype == dtype
    check(g(x), np_softmax(wide(x)), TOLERANCE[dtype])
    h = zmlx.rowwise.map_reduce(
        name="center",
        d=70,
        pass1_init="0",
        pass1_update="acc1 + x",
        pass1_reduce_op="a + b",
        pass2_init="0",
        pass2_update="acc2 + (x - s1 / D) * (x - s1 / D)",
        pass2_reduce_op="a + b",
        write_expr="(x - s1 / D) * metal::rsqrt(s2 / D + 1e-5f)",
    )
    c = wide(x) - wide(x).mean(-1, keepdims=True)
    want = c / np.sqrt((c**2).mean(-1, keepdims=True) + 1e-5)
    check(h(x)[0], want, TOLERANCE[dtype])


@pytest.mark.parametrize(
    ("init", "update", "want"),
    [
        ("2", "acc + v", lambda v: 2 + v.sum(-1)),
        ("0", "v + acc + 1", lambda v: v.sum(-1) + v.shape[-1]),
        ("0", "acc - v", lambda v: -v.sum(-1)),
        ("3", "acc * (1 + 0.1f * v)", lambda v: 3 * np.prod(1 + 0.1 * v, -1)),
        ("0", "acc > v ? acc : v", lambda v: np.maximum(v.max(-1), 0)),
        ("INFINITY", "min(acc, abs(v))", lambda v: np.abs(v).min(-1)),
        ("0", "fma(v, v, acc)", lambda v: (v * v).sum(-1)),
    ],
)
def test_updates_that_are_reductions(init, update, want):
    x = normal(4, 33)
    check(zmlx.reduce(init=init, update=update)(x), want(wide(x)), 1e-4)


def test_other_updates_take_one_element_after_the_other():
    x = normal(4, 33)
    decay = zmlx.reduce(init="1", update="acc * 0.5f + v * v", finalize="acc / 2")
    want = np.ones(4)
    for column in wide(x).T:
        want = want * 0.5 + column**2
    check(decay(x), want / 2)
    assert decay(x.astype(mx.bfloat16)).dtype == mx.bfloat16
    scaled = zmlx.map_reduce(
        pass1={"init": "0", "update": "max(acc1, fabs(x))", "reduce": "max(a, b)"},
        pass2={"init": "0", "update": "acc2 > 2 ? x / s1 : acc2 + x / s1 + 1"},
        write="x * s2 + s1",
    )
    top = np.abs(wide(x)).max(-1)
    want = np.zeros(4)
    for column in wide(x).T:
        want = np.where(want > 2, column / top, want + column / top + 1)
    check(scaled(x), wide(x) * want[:, None] + top[:, None], 1e-4)
    assert decay(mx.zeros((2, 0))).tolist() == [0.5, 0.5]
    with pytest.raises(ValueError, match="a loop over a row whose update is no reduction has no"):
        mx.grad(lambda v: decay(v).sum())(x)


def test_passes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"reduce must combine values as update does"):
        zmlx.map_reduce(
            pass1={"init": "0", "update": "acc1 + x", "reduce": "max(a, b)"},
            pass2={"init": "0", "update": "acc2 + x"},
            write="x",
        )
    with pytest.raises(ValueError, match=r"takes expr, or pass1, pass2 and write"):
        zmlx.map_reduce(pass1={"init": "0", "update": "acc1 + x"})
    with pytest.raises(ValueError, match=r"takes init and update together"):
        zmlx.reduce(init="0")
    with pytest.raises(ValueError, match=r"\[two\] takes one input and one output but got 2 and 1"):
        zmlx.rowwise.map_reduce(
            name="two",
            pass1_init="0",
            pass1_update="acc1",
            pass1_reduce_op="a",
            pass2_init="0",
            pass2_update="acc2",
            pass2_reduce_op="a",
            write_expr="x",
            input_names=("p", "q"),
        )
