// BST_LAUNCH (engine/backend/cuda/launch.h) on the emulated device.
#pragma once

#include <functional>

namespace bst::cuda {

void Enqueue(Stream& stream, const char* kernel, const LaunchShape& shape,
             std::function<void()> thread);

template <typename Task>
void LaunchNow(void (*kernel)(Task), const char* name, const LaunchShape& shape, Stream& stream,
               const Task& task) {
  Enqueue(stream, name, shape, [kernel, task] { kernel(task); });
}

}  // namespace bst::cuda
