# tests/python/test_ops_rope.py: rotary embeddings, alone and with a KV cache, against NumPy.
import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_testing import TOLERANCE, close, exact
from op_inputs import dtypes, normal, strided

from zmlx import ops


def turn(x: np.ndarray, angle: np.ndarray, traditional: bool) -> np.ndarray:
    """x [.., D] with its first elements rotated by angle [.., dims / 2]."""
    half = angle.shape[-1]
    y = x.copy()
    first = slice(0, 2 * half, 2) if traditional else slice(0, half)
    second = slice(1, 2 * half, 2) if traditional else slice(half, 2 * half)
    a, b = x[..., first], x[..., second]
    y[..., first] = a * np.cos(angle) - b * np.sin(angle)
    y[..., second] = a * np.sin(angle) + b * np.cos(angle)
    return y


def angles(positions: np.ndarray, dims: int, base: float = 10000.0, scale: float = 1.0):
    return positions[..., None] * scale * base ** (-np.arange(0, dims, 2) / dims)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    heads=st.integers(1, 3),
    tokens=st.sampled_from([1, 2, 31, 32, 33]),
    width=st.integers(2, 70),
    share=st.floats(0.1, 1),
    traditional=st.booleans(),
    offset=st.integers(0, 300),
    dtype=dtypes,
)
def test_rope_is_a_rotation_of_pairs(heads, tokens, width, share, traditional, offset, dtype):
    dims = max(2, int(width * share) // 2 * 2)
    x = strided(normal((2, heads, tokens, width), 1, dtype))
    got = ops.rope(x, dims, traditional=traditional, scale=0.5, offset=offset)
    angle = angles(offset + np.arange(tokens), dims, scale=0.5)
    # Angles are float32, as in MLX: rounded themselves, and of rounded frequencies.
    rounding = angle.max() * 2.0**-23
    close(got, turn(exact(x), angle, traditional), TOLERANCE[dtype] + rounding)


@pytest.mark.parametrize("shape", [(5, 8), (2, 5, 8), (2, 3, 5, 8), (2, 3, 2, 5, 8)])
def test_rope_takes_any_rank_and_agrees_with_mlx(shape: tuple[int, ...]) -> None:
    x = normal(shape, 1)
    options = {"traditional": False, "base": 500.0, "scale": 1.0, "offset": 3}
    flat = x.reshape(-1, *shape[-2:])
    want = mx.fast.rope(flat, 8, **options).reshape(shape)
    close(ops.rope(x, base=500.0, offset=3), exact(want))


def test_rope_takes_frequencies_and_an_offset_for_each_sequence() -> None:
    x = normal((3, 2, 4, 8), 1)
    freqs = mx.array([1.0, 3.0, 10.0, 50.0])
    offset = mx.array([0, 7, 100])
    positions = np.array(offset)[:, None, None] + np.arange(4)
    angle = positions[..., None] / np.array(freqs)
    close(ops.rope(x, offset=offset, freqs=freqs), turn(exact(x), angle, False))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    tokens=st.sampled_from([1, 3, 31, 32, 33]),
    half=st.integers(1, 20),
    extra=st.integers(0, 3),
    traditional=st.booleans(),
    heads_last=st.booleans(),
    own=st.booleans(),
    dtype=dtypes,
)
def test_queries_and_keys_rotate_by_given_tables(
    tokens, half, extra, traditional, heads_last, own, dtype
):
    width = 2 * half + extra
    shape = [(2, tokens, h, width) if heads_last else (2, h, tokens, width) for h in (4, 2)]
    q, k = normal(shape[0], 1, dtype), strided(normal(shape[1], 2, dtype))
    angle = 3 * normal((2, tokens, half) if own else (tokens, half), 3)
    cos, sin = mx.cos(angle), mx.sin(angle)
    out = ops.apply_rope_qk(q, k, cos, sin, traditional=traditional, heads_last=heads_last)
    wide = exact(angle) if own else exact(angle)[None]
    wide = wide[:, :, None] if heads_last else wide[:, None]
    close(out[0], turn(exact(q), wide, traditional))
    close(out[1], turn(exact(k), wide, traditional))
    one = ops.apply_rope(q, cos, sin, traditional=traditional, heads_last=heads_last)
    assert mx.array_equal(one, out[0])


