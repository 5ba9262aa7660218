# tests/python/test_kernels_moe.py: routers, dispatch, combination, and layers of experts.
from __future__ import annotations

import re

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_testing import DTYPES, agree, close, exact, normal, silu

import zmlx.nn
from zmlx.kernels import fused_moe, moe
from zmlx.kernels.discovered.glm_fused_swiglu import glm_fused_swiglu
from zmlx.kernels.discovered.glm_moe_combine import glm_moe_combine
from zmlx.kernels.discovered.glm_topk_gating import glm_topk_gating


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def best(scores: np.ndarray, k: int) -> np.ndarray:
    """Indices of the k largest, of equal ones the lowest first."""
    return np.argsort(-scores, axis=-1, kind="stable")[..., :k]


def at(x: np.ndarray, indices: np.ndarray) -> np.ndarray:
    return np.take_along_axis(x, indices, -1)


def check(got: tuple[mx.array, mx.array], weights: np.ndarray, indices: np.ndarray) -> None:
    assert got[1].dtype == mx.uint32
    np.testing.assert_array_equal(np.array(got[1]), indices)
    close(got[0], weights, 1e-5 if got[0].dtype == mx.float32 else None)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    rows=st.integers(1, 5),
    experts=st.integers(2, 70),
    levels=st.integers(1, 8),
    dtype=st.sampled_from(DTYPES),
    data=st.data(),
)
def test_topk_gating_indices_of_ties(rows, experts, levels, dtype, data) -> None:
    k = data.draw(st.integers(1, min(10, experts)))
    x = mx.random.randint(0, levels, (rows, experts), key=mx.random.key(experts)).astype(dtype)
    logits = exact(x)
    indices = best(logits, k)
    check(moe.topk_gating_softmax(x, k), softmax(at(logits, indices)), indices)
    check(
        moe.topk_gating_softmax(x, k, norm_topk_prob=False), at(softmax(logits), indices), indices
    )
    check(moe.top2_gating_softmax(x), softmax(at(logits, best(logits, 2))), best(logits, 2))


@pytest.mark.parametrize("experts", [8, 32, 33, 64, 128])
@pytest.mark.parametrize("normalise", [None, True, False])
def test_gating_with_a_bias_chooses_and_weighs_by_it(experts: int, normalise: bool | None) -> None:
    x, b = normal(5, experts), 0.2 * normal(experts, seed=1)
    scores = softmax(exact(x)) + exact(b)
    indices = best(scores, 4)
    weights = at(scores, indices)
    if normalise is not False:
        weights = weights / weights.sum(-1, keepdims=True)
    for bias in (b, b[None]):
        got = moe.topk_gating_softmax(x, 4, expert_bias=bias, norm_topk_prob=normalise)
        check(got, weights, indices)
    assert (np.diff(exact(got[0]), axis=-1) <= 0).all()  # the largest first, whatever E is


def test_gating_of_nan_logits_gives_indices_in_range() -> None:
    x = mx.zeros((2, 64))
    x[0, 5] = float("nan")
    for got in (
        moe.topk_gating_softmax(x, 4),
        moe.topk_gating_softmax(x, 4, expert_bias=mx.zeros(64)),
        moe.deepseek_router_topk_sigmoid(x, mx.zeros(64), k=4),
    ):
        assert (np.array(got[1]) < 64).all()
        assert np.isfinite(exact(got[0])[1]).all()


def test_topk_gating_of_two_winners_32_apart() -> None:
    logits = mx.random.normal((64, 64), key=mx.random.key(3))
    logits[:, 3], logits[:, 35] = 9.0, 8.0
    indices, weights = glm_topk_gating(logits)
    check((weights, indices), softmax(at(exact(logits), best(exact(logits), 4))), np.array(indices))
    np.testing.assert_array_equal(np.array(indices), best(exact(logits), 4))
    assert (np.array(indices)[:, :2] == [3, 35]).all()


