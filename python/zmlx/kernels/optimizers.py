# zmlx/kernels/optimizers.py: one step of AdamW in one pass.
"""AdamW (Loshchilov and Hutter, 2019)."""

from __future__ import annotations

import mlx.core as mx

from zmlx.authoring import kernel

# `first` and `second` are what the moments are divided by.
_STEP = kernel(
    "adamw_step",
    ("p", "g", "m", "v", "rate", "first", "second", "eps", "decay", "beta1", "beta2"),
    """
    float mean = beta1 * m + (1 - beta1) * g;
    float square = beta2 * v + (1 - beta2) * g * g;
    p_new = p - rate * (mean / first / (sqrt(square / second) + eps) + decay * p);
    m_new = mean;
    v_new = square;
    """,
    ("p_new", "m_new", "v_new"),
)


def adamw_step(
    p: mx.array,
    g: mx.array,
    m: mx.array,
    v: mx.array,
    lr: mx.array | float,
    step: mx.array | float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    wd: float = 0.01,
    *,
    bias_correction: bool = True,
) -> tuple[mx.array, mx.array, mx.array]:
    """The new parameter, first moment and second moment, each of its own dtype.

    Args:
        p, g, m, v: a parameter, its gradient and moments, of one shape.
        lr: the rate, a number or an array of one.
        step: the number of this step, from 1: the moments are divided by 1 - beta^step.
        wd: the weight decay, which the rate multiplies.
        bias_correction: whether the moments are divided.
    """
    for name, array in (("g", g), ("m", m), ("v", v)):
        if array.shape != p.shape:
            raise ValueError(
                f"[adamw_step] {name} must have p's shape {p.shape} but got {array.shape}."
            )
    count, rate = (mx.array(x, mx.float32).reshape(()) for x in (step, lr))
    first, second = ((1 - b**count) if bias_correction else 1.0 for b in (beta1, beta2))
    made = _STEP(p, g, m, v, rate, first, second, eps, wd, beta1, beta2)
    return tuple(new.astype(old.dtype) for new, old in zip(made, (p, m, v), strict=True))


__all__ = ["adamw_step"]
