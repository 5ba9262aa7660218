# zmlx/optimizers.py: MLX's optimizers with fused steps.
"""`zmlx.optimizers.AdamW` in place of `mlx.optimizers.AdamW`."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.optimizers

from zmlx.kernels.optimizers import adamw_step


class AdamW(mlx.optimizers.AdamW):
    """mlx.optimizers.AdamW, whose update of a parameter is one pass over memory.

    Its arguments, state and results are those of MLX's, but for rounding: it computes in float32,
    and its moments are float32 whatever the parameters are.
    """

    def init_single(self, parameter: mx.array, state: dict[str, Any]) -> None:
        """Moments of zeros."""
        state["m"], state["v"] = (mx.zeros(parameter.shape, mx.float32) for _ in range(2))

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
