"""The Block-Recurrent Transformer's layer, the baseline that BST is measured against.

S recurrent states stand for the context vectors. Every token of a block attends to the states as
they were before the block, without a mask. A completed block updates them:

  ns      = rms(s; state.norm) + state.ids
  r_self  = attention from ns to ns
  r_cross = attention from ns to the tokens of the block and of the block before it
  z       = concat(r_self, r_cross)·Wo
  s       = s ⊙ g + z ⊙ (1 - g),   g = σ(gate_bias)

The blocks of a segment are a loop; gradients flow through it and stop at the segment's start. What
depends on tokens alone, and the tokens' attention to all blocks' states, is batched.
"""

from __future__ import annotations

from typing import List, Optional, Sequence, Tuple

import torch
from torch import nn

from .attention import (
    INVISIBLE,
    Segment,
    attend,
    from_tiles,
    scale_parameter,
    scale_queries,
    to_tiles,
    unit,
    with_previous,
)
from .config import LayerConfig, ModelConfig
from .layer import LayerState, TransformerLayer
from .parts import RmsNorm, linear, project

# Blocks after which a state has faded to 1/e: spread over the features between these bounds.
_SHORTEST_MEMORY = 1.0
_LONGEST_MEMORY = 32.0


class _Cross(nn.Module):
    """The tokens' queries to the states (`cross.*`)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.q_proj = linear(config.hidden_size, config.attention_size)
        self.scale = scale_parameter(config.num_heads, config.attention.qk_norm)


class RecurrentState(nn.Module):
    """The states' parameters, and their update by one block (`state.*`)."""

    def __init__(self, config: ModelConfig, num_states: int) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads = config.num_heads
        self.qk_norm = config.attention.qk_norm
        self.norm = RmsNorm(width, config.norm_eps)
        # Ids tell the states apart from the first step on, as in the Block-Recurrent Transformer's
        # code, where initial states are small.
        self.ids = nn.Parameter(torch.randn(num_states, width))
        self.initial = nn.Parameter(torch.randn(num_states, width) * 0.1)
        self.q_proj = linear(width, config.attention_size)
        self.k_proj = linear(width, config.attention_size)
        self.v_proj = linear(width, config.attention_size)
        self.cross_q_proj = linear(width, config.attention_size)
        self.o_proj = linear(2 * config.attention_size, width)
        self.scale = scale_parameter(config.num_heads, self.qk_norm)
        self.cross_scale = scale_parameter(config.num_heads, self.qk_norm)
        blocks = _SHORTEST_MEMORY * (_LONGEST_MEMORY / _SHORTEST_MEMORY) ** torch.rand(width)
        self.gate_bias = nn.Parameter(torch.logit(torch.exp(-1.0 / blocks)))

    def read(self, s: torch.Tensor) -> List[torch.Tensor]:
        """Keys, values, queries to themselves and queries to tokens, [B, S, H, dh] each."""
        ns = self.norm(s) + self.ids
        projections = [self.k_proj, self.v_proj, self.q_proj, self.cross_q_proj]
        k, v, q, qc = project(ns, projections, self.heads)
        q = scale_queries(unit(q, self.qk_norm), self.scale)
        qc = scale_queries(unit(qc, self.qk_norm), self.cross_scale)
        return [unit(k, self.qk_norm), v, q, qc]

    def update(
        self,
        s: torch.Tensor,
        reads: Sequence[torch.Tensor],
        keys: torch.Tensor,
        values: torch.Tensor,
        bias: Optional[torch.Tensor],
    ) -> torch.Tensor:
        """The states behind a block.

        s [B, S, D]; reads, see `read`; keys and values [B, 1, H, 2W, dh] of the tokens of the
        block before and of the block; bias [B, 1, 1, 1, 2W] masks tokens that do not exist.
        """
        count = s.shape[1]
        k, v, q, qc = (to_tiles(r, count) for r in reads)
        to_self = from_tiles(attend(q, k, v))
        to_tokens = from_tiles(attend(qc, keys, values, bias))
        z = self.o_proj(torch.cat([to_self, to_tokens], dim=-1)).float()
        gate = torch.sigmoid(self.gate_bias)
        return torch.lerp(z, s, gate)


class BrectLayer(TransformerLayer):
    """Behind the ring the state holds the recurrent states [B, S, D]."""

    halves = 2

    def __init__(self, config: ModelConfig, layer: LayerConfig) -> None:
        super().__init__(config)
        assert layer.num_states is not None
        self.window = config.window
        self.prefix_masked = config.attention.empty_prefix == "masked"
        self.cross = _Cross(config)
        self.state = RecurrentState(config, layer.num_states)

    def cross_projection(self) -> Sequence[nn.Linear]:
        return (self.cross.q_proj,)

    def look_beyond(
        self,
        x: torch.Tensor,
        queries: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        state: Optional[LayerState],
        segment: Segment,
    ) -> Tuple[torch.Tensor, LayerState]:
        window = self.window
        s = self.state.initial.expand(x.shape[0], -1, -1)
        ring = (torch.zeros_like(k[:, :window]), torch.zeros_like(v[:, :window]))
        if state is not None:
            ring = (state[0].to(k.dtype), state[1].to(v.dtype))
            s = torch.where(segment.fresh[:, None, None], s, state[2])
        keys = with_previous(to_tiles(torch.cat([ring[0], k], dim=1), window), 1)
        values = with_previous(to_tiles(torch.cat([ring[1], v], dim=1), window), 1)
        bias: Optional[torch.Tensor] = None
        if segment.any_fresh and self.prefix_masked:
            missing = torch.arange(2 * window, device=x.device) < window
            missing = segment.fresh[:, None] & missing                            # [B, 2W]
            bias = torch.zeros(missing.shape, device=x.device).masked_fill(missing, INVISIBLE)
            bias = bias[:, None, None, None]
        state_keys: List[torch.Tensor] = []
        state_values: List[torch.Tensor] = []
        for block in range(keys.shape[1]):
            reads = self.state.read(s)
            state_keys.append(reads[0])
            state_values.append(reads[1])
            own = slice(block, block + 1)
            s = self.state.update(s, reads, keys[:, own], values[:, own], bias)
            bias = None
        out = attend(
            to_tiles(scale_queries(queries, self.cross.scale), window),
            torch.stack(state_keys, dim=1).transpose(2, 3),
            torch.stack(state_values, dim=1).transpose(2, 3),
        )
        return from_tiles(out), (s.detach(),)
