"""The transformer layer, which is also the local half of the BST and BRecT layers.

  n = rms(x; attn_norm);  h = x + heads·Wo;  y = h + FFN(rms(h; ffn_norm))

`heads` are those of the window attention, followed in BST and BRecT layers by as many heads that
look at a context beyond the window.
"""

from __future__ import annotations

from typing import Optional, Sequence, Tuple

import torch
from torch import nn

from .attention import LocalAttention, Segment, unit
from .config import ModelConfig
from .parts import FeedForward, RmsNorm, linear, project

# What a layer remembers of a document between segments: tensors whose first dimension is the row.
# All zeros at the start of a document.
LayerState = Tuple[torch.Tensor, ...]


class Attention(LocalAttention):
    """Window attention with its projections, named as in the checkpoint (`attn.*`)."""

    def __init__(self, config: ModelConfig, halves: int) -> None:
        super().__init__(config.num_heads, config.head_dim, config.window, config.attention)
        self.q_proj = linear(config.hidden_size, config.attention_size)
        self.k_proj = linear(config.hidden_size, config.attention_size)
        self.v_proj = linear(config.hidden_size, config.attention_size)
        self.o_proj = linear(halves * config.attention_size, config.hidden_size)


class TransformerLayer(nn.Module):
    """Subclasses add a second half by `cross_projection` and `look_beyond`."""

    # Whether Wo reads a second set of heads.
    halves = 1

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.num_heads
        self.qk_norm = config.attention.qk_norm
        self.attn_norm = RmsNorm(config.hidden_size, config.norm_eps)
        self.attn = Attention(config, self.halves)
        self.ffn_norm = RmsNorm(config.hidden_size, config.norm_eps)
        self.ffn = FeedForward(config)

    def initialise_outputs(self, depth: float) -> None:
        """Makes the layer's outputs 1/depth as large, and silences the second half.

        A BST or BRecT therefore computes at step 0 what the transformer with the same weights
        computes.
        """
        with torch.no_grad():
            self.attn.o_proj.weight.div_(depth)
            self.ffn.down_proj.weight.div_(depth)
            if self.halves == 2:
                # Fan-in of the half that is alive, and silence for the other.
                self.attn.o_proj.weight.mul_(2.0**0.5)
                self.attn.o_proj.weight[:, self.attn.o_proj.in_features // 2 :] = 0.0

    def cross_projection(self) -> Sequence[nn.Linear]:
        """The projection of the second half's queries, if there is one."""
        return ()

    def look_beyond(
        self,
        x: torch.Tensor,
        queries: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        state: Optional[LayerState],
        segment: Segment,
    ) -> Tuple[torch.Tensor, LayerState]:
        """The second half's heads [B, L, A], and its state behind the segment.

        x        [B, L, D]      the layer's input
        queries  [B, L, H, dh]  l2-normalised under qk_norm, not scaled; k and v alike, the window
                                attention's keys before rotation and its values
        state    what this function returned for the previous segment, behind the two ring tensors
        """
        raise NotImplementedError

    def forward(
        self, x: torch.Tensor, state: Optional[LayerState], segment: Segment
    ) -> Tuple[torch.Tensor, LayerState]:
        """x [B, L, D], L a multiple of W; see LanguageModel.hidden."""
        attn = self.attn
        projections = [attn.q_proj, attn.k_proj, attn.v_proj, *self.cross_projection()]
        q, k, v, *cross = project(self.attn_norm(x), projections, self.heads)
        q, k = unit(q, self.qk_norm), unit(k, self.qk_norm)
        out, ring = attn(q, k, v, None if state is None else (state[0], state[1]), segment)
        after: LayerState = ring
        if cross:
            queries = unit(cross[0], self.qk_norm)
            beyond, rest = self.look_beyond(x, queries, k, v, state, segment)
            out = torch.cat([out, beyond], dim=-1)
            after = (*ring, *rest)
        h = x + attn.o_proj(out)
        return h + self.ffn(self.ffn_norm(h)), after