@pytest.mark.parametrize("heads_last", [False, True])
def test_queries_and_keys_rotate_in_one_call(heads_last: bool) -> None:
    q, k = normal((2, 4, 5, 16), 1), normal((2, 2, 5, 16), 2)
    offset = mx.array([3, 50])
    want = [ops.rope(x, 12, offset=offset) for x in (q, k)]
    swapped = [x.swapaxes(1, 2) if heads_last else x for x in (q, k)]
    got = ops.rope_qk(*swapped, 12, offset=offset, heads_last=heads_last)
    for x, y in zip(got, want, strict=True):
        close(x.swapaxes(1, 2) if heads_last else x, exact(y))


def test_tables_are_those_of_rope() -> None:
    cos, sin = ops.rope_tables(7, 6, base=100.0, offset=2)
    angle = angles(2 + np.arange(7), 6, 100.0)
    close(cos, np.cos(angle))
    close(sin, np.sin(angle))


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
@pytest.mark.parametrize("heads_first", [False, True])
@pytest.mark.parametrize("tokens", [1, 3])
def test_the_cache_gets_new_rows_and_keeps_the_old(dtype, heads_first, tokens) -> None:
    q, k, v = (normal((2, tokens, h, 8), i, dtype) for i, h in enumerate((4, 2, 2)))
    caches = [normal((2, 10, 2, 8), 5 + i, dtype) for i in range(2)]
    angle = 3 * normal((10, 4), 9)
    offset = mx.array([6, 0])
    order = (0, 2, 1, 3) if heads_first else (0, 1, 2, 3)
    got = ops.rope_cache_update(
        *(x.transpose(order) for x in (q, k, v)),
        mx.cos(angle),
        mx.sin(angle),
        offset,
        *(x.transpose(order) for x in caches),
        heads_first=heads_first,
    )
    positions = np.array(offset)[:, None] + np.arange(tokens)
    by = exact(angle)[positions][:, :, None]
    want = [exact(x) for x in caches]
    for b in range(2):
        want[0][b, positions[b]] = turn(exact(k), by, False)[b]
        want[1][b, positions[b]] = exact(v)[b]
    close(got[0].transpose(order), turn(exact(q), by, False))
    close(got[1].transpose(order), want[0])
    close(got[2].transpose(order), want[1])
    assert mx.array_equal(caches[0], normal((2, 10, 2, 8), 5, dtype))  # the old one is untouched


def test_blocks_hold_the_rows_that_the_table_says() -> None:
    q, k, v = (normal((2, h, 8), i) for i, h in enumerate((4, 2, 2)))  # one token each
    keys, values = normal((5, 4, 2, 8), 5), normal((5, 4, 2, 8), 6)
    cos, sin = ops.rope_tables(12, 8)
    table = mx.array([[3, 1, -1], [0, 4, 2]])
    out, new_keys, new_values = ops.rope_cache_update(
        q, k, v, cos, sin, mx.array([5, 11]), keys, values, block_table=table, traditional=True
    )
    assert out.shape == q.shape
    angle = angles(np.array([5, 11]), 8)[:, None]
    want = exact(keys), exact(values)
    for b, (block, place) in enumerate([(1, 1), (2, 3)]):
        want[0][block, place] = turn(exact(k), angle, True)[b]
        want[1][block, place] = exact(v)[b]
    close(out, turn(exact(q), angle, True))
    close(new_keys, want[0])
    close(new_values, want[1])


def test_a_cache_that_nobody_else_holds_is_written_in_place() -> None:
    k = v = mx.ones((1, 1, 1, 8))
    cos, sin = ops.rope_tables(64, 8)
    keys, values = mx.zeros((1, 64, 1, 8)), mx.zeros((1, 64, 1, 8))
    mx.eval(k, cos, sin, keys, values)
    for i in range(64):
        _, keys, values = ops.rope_cache_update(k, k, v, cos, sin, i, keys, values)
    mx.eval(keys, values)
    assert (values == 1).all().item()


def test_the_gradient_rotates_back() -> None:
    x, g = normal((2, 3, 5, 8), 1), normal((2, 3, 5, 8), 2)
    got = mx.grad(lambda a: (ops.rope(a, 6, offset=4) * g).sum())(x)
    close(got, turn(exact(g), -angles(4 + np.arange(5), 6), False))
    cos, sin = ops.rope_tables(5, 8)
    got = mx.grad(lambda a: (ops.apply_rope(a, cos, sin, traditional=True) * g).sum())(x)
    close(got, turn(exact(g), -angles(np.arange(5), 8), True))


def test_nan_and_infinity_stay_in_their_pair() -> None:
    x = normal((1, 1, 1, 8), 1)
    x[..., 1] = float("nan")
    x[..., 6] = float("inf")
    y = exact(ops.rope(x, offset=1))[0, 0, 0]
    assert np.isnan(y[[1, 5]]).all()
    assert np.isinf(y[[2, 6]]).all()
    assert np.isfinite(y[[0, 3, 4, 7]]).all()


