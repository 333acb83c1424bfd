"""The GSS layer (Gated State Spaces, arXiv 2206.13947), without attention and feed-forward network.

  n = rms(x; gss.norm)   u = gelu(n·Wu)   v = gelu(n·Wv)   y = x + ((SSM(v)·Wgate) ⊙ u)·Wout
"""

from __future__ import annotations

from typing import Optional, Tuple

import torch
from torch import nn
from torch.nn import functional

from .attention import Segment
from .config import LayerConfig, ModelConfig
from .kernels import SsmOptions, make_kernel
from .layer import LayerState
from .parts import RmsNorm, linear


class _Gss(nn.Module):
    """Norm and projections, named as in the checkpoint (`gss.*`)."""

    def __init__(self, config: ModelConfig, layer: LayerConfig) -> None:
        super().__init__()
        assert layer.inner_size is not None and layer.ssm_size is not None
        self.norm = RmsNorm(config.hidden_size, config.norm_eps)
        self.u_proj = linear(config.hidden_size, layer.inner_size)
        self.v_proj = linear(config.hidden_size, layer.ssm_size)
        self.gate_proj = linear(layer.ssm_size, layer.inner_size)
        self.out_proj = linear(layer.inner_size, config.hidden_size)


class GssLayer(nn.Module):
    """The state holds the SSM's."""

    def __init__(self, config: ModelConfig, layer: LayerConfig, options: SsmOptions) -> None:
        super().__init__()
        assert layer.ssm is not None and layer.ssm_size is not None
        self.gss = _Gss(config, layer)
        self.ssm = make_kernel(layer.ssm, 1, layer.ssm_size, options)

    def initialise_outputs(self, depth: float) -> None:
        """Makes the layer's output 1/depth as large."""
        with torch.no_grad():
            self.gss.out_proj.weight.div_(depth)

    def forward(
        self, x: torch.Tensor, state: Optional[LayerState], segment: Segment
    ) -> Tuple[torch.Tensor, LayerState]:
        """x [B, L, D], L a multiple of W; see LanguageModel.hidden."""
        gss = self.gss
        n = gss.norm(x)
        u = functional.gelu(gss.u_proj(n))
        v = functional.gelu(gss.v_proj(n))
        with torch.autocast(device_type=x.device.type, enabled=False):
            s, after = self.ssm(v.float(), None if state is None else state[0])
        return x + gss.out_proj(gss.gate_proj(s[:, :, 0]) * u), (after,)
