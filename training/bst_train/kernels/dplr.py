"""The S4 kernel: a diagonal-plus-low-rank state matrix, discretised by the bilinear rule.

On M stored modes and their conjugates A = Λ - p pᴴ. For the real vector z = [Re x; Im x] of the M
stored modes that is the N x N matrix, N = 2M,

  A = [[Re Λ, -Im Λ], [Im Λ, Re Λ]] - 2 P Pᵀ,   P = [Re p; Im p],   B = [Re b; Im b]
  y = C z + d u,                               C = 2 [Re c, -Im c]
  Ā = (I - Δ/2 A)⁻¹ (I + Δ/2 A),  B̄ = (I - Δ/2 A)⁻¹ Δ B

A's symmetric part is negative semidefinite, hence |Ā| <= 1 in the Euclidean norm and rounding
errors never grow: powers of Ā need no eigenvectors (which would be hopelessly conditioned) and no
Cauchy kernel. K[l] = C Ā^l B̄ comes from two Krylov sequences, Ā^r B̄ for r < T and C Ā^{qT} for
q < Q, made by doubling: from n columns and Āⁿ the next n are one product.
"""

from __future__ import annotations

from typing import List, Optional, Tuple

import torch
from torch import nn

from ..config import SsmConfig
from . import init
from .convolution import convolve
from .diagonal import tile_length


