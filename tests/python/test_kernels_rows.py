# tests/python/test_kernels_rows.py: softmax, norms, reductions, scans and the loss, along rows.
from __future__ import annotations

import re

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_testing import agree, close, exact, normal

from zmlx.kernels import attention, loss, norms, reductions, scan, softmax, transformer
from zmlx.kernels.discovered.glm_rmsnorm import glm_rmsnorm

X, R, W, B = normal(3, 2, 37), normal(3, 2, 37, seed=1), normal(37, seed=2), normal(37, seed=3)


def rms(x, w=1.0, eps=1e-6):
    return x * mx.rsqrt((x * x).mean(-1, keepdims=True) + eps) * w


def layer(x, w=1.0, b=0.0, eps=1e-5):
    centred = x - x.mean(-1, keepdims=True)
    return centred * mx.rsqrt((centred * centred).mean(-1, keepdims=True) + eps) * w + b


def chosen(x, k):
    order = mx.argsort(-mx.stop_gradient(x), axis=-1)
    return mx.take_along_axis(x, order[..., :k], axis=-1)


FUNCTIONS = {
    "softmax_lastdim": (softmax.softmax_lastdim, lambda x: mx.softmax(x, -1), [X]),
    "log_softmax_lastdim": (
        softmax.log_softmax_lastdim,
        lambda x: x - mx.logsumexp(x, -1, keepdims=True),
        [X],
    ),
    "logsumexp_lastdim": (attention.logsumexp_lastdim, lambda x: mx.logsumexp(x, -1), [X]),
    "rmsnorm": (norms.rmsnorm, rms, [X, W]),
    "glm_rmsnorm": (lambda x, w: glm_rmsnorm(x, w, 1e-3), lambda x, w: rms(x, w, 1e-3), [X, W]),
    "rms_norm_no_weight": (norms.rms_norm_no_weight, rms, [X]),
    "layernorm": (norms.layernorm, layer, [X, W, B]),
    "layer_norm_no_weight": (norms.layer_norm_no_weight, layer, [X]),
    "residual_rmsnorm": (norms.residual_rmsnorm, lambda x, r, w: rms(x + r, w), [X, R, W]),
    "add_rms_norm": (norms.add_rms_norm, lambda x, r, w: (rms(x + r, w), x + r), [X, R, W]),
    "rmsnorm_residual": (
        transformer.rmsnorm_residual,
        lambda x, r, w: (rms(x + r, w), x + r),
        [X, R, W],
    ),
    "fused_add_rmsnorm": (transformer.fused_add_rmsnorm, lambda x, r, w: rms(x + r, w), [X, R, W]),
    "layernorm_residual": (
        transformer.layernorm_residual,
        lambda x, r, w, b: (layer(x + r, w, b), x + r),
        [X, R, W, B],
    ),
    "fused_add_layernorm": (
        transformer.fused_add_layernorm,
        lambda x, r, w, b: layer(x + r, w, b),
        [X, R, W, B],
    ),
    "sum_lastdim": (reductions.sum_lastdim, lambda x: x.sum(-1), [X]),
    "mean_lastdim": (reductions.mean_lastdim, lambda x: x.mean(-1), [X]),
    "max_lastdim": (reductions.max_lastdim, lambda x: x.max(-1), [X]),
    "var_lastdim": (reductions.var_lastdim, lambda x: mx.var(x, -1), [X]),
    "std_lastdim": (reductions.std_lastdim, lambda x: mx.sqrt(mx.var(x, -1) + 1e-6), [X]),
    "cumsum_lastdim": (scan.cumsum_lastdim, lambda x: mx.cumsum(x, -1), [X]),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_values_and_gradients(name: str) -> None:
    function, reference, inputs = FUNCTIONS[name]
    agree(function, reference, inputs)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_rows_give_no_rows(name: str) -> None:
    function, reference, inputs = FUNCTIONS[name]
    got, want = function(*(x[:0] if x.ndim == 3 else x for x in inputs)), reference(*inputs)
    if isinstance(want, tuple):
        got, want = got[0], want[0]
    mx.eval(got)
    assert got.shape == (0, *want.shape[1:])


@pytest.mark.parametrize("name", ["softmax_lastdim", "rmsnorm", "layernorm", "rmsnorm_residual"])
def test_second_derivatives(name: str) -> None:
    function, reference, inputs = FUNCTIONS[name]

    def curve(of):
        def slope(x):
            def total(x):
                y = of(x, *inputs[1:])
                return ((y[0] if isinstance(y, tuple) else y) ** 3).sum()

            return (mx.grad(total)(x) ** 2).sum()

        return mx.grad(slope)(inputs[0])

    close(curve(function), curve(reference), 1e-3)


@pytest.mark.parametrize("name", ["softmax_lastdim", "rmsnorm", "layernorm", "var_lastdim"])
@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 70)),
    seed=st.integers(0, 99),
    turned=st.booleans(),
)
def test_rows_of_any_shape_and_stride(name, shape, seed, turned) -> None:
    function, reference, inputs = FUNCTIONS[name]
    x = normal(*shape, seed=seed)
    weights = [normal(shape[1], seed=seed + i) for i in range(1, len(inputs))]
    strided = mx.contiguous(x.T).T if turned else x
    close(function(strided, *weights), reference(x.astype(mx.float32), *weights), 1e-4)


