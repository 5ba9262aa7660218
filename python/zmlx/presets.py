# zmlx/presets.py: models of a given geometry with random weights, in mlx_lm's own format.
"""Random-weight models for benchmarks and tests.

A preset is a row of `PRESETS`: the fields of a `config.json`. `write` makes a folder that
`mlx_lm.load` loads like any user's model: quantised weights, a tokenizer, a chat template.
Nothing is downloaded.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

DTYPES: dict[str, mx.Dtype] = {
    "bfloat16": mx.bfloat16,
    "float16": mx.float16,
    "float32": mx.float32,
}
BITS = (2, 3, 4, 5, 6, 8)
GROUP_SIZES = (32, 64, 128)
SHARD_BYTES = 2 << 30
MARKER = "zmlx_preset.json"
# Raise it when the same settings would give other bytes: cached folders are then written anew.
FORMAT = 1


@dataclass(frozen=True)
class Preset:
    """A model geometry. `config` holds the fields of mlx_lm's `config.json`."""

    what: str
    config: Mapping[str, Any]


def _qwen3_moe(
    hidden: int, layers: int, heads: int, kv_heads: int, head_dim: int,
    experts: int, chosen: int, width: int, vocab: int,
) -> dict[str, Any]:  # fmt: skip
    return {
        "model_type": "qwen3_moe",
        "architectures": ["Qwen3MoeForCausalLM"],
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "intermediate_size": 3 * hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "num_experts": experts,
        "num_experts_per_tok": chosen,
        "moe_intermediate_size": width,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "norm_topk_prob": True,
        "vocab_size": vocab,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "max_position_embeddings": 40960,
        "tie_word_embeddings": False,
    }


def _dense(
    model_type: str, hidden: int, layers: int, heads: int, kv_heads: int, head_dim: int,
    width: int, vocab: int, tied: bool,
) -> dict[str, Any]:  # fmt: skip
    architectures = {"qwen3": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM"}
    return {
        "model_type": model_type,
        "architectures": [architectures[model_type]],
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "intermediate_size": width,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "vocab_size": vocab,
        "rms_norm_eps": 1e-6 if model_type == "qwen3" else 1e-5,
        "rope_theta": 1e6 if model_type == "qwen3" else 5e5,
        "max_position_embeddings": 40960,
        "tie_word_embeddings": tied,
    }


# hidden, layers, heads, KV heads, head, then experts, chosen, width (or MLP width), vocabulary.
PRESETS: dict[str, Preset] = {
    "demo": Preset(
        "mixture of experts that stock mlx_lm runs in minutes on a CPU",
        _qwen3_moe(512, 4, 8, 2, 64, 64, 8, 192, 8192),
    ),
    "small": Preset(
        "mixture of experts of 1.3 billion parameters",
        _qwen3_moe(1024, 12, 16, 4, 64, 64, 8, 512, 32000),
    ),
    "qwen3-30b-a3b": Preset(
        "the geometry of Qwen3-30B-A3B",
        _qwen3_moe(2048, 48, 32, 4, 128, 128, 8, 768, 151936),
    ),
    "deep": Preset(
        "48 mixture of experts layers of tiny width: shows the cost of a step without arithmetic",
        _qwen3_moe(64, 48, 2, 1, 64, 16, 8, 64, 512),
    ),
    "dense-small": Preset(
        "dense Qwen3 of 0.3 billion parameters",
        _dense("qwen3", 1024, 20, 16, 8, 64, 3072, 32000, tied=False),
    ),
    "llama-small": Preset(
        "Llama of 0.3 billion parameters",
        _dense("llama", 1024, 16, 16, 4, 64, 4096, 32000, tied=False),
    ),
    "tiny-moe": Preset(
        "for tests: mixture of experts",
        _qwen3_moe(128, 2, 4, 2, 64, 8, 4, 64, 512),
    ),
    "tiny-qwen3": Preset(
        "for tests: dense Qwen3",
        _dense("qwen3", 128, 2, 4, 2, 64, 256, 512, tied=False),
    ),
    "tiny-llama": Preset(
        "for tests: Llama, input and output embeddings tied",
        _dense("llama", 128, 2, 4, 2, 32, 256, 512, tied=True),
    ),
}


def names() -> list[str]:
    """Every preset's name, in the order of the table."""
    return list(PRESETS)


@dataclass(frozen=True)
class Settings:
    """What decides every byte of a written preset."""

    name: str
    dtype: str = "bfloat16"
    bits: int | None = 4
    group_size: int = 64
    seed: int = 0
    layers: int | None = None

    def check(self) -> None:
        """Raises ValueError, in one line, for what cannot be written."""
        if self.name not in PRESETS:
            raise ValueError(f"unknown preset '{self.name}'; there are: {', '.join(PRESETS)}.")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)} but got '{self.dtype}'.")
        if self.bits is not None and self.bits not in BITS:
            raise ValueError(f"bits must be one of {_words(BITS)}, or None, but got {self.bits}.")
        if self.group_size not in GROUP_SIZES:
            raise ValueError(
                f"group size must be one of {_words(GROUP_SIZES)} but got {self.group_size}."
            )
        if self.seed < 0:
            raise ValueError(f"seed must not be negative but got {self.seed}.")
        most = PRESETS[self.name].config["num_hidden_layers"]
        if self.layers is not None and not 1 <= self.layers <= most:
            raise ValueError(
                f"layers must be from 1 to {most} for '{self.name}' but got {self.layers}."
            )

    def config(self) -> dict[str, Any]:
        """The model's `config.json`, without its quantisation."""
        config = dict(PRESETS[self.name].config)
        if self.layers is not None:
            config["num_hidden_layers"] = self.layers
        return config | {"torch_dtype": self.dtype, "eos_token_id": EOS_ID}

    def marker(self) -> dict[str, Any]:
        """What the folder says of itself: equal markers mean equal files."""
        return {
            "format": FORMAT,
            "preset": self.name,
            "dtype": self.dtype,
            "bits": self.bits,
            "group_size": self.group_size,
            "seed": self.seed,
            "config": self.config(),
        }

    def folder_name(self) -> str:
        """A name for people, ending in a digest of everything else."""
        digest = hashlib.sha256(json.dumps(self.marker(), sort_keys=True).encode()).hexdigest()
        bits = f"{self.bits}bit-g{self.group_size}" if self.bits else "unquantised"
        layers = f"-{self.layers}layers" if self.layers else ""
        return f"{self.name}{layers}-{self.dtype}-{bits}-{digest[:8]}"


