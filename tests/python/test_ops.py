# tests/python/test_ops.py: zmlx.ops against NumPy in double precision, and what mistakes say.
import inspect
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from zmlx import ops

DOCS = (Path(__file__).parents[2] / "docs" / "ops.md").read_text()
TOLERANCE = {mx.float32: 2e-5, mx.float16: 3e-3, mx.bfloat16: 2.4e-2}


def exact(x: mx.array) -> np.ndarray:
    return np.array(x.astype(mx.float32)).astype(np.float64)


def close(got: mx.array, want: np.ndarray) -> None:
    """Within the dtype's tolerance of the larger of an element and the array's typical size."""
    assert got.shape == want.shape
    finite = np.isfinite(want)
    typical = np.sqrt(np.mean(want[finite] ** 2)) if finite.any() else 0.0
    got_values = exact(got)
    np.testing.assert_array_equal(np.isnan(got_values), np.isnan(want))
    infinite = np.isinf(want)
    np.testing.assert_array_equal(got_values[infinite], want[infinite])
    bound = TOLERANCE[got.dtype] * np.maximum(np.abs(want[finite]), typical)
    assert np.all(np.abs(got_values[finite] - want[finite]) <= bound + 1e-30)


def softmax(x: np.ndarray) -> np.ndarray:
    return special.softmax(x, axis=-1)


def elu(x: np.ndarray, alpha: float) -> np.ndarray:
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


ROWS = {
    "softmax": softmax,
    "log_softmax": lambda x: special.log_softmax(x, axis=-1),
    "sum": lambda x: x.sum(-1),
    "mean": lambda x: x.mean(-1),
    "max": lambda x: x.max(-1),
    "min": lambda x: x.min(-1),
    "logsumexp": lambda x: special.logsumexp(x, axis=-1),
    "cumsum": lambda x: x.cumsum(-1),
    "layer_norm": lambda x: (
        (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    ),
    "silu": lambda x: x * special.expit(x),
    "gelu": lambda x: x * special.ndtr(x),
    "gelu_tanh": lambda x: x * special.expit(2 * np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)),
    "relu": lambda x: np.maximum(x, 0),
    "relu2": lambda x: np.maximum(x, 0) ** 2,
    "sigmoid": special.expit,
    "tanh": np.tanh,
    "softplus": lambda x: np.logaddexp(x, 0),
    "mish": lambda x: x * np.tanh(np.logaddexp(x, 0)),
    "exp": np.exp,
    "log": np.log,
    "log_sigmoid": lambda x: -np.logaddexp(-x, 0),
    "gelu_fast": lambda x: x * special.expit(1.702 * x),
    "relu6": lambda x: np.clip(x, 0, 6),
    "hardswish": lambda x: x * np.clip(x + 3, 0, 6) / 6,
    "selu": lambda x: 1.0507009873554805 * elu(x, 1.6732632423543772),
    "elu": lambda x: elu(x, 1.0),
    "leaky_relu": lambda x: np.where(x > 0, x, 0.01 * x),
}
shapes = st.tuples(st.integers(1, 5), st.integers(1, 70))
dtypes = st.sampled_from([mx.float32, mx.float16, mx.bfloat16])


@pytest.mark.parametrize("name", ROWS)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(shape=shapes, dtype=dtypes, seed=st.integers(0, 1000), transposed=st.booleans())
def test_rows_of_any_shape_and_stride_match_numpy(name, shape, dtype, seed, transposed) -> None:
    x = (3 * mx.random.normal(shape, key=mx.random.key(seed))).astype(dtype)
    if transposed:
        x = mx.contiguous(x.T).T
    if name == "log":
        x = mx.abs(x)
    with np.errstate(divide="ignore"):
        close(getattr(ops, name)(x), ROWS[name](exact(x)))


@pytest.mark.parametrize("name", ["sum", "mean", "max", "min", "cumsum", "softmax", "logsumexp"])
def test_a_nan_reaches_the_whole_row_and_no_other(name: str) -> None:
    x = np.random.default_rng(0).normal(size=(3, 37)).astype(np.float32)
    x[1, 20] = np.nan
    got = exact(getattr(ops, name)(mx.array(x)))
    assert np.isfinite(got[[0, 2]]).all()
    assert np.isnan(got[1] if name != "cumsum" else got[1, 20:]).all()


SPECIAL = mx.array([float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1e-40, 100.0, -100.0])


