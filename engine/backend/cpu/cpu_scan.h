// The shared scan of ssm.h (S5) on the CPU: modes in the lanes, tokens one after the other.
//
// Threads   Engine thread only; tasks run on the threads of the CpuContext.
// Tested by tests/engine/backend/recurrence_test.cc
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/backend/backend.h"
#include "engine/backend/cpu/cpu_context.h"

namespace bst {

class CpuScan : public ScanWeights {
 public:
  // See Backend::PackScan.
  static absl::StatusOr<std::unique_ptr<CpuScan>> Pack(TensorView a_minus_one);

  // See Backend::Scan.
  void Run(CpuContext& context, TensorView v, absl::Span<const Row> rows, PoolView state) const;

  size_t state_bytes() const { return static_cast<size_t>(2 * padded_) * sizeof(float); }
  size_t bytes() const override { return packed_.bytes(); }

 private:
  explicit CpuScan(int64_t modes) : modes_(modes), padded_(RoundUp(modes, kLanes)) {}

  int64_t modes_, padded_;
  Buffer packed_;  // E, [2][P padded to 16]: real parts, then imaginary ones; the state likewise
};

}  // namespace bst
