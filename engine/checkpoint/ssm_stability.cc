#include "engine/checkpoint/ssm_stability.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "engine/base/check.h"
#include "engine/checkpoint/json.h"

namespace bst {
namespace {

double Magnitude(std::complex<double> a, double dt, Discretization discretization) {
  if (discretization == Discretization::kZeroOrderHold) return std::exp(dt * a.real());
  const std::complex<double> half = 0.5 * dt * a;
  return std::abs(1.0 + half) / std::abs(1.0 - half);
}

}  // namespace

absl::Status CheckMode(std::complex<double> a, double dt, Discretization discretization) {
  if (!(dt > 0) || !std::isfinite(dt)) {
    return absl::FailedPreconditionError(
        absl::StrCat("time step is ", dt, ", must be finite and above 0"));
  }
  // !(x <= limit) rather than x > limit: NaN is refused too.
  const double magnitude = Magnitude(a, dt, discretization);
  if (!(magnitude <= 1.0 + kMaxModeExcess)) {
    return absl::FailedPreconditionError(
        absl::StrCat("mode a = ", a.real(), " + ", a.imag(), "i with time step ", dt,
                     " grows: |A-bar| is ", magnitude, ", must be at most 1"));
  }
  if (!std::isfinite(a.real())) {
    return absl::FailedPreconditionError(
        absl::StrCat("real part of mode is ", a.real(), ", must be finite"));
  }
  return absl::OkStatus();
}

absl::Status CheckModes(const TensorView& log_dt, const TensorView& log_neg_a_real,
                        const TensorView& a_imag, Discretization discretization) {
  const int64_t filters = log_dt.dim(0), features = log_dt.dim(1), pairs = log_neg_a_real.dim(2);
  BST_CHECK_SHAPE(log_neg_a_real, {filters, features, pairs});
  BST_CHECK_SHAPE(a_imag, {filters, features, pairs});
  for (int64_t feature = 0; feature < filters * features; ++feature) {
    const double dt = std::exp(static_cast<double>(log_dt.as<const float>()[feature]));
    for (int64_t i = feature * pairs; i < (feature + 1) * pairs; ++i) {
      const std::complex<double> a(
          -std::exp(static_cast<double>(log_neg_a_real.as<const float>()[i])),
          a_imag.as<const float>()[i]);
      if (const absl::Status status = CheckMode(a, dt, discretization); !status.ok()) {
        return Annotate(status, absl::StrCat("[", feature / features, ", ", feature % features,
                                             ", ", i % pairs, "]"));
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace bst
