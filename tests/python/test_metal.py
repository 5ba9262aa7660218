"""zmlx.metal: bodies of Metal functions, run on the CPU."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import mlx.core as mx
import numpy as np
import pytest

from zmlx import metal


def run(source, *inputs, outputs=("out",), names=None, header="", atomic=False, rows=True, **call):
    made = metal.kernel(
        name="example",
        input_names=names or ["a", "b", "c", "d"][: len(inputs)],
        output_names=list(outputs),
        source=source,
        header=header,
        atomic_outputs=atomic,
        ensure_row_contiguous=rows,
    )
    out = made(*inputs, **call)
    return out[0] if len(outputs) == 1 else out


# --- Calls ---


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
@pytest.mark.parametrize("size", [1, 31, 33, 1009])
def test_a_body_runs_with_upstreams_defaults(dtype, size):
    x = mx.random.normal((size,)).astype(dtype)
    source = "uint i = thread_position_in_grid.x; T v = a[i]; out[i] = metal::exp(v);"
    got = run(source, x, template=[("T", dtype)])
    assert got.dtype == dtype
    assert got.shape == x.shape
    want = mx.exp(x.astype(mx.float32)).astype(dtype)
    assert mx.allclose(got, want, rtol=1e-6 if dtype == mx.float32 else 1e-2)


def test_the_call_is_that_of_mx_fast_metal_kernel():
    made = metal.kernel(
        name="scaled",
        input_names=["x", "by"],
        output_names=["y", "shifted"],
        source="""
            uint i = thread_position_in_grid.x;
            y[i] = N * x[i] * by;
            shifted[i] = FLAG ? int(x[i]) + 1 : 0;
        """,
    )
    y, shifted = made(
        inputs=[mx.arange(6, dtype=mx.float32).reshape(2, 3), 0.5],
        template=[("N", 3), ("FLAG", True)],
        grid=(6, 1, 1),
        threadgroup=(4, 1, 1),
        output_shapes=[(2, 3), (6,)],
        output_dtypes=[mx.float32, mx.int32],
        stream=mx.cpu,
    )
    assert y.tolist() == [[0.0, 1.5, 3.0], [4.5, 6.0, 7.5]]
    assert shifted.tolist() == [1, 2, 3, 4, 5, 6]


def test_outputs_are_lazy_and_work_in_compile():
    source = "uint i = thread_position_in_grid.x; out[i] = 2 * a[i];"
    doubled = mx.compile(lambda x: run(source, x + 1) + 1)
    for _ in range(2):
        assert doubled(mx.array([1.0, 2.0])).tolist() == [5.0, 7.0]


def test_an_empty_grid_leaves_the_initial_value():
    source = "out[thread_position_in_grid.x] = 1;"
    x = mx.zeros(4)
    assert run(source, x, grid=(0, 1, 1), init_value=3).tolist() == [3] * 4
    assert run(source, x, grid=(2, 1, 1), init_value=-1.0).tolist() == [1, 1, -1, -1]
    assert run(source, mx.zeros(0)).shape == (0,)


def test_every_attribute_is_metals_also_in_groups_that_the_grid_cuts():
    grid, group = (5, 3, 2), (4, 2, 1)
    names = {
        "thread_position_in_grid": 3,
        "thread_position_in_threadgroup": 3,
        "threadgroup_position_in_grid": 3,
        "threads_per_threadgroup": 3,
        "dispatch_threads_per_threadgroup": 3,
        "threadgroups_per_grid": 3,
        "threads_per_grid": 3,
        "thread_index_in_threadgroup": 1,
        "thread_index_in_simdgroup": 1,
        "simdgroup_index_in_threadgroup": 1,
        "simdgroups_per_threadgroup": 1,
        "threads_per_simdgroup": 1,
        "thread_index_in_quadgroup": 1,
        "quadgroup_index_in_threadgroup": 1,
    }
    source = "uint3 p = thread_position_in_grid; uint i = p.x + 5 * (p.y + 3 * p.z);\n"
    column = 0
    for name, size in names.items():
        for part in "xyz"[:size]:
            value = f"{name}.{part}" if size == 3 else name
            source += f"out[i * 29 + {column}] = {value};\n"
            column += 1
    assert column == 28
    got = np.array(
        run(
            source,
            grid=grid,
            threadgroup=group,
            output_shapes=[(2, 3, 5, 29)],
            output_dtypes=[mx.int32],
        )
    )
    for z, y, x in np.ndindex(2, 3, 5):
        at = np.array([x, y, z])
        where = at // group
        inside = at % group
        actual = np.minimum(group, np.array(grid) - where * group)
        index = inside[0] + actual[0] * (inside[1] + actual[1] * inside[2])
        simdgroups = (actual.prod() + 31) // 32
        want = [*at, *inside, *where, *actual, *group, 2, 2, 2, *grid]
        want += [index, index % 32, index // 32, simdgroups, 32, index % 4, index // 4]
        assert got[z, y, x, :28].tolist() == want


def test_views_are_read_by_their_strides():
    x = mx.arange(24, dtype=mx.float32).reshape(4, 6)[1:, ::2].T
    source = """
        uint i = thread_position_in_grid.x;
        out[i] = a[elem_to_loc(i, a_shape, a_strides, a_ndim)];
    """
    for rows in (False, True):
        assert mx.array_equal(run(source, x, rows=rows), x)


def test_numbers_come_by_reference_and_have_no_shape():
    x = mx.array(2.5)
    source = "out[0] = a + static_cast<float>(b);"
    assert run(source, x, 3, output_shapes=[(1,)], grid=(1, 1, 1)).tolist() == [5.5]


# --- Threads that wait for each other ---


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
@pytest.mark.parametrize("width", [1, 31, 32, 33, 1000])
def test_a_norm_with_barriers_and_simd_sums(width, dtype):
    source = """
        uint row = threadgroup_position_in_grid.x;
        uint lane = thread_index_in_simdgroup, simd = simdgroup_index_in_threadgroup;
        uint width = a_shape[1];
        threadgroup float parts[32];
        float sum = 0.0;
        for (uint i = thread_index_in_threadgroup; i < width; i += threads_per_threadgroup.x) {
          float v = a[row * width + i];
          sum += v * v;
        }
        sum = simd_sum(sum);
        if (lane == 0) parts[simd] = sum;
        threadgroup_barrier(mem_flags::mem_threadgroup);
        if (simd == 0) {
          float part = lane < simdgroups_per_threadgroup ? parts[lane] : 0.0;
          part = simd_sum(part);
          if (lane == 0) parts[0] = part;
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        float scale = metal::precise::rsqrt(parts[0] / width + 1e-5);
        for (uint i = thread_index_in_threadgroup; i < width; i += threads_per_threadgroup.x) {
          out[row * width + i] = static_cast<T>(a[row * width + i] * scale * b[i]);
        }
    """
    rows, threads = 7, 96
    x = mx.random.normal((rows, width)).astype(dtype)
    weight = mx.random.normal((width,)).astype(dtype)
    got = run(
        source,
        x,
        weight,
        template=[("T", dtype)],
        grid=(rows * threads, 1, 1),
        threadgroup=(threads, 1, 1),
    )
    want = mx.fast.rms_norm(x.astype(mx.float32), weight.astype(mx.float32), 1e-5)
    assert mx.allclose(got, want, rtol=1e-5 if dtype == mx.float32 else 1e-2, atol=1e-5)


def test_barriers_inside_loops_and_uniform_conditions():
    # A scan by doubling: each step waits twice.
    source = """
        threadgroup int shared[256];
        uint i = thread_position_in_threadgroup.x;
        shared[i] = a[thread_position_in_grid.x];
        threadgroup_barrier(mem_flags::mem_threadgroup | mem_flags::mem_device);
        for (uint step = 1; step < threads_per_threadgroup.x; step *= 2) {
          int other = i >= step ? shared[i - step] : 0;
          threadgroup_barrier(mem_flags::mem_threadgroup);
          shared[i] += other;
          if (step < 512) {
            threadgroup_barrier(mem_flags::mem_threadgroup);
          }
        }
        out[thread_position_in_grid.x] = shared[i];
    """
    x = np.random.default_rng(0).integers(-9, 9, 200 * 30).astype(np.int32)
    got = run(source, mx.array(x), threadgroup=(200, 1, 1))
    assert np.array_equal(np.array(got).reshape(30, 200), x.reshape(30, 200).cumsum(1))


SIMD = {
    "simd_sum(v)": lambda v: np.full(32, v.sum()),
    "simd_max(v)": lambda v: np.full(32, v.max()),
    "simd_min(v)": lambda v: np.full(32, v.min()),
    "simd_product(v % 3 + 2)": lambda v: np.full(32, np.prod(v % 3 + 2, dtype=np.int64)),
    "simd_and(v)": lambda v: np.full(32, np.bitwise_and.reduce(v)),
    "simd_or(v)": lambda v: np.full(32, np.bitwise_or.reduce(v)),
    "simd_xor(v)": lambda v: np.full(32, np.bitwise_xor.reduce(v)),
    "simd_shuffle(v, (lane * 7) % 32)": lambda v: v[np.arange(32) * 7 % 32],
    "simd_shuffle_xor(v, 5)": lambda v: v[np.arange(32) ^ 5],
    "simd_shuffle_down(v, 3)": lambda v: np.concatenate([v[3:], v[29:]]),
    "simd_shuffle_up(v, 3)": lambda v: np.concatenate([v[:3], v[:29]]),
    "simd_shuffle_rotate_down(v, 3)": lambda v: np.roll(v, -3),
    "simd_shuffle_rotate_up(v, 3)": lambda v: np.roll(v, 3),
    "simd_shuffle_and_fill_down(v, -v, 3)": lambda v: np.concatenate([v[3:], -v[:3]]),
    "simd_shuffle_and_fill_up(v, -v, 3)": lambda v: np.concatenate([-v[29:], v[:29]]),
    "simd_broadcast(v, 9)": lambda v: np.full(32, v[9]),
    "simd_broadcast_first(v)": lambda v: np.full(32, v[0]),
    "simd_prefix_inclusive_sum(v)": lambda v: v.cumsum(),
    "simd_prefix_exclusive_sum(v)": lambda v: v.cumsum() - v,
    "simd_prefix_exclusive_product(v % 2 + 2)": lambda v: np.cumprod(
        np.concatenate([[1], (v % 2 + 2)[:-1]])
    ),
    "long((simd_vote::vote_t)simd_ballot(v > 50))": lambda v: np.full(
        32, (1 << np.arange(32, dtype=np.int64))[v > 50].sum()
    ),
    "simd_any(v > 99)": lambda v: np.full(32, (v > 99).any()),
    "simd_all(v >= 0)": lambda v: np.full(32, (v >= 0).all()),
    "simd_is_first()": lambda v: np.arange(32) == 0,
    "simd_sum(float4(v, 1, 2, 3)).x": lambda v: np.full(32, v.sum()),
    "quad_sum(v)": lambda v: np.repeat(v.reshape(8, 4).sum(1), 4),
    "quad_max(v)": lambda v: np.repeat(v.reshape(8, 4).max(1), 4),
    "quad_broadcast(v, 2)": lambda v: np.repeat(v.reshape(8, 4)[:, 2], 4),
    "quad_shuffle_xor(v, 1)": lambda v: v[np.arange(32) ^ 1],
}


def test_functions_of_a_simdgroup():
    source = "uint i = thread_position_in_grid.x; uint lane = thread_index_in_simdgroup;\n"
    source += "long v = a[i];\n"
    for row, text in enumerate(SIMD):
        source += f"out[{row} * 64 + i] = {text};\n"
    x = np.random.default_rng(1).integers(1, 100, 64)
    got = np.array(
        run(
            source,
            mx.array(x.astype(np.int32)),
            output_shapes=[(len(SIMD), 2, 32)],
            output_dtypes=[mx.int64],
            grid=(64, 1, 1),
            threadgroup=(64, 1, 1),
        )
    )
    for (text, want), rows in zip(SIMD.items(), got, strict=True):
        for half, values in zip(rows, x.reshape(2, 32), strict=True):
            assert np.array_equal(half, want(values)), text


def test_threads_that_part_do_so_with_those_at_the_same_place():
    source = """
        uint i = thread_position_in_grid.x;
        int v = a[i];
        int sum = -1;
        if (v % 3 == 0) {
          sum = simd_sum(v);
        } else if (v % 3 == 1) {
          for (int k = 0; k < v % 5; ++k) {
            sum = simd_sum(1);
          }
        }
        out[i] = sum + 1000 * simd_sum(1);
    """
    x = np.arange(27, dtype=np.int32)  # five lanes are missing
    got = np.array(run(source, mx.array(x), threadgroup=(32, 1, 1)))
    want = np.full(27, -1)
    want[x % 3 == 0] = x[x % 3 == 0].sum()
    for k in range(5):
        there = (x % 3 == 1) & (x % 5 > k)
        want[there] = there.sum()
    assert got.tolist() == (want + 27000).tolist()


def test_atomics():
    x = np.random.default_rng(2).integers(0, 10, 5000).astype(np.int32)
    count = run(
        """
        uint i = thread_position_in_grid.x;
        atomic_fetch_add_explicit(&out[a[i]], 1, memory_order_relaxed);
        """,
        mx.array(x),
        atomic=True,
        output_shapes=[(10,)],
        init_value=0,
        grid=(5000, 1, 1),
    )
    assert count.tolist() == np.bincount(x, minlength=10).tolist()
    source = """
        threadgroup atomic_int largest;
        if (thread_index_in_threadgroup == 0) {
          atomic_store_explicit(&largest, -1, memory_order_relaxed);
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        atomic_fetch_max_explicit(&largest, a[thread_position_in_grid.x], memory_order_relaxed);
        threadgroup_barrier(mem_flags::mem_threadgroup);
        if (thread_index_in_threadgroup == 0) {
          uint group = threadgroup_position_in_grid.x;
          out[group] = atomic_load_explicit(&largest, memory_order_relaxed);
        }
    """
    got = run(
        source, mx.array(x), threadgroup=(100, 1, 1), output_shapes=[(50,)], grid=(5000, 1, 1)
    )
    assert got.tolist() == x.reshape(50, 100).max(1).tolist()


def test_sums_of_floats_by_atomics_are_the_same_each_time():
    source = (
        "atomic_fetch_add_explicit(&out[0], a[thread_position_in_grid.x], memory_order_relaxed);"
    )
    x = mx.random.normal((50000,))
    call = {"atomic": True, "output_shapes": [(1,)], "init_value": 0, "grid": (50000, 1, 1)}
    first = run(source, x, **call).item()
    assert all(run(source, x, **call).item() == first for _ in range(5))
    assert abs(first - x.sum().item()) < 0.05


# --- The language ---


def test_vectors_and_swizzles():
    source = """
        float4 v = *reinterpret_cast<const device float4*>(a);
        float4 w = v.wzyx;
        w.xy = v.zw * 2;
        w.zw += 1.0;
        float3 n = float3(v.xy, 7);
        uint2 u = as_type<uint2>(v.rg);
        half4 h = half4(v) / half(3);
        int3 k = select(int3(1), int3(2, 3, 4), n > 2.0f);
        out[0] = w.x; out[1] = w.y; out[2] = w.z; out[3] = w.a;
        out[4] = dot(v, w); out[5] = length(n); out[6] = as_type<float>(u.y);
        out[7] = h.z; out[8] = k.x + 10 * k.y + 100 * k.z; out[9] = max(v, 2.5f).y;
        out[10] = any(v == w) ? 1 : 0; out[11] = cross(n, n.zxy).y; out[12] = sizeof(float3);
        out[13] = clamp(v, 1.5, 3.0)[3]; out[14] = packed_float3(n)[2];
        out[15] = sizeof(packed_half3);
    """
    x = mx.array([1.0, 2.0, 3.0, 4.0])
    got = run(source, x, output_shapes=[(16,)], grid=(1, 1, 1)).tolist()
    v = np.array([1.0, 2, 3, 4])
    w = np.array([6.0, 8, 3, 2])
    n = np.array([1.0, 2, 7])
    want = [6, 8, 3, 2, v @ w, np.linalg.norm(n), 2, 1, 1 + 10 * 1 + 100 * 4]
    want += [2.5, 1, np.cross(n, n[[2, 0, 1]])[1], 16, 3, 7, 6]
    assert np.allclose(got, want, rtol=1e-6), list(zip(got, want, strict=True))


def test_half_and_bfloat_round_after_each_operation():
    rng = np.random.default_rng(3)
    a, b, c = (rng.normal(size=4096).astype(np.float16) for _ in range(3))
    source = """
        uint i = thread_position_in_grid.x;
        T x = a[i] * b[i] + c[i];
        x = x / (a[i] - T(3)) - 2;
        x += a[i] > T(0) ? b[i] : 0.25;
        out[i] = -x;
    """
    got = run(source, *map(mx.array, (a, b, c)), template=[("T", mx.float16)])
    x = a * b + c
    x = x / (a - np.float16(3)) - np.float16(2)
    last = np.where(a > 0, b.astype(np.float32), np.float32(0.25))
    want = -(x.astype(np.float32) + last).astype(np.float16)
    assert np.array_equal(np.array(got), want)

    a, b, c = (mx.array(v).astype(mx.bfloat16) for v in (a, b, c))
    got = run("uint i = thread_position_in_grid.x; out[i] = a[i] * b[i] + c[i];", a, b, c)
    wide = a.astype(mx.float32) * b.astype(mx.float32)
    want = (wide.astype(mx.bfloat16).astype(mx.float32) + c.astype(mx.float32)).astype(mx.bfloat16)
    assert mx.array_equal(got, want)


def test_conversions_from_and_to_half_and_bfloat_are_exact():
    bits = mx.arange(1 << 16, dtype=mx.uint32).astype(mx.uint16)
    rng = np.random.default_rng(4)
    floats = mx.array(rng.integers(0, 1 << 32, 1 << 16, dtype=np.uint32)).view(mx.float32)
    for dtype in (mx.float16, mx.bfloat16):
        small = bits.view(dtype)
        source = "uint i = thread_position_in_grid.x; out[i] = a[i];"
        wide = run(source, small, output_dtypes=[mx.float32])
        narrow = run(source, floats, output_dtypes=[dtype])
        assert mx.array_equal(wide, small.astype(mx.float32), equal_nan=True)
        assert mx.array_equal(narrow, floats.astype(dtype), equal_nan=True)


FUNCTIONS = {
    "exp": (np.exp, -90, 90),
    "exp2": (np.exp2, -120, 120),
    "exp10": (lambda x: np.power(10.0, x), -30, 30),
    "log": (np.log, 1e-3, 1e6),
    "log2": (np.log2, 1e-3, 1e6),
    "log10": (np.log10, 1e-3, 1e6),
    "log1p": (np.log1p, -0.9, 1e6),
    "expm1": (np.expm1, -5, 5),
    "sqrt": (np.sqrt, 0, 1e6),
    "rsqrt": (lambda x: 1 / np.sqrt(x), 1e-3, 1e6),
    "sin": (np.sin, -100, 100),
    "cos": (np.cos, -100, 100),
    "tan": (np.tan, -1.5, 1.5),
    "sinpi": (lambda x: np.sin(np.pi * x), -9, 9),
    "cospi": (lambda x: np.cos(np.pi * x), -9, 9),
    "asin": (np.arcsin, -1, 1),
    "acos": (np.arccos, -1, 1),
    "atan": (np.arctan, -20, 20),
    "sinh": (np.sinh, -9, 9),
    "cosh": (np.cosh, -9, 9),
    "tanh": (np.tanh, -9, 9),
    "asinh": (np.arcsinh, -9, 9),
    "acosh": (np.arccosh, 1, 9),
    "atanh": (np.arctanh, -0.9, 0.9),
    "floor": (np.floor, -9, 9),
    "ceil": (np.ceil, -9, 9),
    "trunc": (np.trunc, -9, 9),
    "rint": (np.rint, -9, 9),
    "fabs": (np.abs, -9, 9),
    "abs": (np.abs, -9, 9),
    "sign": (np.sign, -9, 9),
    "fract": (lambda x: x - np.floor(x), -9, 9),
    "saturate": (lambda x: np.clip(x, 0, 1), -9, 9),
    "isnan": (np.isnan, -9, 9),
    "precise::exp": (np.exp, -9, 9),
    "fast::log": (np.log, 1, 9),
}


def test_functions_of_numbers():
    count = 257
    rows = [np.linspace(lo, hi, count, dtype=np.float32) for _, lo, hi in FUNCTIONS.values()]
    source = "uint i = thread_position_in_grid.x; float x;\n"
    for row, name in enumerate(FUNCTIONS):
        at = f"{row} * {count} + i"
        source += f"x = a[{at}]; out[{at}] = metal::{name}(x);\n"
    got = np.array(run(source, mx.array(np.stack(rows)), grid=(count, 1, 1)))
    for (name, (want, _, _)), x, y in zip(FUNCTIONS.items(), rows, got, strict=True):
        with np.errstate(over="ignore"):
            expected = want(x.astype(np.float64)).astype(np.float32)
        assert np.allclose(y, expected, rtol=2e-6, atol=1e-6), name


def test_minimum_and_maximum_prefer_numbers_and_whole_numbers_have_functions():
    source = """
        float nan = NAN;
        out[0] = min(nan, 1.0f) + max(2.0f, nan) + fmin(3.0f, nan);
        out[1] = isnan(max(nan, nan));
        out[2] = popcount(0xF0F0u) + clz(1u) + ctz(8u) + clz(uchar(1));
        out[3] = rotate(0x80000001u, 1u) + reverse_bits(uchar(1)) + mulhi(0x80000000u, 4u);
        out[4] = addsat(uchar(250), uchar(10)) + subsat(short(-32768), short(1)) + absdiff(-3, 4);
        out[5] = extract_bits(0xABCDu, 4, 8) + insert_bits(0u, 3u, 4, 2);
        out[5] += hadd(3, 5) + mad24(2, 3, 4);
        uint zero = a[0];
        out[6] = 7 / zero + 7 % zero + int(-2147483647 - 1) / -int(zero + 1) * 0;
        out[7] = float(int(2147483647) + int(a[1]) < 0);
        int exponent;
        float mantissa = frexp(12.0f, exponent);
        out[8] = mantissa + exponent + ldexp(1.5f, 3) + ilogb(0.1f);
        out[9] = char(200) + smoothstep(0.0f, 1.0f, 0.5f) + mix(1.0, 3.0, 0.5) + step(1.0f, 2.0f);
        out[10] = fma(2.0f, 3.0f, 4.0f) + pow(2.0f, 0.5f) + fmod(-7.5f, 2.0f);
        out[10] += copysign(1.0f, -0.0f);
        out[11] = numeric_limits<half>::max() + true + M_PI_F * (INFINITY > FLT_MAX);
    """
    x = mx.array([0, 1], mx.uint32)
    shape = {"output_shapes": [(12,)], "output_dtypes": [mx.float32], "grid": (1, 1, 1)}
    got = run(source, x, **shape).tolist()
    want = [6, 1, 8 + 31 + 3 + 7, 3 + 128 + 2, 255 - 32768 + 7, 0xBC + 0x30 + 4 + 10, 0, 1]
    want += [0.75 + 4 + 12 - 4, -56 + 0.5 + 2 + 1, 10 + 2**0.5 - 1.5 - 1, 65504 + np.pi]
    assert np.allclose(got, want, rtol=1e-6), list(zip(got, want, strict=True))


def test_headers_have_functions_types_and_macros():
    header = """
        #include <metal_stdlib>
        using namespace metal;
        #define SQUARE(x) ((x) * (x))
        #define CEIL_DIV(a, b) \\
          (((a) + (b) - 1) / (b))
        constant float table[2] = {0.5, 2.0};
        template <typename T>
        struct Pair { T xy; T r; };
        METAL_FUNC float scaled(const device float* x, thread int& calls, constant float& by) {
          calls++;
          return x[0] * by;
        }
        template <typename T>
        inline T total(threadgroup T* shared, uint n) {
          T sum = 0;
          for (uint i = 0; i < n; ++i) { sum += shared[i]; }
          return sum;
        }
    """
    source = """
        // A comment with texture2d, "quotes" and { brackets.
        [[maybe_unused]] uint i = thread_position_in_grid.x;
        threadgroup float shared[8];
        shared[i] = SQUARE(a[i]);
        threadgroup_barrier(mem_flags::mem_threadgroup);
        int calls = 0;
        Pair<float> pair = {scaled(a + i, calls, table[1]), 1};
        pair.xy += pair.r;
        #pragma unroll
        for (int k = 0; k < 2; ++k) { calls += CEIL_DIV(5, 2); }
        if constexpr (WIDE) { out[i] = T(a[i]).nothing; } else { out[i] = pair.xy + calls; }
        out[i] += total(shared, 8);
    """
    x = np.arange(8, dtype=np.float32)
    got = run(source, mx.array(x), header=header, template=[("WIDE", False), ("T", mx.float32)])
    assert got.tolist() == (2 * x + 1 + 7 + (x * x).sum()).tolist()


# --- Mistakes ---


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("uint i = 0;\nout[i] = foo(a[i]);", "source, line 2: .*foo.*\n.*foo.a.i..;\n         \\^"),
        ("texture2d<float> t;", "line 1: textures are not supported\n.*\n\\^"),
        (
            "int x;\n  simdgroup_float8x8 m;",
            "line 2: simd-group matrices are not supported\n.*\n  \\^",
        ),
        ("double x = 1;", "Metal has no double"),
        ("void (*f)(int) = 0;", "function pointers are not supported"),
        ("float x threadgroup;", "`threadgroup` must come first"),
        ("out[0] = (1 + 2;", "this bracket is not closed|closes nothing"),
        ('#include "file.h"\nout[0] = 1;', "only Metal's own headers"),
        ("float4x4 m;", "matrices are not supported"),
        ("out[0] = a[0]", "source, line 1: expected ';'"),
    ],
)
def test_a_mistake_is_shown_with_its_line(source, message):
    with pytest.raises(ValueError, match=r"\[example\] ") as caught:
        run(source, mx.zeros(2))
    assert re.search(message, str(caught.value)), str(caught.value)
    assert "zmlx_user" not in str(caught.value)


def test_a_mistake_in_the_header_is_shown_there():
    with pytest.raises(ValueError, match=r"\[example\] header, line 2: .*missing"):
        run("out[0] = f();", mx.zeros(2), header="float f() {\n  return missing;\n}")


def test_calls_that_do_not_fit_are_refused_in_words():
    source = "out[thread_position_in_grid.x] = 1;"
    x = mx.zeros(4)
    made = metal.kernel(name="k", input_names=["x"], output_names=["out"], source=source)
    for message, call in [
        (r"\[k\] inputs must have 1 element but got 2", {"inputs": [x, x]}),
        (r"\[k\] output_shapes must have 1 element but got 2", {"output_shapes": [(1,), (1,)]}),
        (r"\[k\] output_dtypes must have 1 element but got 0", {"output_dtypes": []}),
        (r"threadgroup may have at most 1024 threads but got \(64", {"threadgroup": (64, 64, 1)}),
        (r"threadgroup must be positive but got \(0, 1, 1\)", {"threadgroup": (0, 1, 1)}),
        (r"grid must not be negative but got \(-1, 1, 1\)", {"grid": (-1, 1, 1)}),
        (r"grid must be three ints but got", {"grid": (1, 1)}),
        (r"T must be a dtype, a bool or an int but got float", {"template": [("T", 0.5)]}),
        (r"out must be real .* but is complex64", {"output_dtypes": [mx.complex64]}),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=message):
            made(**({"inputs": [x]} | call))
    with pytest.raises(ValueError, match="inputs are given twice"):
        made(x, inputs=[x])
    with pytest.raises(ValueError, match="without inputs needs output_shapes"):
        run(source)
    with pytest.raises(ValueError, match="must have at least one output"):
        metal.kernel(name="k", input_names=[], output_names=[], source="")
    with pytest.raises(ValueError, match="'x' names two things"):
        run(source, x, names=["x"], outputs=["x"])
    with pytest.raises(
        ValueError, match="atomic_outputs must have 32 or 64 bits but out is float16"
    ):
        run(source, x.astype(mx.float16), atomic=True)


def test_transforms_are_refused_in_words():
    def doubled(x):
        return run("out[thread_position_in_grid.x] = 2 * a[thread_position_in_grid.x];", x)

    with pytest.raises(ValueError, match=r"\[example\] .* no rule for mx.vmap.*custom_function"):
        mx.vmap(doubled)(mx.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"\[example\] .* no gradient.*custom_function"):
        mx.grad(lambda x: doubled(x).sum())(mx.zeros(3))


def test_without_a_compiler_it_says_so():
    code = (
        "import mlx.core as mx; mx.set_default_device(mx.cpu)\n"
        "from zmlx import metal\n"
        "metal.kernel(name='k', input_names=[], output_names=['out'], source='out[0] = 1;')("
        "output_shapes=[(1,)], output_dtypes=[mx.int32])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"ZMLX_CXX": "no-such-compiler"},
        capture_output=True,
        text=True,
    )
    assert "RuntimeError: [k] a Metal function's body needs a C++ compiler" in done.stderr


# --- The object ---


def test_a_kernel_shows_its_programs_and_counts_its_calls(capsys):
    made = metal.kernel(
        name="shown",
        input_names=["x"],
        output_names=["y"],
        source="y[thread_position_in_grid.x] = x[x_shape[0] - 1];",
        cache=False,
    )
    with pytest.raises(ValueError, match="call the kernel first, or give inputs"):
        made.source()
    texts = {
        language: made.source(language, [mx.zeros(3)]) for language in ("metal", "cpp", "cuda")
    }
    assert "[[kernel]] void custom_kernel_shown(" in texts["metal"]
    assert "const constant int* x_shape [[buffer(1)]]" in texts["metal"]
    assert "x_strides" not in texts["metal"]
    assert 'extern "C" void zmlx_run' in texts["cpp"]
    assert "__global__" in texts["cuda"]
    with pytest.raises(ValueError, match="language must be"):
        made.source("hlsl", [mx.zeros(3)])
    y = made(mx.arange(3.0), verbose=True)[0]
    assert y.tolist() == [2.0] * 3
    assert "custom_kernel_shown" in capsys.readouterr().out
    assert made.source("cpp") == texts["cpp"]
    assert made.stats.run_count == 1
    assert made.stats.total_run_time_ms > 0
    assert made.spec.input_names == ("x",)


def test_the_same_arguments_give_the_same_kernel():
    arguments = {"name": "k", "input_names": ["x"], "output_names": ["y"], "source": "y[0] = x[0];"}
    assert metal.kernel(**arguments) is metal.kernel(**arguments)
    assert metal.kernel(**arguments) is not metal.kernel(**arguments, cache=False)


# --- mx.fast.metal_kernel ---


def test_install_lets_mlxs_function_run_here_and_uninstall_takes_it_back():
    stock = mx.fast.metal_kernel
    metal.install()
    metal.install()
    try:
        assert mx.fast.metal_kernel is not stock
        made = mx.fast.metal_kernel("k", ["x"], ["y"], "y[0] = x[0] + 1;")
    finally:
        metal.uninstall()
    assert mx.fast.metal_kernel is stock
    call = {"grid": (1, 1, 1), "threadgroup": (1, 1, 1), "output_shapes": [(1,)]}
    assert made(inputs=[mx.array([1.0])], output_dtypes=[mx.float32], **call)[0].item() == 2.0
