"""bst-server with --backend=cuda on the emulated device, over every golden checkpoint.

The plugin is the backend's own code over the emulation, found by LD_LIBRARY_PATH; what is shown is that server,
engine and backend work together: golden tokens and log-probabilities, and answers that do not depend on the load.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import unittest
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import bst_process
from bst_process import ServerProcess, cli_json, write_ids

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
CHECKPOINTS = sorted(path.parent for path in GOLDEN.glob("*/expected_greedy.json"))


class EmulatedCudaTest(unittest.TestCase):
    def test_golden_checkpoints(self) -> None:
        self.assertEqual(len(CHECKPOINTS), 8)
        for model in CHECKPOINTS:
            with self.subTest(model=model.name), ServerProcess("--backend=cuda", model=model) as server:
                self.assertEqual(server.addresses["backend"], "cuda")
                greedy = json.loads((model / "expected_greedy.json").read_text())["tokens"]
                result = cli_json(server, "generate", "--ids-file", str(model / "tokens.json"), "--temperature", "0",
                                  "--ignore-eos", "--max-new-tokens", str(len(greedy)))
                self.assertEqual(result["token_ids"], greedy)
                score = cli_json(server, "score", "--ids-file", str(model / "tokens.json"))
                oracle = json.loads(subprocess.run([sys.executable, GOLDEN / "evaluator.py", "score", model],
                                                   capture_output=True, text=True, check=True).stdout)
                for mine, expected in zip(score["logprobs"][1:], oracle["logprobs"][1:], strict=True):
                    self.assertAlmostEqual(mine, expected, delta=1e-3)
                self.assertEqual(set(re.findall(r'^bst_gpu_memory_bytes{kind="(\w+)"} [0-9]', server.metrics_text(), re.M)),
                                 {"weights", "state", "workspace", "free"})

    def test_answers_do_not_depend_on_the_load(self) -> None:
        for model in ("bst_single_head_s4d", "hybrid"):
            with self.subTest(model=model), tempfile.TemporaryDirectory() as folder, \
                    ServerProcess("--backend=cuda", "--weights=bf16", "--max_sequences=3", model=GOLDEN / model) as server:
                prompts = [write_ids(Path(folder) / f"{n}.json", [(7 * i + n) % 250 for i in range(n)])
                           for n in (1, 5, 17, 40, 90)]

                def generate(prompt: str) -> list[int]:
                    return cli_json(server, "generate", "--ids-file", prompt, "--seed", "3", "--ignore-eos",
                                    "--max-new-tokens", "24")["token_ids"]

                alone = [generate(prompt) for prompt in prompts]
                with ThreadPoolExecutor(len(prompts)) as pool:
                    self.assertEqual(list(pool.map(generate, prompts)), alone)


if __name__ == "__main__":
    bst_process.main()
