// From stored tensors to outputs: known kernels through the real operators of every backend, and
// the identities that hold between the ways to evaluate one.
#include "engine/model/ssm_discretization.h"

#include <cmath>
#include <complex>
#include <cstring>
#include <map>
#include <numbers>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "engine/model/ssm_kernel.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/dense_system.h"
#include "tests/support/model_runner.h"
#include "tests/support/status_matchers.h"

namespace bst {
namespace {

using Complex = std::complex<double>;

// A slow mode's A - 1 must keep all its digits: e^z - 1 = z + z^2 / 2 + ... for tiny z.
TEST(DiscretizeTest, SlowModesLoseNothingToCancellation) {
  for (const double dt : {1e-3, 1e-6, 1e-9}) {
    const Complex a(-1e-3, 0.5), z = dt * a;
    const Complex series = z + z * z / 2.0 + z * z * z / 6.0;
    const DiscreteMode mode = Discretize(a, Complex(0.3, -0.2), dt, Discretization::kZeroOrderHold);
    EXPECT_LT(std::abs(mode.a_minus_one - series) / std::abs(series), 1e-10) << dt;
    EXPECT_LT(std::abs(mode.b - Complex(0.3, -0.2) * series / a) / std::abs(mode.b), 1e-10) << dt;
  }
}

TEST(DiscretizeTest, BothMethodsAgreeForSmallSteps) {
  const Complex a(-0.7, 2.0), b(1.5, 0.25);
  const DiscreteMode zoh = Discretize(a, b, 1e-4, Discretization::kZeroOrderHold);
  const DiscreteMode bilinear = Discretize(a, b, 1e-4, Discretization::kBilinear);
  EXPECT_LT(std::abs(zoh.a_minus_one - bilinear.a_minus_one) / std::abs(zoh.a_minus_one), 1e-8);
  EXPECT_LT(std::abs(zoh.b - bilinear.b) / std::abs(zoh.b), 2e-4);
}

// ---------------------------------------------------------------- kernels in memory

// The tensors of one kernel, float32 as a checkpoint has them, with what else defines it.
struct StoredKernel {
  struct Stored {
    std::vector<float> values;
    Shape shape;
  };

  void Set(const std::string& name, const std::vector<double>& values, Shape shape) {
    BST_CHECK(static_cast<int64_t>(values.size()) == shape.num_elements(), name);
    stored[name] = {{}, shape};
    for (const double x : values) stored[name].values.push_back(static_cast<float>(x));
  }
  void SetComplex(const std::string& name, const std::vector<Complex>& values, Shape shape) {
    std::vector<double> parts;
    for (const Complex& x : values) parts.insert(parts.end(), {x.real(), x.imag()});
    Set(name, parts, shape);
  }
  SsmTensors tensors() {
    std::map<std::string, TensorView, std::less<>> views;
    for (auto& [name, tensor] : stored)
      views.emplace(name, TensorView(tensor.values.data(), DType::kF32, tensor.shape));
    return SsmTensors("layers.2.ssm", std::move(views));
  }

  SsmConfig config;
  SsmSpec spec = {.num_inputs = 1};
  std::map<std::string, Stored> stored;
};

// Rows of float32 numbers.
struct Signal {
  Signal(int64_t rows, int64_t columns)
      : shape({rows, columns}), values(static_cast<size_t>(rows * columns)) {}
  float& at(int64_t t, int64_t i) { return values[static_cast<size_t>(t * shape[1] + i)]; }
  TensorView view() { return {values.data(), DType::kF32, shape}; }

  Shape shape;
  std::vector<float> values;
};

Signal RandomSignal(int64_t rows, int64_t columns, uint32_t seed) {
  Signal signal(rows, columns);
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  for (float& x : signal.values) x = normal(random);
  return signal;
}

// A kernel on a backend: y for one document fed in rows of the given lengths, and the state it
// leaves.
class PackedKernel {
 public:
  PackedKernel(StoredKernel& kernel, Backend& backend) : backend_(backend), spec_(kernel.spec) {
    if (kernel.config.kernel != SsmKernel::kS5) {
      ssm_ = *PackSsmKernel(kernel.tensors(), kernel.config, spec_, backend);
      return;
    }
    MimoKernel mimo = *MimoKernel::Create(kernel.tensors(), kernel.config.discretization);
    scan_ = *backend.PackScan(mimo.a_minus_one());
    input_ = *backend.PackLinear({mimo.input()}, DType::kF32);
    readout_ = *backend.PackLinear({mimo.readout()}, DType::kF32);
    skip_ = *backend.PackVector(mimo.d());
  }

