// libbst_cuda.so as the server opens it: the real one where it was built, and files that are not
// it.
#include <dlfcn.h>

#include <string>

#include "engine/backend/cuda/cuda_plugin.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace bst {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::StartsWith;

std::string Problem(const std::string& file) {
  const auto backend = OpenCudaBackend({}, file);
  EXPECT_EQ(backend.status().code(), absl::StatusCode::kUnavailable) << backend.status();
  return std::string(backend.status().message());
}

TEST(CudaPluginTest, AMissingPluginIsNamed) {
  EXPECT_THAT(Problem("libbst_absent.so"),
              AllOf(StartsWith("no CUDA engine: "), HasSubstr("libbst_absent.so")));
}

TEST(CudaPluginTest, AnotherLibraryIsNoPlugin) {
  EXPECT_THAT(Problem("libm.so.6"),
              AllOf(StartsWith("no CUDA engine: "), HasSubstr("bst_cuda_plugin")));
}

TEST(CudaPluginTest, APluginOfAnotherBuildIsRefused) {
  EXPECT_THAT(Problem(BST_FOREIGN_PLUGIN),
              AllOf(StartsWith("no CUDA engine: "), HasSubstr("is of build another-build"),
                    HasSubstr("this program of " BST_CUDA_BUILD_ID)));
}

#ifdef BST_HAVE_CUDA

// The build id fits, cudart starts, and what is missing has a name.
TEST(CudaPluginTest, ThePluginLoadsAndReportsAMissingDriver) {
  void* const driver = ::dlopen("libcuda.so.1", RTLD_NOW);
  const auto backend = OpenCudaBackend();
  if (driver == nullptr) {
    EXPECT_EQ(backend.status().code(), absl::StatusCode::kUnavailable);
    EXPECT_THAT(std::string(backend.status().message()), StartsWith("no CUDA driver: "));
  } else if (backend.ok()) {
    EXPECT_THAT((*backend)->name(), StartsWith("cuda ("));
  } else {
    EXPECT_THAT(std::string(backend.status().message()), HasSubstr("CUDA device"));
  }
}

#endif

}  // namespace
}  // namespace bst
