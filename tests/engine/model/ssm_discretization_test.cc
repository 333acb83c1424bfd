#include "engine/model/ssm_discretization.h"

#include <cmath>
#include <complex>
#include <numbers>
#include <vector>

#include "gtest/gtest.h"

namespace bst {
namespace {

using Complex = std::complex<double>;

// The impulse response 2 Re sum_m B A^l of a = -1/2 and -1/2 + i pi, dt = 0.1, by recurrence.
std::vector<double> ImpulseResponse(Discretization method, int length) {
  std::vector<double> kernel(static_cast<size_t>(length));
  for (const Complex a : {Complex(-0.5, 0), Complex(-0.5, std::numbers::pi)}) {
    const DiscreteMode mode = Discretize(a, 1.0, 0.1, method);
    Complex x = mode.b;
    for (double& k : kernel) {
      k += 2 * x.real();
      x += mode.a_minus_one * x;
    }
  }
  return kernel;
}

// Values computed once in float64 from the definitions, with nothing of this engine.
TEST(SsmDiscretizationTest, KernelsHaveTheirKnownValues) {
  const std::vector<double> zoh = {0.387011209, 0.350341188, 0.300984953,
                                   0.244020162, 0.184808924, 0.128456684};
  const std::vector<double> bilinear = {0.385766598, 0.349877232, 0.301444902,
                                        0.245362496, 0.186828387, 0.130826824};
  const std::vector<double> got_zoh = ImpulseResponse(Discretization::kZeroOrderHold, 6);
  const std::vector<double> got_bilinear = ImpulseResponse(Discretization::kBilinear, 6);
  for (size_t l = 0; l < 6; ++l) {
    EXPECT_NEAR(got_zoh[l], zoh[l], 1e-9) << l;
    EXPECT_NEAR(got_bilinear[l], bilinear[l], 1e-9) << l;
  }
}

// A slow mode's A - 1 must keep all its digits: e^z - 1 = z + z^2 / 2 + ... for tiny z.
TEST(SsmDiscretizationTest, SlowModesLoseNothingToCancellation) {
  for (const double dt : {1e-3, 1e-6, 1e-9}) {
    const Complex a(-1e-3, 0.5), z = dt * a;
    const Complex series = z + z * z / 2.0 + z * z * z / 6.0;
    const DiscreteMode mode = Discretize(a, Complex(0.3, -0.2), dt, Discretization::kZeroOrderHold);
    EXPECT_LT(std::abs(mode.a_minus_one - series) / std::abs(series), 1e-10) << dt;
    EXPECT_LT(std::abs(mode.b - Complex(0.3, -0.2) * series / a) / std::abs(mode.b), 1e-10) << dt;
  }
}

TEST(SsmDiscretizationTest, BothMethodsAgreeForSmallSteps) {
  const Complex a(-0.7, 2.0), b(1.5, 0.25);
  const DiscreteMode zoh = Discretize(a, b, 1e-4, Discretization::kZeroOrderHold);
  const DiscreteMode bilinear = Discretize(a, b, 1e-4, Discretization::kBilinear);
  EXPECT_LT(std::abs(zoh.a_minus_one - bilinear.a_minus_one) / std::abs(zoh.a_minus_one), 1e-8);
  EXPECT_LT(std::abs(zoh.b - bilinear.b) / std::abs(zoh.b), 2e-4);
}

}  // namespace
}  // namespace bst
