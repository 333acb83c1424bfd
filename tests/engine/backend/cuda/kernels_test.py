"""The kernels as nvcc compiled them: the same as in the sources, and within their budget.

orders_test launches every kernel of the sources under emulation; here the plugin's PTX may hold no
other. The budget is the table of engine/backend/cuda/README.md: registers per thread and shared
memory per block, at most, for every architecture the plugin has code for; and nothing may spill.
"""

import argparse
import pathlib
import re
import subprocess
import sys
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[4]
FOLDER = ROOT / "engine/backend/cuda"
REGISTERS_OF_AN_SM = 65536


def source_kernels():
    """name -> (threads, blocks) of its launch bounds."""
    found = {}
    for path in FOLDER.glob("*.cu"):
        text = path.read_text()
        for threads, blocks, name in re.findall(
                r"BST_KERNEL void BST_BOUNDS\((\d+), (\d+)\)\s+(bst_\w+)\(", text):
            found[name] = int(threads), int(blocks)
    return found


def budget():
    """name -> (registers, shared bytes, bytes of local memory), from the README's table."""
    rows = re.findall(r"^\| `(bst_\w+)` \| (\d+) \| (\d+) \| (\d+) \|", (FOLDER / "README.md").read_text(), re.M)
    return {name: tuple(map(int, numbers)) for name, *numbers in rows}


class KernelsTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        def dump(*flags):
            return subprocess.run([arguments.cuobjdump, *flags, arguments.plugin], check=True, capture_output=True,
                                  text=True).stdout

        cls.ptx = dump("--dump-ptx")
        cls.usage = dump("--dump-resource-usage")
        cls.kernels = source_kernels()

    def test_the_ptx_holds_the_kernels_of_the_sources(self):
        entries = set(re.findall(r"\.entry (\w+)", self.ptx))
        self.assertGreater(len(entries), 20)
        self.assertEqual(entries, set(self.kernels))

    def test_every_architecture_has_every_kernel_within_its_budget(self):
        table = budget()
        self.assertEqual(set(table), set(self.kernels), "the README's table is not up to date")
        seen = {}
        arch = None
        lines = self.usage.splitlines()
        for line, following in zip(lines, lines[1:]):
            if match := re.match(r"arch = (sm_\d+)", line):
                arch = match[1]
            if match := re.match(r"\s*Function (\w+):", line):
                seen.setdefault(arch, {})[match[1]] = dict(re.findall(r"(\w+):(\d+)", following))
        self.assertEqual(set(seen), {"sm_80", "sm_90"})
        for arch, kernels in seen.items():
            self.assertEqual(set(kernels), set(self.kernels), arch)
            for name, usage in kernels.items():
                registers, shared, local = table[name]
                with self.subTest(kernel=name, arch=arch):
                    self.assertLessEqual(int(usage["REG"]), registers)
                    # From compute capability 9.0 on a block has 1 KiB of the system's.
                    system = 1024 if arch >= "sm_90" else 0
                    self.assertLessEqual(int(usage["SHARED"]), shared + system)
                    # A stack is a spill, or the slow path of a trigonometric function.
                    self.assertLessEqual(int(usage["STACK"]), local)
                    self.assertEqual(int(usage["LOCAL"]), 0)

    def test_the_budget_gives_the_occupancy_of_the_launch_bounds(self):
        for name, (registers, _, _) in budget().items():
            threads, blocks = self.kernels[name]
            rounded = -(-registers // 8) * 8  # allocated by eights
            self.assertLessEqual(rounded * threads * blocks, REGISTERS_OF_AN_SM, name)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--plugin", required=True)
    parser.add_argument("--cuobjdump", required=True)
    arguments, rest = parser.parse_known_args()
    unittest.main(argv=[sys.argv[0], *rest])
