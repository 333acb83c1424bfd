// The emulated device's libraries: what stands in for cuBLAS (engine/backend/cuda/blas.h) and what
// a test can make of it.
//
// Threads   One.
// Tested by tests/engine/backend/cuda/linear_test.cc, convolution_forms_test.cc
#pragma once

#include <cstdint>
#include <functional>

#include "engine/backend/cuda/runtime.h"

namespace bst::cuda_on_cpu {

// In which order several streams' work runs, from now on.
void SetStreamOrder(uint32_t seed);
// LaunchGraph calls of this process so far.
int NumGraphLaunches();
// Kernels enqueued one by one: neither as part of a graph nor while one is captured.
int NumSingleKernels();

enum class CaptureFails { kNever, kAtBegin, kAtEnd };
void SetCaptureFails(CaptureFails fails);

// Runs when the stream does, among its kernels.
void EnqueueOnHost(cuda::Stream& stream, std::function<void()> task);

enum class BlasKind {
  kAsTheKernels,  // proposes an algorithm that adds sums up in two halves, then one in order
  kOtherBits,     // the first of the two alone
  kFails,         // proposes one that does not start, then one in order
  kMissing,
};
void SetBlas(BlasKind kind);
// RunProduct calls of this process so far.
int NumProducts();

void SetFftMissing(bool missing);
// ForwardFft and InverseFft calls of this process so far.
int NumTransforms();

}  // namespace bst::cuda_on_cpu