def cache_folder() -> Path:
    """Where presets are kept: `$XDG_CACHE_HOME/zmlx/models`, by default under `~/.cache`."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "zmlx" / "models"


def write(
    name: str,
    folder: str | os.PathLike[str] | None = None,
    dtype: str = "bfloat16",
    bits: int | None = 4,
    group_size: int = 64,
    seed: int = 0,
    layers: int | None = None,
) -> Path:
    """Writes a preset once and returns its folder, ready for `mlx_lm.load`.

    Args:
        name: a name of `PRESETS`.
        folder: where to write; by default a folder of its own in the user's cache.
        dtype: of the activations, norms, scales and biases: bfloat16, float16 or float32. The
            weights' values are the same in all three.
        bits: bits a quantised weight (affine), or None for weights that are not quantised.
        group_size: weights that share a scale.
        seed: of the random weights.
        layers: keep only so many decoder layers; those left have the weights of the whole model.

    The folder appears whole or not at all. If it is already there, written with the same
    settings, nothing happens. Memory in use stays near 2 GiB for a model of any size.

    Raises:
        ValueError: a setting that cannot be; FileExistsError: the folder holds something else;
        OSError: not enough space left.
    """
    settings = Settings(name, dtype, bits, group_size, seed, layers)
    settings.check()
    target = Path(folder) if folder is not None else cache_folder() / settings.folder_name()
    if _is_written(target, settings):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        _write_files(scratch, settings)
        _publish(scratch, target, settings)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def describe(name: str) -> dict[str, Any]:
    """A preset's parameters, active parameters a token, and bytes at 4 bits, from its shapes."""
    settings = Settings(name)
    settings.check()
    config = settings.config()
    shapes, _ = _tensors(settings)
    total = active = size = 0
    for tensor in shapes:
        size += tensor.nbytes
        if tensor.kind in ("scales", "biases"):
            continue
        total += tensor.values
        share = config["num_experts_per_tok"] / config["num_experts"] if tensor.of_experts else 1
        if not tensor.is_embedding or config["tie_word_embeddings"]:
            active += int(tensor.values * share)
    return {
        "name": name,
        "what": PRESETS[name].what,
        "model_type": config["model_type"],
        "layers": config["num_hidden_layers"],
        "parameters": total,
        "active_parameters": active,
        "bytes": size,
    }


def _words(values: tuple[int, ...]) -> str:
    return ", ".join(str(value) for value in values)


def _is_written(target: Path, settings: Settings) -> bool:
    if not target.exists():
        return False
    try:
        if json.loads((target / MARKER).read_text()) == settings.marker():
            return True
    except (OSError, ValueError):
        pass
    if target.is_dir() and not any(target.iterdir()):
        return False
    raise FileExistsError(f"{target} is there already and holds something else; choose another.")


