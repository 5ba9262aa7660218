#!/usr/bin/env python3
# benchmarks/microbench.py: `zmlx bench micro` from a checkout.
"""Single operations of zmlx.ops against stock MLX, eager and compiled.

python benchmarks/microbench.py --threads 2 --json OUT
"""

from zmlx.bench.micro import command

if __name__ == "__main__":
    command()