@pytest.mark.parametrize(
    "name", ["exp", "log", "elu", "selu", "leaky_relu", "relu6", "log_sigmoid", "softplus"]
)
def test_activations_of_special_values_are_numpys(name: str) -> None:
    x = mx.tile(SPECIAL, 5)
    with np.errstate(all="ignore"):
        want = ROWS[name](exact(x)).astype(np.float32)
    np.testing.assert_allclose(np.array(getattr(ops, name)(x)), want, rtol=1e-6, atol=1e-37)


def test_parameters_of_activations() -> None:
    x = mx.array([-2.0, 0.0, 3.0])
    close(ops.elu(x, alpha=0.5), elu(exact(x), 0.5))
    assert ops.leaky_relu(x, negative_slope=0.25).tolist() == [-0.5, 0.0, 3.0]
    slopes = mx.grad(lambda x: ops.elu(x, alpha=0.5).sum())(mx.array([-1.0, 200.0]))
    np.testing.assert_allclose(exact(slopes), [0.5 * np.exp(-1), 1], rtol=1e-6)


def test_infinities_are_what_numpy_makes_of_them() -> None:
    x = mx.array([[1.0, float("inf"), 2.0], [-float("inf"), 0.0, 1.0]])
    assert exact(ops.logsumexp(x))[0] == np.inf
    assert exact(ops.max(x)).tolist() == [np.inf, 1.0]
    assert exact(ops.min(x)).tolist() == [1.0, -np.inf]
    close(ops.softmax(x[1:]), softmax(exact(x[1:])))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    shape=shapes, dtype=dtypes, levels=st.integers(1, 6), seed=st.integers(0, 1000), data=st.data()
)
def test_topk_is_sorted_and_takes_the_lower_index_of_ties(shape, dtype, levels, seed, data) -> None:
    x = mx.random.randint(0, levels, shape, key=mx.random.key(seed)).astype(dtype)
    k = data.draw(st.integers(1, shape[1]))
    values, indices = ops.topk(x, k=k)
    order = np.argsort(-exact(x), axis=-1, kind="stable")[:, :k]
    np.testing.assert_array_equal(np.array(indices), order)
    np.testing.assert_array_equal(exact(values), np.take_along_axis(exact(x), order, -1))


def test_topk_puts_nan_first() -> None:
    values, indices = ops.topk(mx.array([1.0, float("nan"), float("inf"), float("nan")]), k=3)
    assert indices.tolist() == [1, 3, 2]
    assert np.isnan(exact(values)[:2]).all()


@given(seed=st.integers(0, 10**6), k=st.integers(1, 20), levels=st.sampled_from([2, 50, 10**6]))
@settings(max_examples=20, deadline=None)
def test_topk_of_long_rows_orders_nan_infinities_zeros_and_ties(seed, k, levels) -> None:
    generator = np.random.default_rng(seed)
    x = generator.integers(-levels, levels, (4, 1000)).astype(np.float32)
    for value in (np.nan, np.inf, -np.inf, -0.0):
        x[generator.random(x.shape) < generator.choice([0, 0.002, 0.3])] = value
    _, indices = ops.topk(mx.array(x), k=k)
    order = np.argsort(np.where(np.isnan(x), -np.inf, -x), axis=-1, kind="stable")
    nans_first = np.argsort(~np.isnan(np.take_along_axis(x, order, -1)), axis=-1, kind="stable")
    np.testing.assert_array_equal(
        np.array(indices), np.take_along_axis(order, nans_first, -1)[:, :k]
    )


LARGE = {mx.float32: (4100, 1024), mx.bfloat16: (8200, 1024)}  # more than 16 MiB


@pytest.mark.parametrize("dtype", LARGE)
def test_large_outputs_are_what_small_ones_are(dtype: mx.Dtype) -> None:
    x = mx.random.normal(LARGE[dtype], key=mx.random.key(1)).astype(dtype)
    both = mx.concatenate([x, x[::-1]], axis=-1)
    weight = mx.random.normal(x.shape[-1:], key=mx.random.key(2)).astype(dtype)
    indices = mx.random.permutation(x.shape[0], key=mx.random.key(3))
    for function, rows in (
        (ops.softmax, x),
        (ops.log_softmax, x),
        (ops.cumsum, x),
        (ops.swiglu, both),
        (lambda v: ops.rms_norm(v, weight), x),
        (lambda v: ops.gather_add(x, indices[: v.shape[0]], v), x),
    ):
        whole = function(rows)
        assert mx.array_equal(whole[:64], function(rows[:64]))
        assert mx.array_equal(function(rows), whole)
    key = mx.random.key(4)
    # The gradient is the plain reference's, with its mask.
    (dropped,), (mask,) = mx.vjp(lambda v: ops.dropout(v, 0.5, key), [x], [mx.ones_like(x)])
    assert mx.array_equal(dropped, x * mask)
    assert abs(mask.astype(mx.float32).mean().item() - 1) < 0.01


