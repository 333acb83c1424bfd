"""Sampling from a model, for looking at what it learned. The server is the fast way to do this.

The state can only be handed on at block boundaries, so a new token recomputes its own block from
the state at the block's start: at most W tokens of work for each.
"""

from __future__ import annotations

import math
from typing import List, Optional

import torch

from .model import LanguageModel, ModelState
from .tokenizer import Tokenizer


def pick(logits: torch.Tensor, temperature: float, top_p: float, rng: torch.Generator) -> int:
    """Samples a token from logits [V]: temperature, then the smallest set that holds top_p."""
    if temperature <= 0:
        return int(logits.argmax())
    probabilities, order = torch.softmax(logits / temperature, -1).sort(descending=True)
    before = probabilities.cumsum(-1) - probabilities
    probabilities = probabilities.masked_fill(before >= top_p, 0.0)
    return int(order[torch.multinomial(probabilities, 1, generator=rng)])


@torch.no_grad()
def sample(
    model: LanguageModel,
    prompt: List[int],
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
) -> List[int]:
    """Token ids behind `prompt` (which holds bos already); ends in front of eos.

    Temperature 0 takes the likeliest token every time. Raises ValueError naming what is out of
    range.
    """
    if not prompt:
        raise ValueError("prompt: empty, and the model has no bos that could stand for it")
    if not 0.0 <= temperature < math.inf:
        raise ValueError(f"temperature: {temperature} is not a finite number, 0 or more")
    if not 0.0 < top_p <= 1.0:
        raise ValueError(f"top_p: {top_p} is not above 0 and at most 1")
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens: {max_new_tokens} is negative")
    model.eval()
    window = model.config.window
    rng = torch.Generator().manual_seed(seed)
    full = (len(prompt) - 1) // window * window
    state: Optional[ModelState] = None
    if full > 0:
        state = model.hidden(torch.tensor([prompt[:full]]))[1]
    block = list(prompt[full:])
    new: List[int] = []
    while len(new) < max_new_tokens:
        logits, after = model(torch.tensor([block]), state)
        token = pick(logits[0, -1], temperature, top_p, rng)
        if token == model.config.eos_token_id:
            break
        new.append(token)
        if len(block) == window:
            state, block = after, []
        block.append(token)
    return new


def sample_text(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompt: str,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
) -> str:
    """The continuation of `prompt` as text."""
    ids = tokenizer.encode(prompt)
    if tokenizer.bos_id is not None:
        ids = [tokenizer.bos_id] + ids
    return tokenizer.decode(sample(model, ids, max_new_tokens, temperature, top_p, seed))
