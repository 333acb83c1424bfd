#include "tests/support/cuda_on_cpu/planted_kernels.h"

#include "engine/backend/cuda/mma.cuh"

namespace bst::cuda {
namespace {

constexpr int kThreads = 64;

BST_DEVICE float& Own(const PlantedTask& task) { return task.data[BlockX() * task.n + ThreadX()]; }

}  // namespace

BST_KERNEL void bst_test_indices(PlantedTask task) {
  Own(task) += static_cast<float>(1000 * BlockX() + ThreadX());
}

BST_KERNEL void bst_test_rows(PlantedTask task) {
  if (ThreadX() == 0 && BlockY() < task.n) task.data[BlockY()] += 1.0f;
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

// Two groups of copies, of which the first has landed where the kernel waits for all but one.
BST_KERNEL void bst_test_copies(PlantedTask task) {
  BST_DYNAMIC_SHARED(float, values);
  StartCopy<4>(values + ThreadX(), &Own(task), ThreadX() % 2 == 0 ? 4 : 0);
  CommitCopies();
  if (ThreadX() % 4 == 0) StartCopy<16>(values + kThreads + ThreadX(), &Own(task), 12);
  CommitCopies();
  WaitForCopies(1);
  SyncThreads();
  const float first = values[kThreads - 1 - ThreadX()];
  WaitForCopies(0);
  SyncThreads();
  Own(task) = first + 1000 * values[kThreads + ThreadX()];
}

// Rows and columns of the elements a0 .. a7, b0 .. b3, c0 .. c3 as the PTX manual gives them for
// mma.m16n8k16 with .bf16: not taken from mma.cuh, which is under test.
BST_KERNEL void bst_test_fragments(PlantedTask task) {
  const int lane = ThreadX() % kWarp, group = lane >> 2, in_group = lane % 4;
  FragmentA a;
  FragmentB b;
  FragmentC c = {};
  float as[8], bs[4];
  for (int i = 0; i < 8; ++i) {
    const int row = (0 <= i && i < 2) || (4 <= i && i < 6) ? group : group + 8;
    const int column = i < 4 ? in_group * 2 + (i & 1) : in_group * 2 + (i & 1) + 8;
    as[i] = static_cast<float>(row + 16 * column);
  }
  for (int i = 0; i < 4; ++i) {
    const int row = i < 2 ? in_group * 2 + (i & 1) : in_group * 2 + (i & 1) + 8;
    bs[i] = static_cast<float>(row - 2 * group);
  }
  for (int i = 0; i < 4; ++i) a.words[i] = PackBf16(as[2 * i], as[2 * i + 1]);
  for (int i = 0; i < 2; ++i) b.words[i] = PackBf16(bs[2 * i], bs[2 * i + 1]);
  MultiplyAdd(a, b, c);
  const int i = 2 * BlockX() + ThreadX() / kWarp;  // which of its four results a warp writes
  const int row = i < 2 ? group : group + 8, column = in_group * 2 + (i & 1);
  task.data[row * 8 + column] = c.values[i];
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

BST_KERNEL void bst_planted_early_read(PlantedTask task) {
  BST_DYNAMIC_SHARED(float, values);
  StartCopy<4>(values + ThreadX(), &Own(task), 4);
  CommitCopies();
  WaitForCopies(1);
  Own(task) = values[ThreadX()];
  WaitForCopies(0);
}

BST_KERNEL void bst_planted_forgotten_copy(PlantedTask task) {
  BST_DYNAMIC_SHARED(float, values);
  StartCopy<4>(values + ThreadX(), &Own(task), 4);
  CommitCopies();
}

BST_KERNEL void bst_planted_misaligned_copy(PlantedTask task) {
  BST_DYNAMIC_SHARED(float, values);
  if (ThreadX() == 1) StartCopy<16>(values + ThreadX(), &Own(task), 16);
  CommitCopies();
  WaitForCopies(0);
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
