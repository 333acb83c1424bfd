// The emulated GPU: runs a kernel block by block, every CUDA thread of a block as a fiber of its
// own, all on the calling thread.
//
// What it reports, with the kernel's name, as the error of the launch:
//   - more threads, blocks in y and z or shared memory than devices take
//   - a barrier or a warp operation that some threads do not reach, or reach elsewhere in the
//   source
//   - a write beyond a shared array (guard zones, checked when the block ends)
//   - a copy to shared memory that is not aligned, or that its thread has not waited for
// What makes other bugs visible:
//   - shared arrays begin as NaN; device memory too (runtime.cc)
//   - the order in which threads and blocks run can be reversed and shuffled: a result that depends
//     on it is a race
//   - built for AddressSanitizer the guard zones are poisoned and fibers' stacks are known to it;
//     built for ThreadSanitizer every fiber is a thread that meets the others at barriers only.
//     Fiber i of all blocks of a launch is one thread to it: races between those stay unseen.
// Unlike a GPU, threads of a warp do not advance together, memory is sequentially consistent and a
// launch's blocks never overlap.
//
// Threads   One: as the runtime that stands on it.
// Tested by tests/support/cuda_on_cpu/emulator_test.cc
#pragma once

#include <cstdint>
#include <functional>
#include <set>
#include <string>

#include "engine/backend/cuda/launch.h"

namespace bst::cuda_on_cpu {

enum class Order { kForward, kReversed, kShuffled };

// Of threads and blocks, from the next launch on.
void SetOrder(Order order, uint32_t seed = 1);

// From the next launch on; without it 48 KB. Returns `bytes`, or what a block can have.
int AllowShared(const char* kernel, int bytes);
// That AllowShared gives at most, from now on: as on a smaller device.
void SetMostShared(int bytes);

// Runs `thread` once for every thread of every block. Returns what went wrong; empty: nothing.
std::string RunKernel(const char* kernel, const cuda::LaunchShape& shape,
                      const std::function<void()>& thread);

// Names of all kernels that ran in this process, and under every order they ran in, as
// "bst_x forward".
std::set<std::string> LaunchedKernels();

}  // namespace bst::cuda_on_cpu
