// The recurrences of ssm.h on the CPU, diagonal (cpu_ssm.h) and DPLR (cpu_dplr.h): what they share,
// which is everything but the packing and the kernel of one feature group.
//
// A recurrence, not a convolution: sixteen features of one filter in the lanes, tokens one after
// the other, feature groups and rows over the threads. Prompt and decode are one piece of
// arithmetic, and the state is handed over by lying in the slot.
//
// Block ends  The inputs of an unfinished block wait in the slot, [W][D] after the state. The state
//             advances a whole block at a time: with one token per step, weights and state are then
//             streamed once per block rather than once per token.
// Layout      packed [groups] x { constants [K][16], modes [M][parts][16] };
//             state [groups][M][2][16]. Groups are counted filter by filter; a filter's last one is
//             padded with zeros.
//
// Threads   Engine thread only; tasks run on the threads of the CpuContext.
// Tested by tests/engine/backend/recurrence_test.cc
#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "engine/backend/cpu/cpu_sequence.h"

namespace bst {

class CpuRecurrence : public CpuSequence {
 public:
  void Run(CpuContext& context, TensorView u, absl::Span<const Row> rows, PoolView state,
           TensorView y) const override;
  size_t state_bytes() const override;
  size_t bytes() const override { return packed_.bytes(); }

 protected:
  using Kernel = void (*)(const RecurrenceTask& task);

  // `constants` and `parts`: numbers per feature and per mode that the kernel reads.
  CpuRecurrence(const SsmSpec& spec, int64_t modes, int constants, int parts, Kernel kernel);

  // Allocates the packed weights, all zero.
  absl::Status Allocate();
  // Where the kernel finds a number of feature c D + i. REQUIRES: Allocate succeeded.
  float& Constant(int64_t feature, int index);
  float& ModePart(int64_t feature, int64_t mode, int part);

 private:
  int num_groups() const { return spec().num_filters * groups_per_filter_; }
  int64_t GroupWeights() const { return (constants_ + modes_ * parts_) * kLanes; }
  int64_t GroupState() const { return modes_ * 2 * kLanes; }
  float* packed() const { return static_cast<float*>(packed_.data()); }
  float* Lane(int64_t feature);

  void RunTokens(CpuContext& context, TensorView u, absl::Span<const Row> rows, PoolView state,
                 TensorView y) const;
  void RunBlocks(CpuContext& context, TensorView u, absl::Span<const Row> rows, PoolView state,
                 TensorView y) const;
  // A group's weights and state; inputs and outputs are the caller's to set.
  RecurrenceTask Task(int group, float* slot) const;

  int64_t modes_;
  int constants_, parts_;
  int groups_per_filter_;
  Kernel kernel_;
  Buffer packed_;
};

}  // namespace bst