def test_the_memory_of_a_large_result_is_not_given_away_while_it_is_used() -> None:
    x = mx.random.normal(LARGE[mx.float32], key=mx.random.key(1))
    first = ops.softmax(x)
    view = first[1:3]
    mx.eval(first, view)
    before = np.array(view)
    del first
    others = [ops.cumsum(x) for _ in range(3)]
    mx.eval(others)
    np.testing.assert_array_equal(np.array(view), before)


@pytest.mark.parametrize("scores", ["softmax", "sigmoid"])
@pytest.mark.parametrize("normalise", [False, True])
def test_gating_weighs_the_best_experts_with_a_bias(scores: str, normalise: bool) -> None:
    logits = mx.random.normal((16, 33), key=mx.random.key(1))
    bias = 0.3 * mx.random.normal((33,), key=mx.random.key(2))
    weights, indices = ops.moe_topk_gating(
        logits, bias, k=4, scores=scores, normalise=normalise, scale=2.5
    )
    x = exact(logits)
    score = softmax(x) if scores == "softmax" else special.expit(x)
    order = np.argsort(-(score + exact(bias)), axis=-1, kind="stable")[:, :4]
    np.testing.assert_array_equal(np.array(indices), order)
    want = np.take_along_axis(score, order, -1)
    close(weights, 2.5 * (want / want.sum(-1, keepdims=True) if normalise else want))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("experts", [7, 33, 64, 128])
def test_gating_by_softmax_alone(dtype: mx.Dtype, experts: int) -> None:
    logits = mx.random.normal((16, experts), key=mx.random.key(1)).astype(dtype)
    score = softmax(exact(logits))
    for k in (1, 2, 7):
        weights, indices = ops.moe_topk_gating(logits, k=k)
        order = np.argsort(-score, axis=-1, kind="stable")[:, :k]
        np.testing.assert_array_equal(np.array(indices), order)
        want = np.take_along_axis(score, order, -1)
        close(weights, want / want.sum(-1, keepdims=True))


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_gather_add_and_the_gated_units(dtype: mx.Dtype) -> None:
    table = mx.random.normal((11, 35), key=mx.random.key(1)).astype(dtype)
    x = mx.random.normal((2, 3, 35), key=mx.random.key(2)).astype(dtype)
    indices = mx.array([[0, -1, 10], [5, -11, 5]])
    close(ops.gather_add(table, indices, x), exact(table)[np.array(indices)] + exact(x))
    both = mx.random.normal((7, 66), key=mx.random.key(3)).astype(dtype)
    gate, up = exact(both)[:, :33], exact(both)[:, 33:]
    close(ops.swiglu(both), gate * special.expit(gate) * up)
    close(ops.swiglu(both[:, :33], both[:, 33:]), gate * special.expit(gate) * up)
    close(ops.geglu(both), ROWS["gelu"](gate) * up)
    close(ops.geglu(both, approximate=True), ROWS["gelu_tanh"](gate) * up)
    halves = both[:, :33], both[:, 33:]
    assert mx.array_equal(ops.silu_mul(*halves), ops.swiglu(*halves))
    close(ops.geglu(*halves), ROWS["gelu"](gate) * up)
    close(ops.geglu(*halves, approximate=True), ROWS["gelu_tanh"](gate) * up)


def test_swiglu_of_three_weights_is_the_whole_mlp() -> None:
    x, gate, up, down = (
        mx.random.normal(shape, key=mx.random.key(i)) / 8
        for i, shape in enumerate([(5, 64), (96, 64), (96, 64), (64, 96)])
    )
    hidden = exact(x) @ exact(gate).T
    want = (hidden * special.expit(hidden) * (exact(x) @ exact(up).T)) @ exact(down).T
    close(ops.swiglu(x, gate, up, down), want)


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_dropout_keeps_its_share_and_the_mean(p: float) -> None:
    n = 1 << 18
    y = exact(ops.dropout(mx.ones((n,)), p, mx.random.key(3)))
    np.testing.assert_allclose(y[y != 0], 1 / max(1 - p, 1e-9), rtol=1e-6)
    deviations = abs((y != 0).mean() - (1 - p)) / max(np.sqrt(p * (1 - p) / n), 1e-12)
    assert deviations < 5


