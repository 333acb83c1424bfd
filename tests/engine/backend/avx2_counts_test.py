"""Counts the instructions of the AVX2 kernels with callgrind: the same on every machine, whatever else runs on it.
(Valgrind knows nothing of AVX-512 and AMX; inner_loops_test.py reads those.)

    python3 avx2_counts_test.py build/release/bin/avx2_counts

The name of an operator ends with its rows or tokens: linear layers of 256 x 256, attention of one head of 64 at
W = 128 in the second block, S4D of 64 features with 16 modes, 256 wide RMSNorm and gated GELU. Where a count grows
something has been lost, or gained for a reason that the commit tells; where it falls by a tenth, lower it here. The
margin is for the C library, whose copies depend on the machine.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

MARGIN = 1.02
INSTRUCTIONS = {  # of one call
    "linear_f32_1": 20585,
    "linear_f32_24": 381470,
    "linear_bf16_1": 34327,
    "linear_bf16_24": 512732,
    "linear_int8_1": 23783,
    "linear_int8_24": 540303,
    "attention_f32_1": 8423,
    "attention_f32_24": 258790,
    "attention_bf16_1": 13931,
    "attention_bf16_24": 345138,
    "attention_int8_1": 14976,
    "attention_int8_24": 313559,
    "ssm_1": 4580,
    "ssm_24": 46573,
    "rms_norm_24": 8997,
    "gate_24": 33070,
}


@unittest.skipUnless("avx2" in Path("/proc/cpuinfo").read_text(), "this processor has no AVX2")
class CountsTest(unittest.TestCase):
    def run_under_callgrind(self, operator: str, times: int, out: str) -> subprocess.CompletedProcess:
        return subprocess.run(["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}", program, operator,
                               str(times)], capture_output=True, text=True)

    def count(self, operator: str, times: int) -> int:
        with tempfile.TemporaryDirectory() as folder:
            done = self.run_under_callgrind(operator, times, f"{folder}/out")
            self.assertEqual(done.returncode, 0, done.stderr)
            return int(re.search(r"^(?:summary|totals): (\d+)", Path(folder, "out").read_text(), re.M).group(1))

    def test_no_kernel_grows(self) -> None:
        for operator, limit in INSTRUCTIONS.items():
            with self.subTest(operator):
                # Of two calls, so that what comes before the first is not counted.
                instructions = (self.count(operator, 3) - self.count(operator, 1)) // 2
                print(f"{operator:20} {instructions:10,}", flush=True)
                self.assertLessEqual(instructions, limit * MARGIN)
                self.assertGreaterEqual(instructions, limit * 0.9)

    def test_an_unknown_operator_is_refused(self) -> None:
        self.assertEqual(self.run_under_callgrind("linear", 1, "/dev/null").returncode, 2)


if __name__ == "__main__":
    program = sys.argv.pop(1)
    unittest.main()
