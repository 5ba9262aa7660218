# tests/python/test_ops_moe.py: routing with groups, dispatch and combine, scatter-add, the MLPs of
# experts, and quantised gated MLPs.
import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.models.deepseek_v3 import group_expert_select
from scipy import special
from test_ops import TOLERANCE, close, exact

from zmlx import ops


def normal(shape: tuple[int, ...], seed: int, dtype: mx.Dtype = mx.float32) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(seed)).astype(dtype)


@pytest.mark.parametrize(("groups", "chosen"), [(1, 1), (8, 4), (4, 1), (16, 15)])
@pytest.mark.parametrize("normalise", [False, True])
def test_gating_with_groups_is_deepseek_v3s(groups: int, chosen: int, normalise: bool) -> None:
    logits = normal((37, 64), 1)
    bias = 0.5 + 0.1 * normal((64,), 2)  # scores are positive, so that theirs of 0 loses as well
    weights, indices = ops.moe_topk_gating(
        logits,
        bias,
        k=4,
        scores="sigmoid",
        normalise=normalise,
        scale=2.5,
        n_group=groups,
        topk_group=chosen,
    )
    want_indices, want = group_expert_select(logits, bias, 4, groups, chosen, 2.5, normalise)
    order = mx.argsort(want_indices, -1)
    ours = mx.argsort(indices, -1)
    np.testing.assert_array_equal(
        np.array(mx.take_along_axis(indices, ours, -1)),
        np.array(mx.take_along_axis(want_indices, order, -1)),
    )
    close(mx.take_along_axis(weights, ours, -1), exact(mx.take_along_axis(want, order, -1)))


def grouped(score: np.ndarray, k: int, groups: int, chosen: int) -> np.ndarray:
    """The k best experts of the `chosen` best groups, by their two best; ties to lower indices."""
    parts = score.reshape(*score.shape[:-1], groups, -1)
    best = -np.sort(-parts, -1)[..., :2].sum(-1)
    open_groups = np.argsort(-best, -1, kind="stable")[..., :chosen]
    is_open = (open_groups[..., None] == np.arange(groups)).any(-2)
    masked = np.where(is_open[..., None], parts, -np.inf).reshape(score.shape)
    return np.argsort(-masked, -1, kind="stable")[..., :k]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    groups=st.integers(1, 6),
    size=st.integers(1, 9),
    data=st.data(),
    levels=st.integers(1, 5),
    seed=st.integers(0, 1000),
)
def test_closed_groups_are_never_chosen_even_with_ties_and_negative_scores(
    groups, size, data, levels, seed
) -> None:
    chosen = data.draw(st.integers(1, groups))
    k = data.draw(st.integers(1, size * chosen))
    # Halves and quarters: sums of two have no rounding, so ties are ties.
    bias = mx.random.randint(-levels, levels, (groups * size,), key=mx.random.key(seed)) / 4
    logits = mx.zeros((3, groups * size))
    _, indices = ops.moe_topk_gating(
        logits, bias, k=k, scores="sigmoid", n_group=groups, topk_group=chosen
    )
    want = grouped(np.broadcast_to(0.5 + exact(bias), (3, groups * size)), k, groups, chosen)
    np.testing.assert_array_equal(np.array(indices), want)


