// What runtime.cc, blas.cc and fft.cc share of a stream over cudart.
#pragma once

#include <cuda_runtime_api.h>

#include "absl/status/status.h"

namespace bst::cuda {

class Stream {
 public:
  cudaStream_t handle = nullptr;
  absl::Status status;  // the first failure
};

}  // namespace bst::cuda
