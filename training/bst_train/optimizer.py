"""Optimisers, parameter groups and the learning-rate schedule.

Hidden matrices (the projections and the feed-forward network) are trained with Muon: momentum,
then the update is replaced by the nearest matrix with orthonormal rows or columns, found by a few
Newton-Schulz iterations. At the sizes this trainer is made for it needs about half the tokens of
AdamW for the same loss, at 5 to 10 % more time per step. Everything else is trained with AdamW, in
groups: the embedding, the SSM parameters, the networks behind explicit filters, attention scales,
and the rest.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Dict, Iterable, List, Tuple

import torch
from torch import nn

# Coefficients of the quintic iteration: they maximise the slope at zero, so that small singular
# values grow fast, and leave all of them in about [0.7, 1.2] instead of at 1 (Keller Jordan, 2024).
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
_NEWTON_SCHULZ_STEPS = 5

# Of the hidden matrices.
OPTIMIZERS = ("muon", "adamw")


def orthogonalize(x: torch.Tensor, steps: int = _NEWTON_SCHULZ_STEPS) -> torch.Tensor:
    """Approximately U Vᵀ of each matrix U Σ Vᵀ in x [..., rows, columns]."""
    a, b, c = _NEWTON_SCHULZ
    tall = x.shape[-2] > x.shape[-1]
    y = x.transpose(-2, -1) if tall else x
    y = y / (y.square().sum((-2, -1), keepdim=True).sqrt() + 1e-7)
    for _ in range(steps):
        gram = y @ y.transpose(-2, -1)
        y = a * y + (b * gram + c * (gram @ gram)) @ y
    return y.transpose(-2, -1) if tall else y


class Muon(torch.optim.Optimizer):
    """Momentum with orthogonalised updates, for matrices only.

    An update is scaled by sqrt(max(1, rows / columns)), so that it changes outputs by about `lr`
    per unit of input.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float, momentum: float, weight_decay: float
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        if closure is not None:
            raise ValueError("Muon takes no closure")
        for group in self.param_groups:
            momentum = group["momentum"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(p)
                buffer = state["momentum"]
                buffer.lerp_(p.grad, 1 - momentum)
                # Nesterov. One matrix at a time: on a CPU batched products are slower.
                direction = orthogonalize(torch.lerp(p.grad, buffer, momentum))
                scale = math.sqrt(max(1.0, p.shape[-2] / p.shape[-1]))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(direction, alpha=-group["lr"] * scale)


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Peak learning rates per group, and what goes with them."""

    optimizer: str = "muon"            # of the hidden matrices: "muon" or "adamw"
    matrix_lr: float = 0.02            # 0.02 suits muon, 3e-3 adamw
    embed_lr: float = 1e-2
    ssm_lr: float = 2e-3
    filter_lr: float = 1e-3            # the network behind an explicit filter
    other_lr: float = 5e-3             # norms, position biases, context ids, initial states, gates
    scale_lr: float = 2e-2             # attention scales, which start at 8
    momentum: float = 0.95
    beta1: float = 0.9
    beta2: float = 0.95
    weight_decay: float = 0.0          # hidden matrices only
    clip: float = 1.0
    warmup_steps: int = 50
    final_lr: float = 0.1              # at the end of the cosine, relative to the peak

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(
                f"optimizer: {self.optimizer!r} is not one of {', '.join(OPTIMIZERS)}"
            )


def _group_of(name: str) -> str:
    if ".ssm.positional." in name:
        return "filter"
    if ".ssm." in name:
        return "ssm"
    if name.endswith((".scale", ".cross_scale")):
        return "scale"
    if name.startswith(("embed.", "lm_head.")):
        return "embed"
    if name.endswith("_proj.weight"):
        return "matrix"
    return "other"


def make_optimizers(model: nn.Module, config: OptimizerConfig) -> List[torch.optim.Optimizer]:
    """The optimisers of all parameters. Every group carries its peak rate as `peak_lr`."""
    groups: Dict[str, List[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        groups.setdefault(_group_of(name), []).append(parameter)
    matrices = groups.pop("matrix")
    rates = {
        "embed": config.embed_lr,
        "ssm": config.ssm_lr,
        "filter": config.filter_lr,
        "other": config.other_lr,
        "scale": config.scale_lr,
    }
    adam_groups: List[Dict[str, Any]] = [
        {"params": parameters, "lr": rates[name], "weight_decay": 0.0}
        for name, parameters in groups.items()
    ]
    optimizers: List[torch.optim.Optimizer] = []
    if config.optimizer == "muon":
        optimizers.append(
            Muon(matrices, config.matrix_lr, config.momentum, config.weight_decay)
        )
    else:
        adam_groups.append(
            {"params": matrices, "lr": config.matrix_lr, "weight_decay": config.weight_decay}
        )
    optimizers.append(
        torch.optim.AdamW(adam_groups, betas=(config.beta1, config.beta2), eps=1e-10)
    )
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


def schedule(step: int, progress: float, config: OptimizerConfig) -> float:
    """Learning rate relative to its peak: linear warm-up, and a cosine over `progress`."""
    warmup = min(1.0, (step + 1) / max(1, config.warmup_steps))
    cosine = 0.5 * (1.0 + math.cos(math.pi * min(1.0, max(0.0, progress))))
    return warmup * (config.final_lr + (1.0 - config.final_lr) * cosine)


def set_learning_rates(optimizers: Iterable[torch.optim.Optimizer], factor: float) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor


def matrix_and_other_parameters(model: nn.Module) -> Tuple[int, int]:
    """(elements in hidden matrices, elements elsewhere)."""
    matrix = sum(p.numel() for n, p in model.named_parameters() if _group_of(n) == "matrix")
    return matrix, sum(p.numel() for p in model.parameters()) - matrix
