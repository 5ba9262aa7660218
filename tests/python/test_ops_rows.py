# tests/python/test_ops_rows.py: norms with residual and dropout, masked softmax, variance, argmax
# and cross entropy, against NumPy in double precision.
import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special
from test_ops import TOLERANCE, close, exact

from zmlx import ops

shapes = st.tuples(st.integers(1, 5), st.integers(1, 70))
dtypes = st.sampled_from([mx.float32, mx.float16, mx.bfloat16])


def normal(shape: tuple[int, ...], seed: int, dtype: mx.Dtype = mx.float32) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(seed)).astype(dtype)


def rms_norm(x: np.ndarray, eps: float = 1e-5) -> np.ndarray:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps)


def layer_norm(x: np.ndarray, eps: float = 1e-5) -> np.ndarray:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)


def differences(f, x: np.ndarray, step: float = 1e-6) -> np.ndarray:
    """The gradient of f, a number, by finite differences."""
    out = np.empty_like(x)
    for i in np.ndindex(*x.shape):
        high, low = x.copy(), x.copy()
        high[i] += step
        low[i] -= step
        out[i] = (f(high) - f(low)) / (2 * step)
    return out


@settings(max_examples=25, deadline=None, derandomize=True)
@given(shape=shapes, dtype=dtypes, seed=st.integers(0, 1000))
def test_norms_with_a_residual_give_the_norm_of_the_sum_and_the_sum(shape, dtype, seed) -> None:
    x, residual = normal(shape, seed, dtype), normal(shape, seed + 1, dtype)
    weight, bias = normal(shape[-1:], 2, dtype), normal(shape[-1:], 3, dtype)
    total = (x + residual).astype(dtype)
    y, s = ops.add_rms_norm(x, residual, weight)
    np.testing.assert_array_equal(exact(s), exact(total))
    close(y, rms_norm(exact(total)) * exact(weight))
    y, s = ops.add_layer_norm(x, residual, weight, bias)
    np.testing.assert_array_equal(exact(s), exact(total))
    close(y, layer_norm(exact(total)) * exact(weight) + exact(bias))
    close(ops.add_rms_norm(x, residual)[0], rms_norm(exact(total)))
    close(ops.rms_norm(x), rms_norm(exact(x)))


@pytest.mark.parametrize("rows", [1, 2, 7, 8])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_norms_with_dropout_have_dropouts_mask_forward_and_backward(rows, dtype) -> None:
    x, key = normal((rows, 33), 1, dtype), mx.random.key(9)
    weight, bias = normal((33,), 2, dtype), normal((33,), 3, dtype)
    p = mx.array(0.3)
    for fused, plain in [
        (
            lambda x: ops.rms_norm_dropout(x, weight, p=p, key=key),
            lambda x: ops.dropout(ops.rms_norm(x, weight), p, key),
        ),
        (
            lambda x: ops.layer_norm_dropout(x, weight, bias, p=0.3, key=key),
            lambda x: ops.dropout(ops.layer_norm(x, weight, bias), p, key),
        ),
    ]:
        assert mx.array_equal(fused(x), plain(x))
        gradients = [mx.grad(lambda x, f=f: (f(x) * mx.cos(x)).sum())(x) for f in (fused, plain)]
        assert mx.array_equal(*gradients)