  Signal Convolve(Signal& u, const std::vector<int>& row_lengths) {
    const size_t bytes = scan_ ? backend_.ScanStateBytes(*scan_) : backend_.SsmStateBytes(*ssm_);
    const Buffer memory = *backend_.Allocate(bytes);
    const PoolView state = {static_cast<std::byte*>(memory.data()), bytes};
    Signal y(u.shape[0], spec_.num_features());
    int64_t position = 0;
    for (const int n : row_lengths) {
      const Row row = {.slot = SlotId(0), .begin = 0, .end = n, .position = position};
      const TensorView in = u.view().Rows(position, position + n);
      const TensorView out = y.view().Rows(position, position + n);
      if (scan_) {
        Signal modes(n, input_->out_features());
        backend_.Linear(in, *input_, {}, modes.view());
        backend_.Scan(*scan_, modes.view(), {row}, state);
        backend_.Linear(modes.view(), *readout_, {}, out);
        backend_.AddScaled(in, skip_.View(DType::kF32, {spec_.num_features()}), out);
      } else {
        backend_.Ssm(*ssm_, in, {row}, state, out);
      }
      position += n;
    }
    final_state_.assign(state.base, state.base + bytes);
    return y;
  }
  const std::vector<std::byte>& final_state() const { return final_state_; }

 private:
  Backend& backend_;
  SsmSpec spec_;
  std::unique_ptr<SsmWeights> ssm_;
  std::unique_ptr<ScanWeights> scan_;
  std::unique_ptr<LinearWeights> input_, readout_;
  Buffer skip_;
  std::vector<std::byte> final_state_;
};

// The parameter names the backend.
class SsmKernelTest : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    auto backend = MakeBackend(GetParam());
    ASSERT_THAT(backend, IsOk());
    backend_ = *std::move(backend);
  }

  // The response of feature 0 to an impulse at input 0.
  std::vector<float> ImpulseResponse(StoredKernel& kernel, int length) {
    Signal u(length, kernel.spec.num_inputs);
    u.at(0, 0) = 1.0f;
    Signal y = PackedKernel(kernel, *backend_).Convolve(u, {length});
    std::vector<float> response;
    for (int t = 0; t < length; ++t) response.push_back(y.at(t, 0));
    return response;
  }

  std::unique_ptr<Backend> backend_;
};

void ExpectNear(const std::vector<float>& got, const std::vector<double>& expected) {
  ASSERT_EQ(got.size(), expected.size());
  // The stored parameters are float32: a few units of 6e-8.
  for (size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i], expected[i], 6e-7) << i;
}

// ---------------------------------------------------------------- known kernels
// The numbers were computed once in float64 from the definitions, with nothing of this engine.

TEST_P(SsmKernelTest, S4dHasItsKnownKernel) {
  StoredKernel kernel;
  kernel.config = {.kernel = SsmKernel::kS4d, .state_size = 4};
  kernel.Set("log_dt", {std::log(0.1)}, {1, 1});
  kernel.Set("log_neg_a_real", {std::log(0.5), std::log(0.5)}, {1, 1, 2});
  kernel.Set("a_imag", {0, std::numbers::pi}, {1, 1, 2});
  kernel.SetComplex("c", {1, 1}, {1, 1, 2, 2});
  kernel.Set("d", {0}, {1, 1});
  ExpectNear(ImpulseResponse(kernel, 6),
             {0.387011209, 0.350341188, 0.300984953, 0.244020162, 0.184808924, 0.128456684});
  kernel.config.discretization = Discretization::kBilinear;
  const std::vector<double> bilinear = {0.385766598, 0.349877232, 0.301444902,
                                        0.245362496, 0.186828387, 0.130826824};
  ExpectNear(ImpulseResponse(kernel, 6), bilinear);
  kernel.SetComplex("b", {1, 1}, {1, 1, 2, 2});  // the same as no b
  ExpectNear(ImpulseResponse(kernel, 6), bilinear);
}