def test_given_gradients() -> None:
    y, g = mx.softmax(X, -1), R
    close(softmax.softmax_grad(y, g), mx.vjp(lambda x: mx.softmax(x, -1), [X], [g])[1][0])
    close(norms.rmsnorm_grad(X, W, g), mx.vjp(lambda x: rms(x, W), [X], [g])[1][0], 1e-4)
    close(scan.cumsum_grad(g), mx.vjp(lambda x: mx.cumsum(x, -1), [X], [g])[1][0])


def test_rmsnorm_weight_gradient_is_summed_over_rows() -> None:
    x, w = normal(3, 64), normal(64, seed=1)
    slope = mx.grad(lambda w: norms.rmsnorm(x, w).sum())(w)
    assert slope.shape == (64,)
    close(slope, exact(rms(x)).sum(0), 1e-4)


def test_layer_norm_without_bias_keeps_its_weight() -> None:
    close(norms.layernorm(X, W, None), layer(X, W), 1e-4)
    close(transformer.layernorm_residual(X, R, W, None)[0], layer(X + R, W), 1e-4)
    assert not mx.allclose(norms.layernorm(X, W, None), layer(X), atol=0.1)


def test_layer_norm_of_a_large_mean_keeps_its_variance() -> None:
    x = mx.array([[1000.0, 1000.5, 1001.0, 1001.5]])
    want = layer(x.astype(mx.float64))
    close(norms.layer_norm_no_weight(x), want, 1e-3)
    close(norms.layernorm(x, mx.ones(4), mx.zeros(4)), want, 1e-3)


@pytest.mark.parametrize(
    ("function", "plain", "weights"),
    [
        (norms.layer_norm_dropout, layer, [W, B]),
        (transformer.rms_norm_dropout, rms, [W]),
    ],
)
def test_norms_with_dropout(function, plain, weights) -> None:
    y = function(X, *weights, 0.25, 3)
    kept = exact(transformer.dropout(mx.ones(X.shape), 0.25, 3))
    close(y, exact(plain(X, *weights)) * kept, 1e-4)
    assert not mx.array_equal(function(X, *weights, 0.5), function(X, *weights, 0.5))
    slope = mx.grad(lambda x: function(x, *weights, 0.25, 3).sum())(X)
    want = mx.grad(lambda x: (plain(x, *weights) * mx.array(kept, mx.float32)).sum())(X)
    close(slope, want, 1e-3)


def test_sums_with_kahan_lose_nothing() -> None:
    x = mx.concatenate([mx.array([1e8]), mx.ones(1000), mx.array([-1e8])])[None]
    assert reductions.sum_lastdim(x, kahan=True).tolist() == [1000]
    close(reductions.mean_lastdim(x, kahan=True), [1000 / 1002])


def test_argmax_takes_the_lowest_index_of_ties() -> None:
    x = mx.array(np.tile([0.0, 3.0, 1.0, 3.0], (2, 300)))
    got = reductions.argmax_lastdim(x, threadgroup=64)
    assert got.dtype == mx.uint32
    assert got.tolist() == [1, 1]


def test_topk_gives_float32_values_and_indices() -> None:
    x = normal(5, 33, dtype=mx.float16)
    values, indices = reductions.topk_lastdim(x, 4)
    assert (values.dtype, indices.dtype) == (mx.float32, mx.uint32)
    close(values, chosen(x, 4))
    assert reductions.topk_lastdim(x, 4, compute_dtype=mx.float16)[0].dtype == mx.float16
    agree(
        lambda x: reductions.topk_lastdim(x, 4)[0],
        lambda x: chosen(x, 4),
        [normal(3, 9)],
        gives=mx.float32,
    )


