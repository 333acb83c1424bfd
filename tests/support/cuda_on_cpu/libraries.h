// What a test can make of the emulated device, and of what stands in for its libraries
// (engine/backend/cuda/blas.h, fft.h).
//
// Threads   One.
// Tested by tests/engine/backend/cuda/linear_test.cc, convolution_forms_test.cc, step_graph_test.cc
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

#include "engine/backend/cuda/runtime.h"

namespace bst::cuda_on_cpu {

// In which order several streams' work runs, from now on.
void SetStreamOrder(uint32_t seed);
// LaunchGraph calls of this process so far that enqueued something.
int NumGraphLaunches();
// Kernels enqueued one by one: neither as part of a graph nor while one is captured.
int NumSingleKernels();

// kAtLaunch: what was captured is not launched.
enum class CaptureFails { kNever, kAtBegin, kAtEnd, kAtLaunch };
void SetCaptureFails(CaptureFails fails);

// Kernels cannot be prepared, as where the driver does not know their code.
void SetKernelsUnknown(bool unknown);

// Allocations of more than that fail, on the device and of pinned memory.
void SetLargestAllocation(size_t bytes);
// What streams are given is thrown away, so that a test can count what the backend's side does.
void SetDiscards(bool discards);

// Runs when the stream does, among its kernels.
void EnqueueOnHost(cuda::Stream& stream, std::function<void()> task);

enum class BlasKind {
  kAsTheKernels,  // proposes an algorithm that adds sums up in two halves, then one in order
  kOtherBits,     // the first of the two alone
  kFails,         // proposes one that does not start, then one in order whose ReLU makes NaN 0
  kMissing,
};
void SetBlas(BlasKind kind);
// RunProduct calls of this process so far.
int NumProducts();

void SetFftMissing(bool missing);
// Transform calls of this process so far.
int NumTransforms();
// That are there.
int NumFftPlans();

}  // namespace bst::cuda_on_cpu
