#include "engine/model/ssm_kernel.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "engine/base/annotate.h"
#include "engine/base/status_macros.h"

namespace bst {
namespace {

absl::StatusOr<std::unique_ptr<SsmWeights>> PackExplicit(const SsmTensors& tensors,
                                                         const SsmSpec& spec, Backend& backend) {
  const TensorView filter = tensors.at("filter"), d = tensors.at("d");  // [C, D, T], [C, D], F32
  const int64_t features = spec.num_features(), num_taps = filter.dim(2);
  for (int64_t f = 0; f < features; ++f) {
    // Backends may count d as part of the first tap.
    if (std::isfinite(filter.as<float>()[f * num_taps] + d.as<float>()[f])) continue;
    return absl::FailedPreconditionError(
        absl::StrCat(tensors.name(), ".d[", f / spec.num_inputs, ", ", f % spec.num_inputs,
                     "] and the filter's first tap add up to a number beyond float32"));
  }
  return backend.PackConvolution(
      {.spec = spec,
       .taps = TensorView(filter.data(), DType::kF32, {features, num_taps}),
       .d = TensorView(d.data(), DType::kF32, Shape{features})});
}

// What a backend refuses, with the name of the layer, which it does not know.
absl::StatusOr<std::unique_ptr<SsmWeights>> WithName(
    const SsmTensors& tensors, absl::StatusOr<std::unique_ptr<SsmWeights>> weights) {
  if (!absl::IsFailedPrecondition(weights.status())) return weights;
  return Annotate(weights.status(), tensors.name());
}

}  // namespace

absl::StatusOr<std::unique_ptr<SsmWeights>> PackSsmKernel(const SsmTensors& tensors,
                                                          const SsmConfig& config,
                                                          const SsmSpec& spec, Backend& backend) {
  switch (config.kernel) {
    case SsmKernel::kExplicit:
      return PackExplicit(tensors, spec, backend);
    case SsmKernel::kS4: {
      BST_ASSIGN_OR_RETURN(DiscreteDplr dplr, DiscreteDplr::Create(tensors, spec));
      return WithName(tensors, backend.PackDplr(dplr.parameters()));
    }
    case SsmKernel::kS4d:
    case SsmKernel::kDss: {
      BST_ASSIGN_OR_RETURN(DiscreteSsm ssm, DiscreteSsm::Create(tensors, config, spec));
      return WithName(tensors, backend.PackSsm(ssm.parameters()));
    }
    case SsmKernel::kS5:
      break;
  }
  BST_CHECK(false, tensors.name(), " is no kernel of one operator");
}

absl::StatusOr<std::unique_ptr<SsmWeights>> PackSsmKernel(const Checkpoint& checkpoint, int layer,
                                                          Backend& backend, SsmOutputs outputs) {
  const ModelConfig& config = checkpoint.config();
  const LayerConfig& layer_config = config.layers[static_cast<size_t>(layer)];
  return PackSsmKernel(SsmTensors::OfLayer(checkpoint, layer), layer_config.ssm,
                       {.num_inputs = config.ssm_inputs(layer_config),
                        .num_filters = config.num_filters(layer_config),
                        .outputs = outputs,
                        .block = config.window},
                       backend);
}

}  // namespace bst
