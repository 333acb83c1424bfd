#include "engine/backend/cpu/grouped_ring.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

#include "engine/backend/cpu/cpu_key_values.h"
#include "engine/backend/cpu/kernels.h"
#include "gtest/gtest.h"

namespace bst {
namespace {

constexpr int64_t kRows[] = {1, 16, 20, 64, 100, 128, 132, 160, 200, 512};
constexpr int64_t kHeadDims[] = {8, 24, 32, 64, 70, 128};

template <typename T>
class GroupedRingTest : public testing::Test {};
using Rings = testing::Types<PairRing, ByteRing>;
TYPED_TEST_SUITE(GroupedRingTest, Rings);

// A head is one stream: a chunk's keys tile by tile, its scales, its values sixteen columns after
// sixteen columns, then the next chunk's.
TYPED_TEST(GroupedRingTest, AttentionReadsMemoryInOrder) {
  using Ring = TypeParam;
  for (const int64_t num_rows : kRows) {
    for (const int64_t head_dim : kHeadDims) {
      const Ring ring(num_rows, head_dim);
      int64_t at = 0;
      for (int64_t first = 0; first < num_rows; first += kChunkIndices) {
        const int64_t end = std::min<int64_t>(ring.key_rows, first + kChunkIndices);
        const int64_t values_end = std::min<int64_t>(ring.value_rows, first + kChunkIndices);
        for (int64_t tile = first / kLanes; tile < end / kLanes; ++tile, at += ring.tile_bytes)
          ASSERT_EQ(ring.Tile(tile), at) << num_rows << " x " << head_dim << ", tile " << tile;
        for (int64_t tile = first / kLanes; tile < end / kLanes; ++tile, at += Ring::kScaleBytes)
          ASSERT_EQ(ring.Scales(tile), at) << num_rows << " x " << head_dim << ", tile " << tile;
        for (int64_t column = 0; column < ring.columns; column += kLanes) {
          for (int64_t step = first / Ring::kStep; step < values_end / Ring::kStep; ++step) {
            ASSERT_EQ(ring.Step(step) + column / kLanes * ring.ValueStride(step), at)
                << num_rows << " x " << head_dim << ", step " << step << ", column " << column;
            at += kStepGroups * kVectorBytes;
          }
        }
      }
      EXPECT_EQ(ring.bytes(), at);
    }
  }
}

// Where the numbers of one index lie, as offsets of bytes: its value's; all.
template <typename Ring>
std::vector<int64_t> ValueBytesOf(const Ring& ring, int64_t index, int64_t head_dim) {
  constexpr int64_t kNumberBytes = Ring::kGroupBytes / Ring::kGroup;
  std::vector<int64_t> bytes;
  for (int64_t d = 0; d < head_dim; ++d) {
    const int64_t first = ring.Value(index) + d / kLanes * ring.ValueStride(index / Ring::kStep) +
                          d % kLanes * Ring::kGroupBytes + index % Ring::kGroup * kNumberBytes;
    for (int64_t i = 0; i < kNumberBytes; ++i) bytes.push_back(first + i);
  }
  return bytes;
}
template <typename Ring>
std::vector<int64_t> BytesOf(const Ring& ring, int64_t index, int64_t head_dim) {
  constexpr int64_t kNumberBytes = Ring::kGroupBytes / Ring::kGroup;
  std::vector<int64_t> bytes = ValueBytesOf(ring, index, head_dim);
  for (int64_t d = 0; d < head_dim; ++d) {
    const int64_t first =
        ring.Key(index) + d / Ring::kGroup * kVectorBytes + d % Ring::kGroup * kNumberBytes;
    for (int64_t i = 0; i < kNumberBytes; ++i) bytes.push_back(first + i);
  }
  for (int64_t scale = 0; scale < Ring::kScaleBytes; scale += kVectorBytes) {
    const int64_t first = ring.Scales(index / kLanes) + scale + index % kLanes * Ring::kGroupBytes;
    for (int64_t i = 0; i < Ring::kGroupBytes; ++i) bytes.push_back(first + i);
  }
  return bytes;
}

TYPED_TEST(GroupedRingTest, EveryNumberHasBytesOfItsOwn) {
  for (const int64_t num_rows : kRows) {
    for (const int64_t head_dim : kHeadDims) {
      const TypeParam ring(num_rows, head_dim);
      std::vector<bool> taken(static_cast<size_t>(ring.bytes()));
      for (int64_t index = 0; index < num_rows; ++index) {
        for (const int64_t byte : BytesOf(ring, index, head_dim)) {
          ASSERT_TRUE(0 <= byte && byte < ring.bytes());
          ASSERT_FALSE(taken[static_cast<size_t>(byte)])
              << num_rows << " x " << head_dim << ", index " << index;
          taken[static_cast<size_t>(byte)] = true;
        }
      }
    }
  }
}

template <typename Ring>
class TwoHeads {
 public:
  using Head = GroupedHead<static_cast<int>(Ring::kGroupBytes / Ring::kGroup)>;

