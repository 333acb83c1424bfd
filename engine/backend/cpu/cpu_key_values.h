// The layout of keys and values that every attention of the CPU backend shares: per head, keys in
// tiles of sixteen, transposed, so that one vector holds sixteen scores; then values as rows padded
// to whole vectors; with INT8 then a scale per key and one per value (int8.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "engine/backend/cpu/cpu_context.h"
#include "engine/tensor/dtype.h"

namespace bst {

// Of one head with `rows` keys.
struct KeyValueLayout {
  int64_t rows;
  int head_dim;

  int64_t KeyElements() const { return RoundUp(rows, kLanes) * head_dim; }
  int64_t value_stride() const { return RoundUp(head_dim, kLanes); }
  int64_t elements() const { return KeyElements() + rows * value_stride(); }
  int64_t scales() const { return RoundUp(rows, kLanes); }  // of the keys, and of the values

  size_t HeadBytes(DType type) const {
    const auto numbers = static_cast<size_t>(elements()) * SizeOf(type);
    return type == DType::kI8 ? numbers + ScaleBytes() : numbers;
  }
  // A float32 copy, whatever it is a copy of.
  size_t CopyBytes() const { return HeadBytes(DType::kF32) + ScaleBytes(); }

 private:
  size_t ScaleBytes() const { return 2 * static_cast<size_t>(scales()) * sizeof(float); }
};

// Keys and values of one head: in the pool, where Kv is the pool's type, or a float32 copy of such
// for a prompt block, which holds the same numbers (of INT8 the integers, and the scales beside).
template <typename Kv>
struct HeadKeyValues {
  Kv* keys;             // [tiles][dh][16]
  Kv* values;           // [rows][value_stride]
  float* key_scales;    // [tiles * 16]; nullptr: no scales
  float* value_scales;  // likewise
  int head_dim;
  int64_t value_stride;

  HeadKeyValues(const KeyValueLayout& layout, std::byte* base,
                bool scaled = std::is_same_v<Kv, int8_t>)
      : keys(reinterpret_cast<Kv*>(base)),
        values(keys + layout.KeyElements()),
        key_scales(scaled ? reinterpret_cast<float*>(keys + layout.elements()) : nullptr),
        value_scales(scaled ? key_scales + layout.scales() : nullptr),
        head_dim(layout.head_dim),
        value_stride(layout.value_stride()) {}

  // One key and value as a pool of type `As` keeps them.
  template <typename As>
  void Write(const CpuKernels& kernels, int64_t index, const float* key, const float* value) const {
    Kv* to_key = keys + KeyOffset(index);
    Kv* to_value = values + index * value_stride;
    if constexpr (std::is_same_v<As, int8_t>) {
      key_scales[index] = Quantize(kernels, key, to_key, kLanes);
      value_scales[index] = Quantize(kernels, value, to_value, 1);
    } else {
      for (int i = 0; i < head_dim; ++i) Narrow<As>(key[i], to_key + i * kLanes);
      for (int i = 0; i < head_dim; ++i) Narrow<As>(value[i], to_value + i);
    }
  }
  // One index of a pool's into a float32 copy.
  template <typename From>
  void Copy(int64_t index, const HeadKeyValues<From>& from) const {
    const int64_t tile = KeyOffset(index), row = index * value_stride;
    for (int i = 0; i < head_dim; ++i)
      keys[tile + i * kLanes] = Widen(from.keys[tile + i * kLanes]);
    for (int i = 0; i < head_dim; ++i) values[row + i] = Widen(from.values[row + i]);
    if (key_scales == nullptr) return;
    key_scales[index] = from.key_scales[index];
    value_scales[index] = from.value_scales[index];
  }

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
  template <typename As>
  static void Narrow(float x, float* out) {
    *out = std::is_same_v<As, BFloat16> ? ToFloat(ToBFloat16(x)) : x;
  }
  template <typename As>
  static void Narrow(float x, BFloat16* out) {
    *out = ToBFloat16(x);
  }
};

// The kernel that reads keys and values of a type.
template <typename Kv>
auto AttendKernel(const CpuKernels& kernels) {
  if constexpr (std::is_same_v<Kv, int8_t>) return kernels.attend_int8;
  if constexpr (std::is_same_v<Kv, BFloat16>) return kernels.attend_bf16;
  if constexpr (std::is_same_v<Kv, float>) return kernels.attend_f32;
}

}  // namespace bst
