"""The options of a request, which are the keyword arguments of generate() and stream().

Names, units and ranges are those of proto/bst/v1/generation.proto. What is not given, or None, is not
sent: the server then takes the model's generation_config.json or its own default, which is named here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Iterator, Mapping, Sequence, TypedDict, Union

from . import _wire

if TYPE_CHECKING:
    from .types import Priority

Prompt = Union[str, Sequence[int]]  # a text, which gets the bos token in front, or token ids as they are


class SamplingOptions(TypedDict, total=False):
    """How the next token is drawn, in this order: bias, penalties, temperature, truncation."""

    temperature: float | None  # 0 .. 100; 0 is greedy. Default 1
    top_k: int | None  # the k likeliest tokens; 0 and -1: all. Default 0
    top_p: float | None  # the likeliest with this mass, above 0, up to 1. Default 1
    min_p: float | None  # those at least so likely, relative to the likeliest, 0 .. 1. Default 0
    typical_p: float | None  # locally typical sampling, above 0, up to 1. Default 1
    repetition_penalty: float | None  # above 0, up to 10; prompt and output count. Default 1
    presence_penalty: float | None  # -2 .. 2, once per token of the output. Default 0
    frequency_penalty: float | None  # -2 .. 2, per occurrence in the output. Default 0
    logit_bias: Mapping[int, float] | None  # -100 .. 100, or -inf, which bans the token
    seed: int | None  # 0 .. 2^64 - 1. Same request, same seed: same tokens. Default: drawn
    num_sequences: int | None  # continuations, 1 .. limits.max_sequences. Default 1


class StoppingOptions(TypedDict, total=False):
    """When generation ends by itself."""

    max_new_tokens: int | None  # 1 .. 1,000,000. Default 256
    min_new_tokens: int | None  # before that many, no eos and no stop token. Default 0
    stop_strings: Sequence[str] | None  # at most 16, of 1 to 256 bytes
    stop_token_ids: Sequence[int] | None  # at most 64; the token itself is part of the output
    ignore_eos: bool | None  # Default false
    include_stop_string: bool | None  # the text ends with the stop string that was found. Default false


class OutputOptions(TypedDict, total=False):
    """What the events hold."""

    top_logprobs: int | None  # alternatives per token, 0 .. 20. Above 0 it implies logprobs. Default 0
    echo: bool | None  # the prompt first, as Tokens with is_prompt. Default false
    prompt_progress: bool | None  # PrefillProgress events, the sign of life of a long prompt. Default true
    logprobs: bool | None  # the log-probability of each generated token. Default false


class GenerateOptions(SamplingOptions, StoppingOptions, OutputOptions, total=False):
    priority: Priority | None  # who of those that wait goes first. Default Priority.NORMAL
    request_id: str | None  # 1 to 128 printable ASCII characters, unique among those in flight
    queue_timeout_ms: int | None  # not started by then: DeadlineExceededError before any token
    time_limit_ms: int | None  # by then TIME_LIMIT and what it has; without a token DeadlineExceededError


# Which message of the request each option is a field of; None: the request itself.
_GROUPS: dict[str, str | None] = {
    **{name: "sampling" for name in SamplingOptions.__annotations__},
    **{name: "stopping" for name in StoppingOptions.__annotations__},
    **{name: "output" for name in OutputOptions.__annotations__},
    "priority": None, "request_id": None, "queue_timeout_ms": None, "time_limit_ms": None,
}

# Requests up to this size fit into one message of any server.
SMALL_MESSAGE_BYTES = 1024
_PART_BYTES = 1 << 20


def generate_request(prompt: Prompt, options: GenerateOptions) -> _wire.Message:
    """Raises TypeError for an unknown option or a wrong type, ValueError for what the wire cannot hold.

    Ranges are the server's to check.
    """
    request = _wire.GenerateRequest()
    _set_prompt(request, prompt)
    for name, value in options.items():
        if name not in _GROUPS:
            raise TypeError(f"unknown option {name!r}")
        group = _GROUPS[name]
        if value is not None:
            _set_field(request if group is None else getattr(request, group), name, value)
    return request


def upload_parts(request: _wire.Message, max_message_bytes: int) -> Iterator[_wire.Message]:
    """The messages of GenerateUpload that make up a GenerateRequest, its prompt in pieces."""
    first = _wire.GenerateUploadPart()
    first.request.CopyFrom(request)
    kind = request.WhichOneof("prompt")
    if kind is not None:
        first.request.ClearField(kind)
    yield first
    size = min(_PART_BYTES, max_message_bytes) - 32  # without tags and lengths
    if kind == "text":
        text, step = request.text, size // 4  # characters of up to 4 bytes
        for begin in range(0, len(text), step):
            yield _wire.GenerateUploadPart(text=text[begin:begin + step])
    elif kind == "token_ids":
        ids, step = request.token_ids.ids, size // 5  # ids of up to 5 bytes
        for begin in range(0, len(ids), step):
            part = _wire.GenerateUploadPart()
            part.token_ids.ids.extend(ids[begin:begin + step])
            yield part


def score_request(prompt: Prompt, top_logprobs: int | None, request_id: str | None,
                  priority: Priority | None = None) -> _wire.Message:
    request = _wire.ScoreRequest()
    _set_prompt(request, prompt)
    if top_logprobs is not None:
        _set_field(request, "top_logprobs", top_logprobs)
    if request_id is not None:
        _set_field(request, "request_id", request_id)
    if priority is not None:
        _set_field(request, "priority", priority)
    return request


def tokenize_request(text: str, add_bos: bool | None) -> _wire.Message:
    request = _wire.TokenizeRequest()
    _set_field(request, "text", text)
    if add_bos is not None:
        _set_field(request, "add_bos", add_bos)
    return request


def detokenize_request(token_ids: Sequence[int]) -> _wire.Message:
    request = _wire.DetokenizeRequest()
    _set_field(request, "token_ids", token_ids)
    return request


def _set_prompt(request: _wire.Message, prompt: Prompt) -> None:
    if isinstance(prompt, str):
        _set_field(request, "text", prompt)
        return
    if isinstance(prompt, (bytes, bytearray, memoryview)):
        raise TypeError("prompt: a str or token ids, not bytes")
    request.token_ids.SetInParent()  # an empty list is still a list of ids, not no prompt
    _set_field(request.token_ids, "ids", prompt, "prompt")


def _set_field(message: _wire.Message, name: str, value: Any, called: str = "") -> None:
    """Sets a scalar, replaces a list or a map. The error names the option."""
    try:
        field = getattr(message, name)
        if hasattr(field, "extend"):
            if isinstance(value, str):  # would be taken as a list of characters
                raise TypeError(f"a list is needed, not the str {value!r}")
            if value is None:  # would be taken as an empty list
                raise TypeError("a list is needed, not None")
            field.extend(value)
        elif hasattr(field, "update"):
            field.update(value)
        else:
            setattr(message, name, value)
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{called or name}: {error}") from None
