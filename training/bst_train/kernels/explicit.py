"""Explicit filters: T taps per filter and feature, free or as a function of the position.

  K[c, d, l] = gain[c, d] · exp(-δ[c, d] t_l) · (W₂ sin(ω ⊙ (W₁ sin(ω ⊙ (W₀ z_l + b₀)) + b₁)))[c, d]

with t_l = l / (T - 1) and the positional embedding z_l = [t_l, cos(f w_l), -sin(f w_l)],
w_l = 2π l / T, frequencies f evenly spaced in [1e-4, bands - 1]. This is the filter of Hyena
(arXiv 2302.10866), except for the fixed gain, which gives every filter unit energy at the start
whatever its decay. A few thousand numbers so describe millions of taps, and taps far away are
learned together with near ones.

A segment needs the T - 1 inputs before it, which are the state [B, T - 1, D].
"""

from __future__ import annotations

import math
from typing import Any, Optional, Tuple

import torch
from torch import nn
from torch.nn import functional

from .convolution import block_end_products, convolve

# Initial envelopes: the slowest filter has fallen to 1e-2 at 1.5 T, the fastest after this many
# tokens.
_DECAY_TARGET = 1e-2
_SLOWEST = 1.5
_FASTEST_TOKENS = 64


class _Decay(torch.autograd.Function):
    """x ⊙ exp(-rate l) for l = 0 .. T-1, or T-1 .. 0 when reversed: x [F, T], rate [F].

    The exponential is taken of few numbers, e^{-rate (qB + r)} = e^{-rate qB} e^{-rate r}, and the
    gradient needs few sweeps over x.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: torch.Tensor, rate: torch.Tensor, reverse: bool
    ) -> torch.Tensor:
        length = x.shape[-1]
        tile = 64
        tiles = -(-length // tile)
        l = torch.arange(tile * tiles, device=x.device, dtype=x.dtype)
        factor = rate.unsqueeze(-1)
        # Exact zeros where the envelope is below 1e-20: denormal numbers are slow.
        depth = factor * l[::tile]
        coarse = (torch.exp(-depth) * (depth < 46.0)).unsqueeze(-1)               # [F, Q, 1]
        fine = torch.exp(-factor * l[:tile]).unsqueeze(-2)                        # [F, 1, B]
        if reverse:
            envelope = (coarse.flip(1) * fine.flip(2)).flatten(1)[:, -length:]
            l = l[:length].flip(0)
        else:
            envelope = (coarse * fine).flatten(1)[:, :length]
            l = l[:length]
        y = x * envelope
        ctx.save_for_backward(envelope, y, l)
        return y

    @staticmethod
    def backward(  # type: ignore[override]
        ctx: Any, grad: torch.Tensor
    ) -> Tuple[Optional[torch.Tensor], ...]:
        envelope, y, l = ctx.saved_tensors
        return grad * envelope, -torch.mv(grad * y, l), None


class PositionalFilter(nn.Module):
    """The parametrised taps [C, D, T]."""

    def __init__(
        self,
        filters: int,
        features: int,
        length: int,
        embedding: int = 33,
        order: int = 16,
        frequency: float = 14.0,
    ) -> None:
        super().__init__()
        self.shape = (filters, features, length)
        positions = torch.arange(length, dtype=torch.float64)
        t = positions / max(1, length - 1)
        bands = (embedding - 1) // 2
        f = torch.linspace(1e-4, bands - 1, bands, dtype=torch.float64)
        angles = f * (2.0 * math.pi / length) * positions.unsqueeze(-1)           # [T, bands]
        z = torch.cat([t.unsqueeze(-1), torch.cos(angles), -torch.sin(angles)], dim=-1)
        self.register_buffer("z", z.float(), persistent=False)
        self.frequency = nn.Parameter(torch.full((order,), frequency))
        self.input = nn.Linear(embedding, order)
        self.inner = nn.Linear(order, order)
        self.output = nn.Linear(order, filters * features, bias=False)
        self.log_decay = nn.Parameter(torch.log(self._initial_decay()))           # [C, D]
        with torch.no_grad():
            energy = torch.exp(-2.0 * self._rate().unsqueeze(-1) * torch.arange(length)).sum(-1)
            # The output's variance at the start: order · 1/2 of a sine · 1/(3 order) of a weight.
            gain = torch.sqrt(6.0 / energy)
        self.register_buffer("gain", gain, persistent=False)                      # [C, D]

    def _initial_decay(self) -> torch.Tensor:
        """δ, geometric over the filters, or over the features where there is one filter only."""
        filters, features, length = self.shape
        strength = -math.log(_DECAY_TARGET)
        slow = strength / _SLOWEST
        fast = max(slow, strength * length / _FASTEST_TOKENS)
        count = filters if filters > 1 else features
        decay = slow * (fast / slow) ** torch.linspace(0.0, 1.0, count)
        return (decay.unsqueeze(-1) if filters > 1 else decay).expand(filters, features).clone()

    def _rate(self) -> torch.Tensor:
        """Decay per token, [C, D]."""
        return torch.exp(self.log_decay) / max(1, self.shape[-1] - 1)

    def _hidden(self) -> torch.Tensor:
        h = torch.sin(self.frequency * self.input(self.z))
        return torch.sin(self.frequency * self.inner(h))                          # [T, order]

    def forward(self) -> torch.Tensor:
        weight = self.output.weight * self.gain.reshape(-1, 1)
        taps: torch.Tensor = _Decay.apply(
            torch.mm(weight, self._hidden().t()), self._rate().flatten(), False
        )
        return taps.reshape(self.shape)

    def reversed_by_feature(self) -> torch.Tensor:
        """The same taps as [D, C, T], last tap first, made in that order instead of copied."""
        filters, features, length = self.shape
        weight = self.output.weight.reshape(filters, features, -1) * self.gain.unsqueeze(-1)
        taps: torch.Tensor = _Decay.apply(
            torch.mm(weight.transpose(0, 1).flatten(0, 1), self._hidden().flip(0).t()),
            self._rate().t().flatten(), True,
        )
        return taps.reshape(features, filters, length)


class ExplicitFilter(nn.Module):
    """C filters of T taps for each of D features."""

    def __init__(self, filters: int, features: int, length: int, free_taps: bool) -> None:
        super().__init__()
        self.length = length
        self.d = nn.Parameter(torch.randn(filters, features))
        if free_taps:
            # Of unit energy, as the parametrised ones.
            self.filter = nn.Parameter(torch.randn(filters, features, length) * length**-0.5)
        else:
            self.positional = PositionalFilter(filters, features, length)
        self.free_taps = free_taps

    def taps(self) -> torch.Tensor:
        """[C, D, T]"""
        taps: torch.Tensor = self.filter if self.free_taps else self.positional()
        return taps

    def _with_history(
        self, u: torch.Tensor, state: Optional[torch.Tensor]
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """The inputs from T - 1 tokens before the segment on [B, T - 1 + L, D]; the new state."""
        if state is None:
            state = u.new_zeros(u.shape[0], self.length - 1, u.shape[2])
        inputs = torch.cat([state, u], dim=1)
        return inputs, inputs[:, u.shape[1] :].detach()

    def forward(
        self, u: torch.Tensor, state: Optional[torch.Tensor]
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """See the package."""
        inputs, after = self._with_history(u, state)
        y = convolve(inputs.transpose(1, 2), self.taps(), self.length - 1)        # [B, C, D, L]
        return y.permute(0, 3, 1, 2) + self.d * u.unsqueeze(2), after

    def block_ends(
        self, u: torch.Tensor, state: Optional[torch.Tensor], window: int
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """See the package."""
        inputs, after = self._with_history(u, state)
        parts = -(-self.length // window)
        padding = parts * window - self.length
        if self.free_taps:
            weights = self.taps().flip(-1).transpose(0, 1)
        else:
            weights = self.positional.reversed_by_feature()                       # [D, C, T]
        if padding > 0:
            weights = functional.pad(weights, (padding, 0))
        weights = weights.unflatten(-1, (parts, window))
        # The first run of Q blocks ends where the first block of the segment ends.
        blocks = inputs[:, window - 1 - padding :].permute(2, 0, 1)
        blocks = blocks.unflatten(-1, (-1, window))                               # [D, B, J, W]
        y = block_end_products(blocks, weights).permute(1, 2, 3, 0)
        return y + self.d * u[:, window - 1 :: window].unsqueeze(2), after
