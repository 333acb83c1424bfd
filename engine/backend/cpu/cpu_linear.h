// Linear layers of the CPU backend: weights packed into panels of 32 outputs (kernels.h).
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/backend/backend.h"
#include "engine/backend/cpu/cpu_context.h"

namespace bst {

class CpuLinear : public LinearWeights {
 public:
  // See Backend::PackLinear.
  static absl::StatusOr<std::unique_ptr<CpuLinear>> Pack(CpuContext& context,
                                                         absl::Span<const TensorView> parts,
                                                         DType type);

  // See Backend::Linear.
  void Run(CpuContext& context, TensorView x, const LinearOptions& options, TensorView out) const;

  size_t bytes() const override { return packed_.bytes() + channels_.bytes(); }

 private:
  // What the kernels take for inputs.
  enum class Inputs { kAsTheyAre, kRounded, kBf16, kInt8 };

  CpuLinear(int in, int out, DType type, bool packs_bf16);
  int num_panels() const { return (out_features() + kPanelOutputs - 1) / kPanelOutputs; }
  void PackOutput(int64_t output, absl::Span<const float> row);
  // Inputs of up to a block of rows, into the context's shared memory: QuantizedRow [rows], then
  // the rows.
  void PrepareInputs(CpuContext& context, TensorView x) const;
  void RunBlock(CpuContext& context, TensorView x, const LinearOptions& options,
                TensorView out) const;

  DType type_;
  Inputs inputs_;
  int64_t padded_in_;      // of the weights, and of inputs other than float32
  int64_t row_bytes_ = 0;  // of prepared inputs
  Buffer packed_;
  Buffer channels_;  // INT8: scales [panels * 32], then the sums of each output's weights
};

}  // namespace bst