def test_no_tokens_give_nothing() -> None:
    x = mx.zeros((0, 8))
    for weights, indices in (
        moe.top2_gating_softmax(x),
        moe.topk_gating_softmax(x, expert_bias=mx.zeros(8)),
        moe.deepseek_router_topk_sigmoid(x, mx.zeros(8), k=2, n_group=4, topk_group=2),
    ):
        assert weights.shape == indices.shape == (0, 2)
    assert moe.moe_dispatch(x, indices).shape == (0, 2, 8)
    assert moe.moe_combine(mx.zeros((0, 2, 8)), weights).shape == (0, 8)
    assert zmlx.nn.MoE(lambda x: x, [nn.Linear(8, 8)] * 8)(x).shape == (0, 8)


def test_gating_gradients() -> None:
    # No two logits are near each other: finite differences must not change the choice.
    x = mx.random.permutation(48, key=mx.random.key(0)).reshape(3, 16) / 10.0
    b = normal(16, seed=1)

    def plain(x, norm, bias=None):
        scores = mx.softmax(x, -1) if bias is None else mx.softmax(x, -1) + bias
        order = mx.argsort(-mx.stop_gradient(scores), -1)[..., :4]
        top = mx.take_along_axis(scores, order, -1)
        return top / top.sum(-1, keepdims=True) if norm else top

    for norm in (True, False):
        agree(
            lambda x, norm=norm: moe.topk_gating_softmax(x, 4, norm_topk_prob=norm)[0],
            lambda x, norm=norm: plain(x, norm),
            [x],
            gives=mx.float32,
        )
    agree(
        lambda x, b: moe.topk_gating_softmax(x, 4, expert_bias=b)[0],
        lambda x, b: plain(x, True, b),
        [x, mx.abs(b)],
        dtypes=[mx.float32],
    )


def test_the_router_of_argpartition_keeps_its_order() -> None:
    x = normal(7, 40)
    weights, indices = moe.router_argpartition_logits_topk(x, k=6)
    assert mx.array_equal(indices, mx.argpartition(x, -6, axis=-1)[..., -6:])
    check((weights, indices), softmax(at(exact(x), np.array(indices))), np.array(indices))


@pytest.mark.parametrize(("groups", "kept"), [(1, 1), (8, 3), (4, 4), (16, 2)])
@pytest.mark.parametrize("experts", [64, 256])
def test_deepseek_routing(groups: int, kept: int, experts: int) -> None:
    x, b = normal(9, experts), 0.3 * normal(experts, seed=1)
    affinity = 1 / (1 + np.exp(-exact(x)))
    scores = affinity + exact(b)
    grouped = scores.reshape(9, groups, -1)
    chosen = best(np.sort(grouped, -1)[..., -2:].sum(-1), kept)
    eligible = (np.arange(groups) == chosen[..., None]).any(-2)
    scores = np.where(eligible[..., None], grouped, -np.inf).reshape(9, -1)
    indices = best(scores, 8)
    weights = at(affinity, indices)
    got = moe.deepseek_router_topk_sigmoid(x, b, k=8, n_group=groups, topk_group=kept)
    check(got, weights / weights.sum(-1, keepdims=True), indices)


def test_moe_dispatch_uses_indices() -> None:
    x = normal(3, 5)
    indices = mx.array([[1, 0], [2, -1], [-1, -1]])
    got = moe.moe_dispatch(x, indices)
    close(got, np.where(np.array(indices)[..., None] < 0, 0, exact(x)[:, None]))
    unsigned = mx.maximum(indices, 0).astype(mx.uint32)
    close(moe.moe_dispatch(x, unsigned), np.repeat(exact(x)[:, None], 2, 1))
    slope = mx.grad(lambda x: moe.moe_dispatch(x, indices).sum())(x)
    close(slope, np.array([2, 1, 0])[:, None] * np.ones((3, 5)))


def plain_combine(y, w):
    return (y * w[..., None]).sum(-2)


COMBINE = [
    (moe.moe_combine, None),
    (moe.moe_combine_no_fma, None),
    (glm_moe_combine, None),
    (moe.moe_combine_fp32, mx.float32),
    (moe.moe_combine_fp32_no_fma, mx.float32),
    (moe.moe_combine_fp32_no_fma_row_tile, mx.float32),
    (moe.moe_combine_weighted_sum_fp32_no_fma, mx.float32),
]


