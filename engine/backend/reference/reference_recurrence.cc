#include "engine/backend/reference/reference_recurrence.h"

#include "engine/tensor/host_convert.h"

namespace bst {
namespace {

using Complex = std::complex<double>;

std::vector<Complex> ToComplex(const TensorView& tensor) {
  std::vector<Complex> out(static_cast<size_t>(tensor.shape().num_elements() / 2));
  for (size_t i = 0; i < out.size(); ++i) {
    const auto index = static_cast<int64_t>(2 * i);
    out[i] = {ElementAsFloat(tensor, index), ElementAsFloat(tensor, index + 1)};
  }
  return out;
}

// Re sum_m a_m b_m.
double BilinearProduct(const Complex* a, const Complex* b, size_t n) {
  double sum = 0;
  for (size_t m = 0; m < n; ++m) sum += (a[m] * b[m]).real();
  return sum;
}

// One state x [C D][M] that a token's inputs advance feature by feature.
class ReferenceRecurrence : public ReferenceSequence {
 public:
  ReferenceRecurrence(const SsmSpec& spec, const TensorView& c, const TensorView& d)
      : ReferenceSequence(spec),
        modes_(static_cast<size_t>(c.dim(1))),
        c_(ToComplex(c)),
        d_(ToFloats(d)) {
    BST_CHECK_SHAPE(c, {spec.num_features(), c.dim(1), 2});
    BST_CHECK_SHAPE(d, {spec.num_features()});
  }

  void Run(TensorView u, absl::Span<const Row> rows, PoolView state, TensorView y) const override {
    BST_CHECK(u.dim(1) == spec().num_inputs, "inputs ", u.dim(1));
    int64_t output = 0;
    for (const Row& row : rows) {
      Complex* x = state.slot<Complex>(row.slot);
      for (int t = row.begin; t < row.end; ++t) {
        const int64_t position = row.position + (t - row.begin);
        const bool read = spec().outputs == SsmOutputs::kEveryToken ||
                          position % spec().block == spec().block - 1;
        for (size_t f = 0; f < d_.size(); ++f) {
          const double input = u.row<float>(t)[f % static_cast<size_t>(spec().num_inputs)];
          Advance(f, input, x + f * modes_);
          if (!read) continue;
          const double sum = 2 * BilinearProduct(&c_[f * modes_], x + f * modes_, modes_);
          y.row<float>(output)[f] = static_cast<float>(sum + d_[f] * input);
        }
        if (read) ++output;
      }
    }
    BST_CHECK_SHAPE(y, {output, spec().num_features()});
  }
  size_t state_bytes() const override { return c_.size() * sizeof(Complex); }

 protected:
  size_t modes() const { return modes_; }

 private:
  // x [M] of one feature takes one input.
  virtual void Advance(size_t feature, double u, Complex* x) const = 0;

  size_t modes_;
  std::vector<Complex> c_;  // [C D, M]
  std::vector<float> d_;    // [C D]
};

class ReferenceSsm : public ReferenceRecurrence {
 public:
  explicit ReferenceSsm(const SsmParameters& p)
      : ReferenceRecurrence(p.spec, p.c, p.d),
        a_minus_one_(ToComplex(p.a_minus_one)),
        b_(ToComplex(p.b)) {}
  size_t bytes() const override { return 3 * b_.size() * sizeof(Complex); }

 private:
  void Advance(size_t feature, double u, Complex* x) const override {
    for (size_t m = 0; m < modes(); ++m) {
      const size_t i = feature * modes() + m;
      x[m] += a_minus_one_[i] * x[m] + b_[i] * u;
    }
  }

  std::vector<Complex> a_minus_one_, b_;  // [C D, M]
};

// With h = dt s + r of ssm.h's terms, as the CPU backend has it (cpu_dplr.h):
//   h = 2 Re sum_m 2 w_m x_m + kappa u     kappa = 2 Re sum w dt b
//   x += g (dt l x + dt b u - p h)
// Where p is large, dt s and r cancel but for one part in rho; of parameters that were rounded to
// float32 too little would be left.
class ReferenceDplr : public ReferenceRecurrence {
 public:
  explicit ReferenceDplr(const DplrParameters& p)
      : ReferenceRecurrence(p.spec, p.c, p.d),
        dt_lambda_(ToComplex(p.dt_lambda)),
        dt_b_(ToComplex(p.dt_b)),
        p_(ToComplex(p.p)),
        g_(ToComplex(p.g)),
        w_(ToComplex(p.w)) {
    for (int64_t f = 0; f < spec().num_features(); ++f) {
      const size_t first = static_cast<size_t>(f) * modes();
      kappa_.push_back(2 * BilinearProduct(&w_[first], &dt_b_[first], modes()));
    }
  }
  size_t bytes() const override { return 6 * p_.size() * sizeof(Complex); }

 private:
  void Advance(size_t feature, double u, Complex* x) const override {
    const size_t first = feature * modes();
    const double h = 4 * BilinearProduct(&w_[first], x, modes()) + kappa_[feature] * u;
    for (size_t m = 0; m < modes(); ++m) {
      const size_t i = first + m;
      x[m] += g_[i] * (dt_lambda_[i] * x[m] + dt_b_[i] * u - p_[i] * h);
    }
  }

  std::vector<Complex> dt_lambda_, dt_b_, p_, g_, w_;  // [C D, M]
  std::vector<double> kappa_;                          // [C D]
};

}  // namespace

std::unique_ptr<SsmWeights> PackReferenceSsm(const SsmParameters& parameters) {
  return std::make_unique<ReferenceSsm>(parameters);
}
std::unique_ptr<SsmWeights> PackReferenceDplr(const DplrParameters& parameters) {
  return std::make_unique<ReferenceDplr>(parameters);
}

ReferenceScan::ReferenceScan(TensorView a_minus_one) : a_minus_one_(ToComplex(a_minus_one)) {}

void ReferenceScan::Run(TensorView v, absl::Span<const Row> rows, PoolView state) const {
  const size_t modes = a_minus_one_.size();
  BST_CHECK(v.dim(1) == static_cast<int64_t>(2 * modes), "columns ", v.dim(1));
  for (const Row& row : rows) {
    Complex* x = state.slot<Complex>(row.slot);
    for (int t = row.begin; t < row.end; ++t) {
      float* in = v.row<float>(t);
      for (size_t m = 0; m < modes; ++m) {
        x[m] += a_minus_one_[m] * x[m] + Complex(in[m], in[modes + m]);
        in[m] = static_cast<float>(x[m].real());
        in[modes + m] = static_cast<float>(x[m].imag());
      }
    }
  }
}

}  // namespace bst
