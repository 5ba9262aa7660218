# tests/python/test_kernels_attention.py: rotary positions, caches, and linear attention's parts.
from __future__ import annotations

import re

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_testing import DTYPES, agree, close, exact, normal, silu

import zmlx.nn
from zmlx.kernels import attention, deltanet, rope, skv


def tables(positions: int, d: int) -> list[mx.array]:
    angles = mx.arange(positions)[:, None] * 10000.0 ** (-mx.arange(d // 2) / (d // 2))
    return [mx.cos(angles), mx.sin(angles)]


def halves(x, cos, sin):
    a, b = mx.split(x, 2, axis=-1)
    return mx.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)


def pairs(x, cos, sin):
    a, b = x[..., ::2], x[..., 1::2]
    return mx.stack([a * cos - b * sin, a * sin + b * cos], axis=-1).reshape(x.shape)


def fixed(function, cos, sin, **options):
    """The function of x alone; the tables stay in float32."""
    return lambda x: function(x, cos, sin, **options)


@pytest.mark.parametrize("d", [2, 32, 34])
def test_rope_of_halves_and_of_pairs(d: int) -> None:
    cos, sin = tables(7, d)
    x = normal(2, 3, 7, d)
    agree(fixed(rope.apply_rope, cos, sin), fixed(halves, cos, sin), [x])
    agree(fixed(rope.apply_rope_interleaved, cos, sin), fixed(pairs, cos, sin), [x])
    agree(
        fixed(rope.apply_gqa_rope, cos, sin, n_kv_heads=2),
        fixed(halves, cos[:, None], sin[:, None]),
        [normal(2, 7, 4, d)],
    )


def test_rope_is_mlxs_own() -> None:
    x = normal(2, 4, 9, 64)
    cos, sin = tables(9, 64)
    for function, traditional in ((rope.apply_rope, False), (rope.apply_rope_interleaved, True)):
        want = mx.fast.rope(x, 64, traditional=traditional, base=10000.0, scale=1.0, offset=0)
        close(function(x, cos, sin), want, 1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rope_and_cache_update_keeps_the_cache(dtype: mx.Dtype) -> None:
    cos, sin = tables(11, 16)
    q, k, v = (normal(3, h, 16, dtype=dtype, seed=h) for h in (4, 2, 2))
    caches = [normal(3, 11, 2, 16, dtype=dtype, seed=i) for i in (7, 8)]
    before = [exact(cache) for cache in caches]
    offset = mx.array([0, 10, 4], mx.int32)
    got = rope.rope_and_cache_update(q, k, v, cos, sin, *caches, offset)
    rows = [table[offset][:, None] for table in (cos, sin)]
    close(got[0], halves(q.astype(mx.float32), *rows))
    for cache, old, new in zip(
        got[1:], before, (halves(k.astype(mx.float32), *rows), v), strict=True
    ):
        want = old.copy()
        want[np.arange(3), np.array(offset)] = exact(new)
        close(cache, want)
    for cache, old in zip(caches, before, strict=True):
        np.testing.assert_array_equal(exact(cache), old)


def test_paged_rope_and_cache_update_keeps_the_cache() -> None:
    cos, sin = tables(12, 8)
    q, k, v = (normal(2, h, 8, seed=h) for h in (4, 2, 3))
    v = v[:, :2]
    caches = [normal(6, 4, 2, 8, seed=i) for i in (7, 8)]
    offset, table = mx.array([9, 2], mx.int32), mx.array([[5, 0, 3], [1, 4, 2]], mx.int32)
    got = rope.paged_rope_and_cache_update(q, k, v, cos, sin, *caches, offset, table)
    rows = [t[offset][:, None] for t in (cos, sin)]
    close(got[0], halves(q, *rows))
    for cache, old, new in zip(got[1:], caches, (halves(k, *rows), v), strict=True):
        want = exact(old).copy()
        want[3, 1], want[1, 2] = exact(new)[0], exact(new)[1]
        close(cache, want)


def test_queries_and_keys_of_latent_attention() -> None:
    cos, sin = tables(9, 8)
    q, r = normal(2, 3, 1, 5), normal(2, 3, 1, 8, seed=1)
    k, s = normal(2, 1, 1, 5, seed=2), normal(2, 1, 1, 8, seed=3)

    def plain(places):
        rows = [table[mx.array(places)][:, None, None] for table in (cos, sin)]
        return [mx.concatenate([a, pairs(b, *rows)], -1) for a, b in ((q, r), (k, s))]

    for offset, places in ((4, [4, 4]), (mx.array(4), [4, 4]), (mx.array([1, 8]), [1, 8])):
        got = rope.rope_concat_qk_decode(q, r, k, s, cos, sin, offset)
        for a, b in zip(got, plain(places), strict=True):
            close(a, b)
    got = rope.rope_concat_qk_decode_pos(q, r, k, s, cos[4], sin[4])
    for a, b in zip(got, plain([4, 4]), strict=True):
        close(a, b)
    back = rope.rope_concat_qk_decode(q, r, k, s, cos, sin, -4)[0][..., 5:]
    close(pairs(back, cos[4], sin[4]), r)
    agree(
        lambda q, r, k, s: rope.rope_concat_qk_decode(q, r, k, s, cos, sin, 4),
        lambda q, r, k, s: (
            mx.concatenate([q, pairs(r, cos[4], sin[4])], -1),
            mx.concatenate([k, pairs(s, cos[4], sin[4])], -1),
        ),
        [q, r, k, s],
    )


def plain_attention(q, keys, values, scale):
    """One query [H, D] over keys and values [T, KV heads, D]."""
    each = q.shape[0] // keys.shape[1]
    keys, values = (np.repeat(exact(a), each, 1) for a in (keys, values))
    scores = scale * np.einsum("hd,thd->ht", exact(q), keys)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("ht,thd->hd", weights / weights.sum(-1, keepdims=True), values)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(0, 12), min_size=1, max_size=4),
    size=st.sampled_from([1, 3, 4]),
    heads=st.sampled_from([(4, 2), (3, 3), (6, 1)]),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 99),
)
def test_paged_attention(lengths, size, heads, dtype, seed) -> None:
    h, kv = heads
    width = -(-12 // size)
    table = np.random.default_rng(seed).integers(0, 9, (len(lengths), width)).astype(np.int32)
    q = normal(len(lengths), h, 16, dtype=dtype, seed=seed)
    caches = [normal(9, size, kv, 16, dtype=dtype, seed=seed + i) for i in (1, 2)]
    want = np.zeros(q.shape)
    for b, n in enumerate(lengths):
        if n:
            keys, values = (c[mx.array(table[b])].reshape(-1, kv, 16)[:n] for c in caches)
            want[b] = plain_attention(q[b], keys, values, 0.3)
    # Blocks that a sequence does not use may be anything.
    for b, n in enumerate(lengths):
        table[b, -(-n // size) :] = -1
    layer = zmlx.nn.PagedAttention(h, kv, 16, scale=0.3)
    for function in (
        layer,
        lambda *a: attention.paged_attention(*a, scale=0.3, threadgroup=64, max_context=8),
    ):
        got = function(q, *caches, mx.array(table), mx.array(lengths, mx.int32))
        close(got, want, 1e-4 if dtype == mx.float32 else None)


def test_paged_attention_of_a_long_context() -> None:
    caches = [normal(40, 128, 1, 8, seed=i) for i in (1, 2)]
    q, table = normal(1, 2, 8), mx.arange(40).reshape(1, 40)
    got = attention.paged_attention(q, *caches, table, mx.array([5100]), max_context=4096)
    keys, values = (cache.reshape(-1, 1, 8)[:5100] for cache in caches)
    close(got[0], plain_attention(q[0], keys, values, 8**-0.5), 1e-4)


@pytest.mark.parametrize("channels", [1, 300, 512])
def test_conv1d_silu_of_any_number_of_channels(channels: int) -> None:
    x, w = normal(2, 4, channels), normal(channels, 4, seed=1)

    def plain(x, w):
        return silu((x * w.T).sum(1, keepdims=True)), x[:, 1:]

    agree(deltanet.fused_conv1d_silu, plain, [x, w])
    for shape in ((channels, 4, 1), (channels, 1, 4, 1)):
        close(deltanet.fused_conv1d_silu(x, w.reshape(shape))[0], plain(x, w)[0], 1e-4)


def test_gated_rmsnorm_silu() -> None:
    def plain(y, z, w):
        return y * mx.rsqrt((y * y).mean(-1, keepdims=True) + 1e-6) * w * silu(z)

    agree(deltanet.gated_rmsnorm_silu, plain, [normal(3, 33), normal(3, 33, seed=1), normal(33)])


def test_fused_input_proj_copies_no_weight() -> None:
    x = normal(2, 1, 256)
    weights = [normal(n, 256, seed=n) for n in (2000, 1000, 8, 16)]
    mx.eval(x, weights)
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    got = deltanet.fused_input_proj(x, *weights)
    mx.eval(got)
    assert mx.get_peak_memory() - before < weights[1].nbytes
    for y, w in zip(got, weights, strict=True):
        close(y, exact(x) @ exact(w).T, 1e-4)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("group_size", [1, 7, 32])
def test_low_rank_caches_are_within_half_a_step(bits: int, group_size: int) -> None:
    kv, basis = normal(5, 2, 16), normal(2, 16, 6, seed=1)
    state = skv.skv_fused_project_quantize(kv, basis, bits=bits, group_size=group_size)
    assert state["q_data"].dtype == mx.uint8
    assert (state["shape"], state["bits"], state["group_size"]) == ((5, 2, 6), bits, group_size)
    want = np.einsum("shd,hdr->shr", exact(kv), exact(basis))
    groups = np.arange(want.size) // group_size
    scale, zero = (exact(state[key])[groups].reshape(want.shape) for key in ("scales", "zeros"))
    coordinates = exact(state["q_data"]) * scale + zero
    # Scales and zeros are float16.
    assert (np.abs(coordinates - want) <= 0.51 * scale + 0.002 * np.abs(want).max()).all()
    restored = skv.skv_fused_dequantize_unproject(state, basis)
    close(restored, np.einsum("shr,hdr->shd", coordinates, exact(basis)), 1e-4)
    q = normal(3, 4, 6, seed=2)
    scores = skv.skv_compressed_attention(q, state, num_heads=4, num_kv_heads=2, scale=0.5)
    each = np.repeat(coordinates, 2, 1)
    close(scores, 0.5 * np.einsum("qhr,khr->hqk", exact(q), each), 1e-4)


def test_low_rank_caches_of_constants() -> None:
    state = skv.skv_fused_project_quantize(mx.ones((3, 1, 2)), mx.ones((1, 2, 2)))
    close(skv.skv_fused_dequantize_unproject(state, mx.ones((1, 2, 2))), np.full((3, 1, 2), 4.0))
    half = skv.skv_fused_project_quantize(
        mx.ones((3, 1, 2)), mx.ones((1, 2, 2)), compute_dtype=mx.float32
    )
    assert half["scales"].dtype == mx.float32


X = mx.zeros((2, 3, 8))
C, S = tables(3, 8)
STATE = skv.skv_fused_project_quantize(normal(5, 2, 16), normal(2, 16, 6))
MISTAKES = [
    (
        lambda: rope.apply_rope(X, C[:2], S),
        "[apply_rope] sin must have shape (2, 4) but got (3, 4).",
    ),
    (
        lambda: rope.apply_gqa_rope(X[None], C, S, n_kv_heads=2),
        "[apply_gqa_rope] x must be [B, S, H, D] with H a multiple of 2 but got (1, 2, 3, 8).",
    ),
    (
        lambda: rope.rope_concat_qk_decode(X, X, X, X, C, S, 0),
        "[rope_concat_qk_decode] q_nope must have shape (2, 3, 1, 8) but got (2, 3, 8).",
    ),
    (
        lambda: attention.paged_attention(X, mx.zeros((1, 4, 2, 8)), X, X[0], X[0, 0]),
        "[paged_attention] v_cache must have 4 axes but got float32(2, 3, 8).",
    ),
    (
        lambda: deltanet.fused_conv1d_silu(X, mx.zeros((8, 4))),
        "[fused_conv1d_silu] weight must be 3 taps for each of 8 channels but got (8, 4).",
    ),
    (
        lambda: deltanet.gated_rmsnorm_silu(X, X[0], mx.ones(8)),
        "[gated_rms_norm] gate must have shape (2, 3, 8) but got (3, 8).",
    ),
    (
        lambda: skv.skv_fused_project_quantize(X, X, bits=3),
        "[skv_fused_project_quantize] bits must be 2, 4 or 8 but got 3.",
    ),
    (
        lambda: skv.skv_fused_project_quantize(X, X, group_size=0),
        "[skv_fused_project_quantize] group_size must be at least 1 but got 0.",
    ),
    (
        lambda: skv.skv_fused_project_quantize(X, X[:1]),
        "[skv_fused_project_quantize] expected kv [S, H, D] and basis [H, D, R] but got (2, 3, 8)",
    ),
    (
        lambda: skv.skv_fused_dequantize_unproject(STATE, X),
        "[skv_fused_dequantize_unproject] basis must be (2, D, 6) for this state but got (2, 3, 8)",
    ),
    (
        lambda: skv.skv_compressed_attention(X, STATE, num_heads=3, num_kv_heads=2, scale=1.0),
        "[skv_compressed_attention] expected q_rank [queries, 3, 6] and 2 KV heads but got",
    ),
    (
        lambda: skv.skv_compressed_attention(
            X[..., :6], STATE, num_heads=3, num_kv_heads=2, scale=1.0
        ),
        "[skv_compressed_attention] num_heads must be a multiple of num_kv_heads, 2, but got 3.",
    ),
]


@pytest.mark.parametrize(("call", "message"), MISTAKES)
def test_mistakes_are_named(call, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