@pytest.mark.parametrize(("function", "gives"), COMBINE)
@pytest.mark.parametrize("k", [1, 4, 8])
def test_combination(function, gives, k: int) -> None:
    agree(function, plain_combine, [normal(2, 3, k, 33), normal(2, 3, k, seed=1)], gives=gives)


def test_combination_of_float32_weights_with_half_precision_outputs() -> None:
    y, w = normal(3, 4, 33, dtype=mx.bfloat16), normal(3, 4, seed=1)
    want = plain_combine(y.astype(mx.float32), w)
    assert moe.moe_combine(y, w).dtype == mx.bfloat16
    close(moe.moe_combine(y, w), want)
    close(moe.moe_combine_fp32(y, w), want)


@pytest.mark.parametrize("dtype", DTYPES)
def test_combination_without_fma_is_that_of_stock_mlx(dtype: mx.Dtype) -> None:
    y, w = normal(3, 8, 33, dtype=dtype), normal(3, 8, seed=1)
    stock = (y.astype(mx.float32) * w[..., None]).sum(-2)
    for function in (
        moe.moe_combine_fp32_no_fma,
        moe.moe_combine_fp32_no_fma_row_tile,
        moe.moe_combine_weighted_sum_fp32_no_fma,
    ):
        assert mx.array_equal(function(y, w), stock)
    assert mx.array_equal(moe.moe_combine_no_fma(y, w), stock.astype(dtype))


def test_exact_combination_rounds_each_step() -> None:
    y, w = normal(3, 4, 33, dtype=mx.bfloat16), normal(3, 4, seed=1, dtype=mx.bfloat16)
    want = y[:, 0] * w[:, :1]
    for k in range(1, 4):
        want = want + y[:, k] * w[:, k : k + 1]
    assert mx.array_equal(moe.moe_combine_exact(y, w), want)


INDICES = mx.array([[2, 0, 1], [3, 3, 1]], mx.uint32)


@pytest.mark.parametrize("function", [moe.gather_qmm_combine, moe.gather_mmk_combine])
def test_products_of_chosen_experts_are_combined(function) -> None:
    act, w, gate = normal(2, 3, 16), normal(4, 16, 33, seed=1), normal(2, 3, seed=2)
    agree(
        lambda a, w, g: function(a, w, g, INDICES),
        lambda a, w, g: ((a[..., None, :] @ w[INDICES])[..., 0, :] * g[..., None]).sum(1),
        [act, w, gate],
        dtypes=[mx.float32],
    )
    half = function(act.astype(mx.float16), w.astype(mx.float16), gate, INDICES)
    assert half.dtype == mx.float16
    wide = function(act, w, gate, INDICES, no_fma=True, output_dtype=mx.float16)
    assert wide.dtype == mx.float16


@pytest.mark.parametrize(
    "function", [moe.gather_qmm_combine_quantized, moe.gather_qmmk_combine_quantized]
)
@pytest.mark.parametrize(("bits", "group_size"), [(4, 64), (8, 32), (3, 32)])
def test_products_of_chosen_quantised_experts(function, bits: int, group_size: int) -> None:
    act, gate = normal(2, 3, 64), normal(2, 3, seed=2)
    weight = mx.quantize(normal(4, 24, 64, seed=1), group_size, bits)
    dense = mx.dequantize(*weight, group_size, bits)
    want = (exact(act)[:, :, None] * exact(dense)[np.array(INDICES)]).sum(-1)
    got = function(act, *weight, gate, INDICES, group_size=group_size, bits=bits)
    close(got, (want * exact(gate)[..., None]).sum(1), 1e-4)


def test_the_gated_unit_of_chosen_experts() -> None:
    assert fused_moe.has_gather_qmm_swiglu()
    x = normal(2, 1, 1, 64)
    gate, up = (mx.quantize(normal(4, 40, 64, seed=i) / 8, 64, 4) for i in (1, 2))
    indices = mx.array([[1, 3], [0, 0]], mx.uint32)
    got = fused_moe.gather_qmm_swiglu(x, *gate, *up, rhs_indices=indices)
    twice = fused_moe.gather_qmm_swiglu(x[:, :, [0, 0]], *gate, *up, rhs_indices=indices)
    close(twice, np.repeat(exact(got), 2, 2), 1e-4)
    a, b = ((x @ mx.dequantize(*w, 64, 4)[indices].swapaxes(-1, -2)) for w in (gate, up))
    close(got, silu(a) * b, 1e-4)
    close(glm_fused_swiglu(a, b), silu(a) * b)