def test_dropout_of_everything_has_a_gradient_of_zeros() -> None:
    x = normal((3, 7), 1)
    gradient = mx.grad(lambda x: ops.dropout(x, 1.0, mx.random.key(0)).sum())(x)
    assert gradient.tolist() == mx.zeros((3, 7)).tolist()


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_gradients_of_norms_are_those_of_finite_differences(dtype: mx.Dtype) -> None:
    x, weight, bias = (normal(s, i, dtype) for i, s in enumerate([(5, 9), (9,), (9,)]))
    factor = np.cos(np.arange(45)).reshape(5, 9)
    got = mx.grad(
        lambda *a: (ops.layer_norm(*a).astype(mx.float32) * mx.array(factor)).sum(), (0, 1, 2)
    )(x, weight, bias)
    values = [exact(a) for a in (x, weight, bias)]
    for i in range(3):

        def loss(a: np.ndarray, i: int = i) -> float:
            with_a = [*values[:i], a, *values[i + 1 :]]
            return float(((layer_norm(with_a[0]) * with_a[1] + with_a[2]) * factor).sum())

        want = differences(loss, values[i])
        assert got[i].dtype == dtype
        np.testing.assert_allclose(
            exact(got[i]), want, atol=5 * TOLERANCE[dtype] * np.abs(want).max()
        )


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 70)),
    broadcast=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    drop=st.integers(0, 2),
    dtype=dtypes,
    added=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_masks_of_any_shape_that_broadcasts(shape, broadcast, drop, dtype, added, seed) -> None:
    x = (3 * normal(shape, seed)).astype(dtype)
    mask_shape = tuple(1 if b else n for n, b in zip(shape, broadcast, strict=True))[drop:]
    noise = normal(mask_shape, seed + 1)
    mask = noise.astype(dtype) if added else noise > 0.3
    scaled = 0.25 * exact(x)
    with np.errstate(invalid="ignore"):
        masked = scaled + exact(mask) if added else np.where(np.array(mask), scaled, -np.inf)
        want = np.nan_to_num(special.softmax(masked, axis=-1), nan=0.0)
    close(ops.scale_mask_softmax(x, mask, 0.25), want)
    close(ops.scale_mask_softmax(x, mask, mx.array(0.25)), want)


