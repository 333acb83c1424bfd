"""AsyncClient: the server's RPCs for asyncio."""

from __future__ import annotations

import asyncio
import weakref
from types import TracebackType
from typing import TYPE_CHECKING, Any, AsyncIterator, Awaitable, Callable, Coroutine, Sequence

import grpc
import grpc.aio

from . import _convert, _wire, options
from .connection import Connection
from .errors import CancelledError, client_closed, from_rpc_error
from .options import GenerateOptions, Prompt
from .retry import Attempts
from .types import Finished, GenerateEvent, GenerateResult, HealthStatus, ModelInfo, Priority, ScoreResult

if TYPE_CHECKING:
    from typing_extensions import Unpack


class AsyncClient(Connection):
    """As Client, which documents the calls, for one event loop: that of the first call.

        async with AsyncClient("127.0.0.1:50051") as client:
            print((await client.generate("Once upon a time", max_new_tokens=100)).text)

    Cancelling the task that waits for a call cancels the request.
    """

    def _connect(self) -> None:
        self._channel: Any = None  # opened in the event loop that uses it
        self._opened: _wire.Stubs | None = None
        self._closed = False
        self._streams: weakref.WeakSet[AsyncResponseStream] = weakref.WeakSet()
        self._unary_calls: weakref.WeakSet[asyncio.Task[Any]] = weakref.WeakSet()

    @property
    def _stubs(self) -> _wire.Stubs:
        if self._closed:
            raise client_closed()
        if self._opened is None:
            self._channel = self._open(grpc.aio)
            self._opened = _wire.Stubs(self._channel)
        return self._opened

    async def close(self) -> None:
        """Ends what is running, in any task, with this package's CancelledError; so do calls that follow.

        Nothing of them is left in the event loop."""
        self._closed = True
        streams = list(self._streams)
        calls = [call for call in self._unary_calls if not call.done()]
        for stream in streams:
            stream.end(client_closed())
        for call in calls:
            call.cancel()
        try:
            for stream in streams:
                await stream.aclose()
            if calls:
                await asyncio.wait(calls)
        finally:
            if self._channel is not None:
                await self._channel.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def generate(self, prompt: Prompt, *, timeout: float | None = None,
                       **kwargs: Unpack[GenerateOptions]) -> GenerateResult:
        collector = _convert.GenerateCollector()
        async with self.stream(prompt, timeout=timeout, **kwargs) as events:
            async for event in events:
                collector.add(event)
        return collector.result()

    def stream(self, prompt: Prompt, *, timeout: float | None = None,
               **kwargs: Unpack[GenerateOptions]) -> AsyncEventStream:
        """The events of a request. It is sent when the first one is asked for."""
        request = options.generate_request(prompt, kwargs)

        async def start(attempts: Attempts) -> Any:
            def call(stub: Any, message: Any) -> Any:
                return stub(message, timeout=attempts.seconds_left(), metadata=self._metadata())

            if request.ByteSize() > options.SMALL_MESSAGE_BYTES:
                if self._message_limit is None:
                    info = await call(self._stubs.model_info, _wire.GetModelInfoRequest())
                    self._message_limit = info.limits.max_message_bytes
                if request.ByteSize() > self._message_limit:
                    return call(self._stubs.generate_upload, options.upload_parts(request, self._message_limit))
            return call(self._stubs.generate, request)

        return AsyncEventStream(self._responses(start, timeout, "tokens"))

    async def score(self, prompt: Prompt, *, top_logprobs: int | None = None, request_id: str | None = None,
                    priority: Priority | None = None, timeout: float | None = None) -> ScoreResult:
        request = options.score_request(prompt, top_logprobs, request_id, priority)
        collector = _convert.ScoreCollector()

        async def start(attempts: Attempts) -> Any:
            return self._stubs.score(request, timeout=attempts.seconds_left(), metadata=self._metadata())

        responses = self._responses(start, timeout, "scored")
        try:
            async for message in responses:
                collector.add(message)
        finally:
            await responses.aclose()
        return collector.result(with_top=bool(top_logprobs))

    async def tokenize(self, text: str, *, add_bos: bool | None = None,
                       timeout: float | None = None) -> tuple[int, ...]:
        request = options.tokenize_request(text, add_bos)
        return tuple((await self._unary(self._stubs.tokenize, request, timeout)).token_ids)

    async def detokenize(self, token_ids: Sequence[int], *, timeout: float | None = None) -> str:
        request = options.detokenize_request(token_ids)
        return str((await self._unary(self._stubs.detokenize, request, timeout)).text)

    async def model_info(self, *, timeout: float | None = None) -> ModelInfo:
        return _convert.model_info(await self._unary(self._stubs.model_info, _wire.GetModelInfoRequest(), timeout))

    async def health(self, service: str = "", *, timeout: float | None = None) -> HealthStatus:
        request = _wire.HealthCheckRequest(service=service)
        return HealthStatus((await self._unary(self._stubs.health, request, timeout)).status)

    def _responses(self, start: Callable[[Attempts], Awaitable[Any]], timeout: float | None,
                   output: str) -> AsyncResponseStream:
        responses = AsyncResponseStream(start, lambda: self._attempts(timeout), output)
        self._streams.add(responses)
        return responses

    async def _unary(self, stub: Any, request: _wire.Message, timeout: float | None) -> Any:
        attempts = self._attempts(timeout)

        async def run() -> Any:
            while True:
                try:
                    return await stub(request, timeout=attempts.seconds_left(), metadata=self._metadata())
                except grpc.RpcError as error:
                    failure = from_rpc_error(error)
                    delay = attempts.delay_after(failure)
                    if delay is None:
                        raise failure from error
                await asyncio.sleep(delay)

        task = _start(run())
        self._unary_calls.add(task)
        await _wait_for(task)
        if task.cancelled() and self._closed:
            raise client_closed()
        return task.result()