TEST_P(SsmKernelTest, DssHasItsKnownKernel) {
  StoredKernel kernel;
  kernel.config = {.kernel = SsmKernel::kDss, .state_size = 2};
  kernel.Set("log_dt", {0}, {1, 1});
  kernel.Set("log_neg_a_real", {0, -1}, {2});
  kernel.Set("a_imag", {1, std::exp(0.5)}, {2});
  kernel.SetComplex("w", {1, 1}, {1, 1, 2, 2});
  kernel.Set("d", {0}, {1, 1});
  ExpectNear(ImpulseResponse(kernel, 5),
             {1.089976425, -0.353318753, -0.275898663, 0.179721081, 0.076965410});
}

// HiPPO-LegS of four states: A[n][k] = -sqrt((2n+1)(2k+1)) below the diagonal, -(n+1) on it;
// A + P P^T = -1/2 + skew is diagonalised here by Rayleigh quotient iteration.
TEST_P(SsmKernelTest, S4HasTheKernelOfHippoLegS) {
  constexpr size_t kSize = 4;
  ComplexMatrix normal(kSize, ComplexVector(kSize));  // A + P P^T
  ComplexVector input(kSize), rank(kSize);
  for (size_t n = 0; n < kSize; ++n) {
    const auto order = static_cast<double>(n);
    input[n] = std::sqrt(2 * order + 1);
    rank[n] = std::sqrt(order + 0.5);
  }
  for (size_t n = 0; n < kSize; ++n) {
    for (size_t k = 0; k < kSize; ++k) {
      const Complex a = n > k    ? -input[n] * input[k]
                        : n == k ? -Complex(static_cast<double>(n) + 1)
                                 : 0;
      normal[n][k] = a + rank[n] * rank[k];
    }
  }
  std::vector<double> imaginary;
  std::vector<Complex> p, b, c;
  for (const double guess : {-0.556501115, -4.603293007}) {
    ComplexVector v = {1, Complex(0.3, 0.1), Complex(-0.2, 0.5), 0.7};
    Complex lambda(-0.5, guess + 1e-6);
    for (int iteration = 0; iteration < 4; ++iteration) {
      ComplexMatrix shifted = normal;
      for (size_t i = 0; i < kSize; ++i) shifted[i][i] -= lambda + 1e-12;
      v = Solve(shifted, v);
      double length = 0;
      for (const Complex& x : v) length += std::norm(x);
      for (Complex& x : v) x /= std::sqrt(length);
      const ComplexVector image = Product(normal, v);
      lambda = 0;
      for (size_t i = 0; i < kSize; ++i) lambda += std::conj(v[i]) * image[i];
    }
    EXPECT_NEAR(lambda.real(), -0.5, 1e-9);
    EXPECT_NEAR(lambda.imag(), guess, 1e-8);
    imaginary.push_back(lambda.imag());
    Complex p_mode = 0, b_mode = 0, c_mode = 0;
    for (size_t i = 0; i < kSize; ++i) {
      p_mode += std::conj(v[i]) * rank[i];
      b_mode += std::conj(v[i]) * input[i];
      c_mode += v[i];  // C = (1, 1, 1, 1) of the real basis
    }
    p.push_back(p_mode);
    b.push_back(b_mode);
    c.push_back(c_mode);
  }
  StoredKernel kernel;
  kernel.config = {
      .kernel = SsmKernel::kS4, .state_size = 4, .discretization = Discretization::kBilinear};
  kernel.Set("log_dt", {std::log(0.1)}, {1, 1});
  kernel.Set("log_neg_a_real", {std::log(0.5), std::log(0.5)}, {1, 1, 2});
  kernel.Set("a_imag", imaginary, {1, 1, 2});
  kernel.SetComplex("p", p, {1, 1, 2, 2});
  kernel.SetComplex("b", b, {1, 1, 2, 2});
  kernel.SetComplex("c", c, {1, 1, 2, 2});
  kernel.Set("d", {0}, {1, 1});
  ExpectNear(ImpulseResponse(kernel, 6),
             {0.547052198, 0.223439368, 0.063993929, -0.004599419, -0.025621550, -0.023929161});
}

