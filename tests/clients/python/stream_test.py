"""Streams against a server that answers as it is told: events, ends, retries, cancellation."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import unittest
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Awaitable, Callable
from unittest import mock

import grpc

import bst_client
from bst_client import Accepted, AsyncClient, Client, Finished, FinishReason, RetryPolicy, Tokens, _wire
from bst_client.retry import Attempts
from fake_server import Answer, FakeServer, accepted, ended, finished, tokens, whole

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
AT_ONCE = (("grpc-retry-pushback-ms", "0"),)
NEVER = (("grpc-retry-pushback-ms", "-1"),)
RETRY = RetryPolicy(max_attempts=3, initial_backoff=0.01, max_backoff=0.02)


class EventsTest(unittest.TestCase):
    def test_what_a_stream_becomes(self) -> None:
        with FakeServer(whole(), whole()) as server, Client(server.target) as client:
            events = list(client.stream("x"))
            self.assertEqual([type(event) for event in events], [Accepted, Tokens, Tokens, Finished])
            self.assertEqual(events[0], Accepted("fake", 7, 3, 0, 0))
            self.assertEqual((events[1].token_ids, events[1].text), ((97,), "a"))
            result = client.generate("x")
            self.assertEqual((result.text, result.token_ids, result.seed), ("ab", (97, 98), 7))
            self.assertEqual((result.finish_reason, result.stop_string), (FinishReason.MAX_TOKENS, None))

    def test_echo_is_not_output(self) -> None:
        answer = Answer([accepted(), tokens(1, text="p", is_prompt=True), tokens(2, text="o"), finished()])
        with FakeServer(answer) as server, Client(server.target) as client:
            result = client.generate("p", echo=True)
            self.assertEqual((result.prompt_text, result.text, result.token_ids), ("p", "o", (2,)))

    def test_what_a_newer_server_may_send(self) -> None:
        answer = Answer([accepted(), _wire.GenerateEvent(), finished(reason=99)])
        with FakeServer(answer) as server, Client(server.target) as client:
            self.assertEqual(client.generate("x").finish_reason, FinishReason.UNSPECIFIED)

    def test_a_failed_stream_keeps_what_it_had(self) -> None:
        answer = Answer([accepted(), tokens(1, text="a"), finished(reason=7)], grpc.StatusCode.INTERNAL, "NaN")
        with FakeServer(answer) as server, Client(server.target) as client:
            events = client.stream("x")
            self.assertEqual([next(events).__class__ for _ in range(3)], [Accepted, Tokens, Finished])
            with self.assertRaisesRegex(bst_client.InternalError, "NaN"):
                next(events)
            self.assertEqual(list(events), [])

    def test_an_end_without_finished_is_an_error(self) -> None:
        with FakeServer(*[Answer([accepted()])] * 2, Answer([])) as server, Client(server.target) as client:
            events = client.stream("x")
            self.assertIsInstance(next(events), Accepted)
            with self.assertRaisesRegex(bst_client.InternalError, "without a Finished event"):
                next(events)
            with self.assertRaisesRegex(bst_client.InternalError, "without a Finished event"):
                client.generate("x")
            with self.assertRaisesRegex(bst_client.InternalError, "without a"):
                client.score("x")


class ContinuationsTest(unittest.TestCase):
    ANSWER = Answer([accepted(), tokens(97, text="a"), tokens(98, text="b", index=1), ended(1, reason=1),
                     tokens(99, text="c"), ended(0), _wire.GenerateEvent(finished=_wire.Finished(
                         reason=4, sequences=[ended(0).sequence_finished, ended(1, 1).sequence_finished]))])

    def check(self, result: bst_client.GenerateResult) -> None:
        self.assertEqual((result.text, result.token_ids, result.finish_reason), ("ac", (97, 99), FinishReason.MAX_TOKENS))
        self.assertEqual([(c.sequence_index, c.text, c.token_ids, c.finish_reason) for c in result.continuations],
                         [(0, "ac", (97, 99), FinishReason.MAX_TOKENS), (1, "b", (98,), FinishReason.EOS)])

    def test_results_have_all_of_them(self) -> None:
        async def run(target: str) -> bst_client.GenerateResult:
            async with AsyncClient(target) as client:
                return await client.generate("x", num_sequences=2, priority=bst_client.Priority.LOW)

        with FakeServer(self.ANSWER, self.ANSWER, whole()) as server, Client(server.target) as client:
            self.check(client.generate("x", num_sequences=2, priority=bst_client.Priority.HIGH))
            self.assertEqual((server.requests[0].sampling.num_sequences, server.requests[0].priority), (2, 3))
            self.check(asyncio.run(run(server.target)))
            self.assertEqual(server.requests[1].priority, 1)
            self.assertEqual(client.generate("x").continuations, ())

    def test_the_stream_says_when_one_is_complete(self) -> None:
        with FakeServer(self.ANSWER) as server, Client(server.target) as client:
            ends = [event for event in client.stream("x") if isinstance(event, bst_client.SequenceFinished)]
            self.assertEqual([(end.sequence_index, end.reason) for end in ends],
                             [(1, FinishReason.EOS), (0, FinishReason.MAX_TOKENS)])


class UploadTest(unittest.TestCase):
    """Prompts above the server's message limit."""

    LIMIT = 3000

    def generate(self, server: FakeServer, *prompts: Any) -> None:
        """Each with a Client, and each with an AsyncClient."""
        async def run() -> None:
            async with AsyncClient(server.target) as client:
                for prompt in prompts:
                    self.assertEqual((await client.generate(prompt, seed=5)).text, "ab")

        with Client(server.target) as client:
            for prompt in prompts:
                self.assertEqual(client.generate(prompt, seed=5).text, "ab")
        asyncio.run(run())

    def test_texts_and_ids_in_parts(self) -> None:
        text, ids = "a\u20ac\U0001d11e" * 1000, list(range(200_000, 205_000))
        with FakeServer(*[whole()] * 4, message_limit=self.LIMIT) as server:
            self.generate(server, text, ids)
            self.assertEqual(server.asked_for_info, 2)  # once by each client
            self.assertEqual(len(server.uploads), 4)
            for upload in server.uploads:
                self.assertEqual(upload[0].request.sampling.seed, 5)
                self.assertIsNone(upload[0].request.WhichOneof("prompt"))
                self.assertLessEqual(max(part.ByteSize() for part in upload), self.LIMIT)
            for upload in server.uploads[::2]:
                self.assertEqual("".join(part.text for part in upload), text)
            for upload in server.uploads[1::2]:
                self.assertEqual([token for part in upload for token in part.token_ids.ids], ids)

    def test_what_fits_is_one_message(self) -> None:
        with FakeServer(*[whole()] * 4, message_limit=self.LIMIT) as server:
            self.generate(server, "x", "y" * 2000)
            self.assertEqual((len(server.uploads), len(server.requests)), (0, 4))

    def test_small_requests_do_not_ask(self) -> None:
        with FakeServer(*[whole()] * 2) as server:
            self.generate(server, "x" * 900)
            self.assertEqual(server.asked_for_info, 0)

    def test_the_question_for_the_limit_counts_in_the_timeout(self) -> None:
        class Clock:
            now = 0.0

            def monotonic(self) -> float:
                return self.now

        def run_sync(target: str) -> None:
            with Client(target, timeout=1000) as client:
                client.generate("y" * 2000)

        async def run_async(target: str) -> None:
            async with AsyncClient(target) as client:
                await client.generate("y" * 2000, timeout=1000)

        for run in (run_sync, lambda target: asyncio.run(run_async(target))):
            clock = Clock()
            with self.subTest(run), FakeServer(whole(), on_info=lambda: setattr(clock, "now", 600.0)) as server, \
                    mock.patch("bst_client.retry.time", clock):
                run(server.target)
                self.assertEqual(server.asked_for_info, 1)
                self.assertLess(server.seconds_left[0], 500)

    def test_every_attempt_sends_the_whole_prompt(self) -> None:
        answers = [Answer(code=UNAVAILABLE, trailers=AT_ONCE), whole()]
        with FakeServer(*answers, message_limit=self.LIMIT) as server, Client(server.target, retry=RETRY) as client:
            self.assertEqual(client.generate("z" * 10_000).text, "ab")
            self.assertEqual(["".join(part.text for part in upload) for upload in server.uploads], ["z" * 10_000] * 2)


