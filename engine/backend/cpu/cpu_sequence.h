// CpuSequence: what Backend::Ssm runs on the CPU backend, whatever the kind of weights.
//
// Threads   Engine thread only; tasks run on the threads of the CpuContext.
// Tested by tests/engine/backend/recurrence_test.cc, convolution_test.cc
#pragma once

#include <cstddef>

#include "absl/types/span.h"
#include "engine/backend/backend.h"
#include "engine/backend/cpu/cpu_context.h"

namespace bst {

class CpuSequence : public SsmWeights {
 public:
  using SsmWeights::SsmWeights;

  // See Backend::Ssm.
  virtual void Run(CpuContext& context, TensorView u, absl::Span<const Row> rows, PoolView state,
                   TensorView y) const = 0;
  // See Backend::SsmStateBytes.
  virtual size_t state_bytes() const = 0;
};

}  // namespace bst
