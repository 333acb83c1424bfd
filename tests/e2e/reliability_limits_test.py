"""Limits, deadlines, Abort and draining on the real server, in every phase of a request."""

from __future__ import annotations

import signal
import threading
import time
import unittest
from typing import Any, Callable, Iterator

import grpc

import bst_process
from bst_process import ServerProcess
from raw_calls import Api, detail, finish

# Writes A for ever, and so stays until it is ended.
ENDLESS: dict[str, Any] = {"text": "x", "sampling": {"temperature": 0, "logit_bias": {65: 100}},
                           "stopping": {"max_new_tokens": 1_000_000, "ignore_eos": True}}
# Is read for many seconds.
LONG_PROMPT: dict[str, Any] = {"token_ids": {"ids": [i % 250 for i in range(4_000_000)]}}
SHORT: dict[str, Any] = {"text": "y", "stopping": {"max_new_tokens": 2, "ignore_eos": True}}
ONE_SLOT = ("--max_sequences=1", "--control_listen=127.0.0.1:0", "--chunk_tokens=1024")
# So that a long prompt takes its time on a fast machine too.
SMALL_CHUNKS = "--chunk_tokens=16"


def first(stream: Any, kind: str) -> Any:
    """Reads up to the first event of that kind."""
    for event in stream:
        if event.WhichOneof("event") == kind:
            return event
    raise AssertionError(f"no {kind}: {stream.code()}")


class ServerTest(unittest.TestCase):
    def start(self, *flags: str) -> None:
        self.server = self.enterContext(ServerProcess(*flags, "--control_listen=127.0.0.1:0"))
        self.api = self.enterContext(Api(self.server.grpc))
        self.control = self.enterContext(Api(self.server.addresses["control"]))

    def wait_for_load(self, **fields: int) -> None:
        deadline = time.monotonic() + 60
        while any(getattr(load := self.control.load(), name) != value for name, value in fields.items()):
            self.assertLess(time.monotonic(), deadline, f"{load} is not {fields}")
            time.sleep(0.002)

    def cancelled(self, stage: str, cause: str) -> float:
        return self.server.metric(f'bst_requests_cancelled_total{{cause="{cause}",stage="{stage}"}}')

    def hold_the_slot(self) -> Any:
        self.running = self.api.generate(**ENDLESS, timeout=None)  # a call that nobody holds is cancelled
        first(self.running, "tokens")
        return self.running

    def upload(self, timeout: float | None = 60, **fields: Any) -> Any:
        """A GenerateUpload of which the end never comes."""
        end = threading.Event()
        self.addCleanup(end.set)

        def parts() -> Iterator[dict[str, Any]]:
            yield {"request": {"token_ids": {"ids": [7] * 5000}, **fields}}
            end.wait()

        self.parts = parts()
        return self.api.call("Generation/GenerateUpload", self.parts, timeout)

    def finish_of(self, stream: Any) -> tuple[Any, str]:
        """The Finished event (None without one) and the status code."""
        events, code = finish(stream)
        last = events[-1] if events else None
        return (last.finished if last is not None and last.WhichOneof("event") == "finished" else None), code


