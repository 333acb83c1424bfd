"""Initial values of the state-space kernels.

HiPPO-LegS is A[n,k] = -sqrt((2n+1)(2k+1)) below the diagonal, -(n+1) on it, and B[n] = sqrt(2n+1).
With P[n] = sqrt(n+1/2) the sum A + P Pᵀ is -1/2 plus a skew matrix: its eigenvectors V are unitary
and its eigenvalues λ have real part -1/2, so that A = V (diag(λ) - p pᴴ) Vᴴ, p = Vᴴ P, b = Vᴴ B.
Everything is computed in float64.
"""

from __future__ import annotations

import math
from typing import Optional, Tuple

import torch
from torch import nn

S4D_INITS = ("lin", "inv", "legs")
DSS_INITS = ("legs", "gss")
_SMALLEST_STEP, _LARGEST_STEP = 1e-3, 1e-1
# The bound on Im b under which the reference implementation of S4 starts training.
_LARGEST_B = 2.0


def legs(size: int) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(λ [M], p [M], b [M], Vᴴ [M, N]) of HiPPO-LegS of N = `size`, M = N / 2.

    One of each conjugate pair is returned, the one in the lower half-plane, by ascending imaginary
    part.
    """
    n = torch.arange(size, dtype=torch.float64)
    root = torch.sqrt(2.0 * n + 1.0)
    a = -torch.tril(root[:, None] * root[None, :], -1) - torch.diag(n + 1.0)
    p = torch.sqrt(n + 0.5)
    skew = a + p[:, None] * p[None, :]
    skew = 0.5 * (skew - skew.t())                # removes the -1/2 of the diagonal, and rounding
    w, v = torch.linalg.eigh(skew * -1j)          # skew = V diag(i w) Vᴴ
    inverse = v[:, : size // 2].conj().t()        # ascending, so the negative half comes first
    eigenvalues = torch.complex(torch.full_like(w, -0.5), w)[: size // 2]
    return eigenvalues, inverse @ p.to(v.dtype), inverse @ root.to(v.dtype), inverse


def clipped_b(b: torch.Tensor) -> torch.Tensor:
    return torch.complex(b.real, b.imag.clamp(-_LARGEST_B, _LARGEST_B))


def s4d_modes(initial: str, state_size: int) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:
    """(a, b) [M] of an S4D initialisation; None for b = 1."""
    modes = state_size // 2
    n = torch.arange(modes, dtype=torch.float64)
    if initial == "legs":
        a, _, b, _ = legs(state_size)
        return a, clipped_b(b)
    if initial == "lin":
        imag = math.pi * n
    elif initial == "inv":
        imag = state_size / math.pi * (state_size / (2.0 * n + 1.0) - 1.0)
    else:
        raise ValueError(f"{initial!r} is not one of {', '.join(S4D_INITS)}")
    return torch.complex(torch.full_like(imag, -0.5), imag), None


def dss_modes(initial: str, modes: int) -> torch.Tensor:
    """a [N] of a DSS initialisation.

    legs: the N eigenvalues of LegS of size 2N with positive imaginary part, descending. gss: as in
    Gated State Spaces, both parts the exponential of normal numbers; meant for steps of 1.
    """
    if initial == "legs":
        return legs(2 * modes)[0].conj()
    if initial == "gss":
        real, imag = torch.exp(torch.randn(2, modes, dtype=torch.float64))
        return torch.complex(-real, imag)
    raise ValueError(f"{initial!r} is not one of {', '.join(DSS_INITS)}")


def s5_modes(
    filters: int, features: int, state_size: int
) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(λ [P], b [P, D], c [C, D, P]) of S5: LegS in as many equal blocks as divide the state.

    b and c are random real matrices seen from the eigenvectors' basis.
    """
    blocks = next(n for n in (8, 4, 2, 1) if state_size % (2 * n) == 0)
    size = state_size // blocks
    eigenvalues, _, _, inverse = legs(size)
    b = torch.randn(blocks, size, features, dtype=torch.float64) * features**-0.5
    # A pair's two modes together read 2 Re(c x), which the real c spreads over all N numbers.
    c = torch.randn(blocks, filters, features, size, dtype=torch.float64) * state_size**-0.5
    return (
        eigenvalues.repeat(blocks),
        torch.einsum("pn,knd->kpd", inverse, b.to(inverse.dtype)).flatten(0, 1),
        torch.einsum("kcdn,pn->cdkp", c.to(inverse.dtype), inverse.conj()).flatten(2, 3),
    )


def log_uniform_steps(*shape: int) -> nn.Parameter:
    """The logarithm of step sizes."""
    low, high = math.log(_SMALLEST_STEP), math.log(_LARGEST_STEP)
    return nn.Parameter(torch.empty(*shape).uniform_(low, high))


def complex_normal(*shape: int) -> nn.Parameter:
    """Complex numbers of unit variance, as pairs [..., 2]."""
    return nn.Parameter(torch.randn(*shape, 2) * math.sqrt(0.5))
