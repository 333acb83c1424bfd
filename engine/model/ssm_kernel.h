// From a layer's `ssm.*` tensors to packed weights: the kernels s4d, dss, s4 and explicit are one
// operator of the backend each, s5 is matrices around the shared scan.
//
// Threads   Pure functions.
// Errors    kFailedPrecondition, naming tensor and element, if a number derived from it is not
//           finite as float32; those of the backend's Pack functions.
// Tested by tests/engine/model/ssm_discretization_test.cc
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "engine/backend/backend.h"
#include "engine/checkpoint/checkpoint.h"
#include "engine/model/ssm_discretization.h"

namespace bst {

// All filters of layer `layer`, with the model's window as the block.
// REQUIRES: the layer has a kernel other than s5.
absl::StatusOr<std::unique_ptr<SsmWeights>> PackSsmKernel(const Checkpoint& checkpoint, int layer,
                                                          Backend& backend, SsmOutputs outputs);

// The same from tensors that need not be those of a checkpoint.
absl::StatusOr<std::unique_ptr<SsmWeights>> PackSsmKernel(const SsmTensors& tensors,
                                                          const SsmConfig& config,
                                                          const SsmSpec& spec, Backend& backend);

}  // namespace bst
