# zmlx/optimizers.py: MLX's optimizers with fused steps.
"""`zmlx.optimizers.AdamW` in place of `mlx.optimizers.AdamW`."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.optimizers

from zmlx.kernels.optimizers import adamw_step


class AdamW(mlx.optimizers.AdamW):
    """mlx.optimizers.AdamW, whose update of a parameter is one pass over memory.

    Its arguments, state and results are those of MLX's, but for rounding: it computes in float32.
    """

    def apply_single(
        self, gradient: mx.array, parameter: mx.array, state: dict[str, Any]
    ) -> mx.array:
        """The new parameter; `state` gets the new moments."""
        beta1, beta2 = self.betas
        updated, state["m"], state["v"] = adamw_step(
            parameter,
            gradient,
            state["m"],
            state["v"],
            self.learning_rate,
            self.step,
            beta1,
            beta2,
            self.eps,
            self.weight_decay,
            bias_correction=self.bias_correction,
        )
        return updated


__all__ = ["AdamW"]
