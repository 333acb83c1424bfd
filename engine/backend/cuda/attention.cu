// Attention of one query and head per block, for float32 rings and contexts and for heads that the
// tensor cores' forms (attention_tiles.cuh) do not take, and what fills rings and contexts.
//
// The softmax is carried from tile to tile of keys, by distance or by row of the context, one key
// per thread: the order of operations depends on the query's position alone.
#include "engine/backend/cuda/attention.cuh"
#include "engine/backend/cuda/device.h"
#include "engine/backend/cuda/kernels.h"
#include "engine/backend/cuda/launch.h"
#include "engine/backend/cuda/row_count.cuh"

namespace bst::cuda {
namespace {

constexpr int kTile = 128;  // keys; threads
constexpr int kChunks = kTile / kWarp;
constexpr int kMaxColumns = 256;  // of a head at a time

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
  if (HasNoRow(task.num_tokens)) return;
  const TokenRow row = task.tokens[BlockX()];
  const int token = row.token, head = BlockY();
  const int64_t column = static_cast<int64_t>(head) * task.head_dim;
  const int64_t width = static_cast<int64_t>(task.heads) * task.head_dim;
  const int farthest = Farthest(task, row.position, row.place);
  const int count = farthest < task.nearest ? 0 : farthest - task.nearest + 1;
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
  if (row.end - row.begin == 1) StoreInRing<T>(task, row.cache, row.place, token, column);
}

template <typename T>
BST_DEVICE void AttendContext(const ContextTask& task) {
  if (HasNoRow(task.num_queries)) return;
  const QueryContext use = task.queries[BlockX()];
  const int query = use.query, head = BlockY();
  const int64_t column = static_cast<int64_t>(head) * task.head_dim;
  Attend(
      task.q.data + query * task.q.stride + column, ContextKeys<T>(task, use.context, column),
      task.head_dim, task.scale[head], use.num_rows, [](int i) { return i; },
      [](int) { return 0.0f; }, task.out.data + query * task.out.stride + column);
}

constexpr int kCopyWords = 1024;  // of a block

template <typename Word>
BST_DEVICE void CopyOneBlock(const CopyTask& task) {
  const auto* from = reinterpret_cast<const Word*>(task.place->from);
  auto* to = reinterpret_cast<Word*>(task.place->to);
  const int64_t first = static_cast<int64_t>(BlockX()) * kCopyWords;
  for (int64_t i = first + ThreadX(); i < first + kCopyWords && i < task.words; i += NumThreads())
    to[i] = from[i];
}

template <typename T>
BST_DEVICE void StoreOne(const StoreTask& task) {
  if (HasNoRow(task.rows)) return;
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
BST_KERNEL void BST_BOUNDS(256, 8) bst_copy_words(CopyTask task) {
  if (task.word_bytes == int{sizeof(FourWords)}) {
    CopyOneBlock<FourWords>(task);
  } else {
    CopyOneBlock<uint32_t>(task);
  }
}

void Attention(Stream& stream, Element ring, const AttentionTask& task) {
  const LaunchShape shape = {
      .blocks_x = task.num_tokens.most, .blocks_y = task.heads, .threads = kTile};
  if (shape.blocks_x == 0) return;
  if (ring == Element::kBf16) {
    BST_LAUNCH(bst_attention_bf16, shape, stream, task);
  } else {
    BST_LAUNCH(bst_attention_f32, shape, stream, task);
  }
}
void ContextAttention(Stream& stream, Element context, const ContextTask& task) {
  const LaunchShape shape = {
      .blocks_x = task.num_queries.most, .blocks_y = task.heads, .threads = kTile};
  if (shape.blocks_x == 0) return;
  if (context == Element::kBf16) {
    BST_LAUNCH(bst_context_bf16, shape, stream, task);
  } else {
    BST_LAUNCH(bst_context_f32, shape, stream, task);
  }
}
void StoreRows(Stream& stream, Element stored, const StoreTask& task) {
  if (task.rows.most == 0) return;
  const LaunchShape shape = {.blocks_x = task.rows.most};
  if (stored == Element::kBf16) {
    BST_LAUNCH(bst_store_bf16, shape, stream, task);
  } else {
    BST_LAUNCH(bst_store_f32, shape, stream, task);
  }
}
void CopyWords(Stream& stream, const CopyTask& task) {
  if (task.words == 0) return;
  const LaunchShape shape = {.blocks_x =
                                 static_cast<int>((task.words + kCopyWords - 1) / kCopyWords)};
  BST_LAUNCH(bst_copy_words, shape, stream, task);
}

}  // namespace bst::cuda
