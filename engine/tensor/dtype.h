// Element types of tensors, and the scalar conversions between them.
//
// Threads     Pure functions.
// Tested by   tests/engine/tensor/dtype_test.cc
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace bst {

enum class DType { kF32, kF16, kBF16, kU8, kI8 };

size_t SizeOf(DType dtype);          // bytes of one element
std::string_view Name(DType dtype);  // "F32", as safetensors spells it

// The upper half of a float32: 8 exponent bits, 7 mantissa bits.
struct BFloat16 {
  uint16_t bits = 0;
};
// IEEE 754 binary16.
struct Float16 {
  uint16_t bits = 0;
};

inline float ToFloat(BFloat16 x) {
  return std::bit_cast<float>(static_cast<uint32_t>(x.bits) << 16);
}
inline float ToFloat(float x) { return x; }
float ToFloat(Float16 x);

// Round to nearest, ties to even. NaN stays NaN (its quiet bit is set), infinities stay.
inline BFloat16 ToBFloat16(float x) {
  const auto bits = std::bit_cast<uint32_t>(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>((bits >> 16) | 0x40u)};
  return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

// Likewise; what is too large for binary16 (65520 and more) becomes an infinity.
Float16 ToFloat16(float x);

}  // namespace bst
