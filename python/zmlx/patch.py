"""Make an `mlx_lm` model fast.

`patch(model)` replays its step from one fused plan, `unpatch(model)` restores it.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import BatchKVCache, KVCache, make_prompt_cache

from zmlx import _ext


@dataclass
class Report:
    """What `patch` did to a model; the model's attribute `zmlx`.

    Figures are for the decode step (one token, batch of one).
    """

    patched: bool = False
    """Whether a plan was made; when not, the model runs as before and `reasons` says why."""
    patterns: dict[str, int] = field(default_factory=dict)
    """How often each pattern fired."""
    nodes_before: int = 0
    """Nodes of the graph as captured from MLX."""
    nodes_after: int = 0
    """Nodes after rewriting."""
    launches: int = 0
    """Kernels that one step runs."""
    bytes_per_token: int = 0
    """Bytes of weights and activations a step reads and writes; the KV cache comes on top."""
    int8: dict[str, int] = field(default_factory=dict)
    """With `activations="int8"`: how many ops of each kind round their activations to 8 bits."""
    exact: dict[str, int] = field(default_factory=dict)
    """With `activations="int8"`: how many multiply exactly all the same, by kind and mode.

    They are routers, and weights of formats that do not fit: not quantised, or mxfp8.
    """
    device: str = "cpu"
    """What the plan is for: "cpu", or a GPU as in "cuda sm_90"."""
    reasons: list[str] = field(default_factory=list)
    """What has no kernel and why nothing was planned."""
    seconds: float = 0.0
    """Time that `patch` took."""
    stock_calls: Counter[str] = field(default_factory=Counter)
    """Calls that went to the model itself, by reason."""
    decision: dict[str, Any] | None = None
    """What `smart_patch` measured: a capsule of kind "decision"; None after `patch`."""

    def read(self, runner: _ext.Runner) -> None:
        """Takes the figures of the step that a runner prepared last."""
        self.reasons = list(runner.reasons)
        self.patterns = dict(runner.report.fired)
        self.int8 = dict(runner.report.int8)
        self.exact = dict(runner.report.exact)
        self.nodes_before = runner.report.nodes_before
        self.nodes_after = runner.report.nodes_after
        self.launches = runner.launches
        self.device = runner.device
        self.bytes_per_token = runner.bytes_per_run

    def __str__(self) -> str:
        if not self.patched:
            return "zmlx: left as it was: " + "; ".join(self.reasons)
        rounded = f"\nint8 activations: {_counts(self.int8)}; exact: {_counts(self.exact)}"
        return (
            f"zmlx: {self.nodes_before} nodes became {self.launches} launches on {self.device}, "
            f"{self.bytes_per_token / 1e6:.1f} MB a token, in {self.seconds:.2f} s\n"
            f"{_counts(self.patterns)}" + (rounded if self.int8 or self.exact else "")
        )


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or "none"


def check_activations(where: str, activations: str) -> None:
    """Raises ValueError for a value that is none, and for int8 where it does not apply."""
    if activations not in ("exact", "int8"):
        raise ValueError(
            f"[{where}] activations must be 'exact' or 'int8' but got '{activations}'."
        )
    if activations == "int8" and mx.default_device() != mx.cpu:
        raise ValueError(
            f"[{where}] activations='int8' is for the CPU, but MLX's default device is a GPU."
        )


class _TraceCache:
    """Stands in for a layer's `KVCache` while the step is traced.

    Offset and buffers are inputs of the graph.
    """

    step = KVCache.step

    def __init__(self, keys: mx.array, values: mx.array, offset: mx.array) -> None:
        self.keys = keys
        self.values = values
        self.offset = offset
        self._start = offset

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        (self.keys,) = _ext.node("kv_update", [self.keys, keys, self._start])
        (self.values,) = _ext.node("kv_update", [self.values, values, self._start])
        self.offset = self._start + keys.shape[2]
        return self.keys, self.values

    def make_mask(
        self, N: int, return_array: bool = False, window_size: int | None = None
    ) -> mx.array:
        attrs = {"tokens": N, "capacity": self.keys.shape[2], "window": window_size or 0}
        return _ext.node("causal_mask", [self._start], attrs)[0]


class _TraceBatchCache(_TraceCache):
    """Stands in for a layer's `BatchKVCache`.

    Rows go to `_idx`, the same for all sequences; `offset` has each sequence's position.
    """

    step = BatchKVCache.step

    def __init__(
        self, keys: mx.array, values: mx.array, start: mx.array, positions: mx.array
    ) -> None:
        super().__init__(keys, values, start)
        self.offset = self._positions = positions
        self.left_padding = start - positions

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        super().update_and_fetch(keys, values)
        self.offset = self._positions + keys.shape[2]
        return self.keys, self.values

    def make_mask(
        self, N: int, return_array: bool = False, window_size: int | None = None
    ) -> mx.array:
        attrs = {
            "tokens": N,
            "capacity": self.keys.shape[2],
            "window": window_size or 0,
            "padded": 1,
        }
        return _ext.node("causal_mask", [self._start, self._positions], attrs)[0]


def _entries(model: nn.Module) -> Iterator[tuple[Any, Any]]:
    """(container, key) of every array, module and list below a model.

    They are what a captured step depends on.
    """
    stack: list[Any] = [model]
    while stack:
        container = stack.pop()
        items = enumerate(container) if isinstance(container, list) else container.items()
        for key, value in items:
            if isinstance(value, mx.array):
                yield container, key
            elif isinstance(value, (dict, list)):
                yield container, key
                stack.append(value)


def _buffer_types(model: nn.Module, caches: list[KVCache]) -> list[tuple[int, int, mx.Dtype]]:
    """(heads, head size, dtype) of each layer's keys and values.

    They come from a lazily built step that is never evaluated.
    """
    model(mx.zeros((1, 1), mx.int32), cache=caches)
    arrays = [a for cache in caches for a in (cache.keys, cache.values)]
    return [(a.shape[1], a.shape[3], a.dtype) for a in arrays]


class _Patched:
    """Mixed into a patched model's class: calls go to the runner, everything else is as it was."""

    def __call__(self, inputs: mx.array, cache: Any = None, *args: Any, **kwargs: Any) -> Any:
        if not args and not any(value is not None for value in kwargs.values()):
            runner = self._zmlx_runner
            logits = runner(inputs, cache)
            if logits is not None:
                return logits
            self.zmlx.stock_calls[runner.reason] += 1
        return self._zmlx_class.__call__(self, inputs, cache, *args, **kwargs)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """A pickled or copied model is the model as it was."""
        state = vars(self).copy()
        cls = type(self)
        unpatch(self)
        try:
            reduced = list(self.__reduce_ex__(protocol))
            reduced[2] = dict(reduced[2])  # it is vars(self), to which the patch returns below
            return tuple(reduced)
        finally:
            object.__setattr__(self, "__class__", cls)
            vars(self).update(state)


