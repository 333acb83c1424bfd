#include "engine/backend/cuda/cuda_plugin.h"

#include <dlfcn.h>

#include "absl/strings/str_cat.h"

namespace bst {

absl::StatusOr<std::unique_ptr<Backend>> OpenCudaBackend(const CudaOptions& options,
                                                         const std::string& file) {
  void* const handle = ::dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
  void* const symbol = handle == nullptr ? nullptr : ::dlsym(handle, kCudaPluginSymbol);
  if (symbol == nullptr)
    return absl::UnavailableError(absl::StrCat("no CUDA engine: ", ::dlerror()));
  const CudaPlugin* const plugin = reinterpret_cast<decltype(&bst_cuda_plugin)>(symbol)();
  if (std::string(plugin->build_id) != BST_CUDA_BUILD_ID) {
    return absl::UnavailableError(absl::StrCat("no CUDA engine: ", file, " is of build ",
                                               plugin->build_id, ", this program of ",
                                               BST_CUDA_BUILD_ID));
  }
  return plugin->make(options);
}

}  // namespace bst