class QueueLimitsTest(ServerTest):
    def refused(self, start: Callable[[], Any], reason: str) -> None:
        before = self.server.metric(f'bst_requests_rejected_total{{reason="{reason}"}}')
        call = start()
        _, code = finish(call)
        self.assertEqual(code, "RESOURCE_EXHAUSTED")
        self.assertEqual(detail(call, "RetryInfo").retry_delay.seconds, 1)
        self.assertEqual(dict(call.trailing_metadata())["grpc-retry-pushback-ms"], "1000")
        self.assertEqual(self.server.metric(f'bst_requests_rejected_total{{reason="{reason}"}}'), before + 1)

    def test_on_by_default(self) -> None:
        self.start()
        limits = self.api.call("Generation/GetModelInfo", {}).limits
        self.assertEqual((limits.max_queue, limits.max_queue_tokens, limits.max_message_bytes),
                         (1024, 16_000_000, 64 << 20))

    def test_in_requests(self) -> None:
        self.start("--max_sequences=1", "--max_queue=2")
        running = self.hold_the_slot()
        waiting = [self.api.generate(**SHORT) for _ in range(2)]
        self.wait_for_load(waiting=2)
        self.refused(lambda: self.api.generate(**SHORT), "queue_requests")
        self.refused(lambda: self.api.score(text="x"), "queue_requests")
        with self.assertRaises(grpc.RpcError) as refusal:
            self.api.call("Generation/GenerateOnce", SHORT)
        self.assertEqual(refusal.exception.code().name, "RESOURCE_EXHAUSTED")
        running.cancel()
        for stream in waiting:
            self.assertEqual(self.finish_of(stream)[1], "OK")
        self.assertEqual(self.finish_of(self.api.generate(**SHORT))[1], "OK")

    def test_in_prompt_tokens(self) -> None:
        self.start("--max_sequences=1", "--max_queue_tokens=1000")
        running = self.hold_the_slot()
        large = self.api.generate(token_ids={"ids": [7] * 5000}, stopping={"max_new_tokens": 1})
        self.wait_for_load(waiting=1)  # an empty queue takes any prompt
        self.refused(lambda: self.api.generate(**SHORT), "queue_tokens")
        large.cancel()
        self.wait_for_load(waiting=0)
        half = self.api.generate(token_ids={"ids": [7] * 600}, stopping={"max_new_tokens": 1})
        self.wait_for_load(queue_tokens=600)
        self.refused(lambda: self.api.generate(token_ids={"ids": [7] * 401}), "queue_tokens")
        rest = self.api.generate(token_ids={"ids": [7] * 400}, stopping={"max_new_tokens": 1})
        self.wait_for_load(queue_tokens=1000)
        running.cancel()
        self.assertEqual([self.finish_of(half)[1], self.finish_of(rest)[1]], ["OK", "OK"])

    def test_in_prompt_tokens_of_uploads(self) -> None:
        self.start("--max_sequences=1", "--max_queue_tokens=1000")
        running = self.hold_the_slot()
        waiting = self.upload(token_ids={"ids": [7] * 600}, stopping={"max_new_tokens": 1})
        self.wait_for_load(queue_tokens=600)
        parts = [{"request": {}}, {"token_ids": {"ids": [7] * 401}}]
        self.refused(lambda: self.api.call("Generation/GenerateUpload", iter(parts)), "queue_tokens")
        self.wait_for_load(queue_tokens=600)
        waiting.cancel()
        running.cancel()
        self.wait_for_load(queue_tokens=0, slots_used=0)

    def test_uploads_that_share_a_small_queue_end(self) -> None:
        self.start("--max_sequences=2", "--max_queue_tokens=500")
        parts = [{"request": {"stopping": {"max_new_tokens": 1}}}, *[{"token_ids": {"ids": [7] * 40}}] * 10]
        calls = [self.api.call("Generation/GenerateUpload", iter(parts)) for _ in range(40)]
        codes = [self.finish_of(call)[1] for call in calls]
        self.assertLessEqual(set(codes), {"OK", "RESOURCE_EXHAUSTED"})
        self.assertGreaterEqual(codes.count("OK"), 2)  # none that has started is refused
        self.wait_for_load(queue_tokens=0, slots_used=0)


