// What every operator of the CPU backend works with: kernels, threads and scratch memory, each
// thread's own and all threads'.
//
// Threads   Engine thread only; a task has the scratch of its own thread.
// Tested by tests/engine/backend/agreement_test.cc
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include "absl/status/status.h"
#include "engine/backend/cpu/kernels.h"
#include "engine/backend/cpu/thread_pool.h"
#include "engine/base/status_macros.h"
#include "engine/tensor/buffer.h"

namespace bst {

// Tasks that an operator makes for each thread where there is enough to share out, so that threads
// finish together.
inline constexpr int kTasksOfThread = 4;

class CpuContext {
 public:
  CpuContext(const CpuKernels& kernels, int num_threads)
      : kernels_(kernels), pool_(num_threads), scratch_(static_cast<size_t>(num_threads)) {}

  const CpuKernels& kernels() const { return kernels_; }
  ThreadPool& pool() { return pool_; }

  // At load: no operator will ask for more scratch than was reserved for its weights.
  absl::Status ReserveScratch(size_t bytes) {
    for (Buffer& buffer : scratch_) {
      if (buffer.bytes() >= bytes) continue;
      BST_ASSIGN_OR_RETURN(buffer, Buffer::Allocate(bytes));
    }
    return absl::OkStatus();
  }
  // Likewise of memory that the tasks of one operator share.
  absl::Status ReserveShared(size_t bytes) {
    if (shared_.bytes() >= bytes) return absl::OkStatus();
    BST_ASSIGN_OR_RETURN(shared_, Buffer::Allocate(bytes));
    return absl::OkStatus();
  }
  size_t scratch_bytes() const {  // of each thread
    return scratch_[0].bytes();
  }
  std::byte* shared() { return static_cast<std::byte*>(shared_.data()); }
  float* scratch(int thread) {
    return static_cast<float*>(scratch_[static_cast<size_t>(thread)].data());
  }

 private:
  const CpuKernels& kernels_;
  ThreadPool pool_;
  std::vector<Buffer> scratch_;  // one per thread
  Buffer shared_;
};

}  // namespace bst
