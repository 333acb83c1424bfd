// A plugin of another build: whoever calls its `make` has not looked at the build id.
#include <cstdlib>

#include "engine/backend/cuda/cuda_plugin.h"

const bst::CudaPlugin* bst_cuda_plugin() {
  static constexpr bst::CudaPlugin kPlugin = {
      .build_id = "another-build",
      .make = [](const bst::CudaOptions&) -> absl::StatusOr<std::unique_ptr<bst::Backend>> {
        std::abort();
      }};
  return &kPlugin;
}
