"""Diagonal state-space kernels: S4D and DSS.

Per filter and feature, with complex modes a = -exp(log_neg_a_real) + i a_imag and the step size
Δ = exp(log_dt):

  x_t = Ā ⊙ x_{t-1} + B̄ u_t        y_t = 2 Re Σ_m c_m x_t,m + d u_t        x_{-1} = 0
  zero-order hold   Ā = e^{Δa}                    B̄ = b (e^{Δa} - 1) / a
  bilinear          Ā = (1 + Δa/2) / (1 - Δa/2)   B̄ = b Δ / (1 - Δa/2)

S4D has M = N / 2 modes that stand for conjugate pairs, hence 2 Re. DSS has N modes, shared by all
filters and features, and Re alone; its w takes the place of c.

Over a segment that starts with state x the same function is

  y_t = Σ_{s<=t} K[t-s] u_s + 2 Re Σ_m c_m Ā^{t+1} x_m + d u_t,   K[l] = 2 Re Σ_m c_m B̄_m Ā^l

The convolution runs by FFT. Powers Ā^l are never made for all l at once ([D, M, L] would be the
largest tensor of the whole model): with l = qT + r they factor into Ā^{qT} and Ā^r, and the sum
over modes becomes a matrix product. Complex numbers are kept as trailing pairs or as separate real
and imaginary parts, because the optimiser's moments must be real and old PyTorch lacks complex
matrix products with gradients on some paths.
"""

from __future__ import annotations

import math
from typing import List, Optional, Tuple

import torch
from torch import nn

from ..config import SsmConfig
from . import init
from .convolution import convolve


