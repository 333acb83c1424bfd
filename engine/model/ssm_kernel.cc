#include "engine/model/ssm_kernel.h"

#include "engine/base/status_macros.h"
#include "engine/tensor/host_convert.h"

namespace bst {
namespace {

absl::StatusOr<std::unique_ptr<SsmWeights>> PackExplicit(const SsmTensors& tensors,
                                                         const SsmSpec& spec, Backend& backend) {
  const TensorView filter = tensors.at("filter");  // [C, D, T]
  std::vector<float> taps = ToFloats(filter), d = ToFloats(tensors.at("d"));
  const int64_t features = spec.num_features();
  return backend.PackConvolution(
      {.spec = spec,
       .taps = TensorView(taps.data(), DType::kF32, {features, filter.dim(2)}),
       .d = TensorView(d.data(), DType::kF32, Shape{features})});
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
      return backend.PackDplr(dplr.parameters());
    }
    case SsmKernel::kS4d:
    case SsmKernel::kDss: {
      BST_ASSIGN_OR_RETURN(DiscreteSsm ssm, DiscreteSsm::Create(tensors, config, spec));
      return backend.PackSsm(ssm.parameters());
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
