# zmlx/kernels/discovered/__init__.py: names of kernels that a search found, for any shape here.
"""The catalogue's functions under the names of found kernels. They never return None."""
