// The layout of keys and values that every attention of the CPU backend shares: per head, keys in
// tiles of sixteen, transposed, so that one vector holds sixteen scores; then values as rows padded
// to whole vectors; with INT8 then a scale per key and one per value (int8.h). Where attention
// multiplies pairs of BF16 or bytes: a pair ring or a byte ring (kernels.h).
//
// Threads   Values; whoever holds a head's memory writes it, or tasks do that keep apart
//           (cpu_packed_heads.h).
// Tested by tests/engine/backend/agreement_test.cc, context_attention_test.cc,
//           projected_attention_test.cc
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "engine/backend/cpu/cpu_context.h"
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

  int64_t KeyElements() const { return RoundUp(rows, kLanes) * ToSteps(head_dim); }
  int64_t value_stride() const { return RoundUp(head_dim, kLanes); }
  int64_t elements() const { return KeyElements() + ToSteps(rows) * value_stride(); }
  int64_t scales() const { return RoundUp(rows, kLanes); }  // of the keys, and of the values

  size_t HeadBytes() const {
    const auto numbers = static_cast<size_t>(elements()) * SizeOf(type);
    return type == DType::kI8 ? numbers + ScaleBytes() : numbers;
  }
  // Of what a prompt block reads: the same in groups, else float32.
  size_t CopyBytes() const {
    return group > 1 ? HeadBytes() : static_cast<size_t>(elements()) * sizeof(float) + ScaleBytes();
  }

 private:
  int Group(const CpuKernels& kernels) const {
    if (type == DType::kBF16 && kernels.write_pairs != nullptr) return 2;
    if (type != DType::kI8 || kernels.write_bytes == nullptr) return 1;
    BST_CHECK(head_dim <= kMaxInt8Inputs, "a score of ", head_dim, " products is no int32");
    return 4;
  }
  int64_t ToSteps(int64_t n) const { return group > 1 ? RoundUp(n, group * kStepGroups) : n; }
  // With a byte ring's key offsets.
  size_t ScaleBytes() const {
    return static_cast<size_t>((group == 4 ? 3 : 2) * scales()) * sizeof(float);
  }
};

// Of AttendTask::scores, for keys of this layout.
inline size_t AttendScratchBytes(const KeyValueLayout& layout) {
  if (layout.group == 2) return PairScratchBytes(layout.rows, layout.head_dim);
  if (layout.group == 4) return ByteScratchBytes(layout.rows, layout.head_dim);
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
  int32_t* key_offsets = nullptr;
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
    return kernels.quantize_symmetric(x, head_dim, to, stride);
  }
  float Quantize(const CpuKernels& kernels, const float* x, float* to, int64_t stride) const {
    return kernels.quantize_symmetric_as_floats(x, head_dim, to, stride);
  }
  static float Widen(float x) { return x; }
  static float Widen(BFloat16 x) { return ToFloat(x); }
  static float Widen(int8_t x) { return x; }
  static void Narrow(float x, float* out) {
    *out = std::is_same_v<As, BFloat16> ? ToFloat(ToBFloat16(x)) : x;
  }
  static void Narrow(float x, BFloat16* out) { *out = ToBFloat16(x); }
};

// Indices [begin, end) of arrays with so many elements per index.
template <typename T>
void CopyRange(const T* from, T* to, int64_t begin, int64_t end, int64_t width) {
  std::memcpy(to + begin * width, from + begin * width,
              static_cast<size_t>((end - begin) * width) * sizeof(T));
}

// Ring indices [begin, end) of keys in tiles of sixteen whose groups are four bytes each, the first
// `groups` of `all`, and of values in groups of kGroup indices: these alone, where CopyRange takes
// whole tiles and groups.
inline void CopyKeysExactly(const void* from, void* to, int64_t begin, int64_t end, int64_t groups,
                            int64_t all) {
  constexpr int64_t kGroupBytes = 4;
  const auto* source = static_cast<const std::byte*>(from);
  auto* target = static_cast<std::byte*>(to);
  while (begin < end) {
    const int64_t lane = begin % kLanes, count = std::min(kLanes - lane, end - begin);
    const int64_t first = begin / kLanes * all * kLanes + lane;
    if (count == kLanes) {
      CopyRange(source, target, first, first + groups * kLanes, kGroupBytes);
    } else {
      for (int64_t at = first; at < first + groups * kLanes; at += kLanes)
        CopyRange(source, target, at, at + count, kGroupBytes);
    }
    begin += count;
  }
}
template <int kGroup, typename T>
void CopyValuesExactly(const T* from, T* to, int64_t begin, int64_t end, int64_t width) {
  const int64_t first = std::min(end, (begin + kGroup - 1) / kGroup * kGroup);
  const int64_t last = std::max(first, end / kGroup * kGroup);
  CopyRange(from, to, first, last, width);
  const auto copy_one = [&](int64_t index) {
    const int64_t base = index / kGroup * kGroup * width + index % kGroup;
    for (int64_t c = 0; c < width; ++c) to[base + c * kGroup] = from[base + c * kGroup];
  };
  for (int64_t index = begin; index < first; ++index) copy_one(index);
  for (int64_t index = last; index < end; ++index) copy_one(index);
}

// Those of a pair ring, copies of it, and packed blocks.
struct HeadPairs {
  using Copied = HeadPairs;

