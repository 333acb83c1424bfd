#include "engine/backend/cuda/chunk_tables.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <complex>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/backend/cuda/kernels.h"
#include "engine/base/status_macros.h"
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

const char* Name(ChunkTable table) {
  switch (table) {
    case ChunkTable::kTaps:
      return "an output's weight of an input";
    case ChunkTable::kOut:
      return "an output's weight of the state";
    case ChunkTable::kIn:
      return "the state's weight of an input";
    case ChunkTable::kCarry:
      return "the state's weight of the state before";
  }
  return "";
}

// Some rows of tables while they are made.
class Rows {
 public:
  Rows(size_t rows, size_t features) : features_(features), values_(rows * features) {}
  void Set(size_t row, size_t feature, double value) {
    values_[row * features_ + feature] = static_cast<float>(value);
  }
  absl::Status Give(size_t row, ChunkTable table, size_t row_of_table, ChunkRowSink sink) const {
    const auto values = absl::MakeConstSpan(values_).subspan(row * features_, features_);
    for (size_t f = 0; f < features_; ++f) {
      if (std::isfinite(values[f])) continue;
      return absl::FailedPreconditionError(
          absl::StrCat("feature ", f, " of a recurrence, in chunks: ", Name(table),
                       " lies beyond float32 (", values[f], ", row ", row_of_table, ")"));
    }
    return sink(table, row_of_table, values);
  }

 private:
  size_t features_;
  std::vector<float> values_;
};

// The step of ssm.h for one feature.
class DplrStep {
 public:
  explicit DplrStep(const DplrParameters& parameters)
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
  void Advance(size_t f, double u, absl::Span<Complex> x) {
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
  double Read(size_t f, absl::Span<const Complex> x) const {
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

size_t ChunkTableRows(ChunkTable table, int chunk, int reals, cuda::Recurrence kind) {
  const auto length = static_cast<size_t>(chunk), width = static_cast<size_t>(reals);
  switch (table) {
    case ChunkTable::kTaps:
      return length;
    case ChunkTable::kOut:
    case ChunkTable::kIn:
      return length * width;
    case ChunkTable::kCarry:
      return kind == cuda::Recurrence::kDplr ? width * width : width;
  }
  return 0;
}

absl::Status MakeDiagonalTables(const SsmParameters& parameters, ChunkRowSink sink) {
  constexpr size_t kChunk = cuda::kDiagonalChunk;
  static_assert(std::has_single_bit(kChunk), "A^T is made by squarings");
  const std::vector<Complex> e = ToComplex(parameters.a_minus_one), b = ToComplex(parameters.b),
                             c = ToComplex(parameters.c);
  const std::vector<float> d = ToFloats(parameters.d);
  const auto features = static_cast<size_t>(parameters.spec.num_features()),
             modes = static_cast<size_t>(parameters.c.dim(1)), reals = 2 * modes;
  std::vector<double> taps(kChunk * features);
  Rows in(2 * kChunk, features), out(2 * kChunk, features), carry(2, features);
  for (size_t m = 0; m < modes; ++m) {
    for (size_t f = 0; f < features; ++f) {
      const size_t i = f * modes + m;
      Complex input = b[i], output = c[i], power = e[i];  // A^j B, C A^(j + 1), A^(2^n) - 1
      for (size_t j = 0; j < kChunk; ++j) {
        taps[j * features + f] += 2 * Product(c[i], input).real();
        in.Set(2 * j, f, input.real());
        in.Set(2 * j + 1, f, input.imag());
        input += Product(e[i], input);
        output += Product(e[i], output);
        out.Set(2 * j, f, 2 * output.real());
        out.Set(2 * j + 1, f, -2 * output.imag());
      }
      for (size_t n = 1; n < kChunk; n *= 2) power = Product(power, power + 2.0);
      carry.Set(0, f, power.real());
      carry.Set(1, f, power.imag());
    }
    for (size_t part = 0; part < 2; ++part) {
      const size_t real = 2 * m + part;
      for (size_t j = 0; j < kChunk; ++j) {
        BST_RETURN_IF_ERROR(
            in.Give(2 * j + part, ChunkTable::kIn, (kChunk - 1 - j) * reals + real, sink));
        BST_RETURN_IF_ERROR(out.Give(2 * j + part, ChunkTable::kOut, j * reals + real, sink));
      }
      BST_RETURN_IF_ERROR(carry.Give(part, ChunkTable::kCarry, real, sink));
    }
  }
  Rows row(1, features);
  for (size_t j = 0; j < kChunk; ++j) {
    for (size_t f = 0; f < features; ++f)
      row.Set(0, f, taps[j * features + f] + (j == 0 ? d[f] : 0.0));
    BST_RETURN_IF_ERROR(row.Give(0, ChunkTable::kTaps, j, sink));
  }
  return absl::OkStatus();
}

// The step mixes modes with the conjugates of others: over complex numbers it is not linear, over
// their parts it is. So its powers are found by stepping from each part by itself.
absl::Status MakeDplrTables(const DplrParameters& parameters, ChunkRowSink sink) {
  constexpr size_t kChunk = cuda::kDplrChunk;
  DplrStep step(parameters);
  const std::vector<float> d = ToFloats(parameters.d);
  const auto features = static_cast<size_t>(parameters.spec.num_features());
  const size_t modes = step.modes(), reals = 2 * modes;
  std::vector<Complex> states(features * modes);
  const auto state = [&](size_t f) { return absl::MakeSpan(states).subspan(f * modes, modes); };
  Rows taps(1, features), in(reals, features);
  for (size_t j = 0; j < kChunk; ++j) {
    for (size_t f = 0; f < features; ++f) {
      const absl::Span<Complex> x = state(f);
      step.Advance(f, j == 0 ? 1.0 : 0.0, x);
      taps.Set(0, f, step.Read(f, x) + (j == 0 ? d[f] : 0.0));
      for (size_t m = 0; m < modes; ++m) {
        in.Set(2 * m, f, x[m].real());
        in.Set(2 * m + 1, f, x[m].imag());
      }
    }
    BST_RETURN_IF_ERROR(taps.Give(0, ChunkTable::kTaps, j, sink));
    for (size_t k = 0; k < reals; ++k)
      BST_RETURN_IF_ERROR(in.Give(k, ChunkTable::kIn, (kChunk - 1 - j) * reals + k, sink));
  }
  std::vector<Complex> x(modes);
  Rows out(kChunk, features), carry(reals, features);
  for (size_t real = 0; real < reals; ++real) {
    const Complex unit = real % 2 == 0 ? Complex(1, 0) : Complex(0, 1);
    for (size_t f = 0; f < features; ++f) {
      std::fill(x.begin(), x.end(), 0.0);
      x[real / 2] = unit;
      for (size_t i = 0; i < kChunk; ++i) {
        step.Advance(f, 0.0, absl::MakeSpan(x));
        out.Set(i, f, step.Read(f, x));
      }
      x[real / 2] -= unit;
      for (size_t m = 0; m < modes; ++m) {
        carry.Set(2 * m, f, x[m].real());
        carry.Set(2 * m + 1, f, x[m].imag());
      }
    }
    for (size_t i = 0; i < kChunk; ++i)
      BST_RETURN_IF_ERROR(out.Give(i, ChunkTable::kOut, i * reals + real, sink));
    for (size_t k = 0; k < reals; ++k)
      BST_RETURN_IF_ERROR(carry.Give(k, ChunkTable::kCarry, k * reals + real, sink));
  }
  return absl::OkStatus();
}

}  // namespace bst
