// The CUDA backend: the operator contract on one GPU, in the kernels of this folder. It stands on
// runtime.h and launch.h alone, so it runs on the emulated device just as on a real one.
//
// Operators are enqueued on one stream. What they need from the host (rows, tokens, places) goes
// through a pinned arena that Sync() empties.
//
// Memory    A step like one before allocates neither device nor pinned memory. One that finds the
//           arena too small enlarges it, or waits where there is no memory left (cuda_device.h).
// Threads   Engine thread only.
// Errors    MakeCudaBackend: kUnavailable, with the reason ("no CUDA driver: ..."), or
//           kResourceExhausted. Sync: the first failure of a copy or kernel, by name.
// Tested by tests/engine/backend, tests/engine/model (emulated), tests/engine/backend/cuda
#pragma once

#include <cstddef>
#include <limits>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/backend/backend.h"

namespace bst {

struct CudaOptions {
  // As product_seconds: until all algorithms were tried.
  static constexpr double kUnlimited = std::numeric_limits<double>::infinity();

  // Every operator waits until it is done, so that its operands may lie in the host's pageable
  // memory where the device can address that, and die at once; and an error comes at its operator.
  bool blocking = false;
  // Numbers of rows, descending, that linear layers may give to cuBLAS, where its bits are those of
  // the kernels (cuda_linear.h). Empty: none. More of them make packing weights slower.
  std::vector<int> panel_rows = {2048, 256};
  // Seconds in which loading looks for cuBLAS's algorithm for each number of them and each shape of
  // weights, first by measuring, then by comparing bits. Where none is found the kernels stay.
  double product_seconds = 2.0;
  // Steps of at most so many tokens run as CUDA graphs when they come again (step_graphs.h); not
  // with `blocking`. Longer ones start while the host still enqueues them.
  int graph_tokens = 256;
  // States of chunks that the prompts of a step have at once, at least 2; those that need more go
  // on in further rounds (cuda_sequence.cc).
  int most_chunk_places = std::numeric_limits<int>::max();
  // Of host and of device memory, taken at once, for what operators need of the host in a step:
  // attention to F32 rings takes most, 56 bytes for each token and layer.
  size_t arena_bytes = size_t{16} << 20;
};

absl::StatusOr<std::unique_ptr<Backend>> MakeCudaBackend(const CudaOptions& options = {});

}  // namespace bst