class RetryTest(unittest.TestCase):
    """Each case with Client and AsyncClient."""

    def outcome(self, *answers: Answer, retry: RetryPolicy | None = RETRY, **kwargs: Any) -> list[tuple[Any, int]]:
        """Of generate("x"): the text or the exception, and the number of calls; sync, async."""
        async def run_async(target: str) -> Any:
            async with AsyncClient(target, retry=retry) as client:
                return (await client.generate("x", **kwargs)).text

        def run_sync(target: str) -> Any:
            with Client(target, retry=retry) as client:
                return client.generate("x", **kwargs).text

        outcomes = []
        for run in (run_sync, lambda target: asyncio.run(run_async(target))):
            with FakeServer(*answers) as server:
                try:
                    outcome = run(server.target)
                except bst_client.BstError as error:
                    outcome = error.code
                outcomes.append((outcome, server.calls))
        return outcomes

    def test_no_retry_unless_asked_for(self) -> None:
        self.assertEqual(self.outcome(Answer(code=UNAVAILABLE, trailers=AT_ONCE), whole(), retry=None),
                         [(UNAVAILABLE, 1)] * 2)

    def test_retries_until_it_works(self) -> None:
        self.assertEqual(self.outcome(Answer(code=UNAVAILABLE), Answer(code=EXHAUSTED, trailers=AT_ONCE), whole()),
                         [("ab", 3)] * 2)

    def test_attempts_run_out(self) -> None:
        self.assertEqual(self.outcome(*[Answer(code=UNAVAILABLE, trailers=AT_ONCE)] * 4), [(UNAVAILABLE, 3)] * 2)

    def test_the_prompt_may_be_read_again(self) -> None:
        self.assertEqual(self.outcome(Answer([accepted()], UNAVAILABLE, trailers=AT_ONCE), whole()), [("ab", 2)] * 2)

    def test_never_after_the_first_token(self) -> None:
        self.assertEqual(self.outcome(Answer([accepted(), tokens(1)], UNAVAILABLE, trailers=AT_ONCE), whole()),
                         [(UNAVAILABLE, 1)] * 2)

    def test_negative_pushback_ends_it(self) -> None:
        self.assertEqual(self.outcome(Answer(code=UNAVAILABLE, trailers=NEVER), whole()), [(UNAVAILABLE, 1)] * 2)

    def test_other_failures_are_final(self) -> None:
        for code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.INTERNAL, grpc.StatusCode.ALREADY_EXISTS):
            self.assertEqual(self.outcome(Answer(code=code, trailers=AT_ONCE), whole()), [(code, 1)] * 2)
        too_large = Answer(code=EXHAUSTED, message="Received message larger than max (6 vs. 5)")
        self.assertEqual(self.outcome(too_large, whole()), [(EXHAUSTED, 1)] * 2)

    def test_no_wait_beyond_the_deadline(self) -> None:
        started = time.monotonic()
        answer = Answer(code=UNAVAILABLE, trailers=(("grpc-retry-pushback-ms", "60000"),))
        self.assertEqual(self.outcome(answer, whole(), timeout=20.0), [(UNAVAILABLE, 1)] * 2)
        self.assertLess(time.monotonic() - started, 20)

    def test_unary_calls_too(self) -> None:
        async def run_async(target: str) -> tuple[int, ...]:
            async with AsyncClient(target, retry=RETRY) as client:
                return await client.tokenize("x")

        answers = (Answer(code=UNAVAILABLE, trailers=AT_ONCE), Answer([_wire.TokenizeResponse(token_ids=[5])]))
        with FakeServer(*answers) as server, Client(server.target, retry=RETRY) as client:
            self.assertEqual(client.tokenize("x"), (5,))
        with FakeServer(*answers) as server:
            self.assertEqual(asyncio.run(run_async(server.target)), (5,))

    def test_score_starts_anew(self) -> None:
        first, second, scored, done = (_wire.ScoreEvent() for _ in range(4))
        first.accepted.first_token_id = 1
        second.accepted.first_token_id = 2
        scored.scored.token_ids.append(3)
        scored.scored.logprobs.append(-0.5)
        done.finished.mean_nll = 0.5
        answers = (Answer([first], UNAVAILABLE, trailers=AT_ONCE), Answer([second, scored, done]))
        with FakeServer(*answers) as server, Client(server.target, retry=RETRY) as client:
            result = client.score("x")
            self.assertEqual((result.token_ids, result.logprobs, result.mean_nll), ((2, 3), (None, -0.5), 0.5))

    def test_delays(self) -> None:
        policy = RetryPolicy(max_attempts=9, initial_backoff=1, max_backoff=3, multiplier=2)
        attempts = Attempts(policy, None)
        plain = bst_client.UnavailableError(UNAVAILABLE, "")
        for expected in (1, 2, 3, 3):
            delay = attempts.delay_after(plain)
            self.assertTrue(0.8 * expected <= delay <= 1.2 * expected, (delay, expected))
        self.assertEqual(attempts.delay_after(bst_client.UnavailableError(UNAVAILABLE, "", (), 7.0)), 7.0)
        self.assertEqual(attempts.delay_after(bst_client.UnavailableError(UNAVAILABLE, "", (), 7.0, 250)), 0.25)
        patient = Attempts(RetryPolicy(max_attempts=10**6), None)
        self.assertLessEqual(max(patient.delay_after(plain) for _ in range(3000)), 1.2 * RetryPolicy.max_backoff)
        for wrong in ({"max_attempts": 0}, {"initial_backoff": -1.0}, {"max_backoff": -1.0}, {"multiplier": 0.5}):
            with self.assertRaises(ValueError):
                RetryPolicy(**wrong)


