// What runtime.cc, blas.cc and fft.cc share of a stream over cudart.
//
// Threads   The thread that uses the stream.
// Tested by tests/support/cuda_on_cpu/emulator_test.cc, tests/engine/backend/cuda
#pragma once

#include <cuda_runtime_api.h>

#include "absl/status/status.h"
#include "engine/backend/cuda/call_list.h"

namespace bst::cuda {

class Stream {
 public:
  cudaStream_t handle = nullptr;
  absl::Status status;            // the first failure
  CallList* recording = nullptr;  // where calls go instead
};

}  // namespace bst::cuda
