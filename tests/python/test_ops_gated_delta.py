# tests/python/test_ops_gated_delta.py: the gated delta rule with its convolution and norm, against
# NumPy and mlx_lm.
import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_testing import close, exact
from mlx_lm.models.gated_delta import gated_delta_ops
from op_inputs import dtypes, normal, strided
from scipy import special

from zmlx import ops


def recurrence(q, k, v, g, beta, state, mask):
    repeats = v.shape[2] // q.shape[2]
    q, k = (np.repeat(x, repeats, 2) for x in (q, k))
    g = g[..., None, :] if g.ndim == 4 else g[..., None, None]
    state = state.copy()
    y = np.zeros(v.shape)
    for b, t in np.ndindex(*v.shape[:2]):
        if not mask[b, t]:
            continue
        s = state[b] * g[b, t]
        delta = (v[b, t] - np.einsum("hvk,hk->hv", s, k[b, t])) * beta[b, t][:, None]
        state[b] = s + delta[..., None] * k[b, t][:, None]
        y[b, t] = np.einsum("hvk,hk->hv", state[b], q[b, t])
    return y, state


def inputs(batch, tokens, k_heads, v_heads, key, value, dtype, wide_gate):
    q, k = (normal((batch, tokens, k_heads, key), i, dtype) / key**0.5 for i in (1, 2))
    v = normal((batch, tokens, v_heads, value), 3, dtype)
    gate = (batch, tokens, v_heads)
    g = mx.sigmoid(2 + normal((*gate, key) if wide_gate else gate, 4))
    beta = mx.sigmoid(normal(gate, 5)).astype(dtype)
    return q, k, v, g, beta, normal((batch, v_heads, value, key), 6)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    batch=st.integers(1, 2),
    tokens=st.sampled_from([1, 2, 7, 31]),
    k_heads=st.integers(1, 2),
    repeats=st.integers(1, 2),
    key=st.sampled_from([1, 31, 32, 33, 128]),
    value=st.sampled_from([1, 16, 33]),
    dtype=dtypes,
    wide_gate=st.booleans(),
    masked=st.booleans(),
)
def test_any_number_of_tokens(
    batch, tokens, k_heads, repeats, key, value, dtype, wide_gate, masked
):
    arrays = inputs(batch, tokens, k_heads, k_heads * repeats, key, value, dtype, wide_gate)
    mask = mx.random.bernoulli(0.7, (batch, tokens), key=mx.random.key(7)) if masked else None
    y, state = ops.gated_delta_update(*arrays, mask)
    every = np.ones((batch, tokens), bool) if mask is None else np.array(mask)
    want = recurrence(*map(exact, arrays), every)
    assert (y.dtype, state.dtype) == (dtype, mx.float32)
    close(y, want[0])
    close(state, want[1])


@pytest.mark.parametrize("wide_gate", [False, True])
def test_it_is_that_of_mlx_lm(wide_gate: bool) -> None:
    arrays = inputs(2, 9, 2, 4, 64, 32, mx.float32, wide_gate)
    for got, want in zip(ops.gated_delta_update(*arrays), gated_delta_ops(*arrays), strict=True):
        close(got, exact(want))
    y, state = ops.gated_delta_update(*arrays[:5])
    want_y, want_state = gated_delta_ops(*arrays[:5])
    close(y, exact(want_y))
    close(state, exact(want_state))


def test_tokens_may_come_one_at_a_time() -> None:
    q, k, v, g, beta, state = inputs(1, 6, 1, 2, 32, 16, mx.float32, False)
    whole, last = ops.gated_delta_update(q, k, v, g, beta, state)
    for t in range(6):
        y, state = ops.gated_delta_update(*(x[:, t : t + 1] for x in (q, k, v, g, beta)), state)
        close(y, exact(whole[:, t : t + 1]))
    close(state, exact(last))


def test_the_gradient_is_that_of_mlx_lm() -> None:
    arrays = inputs(1, 4, 1, 2, 8, 5, mx.float32, False)

    def loss(update):
        def of(*arrays):
            y, state = update(*arrays)
            return (y * mx.cos(y)).sum() + state.square().sum()

        return mx.grad(of, tuple(range(6)))(*arrays)

    for got, want in zip(loss(ops.gated_delta_update), loss(gated_delta_ops), strict=True):
        close(got, exact(want))


def convolve(x, weight, state):
    rows = np.concatenate([state, x], 1)
    taps = weight.shape[1]
    y = sum(rows[:, k : k + x.shape[1]] * weight[:, k] for k in range(taps))
    return y * special.expit(y), rows


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    tokens=st.sampled_from([1, 2, 31, 32, 33]),
    channels=st.sampled_from([1, 31, 32, 33, 129, 257]),
    taps=st.integers(1, 5),
    dtype=dtypes,
)
def test_the_convolution_is_causal_and_keeps_its_state(tokens, channels, taps, dtype) -> None:
    x, weight = strided(normal((2, tokens, channels), 1, dtype)), normal((channels, taps), 2, dtype)
    state = normal((2, taps - 1, channels), 3, dtype)
    out, new_state = ops.conv1d_silu(x, weight, state)
    want, rows = convolve(*map(exact, (x, weight, state)))
    close(out, want)
    np.testing.assert_array_equal(exact(new_state), rows[:, tokens:])


