"""Counts the instructions of the CPU kernels' inner loops, as objdump shows them: exact, so that a loop that lost
its shape fails here whatever the machine and whatever else runs on it.

    python3 inner_loops_test.py build/release/engine/backend/cpu/libbst_backend_cpu.a

A kernel has a loop that multiplies as often per turn as its register tile says, fetches as often as is written here,
keeps its sums in registers (no vector on the stack) and calls nothing (an intrinsic compiled outside its target region
becomes a call). Tiles of attention, whose loops are short, have none on the stack around their loops either.
"""

from __future__ import annotations

import re
import subprocess
import sys
import unittest
from typing import Dict, List, NamedTuple, Optional, Tuple


class Instruction(NamedTuple):
    address: int
    name: str
    operands: str


class Kernel(NamedTuple):
    function: str  # the demangled name begins so, without namespaces and return type
    multiply: str
    multiplies: int  # per turn
    instructions: int  # per turn, at most
    fetches: Optional[int] = None  # per turn; None: any
    zeros: int = 0  # tiles set to zero, per turn
    loads: int = 0  # of tiles, per turn


# Multiplies are rows times vectors of the register tile. Besides: loads of weights, broadcasts of inputs, and what
# g++ 12 needs to count and to step.
KERNELS = [
    Kernel("DotTile<Bf16Dot, 12, 2>", "vdpbf16ps", 24, 48),
    Kernel("DotTile<Bf16Dot, 1, 2>", "vdpbf16ps", 2, 9),
    Kernel("DotTile<Int8DotVnni, 12, 2>", "vpdpbusd", 24, 48),
    Kernel("DotTile<Int8DotVnni, 1, 2>", "vpdpbusd", 2, 8),
    Kernel("DotProducts<Bf16Dot>::Tile<8, 2>", "vdpbf16ps", 16, 31, fetches=0),
    Kernel("DotProducts<Int8DotVnni>::Tile<8, 2>", "vpdpbusd", 16, 31, fetches=0),
    # A single query's streams: two groups of keys or values, of bytes times two digits.
    Kernel("DotProducts<Bf16Dot>::Multiply", "vdpbf16ps", 2, 10, fetches=0),
    Kernel("DotProducts<Int8DotVnni>::Multiply", "vpdpbusd", 4, 13, fetches=0),
    Kernel("DotProducts<Int8DotVnni>::Multiply", "vpdpbusd", 4, 16, fetches=2),  # of the next head's ring
    # Scores of bytes: signed queries, unsigned keys.
    Kernel("DotProducts<SignedInt8DotVnni>::Tile<8, 2>", "vpdpbusd", 16, 31, fetches=0),
    Kernel("DotProducts<SignedInt8DotVnni>::Multiply", "vpdpbusd", 4, 13, fetches=0),
    Kernel("DotProducts<SignedInt8DotVnni>::Multiply", "vpdpbusd", 4, 16, fetches=2),
    # Of the next panel a step fetches as much as brings it while 256 rows pass.
    Kernel("LinearTilePanels<Bf16Tiles, 4, true, HardwareTiles>", "tdpbf16ps", 4, 23, fetches=4, zeros=4, loads=4),
    Kernel("LinearTilePanels<Int8Tiles, 4, true, HardwareTiles>", "tdpbusd", 4, 23, fetches=4, zeros=4, loads=4),
    # Values; scores, whose queries' tiles stay; a single query's values.
    Kernel("TileProducts<Bf16Tiles, HardwareTiles>::Multiply", "tdpbf16ps", 4, 27, fetches=0, zeros=4, loads=4),
    Kernel("TileProducts<Bf16Tiles, HardwareTiles>::Multiply", "tdpbf16ps", 4, 25, fetches=0, zeros=4, loads=2),
    Kernel("TileProducts<Bf16Tiles, HardwareTiles>::Multiply", "tdpbf16ps", 4, 30, fetches=0, zeros=3, loads=5),
    Kernel("TileProducts<Int8Tiles, HardwareTiles>::Multiply", "tdpbusd", 4, 27, fetches=0, zeros=4, loads=4),
    Kernel("TileProducts<Int8Tiles, HardwareTiles>::Multiply", "tdpbusd", 4, 25, fetches=0, zeros=4, loads=2),
    Kernel("TileProducts<SignedInt8Tiles, HardwareTiles>::Multiply", "tdpbsud", 4, 27, fetches=0, zeros=4, loads=4),
    Kernel("TileProducts<SignedInt8Tiles, HardwareTiles>::Multiply", "tdpbsud", 4, 25, fetches=0, zeros=4, loads=2),
    Kernel("LinearTile<float, 12>", "vfmadd231ps", 24, 42),
    Kernel("LinearTile<float, 3>", "vfmadd231ps", 12, 22),  # AVX2: a vector is two registers
]

HEADER = re.compile(r"^[0-9a-f]+ <(.*)>:$")
LINE = re.compile(r"^\s*([0-9a-f]+):\s+(\S+)\s*(.*)$")
JUMP_TARGET = re.compile(r"^([0-9a-f]+)\b")
VECTOR_ON_STACK = re.compile(r"%r[sb]p\).*%[yz]mm|%[yz]mm.*%r[sb]p\)")

Function = Tuple[str, List[Instruction]]


