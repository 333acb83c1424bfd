// Dense complex linear systems in float64, for tests that check fast formulas against plain ones.
#pragma once

#include <cmath>
#include <complex>
#include <cstddef>
#include <utility>
#include <vector>

namespace bst {

using ComplexVector = std::vector<std::complex<double>>;
using ComplexMatrix = std::vector<ComplexVector>;  // rows

// x with a x = b, by elimination with row pivoting. REQUIRES: a square and not singular.
inline ComplexVector Solve(ComplexMatrix a, ComplexVector b) {
  const size_t n = b.size();
  for (size_t k = 0; k < n; ++k) {
    size_t pivot = k;
    for (size_t i = k + 1; i < n; ++i) {
      if (std::abs(a[i][k]) > std::abs(a[pivot][k])) pivot = i;
    }
    std::swap(a[k], a[pivot]);
    std::swap(b[k], b[pivot]);
    for (size_t i = k + 1; i < n; ++i) {
      const std::complex<double> factor = a[i][k] / a[k][k];
      for (size_t j = k; j < n; ++j) a[i][j] -= factor * a[k][j];
      b[i] -= factor * b[k];
    }
  }
  for (size_t k = n; k-- > 0;) {
    for (size_t j = k + 1; j < n; ++j) b[k] -= a[k][j] * b[j];
    b[k] /= a[k][k];
  }
  return b;
}

inline ComplexVector Product(const ComplexMatrix& a, const ComplexVector& x) {
  ComplexVector y(a.size());
  for (size_t i = 0; i < a.size(); ++i) {
    for (size_t j = 0; j < x.size(); ++j) y[i] += a[i][j] * x[j];
  }
  return y;
}

}  // namespace bst
