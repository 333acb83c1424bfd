"""Client: the server's RPCs as blocking calls."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import TYPE_CHECKING, Any, Callable, Iterator, Sequence

import grpc

from . import _convert, _wire, options
from .connection import Connection
from .errors import client_closed, from_rpc_error
from .options import GenerateOptions, Prompt
from .retry import Attempts
from .types import Finished, GenerateEvent, GenerateResult, HealthStatus, ModelInfo, Priority, ScoreResult

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Client(Connection):
    """A connection to one server, for any number of calls from any threads; Connection has its arguments.

        with Client("127.0.0.1:50051") as client:
            print(client.generate("Once upon a time", max_new_tokens=100).text)

    A call that fails raises a BstError. `timeout` of a call is in seconds; None: the client's.
    """

    def _connect(self) -> None:
        self._channel = self._open(grpc)
        self._stubs = _wire.Stubs(self._channel)
        self._pauses = _Pauses()

    def close(self) -> None:
        """Ends what is running, in any thread, with CancelledError; so do calls that follow."""
        self._pauses.close()
        self._channel.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def generate(self, prompt: Prompt, *, timeout: float | None = None,
                 **kwargs: Unpack[GenerateOptions]) -> GenerateResult:
        """Continues `prompt`, a text or token ids. GenerateOptions has the keyword arguments.

        A request that fails has no partial result here; use stream() to keep it, or time_limit_ms.
        """
        collector = _convert.GenerateCollector()
        with self.stream(prompt, timeout=timeout, **kwargs) as events:
            for event in events:
                collector.add(event)
        return collector.result()

    def stream(self, prompt: Prompt, *, timeout: float | None = None,
               **kwargs: Unpack[GenerateOptions]) -> EventStream:
        """The same, event by event. The request is sent at once, in parts where it is above the server's
        message limit."""
        request = options.generate_request(prompt, kwargs)
        attempts = self._attempts(timeout)
        if request.ByteSize() > options.SMALL_MESSAGE_BYTES:
            if self._message_limit is None:
                info = self._unary(self._stubs.model_info, _wire.GetModelInfoRequest(), attempts)
                self._message_limit = int(info.limits.max_message_bytes)
            limit = self._message_limit
            if request.ByteSize() > limit:
                return EventStream(self._responses(self._stubs.generate_upload,
                                                   lambda: options.upload_parts(request, limit), attempts, "tokens"))
        return EventStream(self._responses(self._stubs.generate, lambda: request, attempts, "tokens"))

    def score(self, prompt: Prompt, *, top_logprobs: int | None = None, request_id: str | None = None,
              priority: Priority | None = None, timeout: float | None = None) -> ScoreResult:
        """The log-probability of every token of a text given the tokens before it, and the perplexity."""
        request = options.score_request(prompt, top_logprobs, request_id, priority)
        collector = _convert.ScoreCollector()
        responses = self._responses(self._stubs.score, lambda: request, self._attempts(timeout), "scored")
        try:
            for message in responses:
                collector.add(message)
        finally:
            responses.close()
        return collector.result(with_top=bool(top_logprobs))

    def tokenize(self, text: str, *, add_bos: bool | None = None, timeout: float | None = None) -> tuple[int, ...]:
        """Token ids of a text; add_bos: with the bos token in front, as a text prompt gets it."""
        request = options.tokenize_request(text, add_bos)
        return tuple(self._unary(self._stubs.tokenize, request, self._attempts(timeout)).token_ids)

    def detokenize(self, token_ids: Sequence[int], *, timeout: float | None = None) -> str:
        """Bytes that are no character become U+FFFD; special tokens have no text."""
        request = options.detokenize_request(token_ids)
        return str(self._unary(self._stubs.detokenize, request, self._attempts(timeout)).text)

    def model_info(self, *, timeout: float | None = None) -> ModelInfo:
        request = _wire.GetModelInfoRequest()
        return _convert.model_info(self._unary(self._stubs.model_info, request, self._attempts(timeout)))

    def health(self, service: str = "", *, timeout: float | None = None) -> HealthStatus:
        """grpc.health.v1. service: "bst.v1.Generation", or empty for the server as a whole."""
        request = _wire.HealthCheckRequest(service=service)
        return HealthStatus(self._unary(self._stubs.health, request, self._attempts(timeout)).status)

    def _responses(self, stub: Any, request: Callable[[], Any], attempts: Attempts, output: str) -> ResponseStream:
        """`request`: the message, or the iterator of messages, of each attempt."""
        def start(seconds_left: float | None) -> Any:
            return self._call(stub, request(), seconds_left)

        return ResponseStream(start, attempts, output, self._pauses)

    def _unary(self, stub: Any, request: _wire.Message, attempts: Attempts) -> Any:
        while True:
            try:
                return self._call(stub, request, attempts.seconds_left())
            except grpc.RpcError as error:
                failure = from_rpc_error(error)
                delay = attempts.delay_after(failure)
                if delay is None:
                    raise failure from error
            self._pauses.pause(delay)

    def _call(self, stub: Any, request: Any, seconds_left: float | None) -> Any:
        try:
            return stub(request, timeout=seconds_left, metadata=self._metadata())
        except ValueError:  # gRPC's for a channel that is closed, and _metadata()'s
            if self._pauses.client_closed:
                raise client_closed() from None
            raise


class _Pauses:
    """The waits between a client's attempts, which its close() ends; gRPC ends what is under way."""

    def __init__(self) -> None:
        self.client_closed = False
        self._changed = threading.Condition()

    def pause(self, seconds: float, ended: Callable[[], bool] = lambda: False) -> None:
        """`ended`: whether to return early; who changes that calls wake(). No wait once the client is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self.client_closed or ended(), seconds)

    def wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def close(self) -> None:
        self.client_closed = True
        self.wake()


class ResponseStream(Iterator[Any]):
    """The messages of one streaming request, which is sent again until the first output message.

    close() may be called from any thread.
    """

    def __init__(self, start: Callable[[float | None], Any], attempts: Attempts, output: str,
                 pauses: _Pauses) -> None:
        self._closed = threading.Event()
        self._pauses = pauses
        self._start = start  # seconds left -> call
        self._attempts = attempts
        self._output = output  # the kind of event after which nothing is sent again
        self._output_seen = False
        self._call = start(attempts.seconds_left())

    def __next__(self) -> Any:
        while not self._closed.is_set():
            try:
                message = next(self._call)
            except grpc.RpcError as error:
                if self._closed.is_set():
                    break
                failure = from_rpc_error(error)
                delay = None if self._output_seen else self._attempts.delay_after(failure)
                if delay is None:
                    self.close()
                    raise failure from error
                self._pauses.pause(delay, self._closed.is_set)
                if self._closed.is_set():
                    break
                self._call = self._start(self._attempts.seconds_left())
                if self._closed.is_set():  # meanwhile, by another thread
                    self._call.cancel()
            else:
                self._output_seen = self._output_seen or message.WhichOneof("event") == self._output
                return message
        raise StopIteration

    def close(self) -> None:
        self._closed.set()
        self._pauses.wake()
        self._call.cancel()


class EventStream(Iterator[GenerateEvent]):
    """The events of one request: Accepted, PrefillProgress and Tokens in any number, Finished.

    Leaving the `with` block, close() from any thread, or dropping the last reference (gRPC sees to
    that) cancels the request, which frees its slot on the server. A closed stream ends without a Finished event.
    """

    def __init__(self, responses: ResponseStream) -> None:
        self._responses = responses
        self._closed = False
        self._finished = False

    def __next__(self) -> GenerateEvent:
        for message in self._responses:
            event = _convert.event(message)
            if event is not None:
                self._finished = self._finished or isinstance(event, Finished)
                return event
        if not self._finished and not self._closed:
            self._closed = True
            raise _convert.truncated("Finished")
        raise StopIteration

    def close(self) -> None:
        self._closed = True
        self._responses.close()

    def __enter__(self) -> EventStream:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 traceback: TracebackType | None) -> None:
        self.close()
