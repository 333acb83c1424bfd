#include "engine/model/ssm_discretization.h"

#include <cmath>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/checkpoint/tensor_schema.h"
#include "engine/tensor/host_convert.h"

namespace bst {
namespace {

// e^z - 1 without cancellation: e^x cos y - 1 = expm1(x) cos y - 2 sin^2(y / 2).
std::complex<double> ComplexExpm1(std::complex<double> z) {
  const double half_sine = std::sin(z.imag() / 2);
  return {std::expm1(z.real()) * std::cos(z.imag()) - 2 * half_sine * half_sine,
          std::exp(z.real()) * std::sin(z.imag())};
}

}  // namespace

DiscreteMode Discretize(std::complex<double> a, std::complex<double> b, double dt,
                        Discretization method) {
  const std::complex<double> z = dt * a;
  if (method == Discretization::kZeroOrderHold) {
    const std::complex<double> growth = ComplexExpm1(z);
    return {growth, a == 0.0 ? dt * b : b * growth / a};
  }
  const std::complex<double> denominator = 1.0 - z / 2.0;
  return {z / denominator, dt * b / denominator};
}

absl::StatusOr<DiscreteSsm> DiscreteSsm::Create(const Checkpoint& checkpoint, int layer,
                                                Discretization method) {
  const auto tensor = [&](std::string_view name) {
    return checkpoint.Tensor(LayerTensorName(layer, name));
  };
  const TensorView log_dt = tensor("ssm.log_dt"), log_neg_a_real = tensor("ssm.log_neg_a_real");
  const TensorView a_imag = tensor("ssm.a_imag");
  const bool has_b = checkpoint.Has(LayerTensorName(layer, "ssm.b"));
  const TensorView b = has_b ? tensor("ssm.b") : TensorView();
  DiscreteSsm ssm;
  ssm.features_ = a_imag.dim(1);
  ssm.modes_ = a_imag.dim(2);
  ssm.d_ = ToFloats(tensor("ssm.d"));
  ssm.c_ = ToFloats(tensor("ssm.c"));
  for (int64_t i = 0; i < ssm.features_ * ssm.modes_; ++i) {
    const std::complex<double> a(-std::exp(double{ElementAsFloat(log_neg_a_real, i)}),
                                 double{ElementAsFloat(a_imag, i)});
    const std::complex<double> input =
        has_b ? std::complex<double>(ElementAsFloat(b, 2 * i), ElementAsFloat(b, 2 * i + 1)) : 1.0;
    const double dt = std::exp(double{ElementAsFloat(log_dt, i / ssm.modes_)});
    const DiscreteMode mode = Discretize(a, input, dt, method);
    for (const double x :
         {mode.a_minus_one.real(), mode.a_minus_one.imag(), mode.b.real(), mode.b.imag()}) {
      if (std::isfinite(static_cast<float>(x))) continue;
      return absl::FailedPreconditionError(absl::StrCat(
          LayerTensorName(layer, "ssm"), ": mode ", i % ssm.modes_, " of feature ", i / ssm.modes_,
          " discretises to ", x, ", which float32 cannot hold (time step ", dt, ", a ", a.real(),
          " + ", a.imag(), "i)"));
    }
    ssm.a_minus_one_.push_back(static_cast<float>(mode.a_minus_one.real()));
    ssm.a_minus_one_.push_back(static_cast<float>(mode.a_minus_one.imag()));
    ssm.b_.push_back(static_cast<float>(mode.b.real()));
    ssm.b_.push_back(static_cast<float>(mode.b.imag()));
  }
  return ssm;
}

SsmParameters DiscreteSsm::parameters() {
  const Shape complex_shape = {features_, modes_, 2};
  return {.a_minus_one = TensorView(a_minus_one_.data(), DType::kF32, complex_shape),
          .b = TensorView(b_.data(), DType::kF32, complex_shape),
          .c = TensorView(c_.data(), DType::kF32, complex_shape),
          .d = TensorView(d_.data(), DType::kF32, Shape{features_})};
}

}  // namespace bst
