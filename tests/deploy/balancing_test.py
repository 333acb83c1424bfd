"""Three servers behind one name and no proxy: what a client of the headless service does and sees."""

from __future__ import annotations

import signal
from collections import Counter

from bst_client import Client, RetryPolicy

import bst_process
from bst_process import run_cli
from fleet import ENDLESS, SHORT, STREAMS, ClientStream, FleetTest, wait_for


class BalancingTest(FleetTest):
    def setUp(self) -> None:
        super().setUp()
        self.target = "ipv4:" + ",".join(server.grpc for server in self.servers)
        self.client = self.enterContext(Client(self.target, retry=RetryPolicy(max_attempts=10)))

    def start(self, name: str, max_new_tokens: int) -> ClientStream:
        stream = ClientStream(self.client, max_new_tokens)
        self.addCleanup(stream.close)
        return stream

    def test_calls_of_one_channel_go_round(self) -> None:
        self.start_streams()  # all three are connected now
        before = [self.share(server) for server in self.servers]
        for i in range(STREAMS):
            self.streams.append(self.start(f"more{i}", ENDLESS))
        wait_for("text of each stream", lambda: all(stream.size() > 0 for stream in self.streams))
        after = [self.share(server) for server in self.servers]
        self.assertEqual([b - a for a, b in zip(before, after)], [STREAMS // 3] * 3)

    def test_one_is_killed_and_one_stops(self) -> None:
        self.start_streams()
        self.assertEqual(self.lose_a_server(signal.SIGKILL), {"UNAVAILABLE"})
        self.assertEqual(self.lose_a_server(signal.SIGTERM), {"UNAVAILABLE"})
        # Two of the three addresses answer no more.
        outcomes = Counter(run_cli(None, "generate", "--server", self.target, "--prompt", "It was",
                                   "--max-new-tokens", str(SHORT)).returncode for _ in range(STREAMS))
        self.assertEqual(outcomes, {0: STREAMS})


if __name__ == "__main__":
    bst_process.main()