def test_the_convolution_is_that_of_a_model() -> None:
    conv = nn.Conv1d(6, 6, kernel_size=4, groups=6, padding=0, bias=False)
    x, state = normal((3, 5, 6), 1), normal((3, 3, 6), 2)
    mask = mx.array([[True] * 5, [False] * 2 + [True] * 3, [True] * 5])
    lengths = mx.array([5, 4, 0])
    out, new_state = ops.conv1d_silu(x, conv.weight, state, mask=mask, lengths=lengths)
    rows = mx.concatenate([state, mx.where(mask[..., None], x, 0)], 1)
    close(out, exact(nn.silu(conv(rows))))
    places = (lengths[:, None] + mx.arange(3))[..., None]
    assert mx.array_equal(new_state, mx.take_along_axis(rows, places, 1))
    fresh, _ = ops.conv1d_silu(x, conv.weight)
    close(fresh, exact(nn.silu(conv(mx.concatenate([mx.zeros((3, 3, 6)), x], 1)))))


@settings(max_examples=20, deadline=None, derandomize=True)
@given(width=st.sampled_from([1, 31, 32, 33, 128]), dtype=dtypes)
def test_the_gated_norm(width, dtype) -> None:
    x, gate = strided(normal((3, 5, width), 1, dtype)), normal((3, 5, width), 2, dtype)
    weight = normal((width,), 3, dtype)
    a, z, w = map(exact, (x, gate, weight))
    want = a / np.sqrt((a * a).mean(-1, keepdims=True) + 1e-6) * w * z * special.expit(z)
    close(ops.gated_rms_norm(x, gate, weight), want)


def test_no_tokens_change_nothing() -> None:
    arrays = inputs(1, 0, 1, 1, 4, 4, mx.float32, False)
    y, state = ops.gated_delta_update(*arrays)
    assert y.shape == (1, 0, 1, 4)
    assert mx.array_equal(state, arrays[5])
    out, kept = ops.conv1d_silu(mx.zeros((1, 0, 4)), mx.ones((4, 3)), normal((1, 2, 4), 1))
    assert out.shape == (1, 0, 4)
    assert mx.array_equal(kept, normal((1, 2, 4), 1))


Q, V, G = mx.zeros((1, 2, 2, 8)), mx.zeros((1, 2, 4, 5)), mx.zeros((1, 2, 4))
X, W = mx.zeros((2, 3, 6)), mx.zeros((6, 4))
MISTAKES = [
    (
        lambda: ops.gated_delta_update(Q, Q, V[:, :, :3], G[..., :3], G[..., :3]),
        "[gated_delta_update] value heads must be a multiple of key heads but got 3 and 2.",
    ),
    (
        lambda: ops.gated_delta_update(Q, Q[..., :7], V, G, G),
        "[gated_delta_update] k must have shape (1, 2, 2, 8) but got (1, 2, 2, 7).",
    ),
    (
        lambda: ops.gated_delta_update(Q, Q, V, G[:, :1], G),
        "[gated_delta_update] g must have shape (1, 2, 4) but got (1, 1, 4).",
    ),
    (
        lambda: ops.gated_delta_update(Q, Q, V, mx.zeros((1, 2, 4, 5)), G),
        "[gated_delta_update] g must have shape (1, 2, 4, 8) but got (1, 2, 4, 5).",
    ),
    (
        lambda: ops.gated_delta_update(Q, Q, V, G, G, mx.zeros((1, 4, 8, 5))),
        "[gated_delta_update] state must have shape (1, 4, 5, 8) but got (1, 4, 8, 5).",
    ),
    (
        lambda: ops.gated_delta_update(Q, Q, V, G, G, mask=mx.zeros((1, 2))),
        "[gated_delta_update] mask must be bool but got float32.",
    ),
    (
        lambda: ops.conv1d_silu(X, mx.zeros((5, 4))),
        "[conv1d_silu] weight must have shape (6, 4) but got (5, 4).",
    ),
    (
        lambda: ops.conv1d_silu(X, W, mx.zeros((2, 4, 6))),
        "[conv1d_silu] state must have shape (2, 3, 6) but got (2, 4, 6).",
    ),
    (
        lambda: ops.conv1d_silu(X, W, lengths=mx.array([1])),
        "[conv1d_silu] lengths must have shape (2,) but got (1,).",
    ),
    (
        lambda: ops.conv1d_silu(X, mx.zeros((6, 0)), mx.zeros((2, 0, 6))),
        "[conv1d_silu] weight must have at least one tap but got float32(6, 0).",
    ),
    (
        lambda: ops.gated_rms_norm(X, X[:1], X[0, 0]),
        "[gated_rms_norm] gate must have shape (2, 3, 6) but got (1, 3, 6).",
    ),
]


@pytest.mark.parametrize(("call", "message"), MISTAKES)
def test_mistakes_are_named(call, message: str) -> None:
    with pytest.raises((ValueError, TypeError, RuntimeError)) as error:
        call()
    assert message in str(error.value)
