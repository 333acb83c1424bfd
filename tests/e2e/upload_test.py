"""GenerateUpload, several continuations and priorities against the real bst-server."""

from __future__ import annotations

import queue
import random
import tempfile
import time
import unittest
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Iterator, Sequence

import grpc

import bst_client
from bst_client import Client, FinishReason, Priority, _wire

import bst_process
from bst_process import ServerProcess, arguments, cli_json, run_cli, write_ids

ROOT = Path(__file__).resolve().parents[2]
GREEDY: bst_client.GenerateOptions = {"temperature": 0, "ignore_eos": True}
SAMPLED: bst_client.GenerateOptions = {"seed": 11, "ignore_eos": True, "max_new_tokens": 24, "logprobs": True}


def wait_for(server: ServerProcess, metric: str, value: float) -> None:
    deadline = time.monotonic() + 60
    while server.metric(metric) != value:
        if time.monotonic() > deadline:
            raise AssertionError(f"{metric} is {server.metric(metric)}, not {value}")
        time.sleep(0.02)


def part(content: str | Sequence[int]) -> Any:
    message = _wire.GenerateUploadPart()
    if isinstance(content, str):
        message.text = content
    else:
        message.token_ids.ids.extend(content)
    return message


class Upload:
    """One GenerateUpload whose parts are sent when the test says so."""

    def __init__(self, channel: grpc.Channel, **request: Any) -> None:
        self._parts: queue.Queue[Any] = queue.Queue()
        first = _wire.GenerateUploadPart()
        first.request.CopyFrom(_wire.GenerateRequest(**request))
        self._parts.put(first)
        self.call = _wire.Stubs(channel).generate_upload(iter(self._parts.get, None), timeout=120)

    def send(self, content: str | Sequence[int]) -> None:
        self._parts.put(part(content))

    def end(self) -> None:
        self._parts.put(None)

    def progress(self, processed: int) -> None:
        """Reads events until so many tokens of the prompt are processed."""
        for event in self.call:
            if event.WhichOneof("event") == "prefill_progress" and event.prefill_progress.processed_tokens >= processed:
                return
        raise AssertionError("the stream ended before")

    def rest(self) -> tuple[list[int], list[float], Any]:
        """Token ids, log-probabilities and Finished of what is left."""
        ids: list[int] = []
        logprobs: list[float] = []
        finished = None
        for event in self.call:
            if event.WhichOneof("event") == "tokens":
                ids += event.tokens.token_ids
                logprobs += [entry.logprob for entry in event.tokens.logprobs]
            elif event.WhichOneof("event") == "finished":
                finished = event.finished
        return ids, logprobs, finished


def cut(content: Any, longest: int, source: random.Random) -> Iterator[Any]:
    begin = 0
    while begin < len(content):
        end = begin + source.randint(1, longest)
        yield content[begin:end]
        begin = end


class UploadTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls) -> None:
        cls.server = cls.enterClassContext(ServerProcess("--max_sequences=4"))
        cls.channel = cls.enterClassContext(grpc.insecure_channel(cls.server.grpc))
        cls.client = cls.enterClassContext(Client(cls.server.grpc, timeout=120))

    def check_same_as_generate(self, client: Client, channel: grpc.Channel, prompt: Any, longest: int) -> None:
        """Bit for bit, wherever the prompt is cut."""
        whole = client.generate(prompt, **SAMPLED)
        for seed in range(3):
            upload = Upload(channel, sampling={"seed": 11}, output={"logprobs": True},
                            stopping={"ignore_eos": True, "max_new_tokens": 24})
            for piece in cut(prompt, longest, random.Random(seed)):
                upload.send(piece)
            upload.end()
            ids, logprobs, finished = upload.rest()
            self.assertEqual(tuple(ids), whole.token_ids)
            self.assertEqual(logprobs, [entry.logprob for entry in whole.logprobs])
            self.assertEqual(finished.usage.prompt_tokens, whole.usage.prompt_tokens)

    def test_ids(self) -> None:
        ids = [i * 7 % 256 for i in range(3001)]
        self.check_same_as_generate(self.client, self.channel, ids, 500)
        self.check_same_as_generate(self.client, self.channel, ids[:9], 3)

    def test_text_of_a_byte_model(self) -> None:
        self.check_same_as_generate(self.client, self.channel, "Once upon a time, naïve €uros 𝄞. " * 40, 100)

    def test_text_of_a_sentencepiece_model(self) -> None:
        if arguments.sanitized:
            self.skipTest("a sanitizer does not let SentencePiece have a Protobuf of its own")
        text = (ROOT / "LICENSE").read_text()[:6000] + "  naïve   cafés\n\n\t世界 x" + "y" * 300
        with ServerProcess(model=ROOT / "models/bst-books-4m") as server, Client(server.grpc, timeout=120) as client, \
                grpc.insecure_channel(server.grpc) as channel:
            self.check_same_as_generate(client, channel, text, 700)
            # Tokens are read before the text is complete.
            upload = Upload(channel, text="The ship had been at sea", stopping={"max_new_tokens": 1})
            upload.send(" for many days" * 200)
            upload.progress(400)
            upload.end()
            self.assertEqual(upload.rest()[2].reason, FinishReason.MAX_TOKENS)

    def test_the_prompt_is_read_while_it_arrives(self) -> None:
        upload = Upload(self.channel, stopping={"max_new_tokens": 3, "ignore_eos": True}, sampling={"temperature": 0})
        ids = [i % 256 for i in range(2000)]
        upload.send(ids[:1000])
        upload.progress(900)  # the last blocks may have to wait for what comes behind them
        upload.send(ids[1000:])
        upload.progress(1900)
        upload.end()
        tokens, _, finished = upload.rest()
        self.assertEqual(tuple(tokens), self.client.generate(ids, **GREEDY, max_new_tokens=3).token_ids)
        self.assertEqual(finished.usage.prompt_tokens, 2000)

    def test_more_than_may_be_unread_at_a_time(self) -> None:
        ids = [i % 251 for i in range(700_000)]
        upload = Upload(self.channel, stopping={"max_new_tokens": 1})
        for begin in range(0, len(ids), 100_000):
            upload.send(ids[begin:begin + 100_000])
        upload.end()
        self.assertEqual(upload.rest()[2].usage.prompt_tokens, 700_000)

    def test_a_cancelled_upload_frees_its_slot(self) -> None:
        upload = Upload(self.channel)
        upload.send([1] * 800)
        upload.progress(700)
        self.assertEqual(self.server.metric("bst_requests_running"), 1)
        wait_for(self.server, "bst_awaiting_input", 1)
        upload.call.cancel()
        wait_for(self.server, "bst_requests_running", 0)
        wait_for(self.server, "bst_awaiting_input", 0)
        wait_for(self.server, 'bst_state_slots{state="used",tier="device"}', 0)
        upload.end()

    def test_a_wrong_part_frees_its_slot(self) -> None:
        upload = Upload(self.channel)
        upload.send([1] * 800)
        upload.send([1, 2, 100_000])
        upload.end()
        with self.assertRaises(grpc.RpcError) as raised:
            upload.rest()
        self.assertEqual(raised.exception.code(), grpc.StatusCode.INVALID_ARGUMENT)
        self.assertIn("token_ids.ids[802] is 100000", raised.exception.details())
        wait_for(self.server, "bst_requests_running", 0)

    def test_a_client_that_sends_nothing_more(self) -> None:
        with ServerProcess("--upload_timeout_seconds=0.5") as server, grpc.insecure_channel(server.grpc) as channel:
            upload = Upload(channel)
            upload.send([1] * 80)
            with self.assertRaises(grpc.RpcError) as raised:
                upload.rest()
            self.assertEqual(raised.exception.code(), grpc.StatusCode.DEADLINE_EXCEEDED)
            self.assertIn("no further block of the prompt came within", raised.exception.details())
            wait_for(server, "bst_requests_running", 0)
            upload.end()

    def test_clients_send_what_is_above_the_limit_in_parts(self) -> None:
        text, ids = "Tick tock, naïve €. " * 3000, [i % 256 for i in range(50_000)]
        flags = ("--temperature", "0", "--ignore-eos", "--max-new-tokens", "8")
        with ServerProcess("--max_message_bytes=20000") as server, Client(server.grpc, timeout=120) as client, \
                tempfile.TemporaryDirectory() as folder:
            for prompt in (text, ids):
                expected = self.client.generate(prompt, **GREEDY, max_new_tokens=8)
                self.assertEqual(client.generate(prompt, **GREEDY, max_new_tokens=8).token_ids, expected.token_ids)
                if isinstance(prompt, str):
                    file = ("--prompt-file", "-")
                    result = cli_json(server, "generate", *file, *flags, stdin=prompt)
                else:
                    result = cli_json(server, "generate", "--ids-file", write_ids(Path(folder, "ids"), prompt), *flags)
                self.assertEqual(tuple(result["token_ids"]), expected.token_ids)
                self.assertEqual(result["usage"]["prompt_tokens"], expected.usage.prompt_tokens)
            self.assertEqual(server.metric('bst_requests_total{code="OK",finish_reason="MAX_TOKENS",'
                                           'rpc="GenerateUpload"}'), 4)
            refused = run_cli(server, "score", "--prompt-file", "-", stdin=text)
            self.assertEqual(refused.returncode, 1)
            self.assertIn("the server's message limit is 20000", refused.stderr)
            self.assertIn("--ids-file", refused.stderr)
            refused = run_cli(server, "tokenize", "--prompt-file", "-", stdin=text)
            self.assertEqual(refused.returncode, 1)
            self.assertIn("larger than the server's message limit", refused.stderr)
            self.assertNotIn("--ids-file", refused.stderr)  # it has none


class ContinuationsTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls) -> None:
        cls.server = cls.enterClassContext(ServerProcess("--max_sequences=5"))
        cls.client = cls.enterClassContext(Client(cls.server.grpc, timeout=120))

    def generate(self, **options: Any) -> bst_client.GenerateResult:
        return self.client.generate("It was a dark evening. " * 20, **{**SAMPLED, **options})

    def test_each_is_what_it_would_be_alone(self) -> None:
        one, two, five = (self.generate(num_sequences=n) for n in (1, 2, 5))
        self.assertEqual(one.continuations, ())
        self.assertEqual(five.token_ids, one.token_ids)
        self.assertEqual(five.logprobs, one.logprobs)
        self.assertEqual([c.token_ids for c in five.continuations[:2]], [c.token_ids for c in two.continuations])
        self.assertEqual(five.continuations[0].token_ids, one.token_ids)
        self.assertEqual(len({c.token_ids for c in five.continuations}), 5)
        self.assertEqual(five.usage.prompt_tokens, one.usage.prompt_tokens)
        self.assertEqual(five.usage.generated_tokens, 5 * 24)
        self.assertEqual(self.server.metric('bst_state_slots{state="used",tier="device"}'), 0)

    def test_stop_strings_end_each_for_itself(self) -> None:
        free = self.generate(num_sequences=5, max_new_tokens=200)
        texts = [c.text for c in free.continuations]
        # A character that some have and some may not; the first one ends there.
        stop = texts[0][50]
        stopped = self.generate(num_sequences=5, max_new_tokens=200, stop_strings=[stop])
        self.assertEqual([c.text for c in stopped.continuations], [text.partition(stop)[0] for text in texts])
        self.assertEqual([c.finish_reason for c in stopped.continuations],
                         [FinishReason.STOP_STRING if stop in text else FinishReason.MAX_TOKENS for text in texts])
        self.assertEqual(stopped.stop_string, stop)
        self.assertEqual(stopped.usage.generated_tokens, sum(c.generated_tokens for c in stopped.continuations))
        self.assertEqual(self.server.metric('bst_requests_cancelled_total{cause="client",stage="decode"}'), 0)

    def test_more_than_there_are_slots(self) -> None:
        with self.assertRaisesRegex(bst_client.InvalidArgumentError, r"sampling.num_sequences is 6, must be in \[1, 5\]"):
            self.generate(num_sequences=6)

    def test_an_upload_has_continuations_too(self) -> None:
        whole = self.generate(num_sequences=3)
        with grpc.insecure_channel(self.server.grpc) as channel:
            upload = Upload(channel, sampling={"seed": 11, "num_sequences": 3},
                            stopping={"ignore_eos": True, "max_new_tokens": 24})
            for _ in range(20):
                upload.send("It was a dark evening. ")
            upload.end()
            ids: list[list[int]] = [[], [], []]
            for event in upload.call:
                if event.WhichOneof("event") == "tokens":
                    ids[event.tokens.sequence_index] += event.tokens.token_ids
        self.assertEqual(ids, [list(c.token_ids) for c in whole.continuations])

    def test_the_command_line(self) -> None:
        flags = ("generate", "--prompt", "abc", "--seed", "5", "--max-new-tokens", "12", "--ignore-eos")
        one = cli_json(self.server, *flags)
        self.assertNotIn("continuations", one)
        three = cli_json(self.server, *flags, "-n", "3", "--priority", "high")
        self.assertEqual((three["token_ids"], three["text"]), (one["token_ids"], one["text"]))
        self.assertEqual([c["sequence_index"] for c in three["continuations"]], [0, 1, 2])
        self.assertEqual(three["continuations"][0]["text"], one["text"])
        self.assertEqual(three["usage"]["generated_tokens"], 36)
        plain = run_cli(self.server, *flags, "--num-sequences=3")
        lines = "".join(f"--- continuation {c['sequence_index']}: MAX_TOKENS\n{c['text']}\n" for c in three["continuations"])
        self.assertEqual(plain.stdout, lines.replace("\r\n", "\n").replace("\r", "\n"))  # as subprocess reads it
        self.assertEqual(run_cli(self.server, *flags, "-n", "0").returncode, 1)
        self.assertEqual(run_cli(self.server, *flags, "--priority", "urgent").returncode, 2)

    def test_the_unary_call(self) -> None:
        whole = self.generate(num_sequences=2)
        with grpc.insecure_channel(self.server.grpc) as channel:
            call = channel.unary_unary("/bst.v1.Generation/GenerateOnce",
                                       request_serializer=_wire.GenerateRequest.SerializeToString,
                                       response_deserializer=_wire.GenerateResult.FromString)
            result = call(_wire.GenerateRequest(text="It was a dark evening. " * 20,
                                                sampling={"seed": 11, "num_sequences": 2},
                                                stopping={"ignore_eos": True, "max_new_tokens": 24}))
        self.assertEqual(tuple(result.token_ids), whole.token_ids)
        self.assertEqual([tuple(c.token_ids) for c in result.continuations],
                         [c.token_ids for c in whole.continuations])

    def test_priorities(self) -> None:
        with ServerProcess("--max_sequences=1") as server, Client(server.grpc, timeout=120) as client:
            endless = client.stream("x", **GREEDY, logit_bias={65: 100}, max_new_tokens=1_000_000)
            next(event for event in endless if isinstance(event, bst_client.Tokens))
            started: list[tuple[float, Priority]] = []

            def generate(priority: Priority) -> None:
                submitted = time.monotonic()
                result = client.generate("y", **GREEDY, priority=priority, max_new_tokens=2000)
                started.append((submitted + result.timings.queue_seconds, priority))

            with ThreadPoolExecutor(3) as pool:
                for count, priority in enumerate((Priority.LOW, Priority.NORMAL, Priority.HIGH), start=1):
                    pool.submit(generate, priority)
                    wait_for(server, "bst_requests_waiting", count)
                endless.close()
            # Each waits for all 2000 tokens of the one before it.
            self.assertEqual([priority for _, priority in sorted(started)],
                             [Priority.HIGH, Priority.NORMAL, Priority.LOW], started)


if __name__ == "__main__":
    bst_process.main()
