#include "engine/checkpoint/ssm_stability.h"

#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "engine/base/annotate.h"
#include "engine/base/status_macros.h"
#include "engine/checkpoint/tensor_schema.h"

namespace bst {
namespace {

constexpr double kLargest = std::numeric_limits<float>::max();

// |A-bar| - 1, which may be far too small to show in |A-bar|.
double Growth(std::complex<double> a, double dt, Discretization discretization) {
  if (discretization == Discretization::kZeroOrderHold) return std::expm1(dt * a.real());
  const std::complex<double> half = 0.5 * dt * a;
  const double numerator = std::abs(1.0 + half), denominator = std::abs(1.0 - half);
  return 4.0 * half.real() / (numerator + denominator) / denominator;
}

double Element(const TensorView& view, int64_t index) {
  return static_cast<double>(view.as<const float>()[index]);
}

class SsmChecker {
 public:
  SsmChecker(int layer, const std::function<TensorView(std::string_view)>& tensor)
      : layer_(layer), tensor_(tensor) {}

  absl::Status CheckTimeSteps(std::string_view suffix) const {
    const TensorView log_dt = Tensor(suffix);
    for (int64_t i = 0; i < log_dt.shape().num_elements(); ++i) {
      BST_RETURN_IF_ERROR(At(suffix, i, CheckTimeStep(std::exp(Element(log_dt, i)))));
    }
    return absl::OkStatus();
  }

  // Modes that decay by construction: any time step shows whether they are numbers.
  absl::Status CheckDecayingModes(Discretization discretization) const {
    const TensorView log_neg_a_real = Tensor("ssm.log_neg_a_real"), a_imag = Tensor("ssm.a_imag");
    for (int64_t i = 0; i < log_neg_a_real.shape().num_elements(); ++i) {
      const std::complex<double> a(-std::exp(Element(log_neg_a_real, i)), Element(a_imag, i));
      BST_RETURN_IF_ERROR(At("ssm.log_neg_a_real", i, CheckMode(a, 1.0, discretization)));
    }
    return absl::OkStatus();
  }

  // REQUIRES: the time steps have been checked.
  absl::Status CheckS5Modes(Discretization discretization) const {
    const TensorView real = Tensor("ssm.lambda_real"), imag = Tensor("ssm.lambda_imag");
    const TensorView log_step = Tensor("ssm.log_step");
    for (int64_t i = 0; i < real.shape().num_elements(); ++i) {
      const std::complex<double> a(Element(real, i), Element(imag, i));
      BST_RETURN_IF_ERROR(
          At("ssm.lambda_real", i, CheckMode(a, std::exp(Element(log_step, i)), discretization)));
    }
    return absl::OkStatus();
  }

 private:
  TensorView Tensor(std::string_view suffix) const {
    return tensor_(LayerTensorName(layer_, suffix));
  }

  absl::Status At(std::string_view suffix, int64_t index, const absl::Status& status) const {
    if (status.ok()) return status;
    return Annotate(status, absl::StrCat("tensor '", LayerTensorName(layer_, suffix),
                                         "' at element ", Tensor(suffix).shape().PlaceOf(index)));
  }

  const int layer_;
  const std::function<TensorView(std::string_view)>& tensor_;
};

}  // namespace

absl::Status CheckTimeStep(double dt) {
  if (dt > 0 && dt <= kLargest) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("time step is ", dt, ", must be above 0 and at most ", kLargest));
}

absl::Status CheckMode(std::complex<double> a, double dt, Discretization discretization) {
  if (a.real() > 0 && a.real() <= kLargest && std::isfinite(a.imag())) {
    return absl::FailedPreconditionError(absl::StrCat(
        "mode a = ", a.real(), " + ", a.imag(), "i with time step ", dt, " grows: |A-bar| is 1 + ",
        Growth(a, dt, discretization), ", must be at most 1"));
  }
  // Written so that NaN fails, too.
  if (!(std::abs(a.real()) <= kLargest) || !(std::abs(a.imag()) <= kLargest)) {
    return absl::FailedPreconditionError(
        absl::StrCat("mode a = ", a.real(), " + ", a.imag(), "i is beyond the range of float32"));
  }
  return absl::OkStatus();
}

absl::Status CheckSsm(int layer, const SsmConfig& ssm,
                      const std::function<TensorView(std::string_view)>& tensor) {
  const SsmChecker checker(layer, tensor);
  switch (ssm.kernel) {
    case SsmKernel::kS4d:
    case SsmKernel::kDss:
    case SsmKernel::kS4:
      BST_RETURN_IF_ERROR(checker.CheckTimeSteps("ssm.log_dt"));
      return checker.CheckDecayingModes(ssm.discretization);
    case SsmKernel::kS5:
      BST_RETURN_IF_ERROR(checker.CheckTimeSteps("ssm.log_step"));
      return checker.CheckS5Modes(ssm.discretization);
    case SsmKernel::kExplicit:
      return absl::OkStatus();
  }
  return absl::OkStatus();
}

}  // namespace bst