def _publish(scratch: Path, target: Path, settings: Settings) -> None:
    scratch.chmod(0o755)
    try:
        os.rename(scratch, target)
    except OSError:
        # Another process was faster: its files are the same.
        if not _is_written(target, settings):
            raise


def draw(settings: Settings) -> tuple[Any, Any, dict[str, Any]]:
    """The model itself, its tokenizer and its config, with values drawn on MLX's default device.

    For models too large to write and read: nothing reaches the disk but a tokenizer. The values
    have the statistics of a written preset's, not its bits.
    """
    from mlx_lm.utils import _get_classes, load_tokenizer, quantize_model

    settings.check()
    tensors, config = _tensors(settings)
    model_class, args_class = _get_classes(config)
    model = model_class(args_class.from_dict(config))
    model.set_dtype(DTYPES[settings.dtype])
    if settings.bits is not None:
        with contextlib.redirect_stdout(io.StringIO()):
            model, _ = quantize_model(model, config, settings.group_size, settings.bits)
    for number, tensor in enumerate(tensors):
        value = _draw_on_device(tensor, settings, number)
        mx.eval(value)
        model.load_weights([(tensor.name, value)], strict=False)
    model.eval()
    with tempfile.TemporaryDirectory() as folder:
        _write_json(Path(folder) / "config.json", config)
        _write_tokenizer(Path(folder), config)
        tokenizer = load_tokenizer(Path(folder))
    return model, tokenizer, config


def _draw_on_device(tensor: _Tensor, settings: Settings, number: int) -> mx.array:
    """Like `_draw`, from MLX's own generator. Scales are all alike, so that biases follow."""
    key = mx.random.key(settings.seed * 1_000_003 + number)
    if tensor.kind == "codes":
        halves = [
            mx.random.randint(0, 1 << 16, tensor.shape, mx.uint32, key=half)
            for half in mx.random.split(key)
        ]
        return halves[0] | (halves[1] << 16)
    dtype = DTYPES[settings.dtype]
    if tensor.kind in ("scales", "biases"):
        levels = 2**tensor.bits
        step = mx.array(tensor.std / np.sqrt((levels**2 - 1) / 12)).astype(mx.bfloat16)
        level = 1.0 if tensor.kind == "scales" else -(levels - 1) / 2
        return mx.full(tensor.shape, (step.astype(mx.float32) * level).astype(dtype))
    drawn = mx.random.normal(tensor.shape, key=key)
    drawn = 1 + 0.1 * drawn if tensor.kind == "norm" else drawn * tensor.std
    return drawn.astype(dtype)


@dataclass(frozen=True)
class _Tensor:
    """One tensor to write: its name in the file and what its values should be."""

    name: str
    shape: tuple[int, ...]
    nbytes: int
    kind: str  # codes, scales, biases, norm, vector or matrix
    values: int  # weights that it stands for
    bits: int
    std: float

    @property
    def of_experts(self) -> bool:
        return ".switch_mlp." in self.name

    @property
    def is_embedding(self) -> bool:
        return "embed_tokens" in self.name


def _tensors(settings: Settings) -> tuple[list[_Tensor], dict[str, Any]]:
    """The tensors that mlx_lm expects, and the whole config: from its own lazy, empty model."""
    from mlx.utils import tree_flatten
    from mlx_lm.utils import _get_classes, quantize_model

    config = settings.config()
    model_class, args_class = _get_classes(config)
    model = model_class(args_class.from_dict(config))
    model.set_dtype(DTYPES[settings.dtype])
    if settings.bits is not None:
        with contextlib.redirect_stdout(io.StringIO()):
            model, config = quantize_model(model, config, settings.group_size, settings.bits)
        config["quantization_config"] = config["quantization"]
    parameters = dict(tree_flatten(model.parameters()))
    found = [_tensor(name, parameters, config) for name in parameters]
    return sorted(found, key=lambda tensor: _order(tensor.name)), config


def _order(name: str) -> list[int | str]:
    """Layers in numeric order."""
    parts = re.split(r"(\d+)", name)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)]


def _tensor(name: str, parameters: Mapping[str, mx.array], config: dict[str, Any]) -> _Tensor:
    array = parameters[name]
    layer, _, leaf = name.rpartition(".")
    bits = values = 0
    if f"{layer}.scales" in parameters and leaf in ("weight", "scales", "biases"):
        quantization = config["quantization"]
        bits = quantization.get(layer, quantization)["bits"]
        columns = parameters[f"{layer}.weight"].shape[-1] * 32 // bits
        kind = {"weight": "codes"}.get(leaf, leaf)
        values = array.size * 32 // bits if kind == "codes" else 0
    else:
        columns = array.shape[-1]
        kind = "matrix" if array.ndim > 1 else "norm" if leaf == "weight" else "vector"
        values = array.size
    tied = config["tie_word_embeddings"]
    # A row looked up has a fan-in of one; a tied table is also the output head.
    std = 1.0 if "embed_tokens" in name and not tied else columns**-0.5
    # A router this decided keeps a rounding error from choosing other experts.
    std *= 2.0 if name.endswith(("mlp.gate.weight", "mlp.gate.scales", "mlp.gate.biases")) else 1.0
    return _Tensor(name, tuple(array.shape), array.nbytes, kind, values, bits, std)