def test_closed_groups_are_not_chosen_where_deepseeks_zero_would_win() -> None:
    logits = mx.array([[0.0, 0.0, -9.0, -9.0]])
    bias = mx.array([-0.9, -0.9, -0.5, -0.5])  # the first group is better, with negative scores
    _, indices = ops.moe_topk_gating(logits, bias, k=2, scores="sigmoid", n_group=2, topk_group=1)
    assert sorted(indices[0].tolist()) == [0, 1]


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    tokens=st.tuples(st.integers(1, 3), st.integers(0, 17)),
    experts=st.integers(1, 9),
    chosen=st.integers(1, 4),
    dtype=st.sampled_from([mx.float32, mx.float16, mx.bfloat16]),
    seed=st.integers(0, 1000),
)
def test_dispatch_sorts_and_combine_brings_back(tokens, experts, chosen, dtype, seed) -> None:
    x = normal((*tokens, 33), seed, dtype)
    indices = mx.random.randint(0, experts, (*tokens, chosen), mx.uint32, mx.random.key(seed))
    rows, sorted_experts, order = ops.moe_dispatch(x, indices)
    flat = np.array(indices).reshape(-1)
    np.testing.assert_array_equal(np.array(order), np.argsort(flat, kind="stable"))
    np.testing.assert_array_equal(np.array(sorted_experts), np.sort(flat))
    want = exact(x).reshape(-1, 33)[np.array(order) // chosen].reshape(-1, 33)
    np.testing.assert_array_equal(exact(rows), want)
    weights = mx.softmax(normal((*tokens, chosen), seed + 1), -1)
    close(ops.moe_combine(rows, weights, order=order), exact(x))
    residual = normal((*tokens, 33), seed + 2, dtype)
    close(ops.moe_combine(rows, weights, residual, order=order), exact(x) + exact(residual))


def test_sorted_rows_go_through_gather_mm_and_back() -> None:
    x, weight = normal((2, 9, 16), 1), normal((5, 8, 16), 2)
    indices = mx.random.randint(0, 5, (2, 9, 3), mx.uint32, mx.random.key(3))
    shares = mx.softmax(normal((2, 9, 3), 4), -1)
    rows, experts, order = ops.moe_dispatch(x, indices)
    y = mx.gather_mm(
        rows[:, None], weight.swapaxes(-1, -2), rhs_indices=experts, sorted_indices=True
    )
    got = ops.moe_combine(y.squeeze(1), shares, order=order)
    chosen = exact(weight)[np.array(indices)]
    want = np.einsum("btkfd,btd,btk->btf", chosen, exact(x), exact(shares))
    close(got, want)


def test_dispatch_and_combine_have_gradients() -> None:
    x = normal((3, 5), 1)
    indices = mx.array([[0, 2], [2, 1], [1, 1]], mx.uint32)
    weights = mx.array([[0.25, 0.75], [0.5, 0.5], [1.0, 2.0]])

    def loss(x: mx.array, weights: mx.array) -> mx.array:
        rows, _, order = ops.moe_dispatch(x, indices)
        return ops.moe_combine(rows, weights, order=order).sum()

    dx, dw = mx.grad(loss, (0, 1))(x, weights)
    np.testing.assert_allclose(exact(dx), np.repeat(exact(weights).sum(1)[:, None], 5, 1))
    np.testing.assert_allclose(
        exact(dw), np.repeat(exact(x).sum(1)[:, None], 2, 1), rtol=1e-5, atol=1e-6
    )


def test_a_layer_of_experts_has_a_gradient_through_its_router() -> None:
    x, router, scale = normal((9, 16), 1), normal((5, 16), 2), mx.array(2.0)
    gate, up, down = normal((5, 8, 16), 3), normal((5, 8, 16), 4), normal((5, 16, 8), 5)

    def fused(x: mx.array, router: mx.array) -> mx.array:
        weights, indices = ops.moe_topk_gating(x @ router.T, k=2)
        act = ops.gather_qmm_swiglu(x, gate, None, None, up, None, None, indices)
        return ops.gather_qmm_combine(act, down, None, None, scale * weights, indices).sum()

    def plain(x: mx.array, router: mx.array) -> mx.array:
        scores = mx.softmax(x @ router.T, -1)
        indices = mx.stop_gradient(mx.argsort(-scores, -1)[:, :2])
        weights = mx.take_along_axis(scores, indices, -1)
        weights = scale * weights / weights.sum(-1, keepdims=True)
        hidden = mx.einsum("td,tkfd->tkf", x, gate[indices])
        hidden = hidden * mx.sigmoid(hidden) * mx.einsum("td,tkfd->tkf", x, up[indices])
        return (mx.einsum("tkf,tkdf->tkd", hidden, down[indices]) * weights[..., None]).sum()

    for got, want in zip(
        mx.grad(fused, (0, 1))(x, router), mx.grad(plain, (0, 1))(x, router), strict=True
    ):
        close(got, exact(want))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    count=st.integers(0, 70),
    rows=st.integers(1, 9),
    width=st.integers(1, 40),
    dtype=st.sampled_from([mx.float32, mx.float16, mx.bfloat16]),
    kind=st.sampled_from([mx.int32, mx.uint32, mx.int64]),
    onto=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_scatter_add_matches_numpy(count, rows, width, dtype, kind, onto, seed) -> None:
    low = 0 if kind == mx.uint32 else -rows
    indices = mx.random.randint(low, rows, (count,), key=mx.random.key(seed)).astype(kind)
    updates = normal((count, width), seed, dtype)
    table = normal((rows, width), seed + 1, dtype)
    want = exact(table) if onto else np.zeros((rows, width))
    np.add.at(want, np.array(indices), exact(updates))
    if onto:
        got = ops.scatter_add(indices, updates, onto=table)
    else:
        got = ops.scatter_add(indices, updates, rows)
    assert got.dtype == dtype
    close(got, want)


def test_scatter_add_adds_in_float32_and_its_gradient_gathers() -> None:
    ones = mx.ones((4000, 3), mx.bfloat16)
    # Alone in bfloat16 the sum would stop at 256.
    assert ops.scatter_add(mx.zeros((4000,), mx.int32), ones, 1).tolist() == [[4000.0] * 3]
    indices = mx.array([[1, 0], [1, 2]])
    slope = mx.arange(6.0).reshape(3, 2)
    updates, onto = normal((2, 2, 2), 1), normal((3, 2), 2)
    du, dt = mx.grad(
        lambda u, t: (ops.scatter_add(indices, u, onto=t) * slope).sum(), argnums=(0, 1)
    )(updates, onto)
    assert mx.array_equal(du, slope[indices])
    assert mx.array_equal(dt, slope)


MODES = [("affine", 4, 64), ("affine", 8, 32), ("mxfp4", None, None), ("none", None, None)]


def quantised(shape: tuple[int, ...], seed: int, mode: str, bits, group) -> tuple[tuple, mx.array]:
    """A weight's arrays, and what they stand for."""
    dense = normal(shape, seed) / 8
    if mode == "none":
        return (dense, None, None), dense
    parts = mx.quantize(dense, group, bits, mode)
    return (*parts, None)[:3], mx.dequantize(*parts, group_size=group, bits=bits, mode=mode)


@pytest.mark.parametrize(("mode", "bits", "group"), MODES)
@pytest.mark.parametrize("tokens", [(1,), (2, 3), (50,)])
def test_experts_in_two_passes(mode: str, bits, group, tokens: tuple[int, ...]) -> None:
    experts, chosen, inner, width = 7, 3, 96, 64
    x = normal((*tokens, width), 1)
    logits = normal((*tokens, experts), 2)
    weights, indices = ops.moe_topk_gating(logits, k=chosen)
    gate, dense_gate = quantised((experts, inner, width), 3, mode, bits, group and 32)
    up, dense_up = quantised((experts, inner, width), 4, mode, bits, group and 32)
    down, dense_down = quantised((experts, width, inner), 5, mode, bits, group and 32)
    options = {} if mode == "none" else {"mode": mode, "bits": bits, "group_size": group and 32}
    act = ops.gather_qmm_swiglu(x, *gate, *up, indices, **options)
    at = np.array(indices)
    hidden = np.einsum("...kfd,...d->...kf", exact(dense_gate)[at], exact(x))
    hidden *= special.expit(hidden)
    hidden *= np.einsum("...kfd,...d->...kf", exact(dense_up)[at], exact(x))
    close(act, hidden)
    residual = normal((*tokens, width), 6)
    got = ops.gather_qmm_combine(act, *down, weights, indices, residual, **options)
    y = np.einsum("...kdf,...kf,...k->...d", exact(dense_down)[at], hidden, exact(weights))
    close(got, y + exact(residual))
    close(ops.gather_qmm_combine(act, *down, weights, indices, **options), y)


@pytest.mark.parametrize(("mode", "bits", "group"), MODES[:3])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_gated_mlps_with_quantised_weights(mode: str, bits, group, dtype: mx.Dtype) -> None:
    x = normal((5, 64), 1)
    weights, dense = [], []
    for seed, shape in enumerate([(128, 64), (128, 64), (64, 128)], 2):
        exactly = (normal(shape, seed) / 8).astype(dtype)
        parts = mx.quantize(exactly, group, bits, mode)
        weights.append(parts)
        wide = [a if a.dtype in (mx.uint32, mx.uint8) else a.astype(mx.float32) for a in parts]
        options = {"group_size": group, "bits": bits, "mode": mode, "dtype": mx.float32}
        dense.append(exact(mx.dequantize(*wide, **options)))
    x = x.astype(dtype)
    options = {"group_size": group, "bits": bits, "mode": mode}
    gate, up = exact(x) @ dense[0].T, exact(x) @ dense[1].T
    tanh = special.expit(2 * np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3))
    for got, share in [
        (ops.swiglu(x, *weights, **options), special.expit(gate)),
        (ops.geglu(x, *weights, **options), special.ndtr(gate)),
        (ops.geglu(x, *weights, approximate=True, **options), tanh),
    ]:
        close(got, (gate * share * up) @ dense[2].T)


