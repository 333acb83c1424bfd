"""Cross-attention of the BST layer: from tokens to the context vectors of an SSM.

single head   the outputs of the token's own block, up to and including the token's own
multi head    the same, but head h reads its own filter and has its own projections
multi filter  the last outputs of the S filters in the block before; learned vectors in block 0
"""

from __future__ import annotations

from typing import Tuple

import torch
from torch import nn

from .attention import (
    INVISIBLE,
    attend,
    from_tiles,
    scale_parameter,
    scale_queries,
    to_tiles,
    unit,
)
from .config import ModelConfig
from .parts import RmsNorm, linear, project


class HeadProjection(nn.Module):
    """One matrix per head: [.., H, D] -> [.., H, dh], y_h = x_h·weight[h]ᵀ."""

    def __init__(self, heads: int, size_in: int, size_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(heads, size_out, size_in) * size_in**-0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heads, size_out, size_in = self.weight.shape
        columns = x.reshape(-1, heads, size_in).transpose(0, 1)
        y = torch.bmm(columns, self.weight.transpose(1, 2).to(x.dtype))
        return y.transpose(0, 1).reshape(*x.shape[:-1], size_out)


class CausalCross(nn.Module):
    """Single head and multi head (`cross.*`)."""

    def __init__(self, config: ModelConfig, multi_head: bool) -> None:
        super().__init__()
        self.heads = config.num_heads
        self.window = window = config.window
        self.qk_norm = config.attention.qk_norm
        self.scale = scale_parameter(config.num_heads, self.qk_norm)
        self.norm = RmsNorm(config.hidden_size, config.norm_eps)
        self.multi_head = multi_head
        width = config.hidden_size
        self.q_proj = linear(width, config.attention_size)
        if multi_head:
            self.k_proj: nn.Module = HeadProjection(config.num_heads, width, config.head_dim)
            self.v_proj: nn.Module = HeadProjection(config.num_heads, width, config.head_dim)
        else:
            self.k_proj = linear(width, config.attention_size)
            self.v_proj = linear(width, config.attention_size)
        later = torch.ones(window, window, dtype=torch.bool).triu(1)
        mask = torch.zeros(window, window).masked_fill(later, INVISIBLE)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, queries: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """queries [B, L, H, dh], l2-normalised under qk_norm; y [B, L, 1 or H, D] the SSM's
        outputs. Returns [B, L, A]."""
        r = self.norm(y)
        if self.multi_head:
            k, v = self.k_proj(r), self.v_proj(r)
        else:
            k, v = project(r[:, :, 0], [self.k_proj, self.v_proj], self.heads)
        q = scale_queries(queries, self.scale)
        k = unit(k, self.qk_norm)
        window = self.window
        out = attend(
            to_tiles(q, window), to_tiles(k, window), to_tiles(v, window),
            self.mask[None, None, None],
        )
        return from_tiles(out)


class FilterCross(nn.Module):
    """Multi filter (`cross.*`)."""

    def __init__(self, config: ModelConfig, num_states: int) -> None:
        super().__init__()
        self.heads = config.num_heads
        self.window = config.window
        self.qk_norm = config.attention.qk_norm
        self.scale = scale_parameter(config.num_heads, self.qk_norm)
        width = config.hidden_size
        self.norm = RmsNorm(width, config.norm_eps)
        self.q_proj = linear(width, config.attention_size)
        self.k_proj = linear(width, config.attention_size)
        self.v_proj = linear(width, config.attention_size)
        # Added to vectors of unit mean square; the filters tell them apart already.
        self.context_ids = nn.Parameter(torch.randn(num_states, width) * 0.1)
        self.initial_context = nn.Parameter(torch.randn(num_states, width))

    def forward(
        self,
        queries: torch.Tensor,
        ends: torch.Tensor,
        previous: torch.Tensor,
        fresh: torch.Tensor,
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """Attends within one segment of n = L / W blocks.

        queries   [B, L, H, dh]  l2-normalised under qk_norm
        ends      [B, n, S, D]   the SSM's outputs at the last token of every block
        previous  [B, S, D]      those of the block before the segment; not read in fresh rows
        fresh     [B]            the row starts a document
        Returns [B, L, A] and `previous` for the next segment, detached.
        """
        first = torch.where(fresh[:, None, None], self.initial_context, previous)
        contexts = torch.cat([first.unsqueeze(1), ends[:, :-1]], dim=1)           # [B, n, S, D]
        r = self.norm(contexts) + self.context_ids
        k, v = project(r.flatten(1, 2), [self.k_proj, self.v_proj], self.heads)
        states = contexts.shape[2]
        q = to_tiles(scale_queries(queries, self.scale), self.window)
        out = attend(q, to_tiles(unit(k, self.qk_norm), states), to_tiles(v, states))
        return from_tiles(out), ends[:, -1].detach()
