# zmlx/kernels/skv.py: keys and values kept as quantised coordinates in a basis of low rank.
"""A key-value cache in a basis of rank R: project and quantise, restore, and scores from codes."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from zmlx.kernels.options import check_dtype

State = dict[str, Any]


def skv_fused_project_quantize(
    kv: mx.array,
    basis: mx.array,
    *,
    bits: int = 4,
    group_size: int = 32,
    compute_dtype: mx.Dtype | None = None,
) -> State:
    """Coordinates of kv [S, H, D] in basis [H, D, R], quantised in groups of consecutive ones.

    Returns:
        `q_data` [S, H, R], codes as uint8; `scales` and `zeros` [groups] in `compute_dtype`, by
        default float16: a coordinate is code * scale + zero; `shape`, `bits` and `group_size`.
    """
    name = "skv_fused_project_quantize"
    check_dtype(name, compute_dtype)
    if bits not in (2, 4, 8):
        raise ValueError(f"[{name}] bits must be 2, 4 or 8 but got {bits}.")
    if group_size < 1:
        raise ValueError(f"[{name}] group_size must be at least 1 but got {group_size}.")
    if kv.ndim != 3 or basis.ndim != 3 or kv.shape[1:] != basis.shape[:2]:
        raise ValueError(
            f"[{name}] expected kv [S, H, D] and basis [H, D, R] but got "
            f"{kv.shape} and {basis.shape}."
        )
    wide = mx.einsum("shd,hdr->shr", kv.astype(mx.float32), basis.astype(mx.float32))
    flat, last = wide.reshape(-1), wide.size - 1
    groups = -(-wide.size // group_size)
    # The last group is filled up with its last element, which changes neither end of its range.
    places = mx.minimum(mx.arange(groups * group_size), last).reshape(groups, group_size)
    values = flat[places]
    low, high = values.min(-1, keepdims=True), values.max(-1, keepdims=True)
    steps = (1 << bits) - 1
    stored = mx.float16 if compute_dtype is None else compute_dtype
    scales = mx.where(high > low, (high - low) / steps, 1).astype(stored)
    zeros = low.astype(stored)
    codes = mx.round((values - zeros) / mx.maximum(scales.astype(mx.float32), 1e-30))
    codes = mx.clip(codes, 0, steps).astype(mx.uint8).reshape(-1)[: wide.size]
    return {
        "q_data": codes.reshape(wide.shape),
        "scales": scales[:, 0],
        "zeros": zeros[:, 0],
        "shape": tuple(wide.shape),
        "bits": bits,
        "group_size": group_size,
    }


def _coordinates(state: State) -> mx.array:
    """The coordinates [S, H, R] of a state, in float32."""
    codes = state["q_data"].astype(mx.float32).reshape(-1)
    group = mx.arange(codes.size) // state["group_size"]
    scales, zeros = (state[key].astype(mx.float32)[group] for key in ("scales", "zeros"))
    return (codes * scales + zeros).reshape(state["shape"])


def skv_fused_dequantize_unproject(
    state: State, basis: mx.array, *, compute_dtype: mx.Dtype | None = None
) -> mx.array:
    """Keys or values [S, H, D] from their coordinates and basis [H, D, R], in basis's dtype."""
    name = "skv_fused_dequantize_unproject"
    check_dtype(name, compute_dtype)
    _, heads, rank = state["shape"]
    if basis.ndim != 3 or (basis.shape[0], basis.shape[2]) != (heads, rank):
        raise ValueError(
            f"[{name}] basis must be ({heads}, D, {rank}) for this state but got {basis.shape}."
        )
    wide = mx.einsum("shr,hdr->shd", _coordinates(state), basis.astype(mx.float32))
    return wide.astype(compute_dtype or basis.dtype)


def skv_compressed_attention(
    q_rank: mx.array,
    k_state: State,
    *,
    num_heads: int,
    num_kv_heads: int,
    scale: float,
    compute_dtype: mx.Dtype | None = None,
) -> mx.array:
    """Scores [heads, queries, keys] of queries [queries, heads, R] against the keys of a state.

    Computed in float32, and returned so unless `compute_dtype` says otherwise.
    """
    name = "skv_compressed_attention"
    check_dtype(name, compute_dtype)
    _, kv_heads, rank = k_state["shape"]
    if q_rank.ndim != 3 or q_rank.shape[1:] != (num_heads, rank) or kv_heads != num_kv_heads:
        raise ValueError(
            f"[{name}] expected q_rank [queries, {num_heads}, {rank}] and {num_kv_heads} KV heads "
            f"but got {q_rank.shape} and {kv_heads}."
        )
    if num_heads % num_kv_heads:
        raise ValueError(
            f"[{name}] num_heads must be a multiple of num_kv_heads, {num_kv_heads}, "
            f"but got {num_heads}."
        )
    grouped = q_rank.astype(mx.float32).reshape(-1, num_kv_heads, num_heads // num_kv_heads, rank)
    scores = scale * mx.einsum("qhgr,khr->hgqk", grouped, _coordinates(k_state))
    return scores.reshape(num_heads, *scores.shape[2:]).astype(compute_dtype or mx.float32)


__all__ = [
    "skv_compressed_attention",
    "skv_fused_dequantize_unproject",
    "skv_fused_project_quantize",
]
