"""The language model: x₀ = embed[token];  layers;  logits = rms(x; final_norm) · Eᵀ · logit_scale.

Nothing has a bias. Linear weights are [out, in]. Attribute names are the tensor names of the
checkpoint format, so `state_dict()` is the checkpoint, but for explicit filters (see checkpoint).

A model is a function of a segment and the state before it, and returns the state behind it:
segments may be any number of whole blocks long, the last one of a document any length. Cutting a
document into segments does not change its logits; gradients stop at the cuts.
"""

from __future__ import annotations

import math
from typing import List, Optional, Sequence, Tuple

import torch
from torch import nn
from torch.nn import functional

from .attention import Segment, rope_tables
from .brect import BrectLayer
from .bst import BstLayer
from .config import LayerConfig, ModelConfig
from .gss import GssLayer
from .kernels import S5, SsmOptions
from .layer import LayerState, TransformerLayer
from .parts import RmsNorm, linear

# Standard deviation of a new embedding.
EMBED_STD = 0.1

ModelState = List[LayerState]


def stack_states(
    states: Sequence[Optional[ModelState]], template: ModelState
) -> ModelState:
    """One state of len(states) rows from single-row states; None, a fresh document, gives zeros."""
    stacked: ModelState = []
    for index, like in enumerate(template):
        columns = []
        for position, tensor in enumerate(like):
            rows = [
                torch.zeros_like(tensor[:1]) if s is None else s[index][position] for s in states
            ]
            columns.append(torch.cat(rows))
        stacked.append(tuple(columns))
    return stacked


def split_state(state: ModelState) -> List[ModelState]:
    """The rows of a state, each as a state of one row (copies, so they own their memory)."""
    rows = state[0][0].shape[0]
    return [
        [tuple(t[row : row + 1].clone() for t in layer) for layer in state] for row in range(rows)
    ]


def move_state(state: Optional[ModelState], device: torch.device) -> Optional[ModelState]:
    """The state on that device."""
    if state is None:
        return None
    return [tuple(tensor.to(device) for tensor in layer) for layer in state]


def make_layer(config: ModelConfig, layer: LayerConfig, options: SsmOptions) -> nn.Module:
    if layer.type == "bst":
        return BstLayer(config, layer, options)
    if layer.type == "brect":
        return BrectLayer(config, layer)
    if layer.type == "gss":
        return GssLayer(config, layer, options)
    return TransformerLayer(config)


class LanguageModel(nn.Module):
    """Token ids -> logits, segment by segment.

    `options` has one entry per layer, for what the configuration leaves open about SSMs.
    """

    def __init__(
        self, config: ModelConfig, options: Optional[Sequence[SsmOptions]] = None
    ) -> None:
        super().__init__()
        self.config = config
        options = options or [SsmOptions()] * len(config.layers)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            make_layer(config, layer, option) for layer, option in zip(config.layers, options)
        )
        self.final_norm = RmsNorm(config.hidden_size, config.norm_eps)
        if not config.tie_embeddings:
            self.lm_head = linear(config.hidden_size, config.vocab_size)
        nn.init.normal_(self.embed.weight, std=EMBED_STD)
        for layer in self.layers:
            layer.initialise_outputs(math.sqrt(2 * len(self.layers)))

    def output_weight(self) -> torch.Tensor:
        """E of the logits, [V, D]."""
        return self.embed.weight if self.config.tie_embeddings else self.lm_head.weight

    def _segment(self, fresh: torch.Tensor, length: int) -> Segment:
        config = self.config
        rope: Optional[Tuple[torch.Tensor, torch.Tensor]] = None
        if config.attention.position == "rope":
            cos, sin = rope_tables(
                -config.window, length, config.head_dim, config.attention.rope_theta
            )
            rope = (cos.unsqueeze(1).to(fresh.device), sin.unsqueeze(1).to(fresh.device))
        return Segment(fresh, bool(fresh.any()), rope)

    def hidden(
        self,
        tokens: torch.Tensor,
        state: Optional[ModelState] = None,
        fresh: Optional[torch.Tensor] = None,
    ) -> Tuple[torch.Tensor, ModelState]:
        """Everything but the logits: rms(x; final_norm) [B, L, D] and the state behind.

        tokens  [B, L]  integer; any L >= 1
        state   what the call for the previous segment returned, detached; None: all rows fresh
        fresh   [B] bool: the row starts a document, and its rows of `state` are zeros. Default:
                all rows when there is no state, else none.
        The returned state is valid only when L is a multiple of W.
        """
        rows, length = tokens.shape
        if fresh is None:
            fresh = torch.full((rows,), state is None, device=tokens.device)
        window = self.config.window
        padding = -length % window
        # Nothing looks ahead, so what stands behind the segment does not matter.
        x = self.embed(functional.pad(tokens, (0, padding)))
        segment = self._segment(fresh, length + padding)
        after: ModelState = []
        for index, layer in enumerate(self.layers):
            x, layer_state = layer(x, None if state is None else state[index], segment)
            after.append(layer_state)
        return self.final_norm(x[:, :length]), after

    def forward(
        self,
        tokens: torch.Tensor,
        state: Optional[ModelState] = None,
        fresh: Optional[torch.Tensor] = None,
    ) -> Tuple[torch.Tensor, ModelState]:
        """Logits [B, L, V] and the state behind the segment; arguments as in `hidden`."""
        x, after = self.hidden(tokens, state, fresh)
        logits = functional.linear(x, self.output_weight()) * self.config.logit_scale
        return logits.float(), after

    def project(self) -> None:
        """Brings the parameters back into the range that the format allows."""
        for module in self.modules():
            if isinstance(module, S5):
                module.project()

    def num_parameters(self) -> int:
        """What is trained; a checkpoint holds an explicit filter's taps instead of its function."""
        return sum(p.numel() for p in self.parameters())
