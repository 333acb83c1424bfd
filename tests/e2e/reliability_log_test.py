"""The log: one line per request, in both formats, and nothing of prompts, outputs or keys."""

from __future__ import annotations

import json
import re
import tempfile
import unittest
from pathlib import Path
from typing import Any

import grpc

import bst_process
from bst_process import ServerProcess
from raw_calls import Api, Http2, finish

SECRET = "confidential"
OUTPUT = "QQQQ"  # what the model is made to say: byte 81


class NoMessage:
    """Bytes that are no message of ours: a text that is not UTF-8."""

    @staticmethod
    def SerializeToString() -> bytes:
        return b"\x12\x01\xff"  # field 2


SAY = {"sampling": {"temperature": 0, "logit_bias": {81: 100}}, "stopping": {"max_new_tokens": 8, "ignore_eos": True}}
# (id in the log, RPC, request, code). An id is in the log if it is well formed, though the rest may not be.
CALLS: list[tuple[str, str, Any, str]] = [
    ("g1", "Generate", {"request_id": "g1", "text": SECRET, **SAY}, "OK"),
    ("g2", "GenerateOnce", {"request_id": "g2", "text": SECRET, **SAY}, "OK"),
    ("s1", "Score", {"request_id": "s1", "text": SECRET}, "OK"),
    ("s2", "Score", {"request_id": "s2", "text": SECRET, "top_logprobs": 3}, "OK"),
    ("", "Tokenize", {"text": SECRET}, "OK"),
    ("", "Detokenize", {"token_ids": list(SECRET.encode())}, "OK"),
    ("", "GetModelInfo", {}, "OK"),
    ("", "Generate", {"text": SECRET, "stopping": {"stop_strings": [SECRET, ""]}}, "INVALID_ARGUMENT"),
    ("", "Generate", {"request_id": f"{SECRET} {SECRET}", "text": "x"}, "INVALID_ARGUMENT"),
    ("", "GenerateOnce", {"text": SECRET, "sampling": {"top_p": 7.0}}, "INVALID_ARGUMENT"),
    ("g4", "Generate", {"request_id": "g4", "text": SECRET, "sampling": {"top_p": 7.0}}, "INVALID_ARGUMENT"),
    ("g5", "GenerateOnce", {"request_id": "g5", "text": SECRET, "sampling": {"top_p": 7.0}}, "INVALID_ARGUMENT"),
    ("s3", "Score", {"request_id": "s3", "text": SECRET, "top_logprobs": 1000}, "INVALID_ARGUMENT"),
    ("", "Generate", NoMessage(), "INVALID_ARGUMENT"),  # of which Protobuf has something to say, too
    ("", "Score", {"text": SECRET * 1000}, "INVALID_ARGUMENT"),
    ("", "Tokenize", {"text": SECRET * 1000}, "INVALID_ARGUMENT"),
    ("", "Detokenize", {"token_ids": [2**32 - 1]}, "INVALID_ARGUMENT"),
    ("g3", "Generate", {"request_id": "g3", "text": SECRET, "sampling": {"temperature": 0, "logit_bias": {81: 100}},
                        "stopping": {"max_new_tokens": 1_000_000, "ignore_eos": True}, "time_limit_ms": 100}, "OK"),
]
LINE = re.compile(r"""ready |[IWE] \d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z [a-z_]+( \w+=("(\\.|[^"\\])*"|[^ "]+))*$""")
NUMBERS = ("prompt_tokens", "generated_tokens", "queue_ms", "first_token_ms", "total_ms")


class LogTest(unittest.TestCase):
    def lines_of(self, log_format: str) -> list[str]:
        """The whole log of a server that got CALLS, a key it does not know, and noise."""
        with tempfile.TemporaryDirectory() as folder:
            keys = Path(folder, "keys")
            keys.write_text(f"{SECRET}-key\n")
            with ServerProcess(f"--log_format={log_format}", "--max_prompt_tokens=1000",
                               f"--auth_token_file={keys}") as server, Api(server.grpc) as api:
                for _, rpc, request, expected in [*CALLS, ("", "Generate", {"text": SECRET}, "PERMISSION_DENIED")]:
                    key = f"{SECRET}-key" if expected != "PERMISSION_DENIED" else f"{SECRET}-no-key"
                    try:
                        call = api.call(f"Generation/{rpc}", request, metadata=[("authorization", f"Bearer {key}")])
                        code = finish(call)[1] if isinstance(call, grpc.Call) else "OK"
                    except grpc.RpcError as error:
                        code = error.code().name
                    self.assertEqual(code, expected, (rpc, request))
                with Http2(server.grpc, timeout=0.5) as client:
                    client.send(Http2.opening() + Http2.frame(
                        Http2.HEADERS, Http2.END_HEADERS, 1,
                        Http2.header_block([(b":method", b"P\xff\"\n" + SECRET.encode()), (b":scheme", b"http")])))
                    client.read_until_closed()
                self.assertEqual(server.terminate(), 0)
                return server.lines

    def check(self, lines: list[str], requests: list[dict[str, Any]]) -> None:
        for line in lines:
            self.assertNotIn(OUTPUT, line)
            if "grpc" not in line:  # there a client's own malformed header may be quoted, cut to 300 bytes
                self.assertNotIn(SECRET, line)
        self.assertEqual([(request["id"], request["rpc"], request["code"]) for request in requests],
                         [(name, rpc, code) for name, rpc, _, code in CALLS] + [("", "Generate", "PERMISSION_DENIED")])
        first = requests[0]
        self.assertEqual((int(first["prompt_tokens"]), int(first["generated_tokens"]), first["outcome"]),
                         (len(SECRET) + 1, 8, "MAX_TOKENS"))

    def test_json(self) -> None:
        lines = self.lines_of("json")
        events = [json.loads(line) for line in lines if not line.startswith("ready ")]  # every line is an object
        requests = [event for event in events if event["event"] == "request"]
        self.check(lines, requests)
        for name in NUMBERS:
            self.assertIsInstance(requests[0][name], (int, float))
        for event in events:
            self.assertRegex(event["time"], r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$")
            self.assertIn(event["level"], "IWE")
        # Where the CUDA engine was built, a server without a GPU says why it runs on the CPU.
        libraries = [event["event"] for event in events if event["event"] in ("grpc", "protobuf")]
        self.assertIn("protobuf", libraries)
        others = [event["event"] for event in events
                  if event["event"] not in ("request", "grpc", "protobuf", "backend_cpu")]
        self.assertEqual(sorted(others), ["config", "drain", "drained", "health", "health", "signal"])

    def test_text(self) -> None:
        lines = self.lines_of("text")
        for line in lines:
            self.assertRegex(line, LINE)
        requests = [{key: value.strip('"') for key, value in re.findall(r'(\w+)=("[^"]*"|\S+)', line)}
                    for line in lines if " request " in line]
        self.check(lines, requests)


if __name__ == "__main__":
    bst_process.main()
