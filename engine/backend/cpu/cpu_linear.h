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

  size_t bytes() const override { return packed_.bytes(); }

 private:
  CpuLinear(int in, int out, DType type) : LinearWeights(in, out), type_(type) {}
  int num_panels() const { return (out_features() + kPanelOutputs - 1) / kPanelOutputs; }

  DType type_;
  Buffer packed_;
};

}  // namespace bst