  BFloat16* keys;    // [tiles][key_dims / 2][16][2]
  BFloat16* values;  // [rows / 2][value_stride][2]
  float* key_scales = nullptr;
  float* value_scales = nullptr;
  int32_t* key_offsets = nullptr;
  int head_dim;
  int64_t key_dims;
  int64_t value_stride;

  HeadPairs(const KeyValueLayout& layout, std::byte* base)
      : keys(reinterpret_cast<BFloat16*>(base)),
        values(keys + layout.KeyElements()),
        head_dim(layout.head_dim),
        key_dims(RoundUpInputs(layout.head_dim)),
        value_stride(layout.value_stride()) {}

  static auto AttendKernel(const CpuKernels& kernels) { return kernels.attend_bf16; }

  void Write(const CpuKernels& kernels, int64_t index, const KeyValueRows& rows,
             int64_t count) const {
    kernels.write_pairs({.k = rows.k,
                         .v = rows.v,
                         .k_stride = rows.k_stride,
                         .v_stride = rows.v_stride,
                         .count = static_cast<int>(count),
                         .head_dim = head_dim,
                         .first_index = static_cast<int>(index),
                         .keys = keys,
                         .values = values});
  }
  // Whole tiles and pairs: what they hold besides is finite, and overwritten or not seen.
  void Copy(int64_t begin, int64_t end, const HeadPairs& from) const {
    if (begin >= end) return;
    CopyRange(from.keys, keys, begin / kLanes * kLanes, RoundUp(end, kLanes), key_dims);
    CopyRange(from.values, values, begin / 2 * 2, RoundUp(end, 2), value_stride);
  }
  void CopyExactly(int64_t begin, int64_t end, const HeadPairs& from) const {
    CopyKeysExactly(from.keys, keys, begin, end, (head_dim + 1) / 2, key_dims / 2);
    CopyValuesExactly<2>(from.values, values, begin, end, value_stride);
  }
  // The kernel multiplies values in whole steps: those beside [begin, end), with zero weights.
  void Pad(int64_t begin, int64_t end) const {
    constexpr int64_t kStep = 2 * kStepGroups;
    const auto clear_step_of = [&](int64_t index) {
      std::fill_n(values + index / kStep * kStep * value_stride, kStep * value_stride, BFloat16{});
    };
    if (begin % kStep != 0) clear_step_of(begin);
    if (end % kStep != 0) clear_step_of(end);
  }
};

// Those of a byte ring, copies of it, and packed blocks. Zero weights silence any byte: nothing
// needs padding.
struct HeadQuads {
  using Copied = HeadQuads;

  int8_t* keys;    // [tiles][key_dims / 4][16][4]
  int8_t* values;  // [rows / 4][value_stride][4]
  float* key_scales;
  float* value_scales;
  int32_t* key_offsets;
  int head_dim;
  int64_t key_dims;
  int64_t value_stride;

  HeadQuads(const KeyValueLayout& layout, std::byte* base)
      : keys(reinterpret_cast<int8_t*>(base)),
        values(keys + layout.KeyElements()),
        key_scales(reinterpret_cast<float*>(keys + layout.elements())),
        value_scales(key_scales + layout.scales()),
        key_offsets(reinterpret_cast<int32_t*>(value_scales + layout.scales())),
        head_dim(layout.head_dim),
        key_dims(RoundUpInt8Inputs(layout.head_dim)),
        value_stride(layout.value_stride()) {}

  static auto AttendKernel(const CpuKernels& kernels) { return kernels.attend_int8; }

  void Write(const CpuKernels& kernels, int64_t index, const KeyValueRows& rows,
             int64_t count) const {
    kernels.write_bytes({.k = rows.k,
                         .v = rows.v,
                         .k_stride = rows.k_stride,
                         .v_stride = rows.v_stride,
                         .count = static_cast<int>(count),
                         .head_dim = head_dim,
                         .first_index = static_cast<int>(index),
                         .keys = keys,
                         .values = values,
                         .key_scales = key_scales,
                         .value_scales = value_scales,
                         .key_offsets = key_offsets});
  }
  void Copy(int64_t begin, int64_t end, const HeadQuads& from) const {
    if (begin >= end) return;
    CopyRange(from.keys, keys, begin / kLanes * kLanes, RoundUp(end, kLanes), key_dims);
    CopyRange(from.values, values, begin / 4 * 4, RoundUp(end, 4), value_stride);
    CopyRange(from.key_scales, key_scales, begin, end, 1);
    CopyRange(from.value_scales, value_scales, begin, end, 1);
    CopyRange(from.key_offsets, key_offsets, begin, end, 1);
  }
  void CopyExactly(int64_t begin, int64_t end, const HeadQuads& from) const {
    CopyKeysExactly(from.keys, keys, begin, end, (head_dim + 3) / 4, key_dims / 4);
    CopyValuesExactly<4>(from.values, values, begin, end, value_stride);
    CopyRange(from.key_scales, key_scales, begin, end, 1);
    CopyRange(from.value_scales, value_scales, begin, end, 1);
    CopyRange(from.key_offsets, key_offsets, begin, end, 1);
  }
  void Pad(int64_t /*begin*/, int64_t /*end*/) const {}
};

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