def disassemble(library: str) -> List[Function]:
    text = subprocess.run(["objdump", "-d", "-C", "--no-show-raw-insn", library], check=True, capture_output=True,
                          text=True).stdout
    functions: List[Function] = []
    for line in text.splitlines():
        header = HEADER.match(line)
        match = LINE.match(line)
        if header:
            name = header.group(1).replace("bst::", "").replace("(anonymous namespace)::", "")
            functions.append((name.removeprefix("void "), []))
        elif match:
            functions[-1][1].append(Instruction(int(match.group(1), 16), match.group(2), match.group(3)))
    return functions


def innermost_loops(body: List[Instruction]) -> List[List[Instruction]]:
    index: Dict[int, int] = {instruction.address: i for i, instruction in enumerate(body)}
    spans: List[Tuple[int, int]] = []
    for i, instruction in enumerate(body):
        target = JUMP_TARGET.match(instruction.operands)
        if instruction.name.startswith("j") and target:
            start = index.get(int(target.group(1), 16))
            if start is not None and start <= i:
                spans.append((start, i))
    inner = [s for s in spans if not any(o != s and s[0] <= o[0] and o[1] <= s[1] for o in spans)]
    return [body[start:end + 1] for start, end in inner]


def faults(loop: List[Instruction], kernel: Kernel) -> List[str]:
    found = []
    multiplies = sum(instruction.name == kernel.multiply for instruction in loop)
    if multiplies != kernel.multiplies:
        found.append(f"{multiplies} x {kernel.multiply}, not {kernel.multiplies}")
    fetches = sum(instruction.name.startswith("prefetch") for instruction in loop)
    if kernel.fetches not in (None, fetches):
        found.append(f"{fetches} fetches, not {kernel.fetches}")
    zeros = sum(instruction.name == "tilezero" for instruction in loop)
    if zeros != kernel.zeros:
        found.append(f"{zeros} tiles set to zero, not {kernel.zeros}")
    loads = sum(instruction.name.startswith("tileload") for instruction in loop)
    if loads != kernel.loads:
        found.append(f"{loads} tiles loaded, not {kernel.loads}")
    if len(loop) > kernel.instructions:
        found.append(f"{len(loop)} instructions, more than {kernel.instructions}")
    found += [f"{i.name} {i.operands}" for i in loop
              if i.name.startswith("call") or VECTOR_ON_STACK.search(i.operands)]
    return found


class InnerLoopsTest(unittest.TestCase):
    library = ""

    @classmethod
    def setUpClass(cls) -> None:
        cls.functions = disassemble(cls.library)

    def test_every_kernel_has_its_loop(self) -> None:
        for kernel in KERNELS:
            with self.subTest(kernel.function):
                loops = [loop for name, body in self.functions if name.startswith(kernel.function)
                         for loop in innermost_loops(body) if any(i.name == kernel.multiply for i in loop)]
                self.assertTrue(loops, f"no loop with {kernel.multiply}")
                candidates = [faults(loop, kernel) for loop in loops]
                self.assertIn([], candidates)

    def test_tiles_of_attention_keep_their_sums_in_registers(self) -> None:
        tiles = [(name, body) for name, body in self.functions if re.match(r"DotProducts<\w+>::(Tile<|Stream<|Multiply)", name)]
        self.assertGreaterEqual(len(tiles), 33)
        for name, body in tiles:
            with self.subTest(name):
                self.assertEqual([i for i in body if VECTOR_ON_STACK.search(i.operands)], [])

    def test_a_loop_that_spills_calls_or_multiplies_less_is_seen(self) -> None:
        kernel = Kernel("f", "vfmadd231ps", 2, 4)
        multiply = Instruction(0, "vfmadd231ps", "%zmm1,%zmm2,%zmm3")
        jump = Instruction(8, "jne", "0 <f>")
        self.assertEqual(innermost_loops([multiply, multiply._replace(address=4), jump]), [[
            multiply, multiply._replace(address=4), jump]])
        self.assertEqual(faults([multiply, multiply, jump], kernel), [])
        self.assertTrue(faults([multiply, jump], kernel))
        self.assertTrue(faults([multiply, multiply, Instruction(4, "vmovaps", "%zmm1,0x40(%rsp)"), jump], kernel))
        self.assertTrue(faults([multiply, multiply, Instruction(4, "call", "10 <g>"), jump], kernel))
        self.assertTrue(faults([multiply, multiply, jump, jump, jump], kernel))
        fetch = Instruction(4, "prefetcht1", "(%rax)")
        self.assertEqual(faults([multiply, multiply, fetch, jump], kernel._replace(fetches=1)), [])
        self.assertTrue(faults([multiply, multiply, jump], kernel._replace(fetches=1)))
        zero = Instruction(4, "tilezero", "%tmm4")
        self.assertEqual(faults([multiply, multiply, zero, jump], kernel._replace(zeros=1)), [])
        self.assertTrue(faults([multiply, multiply, jump], kernel._replace(zeros=1)))
        load = Instruction(4, "tileloaddt1", "(%rax,%rdx,1),%tmm4")
        self.assertEqual(faults([multiply, multiply, load, jump], kernel._replace(loads=1)), [])
        self.assertTrue(faults([multiply, multiply, load, jump], kernel))


if __name__ == "__main__":
    InnerLoopsTest.library = sys.argv.pop(1)
    unittest.main()
