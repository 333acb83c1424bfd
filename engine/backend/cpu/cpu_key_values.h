// The layout of keys and values that every attention of the CPU backend shares: per head, keys in
// tiles of sixteen, transposed, so that one vector holds sixteen scores; then values as rows padded
// to whole vectors.
#pragma once

#include <cstdint>

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
};

// Keys and values of one head: in the pool (Kv), or a float32 copy for a prompt block.
template <typename Kv>
struct HeadKeyValues {
  Kv* keys;    // [tiles][dh][16]
  Kv* values;  // [rows][value_stride]
  int head_dim;
  int64_t value_stride;

  HeadKeyValues(const KeyValueLayout& layout, Kv* base)
      : keys(base),
        values(base + layout.KeyElements()),
        head_dim(layout.head_dim),
        value_stride(layout.value_stride()) {}

  void Write(int64_t index, const float* key, const float* value) const {
    Kv* tile = keys + index / kLanes * head_dim * kLanes + index % kLanes;
    for (int i = 0; i < head_dim; ++i) Narrow(key[i], tile + i * kLanes);
    Kv* row = values + index * value_stride;
    for (int i = 0; i < head_dim; ++i) Narrow(value[i], row + i);
  }
  // One index of another's, whatever its type.
  template <typename From>
  void Copy(int64_t index, const HeadKeyValues<From>& from) const {
    const int64_t tile = index / kLanes * head_dim * kLanes + index % kLanes;
    for (int i = 0; i < head_dim; ++i)
      Narrow(Widen(from.keys[tile + i * kLanes]), keys + tile + i * kLanes);
    const int64_t row = index * value_stride;
    for (int i = 0; i < head_dim; ++i) Narrow(Widen(from.values[row + i]), values + row + i);
  }

 private:
  static float Widen(float x) { return x; }
  static float Widen(BFloat16 x) { return ToFloat(x); }
  static void Narrow(float x, float* out) { *out = x; }
  static void Narrow(float x, BFloat16* out) { *out = ToBFloat16(x); }
};

}  // namespace bst