def test_topk_of_more_than_there_are_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"k must be from 1 to x's last axis, 4, but got 5"):
        reductions.topk_lastdim(normal(2, 4), 5)


def plain_masked(x, mask, scale=1.0):
    scores = mx.where(mask, scale * x, -1e30)
    return mx.where(mask.any(-1, keepdims=True) & mask, mx.softmax(scores, -1), 0)


def test_masked_softmax_of_a_row_without_elements_is_zero() -> None:
    mask = normal(3, 2, 37, seed=9) > 0
    mask[1, 0] = False
    agree(attention.masked_softmax, plain_masked, [X, mask])
    agree(
        lambda x, m: attention.scale_mask_softmax(x, m, 0.5),
        lambda x, m: plain_masked(x, m, 0.5),
        [X, mask],
    )
    assert attention.masked_softmax(X, mask)[1, 0].tolist() == [0] * 37
    slope = mx.grad(lambda x: attention.masked_softmax(x, mask).square().sum())(X)
    assert mx.isfinite(slope).all()


def test_a_masked_nan_or_infinity_does_not_reach_the_row() -> None:
    x = mx.array([[1.0, float("nan"), 2.0, float("inf")]])
    mask = mx.array([[True, False, True, False]])
    close(attention.masked_softmax(x, mask)[:, ::2], mx.softmax(x[:, ::2], -1))


def cross_entropy(x, t):
    return mx.logsumexp(x, -1) - mx.take_along_axis(x, t[..., None], -1)[..., 0]


def test_softmax_cross_entropy() -> None:
    logits = 3 * normal(2, 5, 31)
    targets = mx.random.randint(0, 31, (2, 5), key=mx.random.key(1))
    agree(loss.softmax_cross_entropy, cross_entropy, [logits, targets], gives=mx.float32)
    weights = normal(2, 5, seed=4)
    got = loss.softmax_cross_entropy_grad(logits.astype(mx.float16), targets, weights)
    assert got.dtype == mx.float16
    want = mx.vjp(lambda x: cross_entropy(x, targets), [logits], [weights])[1][0]
    close(got, want)
    large = loss.softmax_cross_entropy(mx.array([[1e4, 0.0]]), mx.array([1]))
    assert large.item() == pytest.approx(1e4)


def test_softmax_cross_entropy_of_a_target_outside_is_an_error() -> None:
    with pytest.raises(RuntimeError, match=r"targets must be from 0 to 36.* but one is 37"):
        mx.eval(loss.softmax_cross_entropy(X[0], mx.array([3, 37])))
    assert loss.softmax_cross_entropy(X[0], mx.array([3, -100]))[1].item() == 0


def test_attention_tile() -> None:
    q, k = normal(16, 40), normal(16, 40, seed=1)
    agree(attention.attention_tile_proto, lambda q, k: q @ k.T, [q, k], gives=mx.float32)


MISTAKES = [
    (
        lambda: softmax.softmax_lastdim(X, threadgroup=0),
        "[softmax_lastdim] threadgroup must be a power of two from 1 to 1024 but got 0.",
    ),
    (
        lambda: norms.rmsnorm(X, W, threadgroup=2048),
        "[rmsnorm] threadgroup must be a power of two from 1 to 1024 but got 2048.",
    ),
    (
        lambda: reductions.sum_lastdim(X, threadgroup=64.0),
        "[sum_lastdim] threadgroup must be a power of two from 1 to 1024 but got 64.0.",
    ),
    (lambda: norms.rmsnorm(X, W[1:]), "weight must have shape (37,) but got (36,)."),
    (
        lambda: attention.masked_softmax(X, X[..., :3] > 0),
        "[masked_softmax] mask must",
    ),
    (
        lambda: attention.attention_tile_proto(X[0], X[0]),
        "[attention_tile_proto] q and k must both be (16, D) but got (2, 37) and (2, 37).",
    ),
    (
        lambda: loss.softmax_cross_entropy(X, X, compute_dtype=mx.uint8),
        "[softmax_cross_entropy] compute_dtype must be float32, float16, bfloat16 or None but",
    ),
]


@pytest.mark.parametrize(("call", "message"), MISTAKES)
def test_mistakes_are_named(call, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


def test_every_threadgroup_gives_the_same() -> None:
    for threadgroup in (1, 32, 256, 1024):
        close(softmax.softmax_lastdim(X, threadgroup=threadgroup), mx.softmax(X, -1))
