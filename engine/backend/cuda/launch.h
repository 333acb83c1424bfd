// How kernels are started: BST_LAUNCH(bst_x, shape, stream, task).
//
// A kernel takes one struct by value. Nothing is reported here: what goes wrong sticks to the
// stream and is told, with the kernel's name, by Synchronize (runtime.h).
// BST_ALLOW_SHARED(bst_x, bytes, stream), at load: the kernel's launches may have so many bytes of
// dynamic shared memory, or what the device has for a block, if that is less; returns it. Without
// this they may have 48 KB.
// Threads   The thread that uses the stream.
// Tested by tests/engine/backend/cuda
#pragma once

#include "engine/backend/cuda/call_list.h"

namespace bst::cuda {

struct LaunchShape {
  int blocks_x = 1;  // at least one
  // Likewise. Of more than kMostGridRows some follow that are not asked for, fewer than there are
  // layers (GridOf): a kernel that may get so many returns from those.
  int blocks_y = 1;
  int threads = 256;     // whole warps
  int shared_bytes = 0;  // for BST_DYNAMIC_SHARED
};

// What devices take: up to 2^31 - 1 blocks in x, so many in y and so many in z. Rows of blocks that
// are more lie in layers, one behind the other.
constexpr int kMostGridRows = 65535;
struct Grid {
  int x, rows, layers;
};
constexpr Grid GridOf(const LaunchShape& shape) {
  const int layers = (shape.blocks_y - 1) / kMostGridRows + 1;
  return {shape.blocks_x, (shape.blocks_y - 1) / layers + 1, layers};
}

}  // namespace bst::cuda

#define BST_LAUNCH(kernel, shape, stream, task) \
  ::bst::cuda::Launch(kernel, #kernel, shape, stream, task)
#define BST_ALLOW_SHARED(kernel, bytes, stream) \
  ::bst::cuda::AllowShared(reinterpret_cast<const void*>(kernel), #kernel, bytes, stream)

namespace bst::cuda {

int AllowShared(const void* kernel, const char* name, int bytes, Stream& stream);

}  // namespace bst::cuda

#if defined(__CUDACC__) || defined(BST_CUDA_RUNTIME)

namespace bst::cuda {

// `name` for the message if it fails; `arguments` are copied.
void LaunchRaw(const void* kernel, const char* name, const LaunchShape& shape, Stream& stream,
               void** arguments);

template <typename Task>
void LaunchNow(void (*kernel)(Task), const char* name, const LaunchShape& shape, Stream& stream,
               Task task) {
  void* arguments[] = {&task};
  LaunchRaw(reinterpret_cast<const void*>(kernel), name, shape, stream, arguments);
}

}  // namespace bst::cuda

#else
#include <cuda_on_cpu/launch.h>
#endif

namespace bst::cuda {

template <typename Task>
struct KernelCall {
  void (*kernel)(Task);
  const char* name;
  LaunchShape shape;
  Task task;
};
template <typename Task>
void MakeLaunch(Stream& stream, const KernelCall<Task>& call) {
  LaunchNow(call.kernel, call.name, call.shape, stream, call.task);
}

template <typename Task>
void Launch(void (*kernel)(Task), const char* name, const LaunchShape& shape, Stream& stream,
            const Task& task) {
  CallOrKeep<MakeLaunch<Task>>(stream, KernelCall<Task>{kernel, name, shape, task});
}

}  // namespace bst::cuda