class DeadlinesTest(ServerTest):
    """Each deadline in each phase: the code, the cause in the metrics, and a slot that is free again."""

    def setUp(self) -> None:
        self.start(*ONE_SLOT, SMALL_CHUNKS)

    def ended(self, stream: Any, code: str, stage: str, cause: str = "deadline") -> Any:
        finished, seen = self.finish_of(stream)
        self.assertEqual(seen, code)
        self.server.wait_for(f'bst_requests_cancelled_total{{cause="{cause}",stage="{stage}"}}', 1, 20)
        return finished

    def test_queue_timeout(self) -> None:
        running = self.hold_the_slot()
        start = time.monotonic()
        finished = self.ended(self.api.generate(**SHORT, queue_timeout_ms=300), "DEADLINE_EXCEEDED", "queued")
        self.assertGreater(time.monotonic() - start, 0.29)
        self.assertEqual(finished.usage.generated_tokens, 0)
        running.cancel()
        self.wait_for_load(running=0, waiting=0)
        # It is about the queue alone: one that has started goes on.
        stream = self.api.generate(**ENDLESS, queue_timeout_ms=1000)
        first(stream, "tokens")
        time.sleep(1.1)
        self.assertEqual(self.control.load().running, 1)
        stream.cancel()

    def test_time_limit_in_the_queue(self) -> None:
        self.hold_the_slot()
        self.ended(self.api.generate(**SHORT, time_limit_ms=200), "DEADLINE_EXCEEDED", "queued")

    def test_time_limit_in_prefill(self) -> None:
        start = time.monotonic()
        self.ended(self.api.generate(**LONG_PROMPT, time_limit_ms=700), "DEADLINE_EXCEEDED", "prefill")
        self.assertLess(time.monotonic() - start, 10)
        self.wait_for_load(running=0)

    def test_time_limit_in_decode_keeps_the_text(self) -> None:
        finished, code = self.finish_of(self.api.generate(**ENDLESS, time_limit_ms=400))
        self.assertEqual((code, finished.reason), ("OK", 5))
        self.assertGreater(finished.usage.generated_tokens, 0)
        self.wait_for_load(running=0)

    def test_deadline_of_the_call_in_the_queue(self) -> None:
        self.hold_the_slot()
        self.ended(self.api.generate(**SHORT, timeout=0.3), "DEADLINE_EXCEEDED", "queued")
        self.wait_for_load(waiting=0)

    def test_deadline_of_the_call_in_prefill(self) -> None:
        self.ended(self.api.generate(**LONG_PROMPT, timeout=4), "DEADLINE_EXCEEDED", "prefill")
        self.wait_for_load(running=0)

    def test_deadline_of_the_call_in_an_upload(self) -> None:
        self.ended(self.upload(timeout=1), "DEADLINE_EXCEEDED", "prefill")
        self.wait_for_load(running=0)

    def test_time_limit_in_an_upload(self) -> None:
        self.ended(self.upload(time_limit_ms=500), "DEADLINE_EXCEEDED", "prefill")
        self.wait_for_load(running=0)

    def test_deadline_of_the_call_in_decode(self) -> None:
        self.ended(self.api.generate(**ENDLESS, timeout=0.5), "DEADLINE_EXCEEDED", "decode")
        self.wait_for_load(running=0)

    def test_deadline_of_the_call_while_scoring(self) -> None:
        self.ended(self.api.score(**LONG_PROMPT, timeout=4), "DEADLINE_EXCEEDED", "prefill")
        self.wait_for_load(running=0)


class EndingTest(ServerTest):
    """Abort and cancellation: the stream's end, and a slot that is free within a step."""

    def setUp(self) -> None:
        self.start(*ONE_SLOT)

    def steps_until_idle(self, since: int) -> int:
        self.wait_for_load(running=0, waiting=0)
        return int(self.control.load().steps - since)

    def aborted(self, stream: Any, request_id: str, stage: str) -> int:
        """The number of steps when Abort had answered: how long that takes a busy machine decides, not the server."""
        self.control.abort(request_id)
        steps = int(self.control.load().steps)
        events, code = finish(stream)
        self.assertEqual(code, "CANCELLED")
        self.assertEqual(stream.details(), "aborted by the operator")
        self.assertEqual(events[-1].WhichOneof("event"), "finished")
        self.assertEqual(self.cancelled(stage, "abort"), 1)
        with self.assertRaises(grpc.RpcError) as unknown:
            self.control.abort(request_id)
        self.assertEqual(unknown.exception.code().name, "NOT_FOUND")
        return steps

    def test_abort_in_the_queue(self) -> None:
        self.hold_the_slot()
        waiting = self.api.generate(**SHORT, request_id="mine")
        self.wait_for_load(waiting=1)
        self.aborted(waiting, "mine", "queued")
        self.wait_for_load(running=1, waiting=0)

    def test_abort_in_prefill(self) -> None:
        stream = self.api.generate(**LONG_PROMPT, request_id="mine")
        first(stream, "prefill_progress")
        steps = self.aborted(stream, "mine", "prefill")
        self.assertLessEqual(self.steps_until_idle(steps), 1)  # the one that ran

    def test_abort_in_an_upload(self) -> None:
        stream = self.upload(request_id="mine")
        first(stream, "prefill_progress")
        self.aborted(stream, "mine", "prefill")
        self.wait_for_load(running=0)

    def test_abort_in_decode(self) -> None:
        stream = self.api.generate(**ENDLESS, request_id="mine")
        first(stream, "tokens")
        self.aborted(stream, "mine", "decode")
        self.wait_for_load(running=0)

    def test_abort_while_scoring(self) -> None:
        stream = self.api.score(**LONG_PROMPT, request_id="mine")
        first(stream, "scored")
        steps = self.aborted(stream, "mine", "prefill")
        self.assertLessEqual(self.steps_until_idle(steps), 1)  # the one that ran

    def test_cancellation_in_prefill_frees_the_slot_early(self) -> None:
        stream = self.api.generate(**LONG_PROMPT)
        first(stream, "prefill_progress")
        stream.cancel()
        steps = self.control.load().steps  # perhaps before the server has heard of it
        self.assertLess(self.steps_until_idle(steps), 100)  # of nearly 4,000
        self.assertEqual(self.cancelled("prefill", "client"), 1)

    def test_a_burst_of_aborts_and_cancellations(self) -> None:
        """Every request gets exactly one end, whoever is first."""
        streams = [self.api.generate(**ENDLESS, request_id=f"r{i}") for i in range(60)]
        self.wait_for_load(running=1, waiting=59)

        def abort(number: int) -> None:
            try:
                self.control.abort(f"r{number}")
            except grpc.RpcError as error:
                self.assertEqual(error.code().name, "NOT_FOUND")

        threads = [threading.Thread(target=abort, args=(i,)) for i in range(60) for _ in range(2)]
        for thread in threads:
            thread.start()
        for stream in streams[::2]:
            stream.cancel()
        for thread in threads:
            thread.join()
        self.assertEqual({finish(stream)[1] for stream in streams}, {"CANCELLED"})
        self.wait_for_load(running=0, waiting=0)
        ends = sum(self.cancelled(stage, cause) for stage in ("queued", "prefill", "decode")
                   for cause in ("client", "abort"))
        self.assertEqual(ends, 60)