class CancellationTest(unittest.TestCase):
    HELD = Answer([accepted()], hold=True)

    def gone(self, server: FakeServer) -> None:
        self.assertTrue(server.gone.get(timeout=30))

    def test_close_block_and_dropped_reference(self) -> None:
        def by_close(client: Client) -> None:
            events = client.stream("x")
            next(events)
            events.close()
            self.assertEqual(list(events), [])

        def by_block(client: Client) -> None:
            with client.stream("x") as events:
                next(events)

        def by_break(client: Client) -> None:
            for _ in client.stream("x"):
                break
            gc.collect()

        for cancel in (by_close, by_block, by_break):
            with self.subTest(cancel.__name__), FakeServer(self.HELD) as server, Client(server.target) as client:
                cancel(client)
                self.gone(server)

    def test_close_from_another_thread(self) -> None:
        with FakeServer(self.HELD) as server, Client(server.target) as client:
            events = client.stream("x")
            next(events)
            threading.Timer(0.05, events.close).start()
            self.assertEqual(list(events), [])  # it blocks until then
            self.gone(server)

    def test_close_ends_the_wait_for_a_retry(self) -> None:
        answer = Answer([accepted()], UNAVAILABLE, trailers=(("grpc-retry-pushback-ms", "600000"),))
        with FakeServer(answer) as server, Client(server.target, retry=RETRY) as client:
            events = client.stream("x")
            next(events)
            threading.Timer(0.05, events.close).start()
            self.assertEqual(list(events), [])

    def run_async(self, use: Callable[[AsyncClient, FakeServer], Awaitable[None]], *answers: Answer) -> None:
        async def run() -> None:
            with FakeServer(*answers) as server:
                async with AsyncClient(server.target) as client:
                    await use(client, server)
                    await asyncio.to_thread(self.gone, server)

        asyncio.run(run())

    def test_async_task(self) -> None:
        async def use(client: AsyncClient, server: FakeServer) -> None:
            task = asyncio.ensure_future(client.generate("x"))
            while server.calls == 0:
                await asyncio.sleep(0.01)
            task.cancel()
            with self.assertRaises(asyncio.CancelledError):
                await task

        self.run_async(use, self.HELD)

    def test_async_block_and_close_by_another_task(self) -> None:
        async def by_block(client: AsyncClient, _: FakeServer) -> None:
            async with client.stream("x") as events:
                self.assertIsInstance(await events.__anext__(), Accepted)
            self.assertEqual([event async for event in events], [])

        async def by_other(client: AsyncClient, _: FakeServer) -> None:
            events = client.stream("x")
            await events.__anext__()
            asyncio.get_running_loop().call_later(0.05, lambda: asyncio.ensure_future(events.aclose()))
            self.assertEqual([event async for event in events], [])  # it waits until then

        for use in (by_block, by_other):
            with self.subTest(use.__name__):
                self.run_async(use, self.HELD)

    def run_closed_early(self, server: FakeServer, prompt: str, has_begun: Callable[[], bool]) -> None:
        """Closes a stream that has not come to its request; nothing may be left in the event loop."""
        complaints: list[dict[str, Any]] = []

        async def run() -> None:
            asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
            async with AsyncClient(server.target, retry=RETRY) as client:
                before = asyncio.all_tasks()
                events = client.stream(prompt)

                async def read() -> list[Any]:
                    return [event async for event in events]

                reader = asyncio.ensure_future(read())
                while not has_begun():
                    await asyncio.sleep(0.01)
                await events.aclose()
                async with asyncio.timeout(10):  # gRPC's own tasks may have one turn to take
                    while asyncio.all_tasks() - {reader} - before:
                        await asyncio.sleep(0.01)
                self.assertLessEqual(len(await asyncio.wait_for(reader, 10)), 1)  # Accepted
                self.assertEqual([event async for event in events], [])

        asyncio.run(run())
        gc.collect()
        self.assertEqual(complaints, [])

    def test_async_close_while_the_limit_is_asked_for(self) -> None:
        with FakeServer(self.HELD, hold_info=True) as server:
            self.run_closed_early(server, "x" * 2000, lambda: server.asked_for_info > 0)
            self.gone(server)
            self.assertEqual(server.calls, 0)  # the request itself was never sent

    def test_async_close_ends_the_wait_for_a_retry(self) -> None:
        refusal = Answer([accepted()], UNAVAILABLE, trailers=(("grpc-retry-pushback-ms", "600000"),))
        with FakeServer(refusal) as server:
            self.run_closed_early(server, "x", lambda: server.calls > 0)
            self.assertEqual(server.calls, 1)

    REFUSED = Answer(code=UNAVAILABLE, trailers=(("grpc-retry-pushback-ms", "60000"),))
    CALLS: list[Callable[[Any], Any]] = [lambda client: client.generate("x"), lambda client: client.score("x"),
                                         lambda client: client.tokenize("x")]

    def test_closing_the_client_ends_what_runs(self) -> None:
        for call in self.CALLS:
            # One waits for the server, one for its next attempt.
            for answer in Answer(hold=True), self.REFUSED:
                with self.subTest(call=call, answer=answer), FakeServer(answer) as server, \
                        ThreadPoolExecutor(1) as pool:
                    client = Client(server.target, retry=RETRY)
                    self.addCleanup(client.close)
                    running = pool.submit(call, client)
                    while server.calls == 0:
                        time.sleep(0.01)
                    if not answer.hold:
                        time.sleep(0.05)  # the refusal comes; where it does not in time, this tests the first case
                    client.close()
                    with self.assertRaisesRegex(bst_client.CancelledError, "closed"):
                        running.result(30)
                    with self.assertRaisesRegex(bst_client.CancelledError, "closed"):
                        call(client)
                    if answer.hold:
                        self.gone(server)

    def test_closing_the_async_client_ends_what_runs(self) -> None:
        complaints: list[dict[str, Any]] = []

        async def run(target: str, has_begun: Callable[[], bool], call: Callable[[Any], Any]) -> None:
            asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
            before = asyncio.all_tasks()
            async with AsyncClient(target, retry=RETRY) as client:
                tasks = {asyncio.ensure_future(call(client)) for _ in range(3)}
                while not has_begun():
                    await asyncio.sleep(0.01)
                cancelled, *running = tasks
                cancelled.cancel()  # stays what it is, though the client is closed before it has its turn
            async with asyncio.timeout(10):  # gRPC's own tasks may have one turn to take
                while asyncio.all_tasks() - before:
                    await asyncio.sleep(0.01)
            for task in running:
                self.assertIsInstance(task.exception(), bst_client.CancelledError)
            self.assertTrue(cancelled.cancelled())
            with self.assertRaises(bst_client.CancelledError):
                await call(client)

        for call in self.CALLS:
            for answer in Answer(hold=True), self.REFUSED:
                with self.subTest(call=call, answer=answer), FakeServer(*[answer] * 3) as server:
                    asyncio.run(run(server.target, lambda: server.calls == 3, call))
        gc.collect()
        # gRPC itself may have news for the loop of the subtest before, which is closed.
        self.assertEqual([c for c in complaints if "PollerCompletionQueue" not in c["message"]], [])

    def test_closing_the_async_client_ends_open_streams(self) -> None:
        async def run(server: FakeServer) -> None:
            async with AsyncClient(server.target) as client:
                done, held, unused = client.stream("x"), client.stream("x"), client.stream("x")
                self.assertEqual(len([event async for event in done]), 4)
                self.assertIsInstance(await held.__anext__(), Accepted)
            self.assertEqual([event async for event in done], [])
            for events in held, unused:
                with self.assertRaises(bst_client.CancelledError):
                    await asyncio.wait_for(events.__anext__(), 30)

        with FakeServer(whole(), self.HELD) as server:
            asyncio.run(run(server))
            self.gone(server)

    def test_cancelled_by_the_server_is_an_error(self) -> None:
        async def run_async(target: str) -> None:
            async with AsyncClient(target) as client:
                await client.generate("x")

        answer = Answer([accepted(), finished(reason=6)], grpc.StatusCode.CANCELLED, "aborted")
        with FakeServer(answer, answer) as server, Client(server.target) as client:
            with self.assertRaisesRegex(bst_client.CancelledError, "aborted"):
                client.generate("x")
            with self.assertRaisesRegex(bst_client.CancelledError, "aborted"):
                asyncio.run(run_async(server.target))

    def test_deadline(self) -> None:
        async def run_async(target: str) -> None:
            async with AsyncClient(target, timeout=0.3) as client:
                await client.generate("x")

        with FakeServer(self.HELD, self.HELD, self.HELD) as server, Client(server.target) as client:
            with self.assertRaises(bst_client.DeadlineExceededError):
                client.generate("x", timeout=0.3)
            with self.assertRaises(bst_client.DeadlineExceededError):
                asyncio.run(run_async(server.target))


if __name__ == "__main__":
    unittest.main()