class ByLength:
    """Two runners as one: `decode` gets calls of one token, `prompt` the longer ones.

    None leaves such calls to the model.
    """

    def __init__(self, decode: _ext.Runner | None, prompt: _ext.Runner | None) -> None:
        self.decode = decode
        self.prompt = prompt
        self.reason = ""

    def __call__(self, inputs: mx.array, cache: Any) -> mx.array | None:
        is_decode = inputs.shape[-1:] == (1,)
        runner = self.decode if is_decode else self.prompt
        if runner is None:
            self.reason = f"{'decode' if is_decode else 'prompts'}: the model itself was chosen"
            return None
        logits = runner(inputs, cache)
        if logits is None:
            self.reason = runner.reason
        return logits

    def explain(self, batch: int, tokens: int, padded: bool = False, target: str = "") -> str:
        runner = self.decode if tokens == 1 else self.prompt
        if runner is None:
            return "left to the model itself\n"
        return runner.explain(batch, tokens, padded, target)


def install(model: nn.Module, runner: _ext.Runner | ByLength) -> None:
    """Puts a runner under the model's calls, in place of one that is there already."""
    object.__setattr__(model, "_zmlx_runner", runner)
    if is_patched(model):
        return
    base = type(model)
    cls = type(base.__name__, (_Patched, base), {"__module__": base.__module__})
    cls.__qualname__ = base.__qualname__
    object.__setattr__(model, "_zmlx_class", base)
    object.__setattr__(model, "__class__", cls)


def is_patched(model: nn.Module) -> bool:
    """Whether `patch` is in effect on this model."""
    return isinstance(model, _Patched)