TEST_P(SsmKernelTest, S5HasItsKnownOutputs) {
  StoredKernel kernel;
  kernel.config = {.kernel = SsmKernel::kS5, .state_size = 4};
  kernel.spec.num_inputs = 2;
  kernel.Set("lambda_real", {-0.5, -0.5}, {2});
  kernel.Set("lambda_imag", {1, 2}, {2});
  kernel.Set("log_step", {std::log(0.1), std::log(0.2)}, {2});
  kernel.SetComplex("b", {1, 2, 3, 4}, {2, 2, 2});
  kernel.SetComplex("c", {1, 0, 0, 1}, {1, 2, 2, 2});
  kernel.Set("d", {0, 0}, {1, 2});
  Signal u(3, 2);
  u.values = {1, 0, 0, 1, 1, 1};
  Signal y = PackedKernel(kernel, *backend_).Convolve(u, {3});
  const std::vector<double> expected = {0.194761382, 1.112492257, 0.572942163,
                                        2.332386584, 1.122100133, 4.232305323};
  for (size_t i = 0; i < 6; ++i) EXPECT_NEAR(y.values[i], expected[i], 1e-6) << i;
  kernel.Set("d", {0.5, -2}, {1, 2});
  y = PackedKernel(kernel, *backend_).Convolve(u, {3});
  for (size_t i = 0; i < 6; ++i)
    EXPECT_NEAR(y.values[i], expected[i] + (i % 2 == 0 ? 0.5 : -2) * u.values[i], 1e-6) << i;
}

// ---------------------------------------------------------------- identities

constexpr int kInputs = 3, kFilters = 2, kPairs = 4;

StoredKernel RandomKernel(SsmKernel kind, Discretization method, bool has_b) {
  StoredKernel kernel;
  kernel.config = {.kernel = kind, .state_size = 2 * kPairs, .discretization = method};
  kernel.spec = {.num_inputs = kInputs, .num_filters = kFilters, .block = 16};
  std::mt19937 random(17);
  std::normal_distribution<double> normal;
  const auto numbers = [&](int n, double mean, double deviation) {
    std::vector<double> out;
    for (int i = 0; i < n; ++i) out.push_back(mean + deviation * normal(random));
    return out;
  };
  constexpr int kFeatures = kInputs * kFilters, kModes = kFeatures * kPairs;
  kernel.Set("d", numbers(kFeatures, 0, 1), {kFilters, kInputs});
  if (kind == SsmKernel::kExplicit) {
    kernel.config = {.kernel = kind, .length = 40};
    kernel.Set("filter", numbers(kFeatures * 40, 0, 1), {kFilters, kInputs, 40});
    return kernel;
  }
  if (kind == SsmKernel::kS5) {
    kernel.Set("lambda_real", {-0.4, -0.5, -0.6, -0.05}, {kPairs});
    kernel.Set("lambda_imag", numbers(kPairs, 0, 3), {kPairs});
    kernel.Set("log_step", numbers(kPairs, -2, 0.5), {kPairs});
    kernel.Set("b", numbers(kPairs * kInputs * 2, 0, 1), {kPairs, kInputs, 2});
    kernel.Set("c", numbers(kFeatures * kPairs * 2, 0, 1), {kFilters, kInputs, kPairs, 2});
    return kernel;
  }
  kernel.Set("log_dt", numbers(kFeatures, -2, 0.5), {kFilters, kInputs});
  if (kind == SsmKernel::kDss) {
    kernel.Set("log_neg_a_real", numbers(2 * kPairs, -0.7, 0.3), {2 * kPairs});
    kernel.Set("a_imag", numbers(2 * kPairs, 0, 3), {2 * kPairs});
    kernel.Set("w", numbers(2 * kModes * 2, 0, 1), {kFilters, kInputs, 2 * kPairs, 2});
    return kernel;
  }
  const Shape modes = {kFilters, kInputs, kPairs}, complex = {kFilters, kInputs, kPairs, 2};
  kernel.Set("log_neg_a_real", numbers(kModes, -0.7, 0.3), modes);
  kernel.Set("a_imag", numbers(kModes, 0, 3), modes);
  kernel.Set("c", numbers(kModes * 2, 0, 1), complex);
  if (has_b) kernel.Set("b", numbers(kModes * 2, 0, 1), complex);
  if (kind == SsmKernel::kS4) kernel.Set("p", numbers(kModes * 2, 0, 0.7), complex);
  return kernel;
}

