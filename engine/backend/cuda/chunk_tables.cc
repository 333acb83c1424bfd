#include "engine/backend/cuda/chunk_tables.h"

#include <algorithm>
#include <complex>
#include <utility>

#include "engine/backend/cuda/kernels.h"
#include "engine/tensor/host_convert.h"

namespace bst {
namespace {

using Complex = std::complex<double>;

std::vector<Complex> ToComplex(const TensorView& tensor) {
  const std::vector<float> pairs = ToFloats(tensor);
  std::vector<Complex> out(pairs.size() / 2);
  for (size_t i = 0; i < out.size(); ++i) out[i] = {pairs[2 * i], pairs[2 * i + 1]};
  return out;
}
// operator* of complex numbers looks for infinities.
Complex Product(Complex a, Complex b) {
  return {a.real() * b.real() - a.imag() * b.imag(), a.real() * b.imag() + a.imag() * b.real()};
}

// Tables of so many features; the feature varies fastest in each.
class Tables {
 public:
  Tables(const SsmSpec& spec, size_t modes, size_t chunk, size_t carry)
      : features_(static_cast<size_t>(spec.num_features())), reals_(2 * modes), chunk_(chunk) {
    tables_.taps.resize(chunk * features_);
    tables_.out.resize(chunk * reals_ * features_);
    tables_.in.resize(chunk * reals_ * features_);
    tables_.carry.resize(carry * features_);
  }
  void SetTap(size_t i, size_t f, double tap) {
    tables_.taps[i * features_ + f] = static_cast<float>(tap);
  }
  void SetOut(size_t i, size_t real, size_t f, double weight) {
    tables_.out[(i * reals_ + real) * features_ + f] = static_cast<float>(weight);
  }
  void SetIn(size_t j, size_t mode, size_t f, Complex weight) {
    float* const in = &tables_.in[(j * reals_ + 2 * mode) * features_ + f];
    in[0] = static_cast<float>(weight.real());
    in[features_] = static_cast<float>(weight.imag());
  }
  void SetCarry(size_t i, size_t f, double weight) {
    tables_.carry[i * features_ + f] = static_cast<float>(weight);
  }
  ChunkTables Take() { return std::move(tables_); }

  size_t features() const { return features_; }
  size_t reals() const { return reals_; }
  size_t chunk() const { return chunk_; }

 private:
  size_t features_, reals_, chunk_;
  ChunkTables tables_;
};

// The step of ssm.h for one feature.
class DplrStep {
 public:
  DplrStep(const DplrParameters& parameters)
      : modes_(static_cast<size_t>(parameters.c.dim(1))),
        dt_lambda_(ToComplex(parameters.dt_lambda)),
        dt_b_(ToComplex(parameters.dt_b)),
        p_(ToComplex(parameters.p)),
        g_(ToComplex(parameters.g)),
        w_(ToComplex(parameters.w)),
        c_(ToComplex(parameters.c)),
        dt_(ToFloats(parameters.dt)),
        v_(modes_) {}

  size_t modes() const { return modes_; }
  void Advance(size_t f, double u, std::vector<Complex>& x) {
    const size_t first = f * modes_;
    double s = 0, r = 0;
    for (size_t m = 0; m < modes_; ++m) s += Product(std::conj(p_[first + m]), x[m]).real();
    for (size_t m = 0; m < modes_; ++m) {
      const size_t i = first + m;
      v_[m] = Product(dt_lambda_[i], x[m]) - 2 * dt_[f] * s * p_[i] + dt_b_[i] * u;
      r += Product(w_[i], v_[m]).real();
    }
    for (size_t m = 0; m < modes_; ++m)
      x[m] += Product(g_[first + m], v_[m] - 2 * r * p_[first + m]);
  }
  double Read(size_t f, const std::vector<Complex>& x) const {
    double sum = 0;
    for (size_t m = 0; m < modes_; ++m) sum += Product(c_[f * modes_ + m], x[m]).real();
    return 2 * sum;
  }

 private:
  size_t modes_;
  std::vector<Complex> dt_lambda_, dt_b_, p_, g_, w_, c_;
  std::vector<float> dt_;
  std::vector<Complex> v_;
};

}  // namespace

ChunkTables DiagonalTables(const SsmParameters& parameters) {
  const std::vector<Complex> e = ToComplex(parameters.a_minus_one), b = ToComplex(parameters.b),
                             c = ToComplex(parameters.c);
  const std::vector<float> d = ToFloats(parameters.d);
  const auto modes = static_cast<size_t>(parameters.c.dim(1));
  Tables tables(parameters.spec, modes, cuda::kDiagonalChunk, 2 * modes);
  const size_t chunk = tables.chunk();
  std::vector<double> taps(chunk);
  for (size_t f = 0; f < tables.features(); ++f) {
    std::fill(taps.begin(), taps.end(), 0.0);
    for (size_t m = 0; m < modes; ++m) {
      const size_t i = f * modes + m;
      Complex input = b[i], output = c[i], carry = e[i];  // A^j B, C A^(j + 1), A^(2^n) - 1
      for (size_t j = 0; j < chunk; ++j) {
        taps[j] += 2 * Product(c[i], input).real();
        tables.SetIn(chunk - 1 - j, m, f, input);
        input += Product(e[i], input);
        output += Product(e[i], output);
        tables.SetOut(j, 2 * m, f, 2 * output.real());
        tables.SetOut(j, 2 * m + 1, f, -2 * output.imag());
      }
      for (size_t power = 1; power < chunk; power *= 2) carry = Product(carry, carry + 2.0);
      tables.SetCarry(2 * m, f, carry.real());
      tables.SetCarry(2 * m + 1, f, carry.imag());
    }
    for (size_t j = 0; j < chunk; ++j) tables.SetTap(j, f, taps[j] + (j == 0 ? d[f] : 0.0));
  }
  return tables.Take();
}

// The step mixes modes with the conjugates of others: over complex numbers it is not linear, over
// their parts it is. So its powers are found by stepping from each part by itself.
ChunkTables DplrTables(const DplrParameters& parameters) {
  DplrStep step(parameters);
  const std::vector<float> d = ToFloats(parameters.d);
  const size_t modes = step.modes(), reals = 2 * modes;
  Tables tables(parameters.spec, modes, cuda::kDplrChunk, reals * reals);
  const size_t chunk = tables.chunk();
  std::vector<Complex> x(modes);
  for (size_t f = 0; f < tables.features(); ++f) {
    std::fill(x.begin(), x.end(), 0.0);
    step.Advance(f, 1.0, x);
    for (size_t j = 0; j < chunk; ++j) {
      tables.SetTap(j, f, step.Read(f, x) + (j == 0 ? d[f] : 0.0));
      for (size_t m = 0; m < modes; ++m) tables.SetIn(chunk - 1 - j, m, f, x[m]);
      step.Advance(f, 0.0, x);
    }
    for (size_t real = 0; real < reals; ++real) {
      std::fill(x.begin(), x.end(), 0.0);
      const Complex unit = real % 2 == 0 ? Complex(1, 0) : Complex(0, 1);
      x[real / 2] = unit;
      for (size_t i = 0; i < chunk; ++i) {
        step.Advance(f, 0.0, x);
        tables.SetOut(i, real, f, step.Read(f, x));
      }
      x[real / 2] -= unit;
      for (size_t m = 0; m < modes; ++m) {
        tables.SetCarry(2 * m * reals + real, f, x[m].real());
        tables.SetCarry((2 * m + 1) * reals + real, f, x[m].imag());
      }
    }
  }
  return tables.Take();
}

}  // namespace bst
