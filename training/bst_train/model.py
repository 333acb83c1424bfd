"""The language model: transformer layers and Block-State Transformer layers.

  x₀ = embed[token];  layers;  logits = rms(x; final_norm) · Eᵀ · logit_scale

A BST layer is a transformer layer whose attention has a second half: queries of the tokens meet
context vectors that a state-space convolution made from the layer's input, those of the same block
up to and including the token's own. The outputs of both halves share one output projection.

Nothing has a bias. Linear weights are [out, in]. Attribute names are the tensor names of the
checkpoint format, so `state_dict()` is the checkpoint.

A model is a function of a segment and the state before it, and returns the state behind it:
segments may be any number of whole blocks long, the last one of a document any length. Cutting a
document into segments does not change its logits; gradients stop at the cuts.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, List, Optional, Sequence, Tuple

import torch
from torch import nn
from torch.nn import functional

from .attention import CrossAttention, LocalAttention, Ring, Segment, rope_tables
from .config import LayerConfig, ModelConfig
from .ssm import S4d


@dataclasses.dataclass
class LayerState:
    """What a layer remembers of a document between segments. Rows of fresh documents are zeros."""

    ring: Ring
    ssm: Optional[torch.Tensor]   # [B, D, M, 2] float32; bst layers only

    def tensors(self) -> List[torch.Tensor]:
        tensors = [self.ring.keys, self.ring.values]
        return tensors if self.ssm is None else tensors + [self.ssm]

    @staticmethod
    def from_tensors(tensors: Sequence[torch.Tensor]) -> "LayerState":
        return LayerState(
            Ring(tensors[0], tensors[1]), tensors[2] if len(tensors) == 3 else None
        )


ModelState = List[LayerState]


def stack_states(
    states: Sequence[Optional[ModelState]], template: ModelState
) -> ModelState:
    """One state of len(states) rows from single-row states; None, a fresh document, gives zeros."""
    stacked: ModelState = []
    for index, like in enumerate(template):
        columns = []
        for position, tensor in enumerate(like.tensors()):
            rows = [
                torch.zeros_like(tensor[:1]) if s is None else s[index].tensors()[position]
                for s in states
            ]
            columns.append(torch.cat(rows))
        stacked.append(LayerState.from_tensors(columns))
    return stacked


def split_state(state: ModelState) -> List[ModelState]:
    """The rows of a state, each as a state of one row (copies, so they own their memory)."""
    rows = state[0].ring.keys.shape[0]
    return [
        [
            LayerState.from_tensors([t[row : row + 1].clone() for t in layer.tensors()])
            for layer in state
        ]
        for row in range(rows)
    ]


class _Normalize(torch.autograd.Function):
    """x / sqrt(mean(x²) + eps) ⊙ g in float32, with a backward pass of few sweeps.

    Written by hand because autograd's takes 2.3 times as long (15.3 against 6.5 ms for 4,096
    tokens of width 192 on one core), which is 6 % of a training step.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> torch.Tensor:
        x = x.float()
        squares = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_()
        inverse = torch.rsqrt(squares.div_(x.shape[-1]).add_(eps))
        y = x * inverse
        ctx.save_for_backward(y, inverse, weight)
        return y * weight

    @staticmethod
    def backward(  # type: ignore[override]
        ctx: Any, grad: torch.Tensor
    ) -> Tuple[Optional[torch.Tensor], ...]:
        y, inverse, weight = ctx.saved_tensors
        product = grad * y
        grad_weight = product.reshape(-1, y.shape[-1]).sum(0)
        mean = (product @ weight).div_(y.shape[-1]).unsqueeze(-1)
        grad_x = (grad * weight).addcmul_(y, mean, value=-1.0).mul_(inverse)
        return grad_x, grad_weight, None


