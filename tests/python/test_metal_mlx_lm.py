"""The Metal kernels that come with mlx_lm run on the CPU and agree with their references."""

from __future__ import annotations

import importlib

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from zmlx import metal


@pytest.fixture
def fresh(monkeypatch):
    """`fresh(module)`: an mlx_lm module that believes to be on a Mac; as it was after the test."""
    used = []
    metal.install()
    with monkeypatch.context() as patched:
        patched.setattr(mx.metal, "is_available", lambda: True)
        patched.setattr(mx, "default_device", lambda: mx.gpu)

        def load(name):
            module = importlib.reload(importlib.import_module(f"mlx_lm.{name}"))
            used.append(module)
            return module

        mx.random.seed(0)
        yield load
    metal.uninstall()
    for module in used:
        importlib.reload(module)


def close(got, want, atol=1e-4):
    return mx.allclose(got, want.reshape(got.shape), rtol=1e-4, atol=atol, equal_nan=True)


def gated_delta_inputs(width, value_width, vector_gate=False, time=5):
    batch, heads, value_heads = 2, 2, 4
    q, k = (mx.random.normal((batch, time, heads, width)) * 0.1 for _ in range(2))
    v = mx.random.normal((batch, time, value_heads, value_width))
    gates = (batch, time, value_heads) + ((width,) if vector_gate else ())
    g = mx.random.uniform(shape=gates)
    beta = mx.random.uniform(shape=(batch, time, value_heads))
    state = mx.random.normal((batch, value_heads, value_width, width))
    return q, k, v, g, beta, state


@pytest.mark.parametrize("special", [False, True])
def test_gated_delta_update(fresh, special):
    module = fresh("models.gated_delta")
    inputs = gated_delta_inputs(64, 16, vector_gate=special)
    mask = mx.array([[True] * 5, [True] * 3 + [False] * 2]) if special else None
    y, state = module.gated_delta_kernel(*inputs, mask)
    want_y, want_state = module.gated_delta_ops(*inputs, mask)
    if special:
        y, want_y = (x * mask[..., None, None] for x in (y, want_y))
    assert close(y, want_y)
    assert close(state, want_state)


def test_three_gated_delta_kernels_have_the_same_bits_as_on_apples_gpus(fresh):
    module = fresh("models.gated_delta")
    inputs = gated_delta_inputs(128, 32, time=17)
    one, other, packed = (
        getattr(module, f"gated_delta_kernel{kind}")(*inputs)
        for kind in ("_unpacked", "_xtree", "")
    )
    for a, b, c in zip(one, other, packed, strict=True):
        assert mx.array_equal(a, b)
        assert mx.array_equal(a, c)


def test_state_space_update(fresh):
    module = fresh("models.ssm")
    batch, heads, head_width, groups, state_width = 2, 4, 16, 2, 64
    x = mx.random.normal((batch, 1, heads, head_width))
    b, c = (mx.random.normal((batch, 1, groups, state_width)) for _ in range(2))
    a_log, d, bias = (mx.random.normal((heads,)) for _ in range(3))
    dt = mx.random.normal((batch, 1, heads))
    state = mx.random.normal((batch, heads, head_width, state_width))
    limit = (0.001, 100.0)
    got = module.ssm_update_kernel(x, a_log, b, c, d, dt, bias, state, limit)
    want = module.ssm_attn(x, a_log, b, c, d, dt, bias, state, limit)
    assert all(close(a, b) for a, b in zip(got, want, strict=True))


def test_rwkv_update(fresh):
    module = fresh("models.rwkv7")
    batch, time, heads, width = 2, 3, 2, 64
    r, k, v, a, b = (mx.random.normal((batch, time, heads, width)) * 0.1 for _ in range(5))
    w = mx.random.uniform(shape=(batch, time, heads, width))
    state = mx.random.normal((batch, heads, width, width))
    y, got = module.wkv7_kernel(r, w, k, v, a, b, state)
    for t in range(time):
        now = [x[:, t] for x in (r, w, k, v, a, b)]
        want, state = module._wkv7_step_ops(*now, state)
        assert close(y[:, t], want)
    assert close(got, state)


def test_ternary_matrix_product(fresh):
    module = fresh("models.bitlinear_layers")
    layer = module.BitLinear(128, 16, bias=False, invert_weight_scales=True)
    rng = np.random.default_rng(5)
    ternary = rng.integers(-1, 2, (16, 128))
    packed = sum((ternary[4 * i : 4 * i + 4] + 1) << (2 * i) for i in range(4))
    layer.weight = mx.array(packed.astype(np.uint8))
    layer.weight_scale = mx.array([2.0])
    x = mx.array(rng.normal(size=(3, 128)).astype(np.float32))
    assert close(layer(x), x @ mx.array(ternary.T.astype(np.float32)) * 0.5)


@pytest.mark.parametrize("name", ["kl_div_loss", "js_div_loss"])
def test_divergences_and_their_gradients(fresh, name):
    module = fresh("tuner.losses")
    q, p = (3 * mx.random.normal((3, 5003)) for _ in range(2))
    loss = getattr(module, name)
    got = mx.value_and_grad(lambda q: loss(q, p).sum())(q)
    module.can_run_metal = lambda: False
    want = mx.value_and_grad(lambda q: loss(q, p).sum())(q)
    assert all(close(a, b, atol=1e-5) for a, b in zip(got, want, strict=True))


def test_routing(fresh):
    module = fresh("kernels.expert_routing")
    logits = mx.random.normal((7, 50)).astype(mx.bfloat16)
    bias = mx.random.normal((50,))
    inds, weights = module.expert_routing(
        logits, bias, top_k=6, multiplier=1.5, score_eps=1e-6, route_scale=2.5
    )
    scores = mx.sigmoid(logits.astype(mx.float32) * 1.5)
    want = mx.argsort(-(scores + bias), axis=-1)[:, :6]
    assert mx.array_equal(inds, want.astype(mx.uint32))
    chosen = mx.take_along_axis(scores, want, axis=-1)
    assert close(weights, chosen / (chosen.sum(-1, keepdims=True) + 1e-6) * 2.5, atol=1e-5)


def test_norm_of_a_gated_sum(fresh):
    module = fresh("kernels.norm_add_norm")
    branch = mx.random.normal((5, 700))
    stream = mx.random.normal((5, 700))
    alpha, beta, weight = (mx.random.normal((700,)) for _ in range(3))
    norm = nn.RMSNorm(700, eps=1e-5)
    norm.weight = weight
    new, normed = module.norm_add_norm(
        branch, stream, alpha=alpha, beta=beta, post_weight=None, post_eps=1e-6, next_norm=norm
    )
    want = alpha * stream + beta * mx.fast.rms_norm(branch, None, 1e-6)
    assert close(new, want)
    assert close(normed, norm(want), atol=1e-3)


def test_norm_with_a_sigmoid_gate_reads_views(fresh):
    module = fresh("kernels.rms_norm_sigmoid_gate")
    x = mx.random.normal((2, 6, 3, 48)).swapaxes(1, 2)  # strided
    gate = mx.random.normal((2, 6, 3 * 48))
    got = module.rms_norm_sigmoid_gate(x, gate, eps=1e-6)
    want = mx.fast.rms_norm(x, None, 1e-6).swapaxes(1, 2).reshape(2, 6, -1) * mx.sigmoid(gate)
    assert close(got, want)
