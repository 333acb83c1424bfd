// The plugin's one entry.
#include "engine/backend/cuda/cuda_backend.h"
#include "engine/backend/cuda/cuda_plugin.h"

const bst::CudaPlugin* bst_cuda_plugin() {
  static constexpr bst::CudaPlugin kPlugin = {.build_id = BST_CUDA_BUILD_ID,
                                              .make = bst::MakeCudaBackend};
  return &kPlugin;
}