class RmsNorm(nn.Module):
    """g ⊙ x / sqrt(mean(x²) + eps), statistics in float32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normalized: torch.Tensor = _Normalize.apply(x, self.weight, self.eps)
        return normalized


def _linear(size_in: int, size_out: int) -> nn.Linear:
    linear = nn.Linear(size_in, size_out, bias=False)
    nn.init.normal_(linear.weight, std=size_in**-0.5)
    return linear


class FeedForward(nn.Module):
    """act(z·up)·down, or (act(z·gate) ⊙ (z·up))·down."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.activation = config.ffn_activation
        self.up_proj = _linear(config.hidden_size, config.ffn_size)
        self.down_proj = _linear(config.ffn_size, config.hidden_size)
        if config.gated_ffn:
            self.gate_proj = _linear(config.hidden_size, config.ffn_size)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        up = self.up_proj(z)
        if self.activation == "relu":
            return self.down_proj(torch.relu(up))
        if self.activation == "gelu":
            return self.down_proj(functional.gelu(up))
        gate = self.gate_proj(z)
        gate = functional.gelu(gate) if self.activation == "geglu" else functional.silu(gate)
        return self.down_proj(gate * up)


class _Attn(LocalAttention):
    """Local attention with its projections, named as in the checkpoint (`attn.*`)."""

    def __init__(self, config: ModelConfig, output_inputs: int) -> None:
        super().__init__(config.num_heads, config.head_dim, config.window, config.attention)
        self.q_proj = _linear(config.hidden_size, config.attention_size)
        self.k_proj = _linear(config.hidden_size, config.attention_size)
        self.v_proj = _linear(config.hidden_size, config.attention_size)
        self.o_proj = _linear(output_inputs, config.hidden_size)


