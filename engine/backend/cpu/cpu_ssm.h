// The diagonal state-space scan of the CPU backend.
//
// A recurrence, not a convolution: sixteen features in the lanes, tokens one after the other,
// feature groups over the threads. With N = 16 a token and feature cost 80 operations where the
// linear layers of a BST layer cost 12 D or more, so the scan is a few per cent of a prompt; in
// exchange prompt and decode are one piece of arithmetic, and the state is handed over by lying in
// the slot.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/backend/backend.h"
#include "engine/backend/cpu/cpu_context.h"

namespace bst {

class CpuSsm : public SsmWeights {
 public:
  // See Backend::PackSsm.
  static absl::StatusOr<std::unique_ptr<CpuSsm>> Pack(const SsmParameters& parameters);

  // See Backend::Ssm.
  void Run(CpuContext& context, TensorView u, absl::Span<const Row> rows, PoolView state,
           TensorView y) const;

  size_t state_bytes() const {
    return static_cast<size_t>(num_groups()) * static_cast<size_t>(GroupState()) * sizeof(float);
  }
  size_t bytes() const override { return packed_.bytes(); }

 private:
  CpuSsm(int features, int modes) : num_features_(features), num_modes_(modes) {}
  int num_groups() const { return (num_features_ + kLanes - 1) / kLanes; }
  int64_t GroupWeights() const { return int64_t{num_modes_} * 6 * kLanes; }
  int64_t GroupState() const { return int64_t{num_modes_} * 2 * kLanes; }

  int num_features_;
  int num_modes_;
  Buffer packed_;  // weights [groups][M][6][16], then d [groups][16]
};

}  // namespace bst
