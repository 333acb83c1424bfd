// Kernels for emulator_test: right ones (bst_test_*), and ones with a bug each (bst_planted_*).
#pragma once

#include "engine/backend/cuda/device.h"

namespace bst::cuda {

struct PlantedTask {
  float* data;  // [blocks, n]
  int n;        // threads of a block
};

BST_KERNEL void bst_test_indices(PlantedTask task);        // += 1000 block + thread
BST_KERNEL void bst_test_rows(PlantedTask task);           // data[BlockY()] += 1, up to n
BST_KERNEL void bst_test_reverse(PlantedTask task);        // through shared memory
BST_KERNEL void bst_test_warp(PlantedTask task);           // the warp's sum, and a ballot
BST_KERNEL void bst_test_uninitialised(PlantedTask task);  // what shared memory begins as
// Two blocks of 64: data becomes the [16, 8] product of A = i + 16 k and B = k - 2 j.
BST_KERNEL void bst_test_fragments(PlantedTask task);
// 512 bytes of shared memory: data[63 - i] for even 63 - i, plus 1000 data[i] but for every fourth.
BST_KERNEL void bst_test_copies(PlantedTask task);

BST_KERNEL void bst_planted_divergent_barrier(PlantedTask task);
BST_KERNEL void bst_planted_two_barriers(PlantedTask task);
BST_KERNEL void bst_planted_divergent_warp(PlantedTask task);
BST_KERNEL void bst_planted_race(PlantedTask task);        // bst_test_reverse without its barrier
BST_KERNEL void bst_planted_early_read(PlantedTask task);  // of a copy that it has not waited for
BST_KERNEL void bst_planted_forgotten_copy(PlantedTask task);
BST_KERNEL void bst_planted_misaligned_copy(PlantedTask task);
// Thread 0 of each block adds to the same number; block 1's is thread 33.
BST_KERNEL void bst_planted_block_race(PlantedTask task);
BST_KERNEL void bst_planted_shared_overrun(PlantedTask task);
BST_KERNEL void bst_planted_shared_overread(PlantedTask task);
BST_KERNEL void bst_planted_global_overrun(PlantedTask task);

}  // namespace bst::cuda
