"""The training loss: cross-entropy of x·Eᵀ·scale in chunks, so that all logits never exist."""

from __future__ import annotations

from typing import Any, Optional, Tuple

import torch

from .model import LanguageModel


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
