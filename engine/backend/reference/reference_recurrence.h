// The recurrences of ssm.h as their formulas, in float64 with a float64 state: diagonal and DPLR.
// With outputs at block ends only the outputs between them are left out. And the shared scan.
//
// Threads   Engine thread only.
// Tested by tests/engine/backend/recurrence_test.cc (against closed forms)
#pragma once

#include <complex>
#include <memory>
#include <vector>

#include "engine/backend/reference/reference_sequence.h"

namespace bst {

// See Backend::PackSsm, PackDplr.
std::unique_ptr<SsmWeights> PackReferenceSsm(const SsmParameters& parameters);
std::unique_ptr<SsmWeights> PackReferenceDplr(const DplrParameters& parameters);

class ReferenceScan : public ScanWeights {
 public:
  explicit ReferenceScan(TensorView a_minus_one);

  // See Backend::Scan.
  void Run(TensorView v, absl::Span<const Row> rows, PoolView state) const;
  size_t state_bytes() const { return a_minus_one_.size() * sizeof(std::complex<double>); }
  size_t bytes() const override { return state_bytes(); }

 private:
  std::vector<std::complex<double>> a_minus_one_;  // [P]
};

}  // namespace bst
