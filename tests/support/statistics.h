// Order statistics of measured values.
//
// Threads   Free functions, thread-safe.
// Tested by tests/support/statistics_test.cc
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

namespace bst {

// The middle one, or the mean of the two in the middle. REQUIRES: not empty.
inline double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

// The nearest rank: the least value that at least `percent` of all do not exceed; the least of all
// at 0. REQUIRES: not empty, 0 <= percent <= 100.
inline double Percentile(std::vector<double> values, double percent) {
  std::sort(values.begin(), values.end());
  // Less the rounding of the product: 99.9 % of 1000 is rank 999, not 1000.
  const double rank = std::ceil(percent / 100 * static_cast<double>(values.size()) - 1e-9);
  return values[static_cast<size_t>(std::max(rank, 1.0)) - 1];
}

}  // namespace bst
