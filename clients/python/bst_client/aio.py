"""AsyncClient: the server's RPCs for asyncio."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import TYPE_CHECKING, Any, AsyncIterator, Awaitable, Callable, Sequence

import grpc
import grpc.aio

from . import _convert, _wire, options
from .connection import Connection
from .errors import from_rpc_error
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

    @property
    def _stubs(self) -> _wire.Stubs:
        if self._opened is None:
            self._channel = self._open(grpc.aio)
            self._opened = _wire.Stubs(self._channel)
        return self._opened

    async def close(self) -> None:
        """Ends what is running; no call may follow."""
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

        return AsyncEventStream(AsyncResponseStream(start, lambda: self._attempts(timeout), "tokens"))

    async def score(self, prompt: Prompt, *, top_logprobs: int | None = None, request_id: str | None = None,
                    priority: Priority | None = None, timeout: float | None = None) -> ScoreResult:
        request = options.score_request(prompt, top_logprobs, request_id, priority)
        collector = _convert.ScoreCollector()

        async def start(attempts: Attempts) -> Any:
            return self._stubs.score(request, timeout=attempts.seconds_left(), metadata=self._metadata())

        responses = AsyncResponseStream(start, lambda: self._attempts(timeout), "scored")
        try:
            async for message in responses:
                collector.add(message)
        finally:
            responses.close()
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

    async def _unary(self, stub: Any, request: _wire.Message, timeout: float | None) -> Any:
        attempts = self._attempts(timeout)
        while True:
            try:
                return await stub(request, timeout=attempts.seconds_left(), metadata=self._metadata())
            except grpc.RpcError as error:
                failure = from_rpc_error(error)
                delay = attempts.delay_after(failure)
                if delay is None:
                    raise failure from error
            await asyncio.sleep(delay)


class AsyncResponseStream(AsyncIterator[Any]):
    """The messages of one streaming request, which is sent again until the first output message."""

    def __init__(self, start: Callable[[Attempts], Awaitable[Any]], attempts: Callable[[], Attempts],
                 output: str) -> None:
        self._closed = False
        self._start = start
        self._make_attempts = attempts  # the time counts from the first message that is asked for
        self._attempts: Attempts | None = None
        self._output = output  # the kind of event after which nothing is sent again
        self._output_seen = False
        self._call: Any = None
        self._beginning: asyncio.Task[None] | None = None  # of _call: a task, so that close() can end it

    async def _begin(self, attempts: Attempts, delay: float) -> None:
        async def begin() -> None:
            await asyncio.sleep(delay)
            self._call = await self._start(attempts)

        if self._call is None:
            self._beginning = asyncio.ensure_future(begin())
            await self._beginning

    async def __anext__(self) -> Any:
        if self._attempts is None:
            self._attempts = self._make_attempts()
        delay = 0.0
        while not self._closed:
            try:
                await self._begin(self._attempts, delay)
                message = await self._call.read()
            except asyncio.CancelledError:
                if self._closed:  # by another task; this one is not cancelled
                    break
                self.close()
                raise
            except grpc.RpcError as error:
                if self._closed:
                    break
                failure = from_rpc_error(error)
                retry_after = None if self._output_seen else self._attempts.delay_after(failure)
                if retry_after is None:
                    self.close()
                    raise failure from error
                delay = retry_after
                self._call = None
            else:
                if message is grpc.aio.EOF:
                    break
                self._output_seen = self._output_seen or message.WhichOneof("event") == self._output
                return message
        raise StopAsyncIteration

    def close(self) -> None:
        self._closed = True
        if self._beginning is not None:
            self._beginning.cancel()
        if self._call is not None:
            self._call.cancel()

    async def aclose(self) -> None:
        """close(), and nothing of the stream is left in the event loop."""
        self.close()
        if self._beginning is not None:
            await asyncio.wait({self._beginning})


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
