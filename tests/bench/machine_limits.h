// What this machine can do at most, measured: the multiply instructions that the CPU backend's
// kernels use, on registers alone, and reading memory.
#pragma once

namespace bst {

// All threads together, per second; a multiplication with its addition is two operations.
struct MachineLimits {
  double f32_operations;   // float32 fused multiply-add
  double bf16_operations;  // what BF16 linear layers run on: BF16 dot products where the backend
                           // uses them, else float32 multiply-adds
  double int8_operations;  // byte dot products; without VNNI 16-bit multiply-adds
  double read_bytes;       // a buffer far larger than any cache
  // With AMX: BF16 as a linear layer at best, its tiles loaded from the first-level cache, one load
  // for a multiplication. The median of runs over half a second: while the core's other thread
  // runs, this falls to a quarter and multiplications on registers are as fast as ever. 0 without
  // AMX.
  double loaded_tile_operations;
  // The same with tiles set to zero after their use, which leaves loads more registers.
  double freed_tile_operations;
};

// Takes about three seconds. The best of several runs, so that a busy neighbour does not lower a
// limit, but for loaded tiles.
MachineLimits MeasureMachineLimits(int threads);
// Bytes per second that `threads` threads read together from a buffer of `bytes`.
double MeasureReadRate(int threads, double bytes);

}  // namespace bst
