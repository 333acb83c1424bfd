// Keys and values of one slot of a ring or of a context as the obvious arrays: rows of keys, rows
// of values, [rows][H * dh] each; with INT8 then scales, [2][rows][H] (int8.h).
//
// Threads   A view; engine thread only.
// Tested by tests/engine/backend/agreement_test.cc
#pragma once

#include <cstddef>
#include <cstring>

#include "engine/backend/int8.h"
#include "engine/tensor/dtype.h"

namespace bst {

class ReferenceKeyValues {
 public:
  ReferenceKeyValues(int64_t rows, int num_heads, int head_dim, DType type, const std::byte* slot)
      : rows_(rows),
        num_heads_(num_heads),
        head_dim_(head_dim),
        type_(type),
        slot_(const_cast<std::byte*>(slot)) {}

  static size_t Bytes(int64_t rows, int num_heads, int head_dim, DType type) {
    const ReferenceKeyValues layout(rows, num_heads, head_dim, type, nullptr);
    return type == DType::kI8
               ? layout.ScalesOffset() + static_cast<size_t>(2 * rows * num_heads) * sizeof(float)
               : layout.Offset(2 * rows, 0);
  }

  float Key(int64_t row, int64_t column) const { return Load(row, column); }
  float Value(int64_t row, int64_t column) const { return Load(rows_ + row, column); }
  void Write(int64_t row, const float* key, const float* value) const {
    Store(row, key);
    Store(rows_ + row, value);
  }

 private:
  int64_t width() const { return int64_t{num_heads_} * head_dim_; }
  size_t Offset(int64_t row, int64_t column) const {
    return static_cast<size_t>(row * width() + column) * SizeOf(type_);
  }
  size_t ScalesOffset() const { return (Offset(2 * rows_, 0) + 3) / 4 * 4; }
  float* Scale(int64_t row, int64_t head) const {
    return reinterpret_cast<float*>(slot_ + ScalesOffset()) + row * num_heads_ + head;
  }
  float Load(int64_t row, int64_t column) const {
    const std::byte* at = slot_ + Offset(row, column);
    switch (type_) {
      case DType::kI8:
        return *reinterpret_cast<const int8_t*>(at) * *Scale(row, column / head_dim_);
      case DType::kBF16:
        return ToFloat(*reinterpret_cast<const BFloat16*>(at));
      default:
        return *reinterpret_cast<const float*>(at);
    }
  }
  void Store(int64_t row, const float* x) const {
    std::byte* at = slot_ + Offset(row, 0);
    switch (type_) {
      case DType::kI8:
        for (int head = 0; head < num_heads_; ++head) {
          const int64_t column = int64_t{head} * head_dim_;
          *Scale(row, head) = QuantizeKeyOrValue({x + column, static_cast<size_t>(head_dim_)},
                                                 reinterpret_cast<int8_t*>(at) + column);
        }
        break;
      case DType::kBF16:
        for (int64_t c = 0; c < width(); ++c) reinterpret_cast<BFloat16*>(at)[c] = ToBFloat16(x[c]);
        break;
      default:
        std::memcpy(at, x, static_cast<size_t>(width()) * sizeof(float));
    }
  }

  int64_t rows_;
  int num_heads_, head_dim_;
  DType type_;
  std::byte* slot_;
};

}  // namespace bst