struct NamedKernel {
  std::string name;
  StoredKernel kernel;
};
std::vector<NamedKernel> RandomKernels() {
  constexpr auto kZoh = Discretization::kZeroOrderHold, kBilinear = Discretization::kBilinear;
  return {{"s4d", RandomKernel(SsmKernel::kS4d, kZoh, true)},
          {"s4d without b", RandomKernel(SsmKernel::kS4d, kZoh, false)},
          {"s4d bilinear", RandomKernel(SsmKernel::kS4d, kBilinear, true)},
          {"dss", RandomKernel(SsmKernel::kDss, kZoh, false)},
          {"s4", RandomKernel(SsmKernel::kS4, kBilinear, true)},
          {"s5", RandomKernel(SsmKernel::kS5, kZoh, true)},
          {"s5 bilinear", RandomKernel(SsmKernel::kS5, kBilinear, true)},
          {"explicit", RandomKernel(SsmKernel::kExplicit, kZoh, false)}};
}

// K = 2 Re sum_m c A^l B (s5: from every input) from the stored numbers, in float64 and powers
// rather than steps. K[l][f][i]: feature f's response to input i.
std::vector<std::vector<std::vector<double>>> ClosedForm(NamedKernel& named, int length) {
  StoredKernel& kernel = named.kernel;
  const auto number = [&](const char* name, int i) {
    return double{kernel.stored[name].values[static_cast<size_t>(i)]};
  };
  const auto complex = [&](const char* name, int i) {
    return Complex(number(name, 2 * i), number(name, 2 * i + 1));
  };
  const bool bilinear = kernel.config.discretization == Discretization::kBilinear;
  const auto powers = [&](Complex a, double dt, int l) {  // A^l (B / b)
    const Complex z = dt * a;
    if (bilinear) return std::pow((1.0 + z / 2.0) / (1.0 - z / 2.0), l) * dt / (1.0 - z / 2.0);
    return (std::exp(z * double(l + 1)) - std::exp(z * double(l))) / a;
  };
  std::vector<std::vector<std::vector<double>>> k(
      static_cast<size_t>(length),
      std::vector<std::vector<double>>(kInputs * kFilters, std::vector<double>(kInputs, 0.0)));
  for (int l = 0; l < length; ++l) {
    for (int f = 0; f < kInputs * kFilters; ++f) {
      std::vector<double>& out = k[static_cast<size_t>(l)][static_cast<size_t>(f)];
      double& own = out[static_cast<size_t>(f % kInputs)];
      if (l == 0) own += number("d", f);
      switch (kernel.config.kernel) {
        case SsmKernel::kExplicit:
          if (l < kernel.config.length) own += number("filter", f * kernel.config.length + l);
          break;
        case SsmKernel::kDss:
          for (int m = 0; m < 2 * kPairs; ++m) {
            const Complex a(-std::exp(number("log_neg_a_real", m)), number("a_imag", m));
            own += (complex("w", f * 2 * kPairs + m) * powers(a, std::exp(number("log_dt", f)), l))
                       .real();
          }
          break;
        case SsmKernel::kS4d:
          for (int m = f * kPairs; m < (f + 1) * kPairs; ++m) {
            const Complex a(-std::exp(number("log_neg_a_real", m)), number("a_imag", m));
            const Complex b = kernel.stored.contains("b") ? complex("b", m) : 1.0;
            own += 2 * (complex("c", m) * b * powers(a, std::exp(number("log_dt", f)), l)).real();
          }
          break;
        case SsmKernel::kS5:
          for (int m = 0; m < kPairs; ++m) {
            const Complex a(number("lambda_real", m), number("lambda_imag", m));
            const Complex power = powers(a, std::exp(number("log_step", m)), l);
            for (int i = 0; i < kInputs; ++i) {
              out[static_cast<size_t>(i)] +=
                  2 * (complex("c", f * kPairs + m) * power * complex("b", m * kInputs + i)).real();
            }
          }
          break;
        case SsmKernel::kS4:
          break;
      }
    }
  }
  if (kernel.config.kernel != SsmKernel::kS4) return k;
  // Dense: modes and conjugates, A = diag(a) - p p^H, (I - dt/2 A) x_t = (I + dt/2 A) x_{t-1} + dt
  // b u.
  constexpr size_t kSize = 2 * kPairs;
  for (int f = 0; f < kInputs * kFilters; ++f) {
    const double dt = std::exp(number("log_dt", f));
    ComplexVector a(kSize), p(kSize), b(kSize), c(kSize), x(kSize);
    for (int m = 0; m < kPairs; ++m) {
      const int i = f * kPairs + m;
      const auto low = static_cast<size_t>(m), high = low + kPairs;
      a[low] = Complex(-std::exp(number("log_neg_a_real", i)), number("a_imag", i));
      p[low] = complex("p", i);
      b[low] = complex("b", i);
      c[low] = complex("c", i);
      for (ComplexVector* v : {&a, &p, &b, &c}) (*v)[high] = std::conj((*v)[low]);
    }
    ComplexMatrix implicit(kSize, ComplexVector(kSize)), forward = implicit;
    for (size_t i = 0; i < kSize; ++i) {
      for (size_t j = 0; j < kSize; ++j) {
        const Complex entry = dt / 2 * ((i == j ? a[i] : 0.0) - p[i] * std::conj(p[j]));
        implicit[i][j] = (i == j ? 1.0 : 0.0) - entry;
        forward[i][j] = (i == j ? 1.0 : 0.0) + entry;
      }
    }
    for (int l = 0; l < length; ++l) {
      ComplexVector right = Product(forward, x);
      if (l == 0) {
        for (size_t i = 0; i < kSize; ++i) right[i] += dt * b[i];
      }
      x = Solve(implicit, right);
      for (size_t i = 0; i < kSize; ++i) {
        k[static_cast<size_t>(l)][static_cast<size_t>(f)][static_cast<size_t>(f % kInputs)] +=
            (c[i] * x[i]).real();
      }
    }
  }
  return k;
}

