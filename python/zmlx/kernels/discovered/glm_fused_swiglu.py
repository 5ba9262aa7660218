# zmlx/kernels/discovered/glm_fused_swiglu.py: SwiGLU of two arrays.
"""silu(gate) * up."""

from zmlx.kernels.transformer import swiglu2 as glm_fused_swiglu

__all__ = ["glm_fused_swiglu"]
