// Attention of one query and head per block. Keys are taken in one order, by distance or by row of
// the context, in tiles of one key per thread; the softmax is carried from tile to tile. The order
// depends on the query's position alone, so where a row was cut changes no bit.
#include "engine/backend/cuda/device.h"
#include "engine/backend/cuda/kernels.h"
#include "engine/backend/cuda/launch.h"

namespace bst::cuda {
namespace {

constexpr int kTile = 128;  // keys; threads
constexpr int kChunks = kTile / kWarp;
constexpr int kMaxColumns = 256;  // of a head at a time
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

// source(i) and bias(i) of key i < count.
template <typename T, typename Source, typename Bias>
BST_DEVICE void Attend(const float* q, const Keys<T>& keys, int head_dim, float scale, int count,
                       Source source, Bias bias, float* out) {
  BST_SHARED(float, scores, kTile);
  BST_SHARED(float, weights, kTile);
  BST_SHARED(int, sources, kTile);
  const int lane = ThreadX() % kWarp;
  for (int first_column = 0; first_column < head_dim; first_column += kMaxColumns) {
    float sums[kMaxColumns / kTile] = {};  // of columns first_column + ThreadX() + i kTile
    float top = -INFINITY, total = 0.0f;
    for (int first = 0; first < count; first += kTile) {
      const int size = count - first < kTile ? count - first : kTile;
      float score = -INFINITY;
      if (ThreadX() < size) {
        const int key = source(first + ThreadX());
        float dot = 0.0f;
        for (int c = 0; c < head_dim; ++c) dot = fmaf(q[c], keys.Key(key, c), dot);
        score = (dot + bias(first + ThreadX())) * scale;
        sources[ThreadX()] = key;
      }
      scores[ThreadX()] = score;
      SyncThreads();
      float tile_top = scores[lane];
      for (int i = 1; i < kChunks; ++i) tile_top = fmaxf(tile_top, scores[i * kWarp + lane]);
      const float new_top = fmaxf(top, MaxLanes(tile_top));
      weights[ThreadX()] = expf(score - new_top);
      SyncThreads();
      float tile_total = weights[lane];
      for (int i = 1; i < kChunks; ++i) tile_total += weights[i * kWarp + lane];
      const float decay = expf(top - new_top);  // 0 before the first tile
      total = total * decay + SumLanes(tile_total, kWarp);
      top = new_top;
      for (int i = 0; i < kMaxColumns / kTile; ++i) {
        const int c = first_column + ThreadX() + i * kTile;
        if (c >= head_dim) continue;
        float sum = sums[i] * decay;
        for (int j = 0; j < size; ++j) sum = fmaf(weights[j], keys.Value(sources[j], c), sum);
        sums[i] = sum;
      }
      SyncThreads();
    }
    for (int i = 0; i < kMaxColumns / kTile; ++i) {
      const int c = first_column + ThreadX() + i * kTile;
      if (c < head_dim) out[c] = count > 0 ? sums[i] / total : 0.0f;
    }
  }
}

template <typename T>
BST_DEVICE void AttendRing(const AttentionTask& task) {
  const int token = BlockX(), head = BlockY();
  const TokenRow row = task.tokens[token];
  const int64_t column = static_cast<int64_t>(head) * task.head_dim;
  const int64_t width = static_cast<int64_t>(task.heads) * task.head_dim;
  int64_t farthest = task.nearest + task.window - 1;
  if (!task.zero_prefix && row.position < farthest) farthest = row.position;
  if (task.block_scope && row.position % task.window < farthest)
    farthest = row.position % task.window;
  const int count = farthest < task.nearest ? 0 : static_cast<int>(farthest - task.nearest) + 1;
  const T* ring = static_cast<const T*>(row.cache);
  const Keys<T> keys = {.k = ring + column,
                        .v = ring + task.window * width + column,
                        .stride = width,
                        .new_k = {task.k.data + column, task.k.stride},
                        .new_v = {task.v.data + column, task.v.stride}};
  const auto source = [&](int i) {
    const int distance = task.nearest + i;
    const int64_t position = row.position - distance;
    if (position < 0) return kZeroKey;
    if (token - distance >= row.begin) return ~(token - distance);
    return static_cast<int>(position % task.window);
  };
  const auto bias = [&](int i) {
    return task.bias == nullptr ? 0.0f : task.bias[head * (task.window + 1) + task.nearest + i];
  };
  Attend(task.q.data + token * task.q.stride + column, keys, task.head_dim, task.scale[head], count,
         source, bias, task.out.data + token * task.out.stride + column);
}

template <typename T>
BST_DEVICE void AttendContext(const ContextTask& task) {
  const int query = BlockX(), head = BlockY();
  const QueryContext use = task.queries[query];
  const int64_t column = static_cast<int64_t>(head) * task.head_dim;
  const int64_t width = static_cast<int64_t>(task.heads) * task.head_dim;
  const T* context = static_cast<const T*>(use.context);
  const Keys<T> keys = {.k = context + column,
                        .v = context + task.capacity * width + column,
                        .stride = width,
                        .new_k = {nullptr, 0},
                        .new_v = {nullptr, 0}};
  Attend(
      task.q.data + query * task.q.stride + column, keys, task.head_dim, task.scale[head],
      use.num_rows, [](int i) { return i; }, [](int) { return 0.0f; },
      task.out.data + query * task.out.stride + column);
}

template <typename T>
BST_DEVICE void StoreOne(const StoreTask& task) {
  const StoreRow row = task.store[BlockX()];
  for (int c = ThreadX(); c < task.columns; c += NumThreads()) {
    static_cast<T*>(row.first)[c] = Store<T>(task.first.data[row.source * task.first.stride + c]);
    if (task.has_second) {
      static_cast<T*>(row.second)[c] =
          Store<T>(task.second.data[row.source * task.second.stride + c]);
    }
  }
}

}  // namespace

BST_KERNEL void BST_BOUNDS(128, 8) bst_attention_f32(AttentionTask task) {
  AttendRing<float>(task);
}
BST_KERNEL void BST_BOUNDS(128, 8) bst_attention_bf16(AttentionTask task) {
  AttendRing<Bf16>(task);
}
BST_KERNEL void BST_BOUNDS(128, 8) bst_context_f32(ContextTask task) { AttendContext<float>(task); }
BST_KERNEL void BST_BOUNDS(128, 8) bst_context_bf16(ContextTask task) { AttendContext<Bf16>(task); }
BST_KERNEL void BST_BOUNDS(256, 8) bst_store_f32(StoreTask task) { StoreOne<float>(task); }
BST_KERNEL void BST_BOUNDS(256, 8) bst_store_bf16(StoreTask task) { StoreOne<Bf16>(task); }

void Attention(Stream& stream, bool bf16, const AttentionTask& task) {
  if (task.num_tokens == 0) return;
  const LaunchShape shape = {.blocks_x = task.num_tokens, .blocks_y = task.heads, .threads = kTile};
  if (bf16) {
    BST_LAUNCH(bst_attention_bf16, shape, stream, task);
  } else {
    BST_LAUNCH(bst_attention_f32, shape, stream, task);
  }
}
void ContextAttention(Stream& stream, bool bf16, const ContextTask& task) {
  if (task.num_queries == 0) return;
  const LaunchShape shape = {
      .blocks_x = task.num_queries, .blocks_y = task.heads, .threads = kTile};
  if (bf16) {
    BST_LAUNCH(bst_context_bf16, shape, stream, task);
  } else {
    BST_LAUNCH(bst_context_f32, shape, stream, task);
  }
}
void StoreRows(Stream& stream, bool bf16, const StoreTask& task) {
  if (task.rows == 0) return;
  const LaunchShape shape = {.blocks_x = task.rows};
  if (bf16) {
    BST_LAUNCH(bst_store_bf16, shape, stream, task);
  } else {
    BST_LAUNCH(bst_store_f32, shape, stream, task);
  }
}

}  // namespace bst::cuda
