# zmlx/kernels/moe.py: routing of a mixture of experts, and the sum of its experts' outputs.
"""Routers, dispatch and combination: K experts of E for each token.

Weights and indices are [.., K], largest first and of equal scores the lower index first; weights
are float32 unless `compute_dtype` says otherwise.
"""

from __future__ import annotations

import mlx.core as mx

from zmlx import ops
from zmlx.kernels.options import accepts, check_dtype, returns


@accepts("threadgroup")
@returns(mx.float32)
def top2_gating_softmax(x: mx.array) -> tuple[mx.array, mx.array]:
    """The weights and indices of the 2 largest logits x [.., E]: a softmax over those two."""
    return ops.moe_topk_gating(x.astype(mx.float32), k=2)


@accepts("threadgroup")
@returns(mx.float32)
def topk_gating_softmax(
    x: mx.array,
    k: int = 2,
    *,
    expert_bias: mx.array | None = None,
    norm_topk_prob: bool | None = None,
) -> tuple[mx.array, mx.array]:
    """The weights and indices of the k largest softmax probabilities of logits x [.., E].

    Args:
        expert_bias: [E], added to the probabilities; the weights include it.
        norm_topk_prob: whether the weights are made to sum to one; yes for None.
    """
    normalise = norm_topk_prob is None or bool(norm_topk_prob)
    logits = x.astype(mx.float32)
    if expert_bias is None:
        return ops.moe_topk_gating(logits, k=k, normalise=normalise)
    if expert_bias.size != x.shape[-1]:
        raise ValueError(
            f"[topk_gating_softmax] expert_bias must have shape ({x.shape[-1]},) "
            f"but got {expert_bias.shape}."
        )
    scores = ops.softmax(logits) + expert_bias.reshape(-1).astype(mx.float32)
    weights, indices = ops.topk(scores, k=k)
    if normalise:
        weights = weights / (weights.sum(-1, keepdims=True) + 1e-20)
    return weights, indices


@returns(mx.float32)
def router_argpartition_logits_topk(logits: mx.array, *, k: int) -> tuple[mx.array, mx.array]:
    """A softmax over the k largest logits, in the order in which mx.argpartition gives them."""
    if not 1 <= k <= logits.shape[-1]:
        raise ValueError(
            f"[router_argpartition_logits_topk] k must be from 1 to the number of experts, "
            f"{logits.shape[-1]}, but got {k}."
        )
    wide = logits.astype(mx.float32)
    indices = mx.argpartition(wide, kth=-k, axis=-1)[..., -k:]
    return ops.softmax(mx.take_along_axis(wide, indices, axis=-1)), indices


@accepts("threadgroup")
@returns(mx.float32)
def deepseek_router_topk_sigmoid(
    logits: mx.array, bias: mx.array, *, k: int = 8, n_group: int = 1, topk_group: int = 1
) -> tuple[mx.array, mx.array]:
    """The k experts of largest sigmoid(logits) + bias (DeepSeek-V3, 2024).

    The weights are their sigmoids, made to sum to one. With `n_group` groups of experts, only those
    of the `topk_group` groups whose two best experts have the largest sum are eligible.
    """
    name = "deepseek_router_topk_sigmoid"
    experts = logits.shape[-1]
    if bias.size != experts:
        raise ValueError(f"[{name}] bias must have shape ({experts},) but got {bias.shape}.")
    wide, added = logits.astype(mx.float32), bias.reshape(-1).astype(mx.float32)
    return ops.moe_topk_gating(
        wide, added, k=k, scores="sigmoid", n_group=n_group, topk_group=topk_group
    )


def moe_dispatch(x: mx.array, indices: mx.array) -> mx.array:
    """x [.., D] once for each of its experts, indices [.., K]: [.., K, D].

    A slot whose index is negative has no expert and is 0.
    """
    if x.shape[:-1] != indices.shape[:-1]:
        raise ValueError(
            f"[moe_dispatch] indices must have shape {x.shape[:-1]} and one more axis "
            f"but got {indices.shape}."
        )
    return mx.where(indices[..., None] < 0, mx.array(0, x.dtype), x[..., None, :])


def moe_combine(expert_outputs: mx.array, weights: mx.array) -> mx.array:
    """sum over k of weights [.., K] * expert_outputs [.., K, D]: [.., D], in the outputs' dtype."""
    return ops.moe_combine(expert_outputs, weights.astype(mx.float32))


def moe_combine_fp32(expert_outputs: mx.array, weights: mx.array) -> mx.array:
    """moe_combine whose result is float32."""
    return moe_combine(expert_outputs.astype(mx.float32), weights)


def _rounded_products(name: str, expert_outputs: mx.array, weights: mx.array) -> mx.array:
    if expert_outputs.shape[:-1] != weights.shape:
        raise ValueError(
            f"[{name}] weights must have shape {expert_outputs.shape[:-1]} but got {weights.shape}."
        )
    return expert_outputs * weights.astype(expert_outputs.dtype)[..., None]


