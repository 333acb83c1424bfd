// libbst_cuda.so over the emulated device, for the server's end-to-end test: the backend's own
// entry with panels of cuBLAS that suit small models.
#include "engine/backend/cuda/cuda_plugin.h"

const bst::CudaPlugin* bst_cuda_plugin() {
  static constexpr bst::CudaPlugin kPlugin = {
      .build_id = BST_CUDA_BUILD_ID, .make = [](const bst::CudaOptions& options) {
        bst::CudaOptions small = options;
        small.panel_rows = {24};
        small.product_seconds = bst::CudaOptions::kUnlimited;
        return bst::MakeCudaBackend(small);
      }};
  return &kPlugin;
}
