// The layout of keys and values that every attention of the CPU backend shares: per head, keys in
// tiles of sixteen, transposed, so that one vector holds sixteen scores; then values as rows padded
// to whole vectors; with INT8 then a scale per key and one per value (int8.h). Where attention
// multiplies pairs of BF16 or bytes: a pair ring or a byte ring (grouped_ring.h).
//
// Threads   Values; whoever holds a head's memory writes it, or tasks do that keep apart
//           (cpu_packed_heads.h).
// Tested by tests/engine/backend/agreement_test.cc, context_attention_test.cc,
//           projected_attention_test.cc, grouped_ring_test.cc
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "engine/backend/cpu/cpu_context.h"
#include "engine/backend/cpu/grouped_ring.h"
#include "engine/backend/int8.h"
#include "engine/base/check.h"
#include "engine/tensor/dtype.h"

namespace bst {

// Of one head with `rows` keys.
struct KeyValueLayout {
  int64_t rows;
  int head_dim;
  DType type;
  int group;  // numbers side by side: pairs 2, bytes 4, else 1

  KeyValueLayout(const CpuKernels& kernels, int64_t num_rows, int dim, DType kv_type)
      : rows(num_rows), head_dim(dim), type(kv_type), group(Group(kernels)) {}

  size_t HeadBytes() const {
    if (group == 2) return static_cast<size_t>(PairRing(rows, head_dim).bytes());
    if (group == 4) return static_cast<size_t>(ByteRing(rows, head_dim).bytes());
    const size_t numbers = elements() * SizeOf(type);
    return type == DType::kI8 ? numbers + ScaleBytes() : numbers;
  }
  // Of what a prompt block reads: the same in groups, else float32.
  size_t CopyBytes() const {
    return group > 1 ? HeadBytes() : elements() * sizeof(float) + ScaleBytes();
  }

  // ---- Of a ring that is not one of groups ----

  int64_t KeyElements() const { return RoundUp(rows, kLanes) * head_dim; }
  int64_t value_stride() const { return RoundUp(head_dim, kLanes); }
  size_t elements() const { return static_cast<size_t>(KeyElements() + rows * value_stride()); }
  int64_t scales() const { return RoundUp(rows, kLanes); }  // of the keys, and of the values

 private:
  int Group(const CpuKernels& kernels) const {
    if (type == DType::kBF16 && kernels.write_pairs != nullptr) return 2;
    if (type != DType::kI8 || kernels.write_bytes == nullptr) return 1;
    BST_CHECK(head_dim <= kMaxInt8Inputs, "a score of ", head_dim, " products is no int32");
    return 4;
  }
  size_t ScaleBytes() const { return 2 * static_cast<size_t>(scales()) * sizeof(float); }
};

// Of AttendTask::scores, for keys of this layout.
inline size_t AttendScratchBytes(const KeyValueLayout& layout) {
  if (layout.group == 2) return PairScratchBytes(layout.head_dim);
  if (layout.group == 4) return ByteScratchBytes(layout.head_dim);
  return static_cast<size_t>(kMaxQueries * RoundUp(layout.rows, kLanes)) * sizeof(float);
}

// One head's columns of the matrices that hold new keys and values, from some row on.
struct KeyValueRows {
  const float* k;
  const float* v;
  int64_t k_stride, v_stride;
};

// Keys and values of one head kept as `Number`: in the pool, or a float32 copy for a prompt block,
// which holds the numbers of a pool of type `As` (of INT8 the integers, and the scales beside).
template <typename Number, typename As = Number>
struct HeadKeyValues {
  using Copied = HeadKeyValues<float, As>;
  static constexpr bool kScaled = std::is_same_v<As, int8_t>;

  Number* keys;         // [tiles][dh][16]
  Number* values;       // [rows][value_stride]
  float* key_scales;    // [tiles * 16]; nullptr: no scales
  float* value_scales;  // likewise
  int head_dim;
  int64_t value_stride;

  HeadKeyValues(const KeyValueLayout& layout, std::byte* base)
      : keys(reinterpret_cast<Number*>(base)),
        values(keys + layout.KeyElements()),
        key_scales(kScaled ? reinterpret_cast<float*>(keys + layout.elements()) : nullptr),
        value_scales(kScaled ? key_scales + layout.scales() : nullptr),
        head_dim(layout.head_dim),
        value_stride(layout.value_stride()) {}

  static auto AttendKernel(const CpuKernels& kernels) {
    if constexpr (std::is_same_v<Number, int8_t>) return kernels.attend_int8;
    if constexpr (std::is_same_v<Number, BFloat16>) return kernels.attend_bf16;
    if constexpr (std::is_same_v<Number, float>) return kernels.attend_f32;
  }
  // This is the queries' own block, `previous` the block before.
  void SetBlocks(const HeadKeyValues& previous, AttendTask& task) const {
    task.current_keys = keys;
    task.current_values = values;
    task.current_key_scales = key_scales;
    task.current_value_scales = value_scales;
    task.previous_keys = previous.keys;
    task.previous_values = previous.values;
    task.previous_key_scales = previous.key_scales;
    task.previous_value_scales = previous.value_scales;
  }