def patch(
    model: nn.Module,
    patterns: list[str] | None = None,
    exclude: list[str] | None = None,
    exact: bool = False,
    verbose: bool = False,
    activations: str = "exact",
) -> nn.Module:
    """Patches an `mlx_lm` model in place and returns it.

    The model's step is captured, rewritten with fused ops and planned; calls
    `model(tokens, cache=cache)` then replay the plan, with caches of one sequence and with those of
    `mlx_lm.batch_generate` and `mlx_lm.server`. Calls that the plan does not cover (another
    cache type, embeddings as input, training) run the model as before and are counted in
    `model.zmlx.stock_calls`. Prompts are planned on the first call of each length.

    Args:
        model: a model from `mlx_lm.load`.
        patterns: names of the patterns to use, by default all.
        exclude: names of patterns not to use.
        exact: round intermediate values where the unfused graph rounds them; attention's scores
            stay in float32.
        verbose: print the report.
        activations: "int8" rounds what quantised weights are multiplied with to 8-bit integers,
            with a float32 scale for each row and group of the weights' group size; faster, and
            less exact: `docs/performance.md` has the measured loss. Routers, attention and
            weights that are not quantised stay exact. For the CPU.

    Returns:
        The same object. `model.zmlx` is a `Report`.

    Raises:
        TypeError: `model` is not an `mlx.nn.Module`.
        ValueError: a pattern name is unknown, or `activations` is, or MLX's default device is a GPU
            and they are "int8".
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"[patch] model must be an mlx.nn.Module but is {type(model).__name__}.")
    known = _ext.pattern_names()
    for name in [*(patterns or []), *(exclude or [])]:
        if name not in known:
            raise ValueError(f"[patch] there is no pattern '{name}'; known: {', '.join(known)}.")
    check_activations("patch", activations)
    if is_patched(model):
        unpatch(model)

    start = time.perf_counter()
    report = Report()
    try:
        runner = make_runner(model, patterns, exclude, exact, activations)
        report.patched = runner.prepare(1, 1)
        report.read(runner)
    except Unsupported as reason:
        report.reasons = [str(reason)]
    report.seconds = time.perf_counter() - start

    object.__setattr__(model, "zmlx", report)
    if report.patched:
        install(model, runner)
    if verbose:
        print(report, file=sys.stderr)
    return model


def unpatch(model: nn.Module) -> nn.Module:
    """Restores a patched model to exactly what it was and returns it.

    Does nothing to a model that is not patched.
    """
    if is_patched(model):
        object.__setattr__(model, "__class__", model._zmlx_class)
    for name in ("zmlx", "_zmlx_class", "_zmlx_runner"):
        vars(model).pop(name, None)
    return model


def explain(
    model: nn.Module,
    tokens: int = 1,
    batch: int = 1,
    target: str = "",
    activations: str = "exact",
) -> str:
    """The graph of a step before and after rewriting, and its plan with launches and bytes.

    Args:
        model: a model, patched or not.
        tokens: tokens a sequence in the step: 1 for decode, more for a prompt.
        batch: sequences.
        target: "cpu", or "cuda" for the plan on a Hopper GPU, which need not be there; by default
            MLX's default device.
        activations: as for `patch`, for a model that is not patched.

    Raises:
        ValueError: `target` or `activations` is unknown, or the model cannot be captured; the
            message says why.
    """
    check_activations("explain", activations)
    try:
        runner = getattr(model, "_zmlx_runner", None) or make_runner(model, activations=activations)
        return runner.explain(batch, tokens, target=target)
    except Unsupported as reason:
        raise ValueError(f"[explain] the model cannot be captured: {reason}.") from reason


class Unsupported(Exception):
    """Why a model cannot be captured."""


def make_runner(
    model: nn.Module,
    patterns: list[str] | None = None,
    exclude: list[str] | None = None,
    exact: bool = False,
    activations: str = "exact",
) -> _ext.Runner:
    """What answers a patched model's calls; arguments as for `patch`. May raise `Unsupported`."""
    forward = type(model).__call__
    if is_patched(model):
        forward = model._zmlx_class.__call__
    try:
        caches = make_prompt_cache(model)
    except Exception as error:
        raise Unsupported(f"no prompt cache can be made: {error}") from error
    for cache in caches:
        if type(cache) is not KVCache:
            raise Unsupported(f"cache type {type(cache).__name__}")
    mx.eval(model.parameters())
    buffers = _buffer_types(model, caches)

    def trace_step(arrays: list[mx.array], padded: bool) -> list[mx.array]:
        tokens, *offsets = arrays[: 3 if padded else 2]
        kv = arrays[1 + len(offsets) :]
        stand_in = _TraceBatchCache if padded else _TraceCache
        cache = [stand_in(k, v, *offsets) for k, v in zip(kv[::2], kv[1::2], strict=True)]
        logits = forward(model, tokens, cache=cache)
        return [logits, *(a for c in cache for a in (c.keys, c.values))]

    return _ext.Runner(
        trace_step,
        KVCache,
        BatchKVCache,
        list(_entries(model)),
        buffers,
        list(patterns or []),
        list(exclude or []),
        exact,
        activations,
    )
