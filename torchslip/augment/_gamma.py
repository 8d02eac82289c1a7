"""Gamma, beta and Dirichlet variates from a fixed number of uniform numbers.

The method of Marsaglia and Tsang ("A simple method for generating gamma variables", ACM TOMS 2000), with six proposals
of which the first that is accepted counts. Each is accepted with more than 95 %, so at most one in 64 million variates
is a proposal that should have been refused.
"""

from __future__ import annotations

import math

import torch

__all__ = ["NUMBERS_PER_GAMMA", "dirichlet", "log_gamma_variate"]

_PROPOSALS = 6
NUMBERS_PER_GAMMA = 3 * _PROPOSALS + 1


def log_gamma_variate(numbers: torch.Tensor, shape: float) -> torch.Tensor:
    """The logarithm of gamma variates: ``[...]`` from uniform numbers ``[..., NUMBERS_PER_GAMMA]``.

    Logarithms, because variates of a small shape are smaller than any float.
    """
    first, second, third = torch.split(numbers[..., :-1], _PROPOSALS, -1)
    normal = (-2 * (1 - first).log()).sqrt() * (second * (2 * math.pi)).cos()
    # Shapes below 1 are those of shape + 1, times a power of a uniform number.
    above = shape + 1 if shape < 1 else shape
    d = above - 1 / 3
    v = (1 + normal / math.sqrt(9 * d)) ** 3
    safe = v.clamp_min(1e-30)
    accepted = (v > 0) & ((1 - third).log() < 0.5 * normal**2 + d - d * v + d * safe.log())
    index = accepted.to(torch.int64).argmax(-1, keepdim=True)
    logarithm: torch.Tensor = (d * safe.gather(-1, index)).log()[..., 0]
    if shape < 1:
        logarithm = logarithm + (1 - numbers[..., -1]).log() / shape
    return logarithm


def dirichlet(numbers: torch.Tensor, shape: float) -> torch.Tensor:
    """Symmetric Dirichlet variates ``[B, K]`` from uniform numbers ``[B, K * NUMBERS_PER_GAMMA]``.

    For K = 2, the first column is Beta(shape, shape).
    """
    return log_gamma_variate(
        numbers.reshape(len(numbers), numbers.shape[1] // NUMBERS_PER_GAMMA, NUMBERS_PER_GAMMA), shape
    ).softmax(1)