def test_a_quantised_mlp_has_a_gradient() -> None:
    x = normal((3, 64), 1)
    weights = [mx.quantize(normal(s, i) / 8) for i, s in enumerate([(128, 64)] * 2 + [(64, 128)])]
    dense = [mx.dequantize(*w) for w in weights]
    got = mx.grad(lambda x: ops.geglu(x, *weights).sum())(x)
    want = mx.grad(lambda x: ops.geglu(x, *dense).sum())(x)
    close(got, exact(want))


X = mx.zeros((2, 7))
INDICES = mx.zeros((2, 3), mx.uint32)
STACK = mx.zeros((4, 5, 7))
W = mx.zeros((32, 64))
MISTAKES = [
    (
        lambda: ops.moe_topk_gating(mx.zeros((2, 6)), k=1, n_group=4),
        "[moe_topk_gating] n_group must divide the number of experts, 6, but got 4.",
    ),
    (
        lambda: ops.moe_topk_gating(mx.zeros((2, 6)), k=1, n_group=3, topk_group=4),
        "[moe_topk_gating] topk_group must be from 1 to n_group, 3, but got 4.",
    ),
    (
        lambda: ops.moe_topk_gating(mx.zeros((2, 6)), k=3, n_group=3, topk_group=1),
        "[moe_topk_gating] k must be at most the number of experts in topk_group groups, 2, but "
        "got 3.",
    ),
    (
        lambda: ops.moe_dispatch(X, INDICES.astype(mx.int32)),
        "[moe_dispatch] indices must be uint32 but got int32.",
    ),
    (
        lambda: ops.moe_dispatch(X, INDICES[:1]),
        "[moe_dispatch] indices must have shape (2, 3) but got (1, 3).",
    ),
    (
        lambda: ops.moe_combine(mx.zeros((2, 3, 7)), mx.zeros((2, 4))),
        "[moe_combine] expert_outputs must have shape (2, 4, 7) but got (2, 3, 7).",
    ),
    (
        lambda: ops.moe_combine(mx.zeros((2, 3, 7)), INDICES),
        "[moe_combine] weights must be float32 or float32 but got uint32.",
    ),
    (
        lambda: ops.moe_combine(mx.zeros((7,)), mx.zeros((3,))),
        "[moe_combine] expert_outputs must have at least 2 axes and weights 1 but they are "
        "float32(7,) and float32(3,).",
    ),
    (
        lambda: ops.moe_combine(mx.zeros((2, 3, 7)), mx.zeros((2, 3)), X[:1]),
        "[moe_combine] residual must have shape (2, 7) but got (1, 7).",
    ),
    (
        lambda: mx.eval(ops.moe_combine(X, mx.ones((2, 1)), order=mx.array([1, 1], mx.uint32))),
        "[moe_combine] order must have each number below 2 once but has 1 twice.",
    ),
    (
        lambda: mx.eval(ops.moe_combine(X, mx.ones((2, 1)), order=mx.array([1, 2], mx.uint32))),
        "[moe_combine] order must have each number below 2 once but has 2.",
    ),
    (
        lambda: ops.scatter_add(mx.array([0, 1]), X),
        "[scatter_add] exactly one of rows and onto must be given.",
    ),
    (
        lambda: ops.scatter_add(mx.array([0]), X, 3),
        "[scatter_add] updates must be rows for each of the indices, (1,), but got float32(2, 7).",
    ),
    (
        lambda: ops.scatter_add(mx.array([0, 1]), X, onto=mx.zeros((3, 6))),
        "[scatter_add] onto must have shape (3, 7) but got (3, 6).",
    ),
    (
        lambda: ops.scatter_add(X[0, :2], X, 3),
        "[scatter_add] indices must be int32, uint32 or int64 but got float32.",
    ),
    (
        lambda: ops.scatter_add(mx.array([0, 1]), X, -1),
        "[scatter_add] rows must not be negative, and fit an int32, but got -1.",
    ),
    (
        lambda: mx.eval(ops.scatter_add(mx.array([0, -4]), X, 3)),
        "[scatter_add] indices must be below 3 rows but one is -4.",
    ),
    (
        lambda: ops.gather_qmm_swiglu(X, STACK, None, None, STACK[:, :4], None, None, INDICES),
        "[gather_qmm_swiglu] gate and up must be (E, F, 7) but they are (4, 5, 7) and (4, 4, 7).",
    ),
    (
        lambda: mx.eval(
            ops.gather_qmm_swiglu(X, STACK, None, None, STACK, None, None, INDICES + 4)
        ),
        "[gather_qmm_swiglu] indices must be below 4 experts but one is 4.",
    ),
    (
        lambda: ops.gather_qmm_combine(
            mx.zeros((2, 3, 6)), STACK, None, None, mx.zeros((2, 3)), INDICES
        ),
        "[gather_qmm_combine] down must be (E, D, 6) but it is (4, 5, 7).",
    ),
    (
        lambda: ops.gather_qmm_combine(X, STACK, None, None, mx.zeros((2, 3)), INDICES),
        "[gather_qmm_combine] indices must have shape (2,) but got (2, 3).",
    ),
    (
        lambda: ops.swiglu(X, W, mx.quantize(W), W),
        "[swiglu] weights must be all arrays or all tuples of quantised arrays.",
    ),
    (
        lambda: ops.geglu(X, *[mx.quantize(W)[:2]] * 3),
        "[geglu] a quantised weight of mode affine must have 3 arrays but got 2.",
    ),
    (
        lambda: ops.swiglu(X, *[mx.quantize(W)] * 3, bits=7),
        "[mlp] bits must be 2, 3, 4, 5, 6 or 8 but got 7.",
    ),
]


@pytest.mark.parametrize(("call", "message"), MISTAKES)
def test_mistakes_are_named(call, message: str) -> None:
    with pytest.raises((ValueError, TypeError, RuntimeError)) as error:
        call()
    assert message in str(error.value)
