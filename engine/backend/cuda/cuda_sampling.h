// The host's side of sampling.cu: what each draw needs goes through the arena, results come back
// through it, in the one copy of a step.
//
// Memory    Scratch for the draws of one call is reserved at load; host buffers stay.
// Threads   Engine thread only.
// Tested by tests/engine/backend/cuda/sampling_test.cc
#pragma once

#include <cstddef>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "engine/backend/cuda/cuda_device.h"
#include "engine/backend/row.h"
#include "engine/backend/sampling.h"
#include "engine/tensor/tensor_view.h"

namespace bst {

class CudaSampling {
 public:
  explicit CudaSampling(CudaDevice& device) : device_(device) {}

  // These as in Backend.
  absl::Status Reserve(int vocab_size, int max_draws);
  void SetState(PoolView state, SlotId slot, absl::Span<const TokenId> prompt,
                absl::Span<const TokenBias> biases);
  void Draw(TensorView logits, absl::Span<const TokenDraw> draws, PoolView state,
            absl::Span<DrawResult> results, absl::Span<TokenLogit> top);

 private:
  CudaDevice& device_;
  std::vector<std::byte> staged_, read_;
};

}  // namespace bst