class DrainTest(ServerTest):
    def setUp(self) -> None:
        self.start("--max_sequences=1", "--grace_seconds=600")

    def test_drain_by_the_control_service(self) -> None:
        running = self.api.generate(**SHORT | {"stopping": {"max_new_tokens": 20_000, "ignore_eos": True}})
        first(running, "tokens")
        waiting = self.api.generate(**SHORT)
        self.wait_for_load(waiting=1)
        progress = self.control.call("Control/Drain", {})
        self.assertEqual((next(progress).running, self.api.health(), self.control.health()),
                         (1, "NOT_SERVING", "NOT_SERVING"))
        refused = self.api.generate(**SHORT)
        self.assertEqual(finish(refused)[1], "UNAVAILABLE")
        self.assertEqual(detail(refused, "RetryInfo").retry_delay.seconds, 1)
        self.assertEqual(dict(refused.trailing_metadata())["grpc-retry-pushback-ms"], "1000")
        self.assertEqual(self.server.metric('bst_requests_rejected_total{reason="draining"}'), 1)
        self.assertEqual([self.finish_of(running)[1], self.finish_of(waiting)[1]], ["OK", "OK"])
        messages, code = finish(progress)
        self.assertEqual((code, messages[-1].running + messages[-1].waiting), ("OK", 0))
        self.assertTrue(self.control.load().draining)
        self.assertIsNone(self.server.process.poll())  # drained, not ended
        start = time.monotonic()
        self.assertEqual(self.server.terminate(), 0)
        self.assertLess(time.monotonic() - start, 10)  # idle: no grace is waited for

    def test_sigterm_lets_queued_requests_finish(self) -> None:
        running = self.api.generate(**SHORT | {"stopping": {"max_new_tokens": 20_000, "ignore_eos": True}})
        first(running, "tokens")
        waiting = self.api.generate(**SHORT)
        self.wait_for_load(waiting=1)
        self.server.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 30
        while self.control.health() != "NOT_SERVING":
            self.assertLess(time.monotonic(), deadline)
        self.assertEqual([self.finish_of(running)[1], self.finish_of(waiting)[1]], ["OK", "OK"])
        self.assertEqual(self.server.process.wait(30), 0)

    def test_a_second_drain_and_sigterm_after_drain(self) -> None:
        running = self.hold_the_slot()
        first_drain, second_drain = (self.control.call("Control/Drain", {}) for _ in range(2))
        self.assertEqual((next(first_drain).running, next(second_drain).running), (1, 1))
        first_drain.cancel()
        running.cancel()
        self.assertEqual(finish(second_drain)[1], "OK")
        self.assertEqual(self.server.terminate(), 0)


if __name__ == "__main__":
    bst_process.main()
