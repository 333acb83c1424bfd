#include "tests/support/cuda_on_cpu/planted_kernels.h"

namespace bst::cuda {
namespace {

constexpr int kThreads = 64;

BST_DEVICE float& Own(const PlantedTask& task) { return task.data[BlockX() * task.n + ThreadX()]; }

}  // namespace

BST_KERNEL void bst_test_indices(PlantedTask task) {
  Own(task) += static_cast<float>(1000 * BlockX() + ThreadX());
}

BST_KERNEL void bst_test_reverse(PlantedTask task) {
  BST_SHARED(float, values, kThreads);
  values[ThreadX()] = Own(task);
  SyncThreads();
  Own(task) = values[kThreads - 1 - ThreadX()];
}

BST_KERNEL void bst_test_warp(PlantedTask task) {
  const uint32_t odd = Ballot(ThreadX() % 2 == 1);
  Own(task) = SumLanes(Own(task), kWarp) + static_cast<float>(odd % 1024);
}

BST_KERNEL void bst_test_uninitialised(PlantedTask task) {
  BST_SHARED(float, values, kThreads);
  Own(task) = values[ThreadX()];
}

BST_KERNEL void bst_planted_divergent_barrier(PlantedTask task) {
  if (ThreadX() >= 40) return;
  SyncThreads();
  Own(task) = 0;
}

BST_KERNEL void bst_planted_two_barriers(PlantedTask task) {
  if (ThreadX() >= 40) {
    SyncThreads();
  } else {
    SyncThreads();
  }
  Own(task) = 0;
}

BST_KERNEL void bst_planted_divergent_warp(PlantedTask task) {
  if (ThreadX() % 2 == 0) Own(task) = ShuffleXor(Own(task), 1);
}

BST_KERNEL void bst_planted_race(PlantedTask task) {
  BST_SHARED(float, values, kThreads);
  values[ThreadX()] = Own(task);
  Own(task) = values[kThreads - 1 - ThreadX()];
}

BST_KERNEL void bst_planted_block_race(PlantedTask task) {
  if (ThreadX() == 33 * BlockX()) task.data[0] += 1.0f;
}

BST_KERNEL void bst_planted_shared_overrun(PlantedTask task) {
  BST_SHARED(float, values, kThreads);
  values[ThreadX() + 1] = Own(task);
}

BST_KERNEL void bst_planted_shared_overread(PlantedTask task) {
  BST_SHARED(float, values, kThreads);
  values[ThreadX()] = Own(task);
  SyncThreads();
  Own(task) = values[ThreadX() + 1];
}

BST_KERNEL void bst_planted_global_overrun(PlantedTask task) {
  task.data[BlockX() * task.n + ThreadX() + 1] = 0;
}

}  // namespace bst::cuda
