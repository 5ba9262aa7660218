# zmlx/bench/__init__.py: measurements that compare outputs before they print a number.
"""Benchmarks: `zmlx bench inference` and what it is made of."""