def moe_combine_no_fma(expert_outputs: mx.array, weights: mx.array) -> mx.array:
    """moe_combine with each product rounded to float32 before it is added."""
    return moe_combine_fp32_no_fma(expert_outputs, weights).astype(expert_outputs.dtype)


def moe_combine_fp32_no_fma(expert_outputs: mx.array, weights: mx.array) -> mx.array:
    """moe_combine_no_fma whose result is float32."""
    wide = expert_outputs.astype(mx.float32)
    return _rounded_products("moe_combine_fp32_no_fma", wide, weights).sum(-2)


moe_combine_fp32_no_fma_row_tile = moe_combine_fp32_no_fma
moe_combine_weighted_sum_fp32_no_fma = moe_combine_fp32_no_fma


def moe_combine_exact(expert_outputs: mx.array, weights: mx.array) -> mx.array:
    """moe_combine with each product and each sum rounded to the outputs' dtype."""
    products = _rounded_products("moe_combine_exact", expert_outputs, weights)
    total = products[..., 0, :]
    for k in range(1, weights.shape[-1]):
        total = total + products[..., k, :]
    return total


def _check_act(name: str, act: mx.array, output_dtype: mx.Dtype | None) -> None:
    check_dtype(name, output_dtype, "output_dtype")
    if act.ndim != 3:
        raise ValueError(f"[{name}] act must be [B, K, D] but got {act.shape}.")


def gather_qmm_combine(
    act: mx.array,
    weights: mx.array,
    gate: mx.array,
    indices: mx.array,
    *,
    streaming: bool | None = None,
    no_fma: bool = False,
    output_dtype: mx.Dtype | None = None,
    vectorized_k: bool = False,
) -> mx.array:
    """sum over k of gate[:, k] * (act[:, k] @ weights[indices[:, k]]): [B, D].

    Args:
        act: [B, K, C].
        weights: [E, C, D].
        gate: [B, K].
        indices: [B, K], of experts.
        output_dtype: of the result, by default act's.
        streaming, no_fma, vectorized_k: accepted; there is one way of computing it.
    """
    _check_act("gather_qmm_combine", act, output_dtype)
    outputs = mx.gather_mm(act[..., None, :], weights, rhs_indices=indices)[..., 0, :]
    return moe_combine(outputs.astype(output_dtype or act.dtype), gate)


def gather_qmm_combine_quantized(
    act: mx.array,
    weights: mx.array,
    scales: mx.array,
    biases: mx.array,
    gate: mx.array,
    indices: mx.array,
    *,
    group_size: int = 64,
    bits: int = 4,
    streaming: bool | None = None,
    no_fma: bool = False,
    output_dtype: mx.Dtype | None = None,
    vectorized_k: bool = False,
) -> mx.array:
    """gather_qmm_combine for weights [E, D, C] as mx.quantize gives them."""
    _check_act("gather_qmm_combine_quantized", act, output_dtype)
    weight, options = (weights, scales, biases), {"group_size": group_size, "bits": bits}
    if output_dtype in (None, act.dtype) and scales.dtype == act.dtype:
        chosen = gate.astype(mx.float32), indices.astype(mx.uint32)
        return ops.gather_qmm_combine(act, *weight, *chosen, **options)
    each = act[..., None, :]
    outputs = mx.gather_qmm(each, *weight, rhs_indices=indices, transpose=True, **options)
    return moe_combine(outputs[..., 0, :].astype(output_dtype or act.dtype), gate)


def gather_mmk_combine(
    act: mx.array,
    weights: mx.array,
    gate: mx.array,
    indices: mx.array,
    *,
    no_fma: bool = False,
    output_dtype: mx.Dtype | None = None,
) -> mx.array:
    """gather_qmm_combine."""
    return gather_qmm_combine(act, weights, gate, indices, output_dtype=output_dtype)


def gather_qmmk_combine_quantized(
    act: mx.array,
    weights: mx.array,
    scales: mx.array,
    biases: mx.array,
    gate: mx.array,
    indices: mx.array,
    *,
    group_size: int = 64,
    bits: int = 4,
    no_fma: bool = False,
    output_dtype: mx.Dtype | None = None,
) -> mx.array:
    """gather_qmm_combine_quantized."""
    return gather_qmm_combine_quantized(
        act,
        weights,
        scales,
        biases,
        gate,
        indices,
        group_size=group_size,
        bits=bits,
        output_dtype=output_dtype,
    )


__all__ = [
    "deepseek_router_topk_sigmoid",
    "gather_mmk_combine",
    "gather_qmm_combine",
    "gather_qmm_combine_quantized",
    "gather_qmmk_combine_quantized",
    "moe_combine",
    "moe_combine_exact",
    "moe_combine_fp32",
    "moe_combine_fp32_no_fma",
    "moe_combine_fp32_no_fma_row_tile",
    "moe_combine_no_fma",
    "moe_combine_weighted_sum_fp32_no_fma",
    "moe_dispatch",
    "router_argpartition_logits_topk",
    "top2_gating_softmax",
    "topk_gating_softmax",
]