def _start(work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    """A task whose exception nobody need take."""
    task = asyncio.ensure_future(work)
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    return task


async def _wait_for(task: asyncio.Task[Any]) -> None:
    """Returns when it has ended, however. CancelledError: the caller is cancelled, which ends the task. To await the
    task itself would not tell this from a task that was cancelled alone."""
    try:
        await asyncio.wait({task})
    except asyncio.CancelledError:
        task.cancel()
        await asyncio.wait({task})
        raise


class AsyncResponseStream(AsyncIterator[Any]):
    """The messages of one streaming request, which is sent again until the first output message."""

    def __init__(self, start: Callable[[Attempts], Awaitable[Any]], attempts: Callable[[], Attempts],
                 output: str) -> None:
        self._closed = False
        self._failure: CancelledError | None = None  # of end(): what the reader has yet to be told
        self._start = start
        self._make_attempts = attempts  # the time counts from the first message that is asked for
        self._attempts: Attempts | None = None
        self._output = output  # the kind of event after which nothing is sent again
        self._output_seen = False
        self._call: Any = None
        self._reading: asyncio.Task[Any] | None = None  # of one message: a task, so that close() can end it

    async def _read(self, attempts: Attempts, delay: float) -> Any:
        if self._call is None:
            await asyncio.sleep(delay)
            self._call = await self._start(attempts)
        return await self._call.read()

    async def __anext__(self) -> Any:
        if self._attempts is None:
            self._attempts = self._make_attempts()
        delay = 0.0
        while not self._closed:
            self._reading = _start(self._read(self._attempts, delay))
            try:
                await _wait_for(self._reading)
                if self._closed:
                    break
                message = self._reading.result()
            except asyncio.CancelledError:
                self.close()
                raise
            except grpc.RpcError as error:
                failure = from_rpc_error(error)
                retry_after = None if self._output_seen else self._attempts.delay_after(failure)
                if retry_after is None:
                    self.close()
                    raise failure from error
                delay = retry_after
                self._call = None
            else:
                if message is grpc.aio.EOF:
                    self._closed = True
                    break
                self._output_seen = self._output_seen or message.WhichOneof("event") == self._output
                return message
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        raise StopAsyncIteration

    def close(self) -> None:
        self._closed = True
        if self._reading is not None:
            self._reading.cancel()
        if self._call is not None:
            self._call.cancel()

    def end(self, failure: CancelledError) -> None:
        """close(), of which the reader is told by `failure`, unless the stream has ended before."""
        if not self._closed:
            self._failure = failure
        self.close()

    async def aclose(self) -> None:
        """close(), and nothing of the stream is left in the event loop."""
        self.close()
        if self._reading is not None and not self._reading.done():
            await asyncio.wait({self._reading})


class AsyncEventStream(AsyncIterator[GenerateEvent]):
    """As EventStream. Leaving the `async with` block or aclose() cancels the request."""

    def __init__(self, responses: AsyncResponseStream) -> None:
        self._responses = responses
        self._closed = False
        self._finished = False

    async def __anext__(self) -> GenerateEvent:
        async for message in self._responses:
            event = _convert.event(message)
            if event is not None:
                self._finished = self._finished or isinstance(event, Finished)
                return event
        if not self._finished and not self._closed:
            self._closed = True
            raise _convert.truncated("Finished")
        raise StopAsyncIteration

    async def aclose(self) -> None:
        self._closed = True
        await self._responses.aclose()

    async def __aenter__(self) -> AsyncEventStream:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None,
                        traceback: TracebackType | None) -> None:
        await self.aclose()