  // Rows [0, count) to `index` and on.
  void Write(const CpuKernels& kernels, int64_t index, const KeyValueRows& rows,
             int64_t count) const {
    for (int64_t i = 0; i < count; ++i, ++index) {
      const float* key = rows.k + i * rows.k_stride;
      const float* value = rows.v + i * rows.v_stride;
      Number* to_key = keys + KeyOffset(index);
      Number* to_value = values + index * value_stride;
      if constexpr (kScaled) {
        key_scales[index] = Quantize(kernels, key, to_key, kLanes);
        value_scales[index] = Quantize(kernels, value, to_value, 1);
      } else {
        for (int d = 0; d < head_dim; ++d) Narrow(key[d], to_key + d * kLanes);
        for (int d = 0; d < head_dim; ++d) Narrow(value[d], to_value + d);
      }
    }
  }
  // Indices [begin, end) of a pool's into a copy.
  void Copy(int64_t begin, int64_t end, const HeadKeyValues<As>& from) const {
    for (int64_t index = begin; index < end; ++index) {
      const int64_t tile = KeyOffset(index), row = index * value_stride;
      for (int d = 0; d < head_dim; ++d)
        keys[tile + d * kLanes] = Widen(from.keys[tile + d * kLanes]);
      for (int d = 0; d < head_dim; ++d) values[row + d] = Widen(from.values[row + d]);
      if (key_scales == nullptr) continue;
      key_scales[index] = from.key_scales[index];
      value_scales[index] = from.value_scales[index];
    }
  }
  // Before [begin, end) of a copy are filled.
  void Pad(int64_t /*begin*/, int64_t /*end*/) const {}

 private:
  int64_t KeyOffset(int64_t index) const {
    return index / kLanes * head_dim * kLanes + index % kLanes;
  }
  float Quantize(const CpuKernels& kernels, const float* x, int8_t* to, int64_t stride) const {
    return kernels.quantize_key_or_value(x, head_dim, to, stride);
  }
  float Quantize(const CpuKernels& kernels, const float* x, float* to, int64_t stride) const {
    return kernels.quantize_key_or_value_as_floats(x, head_dim, to, stride);
  }
  static float Widen(float x) { return x; }
  static float Widen(BFloat16 x) { return ToFloat(x); }
  static float Widen(int8_t x) { return x; }
  static void Narrow(float x, float* out) {
    *out = std::is_same_v<As, BFloat16> ? ToFloat(ToBFloat16(x)) : x;
  }
  static void Narrow(float x, BFloat16* out) { *out = ToBFloat16(x); }
};

// A head of a pair ring or of a byte ring, a copy of it, or a packed block.
template <int kNumberBytes>
class GroupedHead {
 public:
  using Copied = GroupedHead;

  GroupedHead(const KeyValueLayout& layout, std::byte* base)
      : base_(base),
        rows_(layout.rows),
        head_dim_(layout.head_dim),
        ring_(layout.rows, layout.head_dim) {}

  static auto AttendKernel(const CpuKernels& kernels) {
    return kPairs ? kernels.attend_bf16 : kernels.attend_int8;
  }
  // As HeadKeyValues.
  void SetBlocks(const GroupedHead& previous, AttendTask& task) const {
    task.current_ring = base_;
    task.previous_ring = previous.base_;
  }

  void Write(const CpuKernels& kernels, int64_t index, const KeyValueRows& rows,
             int64_t count) const {
    const auto write = kPairs ? kernels.write_pairs : kernels.write_bytes;
    write({.k = rows.k,
           .v = rows.v,
           .k_stride = rows.k_stride,
           .v_stride = rows.v_stride,
           .count = static_cast<int>(count),
           .first_index = static_cast<int>(index),
           .window = static_cast<int>(rows_),
           .head_dim = head_dim_,
           .ring = base_});
  }
  // Whole tiles and groups: what they hold besides is finite, and overwritten or not seen.
  void Copy(int64_t begin, int64_t end, const GroupedHead& from) const {
    if (begin >= end) return;
    ForEachChunk(RoundDown(begin, kLanes), RoundUp(end, kLanes), [&](int64_t first, int64_t last) {
      CopyTiles(from, first / kLanes, (last - first) / kLanes);
    });
    ForEachChunk(RoundDown(begin, Ring::kGroup), RoundUp(end, Ring::kGroup),
                 [&](int64_t first, int64_t last) { CopyValues(from, first, last); });
  }
  // These indices alone.
  void CopyExactly(int64_t begin, int64_t end, const GroupedHead& from) const {
    for (int64_t first = begin; first < end;) {
      const int64_t last = std::min(end, RoundDown(first, kLanes) + kLanes);
      if (last - first == kLanes) {
        CopyBytes(from, ring_.Tile(first / kLanes), KeyBytes());
        CopyBytes(from, ring_.Scales(first / kLanes), Ring::kScaleBytes);
      } else {
        for (int64_t index = first; index < last; ++index) CopyKey(from, index);
      }
      first = last;
    }
    const int64_t whole = std::min(end, RoundUp(begin, Ring::kGroup));
    const int64_t rest = std::max(whole, RoundDown(end, Ring::kGroup));
    for (int64_t index = begin; index < whole; ++index) CopyValue(from, index);
    ForEachChunk(whole, rest, [&](int64_t first, int64_t last) { CopyValues(from, first, last); });
    for (int64_t index = rest; index < end; ++index) CopyValue(from, index);
  }
  // Attention multiplies values in whole steps: those of pairs beside [begin, end), with zero
  // weights, which silence any byte.
  void Pad(int64_t begin, int64_t end) const {
    if constexpr (!kPairs) return;
    for (const int64_t index : {begin, end}) {
      if (index % Ring::kStep == 0) continue;
      ForEachColumns(index, [&](int64_t columns) {
        std::memset(base_ + ring_.Step(index / Ring::kStep) + columns, 0,
                    kStepGroups * kVectorBytes);
      });
    }
  }

