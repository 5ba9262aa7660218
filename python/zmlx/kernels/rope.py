# zmlx/kernels/rope.py: rotary positions from tables of cosines and sines, with the cache's update.
"""Rotary positions (Su et al., 2021) from tables cos and sin [positions, D / 2]."""

from __future__ import annotations

import mlx.core as mx

from zmlx import ops
from zmlx.kernels.options import accepts


def _wide(*tables: mx.array) -> list[mx.array]:
    return [table.astype(mx.float32) for table in tables]


@accepts("compute_dtype")
def apply_rope(x: mx.array, cos: mx.array, sin: mx.array) -> mx.array:
    """Rotates pairs (i, i + D / 2) of x [.., S, D] by tables [S, D / 2]."""
    return ops.apply_rope(x, *_wide(cos, sin))


@accepts("compute_dtype")
def apply_rope_interleaved(x: mx.array, cos: mx.array, sin: mx.array) -> mx.array:
    """Rotates pairs (2i, 2i + 1) of x [.., S, D] by tables [S, D / 2]."""
    return ops.apply_rope(x, *_wide(cos, sin), traditional=True)


@accepts("compute_dtype")
def apply_gqa_rope(x: mx.array, cos: mx.array, sin: mx.array, *, n_kv_heads: int) -> mx.array:
    """apply_rope of x [B, S, H, D], whose heads are a multiple of `n_kv_heads`."""
    if x.ndim != 4 or x.shape[2] % n_kv_heads:
        raise ValueError(
            f"[apply_gqa_rope] x must be [B, S, H, D] with H a multiple of {n_kv_heads} "
            f"but got {x.shape}."
        )
    return ops.apply_rope(x, *_wide(cos, sin), heads_last=True)


def rope_and_cache_update(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    cos: mx.array,
    sin: mx.array,
    k_cache: mx.array,
    v_cache: mx.array,
    offset: mx.array,
) -> tuple[mx.array, mx.array, mx.array]:
    """Rotates q and k, and writes k and v into the caches at each sequence's place.

    Args:
        q: [B, H, D].
        k, v: [B, KV heads, D].
        cos, sin: [positions, D / 2]; pairs (i, i + D / 2) are rotated.
        k_cache, v_cache: [B, positions, KV heads, D].
        offset: [B], integers: the place of each sequence's new token.

    Returns:
        The rotated q, and the caches with everything else they held: written in place where nothing
        else holds them, else copied.
    """
    return ops.rope_cache_update(q, k, v, *_wide(cos, sin), offset, k_cache, v_cache)


def paged_rope_and_cache_update(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    cos: mx.array,
    sin: mx.array,
    k_cache: mx.array,
    v_cache: mx.array,
    offset: mx.array,
    block_table: mx.array,
) -> tuple[mx.array, mx.array, mx.array]:
    """rope_and_cache_update for caches [blocks, size of a block, KV heads, D].

    `block_table` [B, most blocks of a sequence] says which block holds a sequence's places.
    """
    return ops.rope_cache_update(
        q, k, v, *_wide(cos, sin), offset, k_cache, v_cache, block_table=block_table
    )


def rope_concat_qk_decode(
    q_nope: mx.array,
    q_rope: mx.array,
    kv_nope: mx.array,
    k_rope: mx.array,
    cos: mx.array,
    sin: mx.array,
    offset: mx.array | int,
) -> tuple[mx.array, mx.array]:
    """Queries and keys of one token, each its part without positions and its rotated part.

    Args:
        q_nope: [B, H, 1, N].
        q_rope: [B, H, 1, D]; pairs (2i, 2i + 1) are rotated.
        kv_nope: [B, 1, 1, N].
        k_rope: [B, 1, 1, D].
        cos, sin: [positions, D / 2].
        offset: the place of the token, or one for each sequence [B]; -p rotates backwards by p.

    Returns:
        q [B, H, 1, N + D] and k [B, 1, 1, N + D].
    """
    places = mx.broadcast_to(mx.array(offset, mx.int32).reshape(-1), q_nope.shape[:1])
    row_cos, row_sin = (table[mx.abs(places)] for table in _wide(cos, sin))
    row_sin = mx.where(places[:, None] < 0, -row_sin, row_sin)
    parts = (q_nope, q_rope, kv_nope, k_rope)
    return _concatenated("rope_concat_qk_decode", *parts, row_cos[:, None], row_sin[:, None])


def rope_concat_qk_decode_pos(
    q_nope: mx.array,
    q_rope: mx.array,
    kv_nope: mx.array,
    k_rope: mx.array,
    cos: mx.array,
    sin: mx.array,
) -> tuple[mx.array, mx.array]:
    """rope_concat_qk_decode with the token's rows of the tables, cos and sin [D / 2]."""
    parts = (q_nope, q_rope, kv_nope, k_rope)
    tables = (table.reshape(1, -1) for table in _wide(cos, sin))
    return _concatenated("rope_concat_qk_decode_pos", *parts, *tables)


def _concatenated(
    name: str,
    q_nope: mx.array,
    q_rope: mx.array,
    kv_nope: mx.array,
    k_rope: mx.array,
    cos: mx.array,
    sin: mx.array,
) -> tuple[mx.array, mx.array]:
    batch, heads = q_nope.shape[:2]
    for argument, array, want in (
        ("q_nope", q_nope, (batch, heads, 1, q_nope.shape[-1])),
        ("q_rope", q_rope, (batch, heads, 1, q_rope.shape[-1])),
        ("kv_nope", kv_nope, (batch, 1, 1, q_nope.shape[-1])),
        ("k_rope", k_rope, (batch, 1, 1, q_rope.shape[-1])),
    ):
        if array.shape != want:
            raise ValueError(f"[{name}] {argument} must have shape {want} but got {array.shape}.")
    q, k = ops.apply_rope_qk(q_rope, k_rope, cos, sin, traditional=True)
    return mx.concatenate([q_nope, q], axis=-1), mx.concatenate([kv_nope, k], axis=-1)


__all__ = [
    "apply_gqa_rope",
    "apply_rope",
    "apply_rope_interleaved",
    "paged_rope_and_cache_update",
    "rope_and_cache_update",
    "rope_concat_qk_decode",
    "rope_concat_qk_decode_pos",
]
