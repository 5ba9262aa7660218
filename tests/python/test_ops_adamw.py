# tests/python/test_ops_adamw.py: steps of AdamW against NumPy and mlx.optimizers.
import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_testing import close, exact
from op_inputs import dtypes, normal, strided

from zmlx import ops


def step_of(p, g, m, v, lr, step, beta1=0.9, beta2=0.999, eps=1e-8, wd=0.01, correct=True):
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    mean, square = m, v
    if correct:
        mean, square = m / (1 - beta1**step), v / (1 - beta2**step)
    return p * (1 - lr * wd) - lr * mean / (np.sqrt(square) + eps), m, v


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    shape=st.sampled_from([(), (1,), (31,), (32,), (33,), (3, 337), (2, 3, 5)]),
    dtype=dtypes,
    wide=st.booleans(),
    step=st.sampled_from([1, 2, 10, 1000, 1000000]),
    correct=st.booleans(),
    wd=st.sampled_from([0.0, 0.1]),
)
def test_a_step_is_that_of_the_formula(shape, dtype, wide, step, correct, wd) -> None:
    p, g = normal(shape, 1, dtype), normal(shape, 2, mx.float32 if wide else dtype)
    m, v = normal(shape, 3), mx.square(normal(shape, 4))
    if len(shape) > 1:
        p, m = strided(p), strided(m)
    got = ops.adamw_step(p, g, m, v, 0.01, step, wd=wd, bias_correction=correct)
    want = step_of(*map(exact, (p, g, m, v)), 0.01, step, wd=wd, correct=correct)
    assert [x.dtype for x in got] == [dtype, mx.float32, mx.float32]
    for x, y in zip(got, want, strict=True):
        close(x, np.asarray(y))


@pytest.mark.parametrize("correct", [False, True])
def test_many_steps_are_those_of_mlx(correct: bool) -> None:
    p = q = normal((7, 11), 1)
    m, v = mx.zeros_like(p), mx.zeros_like(p)
    optimizer = optim.AdamW(1e-2, weight_decay=0.1, bias_correction=correct)
    for step in range(1, 12):
        g = normal((7, 11), 10 + step)
        q = optimizer.apply_gradients({"w": g}, {"w": q})["w"]
        p, m, v = ops.adamw_step(p, g, m, v, 1e-2, step, wd=0.1, bias_correction=correct)
    # MLX rounds 1 - beta2^step in float32, which costs it a few digits at the first steps.
    np.testing.assert_allclose(exact(p), exact(q), atol=2e-5)


def test_short_parameters_keep_long_moments() -> None:
    p = mx.zeros((3,), mx.bfloat16)
    g = mx.full((3,), 1e-3, mx.bfloat16)
    p, m, v = ops.adamw_step(p, g, p, p, mx.array(0.5), mx.array(1))
    assert (p.dtype, m.dtype, v.dtype) == (mx.bfloat16, mx.float32, mx.float32)
    np.testing.assert_allclose(exact(v), 1e-3 * exact(g) ** 2, rtol=1e-5)


def test_steps_with_other_rates_work_under_compile() -> None:
    step = mx.compile(lambda p, g, m, v, lr, i: ops.adamw_step(p, g, m, v, lr, i))
    p, g, m, v = (normal((33,), i) ** 2 for i in range(4))
    for i in (1, 2):
        got = step(p, g, m, v, mx.array(0.1 * i), mx.array(i))
        want = step_of(*map(exact, (p, g, m, v)), 0.1 * i, i)
        close(got[0], want[0])


def test_nan_stays_where_it_is() -> None:
    g = mx.array([1.0, float("nan"), 2.0])
    p, m, v = ops.adamw_step(mx.zeros((3,)), g, mx.zeros((3,)), mx.zeros((3,)), 0.1, 1)
    for x in (p, m, v):
        assert np.isnan(exact(x)).tolist() == [False, True, False]


def test_the_old_arrays_stay_as_they_were() -> None:
    p, g, m, v = (normal((64,), i) ** 2 for i in range(4))
    before = [exact(x) for x in (p, m, v)]
    mx.eval(ops.adamw_step(p, g, m, v, 0.1, 1))
    for x, y in zip((p, m, v), before, strict=True):
        np.testing.assert_array_equal(exact(x), y)


Z = mx.zeros((3,))
MISTAKES = [
    (
        lambda: ops.adamw_step(Z, mx.zeros((4,)), Z, Z, 0.1, 1),
        "[adamw_step] g must have shape (3,) but got (4,).",
    ),
    (
        lambda: ops.adamw_step(Z, Z.astype(mx.float16), Z, Z, 0.1, 1),
        "[adamw_step] g must be float32 but got float16.",
    ),
    (
        lambda: ops.adamw_step(Z, Z, Z, mx.zeros((3, 1)), 0.1, 1),
        "[adamw_step] v must have shape (3,) but got (3, 1).",
    ),
    (
        lambda: ops.adamw_step(Z, Z, Z, Z, mx.zeros((2,)), 1),
        "[adamw_step] lr must be one number but got shape (2,).",
    ),
    (
        lambda: ops.adamw_step(Z.astype(mx.int32), Z, Z, Z, 0.1, 1),
        "[adamw_step] p must be float32, float16 or bfloat16 but got int32.",
    ),
]


@pytest.mark.parametrize(("call", "message"), MISTAKES)
def test_mistakes_are_named(call, message: str) -> None:
    with pytest.raises((ValueError, TypeError, RuntimeError)) as error:
        call()
    assert message in str(error.value)
