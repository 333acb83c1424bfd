// The kernels compiled for AVX-512, and with dot products or AMX tiles for linear layers and
// attention. (Tile instructions are assembly; dot products have a region of their own.)
//
// Standard headers come before the target region: a function they define must not be compiled for
// this instruction set, lest the linker keeps that copy for all.
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "engine/backend/cpu/grouped_ring.h"
#include "engine/backend/cpu/kernels.h"

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma,prfchw")

namespace bst {
namespace {

// Rows of a linear layer's register tile: the accumulators, two vectors each, fill the registers.
constexpr int kMaxTileRows = 12;
// Vectors of value columns that kMaxQueries queries accumulate at once.
constexpr int kValueVectors = 4;
// Modes of a diagonal recurrence that stay in registers while tokens pass.
constexpr int kModeTile = 4;
// Register tiles of the convolution: outputs of a block; block ends and filters.
constexpr int kBlockOutputs = 12;
constexpr int kTileEnds = 4;
constexpr int kTileFilters = 4;

// In this order: each uses the one before.
// clang-format off
#include "engine/backend/cpu/vec_avx512.inl"
#include "engine/backend/cpu/recurrences.inl"
#include "engine/backend/cpu/convolution.inl"
#include "engine/backend/cpu/kernels.inl"
#include "engine/backend/cpu/linear_formats.inl"
#include "engine/backend/cpu/linear_tiles.inl"
#include "engine/backend/cpu/attention_products.inl"
#include "engine/backend/cpu/attention_softmax.inl"
#include "engine/backend/cpu/attention_pairs.inl"
#include "engine/backend/cpu/attention_bytes.inl"
#include "engine/backend/cpu/attention_tiles.inl"
#pragma GCC push_options
#pragma GCC target("avx512vnni,avx512bf16")
#include "engine/backend/cpu/dots_avx512.inl"
#include "engine/backend/cpu/attention_dots.inl"
#include "engine/backend/cpu/linear_dots.inl"

void LinearInt8Vnni(const LinearTask& task) { LinearDotsKernel<Int8DotVnni>(task); }
void LinearBf16Dots(const LinearTask& task) { LinearDotsKernel<Bf16Dot>(task); }
#pragma GCC pop_options
// clang-format on

// Those whose INT8 layers and attention multiply bytes.
constexpr CpuKernels MakeByteKernels(void (*linear_int8)(const LinearTask&),
                                     void (*attend_int8)(const AttendTask&)) {
  CpuKernels kernels = MakeKernels(linear_int8);
  kernels.attend_int8 = attend_int8;
  kernels.write_bytes = WriteBytesKernel;
  return kernels;
}

void AttendBytesVnni(const AttendTask& task) {
  AttendBytesKernel<DotProducts<SignedInt8DotVnni>, DotProducts<Int8DotVnni>>(task);
}

constexpr CpuKernels MakeVnniKernels() { return MakeByteKernels(LinearInt8Vnni, AttendBytesVnni); }

// The same, and the BF16 layers and attention multiply pairs.
constexpr CpuKernels WithPairs(CpuKernels kernels, void (*linear_bf16)(const LinearTask&),
                               void (*attend_bf16)(const AttendTask&)) {
  kernels.linear_bf16 = linear_bf16;
  kernels.linear_bf16_takes_packed_inputs = true;
  kernels.attend_bf16 = attend_bf16;
  kernels.write_pairs = WritePairsKernel;
  return kernels;
}

// A single query's time is that of memory, where dot products have less between the loads. Their
// sums are the same integers; where tiles are emulated there may be no such instruction.
template <typename Tiles>
void AttendBytesTilesKernel(const AttendTask& task) {
  if constexpr (std::is_same_v<Tiles, HardwareTiles>) {
    if (task.num_queries == 1) return AttendBytesVnni(task);
  }
  AttendBytesKernel<TileProducts<SignedInt8Tiles, Tiles>, TileProducts<Int8Tiles, Tiles>>(task);
}

template <typename Tiles>
constexpr CpuKernels MakeTileKernels() {
  CpuKernels kernels = WithPairs(
      MakeByteKernels(LinearTilesKernel<Int8Tiles, Tiles>, AttendBytesTilesKernel<Tiles>),
      LinearTilesKernel<Bf16Tiles, Tiles>, AttendPairsKernel<TileProducts<Bf16Tiles, Tiles>>);
  kernels.linear_takes_tiles = true;
  kernels.fetches_next_ring = true;
  return kernels;
}

}  // namespace

const CpuKernels& Avx512Kernels() {
  static constexpr CpuKernels kernels = MakeKernels(LinearInt8Avx2);
  return kernels;
}

const CpuKernels& Avx512VnniKernels() {
  static constexpr CpuKernels kernels = MakeVnniKernels();
  return kernels;
}

const CpuKernels& Avx512Bf16Kernels() {
  static constexpr CpuKernels kernels =
      WithPairs(MakeVnniKernels(), LinearBf16Dots, AttendPairsKernel<DotProducts<Bf16Dot>>);
  return kernels;
}

const CpuKernels& AmxKernels() {
  static constexpr CpuKernels kernels = MakeTileKernels<HardwareTiles>();
  return kernels;
}

const CpuKernels& EmulatedAmxKernels() {
  static constexpr CpuKernels kernels = MakeTileKernels<EmulatedTiles>();
  return kernels;
}

}  // namespace bst

#pragma GCC pop_options