def test_empty_arrays_stay_empty() -> None:
    assert ops.rope(mx.zeros((2, 3, 0, 8))).shape == (2, 3, 0, 8)
    cos, sin = ops.rope_tables(0, 8)
    assert ops.apply_rope(mx.zeros((3, 0, 8)), cos, sin).shape == (3, 0, 8)


X = mx.zeros((2, 3, 4, 8))
COS = mx.zeros((4, 4))
CACHE = mx.zeros((2, 6, 3, 8))


def update(offset: mx.array, table: mx.array | None = None):
    k = X[:, :, :1].swapaxes(1, 2)
    tables = mx.zeros((8, 4))
    return ops.rope_cache_update(k, k, k, tables, tables, offset, CACHE, CACHE, block_table=table)


MISTAKES = [
    (lambda: ops.rope(X[0, 0, 0]), "[rope] x must have at least 2 axes but got shape (8,)."),
    (lambda: ops.rope(X, 7), "[rope] dims must be even and lie between 2 and 8 but got 7."),
    (lambda: ops.rope(X, 10), "[rope] dims must be even and lie between 2 and 8 but got 10."),
    (
        lambda: ops.rope(X, freqs=mx.ones((3,))),
        "[rope] freqs must have shape (4,) but got (3,).",
    ),
    (
        lambda: ops.rope(X, offset=mx.array([1, 2, 3])),
        "[rope] offset must be one number but got shape (3,).",
    ),
    (lambda: ops.rope_qk(X[0], X), "[rope_qk] q must have 4 axes but got shape (3, 4, 8)."),
    (
        lambda: ops.rope_tables(-1, 8),
        "[rope_tables] tokens must not be negative but got -1.",
    ),
    (
        lambda: ops.rope_tables(1, 8, offset=mx.zeros((1, 2))),
        "[rope_tables] offset must be one number or [B] but got shape (1, 2).",
    ),
    (
        lambda: ops.apply_rope(X, COS[:3], COS[:3]),
        "[apply_rope] cos and sin must have 4 positions, as x, but got 3.",
    ),
    (
        lambda: ops.apply_rope(X, COS, COS[:3]),
        "[apply_rope] sin must have shape (4, 4) but got (3, 4).",
    ),
    (
        lambda: ops.apply_rope(X[..., :6], COS, COS),
        "[apply_rope] cos and sin must have 1 to 3 columns, half of x's last axis, but got 4.",
    ),
    (
        lambda: ops.apply_rope(X, COS[0], COS[0]),
        "[apply_rope] cos must be [T, dims / 2] or [B, T, dims / 2] but got float32(4,).",
    ),
    (
        lambda: ops.apply_rope(X, mx.zeros((3, 4, 4)), mx.zeros((3, 4, 4))),
        "[apply_rope] cos and sin must be of 2 sequences but got 3.",
    ),
    (
        lambda: ops.apply_rope(X[0, 0], COS, COS, heads_last=True),
        "[apply_rope] x must be [.., T, H, D] but got float32(4, 8).",
    ),
    (
        lambda: ops.apply_rope(X, COS.astype(mx.float16), COS.astype(mx.float16)),
        "[apply_rope] cos must be float32 but got float16.",
    ),
    (
        lambda: mx.eval(update(mx.array(6))),
        "[rope_cache_update] positions must be from 0 to below 6, which cos, sin and the cache "
        "have room for, but one is 6.",
    ),
    (
        lambda: mx.eval(update(mx.array([0, -1]))),
        "[rope_cache_update] positions must be from 0 to below 6, which cos, sin and the cache "
        "have room for, but one is -1.",
    ),
    (
        lambda: mx.eval(update(mx.array(0), mx.array([[1], [2]]))),
        "[rope_cache_update] blocks must be from 0 to below 2 but one is 2.",
    ),
    (
        lambda: update(mx.array(0), mx.array([[1]])),
        "[rope_cache_update] block_table must have shape (2, 1) but got (1, 1).",
    ),
    (
        lambda: update(mx.array([1, 2, 3])),
        "[rope_cache_update] offset must have shape (2,) but got (3,).",
    ),
]


@pytest.mark.parametrize(("call", "message"), MISTAKES)
def test_mistakes_are_named(call, message: str) -> None:
    with pytest.raises((ValueError, TypeError, RuntimeError)) as error:
        call()
    assert message in str(error.value)
