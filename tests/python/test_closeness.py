# tests/python/test_closeness.py: distances of logits from a float32 run.
from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

import zmlx.bench
from zmlx import cli
from zmlx.bench import closeness, report
from zmlx.bench.closeness import at_least_as_close, distance, step_logits
from zmlx.bench.inference import Identity, Options, load_model

SCHEMA = json.loads((Path(zmlx.bench.__file__).parent / "validation.schema.json").read_text())


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


class Worse(Identity):
    """A patch whose logits are further from float32: one norm is a little off."""

    def patch(self, model):
        self.weight = model.model.norm.weight
        model.model.norm.weight = self.weight * mx.random.uniform(0.5, 1.5, self.weight.shape)
        return model

    def unpatch(self, model):
        model.model.norm.weight = self.weight
        return model


def validate(patcher, **options):
    options = {"model": "tiny-moe", "prompt_tokens": 5, **options}
    result = closeness.validate(Options(**options), steps=4, patcher=patcher)
    jsonschema.validate(result, SCHEMA, jsonschema.Draft202012Validator)
    return result


def test_equal_logits_have_no_distance():
    logits = np.array([[1.0, 2.0, 3.0], [0.0, 5.0, 1.0]], np.float32)
    found = distance(logits, logits)
    assert (found.rms, found.largest, found.mean_kl, found.worst_kl) == (0, 0, 0, 0)
    assert found.same_top == 2


def test_distances_are_those_of_their_definitions():
    reference = np.log(np.array([[0.5, 0.5], [0.75, 0.25]], np.float32))
    logits = np.log(np.array([[0.5, 0.5], [0.25, 0.75]], np.float32))
    found = distance(reference, logits)
    assert found.largest == pytest.approx(np.log(3), rel=1e-6)
    assert found.rms == pytest.approx(np.log(3) / np.sqrt(2), rel=1e-6)
    assert found.worst_kl == pytest.approx(0.5 * np.log(3), rel=1e-6)
    assert found.mean_kl == pytest.approx(0.25 * np.log(3), rel=1e-6)
    assert found.same_top == 1


def test_a_constant_added_to_all_logits_is_no_divergence():
    reference = np.array([[1.0, 2.0, 900.0]], np.float32)
    found = distance(reference, reference + 3)
    assert found.largest == 3
    assert found.mean_kl == pytest.approx(0, abs=1e-6)


def test_logits_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"logits have shape \(1, 2\) but the reference \(1, 3\)"):
        distance(np.zeros((1, 3), np.float32), np.zeros((1, 2), np.float32))


def test_as_close_as_stock_or_as_float32s_own_noise():
    reference = np.array([[10.0, -10.0]], np.float32)
    exact, near, far = (distance(reference, reference + d) for d in (0, np.float32(5e-4), 1))
    assert at_least_as_close(reference, far, near)
    assert at_least_as_close(reference, exact, near)
    assert not at_least_as_close(reference, near, far)


def test_steps_are_those_of_a_greedy_generation():
    model, _, _, _ = load_model(Options("tiny-moe", dtype="float32"))
    logits, tokens = step_logits(model, [5, 6, 7], 4)
    whole = np.array(model(mx.array([[5, 6, 7, *tokens[:-1]]]))[0, 2:])
    assert tokens == whole.argmax(-1).tolist()
    np.testing.assert_allclose(logits, whole, atol=1e-4)


def test_a_prompt_may_be_a_single_token():
    model, _, _, _ = load_model(Options("tiny-moe", dtype="float32"))
    logits, tokens = step_logits(model, [5], 2)
    assert logits.shape == (2, 512)
    assert len(tokens) == 2


def test_stock_bfloat16_is_off_and_a_null_run_is_as_close():
    result = validate(Identity(), null_run=True)
    assert result["stock"] == result["patched"]
    assert result["stock"]["rms"] > 1e-3
    assert result["at_least_as_close"]
    assert "at least as close to float32 as stock" in report.markdown(result)


def test_a_worse_patch_is_further_away():
    result = validate(Worse())
    assert result["patched"]["rms"] > result["stock"]["rms"]
    assert not result["at_least_as_close"]
    assert "further from float32 than stock" in report.markdown(result)


def test_stock_in_float32_is_the_reference_itself():
    assert validate(Identity(), dtype="float32")["stock"]["rms"] == 0


def test_the_models_own_parameters_come_back():
    model, _, _, _ = load_model(Options("tiny-moe"))
    before = dict(tree_flatten(model.parameters()))
    closeness._float32_logits(model, [1, 2], 1)
    after = dict(tree_flatten(model.parameters()))
    assert before.keys() == after.keys()
    assert all(after[name] is before[name] for name in before)


def test_the_command_writes_the_result_and_fails_when_further_away(tmp_path, capsys, monkeypatch):
    out = tmp_path / "validation.json"
    arguments = ["validate", "--model", "tiny-moe", "--steps", "2", "--prompt-tokens", "3"]
    cli.main([*arguments, "--null-run", "--json", str(out)])
    assert "at least as close" in capsys.readouterr().out
    jsonschema.validate(json.loads(out.read_text()), SCHEMA)
    cli.main(["report", str(out)])
    assert "| distance from float32 | stock mlx_lm | patched |" in capsys.readouterr().out
    monkeypatch.setattr(closeness, "zmlx_patcher", Worse)
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 1
    assert "further from float32 than stock's" in capsys.readouterr().err


def test_too_few_steps_are_refused():
    with pytest.raises(ValueError, match="--steps must be 1 or more but got 0"):
        closeness.validate(Options("tiny-moe"), steps=0)
