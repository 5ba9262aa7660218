# tests/python/test_functions.py: `zmlx.compile` and `zmlx.rewrite` on trees of arrays.
from __future__ import annotations

import mlx.core as mx
import pytest

import zmlx


def swiglu(gate, up):
    return gate * mx.sigmoid(gate) * up


def close(a, b) -> bool:
    return mx.allclose(a, b, rtol=1e-5, atol=1e-6).item()


def test_a_compiled_function_computes_the_same():
    gate, up = mx.random.normal((3, 31)), mx.random.normal((3, 31))
    assert close(zmlx.compile(swiglu)(gate, up), swiglu(gate, up))


def test_trees_go_in_and_come_out():
    def fn(pair, *, scale):
        return {"sum": pair[0] + pair[1]["b"] * scale["s"], "both": (pair[0], [pair[1]["b"]])}

    pair = (mx.array([1.0, 2.0]), {"b": mx.array([3.0, 4.0])})
    found = zmlx.compile(fn)(pair, scale={"s": mx.array(2.0)})
    assert found["sum"].tolist() == [7.0, 10.0]
    assert isinstance(found["both"], tuple)
    assert found["both"][1][0].tolist() == [3.0, 4.0]


def test_new_shapes_and_dtypes_are_traced_anew():
    compiled = zmlx.compile(swiglu)
    for shape, dtype in (((2, 3), mx.float32), ((4, 5), mx.float32), ((2, 3), mx.float16)):
        x = mx.random.normal(shape).astype(dtype)
        found = compiled(x, x)
        assert found.shape == shape
        assert found.dtype == dtype


def test_constants_that_compare_equal_are_different_constants():
    seen = []

    def fn(x, constant):
        seen.append(constant)
        return x + constant

    compiled = zmlx.compile(fn)
    x = mx.array([1])
    found = {str(compiled(x, constant).dtype) for constant in (1, 1.0, 1)}
    assert found == {"mlx.core.int32", "mlx.core.float32"}
    assert [type(constant) for constant in seen[:2]] == [int, float]


def test_constants_may_come_out_too():
    assert zmlx.compile(lambda x: (x, "name", None))(mx.array(1.0))[1:] == ("name", None)


def test_a_compiled_function_keeps_its_name():
    assert zmlx.compile(swiglu).__name__ == "swiglu"


def test_an_unhashable_argument_is_named():
    with pytest.raises(TypeError, match=r"hashable constants but got set"):
        zmlx.compile(lambda x, s: x)(mx.array(1.0), {1, 2})


def test_an_error_inside_the_function_comes_out_and_leaves_it_usable():
    compiled = zmlx.compile(lambda a, b: a @ b)
    with pytest.raises(ValueError, match="matmul"):
        mx.eval(compiled(mx.ones((2, 3)), mx.ones((2, 3))))
    assert compiled(mx.ones((2, 3)), mx.ones((3, 2))).tolist() == [[3.0, 3.0], [3.0, 3.0]]


def test_a_lazy_graph_is_rewritten_with_the_same_values():
    x, weight = mx.random.normal((4, 64)), mx.random.normal((64,))

    def norm():
        return x * mx.rsqrt(mx.mean(mx.square(x), -1, keepdims=True) + 1e-6) * weight

    found = zmlx.rewrite({"norm": norm(), "rest": [norm() + 1]})
    assert close(found["norm"], norm())
    assert close(found["rest"][0], norm() + 1)


def test_the_package_lists_its_parts_and_knows_no_others():
    assert {"compile", "rewrite", "patch", "presets", "bench"} <= set(dir(zmlx))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = zmlx.nothing