def _draw(tensor: _Tensor, settings: Settings) -> mx.array:
    """Values of mean 0 and the tensor's standard deviation, as uniform codes with random scales.

    Scales and biases are rounded to bfloat16, so that every dtype holds the same weights (but
    for tiny scales in float16).
    """
    # The biases follow from the scales: both draw from one stream.
    layer, _, leaf = tensor.name.rpartition(".")
    stream = f"{layer}.scales" if leaf == "biases" else tensor.name
    random = np.random.Generator(np.random.SFC64([settings.seed, zlib.crc32(stream.encode())]))
    if tensor.kind == "codes":
        return mx.array(np.frombuffer(random.bytes(tensor.nbytes), np.uint32).reshape(tensor.shape))
    if tensor.kind in ("scales", "biases"):
        levels = 2**tensor.bits
        step = tensor.std / np.sqrt((levels**2 - 1) / 12)
        drawn = mx.array((0.75 + 0.5 * random.random(tensor.shape, np.float32)) * np.float32(step))
        drawn = drawn.astype(mx.bfloat16).astype(mx.float32)
        if tensor.kind == "biases":
            drawn = drawn * (-(levels - 1) / 2)
    else:
        drawn = mx.array(random.standard_normal(tensor.shape, np.float32))
        drawn = 1 + 0.1 * drawn if tensor.kind == "norm" else drawn * tensor.std
    return drawn.astype(mx.bfloat16).astype(DTYPES[settings.dtype])


def _shards(tensors: list[_Tensor]) -> Iterator[list[_Tensor]]:
    shard: list[_Tensor] = []
    for tensor in tensors:
        if shard and sum(other.nbytes for other in shard) + tensor.nbytes > SHARD_BYTES:
            yield shard
            shard = []
        shard.append(tensor)
    yield shard


def _write_files(folder: Path, settings: Settings) -> None:
    with mx.stream(mx.cpu):
        tensors, config = _tensors(settings)
        size = sum(tensor.nbytes for tensor in tensors)
        free = shutil.disk_usage(folder).free
        if size > free:
            raise OSError(
                f"'{settings.name}' needs {size / 1e9:.1f} GB but {folder.parent} has "
                f"{free / 1e9:.1f} GB free."
            )
        shards = list(_shards(tensors))
        weight_map: dict[str, str] = {}
        for number, shard in enumerate(shards, 1):
            file = (
                f"model-{number:05d}-of-{len(shards):05d}.safetensors"
                if len(shards) > 1
                else "model.safetensors"
            )
            weights = {tensor.name: _draw(tensor, settings) for tensor in shard}
            mx.save_safetensors(str(folder / file), weights, {"format": "mlx"})
            weight_map |= dict.fromkeys(weights, file)
            del weights
            mx.clear_cache()
    index = {
        "metadata": {
            "total_size": size,
            "total_parameters": sum(tensor.values for tensor in tensors),
        },
        "weight_map": weight_map,
    }
    _write_json(folder / "model.safetensors.index.json", index)
    _write_json(folder / "config.json", config)
    _write_tokenizer(folder, config)
    _write_json(folder / MARKER, settings.marker())


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
EOS_ID = 0
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def _merges(symbols: list[str], count: int) -> list[tuple[str, str]]:
    """`count` byte pair merges: letters to pairs, pairs and letters to triples, and so on."""
    letters = [symbol for symbol in symbols if symbol.isascii() and symbol.islower()]
    level = letters
    made: list[tuple[str, str]] = []
    while len(made) < count:
        pairs = [(left, right) for left in level for right in letters]
        made += pairs
        level = [left + right for left, right in pairs]
    return made[:count]


def _write_tokenizer(folder: Path, config: Mapping[str, Any]) -> None:
    """A byte-level BPE tokenizer with exactly the model's vocabulary."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = _merges(symbols, config["vocab_size"] - len(SPECIAL) - len(symbols))
    pieces = [*SPECIAL, *symbols, *(left + right for left, right in merges)]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(piece, special=True) for piece in SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": SPECIAL[EOS_ID],
            "pad_token": SPECIAL[EOS_ID],
            "model_max_length": config["max_position_embeddings"],
            "clean_up_tokenization_spaces": False,
            "chat_template": CHAT_TEMPLATE,
        },
    )
