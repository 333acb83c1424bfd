// What the forms of attention share: where keys lie, which of them a query sees.
//
// Threads   Runs on the device.
// Tested by tests/engine/backend/agreement_test.cc, context_attention_test.cc
#pragma once

#include "engine/backend/cuda/device.h"
#include "engine/backend/cuda/four_floats.cuh"
#include "engine/backend/cuda/kernels.h"

namespace bst::cuda {

// Where a key lies: row >= 0 of the cache, or ~row of the step's matrices.
constexpr int kZeroKey = INT32_MIN;

// The keys and values of one head.
template <typename T>
struct Keys {
  const T* k;  // the cache
  const T* v;
  int64_t stride;
  Matrix new_k, new_v;  // the step's

  BST_DEVICE float Key(int source, int c) const { return Get(k, new_k, source, c); }
  BST_DEVICE float Value(int source, int c) const { return Get(v, new_v, source, c); }

 private:
  BST_DEVICE float Get(const T* cache, const Matrix& fresh, int source, int c) const {
    if (source >= 0) return Load(cache[source * stride + c]);
    if (source == kZeroKey) return 0.0f;
    return Round<T>(fresh.data[~source * fresh.stride + c]);
  }
};

// Distances of the keys that a query at `position`, which is `place` mod the window, sees: nearest
// .. the result.
BST_DEVICE int Farthest(const AttentionTask& task, int64_t position, int place) {
  int farthest = task.nearest + task.window - 1;
  if (!task.zero_prefix && position < farthest) farthest = static_cast<int>(position);
  if (task.block_scope && place < farthest) farthest = place;
  return farthest;
}

// The key and value of a row's only token replace the oldest of their head, which no block but this
// one reads. REQUIRES: a barrier since the last read.
template <typename T>
BST_DEVICE void StoreInRing(const AttentionTask& task, void* cache, int place, int token,
                            int64_t column) {
  const int64_t width = static_cast<int64_t>(task.heads) * task.head_dim;
  T* const key = static_cast<T*>(cache) + place * width + column;
  for (int c = ThreadX(); c < task.head_dim; c += NumThreads()) {
    key[c] = Store<T>(task.k.data[token * task.k.stride + column + c]);
    key[task.window * width + c] = Store<T>(task.v.data[token * task.v.stride + column + c]);
  }
}

template <typename T>
BST_DEVICE Keys<T> ContextKeys(const ContextTask& task, const void* context, int64_t column) {
  const int64_t width = static_cast<int64_t>(task.heads) * task.head_dim;
  const T* rows = static_cast<const T*>(context);
  return {.k = rows + column,
          .v = rows + task.capacity * width + column,
          .stride = width,
          .new_k = {nullptr, 0},
          .new_v = {nullptr, 0}};
}

}  // namespace bst::cuda
