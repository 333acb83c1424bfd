"""What the server answers: events, results and descriptions, all immutable.

Numbers of tokens count the bos token that the server puts in front of a text. Log-probabilities are
natural logarithms of the softmax of the model's own logits. Seconds are of one monotonic clock.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Union

from .options import SamplingOptions


class FinishReason(enum.IntEnum):
    """Why generation ended."""

    UNSPECIFIED = 0  # also: a reason that this client does not know
    EOS = 1  # the end-of-sequence token, which is the last of the output
    STOP_STRING = 2
    STOP_TOKEN = 3  # one of stop_token_ids, which is the last of the output
    MAX_TOKENS = 4
    TIME_LIMIT = 5
    CANCELLED = 6  # the iterator raises CancelledError next
    ERROR = 7  # the iterator raises why next

    @classmethod
    def _missing_(cls, value: object) -> FinishReason:
        return cls.UNSPECIFIED


class Priority(enum.IntEnum):
    """Which of the waiting requests goes first."""

    LOW = 1
    NORMAL = 2
    HIGH = 3


class HealthStatus(enum.IntEnum):
    UNKNOWN = 0
    SERVING = 1
    NOT_SERVING = 2

    @classmethod
    def _missing_(cls, value: object) -> HealthStatus:
        return cls.UNKNOWN


@dataclass(frozen=True)
class TopToken:
    """One alternative at a position."""

    token_id: int
    logprob: float


@dataclass(frozen=True)
class TokenLogprob:
    """A generated token's log-probability and, if top_logprobs asked for it, the likeliest first."""

    logprob: float
    top: tuple[TopToken, ...]


@dataclass(frozen=True)
class Usage:
    """Tokens. generated_tokens has eos and the stop token, and all tokens up to a stop string's end; of
    several continuations it is the sum."""

    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int


@dataclass(frozen=True)
class Timings:
    """What did not happen is 0. With several continuations: the first token of any, the mean of the
    longest, the tokens per second of all together."""

    queue_seconds: float
    prefill_seconds: float
    time_to_first_token_seconds: float
    mean_inter_token_seconds: float
    tokens_per_second: float


# ---- events of a stream ----


@dataclass(frozen=True)
class Accepted:
    """The engine has taken the request in. Sent again after a retry."""

    request_id: str
    seed: int | None
    prompt_tokens: int
    cached_tokens: int
    queue_position: int  # requests that start before this one


@dataclass(frozen=True)
class PrefillProgress:
    processed_tokens: int
    total_tokens: int


@dataclass(frozen=True)
class Tokens:
    """What was generated since the last event: always a difference.

    `text` holds whole characters and no beginning of a stop string, so it may lag behind `token_ids`;
    the last event has the rest. `logprobs` has one entry for each token if asked for, else none.
    """

    token_ids: tuple[int, ...]
    text: str
    logprobs: tuple[TokenLogprob, ...]
    sequence_index: int
    is_prompt: bool  # a piece of the prompt, sent back because of echo=True


@dataclass(frozen=True)
class SequenceFinished:
    """One of several continuations is complete; the others may go on."""

    sequence_index: int
    reason: FinishReason
    stop_string: str | None  # which, with STOP_STRING
    stop_token_id: int | None  # which, with STOP_TOKEN and EOS
    generated_tokens: int


@dataclass(frozen=True)
class Finished:
    """Always last. With several continuations `reason` is that of continuation 0."""

    reason: FinishReason
    stop_string: str | None  # which, with STOP_STRING
    stop_token_id: int | None  # which, with STOP_TOKEN and EOS
    usage: Usage
    timings: Timings
    sequences: tuple[SequenceFinished, ...] = ()  # of several continuations each; else none


GenerateEvent = Union[Accepted, PrefillProgress, Tokens, SequenceFinished, Finished]


# ---- results ----


@dataclass(frozen=True)
class Continuation:
    """One of several continuations."""

    sequence_index: int
    token_ids: tuple[int, ...]
    text: str
    logprobs: tuple[TokenLogprob, ...]
    finish_reason: FinishReason
    stop_string: str | None
    stop_token_id: int | None
    generated_tokens: int


@dataclass(frozen=True)
class GenerateResult:
    """A stream put together. `text` and `token_ids` are the output alone, without the prompt; of several
    continuations, those of the first."""

    request_id: str
    seed: int | None
    token_ids: tuple[int, ...]
    text: str
    logprobs: tuple[TokenLogprob, ...]  # one for each token if asked for, else none
    prompt_text: str  # with echo=True, else empty
    finish_reason: FinishReason
    stop_string: str | None
    stop_token_id: int | None
    usage: Usage
    timings: Timings
    continuations: tuple[Continuation, ...] = ()  # with num_sequences above 1: all, the first included


@dataclass(frozen=True)
class ScoreResult:
    """logprobs[t] is log p(token t | tokens 0 .. t - 1); logprobs[0] is None."""

    request_id: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float | None, ...]
    top: tuple[tuple[TopToken, ...], ...]  # one for each token, the first empty; none if not asked for
    mean_nll: float | None  # nats per token; None: the text has one token
    perplexity: float | None  # exp(mean_nll)
    usage: Usage
    timings: Timings


@dataclass(frozen=True)
class Limits:
    max_prompt_tokens: int
    max_new_tokens: int
    max_sequences: int  # continuations that run at the same time; the upper end of num_sequences
    max_step_tokens: int
    chunk_tokens: int
    max_queue: int  # requests that may wait, each counted as its continuations
    max_queue_tokens: int
    max_message_bytes: int  # of one request; larger prompts are sent in parts
    upload_timeout_seconds: float  # between two parts, once it holds its slot two blocks


@dataclass(frozen=True)
class ModelInfo:
    """What is served; constant while the server runs."""

    name: str
    backend: str
    weights: str
    kv: str
    vocab_size: int
    hidden_size: int
    num_heads: int
    head_dim: int
    ffn_size: int
    window: int  # tokens of an attention window, which is also the block length
    layers: tuple[str, ...]  # bottom first
    num_parameters: int
    weight_bytes: int
    state_bytes_per_sequence: int  # whatever the length of the context
    tokenizer: str
    bos_token_id: int | None
    eos_token_id: int | None
    pad_token_id: int | None
    limits: Limits
    default_sampling: SamplingOptions  # what a request gets that sets nothing, seed apart
    default_max_new_tokens: int
    config_json: str  # the checkpoint's config.json
