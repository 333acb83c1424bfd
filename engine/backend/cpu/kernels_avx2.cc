// The kernels compiled for AVX2 and FMA. Standard headers come before the target region: a function
// they define must not be compiled for this instruction set, lest the linker keeps that copy for
// all.
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "engine/backend/cpu/kernels.h"

#pragma GCC push_options
#pragma GCC target("avx2,fma")

namespace bst {
namespace {

// Rows of a linear layer's register tile: the accumulators, two vectors each, fill the registers.
constexpr int kMaxTileRows = 3;
// Vectors of value columns that kMaxQueries queries accumulate at once.
constexpr int kValueVectors = 1;
// Modes of a diagonal recurrence that stay in registers while tokens pass.
constexpr int kModeTile = 1;
// Register tiles of the convolution: outputs of a block; block ends and filters.
constexpr int kBlockOutputs = 6;
constexpr int kTileEnds = 2;
constexpr int kTileFilters = 2;

// In this order: each uses the one before.
// clang-format off
#include "engine/backend/cpu/vec_avx2.inl"
#include "engine/backend/cpu/recurrences.inl"
#include "engine/backend/cpu/convolution.inl"
#include "engine/backend/cpu/kernels.inl"
#include "engine/backend/cpu/linear_formats.inl"
#include "engine/backend/cpu/dots_avx2.inl"
#include "engine/backend/cpu/linear_dots.inl"
// clang-format on

}  // namespace

void LinearInt8Avx2(const LinearTask& task) { LinearDotsKernel<Int8DotAvx2>(task); }

const CpuKernels& Avx2Kernels() {
  static constexpr CpuKernels kernels = MakeKernels(LinearInt8Avx2);
  return kernels;
}

}  // namespace bst

#pragma GCC pop_options
