# zmlx/rope_ops.py: rotary position embeddings, from frequencies or tables, with a KV cache.
"""Rotary position embeddings, of which `zmlx.ops` has the functions."""

from __future__ import annotations

import functools
import math
from typing import Any

import mlx.core as mx

from zmlx import _ext


@functools.cache
def _inverse_frequencies(dims: int, base: float) -> mx.array:
    return mx.array([base ** (-2 * i / dims) for i in range(dims // 2)], mx.float32)


def _rope_inputs(
    name: str, width: int, dims: int | None, base: float, offset: int | mx.array, freqs: Any
) -> tuple[mx.array, mx.array]:
    """The offset as int32 and the inverse frequencies, as the ops take them."""
    dims = width if dims is None else dims
    if dims < 2 or dims % 2 or dims > width:
        message = f"[{name}] dims must be even and lie between 2 and {width} but got {dims}."
        raise ValueError(message)
    if freqs is None:
        inv_freq = _inverse_frequencies(dims, float(base))
    elif freqs.shape == (dims // 2,):
        inv_freq = mx.reciprocal(freqs.astype(mx.float32))
    else:
        shape = tuple(freqs.shape)
        raise ValueError(f"[{name}] freqs must have shape ({dims // 2},) but got {shape}.")
    if isinstance(offset, mx.array):
        return offset.astype(mx.int32), inv_freq
    return mx.array(offset, mx.int32), inv_freq


def rope(
    x: mx.array,
    dims: int | None = None,
    *,
    traditional: bool = False,
    base: float = 10000.0,
    scale: float = 1.0,
    offset: int | mx.array = 0,
    freqs: mx.array | None = None,
) -> mx.array:
    """Rotary position embedding of x [.., T, D], as `mx.fast.rope` (Su et al., 2021).

    The first `dims` elements (by default all) are rotated in pairs (i, i + dims / 2), or
    (2i, 2i + 1) when `traditional`, by the angle (offset + t) * scale * base^(-2i / dims), or
    (offset + t) * scale / freqs[i] with `freqs` [dims / 2].

    Args:
        offset: the first token's position, or an array with one for each of x's sequences (axis 0).
    """
    if x.ndim < 2:
        raise ValueError(f"[rope] x must have at least 2 axes but got shape {tuple(x.shape)}.")
    start, inv_freq = _rope_inputs("rope", x.shape[-1], dims, base, offset, freqs)
    batch = x.shape[0] if x.ndim > 2 else 1
    heads = math.prod(x.shape[1:-2])
    attrs = {
        "dims": 2 * inv_freq.size,
        "traditional": traditional,
        "scale": float(scale),
    }
    flat = x.reshape(batch, heads, *x.shape[-2:])
    return _ext.apply("rope", [flat, start, inv_freq], attrs)[0].reshape(x.shape)


def rope_tables(
    tokens: int,
    dims: int,
    *,
    base: float = 10000.0,
    scale: float = 1.0,
    offset: int | mx.array = 0,
    freqs: mx.array | None = None,
) -> tuple[mx.array, mx.array]:
    """Cosines and sines of `rope`'s angles for `apply_rope`: float32 [tokens, dims / 2], or
    [B, tokens, dims / 2] for an array of B offsets."""
    start, inv_freq = _rope_inputs("rope_tables", dims, dims, base, offset, freqs)
    attrs = {"tokens": tokens, "scale": float(scale)}
    cos, sin = _ext.apply("rope_tables", [start, inv_freq], attrs)
    return cos, sin


def rope_qk(
    q: mx.array,
    k: mx.array,
    dims: int | None = None,
    *,
    traditional: bool = False,
    base: float = 10000.0,
    scale: float = 1.0,
    offset: int | mx.array = 0,
    freqs: mx.array | None = None,
    heads_last: bool = False,
) -> tuple[mx.array, mx.array]:
    """`rope` of queries [B, Hq, T, D] and keys [B, Hkv, T, D], or [B, T, H, D] when `heads_last`:
    angles are computed once, and both are rotated in one pass."""
    if q.ndim != 4:
        raise ValueError(f"[rope_qk] q must have 4 axes but got shape {tuple(q.shape)}.")
    start, inv_freq = _rope_inputs("rope_qk", q.shape[-1], dims, base, offset, freqs)
    attrs = {"tokens": q.shape[1 if heads_last else 2], "scale": float(scale)}
    cos, sin = _ext.apply("rope_tables", [start, inv_freq], attrs)
    return apply_rope_qk(q, k, cos, sin, traditional=traditional, heads_last=heads_last)


def apply_rope(
    x: mx.array,
    cos: mx.array,
    sin: mx.array,
    *,
    traditional: bool = False,
    heads_last: bool = False,
) -> mx.array:
    """x [.., T, D], or [.., T, H, D] when `heads_last`, rotated by given cosines and sines.

    The first `dims` elements are rotated in pairs (i, i + dims / 2), or (2i, 2i + 1) when
    `traditional` (Su et al., 2021).

    Args:
        cos, sin: [T, dims / 2], or [B, T, dims / 2] for sequences with positions of their own,
            float32 or of x's dtype.
    """
    attrs = {"traditional": traditional, "heads_last": heads_last}
    return _ext.apply("apply_rope", [cos, sin, x], attrs)[0]


def apply_rope_qk(
    q: mx.array,
    k: mx.array,
    cos: mx.array,
    sin: mx.array,
    *,
    traditional: bool = False,
    heads_last: bool = False,
) -> tuple[mx.array, mx.array]:
    """`apply_rope` of queries and keys, which may differ in their number of heads, in one pass."""
    attrs = {"traditional": traditional, "heads_last": heads_last}
    rotated_q, rotated_k = _ext.apply("apply_rope", [cos, sin, q, k], attrs)
    return rotated_q, rotated_k


def rope_cache_update(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    cos: mx.array,
    sin: mx.array,
    offset: int | mx.array,
    k_cache: mx.array,
    v_cache: mx.array,
    *,
    block_table: mx.array | None = None,
    traditional: bool = False,
    heads_first: bool = False,
) -> tuple[mx.array, mx.array, mx.array]:
    """q and k rotated, k and v written to a KV cache: (q, k_cache, v_cache).

    The caches keep their other rows. They are written in place when nothing else holds them, else
    copied first.

    Args:
        q: [B, T, Hq, D], or [B, Hq, D] for one token; k and v [B, T, Hkv, D] alike.
        cos, sin: tables [P, dims / 2] of all positions, float32 or of q's dtype (`rope_tables`).
        offset: position of the first token, or int32 [B] with each sequence's own.
        k_cache, v_cache: [B, C, Hkv, D]; with `block_table` blocks [N, BS, Hkv, D].
        block_table: int32 [B, M]: position p of sequence b is row p % BS of block
            block_table[b, p // BS].
        heads_first: [B, H, T, D] and [B, Hkv, C, D] instead.

    Raises:
        ValueError: shapes or dtypes do not fit.
        RuntimeError: (when evaluated) a position or a block lies outside the tables or caches.
    """
    token_axis = 2 if heads_first else 1
    one = q.ndim == 3
    rows = [mx.expand_dims(x, token_axis) if one else x for x in (q, k, v)]
    start = offset.astype(mx.int32) if isinstance(offset, mx.array) else mx.array(offset, mx.int32)
    inputs = [*rows, cos, sin, start]
    if block_table is not None:
        inputs.append(block_table.astype(mx.int32))
    attrs = {
        "traditional": traditional,
        "heads_first": heads_first,
        "paged": block_table is not None,
    }
    out, keys, values = _ext.apply("rope_cache_update", [*inputs, k_cache, v_cache], attrs)
    return out.squeeze(token_axis) if one else out, keys, values
