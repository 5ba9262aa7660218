# zmlx/kernels/optimizers.py: one step of AdamW in one pass.
"""AdamW (Loshchilov and Hutter, 2019)."""

from zmlx.ops import adamw_step

__all__ = ["adamw_step"]