def test_dropouts_of_other_keys_are_independent() -> None:
    n = 1 << 18
    masks = [exact(ops.dropout(mx.ones((n,)), 0.5, mx.random.key(seed))) != 0 for seed in range(3)]
    for a, b in [(0, 1), (0, 2), (1, 2)]:
        assert abs((masks[a] == masks[b]).mean() - 0.5) < 5 * 0.5 / np.sqrt(n)
    for lag in (1, 2, 10, n // 2):
        assert abs((masks[0][lag:] == masks[0][:-lag]).mean() - 0.5) < 5 * 0.5 / np.sqrt(n - lag)


def threefry(key: np.ndarray, n: int) -> np.ndarray:
    """MLX's n random words for a key: Threefry-2x32 of the counters (i, i + half)."""
    odd, half = n % 2, n // 2
    a = np.arange(half + odd, dtype=np.uint32)
    b = a + np.uint32(half + odd)
    b[half:] = 0
    keys = [key[0], key[1], key[0] ^ key[1] ^ np.uint32(0x1BD11BDA)]
    a, b = a + keys[0], b + keys[1]
    for i in range(5):
        for distance in ((13, 15, 26, 6), (17, 29, 16, 24))[i % 2]:
            a = a + b
            b = ((b << np.uint32(distance)) | (b >> np.uint32(32 - distance))) ^ a
        a = a + keys[(i + 1) % 3]
        b = b + keys[(i + 2) % 3] + np.uint32(i + 1)
    return np.concatenate([a, b[:half]])


@pytest.mark.parametrize("shape", [(7, 143), (64,), (1,), (3, 5, 2)])
def test_dropouts_mask_is_threefrys_and_the_gradient_has_it_too(shape: tuple[int, ...]) -> None:
    x = mx.random.normal(shape, key=mx.random.key(1))
    key = mx.random.key(9)
    kept = (threefry(np.array(key), x.size) >> 8 >= 0.25 * 2**24).reshape(shape)
    np.testing.assert_array_equal(exact(ops.dropout(x, 0.25, key)) != 0, kept)
    gradient = mx.grad(lambda a: ops.dropout(a, 0.25, key).sum())(x)
    np.testing.assert_allclose(exact(gradient), kept / 0.75, rtol=1e-6)


def test_dropout_without_a_key_follows_the_global_seed() -> None:
    x = mx.ones((64,))
    mx.random.seed(4)
    first, second = ops.dropout(x), ops.dropout(x)
    mx.random.seed(4)
    assert mx.array_equal(first, ops.dropout(x))
    assert not mx.array_equal(first, second)


def test_gradients_are_those_of_finite_differences() -> None:
    x = mx.random.normal((3, 17), key=mx.random.key(1))
    weight = mx.cos(mx.arange(51).reshape(3, 17))
    for name in ("softmax", "log_softmax", "layer_norm", "cumsum", "gelu", "mish", "softplus"):
        got = mx.grad(lambda a, name=name: (getattr(ops, name)(a) * weight).sum())(x)
        base, step = exact(x), 1e-6
        want = np.empty_like(base)
        for i in np.ndindex(*base.shape):
            moved = [base.copy(), base.copy()]
            moved[0][i] += step
            moved[1][i] -= step
            high, low = ((ROWS[name](m) * exact(weight)).sum() for m in moved)
            want[i] = (high - low) / (2 * step)
        np.testing.assert_allclose(exact(got), want, atol=1e-4)


def test_functions_work_under_vmap_and_compile() -> None:
    x = mx.random.normal((4, 5, 33), key=mx.random.key(1))
    close(mx.vmap(ops.softmax)(x), softmax(exact(x)))
    close(mx.compile(ops.gelu)(x), ROWS["gelu"](exact(x)))


def test_empty_arrays_stay_empty() -> None:
    x = mx.zeros((0, 8))
    for name in ("softmax", "cumsum", "gelu", "layer_norm"):
        assert getattr(ops, name)(x).shape == (0, 8)
    assert ops.sum(x).shape == (0,)
    assert ops.sum(mx.zeros((3, 0))).tolist() == [0, 0, 0]


X = mx.zeros((2, 7))
MISTAKES = [
    (lambda: ops.topk(X, k=8), "[topk] k must be from 1 to x's last axis, 7, but got 8."),
    (lambda: ops.topk(X), "[topk] missing a required argument: 'k'"),
    (
        lambda: ops.softmax(mx.zeros((3,), mx.int32)),
        "[softmax] x must be float32, float16 or bfloat16 but got int32.",
    ),
    (lambda: ops.softmax(mx.array(1.0)), "[softmax] x must have at least 1 axis but got a number."),
    (
        lambda: ops.max(mx.zeros((3, 0))),
        "[max] x's last axis must have at least 1 elements but got float32(3, 0).",
    ),
    (lambda: ops.softmax([1.0]), "[softmax] expected mx.array inputs but got list."),
    (
        lambda: ops.softmax(X, axis=0),
        "[softmax] got an unexpected keyword argument 'axis'; the signature is softmax(x, *, "
        "scale=1.0).",
    ),
    (lambda: ops.glu(X), "[glu] x's last axis must be even but got float32(2, 7)."),
    (
        lambda: ops.glu(mx.zeros((2, 8)), activation="step"),
        "[glu] activation must be one of silu, gelu, gelu_tanh, relu, relu2, sigmoid, tanh, "
        "softplus, mish, exp, log, log_sigmoid, gelu_fast, relu6, hardswish, selu, elu, leaky_relu "
        "but got step.",
    ),
    (lambda: ops.swiglu(X, X, X), "[swiglu] expected 1, 2 or 4 arrays but got 3."),
    (lambda: ops.geglu(X, X, X), "[geglu] expected 1, 2 or 4 arrays but got 3."),
    (lambda: ops.geglu(X, X[0]), "[glu] up must have shape (2, 7) but got (7,)."),
    (lambda: ops.silu_mul(X, X[0]), "[swiglu] up must have shape (2, 7) but got (7,)."),
    (lambda: ops.layer_norm(X, X), "[layer_norm] weight must have shape (7,) but got (2, 7)."),
    (lambda: ops.layer_norm(X, X, X, X), "[layer_norm] expected 1 to 3 inputs but got 4."),
    (
        lambda: ops.gather_add(X, mx.array([0.5]), X),
        "[gather_add] indices must be int32 or uint32 but got float32.",
    ),
    (
        lambda: mx.eval(ops.gather_add(X, mx.array([2]), X[:1])),
        "[gather_add] indices must be below the table's 2 rows but one is 2.",
    ),
    (
        lambda: ops.gather_add(X[0], mx.array([0]), X),
        "[gather_add] table must have 2 axes but got float32(7,).",
    ),
    (lambda: ops.dropout(X, 1.5), "[dropout] p must be from 0 to 1 but got 1.5."),
    (
        lambda: mx.eval(ops.dropout(X, mx.array(-1.0))),
        "[dropout] p must be from 0 to 1 but got -1.",
    ),
    (
        lambda: ops.dropout(X, mx.zeros((2,))),
        "[dropout] p must be one number but got shape (2,).",
    ),
    (
        lambda: ops.dropout(X, 0.5, mx.zeros((3,), mx.uint32)),
        "[dropout] key must have shape (2,) but got (3,).",
    ),
    (
        lambda: ops.moe_topk_gating(X, k=0),
        "[moe_topk_gating] k must be from 1 to the number of experts, 7, but got 0.",
    ),
    (
        lambda: ops.moe_topk_gating(X, k=1, scores="relu"),
        "[moe_topk_gating] scores must be softmax or sigmoid but got relu.",
    ),
    (
        lambda: ops.moe_topk_gating(X, mx.zeros((6,)), k=1),
        "[moe_topk_gating] bias must have shape (7,) but got (6,).",
    ),
    (
        lambda: ops.moe_topk_gating(X, X, X, k=1),
        "[moe_topk_gating] expected logits and at most a bias but got 3 inputs.",
    ),
    (
        lambda: ops.moe_topk_gating(mx.array(1.0), k=1),
        "[moe_topk_gating] logits must have at least 1 axis but got a number.",
    ),
]


@pytest.mark.parametrize(("call", "message"), MISTAKES)
def test_mistakes_are_named(call, message: str) -> None:
    with pytest.raises((ValueError, TypeError, RuntimeError)) as error:
        call()
    assert message in str(error.value)


def test_every_function_has_a_signature_and_says_what_it_does() -> None:
    for name in ops.__all__:
        function = getattr(ops, name)
        assert function.__name__ == name
        assert inspect.signature(function).parameters
        assert len(function.__doc__) > 20
        assert f"`{name}(" in DOCS