class _Cross(CrossAttention):
    """Cross-attention with its projections and norm (`cross.*`)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(
            config.num_heads, config.head_dim, config.window, config.attention.qk_norm
        )
        self.norm = RmsNorm(config.hidden_size, config.norm_eps)
        self.q_proj = _linear(config.hidden_size, config.attention_size)
        self.k_proj = _linear(config.hidden_size, config.attention_size)
        self.v_proj = _linear(config.hidden_size, config.attention_size)


class Layer(nn.Module):
    """A transformer layer, or a BST layer when the configuration has an SSM."""

    def __init__(self, config: ModelConfig, layer: LayerConfig, with_ssm_b: bool) -> None:
        super().__init__()
        self.heads = config.num_heads
        self.head_dim = config.head_dim
        halves = 1 if layer.ssm is None else 2
        self.attn_norm = RmsNorm(config.hidden_size, config.norm_eps)
        self.attn = _Attn(config, halves * config.attention_size)
        self.ffn_norm = RmsNorm(config.hidden_size, config.norm_eps)
        self.ffn = FeedForward(config)
        self.has_ssm = layer.ssm is not None
        if layer.ssm is not None:
            self.ssm_norm = RmsNorm(config.hidden_size, config.norm_eps)
            self.ssm = S4d(config.hidden_size, layer.ssm, with_ssm_b)
            self.cross = _Cross(config)

    def _project(self, x: torch.Tensor, projections: Sequence[nn.Linear]) -> List[torch.Tensor]:
        """Several projections of one input as a single matrix product; each [B, L, H, dh]."""
        weight = torch.cat([p.weight for p in projections])
        parts = functional.linear(x, weight).chunk(len(projections), dim=-1)
        return [p.reshape(*p.shape[:2], self.heads, self.head_dim) for p in parts]

    def forward(
        self, x: torch.Tensor, state: Optional[LayerState], segment: Segment
    ) -> Tuple[torch.Tensor, LayerState]:
        """x [B, L, D], L a multiple of W; see LanguageModel.forward."""
        n = self.attn_norm(x)
        queries: List[torch.Tensor] = []
        if self.has_ssm:
            q, k, v, *queries = self._project(
                n,
                [self.attn.q_proj, self.attn.k_proj, self.attn.v_proj, self.cross.q_proj],
            )
        else:
            q, k, v = self._project(n, [self.attn.q_proj, self.attn.k_proj, self.attn.v_proj])
        out, ring = self.attn(q, k, v, None if state is None else state.ring, segment)
        ssm_state: Optional[torch.Tensor] = None
        if self.has_ssm:
            with torch.autocast(device_type=x.device.type, enabled=False):
                y, ssm_state = self.ssm(self.ssm_norm(x), None if state is None else state.ssm)
                r = self.cross.norm(y)
            kc, vc = self._project(r, [self.cross.k_proj, self.cross.v_proj])
            out = torch.cat([out, self.cross(queries[0], kc, vc)], dim=-1)
        h = x + self.attn.o_proj(out)
        return h + self.ffn(self.ffn_norm(h)), LayerState(ring, ssm_state)


class LanguageModel(nn.Module):
    """Token ids -> logits, segment by segment.

    `ssm_b` says which BST layers have the optional input vector b (a checkpoint may or may not
    hold it): one flag per layer, none by default.
    """

    def __init__(self, config: ModelConfig, ssm_b: Optional[Sequence[bool]] = None) -> None:
        super().__init__()
        self.config = config
        flags = list(ssm_b) if ssm_b is not None else [False] * len(config.layers)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            Layer(config, layer, flag) for layer, flag in zip(config.layers, flags)
        )
        self.final_norm = RmsNorm(config.hidden_size, config.norm_eps)
        if not config.tie_embeddings:
            self.lm_head = _linear(config.hidden_size, config.vocab_size)
        self._initialise()

    def _initialise(self) -> None:
        """Output projections start small; the context half of a BST layer's starts at zero.

        A BST therefore computes at step 0 what the transformer with the same weights computes.
        """
        nn.init.normal_(self.embed.weight, std=EMBED_STD)
        depth = math.sqrt(2 * len(self.layers))
        with torch.no_grad():
            for layer in self.layers:
                layer.attn.o_proj.weight.div_(depth)
                layer.ffn.down_proj.weight.div_(depth)
                if layer.has_ssm:
                    a = self.config.attention_size
                    # Fan-in of the half that is alive, and silence for the other.
                    layer.attn.o_proj.weight.mul_(math.sqrt(2.0))
                    layer.attn.o_proj.weight[:, a:] = 0.0

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

    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.parameters())


# Standard deviation of a new embedding.
EMBED_STD = 0.1


class ChunkedCrossEntropy(torch.autograd.Function):
    """Sum of cross-entropies of x·Eᵀ·scale, without ever holding all logits.

    The gradients of a chunk are made while its logits are at hand, so nothing is computed twice.
    Inputs: x [T, D], weight E [V, D], targets [T] (-1: not counted), scale, chunk (tokens).
    Returns the per-token losses [T] (0 where not counted); the gradient assumes that they are
    summed with one common factor.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        targets: torch.Tensor,
        scale: float,
        chunk: int,
    ) -> torch.Tensor:
        losses = torch.zeros(x.shape[0], dtype=torch.float32, device=x.device)
        need_gradient = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        grad_x = torch.empty_like(x) if need_gradient else None
        grad_weight = torch.zeros_like(weight) if need_gradient else None
        for begin in range(0, x.shape[0], chunk):
            rows = x[begin : begin + chunk]
            target = targets[begin : begin + chunk]
            counted = target >= 0
            index = target.clamp_min(0).unsqueeze(-1)
            logits = torch.mm(rows, weight.t().to(rows.dtype)).float().mul_(scale)
            normalizer = torch.logsumexp(logits, dim=-1, keepdim=True)
            loss = (normalizer - logits.gather(-1, index)).squeeze(-1)
            losses[begin : begin + chunk] = loss * counted
            if grad_x is None or grad_weight is None:
                continue
            grad = logits.sub_(normalizer).exp_()
            grad.scatter_add_(-1, index, torch.full_like(index, -1, dtype=grad.dtype))
            grad.mul_(counted.unsqueeze(-1) * scale)
            grad = grad.to(rows.dtype)
            torch.mm(grad, weight.to(rows.dtype), out=grad_x[begin : begin + chunk])
            grad_weight.addmm_(grad.t().to(weight.dtype), rows.to(weight.dtype))
        ctx.gradients = (grad_x, grad_weight)
        return losses

    @staticmethod
    def backward(  # type: ignore[override]
        ctx: Any, grad_losses: torch.Tensor
    ) -> Tuple[Optional[torch.Tensor], ...]:
        grad_x, grad_weight = ctx.gradients
        factor = grad_losses.reshape(-1)[0]
        return grad_x * factor, grad_weight * factor, None, None, None


def token_losses(
    model: LanguageModel, hidden: torch.Tensor, targets: torch.Tensor, chunk: int = 1024
) -> torch.Tensor:
    """Cross-entropy in nats of every target, [B, L]; 0 where the target is -1."""
    rows, length, width = hidden.shape
    losses: torch.Tensor = ChunkedCrossEntropy.apply(
        hidden.reshape(rows * length, width),
        model.output_weight(),
        targets.reshape(-1),
        model.config.logit_scale,
        chunk,
    )
    return losses.reshape(rows, length)