def test_fully_masked_rows_are_zeros_and_have_a_gradient_of_zeros() -> None:
    x = mx.array([[1.0, 2.0, float("nan")], [3.0, 4.0, 5.0]])
    keep = mx.array([[False, False, False], [True, True, False]])
    bias = mx.where(keep, 0.0, -float("inf"))
    want = [0.0, 0.0, 0.0]
    assert ops.masked_softmax(x, keep)[0].tolist() == want
    assert ops.masked_softmax(x[1:], bias[:1])[0].tolist() == want
    close(ops.masked_softmax(x, keep)[1], np.append(special.softmax([3.0, 4.0]), 0))
    factor = mx.array([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    gradient = mx.grad(lambda x: (ops.masked_softmax(x, keep) * factor).sum())(x)
    share = special.expit(1.0)
    np.testing.assert_allclose(
        exact(gradient), [want, [-share * (1 - share), share * (1 - share), 0]], atol=1e-6
    )


@pytest.mark.parametrize("n", [37, 64, 1024, 5000])
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_softmax_of_equal_elements_is_uniform_however_large_they_are(
    dtype: mx.Dtype, n: int
) -> None:
    largest = mx.finfo(dtype).max
    for value in (largest, -largest, largest / 7, 1e4, -1e4, 0.0):
        x = mx.full((2, n), value, dtype=dtype)
        share = ops.softmax(x).astype(mx.float32)
        assert mx.allclose(share, mx.full((2, n), 1 / n), rtol=1e-2, atol=0).item(), value
        x = mx.concatenate([x[:, :-1], mx.full((2, 1), -mx.inf, dtype=dtype)], axis=1)
        share = ops.softmax(x).astype(mx.float32)
        assert mx.allclose(share[:, :-1], mx.full((2, n - 1), 1 / (n - 1)), rtol=1e-2).item()
        assert mx.all(share[:, -1] == 0).item()


def test_a_masked_softmaxs_mask_and_scale_have_gradients() -> None:
    x, bias = normal((2, 3, 5), 1), normal((3, 1), 2)
    bias5 = normal((3, 5), 3)
    factor = mx.cos(mx.arange(30)).reshape(2, 3, 5)

    def loss(bias: mx.array, scale: mx.array) -> mx.array:
        return (ops.scale_mask_softmax(x, bias, scale) * factor).sum()

    def plain(bias: np.ndarray, scale: np.ndarray) -> float:
        y = special.softmax(exact(x) * scale + bias, axis=-1)
        return float((y * exact(factor)).sum())

    for mask in (bias, bias5):
        got = mx.grad(loss, (0, 1))(mask, mx.array(0.7))
        base = exact(mask)
        want_mask = differences(lambda b: plain(b, np.array(0.7)), base)
        want_scale = differences(lambda s, b=base: plain(b, s), np.array(0.7))
        np.testing.assert_allclose(exact(got[0]), want_mask, atol=1e-5)
        np.testing.assert_allclose(exact(got[1]), want_scale, atol=1e-5)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(shape=shapes, dtype=dtypes, ddof=st.integers(0, 3), seed=st.integers(0, 1000))
def test_variances_match_numpy(shape, dtype, ddof, seed) -> None:
    x = normal(shape, seed, dtype)
    with np.errstate(divide="ignore", invalid="ignore"):
        want = exact(x).var(-1, ddof=0) * shape[1] / max(shape[1] - ddof, 0)
    if shape[1] > ddof:
        close(ops.var(x, ddof=ddof), want)
        close(ops.std(x, ddof=ddof), np.sqrt(want))
    else:
        assert not np.isfinite(exact(ops.var(x, ddof=ddof))).any()
    factors = (1 + 0.03 * normal(shape, seed)).astype(dtype)
    close(ops.prod(factors), exact(factors).prod(-1))


def test_variance_does_not_cancel_far_from_zero() -> None:
    x = 1e4 + normal((3, 4096), 1)
    np.testing.assert_allclose(exact(ops.var(x)), exact(x).var(-1), rtol=1e-4)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    shape=shapes,
    dtype=dtypes,
    levels=st.integers(1, 6),
    seed=st.integers(0, 1000),
    nans=st.integers(0, 2),
)
def test_argmax_takes_the_lowest_index_of_ties_and_the_first_nan(
    shape, dtype, levels, seed, nans
) -> None:
    x = np.array(mx.random.randint(-levels, levels, shape, key=mx.random.key(seed))).astype(float)
    x.reshape(-1)[np.random.default_rng(seed).integers(0, x.size, nans)] = np.nan
    array = mx.array(x.astype(np.float32)).astype(dtype)
    assert ops.argmax(array).tolist() == x.argmax(-1).tolist() == mx.argmax(array, -1).tolist()
    assert ops.argmin(array).tolist() == x.argmin(-1).tolist() == mx.argmin(array, -1).tolist()


def test_argmax_of_infinities() -> None:
    x = mx.array([[-float("inf")] * 40, [0.0] * 39 + [float("inf")]])
    assert ops.argmax(x).tolist() == [0, 39]
    assert ops.argmin(-x).tolist() == [0, 39]


def cross_entropy(x: np.ndarray, targets: np.ndarray, smoothing: float, ignored: int) -> np.ndarray:
    log_p = special.log_softmax(x, axis=-1)
    safe = np.where(targets == ignored, 0, targets)
    hit = np.take_along_axis(log_p, safe[..., None], -1)[..., 0]
    return np.where(targets == ignored, 0, -(1 - smoothing) * hit - smoothing * log_p.mean(-1))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(2, 70)),
    dtype=dtypes,
    kind=st.sampled_from([mx.int32, mx.uint32, mx.int64]),
    smoothing=st.sampled_from([0.0, 0.1, 1.0]),
    seed=st.integers(0, 1000),
)
def test_cross_entropy_and_its_gradient_match_numpy(shape, dtype, kind, smoothing, seed) -> None:
    x = (3 * normal(shape, seed)).astype(dtype)
    targets = mx.random.randint(0, shape[2], shape[:2], key=mx.random.key(seed)).astype(kind)
    ignored = int(targets[0, 0].item())
    options = {"ignore_index": ignored, "label_smoothing": smoothing}

    def loss(x: mx.array) -> mx.array:
        return ops.softmax_cross_entropy(x, targets, **options)

    got = loss(x)
    assert got.dtype == mx.float32
    close(got, cross_entropy(exact(x), np.array(targets), smoothing, ignored))
    gradient = mx.grad(lambda x: (loss(x) * mx.cos(mx.arange(got.size).reshape(got.shape))).sum())(
        x
    )
    hit = np.eye(shape[2])[np.array(targets)]
    want = special.softmax(exact(x), axis=-1) - (1 - smoothing) * hit - smoothing / shape[2]
    want *= np.cos(np.arange(got.size)).reshape(got.shape)[..., None]
    want *= (np.array(targets) != ignored)[..., None]
    close(gradient, want)


