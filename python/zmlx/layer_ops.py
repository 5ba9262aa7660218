# zmlx/layer_ops.py: ops of whole layers: weights, caches, recurrences, images, optimisers.
"""Ops with signatures of their own, of which `zmlx.ops` has the functions."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from zmlx import _ext

# Elements that share a scale and bits of a code in MLX's formats, where they are not given.
_FORMATS = {"affine": (64, 4), "mxfp4": (32, 4), "mxfp8": (32, 8), "nvfp4": (16, 4)}


def dequantise(
    w: mx.array,
    scales: mx.array,
    biases: mx.array | None = None,
    group_size: int | None = None,
    bits: int | None = None,
    mode: str = "affine",
    *,
    activation: str = "none",
    dtype: mx.Dtype | None = None,
) -> mx.array:
    """The values of a weight as `mx.quantize` packs it, activated on the way if asked.

    code * scale + bias for affine (bits 2, 3, 4, 5, 6, 8; group_size 32, 64, 128), code * scale for
    mxfp4, mxfp8 and nvfp4, computed in float32 and rounded once. w [.., words] (uint32), scales and
    biases [.., N / group_size] give [.., N].

    Args:
        activation: "none", or the name of an activation (silu, gelu, ...).
        dtype: of the result; by default that of the scales, bfloat16 where those are bytes.
    """
    size, width = _FORMATS.get(mode, (64, 4))
    attrs = {
        "mode": mode,
        "group_size": size if group_size is None else group_size,
        "bits": width if bits is None else bits,
        "activation": activation,
    }
    if dtype is not None:
        attrs["dtype"] = str(dtype).removeprefix("mlx.core.")
    parts = [w, scales] if biases is None else [w, scales, biases]
    if dtype is not None and scales.dtype != mx.uint8:
        parts = [w, *(part.astype(dtype) for part in parts[1:])]
    return _ext.apply("dequantise", parts, attrs)[0]


def pack_bits(x: mx.array) -> mx.array:
    """x [..] in row-major order as bits, eight a byte, the first in the lowest bit: uint8
    [(N + 7) / 8] for N elements. What is not a bool counts as true where it is not zero."""
    return _ext.apply("pack_bits", [x if x.dtype == mx.bool_ else x != 0], {})[0]


def unpack_bits(x: mx.array, shape: Sequence[int] | None = None) -> mx.array:
    """The bits of uint8 x [..] as bools, the lowest bit of each byte first: [8 N] for N bytes, or
    `shape`, the shape that was packed."""
    return _ext.apply("unpack_bits", [x], {} if shape is None else {"shape": list(shape)})[0]


def adamw_step(
    p: mx.array,
    g: mx.array,
    m: mx.array,
    v: mx.array,
    lr: float | mx.array,
    step: int | mx.array,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    wd: float = 0.01,
    *,
    bias_correction: bool = True,
) -> tuple[mx.array, mx.array, mx.array]:
    """One step of AdamW in one pass over memory (Loshchilov and Hutter, 2019): new (p, m, v).

    The result is that of `mx.optimizers.AdamW` with the same `bias_correction`. Parameters are
    float32, float16 or bfloat16, gradients of their dtype or float32. Moments are float32 whatever
    the parameters are: others are converted, and float32 ones come back.

    Args:
        lr, step: the learning rate and the number of this step, from 1; nothing is compiled anew.
        wd: the weight decay.
    """
    attrs = {
        "beta1": float(beta1),
        "beta2": float(beta2),
        "eps": float(eps),
        "weight_decay": float(wd),
        "bias_correction": bias_correction,
    }
    rate, number = (
        x.astype(mx.float32) if isinstance(x, mx.array) else mx.array(x, mx.float32)
        for x in (lr, step)
    )
    moments = [m.astype(mx.float32), v.astype(mx.float32)]
    out, mean, square = _ext.apply("adamw_step", [p, g, *moments, rate, number], attrs)
    return out, mean, square


def paged_attention(
    q: mx.array,
    k_cache: mx.array,
    v_cache: mx.array,
    block_table: mx.array,
    context_lens: mx.array,
    scale: float | None = None,
) -> mx.array:
    """Attention of one token a sequence over a KV cache in blocks (Kwon et al., 2023).

    Key j of sequence b is row j % BS of block block_table[b, j // BS], for j < context_lens[b].
    Contexts may have any length; an empty one gives zeros.

    Args:
        q: [B, H, D]; k_cache [N, BS, Hkv, D] and v_cache [N, BS, Hkv, Dv] of its dtype.
        block_table: integers [B, M]; entries past a context are not read.
        context_lens: integers [B].
        scale: of scores; by default 1 / sqrt(D).

    Raises:
        ValueError: shapes or dtypes do not fit.
        RuntimeError: (when evaluated) a context is longer than its blocks, or a block lies outside
            the cache.
    """
    attrs = {"scale": float(q.shape[-1] ** -0.5 if scale is None else scale)}
    integers = [block_table.astype(mx.int32), context_lens.astype(mx.int32)]
    return _ext.apply("paged_attention", [q, k_cache, v_cache, *integers], attrs)[0]


def gated_delta_update(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    g: mx.array,
    beta: mx.array,
    state: mx.array | None = None,
    mask: mx.array | None = None,
) -> tuple[mx.array, mx.array]:
    """The gated delta rule of Qwen3-Next and Qwen3.5 for any number of tokens: (y, new state).

    For each token and head: S = g S, S += beta (v - S k) k^T, y = S q (Yang et al., 2024).

    Args:
        q, k: [B, T, Hk, Dk]; v [B, T, Hv, Dv] of the same dtype, Hv a multiple of Hk.
        g: the decay, [B, T, Hv] or [B, T, Hv, Dk]; beta [B, T, Hv]; of q's dtype or float32.
        state: [B, Hv, Dv, Dk], kept in float32; by default zeros.
        mask: bool [B, T]: a token where it is false leaves the state and gives zeros.
    """
    if state is None:
        state = mx.zeros((q.shape[0], v.shape[-2], v.shape[-1], q.shape[-1]), mx.float32)
    inputs = [q, k, v, g, beta, state.astype(mx.float32)]
    y, new_state = _ext.apply("gated_delta_update", inputs if mask is None else [*inputs, mask], {})
    return y, new_state


def conv1d_silu(
    x: mx.array,
    weight: mx.array,
    state: mx.array | None = None,
    *,
    mask: mx.array | None = None,
    lengths: mx.array | None = None,
) -> tuple[mx.array, mx.array]:
    """silu of the causal convolution of each channel over time: (out, new state).

    Args:
        x: [B, T, C]; weight [C, K], or [C, K, 1] as `mlx.nn.Conv1d` has it.
        state: the K - 1 rows before x, [B, K - 1, C]; by default zeros.
        mask: bool [B, T]: rows of x that count as zeros where it is false.
        lengths: integers [B]: tokens of each sequence that count for the new state; by default T.
    """
    if weight.ndim == 3:
        weight = weight.squeeze(-1)
    if state is None:
        state = mx.zeros((x.shape[0], weight.shape[1] - 1, x.shape[2]), x.dtype)
    if mask is not None:
        x = mx.where(mask[..., None], x, mx.zeros((), x.dtype))
    inputs = [x, weight, state]
    if lengths is not None:
        inputs.append(lengths.astype(mx.int32))
    out, new_state = _ext.apply("conv1d_silu", inputs, {})
    return out, new_state


def _pair(value: int | Sequence[int]) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)


def depthwise_conv(
    x: mx.array,
    weight: mx.array,
    *,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | None = None,
) -> mx.array:
    """Convolution of each channel by itself: x [N, H, W, C] and weight [KH, KW, C] (taps are not
    flipped, as in `mx.conv2d`) to [N, OH, OW, C].

    Args:
        stride: of rows and columns: one number or two.
        padding: zeros on each side, one number or two; by default half the kernel, which keeps the
            size of x for odd kernels and stride 1.
    """
    if padding is None:
        padding = [extent // 2 for extent in weight.shape[:2]]
    attrs = {"stride": _pair(stride), "padding": _pair(padding)}
    return _ext.apply("depthwise_conv", [x, weight], attrs)[0]


def resize_bilinear(
    x: mx.array, output_shape: Sequence[int], *, align_corners: bool = False
) -> mx.array:
    """x [N, H, W, C] to [N, *output_shape, C] by linear interpolation between the two nearest rows
    and columns. Centres of pixels lie at half numbers, or with `align_corners` those of the first
    and last pixels stay where they are."""
    attrs = {"shape": list(output_shape), "align_corners": align_corners}
    return _ext.apply("resize_bilinear", [x], attrs)[0]
