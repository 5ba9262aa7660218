# tests/python/test_kernels_elementwise.py: activations, gated units, biases and dropout.
from __future__ import annotations

import re

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_testing import agree, close, exact, gelu_tanh, normal, silu

from zmlx.kernels import activations, activations_dsl, fused, transformer, vlsp


def elu(x, alpha):
    return mx.where(x > 0, x, alpha * (mx.exp(mx.minimum(x, 0)) - 1))


ACTIVATIONS = {
    "exp": mx.exp,
    "tanh": mx.tanh,
    "sigmoid": mx.sigmoid,
    "relu": lambda x: mx.maximum(x, 0),
    "relu2": lambda x: mx.square(mx.maximum(x, 0)),
    "silu": silu,
    "gelu_tanh": gelu_tanh,
    "softplus": lambda x: mx.logaddexp(x, mx.zeros_like(x)),
    "mish": lambda x: x * mx.tanh(mx.logaddexp(x, mx.zeros_like(x))),
    "elu": lambda x: elu(x, 1.0),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_and_their_gradients(name: str) -> None:
    for builder in (name, f"{name}_grad"):
        agree(getattr(activations, builder)(), ACTIVATIONS[name], [normal(5, 33)])


def test_log_and_alpha() -> None:
    agree(activations.log(), mx.log, [mx.abs(normal(4, 9)) + 0.1])
    agree(activations.elu(alpha=0.3), lambda x: elu(x, 0.3), [normal(2, 31)])
    assert activations.elu(alpha=0.3)(mx.array(-1e4)).item() == pytest.approx(-0.3)


def test_softplus_does_not_overflow() -> None:
    x = mx.array([88.8, 100.0, 1e30, -100.0, float("inf")])
    for builder in (activations.softplus, activations.softplus_grad, activations_dsl.softplus):
        assert builder()(x).tolist() == pytest.approx([88.8, 100, 1e30, 0, float("inf")])
        softplus = builder()
        assert mx.grad(lambda x, f=softplus: f(x).sum())(x[:2]).tolist() == [1, 1]


def test_the_second_name_of_the_activations_has_all_of_them() -> None:
    assert activations_dsl.__all__ == activations.__all__
    assert activations_dsl.mish is activations.mish
    assert len(activations.__all__) == 21


def bias(activation):
    return lambda x, b: activation(x + b)


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("add_bias", bias(lambda x: x)),
        ("bias_silu", bias(silu)),
        ("bias_gelu_tanh", bias(gelu_tanh)),
    ],
)
def test_biases_and_their_gradients(name: str, reference) -> None:
    function = getattr(fused, name)(c=33, compute_dtype=mx.float32)
    agree(function, reference, [normal(2, 3, 33), normal(33, seed=1)])


def test_a_bias_of_another_dtype_is_taken_in_that_of_x() -> None:
    y = fused.bias_silu(c=4)(normal(3, 4, dtype=mx.float16), normal(4, seed=1))
    assert y.dtype == mx.float16


@pytest.mark.parametrize(
    ("name", "reference"),
    [("add", mx.add), ("mul", mx.multiply), ("silu_mul_grad", lambda a, b: silu(a) * b)],
)
def test_functions_of_two_arrays(name: str, reference) -> None:
    agree(getattr(fused, name)(), reference, [normal(5, 31), normal(5, 31, seed=1)])


def gated(activation):
    def reference(x, bias=None):
        gate, up = mx.split(x if bias is None else x + bias, 2, axis=-1)
        return activation(gate) * up

    return reference


@pytest.mark.parametrize(("name", "activation"), [("swiglu", silu), ("geglu", gelu_tanh)])
def test_gated_units(name: str, activation) -> None:
    x, more = normal(4, 62), normal(62, seed=1)
    agree(getattr(transformer, name), gated(activation), [x])
    agree(
        getattr(transformer, f"{name}2"),
        lambda gate, up: activation(gate) * up,
        [x[:, :31], x[:, 31:]],
    )
    agree(getattr(transformer, f"bias_{name}"), gated(activation), [x, more])


@pytest.mark.parametrize("name", ["bias_swiglu", "bias_geglu"])
def test_bias_gradients_of_gated_units_are_summed_over_rows(name: str) -> None:
    x, b = normal(3, 5, 8), normal(8, seed=1)
    slope = mx.grad(lambda b: getattr(transformer, name)(x, b).sum())(b)
    assert slope.shape == (8,)
    row = mx.grad(lambda b: getattr(transformer, name)(x[:1, :1], b).sum())(b)
    assert not mx.allclose(slope, row)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    shape=st.lists(st.integers(0, 5), max_size=2).map(tuple),
    half=st.integers(0, 40),
    seed=st.integers(0, 99),
)
def test_gated_units_of_any_shape(shape, half, seed) -> None:
    x, b = normal(*shape, 2 * half, seed=seed), normal(2 * half, seed=seed + 1)
    close(transformer.swiglu(x), gated(silu)(x))
    close(transformer.bias_swiglu(x, b), gated(silu)(x, b), 1e-4)


