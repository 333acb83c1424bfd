// What the operator tests share: matrices with sentinels around them, and a fixture that runs an
// operator on the reference backend and on the backend under test.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "engine/backend/backend.h"
#include "engine/state/state_layout.h"
#include "gtest/gtest.h"
#include "tests/support/model_runner.h"
#include "tests/support/sanitized.h"

namespace bst {

// Float32 sums of n products in another order differ by about sqrt(n) 2^-24 relative RMS: 4e-6 at
// n = 4096. Elementary functions are good to 2e-7.
inline constexpr double kTolerance = 5e-6;
// Attention on BF16 pairs rounds queries and weights too. A rounding is 2^-9 / sqrt(3) = 1.1e-3
// relative RMS; one of a query moves a score by so much of its deviation, about 1 here, and the
// weight as much.
inline constexpr double kPairAttentionTolerance = 4e-3;
// On bytes queries and weights are integers of 16 bits: a step of 2^-15 or 2^-16 of the largest, of
// which the usual one is a few times smaller.
inline constexpr double kByteAttentionTolerance = 1e-4;
inline constexpr float kSentinel = -12345.5f;

// A matrix inside a larger one: `margin` columns on the right and one row below hold sentinels.
class Matrix {
 public:
  Matrix(int64_t rows, int64_t columns, int64_t margin = 3)
      : rows_(rows),
        columns_(columns),
        stride_(columns + margin),
        data_(static_cast<size_t>((rows + 1) * stride_), kSentinel) {}

  static Matrix Random(int64_t rows, int64_t columns, uint32_t seed, double deviation = 1.0) {
    Matrix m(rows, columns);
    std::mt19937 random(seed);
    std::normal_distribution<double> normal(0, deviation);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < columns; ++c) m.at(r, c) = static_cast<float>(normal(random));
    }
    return m;
  }

  float& at(int64_t r, int64_t c) { return data_[static_cast<size_t>(r * stride_ + c)]; }
  TensorView view() { return {data_.data(), DType::kF32, Shape({rows_, columns_}), stride_}; }
  // The values without the margin.
  std::vector<float> values() {
    std::vector<float> out;
    for (int64_t r = 0; r < rows_; ++r) out.insert(out.end(), &at(r, 0), &at(r, 0) + columns_);
    return out;
  }
  bool SentinelsIntact() {
    for (int64_t r = 0; r <= rows_; ++r) {
      for (int64_t c = r == rows_ ? 0 : columns_; c < stride_; ++c) {
        if (at(r, c) != kSentinel) return false;
      }
    }
    return true;
  }

 private:
  int64_t rows_, columns_, stride_;
  std::vector<float> data_;
};

inline TensorView Contiguous(std::vector<float>& values, Shape shape) {
  return {values.data(), DType::kF32, shape};
}

inline std::vector<float> RandomVector(size_t n, uint32_t seed, double deviation = 1.0) {
  return Matrix::Random(1, static_cast<int64_t>(n), seed, deviation).values();
}

// Slots of one kind of state, as the pool lays them out; fresh ones are all zero.
class Slots {
 public:
  Slots(Backend& backend, size_t bytes, int n)
      : slot_bytes_(StateRegion{.name = {}, .slot_bytes = bytes}.padded_bytes()),
        memory_(*backend.Allocate(slot_bytes_ * static_cast<size_t>(n))) {}
  PoolView view() const { return {static_cast<std::byte*>(memory_.data()), slot_bytes_}; }

 private:
  size_t slot_bytes_;
  Buffer memory_;
};

// The parameter names the backend under test.
class OperatorTest : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    auto reference = MakeBackend("reference");
    auto tested = MakeBackend(GetParam());
    ASSERT_TRUE(reference.ok() && tested.ok()) << tested.status();
    reference_ = *std::move(reference);
    tested_ = *std::move(tested);
  }

  // What the backend under test keeps weights, keys and values as.
  std::vector<DType> Types() const {
    return tested_->HasInt8() ? std::vector<DType>{DType::kF32, DType::kBF16, DType::kI8}
                              : std::vector<DType>{DType::kF32, DType::kBF16};
  }
  double AttentionTolerance(DType kv) const {
    const auto runs_on = [&](std::initializer_list<const char*> levels) {
      return std::any_of(levels.begin(), levels.end(), [&](const char* level) {
        return tested_->name().find(level) != std::string::npos;
      });
    };
    if (kv == DType::kBF16 && runs_on({"avx512bf16", "amx"})) return kPairAttentionTolerance;
    if (kv == DType::kI8 && runs_on({"avx512vnni", "avx512bf16", "amx"}))
      return kByteAttentionTolerance;
    return kTolerance;
  }
  DType AnyType(uint32_t random) const { return Types()[random % Types().size()]; }

  // Runs `apply(backend)`, which returns a Matrix, on both and compares.
  template <typename Apply>
  void ExpectAgreement(const Apply& apply, const std::string& what, double tolerance = kTolerance) {
    Matrix expected = apply(*reference_), got = apply(*tested_);
    EXPECT_LT(RelativeRms(got.values(), expected.values()), tolerance) << what;
    EXPECT_TRUE(got.SentinelsIntact()) << what;
  }

  std::unique_ptr<Backend> reference_, tested_;
};

// A backend's name as part of a test's.
inline std::string BackendTestName(const testing::TestParamInfo<std::string>& param) {
  std::string name = param.param;
  std::replace_if(
      name.begin(), name.end(), [](char c) { return c == ':' || c == '-'; }, '_');
  return name;
}

}  // namespace bst
