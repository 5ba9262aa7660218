"""Models in every weight format of MLX are patched whole, and compute what float32 computes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_map_with_path
from test_patch import TOLERANCE, distance, greedy, steps, tokens_of

from zmlx.patch import explain, patch

# mode, bits, group size
FORMATS = [
    *(("affine", bits, group) for bits in (2, 3, 4, 5, 6, 8) for group in (32, 64)),
    ("mxfp4", 4, 32),
    ("mxfp8", 8, 32),
    ("nvfp4", 4, 16),
]
CHUNKS = [21, 1, 1, 9, 1, 3]


def quantised(
    model: nn.Module,
    mode: str,
    bits: int,
    group: int,
    of_router: tuple[str, int, int] | None = None,
) -> nn.Module:
    """A copy quantised in memory as mlx_lm does, the router in a format of its own if asked."""
    other = copy.deepcopy(model)

    def settings(path: str, module: nn.Module) -> bool | dict[str, Any]:
        if not hasattr(module, "to_quantized"):
            return False
        if of_router and path.endswith("mlp.gate"):
            return dict(zip(("mode", "bits", "group_size"), of_router, strict=True))
        return True

    nn.quantize(other, group_size=group, bits=bits, mode=mode, class_predicate=settings)
    mx.eval(other.parameters())
    return other


def dequantised(model: nn.Module) -> nn.Module:
    """The same values in float32, no longer quantised."""
    other = copy.deepcopy(model)

    def plain(path: str, module: Any) -> Any:
        if not hasattr(module, "mode") or not hasattr(module, "scales"):
            return module
        weight = mx.dequantize(
            module.weight,
            module.scales,
            module.get("biases"),
            group_size=module.group_size,
            bits=module.bits,
            mode=module.mode,
            dtype=mx.float32,
        )
        rows, columns = weight.shape[-2:]
        if isinstance(module, nn.QuantizedEmbedding):
            new: nn.Module = nn.Embedding(rows, columns)
        elif isinstance(module, nn.QuantizedLinear):
            new = nn.Linear(columns, rows, bias=False)
        else:
            from mlx_lm.models.switch_layers import SwitchLinear

            new = SwitchLinear(columns, rows, weight.shape[0], bias=False)
        new.weight = weight
        return new

    leaves = other.leaf_modules()
    other.update_modules(tree_map_with_path(plain, leaves, is_leaf=nn.Module.is_module))
    other.set_dtype(mx.float32)
    return other


def is_whole(model: nn.Module) -> bool:
    """Whether a step of one token is nothing but this package's ops."""
    patch(model)
    text = explain(model)
    plan = text[text.index("== plan ==") :]
    return (
        bool(model.zmlx.patched)
        and "not planned" not in plan
        and model.zmlx.nodes_after < model.zmlx.nodes_before / 5
    )


# A router that chooses between near equals makes any tolerance for short floats arbitrary.
@pytest.mark.parametrize(("name", "dtype"), [("tiny-moe", "float32"), ("tiny-qwen3", "bfloat16")])
@pytest.mark.parametrize(("mode", "bits", "group"), FORMATS)
def test_every_format_is_patched_whole_and_close_to_float32(
    load: Callable[..., Any], name: str, dtype: str, mode: str, bits: int, group: int
) -> None:
    model = quantised(load(name, bits=None, dtype=dtype)[0], mode, bits, group)
    tokens = tokens_of(sum(CHUNKS))
    reference = steps(dequantised(model), tokens, CHUNKS)
    assert is_whole(model), model.zmlx.reasons
    assert distance(steps(model, tokens, CHUNKS), reference) < TOLERANCE[dtype]
    assert not model.zmlx.stock_calls


@pytest.mark.parametrize(("mode", "bits", "group"), [f for f in FORMATS if f[2] < 64])
def test_float32_activations_give_the_tokens_of_stock(
    load: Callable[..., Any], mode: str, bits: int, group: int
) -> None:
    model = quantised(load("tiny-moe", bits=None, dtype="float32")[0], mode, bits, group)
    expected = greedy(model, tokens_of(13), 20)
    assert greedy(patch(model), tokens_of(13), 20) == expected
    assert model.zmlx.patched
    assert not model.zmlx.stock_calls


@pytest.mark.parametrize("mode", ["mxfp4", "nvfp4"])
def test_formats_may_differ_between_layers(load: Callable[..., Any], mode: str) -> None:
    bits, group = 4, 32 if mode == "mxfp4" else 16
    model = quantised(
        load("tiny-moe", bits=None, dtype="float32")[0],
        mode,
        bits,
        group,
        of_router=("affine", 8, 64),
    )
    assert model.layers[0].mlp.gate.mode == "affine"
    tokens = tokens_of(sum(CHUNKS))
    reference = steps(dequantised(model), tokens, CHUNKS)
    assert is_whole(model), model.zmlx.reasons
    assert distance(steps(model, tokens, CHUNKS), reference) < TOLERANCE["float32"]
