"""The S5 kernel: one diagonal state that all features share.

  x_t = Ā ⊙ x_{t-1} + B̄ u_t   x complex [P], P = N / 2 conjugate pairs, B̄ [P, D]
  y_t = 2 Re(c x_t) + d u_t   c [C, D, P]

The inputs are projected to the P modes by one matrix product. Each mode is then a scalar recurrence
over time, run as products with the triangular matrix of powers Ā^{i-j}: within tiles of T tokens,
and once more over the tiles. The states are read out by another product.
"""

from __future__ import annotations

from typing import Optional, Tuple

import torch
from torch import nn

from ..config import SsmConfig
from . import init
from .diagonal import discretize, tile_length

_SLOWEST_DECAY = -1e-4


class S5(nn.Module):
    """The state is x, [B, P, 2]."""

    def __init__(self, filters: int, features: int, config: SsmConfig) -> None:
        super().__init__()
        assert config.state_size is not None
        self.discretization = config.discretization
        eigenvalues, b, c = init.s5_modes(filters, features, config.state_size)
        self.lambda_real = nn.Parameter(eigenvalues.real.float().clone())         # [P]
        self.lambda_imag = nn.Parameter(eigenvalues.imag.float().clone())         # [P]
        self.log_step = init.log_uniform_steps(config.state_size // 2)            # [P]
        self.b = nn.Parameter(torch.view_as_real(b).float())                      # [P, D, 2]
        self.c = nn.Parameter(torch.view_as_real(c).float())                      # [C, D, P, 2]
        self.d = nn.Parameter(torch.randn(filters, features))                     # [C, D]

    @torch.no_grad()
    def project(self) -> None:
        """Keeps the modes decaying, after an optimiser step: growing ones are no valid model."""
        self.lambda_real.clamp_(max=_SLOWEST_DECAY)

    def _states(
        self, u: torch.Tensor, state: Optional[torch.Tensor], tile: int
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """All states as real and imaginary parts [2, P, B, L], and the last one, detached."""
        rows, length, features = u.shape
        eigenvalues = torch.complex(self.lambda_real, self.lambda_imag)
        log_a_bar, factor = discretize(eigenvalues, torch.exp(self.log_step), self.discretization)
        b_bar = torch.view_as_complex(self.b) * factor.unsqueeze(-1)              # [P, D]
        weight = torch.cat([b_bar.real, b_bar.imag])
        tiles = -(-length // tile)
        v = nn.functional.pad(u, (0, 0, 0, tiles * tile - length))
        v = torch.mm(weight, v.reshape(-1, features).t())                         # [2P, B Q T]
        v = v.reshape(2, -1, rows * tiles, tile)
        local = _scan(v, log_a_bar)
        # The tiles' own ends, scanned with the decay of a whole tile, are the carries.
        ends = local[..., -1].reshape(2, -1, rows, tiles)
        if state is not None:
            first = state.permute(2, 1, 0).unsqueeze(-1)                          # [2, P, B, 1]
            ends = torch.cat([first, ends], dim=-1)
        else:
            ends = nn.functional.pad(ends, (1, 0))
        carries = _scan(ends, log_a_bar * tile)                                   # [2, P, B, Q+1]
        steps = torch.arange(1, tile + 1, device=u.device)
        decays = torch.exp(log_a_bar.unsqueeze(-1) * steps)                       # [P, T]
        before = carries[..., :-1].flatten(2)                                     # [2, P, B Q]
        complete = local + _multiply(before.unsqueeze(-1), decays[:, None])
        complete = complete.reshape(2, -1, rows, tiles * tile)[..., :length]
        return complete, complete[..., -1].detach().permute(2, 1, 0).contiguous()

    def _read(self, states: torch.Tensor) -> torch.Tensor:
        """2 Re(c x): [2, P, B, L] -> [B, L, C, D]."""
        filters, features, modes, _ = self.c.shape
        rows, length = states.shape[2:]
        weight = 2.0 * self.c * self.c.new_tensor([1.0, -1.0])
        weight = weight.permute(3, 2, 0, 1).reshape(2 * modes, filters * features)
        y = torch.mm(states.reshape(2 * modes, -1).t(), weight)
        return y.reshape(rows, length, filters, features)

    def forward(
        self, u: torch.Tensor, state: Optional[torch.Tensor]
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """See the package."""
        states, after = self._states(u, state, tile_length(u.shape[1]))
        return self._read(states) + self.d * u.unsqueeze(2), after

    def block_ends(
        self, u: torch.Tensor, state: Optional[torch.Tensor], window: int
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """See the package."""
        states, after = self._states(u, state, tile_length(u.shape[1]))
        y = self._read(states[..., window - 1 :: window])
        return y + self.d * u[:, window - 1 :: window].unsqueeze(2), after


def _multiply(x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """Product of x, real and imaginary parts stacked [2, ..], and complex z."""
    real = x[0] * z.real - x[1] * z.imag
    return torch.stack([real, x[0] * z.imag + x[1] * z.real])


def _scan(v: torch.Tensor, log_a_bar: torch.Tensor) -> torch.Tensor:
    """x_i = Ā x_{i-1} + v_i along the last dimension, from zero.

    v [2, P, ..., T], log_a_bar complex [P]; returns the same shape as v.
    """
    size = v.shape[-1]
    steps = torch.arange(size, device=v.device)
    lag = steps - steps.unsqueeze(-1)                                             # [j, i] = i - j
    powers = torch.exp(log_a_bar[:, None, None] * lag.clamp(min=0)) * (lag >= 0)  # [P, T, T]
    # [Re, Im] @ [[Re, Im], [-Im, Re]]
    matrix = torch.cat(
        [torch.cat([powers.real, powers.imag], 2), torch.cat([-powers.imag, powers.real], 2)], 1
    )
    rows = v.flatten(2, -2)                                                       # [2, P, R, T]
    both = torch.cat([rows[0], rows[1]], dim=-1)                                  # [P, R, 2T]
    x = torch.bmm(both, matrix)
    return torch.stack([x[..., :size], x[..., size:]]).reshape(v.shape)
