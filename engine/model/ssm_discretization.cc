#include "engine/model/ssm_discretization.h"

#include <cmath>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/base/status_macros.h"
#include "engine/checkpoint/tensor_schema.h"
#include "engine/tensor/host_convert.h"

namespace bst {
namespace {

using Complex = std::complex<double>;

// e^z - 1 without cancellation: e^x cos y - 1 = expm1(x) cos y - 2 sin^2(y / 2).
Complex ComplexExpm1(Complex z) {
  const double half_sine = std::sin(z.imag() / 2);
  return {std::expm1(z.real()) * std::cos(z.imag()) - 2 * half_sine * half_sine,
          std::exp(z.real()) * std::sin(z.imag())};
}

double Number(const TensorView& tensor, int64_t i) { return ElementAsFloat(tensor, i); }
Complex ComplexNumber(const TensorView& tensor, int64_t i) {
  return {ElementAsFloat(tensor, 2 * i), ElementAsFloat(tensor, 2 * i + 1)};
}

bool FitsFloat(double x) { return std::isfinite(static_cast<float>(x)); }
bool FitsFloat(Complex x) { return FitsFloat(x.real()) && FitsFloat(x.imag()); }

void Append(std::vector<float>& out, Complex x) {
  out.push_back(static_cast<float>(x.real()));
  out.push_back(static_cast<float>(x.imag()));
}

// `element` is the stored number at fault: "b[0, 1, 2]".
absl::Status NotFinite(const SsmTensors& tensors, const std::string& element, Complex a,
                       double dt) {
  return absl::FailedPreconditionError(
      absl::StrCat(tensors.name(), ".", element, " gives a recurrence beyond float32 (mode ",
                   a.real(), " + ", a.imag(), "i, time step ", dt, ")"));
}

// What backends fold a readout into must be finite as well, not only the parts.
absl::Status ReadoutBeyondFloat(const SsmTensors& tensors, const std::string& element) {
  return absl::FailedPreconditionError(
      absl::StrCat(tensors.name(), ".", element, " gives a readout beyond float32"));
}

Complex StoredMode(const SsmTensors& tensors, int64_t i) {
  return {-std::exp(Number(tensors.at("log_neg_a_real"), i)), Number(tensors.at("a_imag"), i)};
}

}  // namespace

DiscreteMode Discretize(Complex a, Complex b, double dt, Discretization method) {
  const Complex z = dt * a;
  if (method == Discretization::kZeroOrderHold) {
    const Complex growth = ComplexExpm1(z);
    return {growth, a == 0.0 ? dt * b : b * growth / a};
  }
  const Complex denominator = 1.0 - z / 2.0;
  return {z / denominator, dt * b / denominator};
}

SsmTensors SsmTensors::OfLayer(const Checkpoint& checkpoint, int layer) {
  std::map<std::string, TensorView, std::less<>> tensors;
  for (const char* name : {"log_dt", "log_neg_a_real", "a_imag", "b", "c", "d", "p", "w", "filter",
                           "lambda_real", "lambda_imag", "log_step"}) {
    const std::string full = LayerTensorName(layer, absl::StrCat("ssm.", name));
    if (checkpoint.Has(full)) tensors.emplace(name, checkpoint.Tensor(full));
  }
  return SsmTensors(LayerTensorName(layer, "ssm"), std::move(tensors));
}

TensorView SsmTensors::at(std::string_view name) const {
  const auto it = tensors_.find(name);
  BST_CHECK(it != tensors_.end(), name_, " has no ", std::string(name));
  return it->second;
}

absl::StatusOr<DiscreteSsm> DiscreteSsm::Create(const SsmTensors& tensors, const SsmConfig& config,
                                                const SsmSpec& spec) {
  const bool dss = config.kernel == SsmKernel::kDss;  // modes shared by all features, w for c
  const TensorView log_dt = tensors.at("log_dt"), c = tensors.at(dss ? "w" : "c");
  const bool has_b = !dss && tensors.has("b");
  const TensorView b = has_b ? tensors.at("b") : TensorView();
  DiscreteSsm ssm(spec);
  ssm.modes_ = config.num_modes();
  ssm.d_ = ToFloats(tensors.at("d"));
  const Shape features = {spec.num_filters, spec.num_inputs};
  const Shape modes = {spec.num_filters, spec.num_inputs, ssm.modes_};
  for (int64_t f = 0; f < spec.num_features(); ++f) {
    const double dt = std::exp(Number(log_dt, f));
    for (int64_t m = 0; m < ssm.modes_; ++m) {
      const int64_t i = f * ssm.modes_ + m;
      const Complex a = StoredMode(tensors, dss ? m : i);
      const DiscreteMode mode =
          Discretize(a, has_b ? ComplexNumber(b, i) : 1.0, dt, config.discretization);
      if (!FitsFloat(mode.a_minus_one)) {
        const std::string index = dss ? Shape({ssm.modes_}).PlaceOf(m) : modes.PlaceOf(i);
        return NotFinite(tensors, "log_neg_a_real" + index, a, dt);
      }
      if (!FitsFloat(mode.b)) {
        return NotFinite(tensors, has_b ? "b" + modes.PlaceOf(i) : "log_dt" + features.PlaceOf(f),
                         a, dt);
      }
      const Complex readout = dss ? ComplexNumber(c, i) / 2.0 : ComplexNumber(c, i);
      if (!FitsFloat(2.0 * readout * mode.b))
        return ReadoutBeyondFloat(tensors, (dss ? "w" : "c") + modes.PlaceOf(i));
      Append(ssm.a_minus_one_, mode.a_minus_one);
      Append(ssm.b_, mode.b);
      Append(ssm.c_, readout);
    }
  }
  return ssm;
}

SsmParameters DiscreteSsm::parameters() {
  const int64_t features = spec_.num_features();
  const Shape shape = {features, modes_, 2};
  return {.spec = spec_,
          .a_minus_one = TensorView(a_minus_one_.data(), DType::kF32, shape),
          .b = TensorView(b_.data(), DType::kF32, shape),
          .c = TensorView(c_.data(), DType::kF32, shape),
          .d = TensorView(d_.data(), DType::kF32, Shape{features})};
}

absl::StatusOr<DiscreteDplr> DiscreteDplr::Create(const SsmTensors& tensors, const SsmSpec& spec) {
  const TensorView log_dt = tensors.at("log_dt"), b = tensors.at("b"), p = tensors.at("p");
  DiscreteDplr dplr(spec);
  const TensorView c = tensors.at("c");
  dplr.modes_ = p.dim(2);
  dplr.p_ = ToFloats(p);
  dplr.c_ = ToFloats(c);
  dplr.d_ = ToFloats(tensors.at("d"));
  const Shape modes = {spec.num_filters, spec.num_inputs, dplr.modes_};
  for (int64_t f = 0; f < spec.num_features(); ++f) {
    const double dt = std::exp(Number(log_dt, f));
    dplr.dt_.push_back(static_cast<float>(dt));
    const int64_t first = f * dplr.modes_, end = first + dplr.modes_;
    // Re g >= |g|^2 where Re a <= 0, so rho is at least 1 and |w| at most sqrt(dt) / 4.
    double rho = 1;
    for (int64_t i = first; i < end; ++i) {
      const Complex g = 1.0 / (1.0 - dt * StoredMode(tensors, i) / 2.0);
      rho += dt * std::norm(ComplexNumber(p, i)) * g.real();
    }
    Complex coupling = 0;  // of the input to 2 Re sum w v
    for (int64_t i = first; i < end; ++i) {
      const Complex a = StoredMode(tensors, i);
      const Complex g = 1.0 / (1.0 - dt * a / 2.0);
      const Complex w = dt / 2 * std::conj(ComplexNumber(p, i)) * g / rho;
      const Complex dt_b = dt * ComplexNumber(b, i);
      if (!FitsFloat(dt * a) || !FitsFloat(g))
        return NotFinite(tensors, "log_neg_a_real" + modes.PlaceOf(i), a, dt);
      if (!FitsFloat(dt) || !FitsFloat(dt_b))
        return NotFinite(tensors, "b" + modes.PlaceOf(i), a, dt);
      coupling += 2.0 * w * dt_b;
      if (!FitsFloat(coupling)) return NotFinite(tensors, "b" + modes.PlaceOf(i), a, dt);
      if (!FitsFloat(2.0 * ComplexNumber(c, i)))
        return ReadoutBeyondFloat(tensors, "c" + modes.PlaceOf(i));
      Append(dplr.dt_lambda_, dt * a);
      Append(dplr.dt_b_, dt_b);
      Append(dplr.g_, g);
      Append(dplr.w_, w);
    }
  }
  return dplr;
}

DplrParameters DiscreteDplr::parameters() {
  const int64_t features = spec_.num_features();
  const Shape shape = {features, modes_, 2};
  return {.spec = spec_,
          .dt_lambda = TensorView(dt_lambda_.data(), DType::kF32, shape),
          .dt_b = TensorView(dt_b_.data(), DType::kF32, shape),
          .p = TensorView(p_.data(), DType::kF32, shape),
          .g = TensorView(g_.data(), DType::kF32, shape),
          .w = TensorView(w_.data(), DType::kF32, shape),
          .c = TensorView(c_.data(), DType::kF32, shape),
          .dt = TensorView(dt_.data(), DType::kF32, Shape{features}),
          .d = TensorView(d_.data(), DType::kF32, Shape{features})};
}

absl::StatusOr<MimoKernel> MimoKernel::Create(const Checkpoint& checkpoint, int layer) {
  return Create(SsmTensors::OfLayer(checkpoint, layer),
                checkpoint.config().layers[static_cast<size_t>(layer)].ssm.discretization);
}

absl::StatusOr<MimoKernel> MimoKernel::Create(const SsmTensors& tensors, Discretization method) {
  const TensorView b = tensors.at("b"), c = tensors.at("c");  // [P, D, 2], [C, D, P, 2]
  MimoKernel kernel;
  kernel.modes_ = b.dim(0);
  kernel.inputs_ = b.dim(1);
  kernel.features_ = c.dim(0) * c.dim(1);
  kernel.d_ = ToFloats(tensors.at("d"));
  const auto modes = static_cast<size_t>(kernel.modes_);
  const auto inputs = static_cast<size_t>(kernel.inputs_);
  kernel.input_.resize(2 * modes * inputs);
  for (size_t m = 0; m < modes; ++m) {
    const auto i = static_cast<int64_t>(m);
    const Complex lambda(Number(tensors.at("lambda_real"), i),
                         Number(tensors.at("lambda_imag"), i));
    const double dt = std::exp(Number(tensors.at("log_step"), i));
    const DiscreteMode mode = Discretize(lambda, 1.0, dt, method);
    if (!FitsFloat(mode.a_minus_one)) {
      return NotFinite(tensors, "lambda_real" + Shape({kernel.modes_}).PlaceOf(i), lambda, dt);
    }
    Append(kernel.a_minus_one_, mode.a_minus_one);
    for (size_t d = 0; d < inputs; ++d) {
      const auto element = static_cast<int64_t>(m * inputs + d);
      const Complex input = mode.b * ComplexNumber(b, element);
      if (!FitsFloat(input)) {
        return NotFinite(tensors, "b" + Shape({b.dim(0), b.dim(1)}).PlaceOf(element), lambda, dt);
      }
      kernel.input_[m * inputs + d] = static_cast<float>(input.real());
      kernel.input_[(modes + m) * inputs + d] = static_cast<float>(input.imag());
    }
  }
  for (int64_t f = 0; f < kernel.features_; ++f) {
    for (const bool imaginary : {false, true}) {
      for (int64_t m = 0; m < kernel.modes_; ++m) {
        const Complex x = ComplexNumber(c, f * kernel.modes_ + m);
        const double factor = imaginary ? -2 * x.imag() : 2 * x.real();
        if (!FitsFloat(factor)) {
          return ReadoutBeyondFloat(
              tensors,
              "c" + Shape({c.dim(0), c.dim(1), kernel.modes_}).PlaceOf(f * kernel.modes_ + m));
        }
        kernel.readout_.push_back(static_cast<float>(factor));
      }
    }
  }
  return kernel;
}

}  // namespace bst
