"""Small configurations and texts that the tests share."""

from __future__ import annotations

import random
from typing import Any, Dict, List, Optional, Tuple

import torch

from training.bst_train.config import AttentionConfig, LayerConfig, ModelConfig, SsmConfig
from training.bst_train.kernels import SsmOptions
from training.bst_train.model import LanguageModel

TRANSFORMER = LayerConfig()


# One small configuration of every kernel and discretisation; the free taps reach over blocks of 8.
SSMS: Dict[str, SsmConfig] = {
    "s4d": SsmConfig("s4d", 8),
    "s4d_bilinear": SsmConfig("s4d", 6, "bilinear"),
    "dss": SsmConfig("dss", 5),
    "s4": SsmConfig("s4", 6),
    "s5": SsmConfig("s5", 8),
    "s5_bilinear": SsmConfig("s5", 4, "bilinear"),
    "explicit": SsmConfig("explicit", length=21),
}


def bst(ssm: str = "s4d", context: str = "single_head") -> LayerConfig:
    states = 5 if context == "multi_filter" else None
    return LayerConfig("bst", context, states, ssm=SSMS[ssm])


BRECT = LayerConfig("brect", num_states=6)


def gss(ssm: str = "dss") -> LayerConfig:
    return LayerConfig("gss", inner_size=30, ssm_size=10, ssm=SSMS[ssm])


def every_layer() -> Dict[str, LayerConfig]:
    """All kinds of layers, with every kernel in every context."""
    layers = {
        f"{context}_{ssm}": bst(ssm, context)
        for context in ("single_head", "multi_head", "multi_filter")
        for ssm in SSMS
    }
    gates = {f"gss_{ssm}": gss(ssm) for ssm in ("s4d", "dss")}
    return {"transformer": TRANSFORMER, **layers, "brect": BRECT, **gates}


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
    config: ModelConfig, seed: int, options: Optional[List[SsmOptions]] = None
) -> LanguageModel:
    """A model in which every parameter matters: no zeros, no ones, scales of both signs."""
    torch.manual_seed(seed)
    model = LanguageModel(config, options)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.uniform_(0.5, 1.5)
            elif name.endswith("scale"):
                parameter.uniform_(2.0, 6.0).mul_(torch.randn_like(parameter).sign())
            elif name.endswith(".position_bias"):
                parameter.normal_(std=0.3)
            elif name.endswith(("o_proj.weight", "out_proj.weight")):
                parameter.normal_(std=parameter.shape[1] ** -0.5)
            elif name == "embed.weight":
                parameter.normal_()
            elif ".ssm." in name and not name.endswith(("log_dt", "log_step")):
                parameter.add_(0.2 * torch.randn_like(parameter))
            elif name.endswith(".initial"):
                parameter.normal_()
        model.project()
    return model.eval()


def random_text(seed: int, words: int) -> str:
    """Words of random letters with line breaks, double blanks and a few other characters."""
    rng = random.Random(seed)
    parts: List[str] = []
    for _ in range(words):
        parts.append("".join(rng.choice("etaoinshr") for _ in range(rng.randint(1, 7))))
        parts.append(rng.choice([" ", " ", " ", " ", "  ", "\n", "\n\n", ". ", " é ", "\\x{1}"]))
    return "".join(parts)
