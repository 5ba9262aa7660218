# tests/python/test_presets.py: written presets are what mlx_lm expects of a user's model.
from __future__ import annotations

import json
import os
import shutil
from collections import namedtuple
from pathlib import Path

import mlx.core as mx
import mlx_lm
import pytest
from mlx.utils import tree_flatten

from zmlx import presets

TINY = ["tiny-moe", "tiny-qwen3", "tiny-llama"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def weights(folder: Path) -> dict[str, mx.array]:
    found: dict[str, mx.array] = {}
    for file in folder.glob("*.safetensors"):
        found.update(mx.load(str(file)))
    return found


def dequantized(model) -> dict[str, mx.array]:
    """Every layer's weights as float32."""
    found = {}
    for name, layer in tree_flatten(model.leaf_modules(), is_leaf=lambda m: hasattr(m, "weight")):
        weight = layer["weight"]
        if "scales" in layer:
            scales, biases = (layer[part].astype(mx.float32) for part in ("scales", "biases"))
            weight = mx.dequantize(weight, scales, biases, layer.group_size, layer.bits)
        found[name] = weight.astype(mx.float32)
    return found


@pytest.mark.parametrize("name", TINY)
def test_a_preset_loads_and_generates_with_stock_mlx_lm(name):
    model, tokenizer = mlx_lm.load(str(presets.write(name)))
    text = mlx_lm.generate(model, tokenizer, "Hello, world", max_tokens=5)
    assert isinstance(text, str)
    assert len(tokenizer) == presets.PRESETS[name].config["vocab_size"]


@pytest.mark.parametrize("name", TINY)
def test_logits_have_the_spread_of_a_working_model(name):
    model, _ = mlx_lm.load(str(presets.write(name, dtype="float32")))
    logits = model(mx.array([[3, 4, 300, 17, 5]]))
    assert 0.5 < mx.std(logits).item() < 2


def test_a_48_layer_preset_keeps_its_spread():
    model, _ = mlx_lm.load(str(presets.write("deep", dtype="float32")))
    assert 0.5 < mx.std(model(mx.array([[3, 4]]))).item() < 2


def test_writing_a_preset_again_changes_nothing():
    folder = presets.write("tiny-moe")
    before = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert presets.write("tiny-moe") == folder
    assert {file.name: file.stat().st_mtime_ns for file in folder.iterdir()} == before


def test_the_cache_is_where_xdg_says_and_each_setting_has_its_own_folder(tmp_path):
    folders = {
        presets.write("tiny-moe"),
        presets.write("tiny-moe", dtype="float16"),
        presets.write("tiny-moe", bits=8),
        presets.write("tiny-moe", seed=1),
        presets.write("tiny-moe", layers=1),
    }
    assert len(folders) == 5
    assert {folder.parent for folder in folders} == {tmp_path / "cache" / "zmlx" / "models"}


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    with pytest.raises(FileExistsError, match="holds something else"):
        presets.write("tiny-moe", tmp_path / "mine")
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["config.json"]


def test_a_folder_written_with_another_seed_is_left_alone(tmp_path):
    presets.write("tiny-moe", tmp_path / "model")
    with pytest.raises(FileExistsError, match="holds something else"):
        presets.write("tiny-moe", tmp_path / "model", seed=1)


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "empty").mkdir()
    assert mlx_lm.load(str(presets.write("tiny-moe", tmp_path / "empty")))


def test_a_write_that_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("stop")

    monkeypatch.setattr(presets, "_write_tokenizer", fail)
    with pytest.raises(RuntimeError, match="stop"):
        presets.write("tiny-moe", tmp_path / "models" / "model")
    assert list((tmp_path / "models").iterdir()) == []


def test_the_slower_of_two_writers_takes_the_folder_of_the_faster(tmp_path, monkeypatch):
    target = tmp_path / "model"
    rename = os.rename

    def lose(source, destination):
        shutil.copytree(source, destination)
        rename(source, destination)

    monkeypatch.setattr(os, "rename", lose)
    assert presets.write("tiny-moe", target) == target
    assert [file.name for file in tmp_path.iterdir() if file.name != "cache"] == ["model"]


