"""Messages of the wire to the types of types.py, and streams to results."""

from __future__ import annotations

from typing import Any, cast

import grpc

from . import _wire, types
from .errors import InternalError
from .options import SamplingOptions


def event(message: _wire.Message) -> types.GenerateEvent | None:
    """None: a kind of event that this client does not know."""
    kind = message.WhichOneof("event")
    if kind == "accepted":
        return _accepted(message.accepted)
    if kind == "prefill_progress":
        progress = message.prefill_progress
        return types.PrefillProgress(progress.processed_tokens, progress.total_tokens)
    if kind == "tokens":
        tokens = message.tokens
        logprobs = tuple(types.TokenLogprob(entry.logprob, _top(entry.top)) for entry in tokens.logprobs)
        return types.Tokens(tuple(tokens.token_ids), tokens.text, logprobs, tokens.sequence_index, tokens.is_prompt)
    if kind == "sequence_finished":
        return _sequence_finished(message.sequence_finished)
    if kind == "finished":
        finished = message.finished
        return types.Finished(types.FinishReason(finished.reason), _optional(finished, "stop_string"),
                              _optional(finished, "stop_token_id"), _usage(finished.usage),
                              _timings(finished.timings), tuple(map(_sequence_finished, finished.sequences)))
    return None


def model_info(message: _wire.Message) -> types.ModelInfo:
    plain = {name: getattr(message, name) for name in types.ModelInfo.__dataclass_fields__ if "token_id" not in name}
    plain["layers"] = tuple(message.layers)
    plain["limits"] = types.Limits(**{name: getattr(message.limits, name)
                                      for name in types.Limits.__dataclass_fields__})
    plain["default_sampling"] = _sampling(message.default_sampling)
    return types.ModelInfo(**plain, **{name: _optional(message, name)
                                       for name in ("bos_token_id", "eos_token_id", "pad_token_id")})


class GenerateCollector:
    """Events of one stream, retries included, put together."""

    def __init__(self) -> None:
        self._accepted: types.Accepted | None = None
        self._outputs: dict[int, _Output] = {0: _Output()}  # by sequence_index
        self._prompt_text: list[str] = []
        self._finished: types.Finished | None = None

    def add(self, item: types.GenerateEvent) -> None:
        if isinstance(item, types.Accepted):
            self._accepted = item
        elif isinstance(item, types.Tokens) and item.is_prompt:
            self._prompt_text.append(item.text)
        elif isinstance(item, types.Tokens):
            self._outputs.setdefault(item.sequence_index, _Output()).add(item)
        elif isinstance(item, types.Finished):
            self._finished = item

    def result(self) -> types.GenerateResult:
        accepted, finished = self._accepted, self._finished
        if accepted is None or finished is None:
            raise truncated("Accepted" if accepted is None else "Finished")
        first = self._outputs[0]
        return types.GenerateResult(
            accepted.request_id, accepted.seed, tuple(first.token_ids), "".join(first.text), tuple(first.logprobs),
            "".join(self._prompt_text), finished.reason, finished.stop_string, finished.stop_token_id,
            finished.usage, finished.timings, tuple(map(self._continuation, finished.sequences)))

    def _continuation(self, end: types.SequenceFinished) -> types.Continuation:
        output = self._outputs.get(end.sequence_index, _Output())
        return types.Continuation(end.sequence_index, tuple(output.token_ids), "".join(output.text),
                                  tuple(output.logprobs), end.reason, end.stop_string, end.stop_token_id,
                                  end.generated_tokens)


class _Output:
    """The Tokens of one continuation."""

    def __init__(self) -> None:
        self.token_ids: list[int] = []
        self.logprobs: list[types.TokenLogprob] = []
        self.text: list[str] = []

    def add(self, tokens: types.Tokens) -> None:
        self.token_ids += tokens.token_ids
        self.logprobs += tokens.logprobs
        self.text.append(tokens.text)


class ScoreCollector:
    """ScoreEvents of one stream, retries included, put together."""

    def __init__(self) -> None:
        self._accepted: Any = None
        self._token_ids: list[int] = []
        self._logprobs: list[float | None] = []
        self._top: list[tuple[types.TopToken, ...]] = []
        self._finished: Any = None

    def add(self, message: _wire.Message) -> None:
        kind = message.WhichOneof("event")
        if kind == "accepted":
            self._accepted = message.accepted
            self._token_ids, self._logprobs, self._top = [message.accepted.first_token_id], [None], [()]
        elif kind == "scored":
            self._token_ids += message.scored.token_ids
            self._logprobs += message.scored.logprobs
            self._top += [_top(entry.tokens) for entry in message.scored.top]
        elif kind == "finished":
            self._finished = message.finished

    def result(self, with_top: bool) -> types.ScoreResult:
        accepted, finished = self._accepted, self._finished
        if accepted is None or finished is None:
            raise truncated("Accepted" if accepted is None else "ScoreFinished")
        return types.ScoreResult(
            accepted.request_id, tuple(self._token_ids), tuple(self._logprobs), tuple(self._top) if with_top else (),
            _optional(finished, "mean_nll"), _optional(finished, "perplexity"), _usage(finished.usage),
            _timings(finished.timings))


def truncated(missing: str) -> InternalError:
    return InternalError(grpc.StatusCode.INTERNAL, f"the stream ended without a {missing} event")


def _accepted(message: _wire.Message) -> types.Accepted:
    return types.Accepted(message.request_id, _optional(message, "seed"), message.prompt_tokens,
                          message.cached_tokens, message.queue_position)


def _sequence_finished(message: _wire.Message) -> types.SequenceFinished:
    return types.SequenceFinished(message.sequence_index, types.FinishReason(message.reason),
                                  _optional(message, "stop_string"), _optional(message, "stop_token_id"),
                                  message.generated_tokens)


def _top(messages: Any) -> tuple[types.TopToken, ...]:
    return tuple(types.TopToken(message.token_id, message.logprob) for message in messages)


def _usage(message: _wire.Message) -> types.Usage:
    return types.Usage(message.prompt_tokens, message.cached_tokens, message.generated_tokens)


def _timings(message: _wire.Message) -> types.Timings:
    return types.Timings(message.queue_seconds, message.prefill_seconds, message.time_to_first_token_seconds,
                         message.mean_inter_token_seconds, message.tokens_per_second)


def _sampling(message: _wire.Message) -> SamplingOptions:
    """The fields that are set, to be handed on: client.generate(prompt, **info.default_sampling)."""
    sampling = {field.name: value for field, value in message.ListFields()}
    if "logit_bias" in sampling:
        sampling["logit_bias"] = dict(sampling["logit_bias"])
    return cast(SamplingOptions, sampling)


def _optional(message: _wire.Message, name: str) -> Any:
    return getattr(message, name) if message.HasField(name) else None