class DiagonalSsm(nn.Module):
    """What S4D and DSS share: everything behind the discretised modes.

    The state is [B, D, C * M, 2], all filters' modes of a feature together, because they have the
    same input.
    """

    # 2 where a mode stands for a conjugate pair.
    readout = 2.0

    def __init__(self, filters: int, features: int) -> None:
        super().__init__()
        self.d = nn.Parameter(torch.randn(filters, features))                     # [C, D]

    def modes(self) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(log Ā, B̄, c), complex [C, D, M]."""
        raise NotImplementedError

    def forward(
        self, u: torch.Tensor, state: Optional[torch.Tensor]
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """See the package."""
        rows, length, features = u.shape
        log_a_bar, b_bar, c = self.modes()
        filters, _, modes = c.shape
        coefficients = (self.readout * c * b_bar).unsqueeze(0)                    # [1, C, D, M]
        if state is not None:
            x = torch.view_as_complex(state).reshape(rows, features, filters, modes)
            response = self.readout * c * torch.exp(log_a_bar)
            coefficients = torch.cat([coefficients, response * x.transpose(1, 2)])
        tile = tile_length(length)
        tiles = -(-length // tile)
        steps = torch.arange(max(tile, tiles), device=u.device)
        flat = log_a_bar.reshape(filters * features, modes)
        fine = _powers(flat, steps[:tile])                                        # [CD, M, T]
        coarse = _powers(flat, tile * steps[:tiles])                              # [CD, M, Q]
        series = _exponential_sums(coefficients.flatten(1, 2), fine, coarse)[..., :length]
        series = series.reshape(-1, filters, features, length)                    # [1 (+ B), ...]
        channels_first = u.transpose(1, 2)                                        # [B, D, L]
        y = convolve(channels_first, series[0])                                   # [B, C, D, L]
        if state is not None:
            y = y + series[1:]
        y = y.permute(0, 3, 1, 2) + self.d * u.unsqueeze(2)
        with torch.no_grad():
            fine, coarse = (
                p.reshape(filters, features, modes, -1).transpose(0, 1).flatten(1, 2)
                for p in (fine, coarse)
            )
            inputs = _tile_inputs(channels_first, fine, tiles)                    # [D, B, Q, CM]
            weights = coarse.flip(-1).transpose(1, 2).unsqueeze(1)                # [D, 1, Q, CM]
            after = (inputs * weights).sum(2).transpose(0, 1) * _per_feature(b_bar)
            if state is not None:
                decay = torch.exp(_per_feature(log_a_bar) * length)
                after = after + decay * torch.view_as_complex(state)
        return y, torch.view_as_real(after)

    def block_ends(
        self, u: torch.Tensor, state: Optional[torch.Tensor], window: int
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """See the package. The state is stepped from block end to block end."""
        rows, length, features = u.shape
        log_a_bar, b_bar, c = self.modes()
        filters, _, modes = c.shape
        blocks = length // window
        z = _per_feature(log_a_bar)                                               # [D, CM]
        fine = _powers(z, torch.arange(window, device=u.device))
        inputs = _tile_inputs(u.transpose(1, 2), fine, blocks) * _per_feature(b_bar)[:, None, None]
        decay = torch.exp(z * window)[:, None]
        x = inputs.new_zeros(features, rows, filters * modes)
        if state is not None:
            x = torch.view_as_complex(state).transpose(0, 1)
        states: List[torch.Tensor] = []
        for block in range(blocks):
            x = torch.addcmul(inputs[:, :, block], decay, x)
            states.append(x)
        stacked = torch.stack(states, dim=2)                                      # [D, B, n, CM]
        stacked = stacked.reshape(features, rows, blocks, filters, modes)
        weights = c.transpose(0, 1)[:, None, None]                                # [D, 1, 1, C, M]
        # Re (c x) from real numbers: half the work of a complex product.
        y = self.readout * (stacked.real * weights.real - stacked.imag * weights.imag).sum(-1)
        y = y.permute(1, 2, 3, 0) + self.d * u[:, window - 1 :: window].unsqueeze(2)
        return y, torch.view_as_real(x.detach().transpose(0, 1).contiguous())


class S4d(DiagonalSsm):
    """M complex modes per filter and feature, each standing for a conjugate pair."""

    def __init__(
        self, filters: int, features: int, config: SsmConfig, initial: str, with_b: bool
    ) -> None:
        super().__init__(filters, features)
        assert config.state_size is not None
        self.discretization = config.discretization
        shape = (filters, features)
        modes = config.state_size // 2
        a, b = init.s4d_modes(initial, config.state_size)
        self.log_dt = init.log_uniform_steps(*shape)                              # [C, D]
        self.log_neg_a_real = nn.Parameter(torch.log(-a.real).float().repeat(*shape, 1))
        self.a_imag = nn.Parameter(a.imag.float().repeat(*shape, 1))              # [C, D, M]
        self.c = init.complex_normal(*shape, modes)                               # [C, D, M, 2]
        self.b: Optional[nn.Parameter] = None
        if b is None and with_b:
            b = torch.ones_like(a)
        if b is not None:
            self.b = nn.Parameter(torch.view_as_real(b).float().repeat(*shape, 1, 1))

    def modes(self) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        dt = torch.exp(self.log_dt).unsqueeze(-1)
        a = torch.complex(-torch.exp(self.log_neg_a_real), self.a_imag)
        log_a_bar, b_bar = discretize(a, dt, self.discretization)
        if self.b is not None:
            b_bar = b_bar * torch.complex(self.b[..., 0], self.b[..., 1])
        return log_a_bar, b_bar, torch.complex(self.c[..., 0], self.c[..., 1])


class Dss(DiagonalSsm):
    """N complex modes for all, read out by the real part; zero-order hold."""

    readout = 1.0

    def __init__(self, filters: int, features: int, config: SsmConfig, initial: str) -> None:
        super().__init__(filters, features)
        assert config.state_size is not None
        modes = config.state_size
        a, log_dt = init.dss_modes(initial, modes), init.log_uniform_steps(filters, features)
        if initial == "gss":
            log_dt = nn.Parameter(torch.zeros(filters, features))
        self.log_neg_a_real = nn.Parameter(torch.log(-a.real).float())            # [N]
        self.a_imag = nn.Parameter(a.imag.float())                                # [N]
        self.log_dt = log_dt                                                      # [C, D]
        self.w = init.complex_normal(filters, features, modes)                    # [C, D, N, 2]

    def modes(self) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        dt = torch.exp(self.log_dt).unsqueeze(-1)
        a = torch.complex(-torch.exp(self.log_neg_a_real), self.a_imag)
        log_a_bar, b_bar = discretize(a, dt, "zoh")
        return log_a_bar, b_bar, torch.complex(self.w[..., 0], self.w[..., 1])


def discretize(
    a: torch.Tensor, dt: torch.Tensor, method: Optional[str]
) -> Tuple[torch.Tensor, torch.Tensor]:
    """(log Ā, B̄ / b) of complex modes a and steps dt that broadcast against each other."""
    half = a * (dt * 0.5)
    if method == "bilinear":
        return torch.log((1.0 + half) / (1.0 - half)), dt / (1.0 - half)
    # e^z - 1 = 2 e^{z/2} sinh(z/2): unlike exp(z) - 1 it does not cancel for small z. At a = 0
    # the limit is dt.
    zero = a == 0
    b_bar = 2.0 * torch.exp(half) * _sinh(half) / torch.where(zero, torch.ones_like(a), a)
    return 2.0 * half, torch.where(zero, torch.complex(dt, torch.zeros_like(dt)), b_bar)


def _sinh(z: torch.Tensor) -> torch.Tensor:
    """Complex sinh from real functions: accurate near 0, and with a gradient everywhere."""
    return torch.complex(
        torch.sinh(z.real) * torch.cos(z.imag), torch.cosh(z.real) * torch.sin(z.imag)
    )


def _per_feature(x: torch.Tensor) -> torch.Tensor:
    """[C, D, M] -> [D, C * M]."""
    return x.transpose(0, 1).flatten(1)


def tile_length(length: int) -> int:
    """T of the two-level form: a power of two near the square root of `length`."""
    return 1 << max(0, round(math.log2(max(1, length)) / 2))


def _powers(log_a_bar: torch.Tensor, exponents: torch.Tensor) -> torch.Tensor:
    """Ā^l for every l in `exponents` [T]: complex [..., T]."""
    return torch.exp(log_a_bar.unsqueeze(-1) * exponents)


def _exponential_sums(
    coefficients: torch.Tensor, fine: torch.Tensor, coarse: torch.Tensor
) -> torch.Tensor:
    """Re Σ_m coefficients[r, f, m] Ā[f, m]^l for l = 0 .. Q T - 1.

    coefficients [R, F, M] complex, fine [F, M, T] = Ā^r, coarse [F, M, Q] = Ā^{qT}; returns
    [R, F, Q T].
    """
    rows, features, modes = coefficients.shape
    tile, tiles = fine.shape[-1], coarse.shape[-1]
    scaled = coefficients.permute(1, 0, 2).unsqueeze(2) * coarse.transpose(1, 2).unsqueeze(1)
    left = torch.cat([scaled.real, -scaled.imag], dim=-1).reshape(features, rows * tiles, 2 * modes)
    right = torch.cat([fine.real, fine.imag], dim=1)                              # [F, 2M, T]
    sums = torch.bmm(left, right)                                                 # [F, R*Q, T]
    return sums.reshape(features, rows, tiles * tile).transpose(0, 1)


def _tile_inputs(u: torch.Tensor, fine: torch.Tensor, tiles: int) -> torch.Tensor:
    """Σ_r Ā^{T-1-r} u[qT + r] for every tile, the last tile ending where u ends.

    u [B, D, L], fine [D, M, T] = Ā^r; returns complex [D, B, Q, M].
    """
    rows, features, length = u.shape
    modes, tile = fine.shape[1:]
    # Zeros in front change nothing.
    padded = nn.functional.pad(u, (tiles * tile - length, 0))
    tiled = padded.transpose(0, 1).reshape(features, rows * tiles, tile)
    right = torch.cat([fine.real, fine.imag], dim=1).flip(-1).transpose(1, 2)     # [D, T, 2M]
    sums = torch.bmm(tiled, right).reshape(features, rows, tiles, 2 * modes)
    return torch.complex(sums[..., :modes], sums[..., modes:])
