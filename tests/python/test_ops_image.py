# tests/python/test_ops_image.py: depthwise convolution and resizing of images, against NumPy.
import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_testing import close, exact
from op_inputs import dtypes, normal, strided

from zmlx import ops


def convolve(x, weight, stride, padding):
    x = np.pad(x, [(0, 0), (padding[0],) * 2, (padding[1],) * 2, (0, 0)])
    windows = np.lib.stride_tricks.sliding_window_view(x, weight.shape[:2], (1, 2))
    windows = windows[:, :: stride[0], :: stride[1]]
    return np.einsum("nhwcij,ijc->nhwc", windows, weight)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    size=st.tuples(st.integers(5, 12), st.integers(5, 12)),
    channels=st.sampled_from([1, 3, 31, 32, 33, 64]),
    taps=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 4), st.integers(0, 4)),
    dtype=dtypes,
)
def test_each_channel_is_convolved(size, channels, taps, stride, padding, dtype) -> None:
    x = strided(normal((2, *size, channels), 1, dtype))
    weight = normal((*taps, channels), 2, dtype)
    got = ops.depthwise_conv(x, weight, stride=stride, padding=padding)
    close(got, convolve(exact(x), exact(weight), stride, padding))


def test_the_convolution_is_mlxs_and_keeps_the_size() -> None:
    x, weight = normal((1, 9, 8, 6), 1), normal((3, 3, 6), 2)
    got = ops.depthwise_conv(x, weight)
    want = mx.conv2d(x, weight.transpose(2, 0, 1)[..., None], padding=1, groups=6)
    assert got.shape == x.shape
    close(got, exact(want))


def test_the_convolution_is_linear_in_both_gradients() -> None:
    x, weight, g = normal((1, 5, 6, 3), 1), normal((3, 2, 3), 2), normal((1, 2, 5, 3), 3)

    def loss(x, weight):
        return (ops.depthwise_conv(x, weight, stride=(2, 1), padding=0) * g).sum()

    dx, dw = mx.grad(loss, (0, 1))(x, weight)
    # A linear function is its gradient times its argument.
    total = exact(loss(x, weight)).item()
    assert np.isclose((exact(dx) * exact(x)).sum(), total, rtol=1e-4)
    assert np.isclose((exact(dw) * exact(weight)).sum(), total, rtol=1e-4)


def resize(x, shape, corners):
    for axis, out in zip((1, 2), shape, strict=True):
        n = x.shape[axis]
        if corners:
            place = np.arange(out) * (n - 1) / max(out - 1, 1)
        else:
            place = (np.arange(out) + 0.5) * n / out - 0.5
        place = np.clip(place, 0, n - 1)
        low = place.astype(int)
        share = (place - low).reshape([-1 if i == axis else 1 for i in range(4)])
        a, b = (np.take(x, i, axis) for i in (low, np.minimum(low + 1, n - 1)))
        x = a + (b - a) * share
    return x


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    size=st.tuples(st.integers(1, 33), st.integers(1, 33)),
    to=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    channels=st.sampled_from([1, 3, 4, 15, 16, 17, 31, 33]),
    corners=st.booleans(),
    dtype=dtypes,
)
def test_pixels_are_means_of_their_neighbours(size, to, channels, corners, dtype) -> None:
    x = strided(normal((2, *size, channels), 1, dtype))
    got = ops.resize_bilinear(x, to, align_corners=corners)
    close(got, resize(exact(x), to, corners))


def test_wide_images_are_resized_in_strips() -> None:
    for channels in (1, 3, 64, 4000, 5000):
        x = normal((1, 3, 40000 // channels + 5, channels), channels)
        to = (4, x.shape[2] * 3 // 4)
        close(ops.resize_bilinear(x, to), resize(exact(x), to, False))


def test_the_same_size_changes_nothing() -> None:
    x = normal((2, 7, 5, 3), 1)
    assert mx.array_equal(ops.resize_bilinear(x, (7, 5)), x)


def test_the_gradient_of_resizing_adds_up_the_shares() -> None:
    gradient = mx.grad(lambda a: ops.resize_bilinear(a, (7, 3)).sum())(normal((1, 4, 5, 2), 1))
    want = np.zeros((1, 4, 5, 2))
    for place in np.ndindex(*want.shape):
        one = np.zeros(want.shape)
        one[place] = 1
        want[place] = resize(one, (7, 3), False).sum()
    close(gradient, want)


def test_nan_reaches_its_neighbours_only() -> None:
    x = np.zeros((1, 1, 9, 1), np.float32)
    x[0, 0, 4] = np.nan
    got = exact(ops.resize_bilinear(mx.array(x), (1, 18)))[0, 0, :, 0]
    assert np.isnan(got).nonzero()[0].tolist() == [7, 8, 9, 10]


def test_empty_images_stay_empty() -> None:
    assert ops.resize_bilinear(mx.zeros((0, 4, 4, 3)), (8, 8)).shape == (0, 8, 8, 3)
    assert ops.depthwise_conv(mx.zeros((0, 4, 4, 3)), mx.zeros((3, 3, 3))).shape == (0, 4, 4, 3)


X, W = mx.zeros((1, 4, 5, 3)), mx.zeros((3, 3, 3))
MISTAKES = [
    (
        lambda: ops.depthwise_conv(X[0], W),
        "[depthwise_conv] x must have 4 axes but got float32(4, 5, 3).",
    ),
    (
        lambda: ops.depthwise_conv(X, W[..., :2]),
        "[depthwise_conv] weight must have shape (3, 3, 3) but got (3, 3, 2).",
    ),
    (
        lambda: ops.depthwise_conv(X, mx.zeros((3, 6, 3)), padding=0),
        "[depthwise_conv] weight must have 1 to 5 taps along columns, the padded size of x, but "
        "got 6.",
    ),
    (
        lambda: ops.depthwise_conv(X, W, stride=0),
        "[depthwise_conv] stride must be two numbers from 1 on but got 0.",
    ),
    (
        lambda: ops.depthwise_conv(X, W, padding=(1, 1, 1)),
        "[depthwise_conv] padding must be two numbers from 0 on but got 3 numbers.",
    ),
    (
        lambda: ops.resize_bilinear(X, (3,)),
        "[resize_bilinear] output_shape must be a height and a width but got (3,).",
    ),
    (
        lambda: ops.resize_bilinear(X, (3, -1)),
        "[resize_bilinear] output_shape must be a height and a width but got (3, -1).",
    ),
    (
        lambda: ops.resize_bilinear(X[:, :0], (3, 3)),
        "[resize_bilinear] x must have pixels but got float32(1, 0, 5, 3).",
    ),
    (
        lambda: ops.resize_bilinear(X[0], (3, 3)),
        "[resize_bilinear] x must have 4 axes but got float32(4, 5, 3).",
    ),
]


@pytest.mark.parametrize(("call", "message"), MISTAKES)
def test_mistakes_are_named(call, message: str) -> None:
    with pytest.raises((ValueError, TypeError, RuntimeError)) as error:
        call()
    assert message in str(error.value)