class Add(nn.Module):
    def __init__(self, number: float):
        super().__init__()
        self.number = mx.array(number)

    def __call__(self, x: mx.array) -> mx.array:
        return x + self.number


def test_the_layer_of_experts_runs_the_routed_ones() -> None:
    logits = mx.array([[9.0, 0, 0, 8], [0, 7, 7, 0], [1, 2, 3, 4]])
    layer = zmlx.nn.MoE(lambda x: logits[: x.shape[0]], [Add(10.0**i) for i in range(4)])
    x = normal(3, 5)
    indices = best(exact(logits), 2)
    weights = softmax(at(exact(logits), indices))
    want = exact(x) + (weights * 10.0**indices).sum(-1, keepdims=True)
    close(layer(x), want)
    close(layer(x[None]), want[None])
    three = zmlx.nn.MoE(lambda x: logits, [Add(1.0) for _ in range(4)], k=3)
    close(three(x), exact(x) + 1)


def test_the_layer_of_experts_has_gradients() -> None:
    mx.random.seed(0)
    layer = zmlx.nn.MoE(nn.Linear(6, 4), [nn.Linear(6, 6) for _ in range(4)])
    x = normal(5, 6)

    def dense(layer, x):
        weights, indices = moe.topk_gating_softmax(layer.gate(x), 2)
        outputs = mx.stack([expert(x) for expert in layer.experts], axis=1)
        used = mx.take_along_axis(outputs, indices[..., None], axis=1)
        return (used * weights[..., None]).sum(1)

    got = nn.value_and_grad(layer, lambda x: layer(x).square().sum())(x)
    want = nn.value_and_grad(layer, lambda x: dense(layer, x).square().sum())(x)
    close(got[0], want[0])
    for i in range(4):
        close(got[1]["experts"][i]["weight"], want[1]["experts"][i]["weight"], 1e-4)
    close(got[1]["gate"]["weight"], want[1]["gate"]["weight"], 1e-4)


X = mx.zeros((2, 8))
MISTAKES = [
    (
        lambda: moe.topk_gating_softmax(X, 9),
        "k must be from 1 to the number of experts, 8, but got 9.",
    ),
    (
        lambda: moe.topk_gating_softmax(X, expert_bias=mx.zeros(7)),
        "[topk_gating_softmax] expert_bias must have shape (8,) but got (7,).",
    ),
    (
        lambda: moe.router_argpartition_logits_topk(X, k=0),
        "[router_argpartition_logits_topk] k must be from 1 to the number of experts, 8, but got",
    ),
    (
        lambda: moe.deepseek_router_topk_sigmoid(X, mx.zeros(3)),
        "[deepseek_router_topk_sigmoid] bias must have shape (8,) but got (3,).",
    ),
    (
        lambda: moe.deepseek_router_topk_sigmoid(X, mx.zeros(8), n_group=3),
        "[moe_topk_gating] n_group must",
    ),
    (
        lambda: moe.moe_dispatch(X, mx.zeros((3, 2), mx.uint32)),
        "[moe_dispatch] indices must have shape (2,) and one more axis but got (3, 2).",
    ),
    (
        lambda: moe.moe_combine(mx.zeros((2, 3, 4)), X),
        "[moe_combine] expert_outputs must have shape (2, 8, 4) but got (2, 3, 4).",
    ),
    (
        lambda: moe.gather_qmm_combine(X, X, X, X),
        "[gather_qmm_combine] act must be [B, K, D] but got (2, 8).",
    ),
    (
        lambda: moe.gather_mmk_combine(X, X, X, X, output_dtype=mx.int8),
        "output_dtype must be float32, float16, bfloat16 or None but got",
    ),
    (
        lambda: zmlx.nn.MoE(lambda x: x, [])(X),
        "[MoE] the gate must give a logit for each of 0 experts but gave 8.",
    ),
]


@pytest.mark.parametrize(("call", "message"), MISTAKES)
def test_mistakes_are_named(call, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
