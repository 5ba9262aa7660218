# zmlx/kernels/activations_dsl.py: the activations under the module's second name.
"""The functions of `zmlx.kernels.activations`."""

from zmlx.kernels import activations

__all__ = list(activations.__all__)
globals().update({name: getattr(activations, name) for name in __all__})
