// How numbers become bytes with INT8 weights, defined once: plain code that every backend matches
// bit for bit (the vector kernels do the same float32 operations).
//
//   weights of one output   w ~ scale q,           q in -127 .. 127, symmetric
//   inputs of one token     x ~ scale (q - zero),  q in 0 .. 255, zero the byte of x = 0
//   product                 (sum (q_x - zero) q_w) scale_x scale_w: the sum is an exact integer, so
//                           no order along K can matter; the two factors are applied in this order
//
// A token's inputs are quantised over their own range, zero included: inputs that are never
// negative (behind a ReLU) use all 256 steps. Keys and values are quantised like weights, one scale
// per position and head, rounded up to a BF16: a ring may keep it in two bytes
// (cpu/grouped_ring.h).
//
// Invariants  NaN or an infinity among the numbers gives a scale of NaN, and so NaN outputs.
//             Numbers too small for a float32 reciprocal of their scale become zeros.
// Threads     Pure functions.
// Tested by   tests/engine/backend/int8_test.cc
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "absl/types/span.h"

namespace bst {

// sum (q_x - zero) q_w stays below 2^31 up to so many inputs; wider layers keep BF16 weights.
inline constexpr int kMaxInt8Inputs = 65'536;

// Scales below have no reciprocal worth multiplying with.
inline constexpr float kLeastInt8Scale = 1e-30f;

// x ~ scale (q - zero).
struct QuantizedRow {
  float scale;
  int32_t zero;
};

inline float Int8Reciprocal(float scale) { return scale > kLeastInt8Scale ? 1.0f / scale : 0.0f; }

struct Magnitude {
  float largest = 0;
  float poison = 0;  // NaN if a number is not finite
};
inline Magnitude MagnitudeOf(absl::Span<const float> x) {
  Magnitude all;
  for (const float v : x) {
    all.largest = std::max(all.largest, std::fabs(v));
    all.poison += v * 0.0f;
  }
  return all;
}

// q[i] = round(x[i] / scale); returns the scale.
inline float DivideByScale(absl::Span<const float> x, float scale, int8_t* q) {
  const float inverse = Int8Reciprocal(scale);
  for (size_t i = 0; i < x.size(); ++i) {
    // The comparisons in this order send NaN to a number.
    const float rounded = std::nearbyint(x[i] * inverse);
    const float above = rounded > -127.0f ? rounded : -127.0f;
    q[i] = static_cast<int8_t>(above < 127.0f ? above : 127.0f);
  }
  return scale;
}

// Weights, the largest magnitude at 127; returns the scale.
inline float QuantizeSymmetric(absl::Span<const float> x, int8_t* q) {
  const Magnitude magnitude = MagnitudeOf(x);
  return DivideByScale(x, magnitude.largest / 127.0f, q) + magnitude.poison;
}

// The least BF16 that is no smaller than `scale`, lest a number exceeds 127. REQUIRES: scale >= 0.
inline float RoundUpToBFloat16(float scale) {
  return std::bit_cast<float>((std::bit_cast<uint32_t>(scale) + 0xffffu) & 0xffff0000u);
}

// One head's key or value, the largest magnitude at 126 or 127; returns the scale, a BF16.
inline float QuantizeKeyOrValue(absl::Span<const float> x, int8_t* q) {
  const Magnitude magnitude = MagnitudeOf(x);
  return DivideByScale(x, RoundUpToBFloat16(magnitude.largest / 127.0f), q) + magnitude.poison;
}

// One token's inputs.
inline QuantizedRow QuantizeInputs(absl::Span<const float> x, uint8_t* q) {
  float low = 0, high = 0, poison = 0;
  for (const float v : x) {
    low = std::min(low, v);
    high = std::max(high, v);
    poison += v * 0.0f;
  }
  const float scale = (high - low) / 255.0f, inverse = Int8Reciprocal(scale);
  const float zero = std::min(255.0f, std::nearbyint((0.0f - low) * inverse));
  for (size_t i = 0; i < x.size(); ++i) {
    // The comparisons in this order send NaN to 0.
    const float rounded = std::nearbyint(x[i] * inverse) + zero;
    const float not_negative = rounded > 0.0f ? rounded : 0.0f;
    q[i] = static_cast<uint8_t>(not_negative < 255.0f ? not_negative : 255.0f);
  }
  return {.scale = scale + poison, .zero = static_cast<int32_t>(zero > 0.0f ? zero : 0.0f)};
}

}  // namespace bst