// A convolution with K, summed in float64, is what every way to feed the operators gives: all at
// once, token by token, in chunks, a prompt and then single tokens; to the bit among themselves.
TEST_P(SsmKernelTest, OutputsAreTheConvolutionWithTheKernelHoweverCut) {
  constexpr int kLength = 100;
  for (NamedKernel& named : RandomKernels()) {
    SCOPED_TRACE(named.name);
    PackedKernel packed(named.kernel, *backend_);
    Signal u = RandomSignal(kLength, kInputs, 3);
    Signal y = packed.Convolve(u, {kLength});
    const std::vector<std::byte> state = packed.final_state();
    const auto k = ClosedForm(named, kLength);
    std::vector<float> expected;
    for (size_t t = 0; t < kLength; ++t) {
      for (size_t f = 0; f < kInputs * kFilters; ++f) {
        double sum = 0;
        for (size_t s = 0; s <= t; ++s) {
          for (size_t i = 0; i < kInputs; ++i)
            sum += k[t - s][f][i] * double{u.values[s * kInputs + i]};
        }
        expected.push_back(static_cast<float>(sum));
      }
    }
    EXPECT_LT(RelativeRms(y.values, expected), 3e-6);

    std::vector<int> decode = {60};
    decode.resize(1 + kLength - 60, 1);
    for (const std::vector<int>& cut : {std::vector<int>(kLength, 1), std::vector<int>{33, 67},
                                        std::vector<int>{7, 64, 16, 13}, decode}) {
      EXPECT_EQ(packed.Convolve(u, cut).values, y.values) << cut.size() << " rows";
      EXPECT_TRUE(packed.final_state() == state) << cut.size() << " rows";
    }
  }
}

// A longer kernel begins with the shorter one, and the future leaves the past alone.
TEST_P(SsmKernelTest, KernelsOfAnyLengthAgreeAndAreCausal) {
  constexpr int kLength = 80, kShort = 23;
  for (NamedKernel& named : RandomKernels()) {
    SCOPED_TRACE(named.name);
    const std::vector<float> whole = ImpulseResponse(named.kernel, kLength);
    EXPECT_EQ(ImpulseResponse(named.kernel, kShort),
              std::vector<float>(whole.begin(), whole.begin() + kShort));
    PackedKernel packed(named.kernel, *backend_);
    Signal u = RandomSignal(kLength, kInputs, 4);
    Signal before = packed.Convolve(u, {kLength});
    for (int t = kShort; t < kLength; ++t) u.at(t, 0) += 1.0f;
    Signal after = packed.Convolve(u, {kLength});
    const auto past = static_cast<std::ptrdiff_t>(kShort * kInputs * kFilters);
    EXPECT_TRUE(
        std::equal(before.values.begin(), before.values.begin() + past, after.values.begin()));
    EXPECT_NE(before.at(kShort, 0), after.at(kShort, 0));
  }
}

