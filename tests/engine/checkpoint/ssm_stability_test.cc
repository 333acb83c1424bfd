#include "engine/checkpoint/ssm_stability.h"

#include <cmath>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "engine/checkpoint/tensor_schema.h"
#include "gtest/gtest.h"
#include "tests/engine/checkpoint/checkpoint_files.h"
#include "tests/support/status_matchers.h"

namespace bst {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using Complex = std::complex<double>;

constexpr Discretization kAll[] = {Discretization::kZeroOrderHold, Discretization::kBilinear};
constexpr double kInfinity = std::numeric_limits<double>::infinity();

TEST(SsmStabilityTest, ModesThatDoNotGrowPass) {
  for (const Discretization discretization : kAll) {
    for (const double real : {0.0, -1e-50, -1e-30, -1e-6, -0.5, -100.0, -1e30}) {
      for (const double imag : {0.0, 3.14, -1e6, 1e30}) {
        for (const double dt : {1e-60, 1e-3, 0.1, 1e3}) {
          EXPECT_THAT(CheckMode(Complex(real, imag), dt, discretization), IsOk())
              << real << " " << imag << " " << dt;
        }
      }
    }
  }
}

TEST(SsmStabilityTest, ModesThatGrowAreRefusedHoweverSlowly) {
  for (const Discretization discretization : kAll) {
    EXPECT_THAT(
        CheckMode(Complex(0.5, 3), 0.1, discretization),
        StatusIs(kBad,
                 HasSubstr("mode a = 0.5 + 3i with time step 0.1 grows: |A-bar| is 1 + 0.0")));
    for (const double real : {1e-3, 1e-12, 1e-30, 1e30}) {
      EXPECT_THAT(CheckMode(Complex(real, 0), 0.1, discretization),
                  StatusIs(kBad, HasSubstr("grows")))
          << real;
    }
    EXPECT_THAT(CheckMode(Complex(1e-30, 0), 0.25, discretization),
                StatusIs(kBad, HasSubstr("|A-bar| is 1 + 2.5e-31, must be at most 1")));
    EXPECT_THAT(CheckMode(Complex(0.25, -2), 1.0, discretization),
                StatusIs(kBad, HasSubstr(discretization == Discretization::kZeroOrderHold
                                             ? "|A-bar| is 1 + 0.284025,"  // e^{1/4} - 1
                                             : "|A-bar| is 1 + 0.132778,")));
  }
  EXPECT_THAT(CheckMode(Complex(2, 0), 1.0, Discretization::kBilinear),
              StatusIs(kBad, HasSubstr("|A-bar| is 1 + inf")));
}

TEST(SsmStabilityTest, ModesBeyondFloat32AreRefused) {
  for (const Discretization discretization : kAll) {
    for (const Complex a : {Complex(-kInfinity, 0), Complex(kInfinity, 0), Complex(-1e39, 0),
                            Complex(std::nan(""), 0), Complex(-1, kInfinity), Complex(-1, -1e39),
                            Complex(-1, std::nan("")), Complex(1, kInfinity)}) {
      EXPECT_THAT(CheckMode(a, 0.1, discretization),
                  StatusIs(kBad, HasSubstr("beyond the range of float32")))
          << a;
    }
  }
}

TEST(SsmStabilityTest, TimeStepsArePositiveNumbersOfFloat32) {
  for (const double dt : {1e-300, 1e-3, 1e3, 3e38}) EXPECT_THAT(CheckTimeStep(dt), IsOk()) << dt;
  for (const double dt : {0.0, -0.1, kInfinity, 4e38, std::nan("")}) {
    EXPECT_THAT(CheckTimeStep(dt), StatusIs(kBad, HasSubstr("time step is"))) << dt;
  }
}

// The SSM tensors of kFamilyConfig, one value of which is changed.
class CheckSsmTest : public testing::Test {
 protected:
  absl::Status Check(int layer) {
    return CheckSsm(layer, config_.layers[static_cast<size_t>(layer)].ssm,
                    [this](std::string_view name) {
                      StoredTensor& tensor = tensors_.at(std::string(name));
                      return TensorView(tensor.bytes.data(), tensor.dtype, Shape(tensor.shape));
                    });
  }
  absl::Status CheckWith(int layer, const std::string& suffix, size_t index, float value) {
    float& element = tensors_.at(LayerTensorName(layer, suffix)).floats()[index];
    const float before = element;
    element = value;
    const absl::Status status = Check(layer);
    element = before;
    return status;
  }

  const ModelConfig config_ = *ParseModelConfig(kFamilyConfig);
  StoredTensors tensors_ = TensorsOf(kFamilyConfig);
};

TEST_F(CheckSsmTest, SoundKernelsPass) {
  for (const int layer : {1, 2, 3, 4, 5, 7}) EXPECT_THAT(Check(layer), IsOk()) << layer;
}

TEST_F(CheckSsmTest, TheTensorAndTheElementAreNamed) {
  struct Case {
    int layer;
    const char* suffix;
    size_t index;
    float value;
    const char *tensor, *reason;
  };
  for (const Case& c : std::vector<Case>{
           {1, "ssm.log_dt", 5, 2000, "'layers.1.ssm.log_dt' at element [0, 5]:", "time step"},
           {1, "ssm.log_neg_a_real", 7, 1000,
            "'layers.1.ssm.log_neg_a_real' at element [0, 2, 1]:", "a = -inf"},
           {2, "ssm.log_dt", 15, -2000, "'layers.2.ssm.log_dt' at element [1, 3]:", "time step"},
           {2, "ssm.log_neg_a_real", 47, 90,
            "'layers.2.ssm.log_neg_a_real' at element [1, 11, 1]:", "a = -1.2"},
           {3, "ssm.log_dt", 30, 100, "'layers.3.ssm.log_dt' at element [2, 6]:", "time step"},
           {3, "ssm.log_neg_a_real", 4, 90,
            "'layers.3.ssm.log_neg_a_real' at element [4]:", "beyond the range"},
           {4, "ssm.log_step", 2, 100, "'layers.4.ssm.log_step' at element [2]:", "time step"},
           {4, "ssm.lambda_real", 1, 0.25f,
            "'layers.4.ssm.lambda_real' at element [1]:", "mode a = 0.25"},
           {4, "ssm.lambda_real", 0, 1e-30f, "'layers.4.ssm.lambda_real' at element [0]:", "grows"},
           {7, "ssm.log_neg_a_real", 0, 90,
            "'layers.7.ssm.log_neg_a_real' at element [0]:", "beyond the range"},
       }) {
    EXPECT_THAT(CheckWith(c.layer, c.suffix, c.index, c.value),
                StatusIs(kBad, AllOf(HasSubstr(c.tensor), HasSubstr(c.reason))));
  }
}

TEST_F(CheckSsmTest, AnS5ModeMayBeAPureSum) {
  tensors_["layers.4.ssm.lambda_imag"].floats()[0] = 0;
  EXPECT_THAT(CheckWith(4, "ssm.lambda_real", 0, 0.0f), IsOk());
}

}  // namespace
}  // namespace bst