class S4(nn.Module):
    """The state is z, [B, C, D, N]."""

    def __init__(self, filters: int, features: int, config: SsmConfig) -> None:
        super().__init__()
        assert config.state_size is not None
        shape = (filters, features)
        modes = config.state_size // 2
        eigenvalues, p, b, _ = init.legs(config.state_size)
        self.log_dt = init.log_uniform_steps(*shape)                              # [C, D]
        self.log_neg_a_real = nn.Parameter(torch.log(-eigenvalues.real).float().repeat(*shape, 1))
        self.a_imag = nn.Parameter(eigenvalues.imag.float().repeat(*shape, 1))    # [C, D, M]
        self.p = nn.Parameter(torch.view_as_real(p).float().repeat(*shape, 1, 1))
        b = init.clipped_b(b)
        self.b = nn.Parameter(torch.view_as_real(b).float().repeat(*shape, 1, 1))
        self.c = init.complex_normal(*shape, modes)                               # [C, D, M, 2]
        self.d = nn.Parameter(torch.randn(*shape))

    def _discretize(self) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Ā [CD, N, N], B̄ [CD, N, 1] and C [CD, 1, N]."""
        dt = torch.exp(self.log_dt).reshape(-1, 1, 1)
        real = torch.diag_embed(-torch.exp(self.log_neg_a_real).flatten(0, 1))
        imag = torch.diag_embed(self.a_imag.flatten(0, 1))
        diagonal = torch.cat(
            [torch.cat([real, -imag], dim=2), torch.cat([imag, real], dim=2)], dim=1
        )
        p, b = (_stack_parts(x).unsqueeze(-1) for x in (self.p, self.b))          # [CD, N, 1]
        half = 0.5 * dt * (diagonal - 2.0 * torch.bmm(p, p.transpose(1, 2)))
        eye = torch.eye(half.shape[-1], device=half.device)
        solved = torch.linalg.solve(eye - half, torch.cat([eye + half, dt * b], dim=2))
        c = 2.0 * _stack_parts(self.c * self.c.new_tensor([1.0, -1.0])).unsqueeze(1)
        return solved[:, :, :-1], solved[:, :, -1:], c

    def forward(
        self, u: torch.Tensor, state: Optional[torch.Tensor]
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """See the package."""
        rows, length, features = u.shape
        filters = self.d.shape[0]
        a_bar, b_bar, c = self._discretize()
        tile = tile_length(length)
        tiles = -(-length // tile)
        starts = b_bar
        if state is not None:
            x = state.reshape(rows, filters * features, -1).permute(1, 2, 0)      # [CD, N, B]
            starts = torch.cat([b_bar, torch.bmm(a_bar, x)], dim=2)
        columns, tile_power = _krylov(a_bar, starts, tile)                        # [CD, N, T(1+B)]
        readout, _ = _krylov(tile_power.transpose(1, 2), c.transpose(1, 2), tiles)
        series = torch.bmm(readout.transpose(1, 2), columns)                      # [CD, Q, T(1+B)]
        series = series.reshape(filters, features, tiles, tile, starts.shape[2])
        series = series.flatten(2, 3)[:, :, :length].permute(3, 0, 1, 2)
        channels_first = u.transpose(1, 2)
        y = convolve(channels_first, series[0])                                   # [B, C, D, L]
        if state is not None:
            y = y + series[1:]
        y = y.permute(0, 3, 1, 2) + self.d * u.unsqueeze(2)
        with torch.no_grad():
            responses = columns.reshape(*columns.shape[:2], tile, -1)[..., 0]
            # Zeros in front change nothing, and make the tiles end where the segment ends.
            padding = tiles * tile - length
            inputs = _tile_inputs(nn.functional.pad(channels_first, (padding, 0)), responses)
            x = inputs.new_zeros(*inputs.shape[:2], rows)
            if state is not None:
                # The first tile is `padding` tokens short, so less of the state decays.
                x = state.reshape(rows, filters * features, -1).permute(1, 2, 0)
                x = torch.bmm(torch.linalg.matrix_power(a_bar, tile - padding), x)
            for position in range(tiles):
                if position > 0:
                    x = torch.bmm(tile_power, x)
                x = x + inputs[..., position]
        after = x.permute(2, 0, 1).reshape(rows, filters, features, -1)
        return y, after.contiguous()

    def block_ends(
        self, u: torch.Tensor, state: Optional[torch.Tensor], window: int
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """See the package. The state is stepped from block end to block end."""
        rows, _, features = u.shape
        filters = self.d.shape[0]
        a_bar, b_bar, c = self._discretize()
        columns, power = _krylov(a_bar, b_bar, window)                            # [CD, N, W]
        inputs = _tile_inputs(u.transpose(1, 2), columns)                         # [CD, N, B, n]
        x = inputs.new_zeros(*inputs.shape[:2], rows)
        if state is not None:
            x = state.reshape(rows, filters * features, -1).permute(1, 2, 0)
        states: List[torch.Tensor] = []
        for block in range(inputs.shape[-1]):
            x = torch.baddbmm(inputs[..., block], power, x)
            states.append(x)
        stacked = torch.stack(states, dim=-1).flatten(2)                          # [CD, N, Bn]
        y = torch.bmm(c, stacked).reshape(filters, features, rows, -1).permute(2, 3, 0, 1)
        after = x.detach().permute(2, 0, 1).reshape(rows, filters, features, -1)
        return y + self.d * u[:, window - 1 :: window].unsqueeze(2), after.contiguous()


def _stack_parts(pairs: torch.Tensor) -> torch.Tensor:
    """[C, D, M, 2] -> [CD, 2M]: all real parts, then all imaginary parts."""
    return pairs.flatten(0, 1).transpose(1, 2).flatten(1)


def _krylov(
    matrix: torch.Tensor, start: torch.Tensor, count: int
) -> Tuple[torch.Tensor, torch.Tensor]:
    """([start, matrix start, .., matrix^(count-1) start] [F, N, count R], matrix^count).

    matrix [F, N, N], start [F, N, R]. `count` need not be a power of two.
    """
    columns, power, width = start, matrix, start.shape[2]
    have = 1
    while have < count:
        columns = torch.cat([columns, torch.bmm(power, columns)], dim=2)
        have *= 2
        power = torch.bmm(power, power)
    if have > count:
        columns = columns[:, :, : count * width]
        power = torch.linalg.matrix_power(matrix, count)
    return columns, power


def _tile_inputs(u: torch.Tensor, responses: torch.Tensor) -> torch.Tensor:
    """Σ_r Ā^{T-1-r} B̄ u[qT + r] for every tile.

    u [B, D, Q T], responses [C D, N, T] = Ā^r B̄; returns [C D, N, B, Q].
    """
    rows, features, length = u.shape
    size, tile = responses.shape[1:]
    tiled = u.transpose(0, 1).reshape(features, -1, tile).transpose(1, 2)         # [D, T, BQ]
    by_feature = responses.flip(2).reshape(-1, features, size, tile).transpose(0, 1)
    sums = torch.bmm(by_feature.flatten(1, 2), tiled)                             # [D, CN, BQ]
    sums = sums.reshape(features, -1, size, rows, length // tile).transpose(0, 1)
    return sums.flatten(0, 1)