def mask(n: int, seed: int | None, p: float = 0.5) -> np.ndarray:
    return exact(transformer.dropout(mx.ones((n,)), p, seed)) != 0


def test_dropout_mask_is_not_periodic() -> None:
    n = 1 << 17
    kept = mask(n, 0)
    assert abs(kept.mean() - 0.5) < 5 * 0.5 / np.sqrt(n)
    for lag in (*range(1, 12), 256, n // 2):
        same = (kept[lag:] == kept[:-lag]).mean()
        assert abs(same - 0.5) < 5 * 0.5 / np.sqrt(n - lag)


def test_dropout_mask_of_another_seed_is_no_shift() -> None:
    n = 1 << 17
    first, second = mask(n, 0), mask(n, 1)
    for lag in (0, 1, 2):
        same = (first[lag:] == second[: n - lag]).mean()
        assert abs(same - 0.5) < 5 * 0.5 / np.sqrt(n)


def test_dropout_mask_is_another_one_in_each_call_without_a_seed() -> None:
    assert not np.array_equal(mask(256, None), mask(256, None))
    assert np.array_equal(mask(256, 7), mask(256, 7))
    mx.random.seed(3)
    first = mask(256, None)
    mx.random.seed(3)
    assert np.array_equal(first, mask(256, None))


def test_dropout_has_the_mask_of_its_gradient() -> None:
    x = normal(64)
    y = transformer.dropout(x, 0.25, 5)
    slope = mx.grad(lambda x: transformer.dropout(x, 0.25, 5).sum())(x)
    close(y, exact(x) * exact(slope))
    assert set(np.round(exact(slope), 5)) == {0.0, np.round(1 / 0.75, 5)}


def test_vlsp() -> None:
    h, w, gate = normal(4, 33), normal(33, seed=1), normal(4, 33, seed=2)

    def step(h, w, gate, alpha):
        normed = h * mx.rsqrt((h * h).mean(-1, keepdims=True) + 1e-6) * w
        return h + alpha * silu(normed) * gate

    agree(vlsp.fused_recurrent_step, step, [h, w, gate, mx.array([0.7])])
    close(vlsp.fused_recurrent_step(h, w, gate, 0.7), step(h, w, gate, 0.7))
    agree(lambda x: vlsp.depth_gate_sigmoid(x, k_max=5), lambda x: 5 * mx.sigmoid(x), [normal(9)])
    agree(
        vlsp.silu_mul_residual,
        lambda a, b, c: silu(a) * b + c,
        [h, gate, normal(4, 33, seed=3)],
    )


def test_grpo_advantage_is_over_std_plus_eps() -> None:
    def reference(r):
        return (r - r.mean(-1, keepdims=True)) / (mx.std(r, -1, keepdims=True) + 0.5)

    agree(lambda r: vlsp.grpo_advantage_norm(r, eps=0.5), reference, [normal(6, 8)])
    rewards = mx.array([1.0, 2.0, 3.0])
    assert vlsp.grpo_advantage_norm(rewards).shape == (3,)
    assert vlsp.grpo_advantage_norm(mx.ones((2, 4))).tolist() == [[0] * 4] * 2


X = mx.zeros((2, 8))
MISTAKES = [
    (
        lambda: activations.silu(compute_dtype_key="int8"),
        "[silu] compute_dtype_key must be float32, float16 or bfloat16 but got 'int8'.",
    ),
    (lambda: fused.bias_silu(c=4)(X, mx.zeros(4)), "[bias_silu] x's last axis must be (4,) but"),
    (lambda: fused.add_bias(c=8)(X, X), "[add_bias] bias's shape must be (8,) but got (2, 8)."),
    (
        lambda: fused.add_bias(c=8, compute_dtype=mx.int8),
        "[add_bias] compute_dtype must be float32, float16, bfloat16 or None but got",
    ),
    (
        lambda: transformer.bias_swiglu(X, mx.zeros(4)),
        "[bias_swiglu] x's last axis must be even and bias must have its length but got (2, 8) and "
        "(4,).",
    ),
    (lambda: transformer.dropout(X, 1.5), "[dropout] p must be from 0 to 1 but got 1.5."),
    (
        lambda: transformer.swiglu(X, compute_dtype=mx.int32),
        "[swiglu] compute_dtype must be float32, float16, bfloat16 or None but got",
    ),
    (
        lambda: vlsp.grpo_advantage_norm(X, threadgroup=96),
        "[grpo_advantage_norm] threadgroup must be a power of two from 1 to 1024 but got 96.",
    ),
]


@pytest.mark.parametrize(("call", "message"), MISTAKES)
def test_mistakes_are_named(call, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
