// The tensor cores' one instruction: D = A B + C on a 16 x 16 matrix A and a 16 x 8 matrix B of
// BF16 with float32 sums, spread over the 32 lanes of a warp as mma.m16n8k16 of PTX has it. With g
// = lane / 4 and t = lane % 4, and two BF16 of neighbouring k in a word, the lower k in the lower
// half:
//
//   A   words (g, 2t) (g + 8, 2t) (g, 2t + 8) (g + 8, 2t + 8)     row, first k
//   B   words (2t, g) (2t + 8, g)                                 first k, column
//   C   floats (g, 2t) (g, 2t + 1) (g + 8, 2t) (g + 8, 2t + 1)    row, column
//
// An element of C depends on its row of A and its column of B alone, which the batch law stands on;
// the hardware's order of the sixteen additions is its own. The emulation (MultiplyFragments of
// <cuda_on_cpu/device.h>) gathers the same words from the same lanes and adds in the order of k.
//
// Threads   Runs on the device.
// Tested by tests/support/cuda_on_cpu/emulator_test.cc
#pragma once

#include "engine/backend/cuda/device.h"

namespace bst::cuda {

struct FragmentA {
  uint32_t words[4];
};
struct FragmentB {
  uint32_t words[2];
};
struct FragmentC {
  float values[4];
};

constexpr int kFragmentRows = 16;    // of A
constexpr int kFragmentColumns = 8;  // of B
constexpr int kFragmentDepth = 16;   // k

// Two numbers, rounded, as a word of A or B. Of a NaN nothing but that it is one reaches C.
#ifdef __CUDACC__
BST_DEVICE uint32_t PackBf16(float first, float second) {
  uint32_t word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(second), "f"(first));
  return word;
}
#else
BST_DEVICE uint32_t PackBf16(float first, float second) {
  return static_cast<uint32_t>(Store<Bf16>(first).bits) |
         static_cast<uint32_t>(Store<Bf16>(second).bits) << 16;
}
#endif

// All lanes of the warp, at one place in the source.
#ifdef __CUDACC__
BST_DEVICE void MultiplyAdd(const FragmentA& a, const FragmentB& b, FragmentC& c) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c.values[0]), "+f"(c.values[1]), "+f"(c.values[2]), "+f"(c.values[3])
      : "r"(a.words[0]), "r"(a.words[1]), "r"(a.words[2]), "r"(a.words[3]), "r"(b.words[0]),
        "r"(b.words[1]));
}
#else
BST_DEVICE void MultiplyAdd(const FragmentA& a, const FragmentB& b, FragmentC& c,
                            std::source_location where = std::source_location::current()) {
  MultiplyFragments(a.words, b.words, c.values, where);
}
#endif

}  // namespace bst::cuda
