"""Models that the tests share: tiny presets, loaded once, each test with its own patch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import mlx.core as mx
import mlx_lm
import pytest

from zmlx import presets
from zmlx.patch import unpatch

TINY = ("tiny-moe", "tiny-qwen3", "tiny-llama")


@pytest.fixture(scope="session", autouse=True)
def on_the_cpu() -> None:
    mx.set_default_device(mx.cpu)


@pytest.fixture(scope="session")
def preset_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """`preset_folder(name, **settings)`: a written preset, once a session."""
    written: dict[Any, str] = {}

    def folder(name: str, **settings: Any) -> str:
        key = (name, *sorted(settings.items()))
        if key not in written:
            target = tmp_path_factory.mktemp(name)
            written[key] = str(presets.write(name, target / "model", **settings))
        return written[key]

    return folder


@pytest.fixture(scope="session")
def _loaded(preset_folder: Callable[..., str]) -> Callable[..., tuple[Any, Any]]:
    models: dict[Any, tuple[Any, Any]] = {}

    def load(name: str, **settings: Any) -> tuple[Any, Any]:
        key = (name, *sorted(settings.items()))
        if key not in models:
            models[key] = mlx_lm.load(preset_folder(name, **settings))[:2]
        return models[key]

    return load


@pytest.fixture
def load(_loaded: Callable[..., tuple[Any, Any]]) -> Iterator[Callable[..., tuple[Any, Any]]]:
    """`load(name, **settings)` gives (model, tokenizer), unpatched again after the test."""
    used: list[Any] = []

    def one(name: str, **settings: Any) -> tuple[Any, Any]:
        model, tokenizer = _loaded(name, **settings)
        used.append(model)
        return model, tokenizer

    yield one
    for model in used:
        unpatch(model)
