"""The BST layer: tokens attend to their window, and to context vectors made by an SSM."""

from __future__ import annotations

from typing import Optional, Sequence, Tuple

import torch
from torch import nn

from .attention import Segment
from .config import LayerConfig, ModelConfig
from .contexts import CausalCross, FilterCross
from .kernels import SsmOptions, make_kernel
from .layer import LayerState, TransformerLayer
from .parts import RmsNorm


class BstLayer(TransformerLayer):
    """Behind the ring the state holds the SSM's, and for multi filter the last block's outputs."""

    halves = 2

    def __init__(self, config: ModelConfig, layer: LayerConfig, options: SsmOptions) -> None:
        super().__init__(config)
        assert layer.ssm is not None
        self.window = config.window
        width = config.hidden_size
        filters = layer.filters(config.num_heads)
        self.ssm_norm = RmsNorm(width, config.norm_eps)
        self.ssm = make_kernel(layer.ssm, filters, width, options)
        self.multi_filter = layer.context == "multi_filter"
        if self.multi_filter:
            self.cross: nn.Module = FilterCross(config, filters)
        else:
            self.cross = CausalCross(config, layer.context == "multi_head")

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
        ssm_state = None if state is None else state[2]
        with torch.autocast(device_type=x.device.type, enabled=False):
            u = self.ssm_norm(x)
            if not self.multi_filter:
                y, after = self.ssm(u, ssm_state)
            else:
                ends, after = self.ssm.block_ends(u, ssm_state, self.window)
        if not self.multi_filter:
            return self.cross(queries, y), (after,)
        previous = torch.zeros_like(ends[:, 0]) if state is None else state[3]
        out, last = self.cross(queries, ends, previous, segment.fresh)
        return out, (after, last)