  TwoHeads(int64_t num_rows, int head_dim)
      // The level has both rings; none of its code runs.
      : layout_(EmulatedAmxKernels(), num_rows, head_dim,
                Ring::kGroup == 2 ? DType::kBF16 : DType::kI8),
        from_(layout_.HeadBytes()),
        to_(layout_.HeadBytes(), std::byte{0xff}) {
    std::mt19937 random(static_cast<uint32_t>(num_rows + head_dim));
    for (std::byte& byte : from_) byte = static_cast<std::byte>(random() % 0xff);
  }

  Head from() { return Head(layout_, from_.data()); }
  Head to() { return Head(layout_, to_.data()); }
  bool IsCopied(int64_t byte) const { return to_[Index(byte)] == from_[Index(byte)]; }
  bool IsUntouched(int64_t byte) const { return to_[Index(byte)] == std::byte{0xff}; }
  bool IsZero(int64_t byte) const { return to_[Index(byte)] == std::byte{0}; }

 private:
  static size_t Index(int64_t byte) { return static_cast<size_t>(byte); }

  KeyValueLayout layout_;
  std::vector<std::byte> from_, to_;
};

constexpr struct {
  int64_t begin, end;
} kRanges[] = {{0, 1},     {0, 200},   {3, 4},    {5, 131}, {16, 32},
               {120, 136}, {127, 129}, {64, 200}, {7, 7}};

TYPED_TEST(GroupedRingTest, ACopyHasAllOfItsIndices) {
  constexpr int kNumRows = 200, kHeadDim = 40;
  const TypeParam ring(kNumRows, kHeadDim);
  for (const auto& [begin, end] : kRanges) {
    TwoHeads<TypeParam> heads(kNumRows, kHeadDim);
    heads.to().Copy(begin, end, heads.from());
    for (int64_t index = begin; index < end; ++index) {
      for (const int64_t byte : BytesOf(ring, index, kHeadDim))
        ASSERT_TRUE(heads.IsCopied(byte)) << begin << " to " << end << ", index " << index;
      // What pads a pair ring's keys meets zeros, which do not silence NaN.
      const int64_t tile = ring.Tile(index / kLanes);
      for (int64_t byte = tile; byte < tile + ring.tile_bytes; ++byte)
        ASSERT_TRUE(heads.IsCopied(byte)) << begin << " to " << end << ", index " << index;
    }
  }
}

TYPED_TEST(GroupedRingTest, AnExactCopyHasNoOthers) {
  constexpr int kNumRows = 200, kHeadDim = 40;
  const TypeParam ring(kNumRows, kHeadDim);
  for (const auto& [begin, end] : kRanges) {
    TwoHeads<TypeParam> heads(kNumRows, kHeadDim);
    heads.to().CopyExactly(begin, end, heads.from());
    for (int64_t index = 0; index < kNumRows; ++index) {
      const bool is_copied = begin <= index && index < end;
      for (const int64_t byte : BytesOf(ring, index, kHeadDim)) {
        ASSERT_TRUE(is_copied ? heads.IsCopied(byte) : heads.IsUntouched(byte))
            << begin << " to " << end << ", index " << index;
      }
    }
  }
}

// NaN among what a step's zero weights meet would spoil a product of pairs; of bytes nothing does.
TYPED_TEST(GroupedRingTest, PaddingSilencesTheStepsOfBothEnds) {
  constexpr int kNumRows = 200, kHeadDim = 40;
  const TypeParam ring(kNumRows, kHeadDim);
  TwoHeads<TypeParam> heads(kNumRows, kHeadDim);
  heads.to().Pad(5, 150);
  for (int64_t index = 0; index < kNumRows; ++index) {
    const int64_t step = index / TypeParam::kStep;
    const bool is_cleared =
        TypeParam::kGroup == 2 && (step == 5 / TypeParam::kStep || step == 150 / TypeParam::kStep);
    for (const int64_t byte : ValueBytesOf(ring, index, kHeadDim))
      ASSERT_TRUE(is_cleared ? heads.IsZero(byte) : heads.IsUntouched(byte)) << "index " << index;
  }
}

}  // namespace
}  // namespace bst
