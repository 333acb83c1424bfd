#include "engine/checkpoint/ssm_stability.h"

#include <cmath>
#include <limits>
#include <vector>

#include "gtest/gtest.h"
#include "tests/support/status_matchers.h"

namespace bst {
namespace {

using testing::HasSubstr;
using Complex = std::complex<double>;

constexpr auto kBad = absl::StatusCode::kFailedPrecondition;
constexpr Discretization kAll[] = {Discretization::kZeroOrderHold, Discretization::kBilinear};

TEST(SsmStabilityTest, ModesThatDecayPass) {
  for (const Discretization discretization : kAll) {
    for (const double real : {-1e-30, -1e-6, -0.5, -100.0, -1e30}) {
      for (const double imag : {0.0, 3.14, -1e6, 1e30}) {
        for (const double dt : {1e-30, 1e-3, 0.1, 1e3}) {
          EXPECT_THAT(CheckMode(Complex(real, imag), dt, discretization), IsOk())
              << real << " " << imag << " " << dt;
        }
      }
    }
  }
}

TEST(SsmStabilityTest, ModesThatGrowAreRefused) {
  for (const Discretization discretization : kAll) {
    EXPECT_THAT(
        CheckMode(Complex(0.5, 3), 0.1, discretization),
        StatusIs(kBad, HasSubstr("mode a = 0.5 + 3i with time step 0.1 grows: |A-bar| is 1.0")));
    EXPECT_THAT(CheckMode(Complex(1e-3, 0), 0.1, discretization),
                StatusIs(kBad, HasSubstr("grows")));
  }
}

TEST(SsmStabilityTest, NumbersThatAreNoneAreRefused) {
  const double infinity = std::numeric_limits<double>::infinity();
  for (const Discretization discretization : kAll) {
    for (const double dt : {0.0, -0.1, infinity, std::nan("")}) {
      EXPECT_THAT(CheckMode(Complex(-1, 1), dt, discretization),
                  StatusIs(kBad, HasSubstr("time step is")))
          << dt;
    }
    EXPECT_THAT(CheckMode(Complex(-infinity, 0), 0.1, discretization), StatusIs(kBad));
    // However slow a mode or a step is, it does not grow.
    for (const double real : {0.0, -1e-50, -1e30}) {
      EXPECT_THAT(CheckMode(Complex(real, 0), 1e-60, discretization), IsOk()) << real;
    }
    EXPECT_THAT(CheckMode(Complex(std::nan(""), 0), 0.1, discretization), StatusIs(kBad));
  }
}

TEST(SsmStabilityTest, TheElementIsNamed) {
  std::vector<float> log_dt(2 * 3, -3.0f), log_neg_a_real(2 * 3 * 4, -0.7f),
      a_imag(2 * 3 * 4, 2.0f);
  const auto check = [&] {
    return CheckModes(TensorView(log_dt.data(), DType::kF32, {2, 3}),
                      TensorView(log_neg_a_real.data(), DType::kF32, {2, 3, 4}),
                      TensorView(a_imag.data(), DType::kF32, {2, 3, 4}),
                      Discretization::kZeroOrderHold);
  };
  EXPECT_THAT(check(), IsOk());
  log_neg_a_real[(1 * 3 + 2) * 4 + 3] = 1000.0f;  // e^1000 > the largest float64
  EXPECT_THAT(check(), StatusIs(kBad, HasSubstr("[1, 2, 3]: real part of mode is -inf")));
  log_neg_a_real[(1 * 3 + 2) * 4 + 3] = -0.7f;
  log_dt[1] = -2000.0f;
  EXPECT_THAT(check(), StatusIs(kBad, HasSubstr("[0, 1, 0]: time step is")));
}

}  // namespace
}  // namespace bst