def test_an_ignored_row_counts_for_nothing_whatever_is_in_it() -> None:
    x = mx.array([[float("nan")] * 3, [1e4, 0.0, -1e4]])
    targets = mx.array([-100, 0])
    assert ops.softmax_cross_entropy(x, targets).tolist() == [0, 0]
    gradient = mx.grad(lambda x: ops.softmax_cross_entropy(x, targets).sum())(x)
    assert gradient.tolist() == [[0, 0, 0], [0, 0, 0]]


X = mx.zeros((2, 7))
INDICES = mx.array([0, 1])
MISTAKES = [
    (
        lambda: ops.masked_softmax(X, mx.zeros((3,), mx.bool_)),
        "[masked_softmax] mask must broadcast to (2, 7) but got shape (3,).",
    ),
    (
        lambda: ops.masked_softmax(X, mx.zeros((7,), mx.int32)),
        "[masked_softmax] mask must be bool or float32 but got int32.",
    ),
    (
        lambda: ops.masked_softmax(X.astype(mx.float16), mx.zeros((7,), mx.bfloat16)),
        "[masked_softmax] mask must be bool, float16 or float32 but got bfloat16.",
    ),
    (
        lambda: ops.scale_mask_softmax(X, X, mx.zeros((2,))),
        "[masked_softmax] scale must be one number but got shape (2,).",
    ),
    (
        lambda: ops.scale_mask_softmax(X, X, INDICES[:1]),
        "[masked_softmax] scale must be float32 but got int32.",
    ),
    (lambda: ops.var(X, ddof=-1), "[var] ddof must not be negative but got -1."),
    (
        lambda: ops.argmax(mx.zeros((3, 0))),
        "[argmax] x's last axis must have at least 1 elements but got float32(3, 0).",
    ),
    (
        lambda: ops.rms_norm_dropout(X, p=2),
        "[rms_norm_dropout] p must be from 0 to 1 but got 2.",
    ),
    (
        lambda: mx.eval(ops.layer_norm_dropout(X, p=mx.array(-1.0))),
        "[layer_norm_dropout] p must be from 0 to 1 but got -1.",
    ),
    (
        lambda: ops.add_rms_norm(X, X[:1]),
        "[add_rms_norm] residual must have shape (2, 7) but got (1, 7).",
    ),
    (
        lambda: ops.softmax_cross_entropy(X, X[0]),
        "[softmax_cross_entropy] targets must be int32, uint32 or int64 but got float32.",
    ),
    (
        lambda: ops.softmax_cross_entropy(X, INDICES[:1]),
        "[softmax_cross_entropy] targets must have shape (2,) but got (1,).",
    ),
    (
        lambda: ops.softmax_cross_entropy(X[:, :0], INDICES),
        "[softmax_cross_entropy] logits must have at least 1 class but got float32(2, 0).",
    ),
    (
        lambda: ops.softmax_cross_entropy(X, INDICES, label_smoothing=1.5),
        "[softmax_cross_entropy] label_smoothing must be from 0 to 1 but got 1.5.",
    ),
    (
        lambda: mx.eval(ops.softmax_cross_entropy(X, mx.array([0, 7]))),
        "[softmax_cross_entropy] targets must be from 0 to 6, or ignore_index, -100, but one is 7.",
    ),
    (
        lambda: mx.eval(ops.softmax_cross_entropy(X, mx.array([-1, 0]), ignore_index=7)),
        "[softmax_cross_entropy] targets must be from 0 to 6, or ignore_index, 7, but one is -1.",
    ),
]


@pytest.mark.parametrize(("call", "message"), MISTAKES)
def test_mistakes_are_named(call, message: str) -> None:
    with pytest.raises((ValueError, TypeError, RuntimeError)) as error:
        call()
    assert message in str(error.value)
