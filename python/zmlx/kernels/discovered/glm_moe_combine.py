# zmlx/kernels/discovered/glm_moe_combine.py: the weighted sum of experts' outputs.
"""`zmlx.kernels.moe.moe_combine`."""

from zmlx.kernels.moe import moe_combine as glm_moe_combine

__all__ = ["glm_moe_combine"]