def test_too_little_space_is_said_before_anything_is_written(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9 - 1000, 1000))
    with pytest.raises(OSError, match=r"'small' needs 0.7 GB but .* has 0.0 GB free"):
        presets.write("small", tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_every_dtype_holds_the_same_weights(name, dtype):
    bfloat16, _ = mlx_lm.load(str(presets.write(name)))
    other, _ = mlx_lm.load(str(presets.write(name, dtype=dtype)))
    expected, got = dequantized(bfloat16), dequantized(other)
    assert expected.keys() == got.keys()
    for layer in expected:
        assert mx.array_equal(expected[layer], got[layer]), layer
    floats = [w for _, w in tree_flatten(other.parameters()) if mx.issubdtype(w.dtype, mx.floating)]
    assert {w.dtype for w in floats} == {presets.DTYPES[dtype]}


@pytest.mark.parametrize("bits", presets.BITS)
@pytest.mark.parametrize("group_size", presets.GROUP_SIZES)
def test_every_bit_width_and_group_size_loads_with_the_right_standard_deviation(bits, group_size):
    model, _ = mlx_lm.load(str(presets.write("tiny-qwen3", bits=bits, group_size=group_size)))
    layer = model.layers[0].mlp.up_proj
    assert (layer.bits, layer.group_size) == (bits, group_size)
    values = dequantized(model)["model.layers.0.mlp.up_proj"]
    assert mx.std(values).item() == pytest.approx(128**-0.5, rel=0.1)
    assert abs(mx.mean(values).item()) < 0.01


def test_a_preset_can_be_written_unquantised():
    folder = presets.write("tiny-qwen3", bits=None)
    model, _ = mlx_lm.load(str(folder))
    assert "quantization" not in json.loads((folder / "config.json").read_text())
    assert not [name for name, _ in tree_flatten(model.parameters()) if name.endswith("scales")]


def test_the_router_has_8_bits_as_mlx_lm_quantises_it():
    folder = presets.write("tiny-moe")
    config = json.loads((folder / "config.json").read_text())
    assert config["quantization"]["model.layers.0.mlp.gate"] == {"group_size": 64, "bits": 8}
    model, _ = mlx_lm.load(str(folder))
    assert model.layers[0].mlp.gate.bits == 8
    assert model.layers[0].mlp.switch_mlp.gate_proj.bits == 4


def test_a_cut_preset_has_the_first_layers_of_the_whole_one():
    whole, cut = (weights(presets.write("tiny-moe", layers=layers)) for layers in (None, 1))
    assert 0 < len(cut) < len(whole)
    for name, array in cut.items():
        assert mx.array_equal(array, whole[name]), name


def test_another_seed_gives_other_weights():
    first, second = (weights(presets.write("tiny-moe", seed=seed)) for seed in (0, 1))
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not mx.array_equal(first[name], second[name])


def test_a_large_preset_is_sharded_and_indexed(tmp_path, monkeypatch):
    whole = weights(presets.write("tiny-moe", tmp_path / "whole"))
    monkeypatch.setattr(presets, "SHARD_BYTES", 100_000)
    folder = presets.write("tiny-moe", tmp_path / "sharded")
    files = sorted(file.name for file in folder.glob("*.safetensors"))
    assert len(files) > 2
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert sorted(set(index["weight_map"].values())) == files
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in whole.values())
    sharded = weights(folder)
    assert sharded.keys() == whole.keys() == index["weight_map"].keys()
    assert all(mx.array_equal(sharded[name], whole[name]) for name in whole)
    mlx_lm.load(str(folder))


@pytest.mark.parametrize("text", ["Hello, world", "naïve 東京 🙂", "  two  spaces\n\n", ""])
def test_the_tokenizer_gives_back_every_text(text):
    _, tokenizer = mlx_lm.load(str(presets.write("tiny-qwen3")))
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_tokenizer_merges_letters_and_knows_a_chat():
    _, tokenizer = mlx_lm.load(str(presets.write("tiny-qwen3")))
    assert len(tokenizer.encode("aaaa")) == 2
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], add_generation_prompt=True, tokenize=False
    )
    assert chat == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_the_true_geometry_has_the_true_size():
    facts = presets.describe("qwen3-30b-a3b")
    assert facts["layers"] == 48
    assert facts["parameters"] == pytest.approx(30.53e9, rel=1e-3)
    assert facts["active_parameters"] == pytest.approx(3.04e9, rel=1e-2)
    assert facts["bytes"] == pytest.approx(17.2e9, rel=1e-2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "huge"}, "unknown preset 'huge'; there are: demo, small, qwen3-30b-a3b"),
        ({"dtype": "int8"}, "dtype must be one of bfloat16, float16, float32 but got 'int8'"),
        ({"bits": 7}, "bits must be one of 2, 3, 4, 5, 6, 8, or None, but got 7"),
        ({"group_size": 48}, "group size must be one of 32, 64, 128 but got 48"),
        ({"seed": -1}, "seed must not be negative but got -1"),
        ({"layers": 0}, "layers must be from 1 to 2 for 'tiny-moe' but got 0"),
        ({"layers": 3}, "layers must be from 1 to 2 for 'tiny-moe' but got 3"),
    ],
)
def test_bad_settings_are_named_in_one_line(settings, message):
    with pytest.raises(ValueError, match=message) as error:
        presets.write(**{"name": "tiny-moe", **settings})
    assert "\n" not in str(error.value)
