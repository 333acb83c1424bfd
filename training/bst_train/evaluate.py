"""Perplexity and bits per byte on held-out text, overall and by position in the document.

Every document is read from its first token to its last as one sequence, as a server would, with the
state carried from segment to segment. All tokens behind bos are predicted, eos included. Bits
per byte divide the summed cross-entropy by the UTF-8 bytes of the text, so they can be compared
between vocabularies; perplexity is per token and cannot.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np
import torch

from .corpus import TokenizedCorpus
from .loss import token_losses
from .model import LanguageModel, ModelState, split_state, stack_states
from .tokenizer import Tokenizer

# Edges of the position buckets, in tokens from the start of the document.
POSITION_EDGES = (0, 512, 4096, 16384, 65536)


@dataclasses.dataclass(frozen=True)
class Score:
    """Cross-entropy of a set of tokens."""

    tokens: int
    bytes: int
    nats: float

    @property
    def perplexity(self) -> float:
        return math.exp(self.nats / self.tokens) if self.tokens else math.nan

    @property
    def nats_per_token(self) -> float:
        return self.nats / self.tokens if self.tokens else math.nan

    @property
    def bits_per_byte(self) -> float:
        return self.nats / math.log(2) / self.bytes if self.bytes else math.nan

    def to_json(self) -> Dict[str, Any]:
        """Null stands for a mean over nothing: JSON has no NaN."""
        def rounded(value: float, digits: int) -> Optional[float]:
            return None if math.isnan(value) else round(value, digits)

        return {
            "tokens": self.tokens,
            "bytes": self.bytes,
            "nats_per_token": rounded(self.nats_per_token, 5),
            "perplexity": rounded(self.perplexity, 3),
            "bits_per_byte": rounded(self.bits_per_byte, 5),
        }


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The score of a corpus, and of its tokens by position: (label, score) in ascending order."""

    total: Score
    by_position: Tuple[Tuple[str, Score], ...]

    def to_json(self) -> Dict[str, Any]:
        return {
            **self.total.to_json(),
            "by_position": {label: score.to_json() for label, score in self.by_position},
        }

    def table(self) -> str:
        """Rows of `position tokens nats/token perplexity bits/byte`, as Markdown."""
        lines = [
            "| position | tokens | nats/token | perplexity | bits/byte |",
            "|---|---:|---:|---:|---:|",
        ]
        for label, score in (*self.by_position, ("all", self.total)):
            if score.tokens:
                lines.append(
                    f"| {label} | {score.tokens} | {score.nats_per_token:.4f} "
                    f"| {score.perplexity:.2f} | {score.bits_per_byte:.4f} |"
                )
        return "\n".join(lines)


def token_byte_lengths(tokenizer: Tokenizer, ids: np.ndarray) -> np.ndarray:
    """UTF-8 bytes that each id of a vocabulary stands for, gathered at `ids`; 0 for specials.

    The sum over a document is the size of its text.
    """
    processor = getattr(tokenizer, "_processor", None)
    lengths = np.zeros(tokenizer.vocab_size, dtype=np.int64)
    if processor is None:
        lengths[:256] = 1
    else:
        for token in range(tokenizer.vocab_size):
            if processor.is_byte(token):
                lengths[token] = 1
            elif not (processor.is_control(token) or processor.is_unknown(token)):
                piece = processor.id_to_piece(token).replace("\u2581", " ")
                lengths[token] = len(piece.encode("utf-8"))
    return lengths[ids]


@torch.no_grad()
def document_losses(
    model: LanguageModel, documents: Sequence[np.ndarray], segment: int, batch: int
) -> List[np.ndarray]:
    """Cross-entropy in nats of tokens 1 .. n-1 of every document, each read as one sequence.

    `batch` documents are read side by side, `segment` tokens at a time (rounded up to whole
    blocks).
    """
    for key, value in (("segment", segment), ("batch", batch)):
        if value <= 0:
            raise ValueError(f"{key}: {value} is not positive")
    window = model.config.window
    segment = -(-segment // window) * window
    device = next(model.parameters()).device
    losses: List[List[np.ndarray]] = [[] for _ in documents]
    waiting = sorted(range(len(documents)), key=lambda i: -len(documents[i]))
    active: List[Tuple[int, int, Optional[ModelState]]] = []   # (document, position, state)
    template: Optional[ModelState] = None
    while waiting or active:
        while waiting and len(active) < batch:
            document = waiting.pop(0)
            if len(documents[document]) > 1:
                active.append((document, 0, None))
        if not active:
            break
        inputs = torch.zeros(len(active), segment, dtype=torch.long)
        targets = torch.full((len(active), segment), -1, dtype=torch.long)
        for row, (document, position, _) in enumerate(active):
            ids = documents[document][position : position + segment + 1].astype(np.int64)
            inputs[row, : len(ids) - 1] = torch.from_numpy(ids[:-1])
            targets[row, : len(ids) - 1] = torch.from_numpy(ids[1:])
        fresh = torch.tensor([state is None for _, _, state in active], device=device)
        state = None if template is None else stack_states([s for _, _, s in active], template)
        hidden, after = model.hidden(inputs.to(device), state, fresh)
        nats = token_losses(model, hidden, targets.to(device)).cpu().numpy()
        rows = split_state(after)
        template = rows[0]
        following = []
        for row, (document, position, _) in enumerate(active):
            predicted = min(segment, len(documents[document]) - 1 - position)
            losses[document].append(nats[row, :predicted])
            if position + segment < len(documents[document]) - 1:
                following.append((document, position + segment, rows[row]))
        active = following
    return [np.concatenate(l) if l else np.zeros(0, dtype=np.float32) for l in losses]


def evaluate(
    model: LanguageModel,
    corpus: TokenizedCorpus,
    tokenizer: Tokenizer,
    segment: int = 4096,
    batch: int = 1,
    max_tokens_per_document: int = 0,
    edges: Sequence[int] = POSITION_EDGES,
) -> Evaluation:
    """Scores `model` on all documents, or on the first `max_tokens_per_document` tokens of each."""
    documents = [corpus.document(i) for i in range(len(corpus))]
    if max_tokens_per_document > 0:
        documents = [d[: max_tokens_per_document + 1] for d in documents]
    was_training = model.training
    model.eval()
    losses = document_losses(model, documents, segment, batch)
    model.train(was_training)
    bounds = list(edges) + [1 << 62]
    nats = np.zeros(len(edges))
    tokens = np.zeros(len(edges), dtype=np.int64)
    sizes = np.zeros(len(edges), dtype=np.int64)
    for document, loss in zip(documents, losses):
        lengths = token_byte_lengths(tokenizer, document[1:].astype(np.int64))
        for bucket in range(len(edges)):
            part = slice(bounds[bucket], min(bounds[bucket + 1], len(loss)))
            nats[bucket] += loss[part].sum(dtype=np.float64)
            tokens[bucket] += len(loss[part])
            sizes[bucket] += lengths[part].sum()
    labels = [f"{a}-{b}" for a, b in zip(edges, edges[1:])] + [f"{edges[-1]}-"]
    parts = tuple(
        (label, Score(int(t), int(b), float(n)))
        for label, t, b, n in zip(labels, tokens, sizes, nats)
    )
    return Evaluation(Score(int(tokens.sum()), int(sizes.sum()), float(nats.sum())), parts)
