"""bst against bst-server: what scripts and people see. Rerun with every configuration of the server."""

from __future__ import annotations

import json
import math
import os
import pty
import signal
import socket
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

import bst_process
from bst_process import ServerProcess, arguments, cli_json, run_cli, start_cli, write_ids

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
GREEDY = ("--temperature", "0", "--ignore-eos")


class CliTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls) -> None:
        cls.server = cls.enterClassContext(ServerProcess())
        cls.folder = Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
        cls.prompt_file = str(arguments.model / "tokens.json")
        cls.prompt = json.loads(Path(cls.prompt_file).read_text())
        cls.greedy = json.loads((arguments.model / "expected_greedy.json").read_text())["tokens"]

    def generate(self, *flags: str) -> dict:
        return cli_json(self.server, "generate", *flags)

    # ---- generate ----

    def test_greedy_is_the_golden_continuation(self) -> None:
        result = self.generate("--ids-file", self.prompt_file, *GREEDY, "--max-new-tokens", str(len(self.greedy)))
        self.assertEqual(result["token_ids"], self.greedy)
        self.assertEqual(result["finish_reason"], "MAX_TOKENS")
        self.assertEqual(result["usage"], {"prompt_tokens": len(self.prompt), "cached_tokens": 0,
                                           "generated_tokens": len(self.greedy)})
        self.assertEqual(list(result), ["token_ids", "text", "finish_reason", "usage", "timings",
                                        "request_id", "seed"])
        self.assertEqual(list(result["timings"]), ["queue_seconds", "prefill_seconds", "time_to_first_token_seconds",
                                                   "mean_inter_token_seconds", "tokens_per_second"])
        for name, value in result["timings"].items():
            self.assertGreaterEqual(value, 0, name)
        self.assertGreater(result["timings"]["time_to_first_token_seconds"], 0)

    def test_text_is_the_bytes_of_the_tokens(self) -> None:
        result = self.generate("--prompt", "héllo", *GREEDY, "--max-new-tokens", "40")
        text = bytes(i for i in result["token_ids"] if i < 256).decode("utf-8", errors="replace")
        self.assertEqual(result["text"], text)
        self.assertEqual(result["usage"]["prompt_tokens"], 7)  # bos and six bytes
        streamed = run_cli(self.server, "generate", "--prompt", "héllo", *GREEDY, "--max-new-tokens", "40")
        self.assertEqual(streamed.returncode, 0)
        self.assertEqual(streamed.stdout, text)
        self.assertRegex(streamed.stderr, r"^\[40 tokens \(prompt 7\), first after .* s, .* tokens/s, MAX_TOKENS\]\n$")
        single = run_cli(self.server, "generate", "--prompt", "héllo", *GREEDY, "--max-new-tokens", "1")
        self.assertRegex(single.stderr, r"^\[1 tokens \(prompt 7\), first after \S+ s, MAX_TOKENS\]\n$")

    def test_text_prompt_is_the_ids_with_bos(self) -> None:
        ids = write_ids(self.folder / "hi.json", [256, *"hi".encode()])
        by_ids = self.generate("--ids-file", ids, *GREEDY, "--max-new-tokens", "16")
        by_text = self.generate("--prompt", "hi", *GREEDY, "--max-new-tokens", "16")
        by_stdin = cli_json(self.server, "generate", "--prompt-file", "-", *GREEDY, "--max-new-tokens", "16", stdin="hi")
        self.assertEqual(by_ids["token_ids"], by_text["token_ids"])
        self.assertEqual(by_ids["token_ids"], by_stdin["token_ids"])

    def test_same_seed_same_tokens(self) -> None:
        flags = ("--prompt", "seed", "--ignore-eos", "--max-new-tokens", "32", "--temperature", "1.5")
        first = self.generate(*flags, "--seed", "18446744073709551615")
        self.assertEqual(first["token_ids"], self.generate(*flags, "--seed", "18446744073709551615")["token_ids"])
        self.assertNotEqual(first["token_ids"], self.generate(*flags, "--seed", "7")["token_ids"])
        drawn = [self.generate(*flags) for _ in range(2)]
        self.assertNotEqual(drawn[0]["token_ids"], drawn[1]["token_ids"])
        self.assertEqual(drawn[0]["token_ids"], self.generate(*flags, "--seed", drawn[0]["seed"])["token_ids"])

    def test_top_k_of_one_is_greedy(self) -> None:
        result = self.generate("--ids-file", self.prompt_file, "--top-k", "1", "--ignore-eos", "--max-new-tokens", "20")
        self.assertEqual(result["token_ids"], self.greedy[:20])

    def test_logprobs(self) -> None:
        result = self.generate("--ids-file", self.prompt_file, *GREEDY, "--max-new-tokens", "5", "--top-logprobs", "3")
        self.assertEqual(len(result["logprobs"]), 5)
        for token, logprob, top in zip(result["token_ids"], result["logprobs"], result["top_logprobs"]):
            self.assertEqual(top[0], {"token_id": token, "logprob": logprob})
            self.assertEqual(len(top), 3)
            self.assertTrue(0 >= top[0]["logprob"] >= top[1]["logprob"] >= top[2]["logprob"])

    def test_logit_bias_bans_and_forces(self) -> None:
        first = self.greedy[0]
        flags = ("--ids-file", self.prompt_file, *GREEDY, "--max-new-tokens", "1")
        self.assertNotEqual(self.generate(*flags, "--logit-bias", f"{first}=-inf")["token_ids"], [first])
        self.assertEqual(self.generate(*flags, "--logit-bias", "65=100")["token_ids"], [65])

    def test_stop_string(self) -> None:
        # The model repeats itself: A, then B, over and over. The stop string spans tokens.
        flags = ("--prompt", "x", "--temperature", "0", "--max-new-tokens", "9", "--logit-bias", "65=100")
        self.assertEqual(self.generate(*flags)["text"], "A" * 9)
        stopped = self.generate(*flags, "--stop", "AAA")
        self.assertEqual((stopped["text"], stopped["finish_reason"]), ("", "STOP_STRING"))
        self.assertEqual(stopped["usage"]["generated_tokens"], 3)
        self.assertEqual(stopped["token_ids"], [65] * 3)
        kept = self.generate(*flags, "--stop", "never", "--stop", "AAA", "--include-stop-string")
        self.assertEqual(kept["text"], "AAA")
        token = self.generate(*flags, "--stop-token-id", "65")
        self.assertEqual((token["token_ids"], token["finish_reason"]), ([65], "STOP_TOKEN"))

    def test_eos(self) -> None:
        flags = ("--prompt", "x", "--temperature", "0", "--max-new-tokens", "9", "--logit-bias", "257=100")
        self.assertEqual(self.generate(*flags)["finish_reason"], "EOS")
        self.assertEqual(len(self.generate(*flags, "--ignore-eos")["token_ids"]), 9)

    def test_time_limit_keeps_the_text(self) -> None:
        result = self.generate("--prompt", "x", *GREEDY, "--max-new-tokens", "1000000", "--time-limit-ms", "300")
        self.assertEqual(result["finish_reason"], "TIME_LIMIT")
        self.assertEqual(len(result["token_ids"]), result["usage"]["generated_tokens"])

    def test_echo(self) -> None:
        result = self.generate("--prompt", "parrot", *GREEDY, "--max-new-tokens", "2", "--echo")
        self.assertEqual(result["prompt_text"], "parrot")
        self.assertEqual(len(result["token_ids"]), 2)

    # ---- score ----

    def test_score_is_the_oracles(self) -> None:
        result = cli_json(self.server, "score", "--ids-file", self.prompt_file)
        oracle = json.loads(subprocess.run([sys.executable, GOLDEN / "evaluator.py", "score", arguments.model],
                                           capture_output=True, text=True, check=True).stdout)
        self.assertEqual(list(result), ["token_ids", "logprobs", "mean_nll", "perplexity"])
        self.assertEqual(result["token_ids"], oracle["tokens"])
        self.assertIsNone(result["logprobs"][0])
        for mine, expected in zip(result["logprobs"][1:], oracle["logprobs"][1:], strict=True):
            self.assertAlmostEqual(mine, expected, delta=1e-3)
        mean_nll = -sum(oracle["logprobs"][1:]) / (len(self.prompt) - 1)
        self.assertAlmostEqual(result["mean_nll"], mean_nll, delta=1e-3)
        self.assertAlmostEqual(result["perplexity"], math.exp(result["mean_nll"]), delta=1e-6 * result["perplexity"])

    def test_score_of_text_and_of_one_token(self) -> None:
        result = cli_json(self.server, "score", "--prompt", "ab")
        self.assertEqual(result["token_ids"], [256, 97, 98])
        one = cli_json(self.server, "score", "--ids-file", write_ids(self.folder / "one.json", [97]))
        self.assertEqual(one, {"token_ids": [97], "logprobs": [None], "mean_nll": None, "perplexity": None})
        self.assertRegex(run_cli(self.server, "score", "--prompt", "ab").stdout,
                         r"^tokens 3  mean_nll [0-9.]+ nats  perplexity [0-9.]+\n$")

    # ---- the small commands ----

    def test_tokenize(self) -> None:
        self.assertEqual(cli_json(self.server, "tokenize", "--prompt", "aé"), {"token_ids": [97, 0xC3, 0xA9]})
        plain = run_cli(self.server, "tokenize", "--prompt", "a", "--add-bos")
        self.assertEqual(json.loads(plain.stdout), [256, 97])

    def test_info(self) -> None:
        info = cli_json(self.server, "info")
        config = json.loads((arguments.model / "config.json").read_text())
        self.assertEqual(info["vocab_size"], config["vocab_size"])
        self.assertEqual(info["window"], config["window"])
        self.assertEqual(len(info["layers"]), len(config["layers"]))
        self.assertGreater(info["state_bytes_per_sequence"], 0)
        self.assertIn("max_prompt_tokens", info["limits"])
        self.assertIn("state_bytes_per_sequence", run_cli(self.server, "info").stdout)

    def test_health(self) -> None:
        self.assertEqual(cli_json(self.server, "health"), {"status": "SERVING"})
        self.assertEqual(run_cli(self.server, "health", "--service", "bst.v1.Generation").stdout, "SERVING\n")
        unknown = run_cli(self.server, "health", "--service", "nobody")
        self.assertEqual(unknown.returncode, 1)
        self.assertIn("NOT_FOUND", unknown.stderr)

    # ---- failures ----

    def test_exit_codes(self) -> None:
        failed = run_cli(self.server, "generate", "--prompt", "x", "--top-p", "0", "--json")
        self.assertEqual(failed.returncode, 1)
        self.assertIn("INVALID_ARGUMENT: sampling.top_p is 0, must be in (0, 1]", failed.stderr)
        self.assertEqual(failed.stdout, "")
        for wrong in (["generate"], ["generate", "--prompt", "x", "--ids-file", "y"], ["nonsense"], [],
                      ["generate", "--prompt", "x", "--seed", "-1"], ["generate", "--prompt", "x", "--bogus"],
                      ["generate", "--prompt", "x", "--logit-bias", "5"],
                      ["generate", "--prompt", "x", "--logit-bias", "4294967296=1"],
                      ["generate", "--prompt", "x", "--logit-bias", "-1=1"],
                      ["generate", "--prompt", "x", "--logit-bias", "5=1x"],
                      ["generate", "--prompt-file", "/nonexistent"], ["info", "--token-file", "/nonexistent"]):
            result = run_cli(None, *wrong)
            self.assertEqual(result.returncode, 2, f"{wrong}: {result.stderr}")
            self.assertNotEqual(result.stderr, "", wrong)
        for wrong, message in ((["--max-new-tokens", "-3"], "--max-new-tokens: -3 is negative"),
                               (["--seed", "-1"], "--seed: -1 is negative"),
                               (["--timeout", "0"], "--timeout: 0 is not above 0"),
                               (["--timeout", "inf"], "--timeout: inf is no number"),
                               (["--max-new-tokens", "x"], "--max-new-tokens: x is no number"),
                               (["--server", "http://127.0.0.1:50051"], "not HOST:PORT (without http://)"),
                               (["--server", "127.0.0.1"], "not HOST:PORT"), (["--server", ""], "not HOST:PORT")):
            result = run_cli(None, "generate", "--prompt", "x", *wrong)
            self.assertEqual(result.returncode, 2, result.stderr)
            self.assertIn(message, result.stderr)
            self.assertLess(len(result.stderr), 300)
        unreachable = run_cli(None, "info", "--server", "127.0.0.1:1")
        self.assertEqual(unreachable.returncode, 1)
        self.assertIn("UNAVAILABLE", unreachable.stderr)

    def test_a_name_to_expect_implies_tls(self) -> None:
        """A server without TLS is not talked to in the clear."""
        refused = run_cli(self.server, "info", "--tls-server-name", "localhost")
        self.assertEqual(refused.returncode, 1)
        self.assertIn("UNAVAILABLE", refused.stderr)

    def test_output_that_is_lost_is_a_failure(self) -> None:
        for command in (["info"], ["generate", "--prompt", "x", "--max-new-tokens", "4"]):
            with open("/dev/full", "w") as full:
                result = subprocess.run([bst_process.arguments.cli, *command, "--server", self.server.grpc], stdout=full,
                                        stderr=subprocess.PIPE, text=True, timeout=60)
            self.assertEqual(result.returncode, 1, command)
            self.assertIn("could not be written", result.stderr)

    def test_output_that_is_lost_cancels_the_request(self) -> None:
        cancelled = 'bst_requests_cancelled_total{cause="client",stage="decode"}'
        before = self.server.metric(cancelled)
        with open("/dev/full", "w") as full:
            result = subprocess.run([arguments.cli, "generate", "--prompt", "x", *GREEDY, "--logit-bias", "65=100",
                                     "--max-new-tokens", "1000000", "--server", self.server.grpc], stdout=full,
                                    stderr=subprocess.PIPE, text=True, timeout=120)
        self.assertEqual((result.returncode, result.stderr), (1, "bst: the output could not be written\n"))
        self.server.wait_for(cancelled, before + 1)

    def test_wrong_prompts(self) -> None:
        for name, content in (("ids.json", b"[1, -2]"), ("list.json", b"{}"), ("half.json", b"[1, 2")):
            (self.folder / name).write_bytes(content)
            self.assertEqual(run_cli(self.server, "generate", "--ids-file", str(self.folder / name)).returncode, 2, name)
        (self.folder / "latin1.txt").write_bytes(b"caf\xe9")
        latin1 = run_cli(self.server, "generate", "--prompt-file", str(self.folder / "latin1.txt"))
        self.assertEqual(latin1.returncode, 2)
        self.assertIn("is not UTF-8", latin1.stderr)
        vocabulary = write_ids(self.folder / "big.json", [1, 259])
        result = run_cli(self.server, "generate", "--ids-file", vocabulary)
        self.assertEqual(result.returncode, 1)
        self.assertIn("token_ids.ids[1] is 259", result.stderr)

    def test_input_that_cannot_be_read_is_named(self) -> None:
        for flags in (("generate", "--prompt-file"), ("generate", "--ids-file"), ("info", "--token-file"),
                      ("info", "--tls-ca")):
            result = run_cli(self.server, *flags, str(self.folder))
            self.assertEqual(result.returncode, 2, flags)
            self.assertEqual(result.stderr, f"bst: cannot read {self.folder}: Is a directory\n", flags)
        command = [arguments.cli, "generate", "--server", self.server.grpc, "--prompt-file", "-"]
        for stdin in ('"$0"', "&-"):  # a directory, closed
            result = subprocess.run(["sh", "-c", f'exec "$@" <{stdin}', str(self.folder), *command],
                                    capture_output=True, text=True, timeout=60)
            self.assertEqual(result.returncode, 2, stdin)
            self.assertIn("bst: cannot read the standard input: ", result.stderr)

    def test_flags_that_are_not_utf8_are_named(self) -> None:
        for command, flag in ((("generate", "--prompt", "x"), "--stop"), (("generate", "--prompt", "x"), "--request-id"),
                              (("health",), "--service")):
            result = run_cli(self.server, *command, flag, os.fsdecode(b"caf\xe9"))
            self.assertEqual((result.returncode, result.stderr), (2, f"bst: {flag} is not UTF-8\n"))

    def test_help_teaches(self) -> None:
        for flags in ([], ["generate"], ["score"], ["tokenize"]):
            result = run_cli(None, *flags, "--help")
            self.assertEqual(result.returncode, 0)
            self.assertIn("Examples:", result.stdout)

    def test_versions(self) -> None:
        versions = [subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout.split()
                    for program in (arguments.server, arguments.cli, str(Path(arguments.cli).with_name("bst-stress")))]
        self.assertEqual([words[0] for words in versions], ["bst-server", "bst", "bst-stress"])
        self.assertEqual(len({words[1] for words in versions}), 1)

    def test_health_gives_a_silent_server_up(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            address = f"127.0.0.1:{silent.getsockname()[1]}"
            result = subprocess.run([arguments.cli, "health", "--server", address], capture_output=True, text=True,
                                    timeout=60)
        self.assertEqual(result.returncode, 1)
        self.assertIn("DEADLINE_EXCEEDED", result.stderr)  # gRPC's own, UNAVAILABLE, is 20 s
        self.assertIn("default: 5", run_cli(None, "health", "--help").stdout)

    def test_timeout(self) -> None:
        result = run_cli(self.server, "generate", "--prompt", "x", *GREEDY, "--max-new-tokens", "1000000",
                         "--timeout", "0.5")
        self.assertEqual(result.returncode, 1)
        self.assertIn("DEADLINE_EXCEEDED", result.stderr)

    def test_ctrl_c_cancels_and_frees_the_slot(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            process = start_cli(self.server, "generate", "--prompt", "x", *GREEDY, "--max-new-tokens", "1000000",
                                "--logit-bias", "65=100")
            self.assertEqual(process.stdout.read(1), "A")  # it runs
            process.send_signal(number)
            _, stderr = process.communicate(timeout=30)
            self.assertEqual(process.returncode, 128 + number)
            self.assertIn("CANCELLED", stderr)
        # A server with one slot answers this only if the slot is free again.
        self.assertEqual(len(self.generate("--prompt", "y", *GREEDY, "--max-new-tokens", "3")["token_ids"]), 3)
        self.assertEqual(self.server.metric("bst_requests_running"), 0)
        self.assertGreaterEqual(
            self.server.metric('bst_requests_cancelled_total{cause="client",stage="decode"}'), 1)

    def test_progress_of_a_long_prompt_on_a_terminal(self) -> None:
        ids = write_ids(self.folder / "long.json", [i % 256 for i in range(20_000)])
        flags = [arguments.cli, "generate", "--server", self.server.grpc, "--ids-file", ids, *GREEDY,
                 "--max-new-tokens", "1"]
        parent, child = pty.openpty()
        with subprocess.Popen(flags, stdout=subprocess.DEVNULL, stderr=child) as process:
            os.close(child)
            shown = b""
            while True:
                try:
                    piece = os.read(parent, 4096)
                except OSError:  # the other end is closed
                    break
                if not piece:
                    break
                shown += piece
        os.close(parent)
        self.assertEqual(process.returncode, 0)
        self.assertIn(b"reading the prompt [", shown)
        self.assertIn(b"of 20000 tokens", shown)
        silent = run_cli(self.server, "generate", "--ids-file", ids, *GREEDY, "--max-new-tokens", "1")
        self.assertNotIn("reading the prompt", silent.stderr)


if __name__ == "__main__":
    bst_process.main()
