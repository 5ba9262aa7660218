# tests/python/test_ops_paged_attention.py: attention over blocks of a KV cache, against NumPy.
import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_testing import close, exact
from op_inputs import dtypes, normal, strided
from scipy import special

from zmlx import ops


def attention(q, k_cache, v_cache, table, lengths, scale):
    """Each sequence and head by itself, over its keys in a row."""
    block = k_cache.shape[1]
    group = q.shape[1] // k_cache.shape[2]
    out = np.zeros((*q.shape[:2], v_cache.shape[-1]))
    for b, length in enumerate(lengths):
        rows = [(table[b, j // block], j % block) for j in range(length)]
        for h in range(q.shape[1] if length else 0):
            keys, values = (
                np.stack([cache[row][h // group] for row in rows]) for cache in (k_cache, v_cache)
            )
            out[b, h] = special.softmax(scale * keys @ q[b, h]) @ values
    return out


def a_table(lengths: list[int], block: int, blocks: int, seed: int) -> np.ndarray:
    """Blocks in any order, none twice; what is not needed names none."""
    columns = max(1, -(-max(lengths) // block))
    free = iter(np.random.default_rng(seed).permutation(blocks))
    table = np.full((len(lengths), columns), -1)
    for b, length in enumerate(lengths):
        for i in range(-(-length // block)):
            table[b, i] = next(free)
    return table


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.sampled_from([0, 1, 31, 32, 33, 129, 300]), min_size=1, max_size=3),
    block=st.sampled_from([1, 7, 16, 32]),
    kv_heads=st.integers(1, 3),
    group=st.sampled_from([1, 2, 5, 8]),
    width=st.sampled_from([1, 33, 64, 128]),
    dtype=dtypes,
)
def test_contexts_of_any_length(lengths, block, kv_heads, group, width, dtype) -> None:
    blocks = sum(-(-length // block) for length in lengths) + 1
    q = normal((len(lengths), kv_heads * group, width), 1, dtype)
    k_cache = normal((blocks, block, kv_heads, width), 2, dtype)
    v_cache = strided(normal((blocks, block, kv_heads, 31), 3, dtype))
    table = a_table(lengths, block, blocks, 4)
    got = ops.paged_attention(q, k_cache, v_cache, mx.array(table), mx.array(lengths))
    want = attention(*map(exact, (q, k_cache, v_cache)), table, lengths, width**-0.5)
    close(got, want)


def test_a_long_context_is_cut_into_chunks() -> None:
    length, block = 5003, 64
    q, table = normal((1, 4, 64), 1), 80 - np.arange(1, 81)[None]
    caches = [normal((80, block, 2, 64), 2 + i) for i in range(2)]
    got = ops.paged_attention(q, *caches, mx.array(table), mx.array([length]), 0.3)
    close(got, attention(*map(exact, (q, *caches)), table, [length], 0.3))


def test_what_lies_past_a_context_is_not_read() -> None:
    q, k_cache = normal((1, 2, 8), 1), normal((3, 4, 1, 8), 2)
    v_cache = normal((3, 4, 1, 8), 3)
    k_cache[1, 1:] = float("nan")
    v_cache[1, 1:] = float("inf")
    got = ops.paged_attention(q, k_cache, v_cache, mx.array([[2, 1, 99]]), mx.array([5]))
    assert np.isfinite(exact(got)).all()


def test_scores_of_any_size_do_not_overflow() -> None:
    q = 1e4 * mx.ones((1, 1, 4))
    k_cache = 1e4 * normal((1, 200, 1, 4), 1)
    v_cache = normal((1, 200, 1, 4), 2)
    got = ops.paged_attention(q, k_cache, v_cache, mx.array([[0]]), mx.array([200]), 1.0)
    best = exact(k_cache)[0, :, 0].sum(-1).argmax()
    close(got[0, 0], exact(v_cache)[0, best, 0])


def test_a_nan_key_spoils_its_sequence_alone() -> None:
    q, cache = normal((2, 2, 8), 1), normal((2, 4, 1, 8), 2)
    cache[1, 2] = float("nan")
    got = ops.paged_attention(q, cache, cache, mx.array([[0], [1]]), mx.array([4, 4]))
    assert np.isfinite(exact(got[0])).all()
    assert np.isnan(exact(got[1])).all()


def test_gradients_are_those_of_attention() -> None:
    q, k, v = normal((1, 2, 8), 1), normal((2, 3, 1, 8), 2), normal((2, 3, 1, 8), 3)
    table = mx.array([[1, 0]])

    def paged(q, k, v):
        return ops.paged_attention(q, k, v, table, mx.array([5])).square().sum()

    def plain(q, k, v):
        keys, values = (x[mx.array([1, 0])].reshape(6, 8)[:5] for x in (k, v))
        weights = mx.softmax(q[0] @ keys.T / 8**0.5, -1)
        return (weights @ values).square().sum()

    for got, want in zip(
        mx.grad(paged, (0, 1, 2))(q, k, v), mx.grad(plain, (0, 1, 2))(q, k, v), strict=True
    ):
        close(got, exact(want))


Q, CACHE = mx.zeros((1, 4, 8)), mx.zeros((3, 5, 2, 8))
TABLE, LENGTHS = mx.array([[0, 1]]), mx.array([10])
MISTAKES = [
    (
        lambda: mx.eval(ops.paged_attention(Q, CACHE, CACHE, TABLE, mx.array([11]))),
        "[paged_attention] context_lens must be from 0 to 10, the rows of a sequence's blocks, but "
        "one is 11.",
    ),
    (
        lambda: mx.eval(ops.paged_attention(Q, CACHE, CACHE, mx.array([[0, 3]]), LENGTHS)),
        "[paged_attention] blocks must be from 0 to below 3 but one is 3.",
    ),
    (
        lambda: ops.paged_attention(Q[0], CACHE, CACHE, TABLE, LENGTHS),
        "[paged_attention] q must have 3 axes but got float32(4, 8).",
    ),
    (
        lambda: ops.paged_attention(Q[:, :3], CACHE, CACHE, TABLE, LENGTHS),
        "[paged_attention] query heads must be a multiple of KV heads but got 3 and 2.",
    ),
    (
        lambda: ops.paged_attention(Q, CACHE[..., :7], CACHE, TABLE, LENGTHS),
        "[paged_attention] k_cache must have shape (3, 5, 2, 8) but got (3, 5, 2, 7).",
    ),
    (
        lambda: ops.paged_attention(Q, CACHE, CACHE[:2], TABLE, LENGTHS),
        "[paged_attention] v_cache must have shape (3, 5, 2, 8) but got (2, 5, 2, 8).",
    ),
    (
        lambda: ops.paged_attention(Q, CACHE[:0], CACHE[:0], TABLE, LENGTHS),
        "[paged_attention] k_cache must have at least one row but got float32(0, 5, 2, 8).",
    ),
    (
        lambda: ops.paged_attention(Q, CACHE, CACHE, TABLE, mx.array([1, 2])),
        "[paged_attention] context_lens must have shape (1,) but got (2,).",
    ),
]


@pytest.mark.parametrize(("call", "message"), MISTAKES)
def test_mistakes_are_named(call, message: str) -> None:
    with pytest.raises((ValueError, TypeError, RuntimeError)) as error:
        call()
    assert message in str(error.value)
