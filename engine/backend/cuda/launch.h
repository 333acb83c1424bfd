// How kernels are started: BST_LAUNCH(bst_x, shape, stream, task).
//
// A kernel takes one struct by value. Nothing is reported here: what goes wrong sticks to the
// stream and is told, with the kernel's name, by Synchronize (runtime.h).
// Threads   The thread that uses the stream.
#pragma once

#include <cstddef>

namespace bst::cuda {

class Stream;

struct LaunchShape {
  int blocks_x = 1;  // a launch without blocks is none
  int blocks_y = 1;
  int threads = 256;  // whole warps
};

}  // namespace bst::cuda

#define BST_LAUNCH(kernel, shape, stream, task) \
  ::bst::cuda::Launch(kernel, #kernel, shape, stream, task)

#if defined(__CUDACC__) || defined(BST_CUDA_RUNTIME)

namespace bst::cuda {

// `name` for the message if it fails; `arguments` are copied.
void LaunchRaw(const void* kernel, const char* name, const LaunchShape& shape, Stream& stream,
               void** arguments);

template <typename Task>
void Launch(void (*kernel)(Task), const char* name, const LaunchShape& shape, Stream& stream,
            Task task) {
  void* arguments[] = {&task};
  LaunchRaw(reinterpret_cast<const void*>(kernel), name, shape, stream, arguments);
}

}  // namespace bst::cuda

#else
#include <cuda_on_cpu/launch.h>
#endif
