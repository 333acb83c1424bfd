// ReferenceSequence: what Backend::Ssm runs on the reference backend, whatever the kind of weights.
//
// Threads   Engine thread only.
// Tested by tests/engine/backend/recurrence_test.cc, convolution_test.cc
#pragma once

#include <cstddef>

#include "absl/types/span.h"
#include "engine/backend/backend.h"

namespace bst {

class ReferenceSequence : public SsmWeights {
 public:
  using SsmWeights::SsmWeights;

  // See Backend::Ssm.
  virtual void Run(TensorView u, absl::Span<const Row> rows, PoolView state,
                   TensorView y) const = 0;
  // See Backend::SsmStateBytes.
  virtual size_t state_bytes() const = 0;
};

}  // namespace bst