// ---------------------------------------------------------------- errors

struct Change {
  const char* tensor;
  size_t index;
  float value;
};

// The status of packing a kernel with a few numbers changed.
absl::Status PackChanged(Backend& backend, StoredKernel kernel,
                         const std::vector<Change>& changes) {
  for (const Change& change : changes) {
    kernel.stored[change.tensor].values[change.index] = change.value;
  }
  if (kernel.config.kernel == SsmKernel::kS5)
    return MimoKernel::Create(kernel.tensors(), kernel.config.discretization).status();
  return PackSsmKernel(kernel.tensors(), kernel.config, kernel.spec, backend).status();
}

TEST_P(SsmKernelTest, ErrorsNameTensorAndElement) {
  const auto expect = [&](const StoredKernel& kernel, const std::vector<Change>& changes,
                          const std::string& element) {
    EXPECT_THAT(PackChanged(*backend_, kernel, {}), IsOk());
    EXPECT_THAT(PackChanged(*backend_, kernel, changes),
                StatusIs(absl::StatusCode::kFailedPrecondition,
                         testing::HasSubstr("layers.2.ssm." + element + " ")));
  };
  constexpr auto kZoh = Discretization::kZeroOrderHold, kBilinear = Discretization::kBilinear;
  const StoredKernel s4d = RandomKernel(SsmKernel::kS4d, kZoh, true);
  const StoredKernel s4d_bilinear = RandomKernel(SsmKernel::kS4d, kBilinear, true);
  const StoredKernel s4d_without_b = RandomKernel(SsmKernel::kS4d, kZoh, false);
  const StoredKernel dss = RandomKernel(SsmKernel::kDss, kZoh, false);
  const StoredKernel s4 = RandomKernel(SsmKernel::kS4, kBilinear, true);
  const StoredKernel s5 = RandomKernel(SsmKernel::kS5, kZoh, true);
  // Element [1, 0, 2] of [C 2, D 3, M 4] is number 14, [1, 0] of [C, D] number 3.
  expect(s4d_bilinear, {{"log_neg_a_real", 14, 800.0f}}, "log_neg_a_real[1, 0, 2]");
  const Change still = {"log_neg_a_real", 14, -100.0f}, steady = {"a_imag", 14, 0.0f};
  expect(s4d, {still, steady, {"log_dt", 3, 2.0f}, {"b", 28, 3e38f}}, "b[1, 0, 2]");
  expect(s4d_without_b, {still, steady, {"log_dt", 3, 90.0f}}, "log_dt[1, 0]");
  expect(dss, {{"log_dt", 3, 700.0f}, {"a_imag", 5, 3e38f}}, "log_neg_a_real[5]");
  expect(dss, {{"log_dt", 3, 90.0f}, {"log_neg_a_real", 5, -100.0f}, {"a_imag", 5, 0.0f}},
         "log_dt[1, 0]");
  expect(s4, {{"log_neg_a_real", 14, 700.0f}}, "log_neg_a_real[1, 0, 2]");
  expect(s4, {{"log_dt", 3, 2.0f}, {"b", 29, 3e38f}}, "b[1, 0, 2]");
  expect(s5, {{"lambda_imag", 2, 3e38f}, {"log_step", 2, 700.0f}}, "lambda_real[2]");
  expect(s5,
         {{"lambda_real", 2, -1e-9f},
          {"lambda_imag", 2, 0.0f},
          {"log_step", 2, 2.0f},
          {"b", 14, 3e38f}},
         "b[2, 1]");
  expect(s5, {{"c", 28, 3e38f}}, "c[1, 0, 2]");
  // Finite parts whose product or sum is not: they would serve NaN.
  expect(s4d, {{"b", 28, 1e25f}, {"c", 28, 1e25f}}, "c[1, 0, 2]");
  expect(s4, {{"c", 28, 2e38f}}, "c[1, 0, 2]");
}

std::vector<std::string> AllBackends() {
  std::vector<std::string> names = CpuBackendNames();
  names.push_back("reference");
  return names;
}
INSTANTIATE_TEST_SUITE_P(All, SsmKernelTest, testing::ValuesIn(AllBackends()),
                         [](const auto& param) {
                           std::string name = param.param;
                           for (char& c : name) c = c == ':' || c == '-' ? '_' : c;
                           return name;
                         });

}  // namespace
}  // namespace bst
