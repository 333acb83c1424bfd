"""A Generation service in this process that answers as it is told, for the client's unit tests."""

from __future__ import annotations

import queue
import threading
from concurrent import futures
from dataclasses import dataclass
from typing import Any, Callable, Iterator, Sequence

import grpc

from bst_client import _wire


@dataclass
class Answer:
    """What one attempt gets: events, and then a status."""

    events: Sequence[Any] = ()
    code: grpc.StatusCode = grpc.StatusCode.OK
    message: str = ""
    trailers: tuple[tuple[str, str | bytes], ...] = ()
    hold: bool = False  # the status comes only when the client has gone


def accepted(request_id: str = "fake") -> Any:
    event = _wire.GenerateEvent()
    event.accepted.request_id = request_id
    event.accepted.seed = 7
    event.accepted.prompt_tokens = 3
    return event


def tokens(*ids: int, text: str = "", is_prompt: bool = False, index: int = 0) -> Any:
    event = _wire.GenerateEvent()
    event.tokens.sequence_index = index
    event.tokens.token_ids.extend(ids)
    event.tokens.text = text
    event.tokens.is_prompt = is_prompt
    return event


def ended(index: int, reason: int = 4) -> Any:
    event = _wire.GenerateEvent()
    event.sequence_finished.sequence_index = index
    event.sequence_finished.reason = reason
    event.sequence_finished.generated_tokens = 1
    return event


def finished(reason: int = 4) -> Any:
    event = _wire.GenerateEvent()
    event.finished.reason = reason
    event.finished.usage.generated_tokens = 2
    return event


def whole(text: str = "ab") -> Answer:
    """A stream as it should be."""
    return Answer([accepted(), tokens(97, text=text[:1]), tokens(98, text=text[1:]), finished()])


class FakeServer:
    """Gives each call the next answer. A context manager; `target` is its address."""

    def __init__(self, *answers: Answer, message_limit: int = 4 << 20, hold_info: bool = False,
                 on_info: Callable[[], Any] = lambda: None) -> None:
        """hold_info: GetModelInfo is not answered; it is a held call. on_info: called before it is answered."""
        self._hold_info = hold_info
        self._on_info = on_info
        self._answers = list(answers)
        self._info = _wire.ModelInfo()
        self._info.limits.max_message_bytes = message_limit
        self.asked_for_info = 0
        self.requests: list[Any] = []  # of Generate
        self.uploads: list[list[Any]] = []  # the parts of each GenerateUpload
        self.metadata: list[dict[str, str]] = []  # of each call
        self.seconds_left: list[float | None] = []  # to the deadline of each call
        self.gone: queue.Queue[bool] = queue.Queue()  # one entry for each held call whose client has gone
        self._server = grpc.server(futures.ThreadPoolExecutor(4))
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bst.v1.Generation", {
            "Generate": grpc.unary_stream_rpc_method_handler(
                self._stream, _wire.GenerateRequest.FromString, lambda event: event.SerializeToString()),
            "GenerateUpload": grpc.stream_stream_rpc_method_handler(
                self._upload, _wire.GenerateUploadPart.FromString, lambda event: event.SerializeToString()),
            "GetModelInfo": grpc.unary_unary_rpc_method_handler(
                self._model_info, _wire.GetModelInfoRequest.FromString, lambda info: info.SerializeToString()),
            "Score": grpc.unary_stream_rpc_method_handler(
                self._stream, _wire.ScoreRequest.FromString, lambda event: event.SerializeToString()),
            "Tokenize": grpc.unary_unary_rpc_method_handler(
                self._unary, _wire.TokenizeRequest.FromString, lambda answer: answer.SerializeToString()),
        }),))
        self.target = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    @property
    def calls(self) -> int:
        return len(self.metadata)

    def _begin(self, context: grpc.ServicerContext) -> Answer:
        answer = self._answers[self.calls]
        self.seconds_left.append(context.time_remaining())
        self.metadata.append(dict(context.invocation_metadata()))
        context.set_trailing_metadata(answer.trailers)
        if answer.hold:
            context.add_callback(lambda: self.gone.put(True))
        return answer

    def _end(self, answer: Answer, context: grpc.ServicerContext) -> None:
        if answer.hold:
            gone = threading.Event()
            if context.add_callback(gone.set):  # False: it has gone already
                gone.wait()
        if answer.code != grpc.StatusCode.OK:
            context.abort(answer.code, answer.message)

    def _upload(self, parts: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        self.uploads.append(list(parts))
        yield from self._stream(None, context)

    def _model_info(self, _request: Any, context: grpc.ServicerContext) -> Any:
        self.asked_for_info += 1
        if self._hold_info:
            context.add_callback(lambda: self.gone.put(True))
            self._end(Answer(hold=True), context)
        self._on_info()
        return self._info

    def _stream(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        self.requests.append(request)
        answer = self._begin(context)
        yield from answer.events
        self._end(answer, context)

    def _unary(self, _: Any, context: grpc.ServicerContext) -> Any:
        answer = self._begin(context)
        self._end(answer, context)
        return answer.events[0]

    def __enter__(self) -> FakeServer:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(None).wait()