 private:
  using Ring = GroupedRing<kNumberBytes>;
  static constexpr bool kPairs = kNumberBytes == 2;

  static int64_t RoundDown(int64_t n, int64_t step) { return n / step * step; }
  // run(first, last) for the indices of [begin, end) that lie in each chunk.
  template <typename Run>
  static void ForEachChunk(int64_t begin, int64_t end, const Run& run) {
    while (begin < end) {
      const int64_t last = std::min(end, RoundDown(begin, kChunkIndices) + kChunkIndices);
      run(begin, last);
      begin = last;
    }
  }
  // run(offset) for each sixteen columns of the values in the chunk of an index.
  template <typename Run>
  void ForEachColumns(int64_t index, const Run& run) const {
    const int64_t stride = ring_.ValueStride(index / Ring::kStep);
    for (int64_t v = 0; v < ring_.columns / kLanes; ++v) run(v * stride);
  }
  void CopyBytes(const GroupedHead& from, int64_t at, int64_t bytes) const {
    std::memcpy(base_ + at, from.base_ + at, static_cast<size_t>(bytes));
  }
  // Of a tile, without padding.
  int64_t KeyBytes() const { return RoundUp(head_dim_, Ring::kGroup) * kLanes * kNumberBytes; }
  // Keys of tiles of one chunk, and what a byte ring keeps of their indices.
  void CopyTiles(const GroupedHead& from, int64_t tile, int64_t num_tiles) const {
    CopyBytes(from, ring_.Tile(tile), num_tiles * ring_.tile_bytes);
    CopyBytes(from, ring_.Scales(tile), num_tiles * Ring::kScaleBytes);
  }
  // Whole groups of one chunk.
  void CopyValues(const GroupedHead& from, int64_t first, int64_t last) const {
    ForEachColumns(first, [&](int64_t columns) {
      CopyBytes(from, ring_.Value(first) + columns, (last - first) / Ring::kGroup * kVectorBytes);
    });
  }
  void CopyKey(const GroupedHead& from, int64_t index) const {
    const auto copy = [&](int64_t first, int64_t bytes) {  // of each vector four bytes are its own
      for (int64_t at = 0; at < bytes; at += kVectorBytes)
        CopyBytes(from, first + at, Ring::kGroupBytes);
    };
    copy(ring_.Key(index), KeyBytes());
    copy(ring_.Scales(index / kLanes) + index % kLanes * Ring::kGroupBytes, Ring::kScaleBytes);
  }
  void CopyValue(const GroupedHead& from, int64_t index) const {
    const int64_t first = ring_.Value(index) + index % Ring::kGroup * kNumberBytes;
    ForEachColumns(index, [&](int64_t columns) {
      for (int64_t c = 0; c < kLanes; ++c)
        CopyBytes(from, first + columns + c * Ring::kGroupBytes, kNumberBytes);
    });
  }

  std::byte* base_;
  int64_t rows_;
  int head_dim_;
  Ring ring_;
};
using HeadPairs = GroupedHead<2>;
using HeadQuads = GroupedHead<1>;

// run<Head>() with what a head of this layout is.
template <typename Run>
void WithPackedHead(const KeyValueLayout& layout, const Run& run) {
  BST_CHECK(layout.group == 2 || layout.group == 4, "groups of ", layout.group);
  if (layout.group == 2) return run.template operator()<HeadPairs>();
  run.template operator()<HeadQuads>();
}
template <typename Run>
void WithHead(const KeyValueLayout& layout, const Run& run) {
  if (layout.group > 1) return WithPackedHead(layout, run);
  if (layout.type == DType::kBF16) return run.template operator()<HeadKeyValues<BFloat16>>();
  if (layout.type == DType::kI8) return run.template operator()<HeadKeyValues<int8_t>>();
  run.template operator()<HeadKeyValues<float>>();
}

}  // namespace bst
