"""Small configurations and texts that the tests share."""

from __future__ import annotations

import random
from typing import Any, List, Optional, Tuple

import torch

from training.bst_train.config import AttentionConfig, LayerConfig, ModelConfig, SsmConfig
from training.bst_train.model import LanguageModel

TRANSFORMER = LayerConfig()


def bst(state_size: int = 8, discretization: str = "zoh") -> LayerConfig:
    return LayerConfig(SsmConfig(state_size, discretization))


def tiny_config(
    layers: Tuple[LayerConfig, ...] = (TRANSFORMER, bst()),
    attention: Optional[AttentionConfig] = None,
    **changes: Any,
) -> ModelConfig:
    """A byte model of width 24 with two heads of 8 and blocks of 8 tokens."""
    values: dict = dict(
        vocab_size=259, hidden_size=24, num_heads=2, head_dim=8, ffn_size=40,
        ffn_activation="relu", window=8, logit_scale=0.5, bos_token_id=256, eos_token_id=257,
        pad_token_id=258,
    )
    values.update(changes)
    return ModelConfig(layers=layers, attention=attention or AttentionConfig(), **values)


def random_model(
    config: ModelConfig, seed: int, ssm_b: Optional[List[bool]] = None
) -> LanguageModel:
    """A model in which every parameter matters: no zeros, no ones, scales of both signs."""
    torch.manual_seed(seed)
    model = LanguageModel(config, ssm_b)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.uniform_(0.5, 1.5)
            elif name.endswith(".scale"):
                parameter.uniform_(2.0, 6.0).mul_(torch.randn_like(parameter).sign())
            elif name.endswith(".position_bias"):
                parameter.normal_(std=0.3)
            elif name.endswith("o_proj.weight"):
                parameter.normal_(std=parameter.shape[1] ** -0.5)
            elif name == "embed.weight":
                parameter.normal_()
            elif ".ssm." in name and not name.endswith("log_dt"):
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def random_text(seed: int, words: int) -> str:
    """Words of random letters with line breaks, double blanks and a few other characters."""
    rng = random.Random(seed)
    parts: List[str] = []
    for _ in range(words):
        parts.append("".join(rng.choice("etaoinshr") for _ in range(rng.randint(1, 7))))
        parts.append(rng.choice([" ", " ", " ", " ", "  ", "\n", "\n\n", ". ", " é ", "\\x{1}"]))
    return "".join(parts)
