# zmlx/kernels/rope.py: rotary positions from tables of cosines and sines, with the cache's update.
"""Rotary positions (Su et al., 2021) from tables cos and sin [positions, D / 2]."""

from __future__ import annotations

import mlx.core as mx

from zmlx.kernels.options import accepts


def _halves(x: mx.array, cos: mx.array, sin: mx.array) -> mx.array:
    """Rotates pairs (i, i + D / 2); the tables broadcast."""
    a, b = mx.split(x.astype(mx.float32), 2, axis=-1)
    return mx.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1).astype(x.dtype)


def _pairs(x: mx.array, cos: mx.array, sin: mx.array) -> mx.array:
    """Rotates pairs (2i, 2i + 1); the tables broadcast."""
    wide = x.astype(mx.float32)
    a, b = wide[..., ::2], wide[..., 1::2]
    rotated = mx.stack([a * cos - b * sin, a * sin + b * cos], axis=-1)
    return rotated.reshape(x.shape).astype(x.dtype)


def _tables(
    name: str, d: int, positions: int | None, cos: mx.array, sin: mx.array
) -> list[mx.array]:
    """The tables in float32, checked: [positions, d / 2], or any number of positions for None."""
    if d % 2:
        raise ValueError(f"[{name}] x's last axis must be even but got {d}.")
    want = (cos.shape[0] if positions is None and cos.ndim else positions, d // 2)
    if cos.shape != want or sin.shape != want:
        raise ValueError(
            f"[{name}] cos and sin must have shape {want} but got {cos.shape} and {sin.shape}."
        )
    return [cos.astype(mx.float32), sin.astype(mx.float32)]


@accepts("compute_dtype")
def apply_rope(x: mx.array, cos: mx.array, sin: mx.array) -> mx.array:
    """Rotates pairs (i, i + D / 2) of x [.., S, D] by tables [S, D / 2]."""
    return _halves(x, *_tables("apply_rope", x.shape[-1], x.shape[-2], cos, sin))


@accepts("compute_dtype")
def apply_rope_interleaved(x: mx.array, cos: mx.array, sin: mx.array) -> mx.array:
    """Rotates pairs (2i, 2i + 1) of x [.., S, D] by tables [S, D / 2]."""
    return _pairs(x, *_tables("apply_rope_interleaved", x.shape[-1], x.shape[-2], cos, sin))


@accepts("compute_dtype")
def apply_gqa_rope(x: mx.array, cos: mx.array, sin: mx.array, *, n_kv_heads: int) -> mx.array:
    """apply_rope of x [B, S, H, D], whose heads are a multiple of `n_kv_heads`."""
    name = "apply_gqa_rope"
    if x.ndim != 4 or x.shape[2] % n_kv_heads:
        raise ValueError(
            f"[{name}] x must be [B, S, H, D] with H a multiple of {n_kv_heads} but got {x.shape}."
        )
    tables = _tables(name, x.shape[-1], x.shape[1], cos, sin)
    return _halves(x, *(table[:, None] for table in tables))


def _at(tables: list[mx.array], offset: mx.array) -> list[mx.array]:
    """The tables' rows of each sequence, for x [B, H, D]."""
    return [table[offset][:, None] for table in tables]


def _written(cache: mx.array, where: tuple[mx.array, mx.array], rows: mx.array) -> mx.array:
    """The cache with these rows; the caller's stays what it was."""
    updated = cache[:]
    updated[where] = rows.astype(cache.dtype)
    return updated


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
        offset: [B], int32: the place of each sequence's new token.

    Returns:
        The rotated q, and the caches with everything else they held.
    """
    tables = _at(_tables("rope_and_cache_update", q.shape[-1], None, cos, sin), offset)
    where = (mx.arange(q.shape[0]), offset)
    keys = _written(k_cache, where, _halves(k, *tables))
    return _halves(q, *tables), keys, _written(v_cache, where, v)


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
    tables = _at(_tables("paged_rope_and_cache_update", q.shape[-1], None, cos, sin), offset)
    size = k_cache.shape[1]
    where = (block_table[mx.arange(q.shape[0]), offset // size], offset % size)
    keys = _written(k_cache, where, _halves(k, *tables))
    return _halves(q, *tables), keys, _written(v_cache, where, v)


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
    wide = _tables("rope_concat_qk_decode", q_rope.shape[-1], None, cos, sin)
    places = mx.broadcast_to(mx.array(offset, mx.int32).reshape(-1), (q_nope.shape[0],))
    row_cos, row_sin = (table[mx.abs(places)] for table in wide)
    row_sin = mx.where(places[:, None] < 0, -row_sin, row_sin)
    return _concatenated("rope_concat_qk_decode", q_nope, q_rope, kv_nope, k_rope, row_cos, row_sin)


def rope_concat_qk_decode_pos(
    q_nope: mx.array,
    q_rope: mx.array,
    kv_nope: mx.array,
    k_rope: mx.array,
    cos: mx.array,
    sin: mx.array,
) -> tuple[mx.array, mx.array]:
    """rope_concat_qk_decode with the token's rows of the tables, cos and sin [D / 2]."""
    name = "rope_concat_qk_decode_pos"
    row = _tables(name, q_rope.shape[-1], 1, cos.reshape(1, -1), sin.reshape(1, -1))
    return _concatenated(name, q_nope, q_rope, kv_nope, k_rope, *row)


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
    tables = [table[:, None, None] for table in (cos, sin)]
    q = mx.concatenate([q_nope, _pairs(q_rope, *tables)], axis=-1)
    return q, mx.concatenate([kv_nope, _pairs(k_rope, *tables)], axis=-1)


__all__ = [
    "apply_gqa_rope",
    "apply_rope",
    "apply_rope_interleaved",
    "paged_rope_and_cache_update",
    "rope_and_cache_update",
    "rope_concat_qk_decode",
    "rope_concat_qk_decode_pos",
]
