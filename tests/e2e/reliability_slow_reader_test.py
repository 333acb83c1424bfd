"""Readers that do not read: they cost their own outbox, a bounded one, and nobody else's time."""

from __future__ import annotations

import time
import unittest
from typing import Any, Callable

import bst_process
from bst_process import ServerProcess
from raw_calls import Api, finish, message

MB = 1e6
OUTBOX_MB = 64  # kMaxOutboxBytes of server/engine_call.h, and what may come on top of it: messages in
SLACK_MB = 60   # the making, gRPC's own buffers, and what malloc keeps
ENDLESS: dict[str, Any] = {"text": "x", "sampling": {"temperature": 0, "logit_bias": {65: 100}},
                           "stopping": {"max_new_tokens": 1_000_000, "ignore_eos": True}}
SHORT: dict[str, Any] = {"text": "y", "stopping": {"max_new_tokens": 50, "ignore_eos": True}}
# The client asks for no more than this of a stream that it does not read.
SMALL_WINDOW = (("grpc.http2.lookahead_bytes", 65536), ("grpc.http2.bdp_probe", 0))


class ReaderTest(unittest.TestCase):
    WRITE_TIMEOUT = 900  # so long that what is not read stays

    def setUp(self) -> None:
        self.server = self.enterContext(ServerProcess("--control_listen=127.0.0.1:0",
                                                      f"--write_timeout_seconds={self.WRITE_TIMEOUT}"))
        self.slow = self.enterContext(Api(self.server.grpc, options=SMALL_WINDOW))
        self.api = self.enterContext(Api(self.server.grpc))
        self.control = self.enterContext(Api(self.server.addresses["control"]))
        for _ in range(20):
            finish(self.api.generate(**SHORT))

    def wait_until_idle(self, timeout: float = 240) -> float:
        """The most resident memory until nothing runs."""
        most = self.server.resident_bytes
        deadline = time.monotonic() + timeout
        while (load := self.control.load()).running + load.waiting > 0:
            self.assertLess(time.monotonic(), deadline)
            most = max(most, self.server.resident_bytes)
            time.sleep(0.02)
        return max(most, self.server.resident_bytes)


class SlowReaderTest(ReaderTest):
    def test_a_score_with_alternatives_is_bounded_and_ends(self) -> None:
        """Whole, this one would be 1,000,000 x 20 alternatives."""
        request = {"token_ids": {"ids": [i % 250 for i in range(1_000_000)]}, "top_logprobs": 20}
        prompt_mb = 1_000_000 * 4 / MB * 3  # as a message, and as tokens
        before = self.server.resident_bytes
        stream = self.slow.score(**request, timeout=None)
        next(stream)  # Accepted; and nothing after it
        grown = (self.wait_until_idle() - before) / MB
        self.assertLess(grown, OUTBOX_MB + SLACK_MB + prompt_mb)
        self.assertLess(self.server.metric("bst_prompt_tokens_total"), 1_000_000)  # the slot was free early
        self.assertEqual(self.control.load().slots_used, 0)
        events, code = finish(stream)
        self.assertEqual(code, "RESOURCE_EXHAUSTED")
        self.assertIn("the reader is too slow", stream.details())
        self.assertNotIn("grpc-retry-pushback-ms", dict(stream.trailing_metadata()))
        self.assertEqual(self.server.metric('bst_requests_cancelled_total{cause="client",stage="prefill"}'), 1)
        self.assertGreater(self.server.metric("bst_prompt_tokens_total"),
                           4 * sum(len(event.scored.token_ids) for event in events))  # the rest was dropped
        print(f"unread Score with 20 alternatives: +{grown:.0f} MB", flush=True)

    def test_text_is_bounded_by_max_new_tokens_and_whole(self) -> None:
        """A reader that comes back late finds everything."""
        before = self.server.resident_bytes
        request = ENDLESS | {"stopping": {"max_new_tokens": 200_000, "ignore_eos": True}}
        streams = [self.slow.generate(**request, timeout=None) for _ in range(4)]
        for stream in streams:
            next(stream)
        grown = (self.wait_until_idle() - before) / MB
        self.assertLess(grown, 4 * 200_000 * 64 / MB + 20)  # 64 bytes a token; it is 9
        for stream in streams:
            events, code = finish(stream)
            self.assertEqual((code, sum(len(event.tokens.token_ids) for event in events)), ("OK", 200_000))
        print(f"four unread streams of 200,000 tokens: +{grown:.0f} MB", flush=True)

    def test_others_are_not_held_up(self) -> None:
        streams = [self.slow.generate(**ENDLESS, timeout=None) for _ in range(8)]
        for stream in streams:
            next(stream)
        slowest = 0.0
        for _ in range(20):
            start = time.monotonic()
            self.assertEqual(finish(self.api.generate(**SHORT))[1], "OK")
            slowest = max(slowest, time.monotonic() - start)
        self.assertLess(slowest, 5)  # it shares its steps with eight others, and waits for none
        for stream in streams:
            stream.cancel()
        self.wait_until_idle(20)
        print(f"beside eight unread streams: slowest request {slowest * 1000:.0f} ms", flush=True)

    def test_many_unread_streams_that_end_leave_nothing(self) -> None:
        request = ENDLESS | {"stopping": {"max_new_tokens": 5000, "ignore_eos": True}}

        def round_of_streams() -> float:
            streams = [self.slow.generate(**request, timeout=None) for _ in range(30)]
            for stream in streams:
                next(stream)
            self.wait_until_idle()
            for stream in streams:
                stream.cancel()
            return self.server.resident_bytes

        round_of_streams()
        warm = round_of_streams()
        for _ in range(4):
            last = round_of_streams()
        self.assertLess(last - warm, 10 * MB)


class WriteTimeoutTest(ReaderTest):
    """Readers that take nothing for longer than they may."""

    WRITE_TIMEOUT = 1

    def wait_until(self, holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 240
        while not holds():
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.02)

    def calls(self) -> int:
        load = self.control.load()
        return load.running + load.waiting + load.unread_calls

    def timeouts(self) -> int:
        return sum(" write_timeout " in line for line in self.server.lines)

    def test_they_lose_what_their_requests_left(self) -> None:
        request = ENDLESS | {"stopping": {"max_new_tokens": 30_000, "ignore_eos": True}, "output": {"top_logprobs": 20}}
        calls = [self.slow.generate(**ENDLESS, timeout=None),
                 self.slow.score(token_ids={"ids": [i % 250 for i in range(100_000)]}, top_logprobs=20, timeout=None),
                 self.slow.channel.unary_stream(  # as a stream, or the library reads the answer by itself
                     "/bst.v1.Generation/GenerateOnce",
                     request_serializer=lambda fields: message("GenerateRequest", fields).SerializeToString())(request)]
        self.wait_until(lambda: self.calls() + self.timeouts() == 3)  # all have come
        self.wait_until(lambda: self.timeouts() == 3)
        self.wait_until(lambda: self.calls() == 0)
        for call in calls:
            self.assertEqual(finish(call)[1], "CANCELLED")
        # What was over was counted for what it was; the endless one ended for this.
        for name, reason, rpc in (("OK", "MAX_TOKENS", "GenerateOnce"), ("RESOURCE_EXHAUSTED", "ERROR", "Generate")):
            self.assertEqual(self.server.metric(
                f'bst_requests_total{{code="{name}",finish_reason="{reason}",rpc="{rpc}"}}'), 1)
        self.server.terminate()
        self.assertEqual(self.timeouts(), 3)


if __name__ == "__main__":
    bst_process.main()
