// The CUDA engine as a plugin: libbst_cuda.so is opened when somebody asks for it, so that the
// server needs no CUDA library to start.
//
// The two sides pass C++ objects to each other, so they must come from one build: the build id is a
// hash of the headers between them and of the compiler, and is compared before anything else.
//
// Ownership   A plugin that was opened stays open.
// Errors      kUnavailable: "no CUDA engine: ..." (no plugin, or of another build),
//             "no CUDA driver: ...", "no CUDA device: ...".
// Threads     Free functions, thread-safe.
// Tested by   tests/engine/backend/cuda/plugin_test.cc
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "engine/backend/backend.h"
#include "engine/backend/cuda/cuda_backend.h"

namespace bst {

struct CudaPlugin {
  const char* build_id;  // first, and readable whatever follows
  absl::StatusOr<std::unique_ptr<Backend>> (*make)(const CudaOptions& options);
};

inline constexpr char kCudaPluginFile[] = "libbst_cuda.so";
inline constexpr char kCudaPluginSymbol[] = "bst_cuda_plugin";

// Found by the run path of the program, like the other libraries of ours.
absl::StatusOr<std::unique_ptr<Backend>> OpenCudaBackend(const CudaOptions& options = {},
                                                         const std::string& file = kCudaPluginFile);

}  // namespace bst

// What the plugin exports.
extern "C" __attribute__((visibility("default"))) const bst::CudaPlugin* bst_cuda_plugin();
