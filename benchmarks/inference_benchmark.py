#!/usr/bin/env python3
# benchmarks/inference_benchmark.py: `zmlx bench inference` for several models, a result each.
"""Stock mlx_lm against the patched models.

    python benchmarks/inference_benchmark.py --models demo small --runs 3 --max-tokens 150

Presets, folders and Hugging Face names go together. Every measurement is that of
`zmlx bench inference`; see docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from zmlx import cli


def main(arguments: list[str] | None = None) -> None:
    """Measures one model after the other; a model that fails ends the run with its error."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", required=True, help="presets, folders or names")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="a folder")
    # What follows belongs to `zmlx bench inference` and is passed on as it is.
    known, others = parser.parse_known_args(arguments)
    for model in known.models:
        result = known.out / f"inference_{Path(model).name}.json"
        cli.main(["bench", "inference", "--model", model, "--json", str(result), *others])


if __name__ == "__main__":
    main()
