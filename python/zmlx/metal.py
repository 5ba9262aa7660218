# zmlx/metal.py: kernels written as bodies of Metal functions, on CPU, CUDA and Metal.
"""`kernel` takes what `mx.fast.metal_kernel` takes and runs it on every device; `install` makes
`mx.fast.metal_kernel` itself do so."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from zmlx import _ext

MAX_THREADS = 1024  # of a threadgroup


@dataclass(frozen=True)
class MetalKernelSpec:
    """What a kernel was made of."""

    name: str
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    source: str
    header: str = ""
    ensure_row_contiguous: bool = True
    atomic_outputs: bool = False


@dataclass
class KernelStats:
    """Calls of a kernel so far. Times are measured in calls with `verbose=True` alone: the first
    of them for new dtypes compiles, which is counted apart."""

    run_count: int = 0
    compile_time_ms: float = 0.0
    total_run_time_ms: float = 0.0


class MetalKernel:
    """A kernel; see `kernel`. `spec` says what it was made of, `stats` counts its calls."""

    def __init__(self, spec: MetalKernelSpec):
        self.spec = spec
        self.stats = KernelStats()
        self._last: tuple[Any, ...] | None = None
        self._kernel = _ext.MetalKernel(
            name=spec.name,
            input_names=list(spec.input_names),
            output_names=list(spec.output_names),
            source=spec.source,
            header=spec.header,
            ensure_row_contiguous=spec.ensure_row_contiguous,
            atomic_outputs=spec.atomic_outputs,
        )

    def __call__(
        self,
        *args: Any,
        inputs: Sequence[Any] | None = None,
        template: Sequence[tuple[str, Any]] | None = None,
        grid: Sequence[int] | None = None,
        threadgroup: Sequence[int] | None = None,
        output_shapes: Sequence[Sequence[int]] | None = None,
        output_dtypes: Sequence[mx.Dtype] | None = None,
        init_value: float | None = None,
        verbose: bool = False,
        stream: mx.Stream | mx.Device | None = None,
    ) -> list[mx.array]:
        """The outputs, lazy.

        Args:
            args: the inputs, arrays or numbers, or `inputs`.
            template: pairs of a name and a dtype, bool or int.
            grid: threads along each axis; by default as many as the first output has elements.
            threadgroup: threads that work together; by default the largest power of two up to 512
                that fits the grid.
            output_shapes, output_dtypes: by default those of the first input.
            init_value: what outputs hold before the kernel runs; by default nothing in particular.
            verbose: prints the Metal program, evaluates the outputs and adds up times in `stats`.
            stream: where it runs; by default MLX's default stream.

        Raises:
            ValueError: arguments that do not fit, and source that does not compile, with its line.
            RuntimeError: on the CPU, where there is no C++ compiler.
        """
        if inputs is not None and args:
            raise ValueError(f"[{self.spec.name}] inputs are given twice.")
        given = list(args if inputs is None else inputs)
        arrays = [x if isinstance(x, mx.array) else mx.array(x) for x in given]
        outputs = len(self.spec.output_names)
        if not arrays and (output_shapes is None or output_dtypes is None):
            raise ValueError(
                f"[{self.spec.name}] a kernel without inputs needs output_shapes and output_dtypes."
            )
        shapes = [arrays[0].shape] * outputs if output_shapes is None else output_shapes
        dtypes = [arrays[0].dtype] * outputs if output_dtypes is None else output_dtypes
        if grid is None:
            grid = (math.prod(shapes[0]) if shapes else 0, 1, 1)
        if threadgroup is None:
            threadgroup = (_power_of_two(grid[0]), 1, 1)
        self._last = ([(x.dtype, x.ndim) for x in arrays], list(template or ()), list(dtypes))
        if verbose:
            print(f"Metal program of `{self.spec.name}`:\n{self.source('metal')}")
        begin = time.perf_counter()
        result: list[mx.array] = self._kernel(
            arrays,
            _template(self.spec.name, template),
            _three(self.spec.name, "grid", grid),
            _three(self.spec.name, "threadgroup", threadgroup),
            [list(shape) for shape in shapes],
            list(dtypes),
            init_value,
            stream,
        )
        self.stats.run_count += 1
        if verbose:
            made = time.perf_counter()
            mx.eval(result)
            self.stats.compile_time_ms += (made - begin) * 1e3
            self.stats.total_run_time_ms += (time.perf_counter() - made) * 1e3
        return result

    def source(
        self,
        language: str = "metal",
        inputs: Sequence[mx.array] | None = None,
        *,
        template: Sequence[tuple[str, Any]] | None = None,
        output_dtypes: Sequence[mx.Dtype] | None = None,
    ) -> str:
        """The whole program in "metal", "cpp" or "cuda", for these inputs, or for those of the last
        call."""
        if inputs is not None:
            dtypes = output_dtypes or [inputs[0].dtype] * len(self.spec.output_names)
            kinds = [(x.dtype, x.ndim) for x in inputs]
            last: tuple[Any, ...] = (kinds, list(template or ()), list(dtypes))
        elif self._last is not None:
            last = self._last
        else:
            raise ValueError(
                f"[{self.spec.name}] source depends on dtypes: call the kernel first, or give "
                "inputs."
            )
        kinds, arguments, dtypes = last
        arrays = [mx.zeros((1,) * ndim, dtype) for dtype, ndim in kinds]
        text: str = self._kernel.source(
            language, arrays, _template(self.spec.name, arguments), dtypes
        )
        return text


def kernel(
    *,
    name: str,
    input_names: Sequence[str],
    output_names: Sequence[str],
    source: str,
    header: str = "",
    ensure_row_contiguous: bool = True,
    atomic_outputs: bool = False,
    cache: bool = True,
) -> MetalKernel:
    """A kernel whose body is that of a Metal function, as for `mx.fast.metal_kernel`.

    Args:
        name: of the function; in errors and printed graphs.
        input_names, output_names: the parameters.
        source: the body. What it names of `<input>_shape`, `<input>_strides`, `<input>_ndim` and
            of Metal's thread attributes (`thread_position_in_grid`, ...) is there.
        header: functions, types and constants that stand before the function.
        ensure_row_contiguous: copies inputs that are not; else the body reads by strides.
        atomic_outputs: outputs are `device atomic<T>*`.
        cache: whether the same arguments give the same kernel again.
    """
    spec = MetalKernelSpec(
        name,
        tuple(input_names),
        tuple(output_names),
        source,
        header,
        ensure_row_contiguous,
        atomic_outputs,
    )
    return _cached(spec) if cache else MetalKernel(spec)


@functools.lru_cache(maxsize=512)
def _cached(spec: MetalKernelSpec) -> MetalKernel:
    return MetalKernel(spec)


def _power_of_two(threads: int) -> int:
    size = 512
    while size > max(threads, 1):
        size //= 2
    return size


def _three(name: str, what: str, values: Sequence[int]) -> list[int]:
    if len(values) != 3 or not all(isinstance(v, int) for v in values):
        raise ValueError(f"[{name}] {what} must be three ints but got {values!r}.")
    return [int(v) for v in values]


def _template(name: str, template: Sequence[tuple[str, Any]] | None) -> list[tuple[str, Any]]:
    for word, value in template or ():
        if not isinstance(value, mx.Dtype | bool | int):
            raise ValueError(
                f"[{name}] template argument {word} must be a dtype, a bool or an int but got "
                f"{type(value).__name__}."
            )
    return list(template or ())


_stock = mx.fast.metal_kernel


def install() -> None:
    """Lets `mx.fast.metal_kernel` run where there is no Metal: third-party code that calls it works
    on CPU and CUDA. Where there is Metal, and when called again, it changes nothing."""
    if not mx.metal.is_available():
        mx.fast.metal_kernel = _metal_kernel


def uninstall() -> None:
    """Takes `install` back; kernels made in between keep working."""
    mx.fast.metal_kernel = _stock


@functools.wraps(_stock)
def _metal_kernel(
    name: str,
    input_names: Sequence[str],
    output_names: Sequence[str],
    source: str,
    header: str = "",
    ensure_row_contiguous: bool = True,
    atomic_outputs: bool = False,
    **options: Any,
) -> MetalKernel:
    # MLX's further options choose how Metal compiles.
    return kernel(
        name=name,
        input_names=input_names,
        output_names=output_names,
        source=source,
        header=header,
        ensure_row_contiguous=ensure_row_contiguous,
        atomic_outputs=atomic_outputs,
    )
