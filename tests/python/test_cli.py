# tests/python/test_cli.py: the commands, and their errors in one line.
from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import mlx.core as mx
import pytest
from mlx_lm.models.cache import RotatingKVCache

import zmlx
from zmlx import cli, presets


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["presets", "write", "huge"], 1, "unknown preset 'huge'; there are: demo, small"),
        (
            ["presets", "write", "tiny-moe", "--bits", "7"],
            1,
            "bits must be one of 2, 3, 4, 5, 6, 8",
        ),
        (["presets", "write", "tiny-moe", "--bits", "x"], 2, "'x' is not a valid integer"),
        (["presets", "write", "tiny-moe", "--dtype", "int8"], 2, "'int8' is not one of 'bfloat16'"),
        (["bench", "inference"], 2, "Missing option '--model'"),
        (["bench", "inference", "--model", "huge"], 1, "'huge' is neither a folder nor a preset"),
        (["bench", "inference", "--model", "demo", "--runs", "0"], 1, "--runs must be 1 or more"),
        (
            ["bench", "inference", "--model", "demo", "--runs", "-1"],
            1,
            "must be 1 or more but got -1",
        ),
        (
            ["bench", "inference", "--model", "demo", "--runs", "two"],
            2,
            "'two' is not a valid integer",
        ),
        (
            ["bench", "inference", "--model", "demo", "--layers", "99"],
            1,
            "layers must be from 1 to",
        ),
        (["explain", "tiny-moe", "--tokens", "0"], 2, "--tokens must be 1 or more but got 0"),
        (["explain", "huge"], 1, "'huge' is neither a folder nor a preset"),
        (["report", "missing.json"], 2, "File 'missing.json' does not exist"),
        (["nothing"], 2, "No such command 'nothing'"),
        (["--nothing"], 2, "No such option"),
    ],
)
def test_an_error_is_one_clear_line(arguments, status, message, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == status
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert lines[-1].startswith("zmlx: error: ")
    assert message in lines[-1]
    assert captured.out == ""


def test_presets_are_listed(capsys):
    cli.main(["presets", "list"])
    text = capsys.readouterr().out
    assert all(name in text for name in presets.names())
    assert len(text.strip().splitlines()) == 1 + len(presets.names())
    assert "30,532.1" in text


def test_a_preset_is_written_where_asked(tmp_path, capsys):
    cli.main(["presets", "write", "tiny-moe", str(tmp_path / "model"), "--dtype", "float16"])
    assert capsys.readouterr().out.strip() == str(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["torch_dtype"] == "float16"


def test_the_version_names_mlx_too(capsys):
    cli.main(["--version"])
    text = f"zmlx, version {zmlx.__version__} (for mlx {mx.__version__})"
    assert capsys.readouterr().out.strip() == text


def test_without_a_command_there_is_help(capsys):
    cli.main([])
    assert "bench" in capsys.readouterr().out


def test_a_benchmark_prints_its_table_and_report_prints_the_file(tmp_path, capsys):
    out = tmp_path / "result.json"
    arguments = ["--model", "tiny-moe", "--null-run", "--runs", "1", "--max-tokens", "4"]
    cli.main(["bench", "inference", *arguments, "--prompt-tokens", "4", "--json", str(out)])
    text = capsys.readouterr().out
    assert text.index("tokens: all 4 equal") < text.index("generation, tok/s")
    assert json.loads(out.read_text())["complete"]
    cli.main(["report", str(out)])
    assert "| generation, tok/s |" in capsys.readouterr().out


def test_what_is_not_a_result_is_not_reported(tmp_path, capsys):
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(SystemExit):
        cli.main(["report", str(tmp_path / "other.json")])
    assert "other.json is not a result of zmlx: it has no schema" in capsys.readouterr().err


def test_the_benchmark_script_measures_every_model(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    script = importlib.import_module("inference_benchmark")
    work = ["--null-run", "--runs", "1", "--max-tokens", "3", "--prompt-tokens", "3"]
    script.main(["--models", "tiny-moe", "tiny-llama", "--out", str(tmp_path), *work])
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "inference_tiny-llama.json",
        "inference_tiny-moe.json",
    ]


def test_another_mlx_is_refused_with_both_versions_and_the_command(monkeypatch):
    monkeypatch.setattr(zmlx._ext, "mlx_version", "0.1.0")
    monkeypatch.delitem(sys.modules, "zmlx")
    with pytest.raises(ImportError) as error:
        importlib.import_module("zmlx")
    assert f"built for mlx 0.1.0 but mlx {mx.__version__} is installed" in str(error.value)
    assert "-m pip install" in str(error.value)
    assert "==0.1.0" in str(error.value)


def test_an_extension_that_does_not_load_is_explained(monkeypatch):
    monkeypatch.delitem(sys.modules, "zmlx")
    monkeypatch.setitem(sys.modules, "zmlx._ext", None)
    with pytest.raises(ImportError, match=f"does not load with mlx {mx.__version__}"):
        importlib.import_module("zmlx")


def test_explain_passes_its_options_on(monkeypatch, capsys):
    def explain(model, tokens, target, activations):
        return f"{len(model.layers)} {tokens} {target} {activations}"

    monkeypatch.setattr(zmlx, "patch", SimpleNamespace(explain=explain), raising=False)
    cli.main(["explain", "tiny-moe", "--tokens", "7", "--target", "cuda"])
    assert capsys.readouterr().out.strip() == "2 7 cuda exact"
    cli.main(["explain", "tiny-moe", "--activations", "int8"])
    assert capsys.readouterr().out.strip() == "2 1  int8"


def test_explain_of_a_model_that_cannot_be_captured_says_why_in_one_line(load, monkeypatch, capsys):
    model, _ = load("tiny-qwen3")
    caches = [RotatingKVCache(64) for _ in model.layers]
    monkeypatch.setattr("zmlx.bench.inference.load_model", lambda options: (model, None, {}, {}))
    monkeypatch.setattr(type(model), "make_cache", lambda self: caches, raising=False)
    with pytest.raises(SystemExit) as stop:
        cli.main(["explain", "mine"])
    assert stop.value.code == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    text = "[explain] the model cannot be captured: cache type RotatingKVCache."
    assert line == f"zmlx: error: {text}"
