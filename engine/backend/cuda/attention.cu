// Attention in two forms. In both the softmax is carried from tile to tile of keys, and the order
// of operations depends on the query's position alone, so where a row was cut changes no bit.
//
//   One query and head per block: float32 rings and contexts, wide heads. Keys are taken by
//   distance or by row of the context, in tiles of one key per thread.
//
//   Sixteen queries of a row, or of one use of a context, and a head per block, on the tensor
//   cores: BF16. Tiles of 64 keys begin at multiples of 64 in the document or the context,
//   whichever queries share the block; keys that a query does not see have weight 0, which changes
//   neither its sums nor its maximum. Queries and weights are float32: each is the sum of three
//   BF16 numbers, so that three products are one in float32.
#include "engine/backend/cuda/device.h"
#include "engine/backend/cuda/kernels.h"
#include "engine/backend/cuda/launch.h"
#include "engine/backend/cuda/mma.cuh"
#include "engine/backend/cuda/row_count.cuh"

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

// Distances of the keys that a query at `position` sees: nearest .. the result.
BST_DEVICE int64_t Farthest(const AttentionTask& task, int64_t position) {
  int64_t farthest = int64_t{task.nearest} + task.window - 1;
  if (!task.zero_prefix && position < farthest) farthest = position;
  if (task.block_scope && position % task.window < farthest) farthest = position % task.window;
  return farthest;
}

// The key and value of a row's only token replace the oldest of their head, which no block but this
// one reads. REQUIRES: a barrier since the last read.
template <typename T>
BST_DEVICE void StoreInRing(const AttentionTask& task, void* cache, int64_t position, int token,
                            int64_t column) {
  const int64_t width = static_cast<int64_t>(task.heads) * task.head_dim;
  T* const key = static_cast<T*>(cache) + position % task.window * width + column;
  for (int c = ThreadX(); c < task.head_dim; c += NumThreads()) {
    key[c] = Store<T>(task.k.data[token * task.k.stride + column + c]);
    key[task.window * width + c] = Store<T>(task.v.data[token * task.v.stride + column + c]);
  }
}

template <typename T>
BST_DEVICE void AttendRing(const AttentionTask& task) {
  if (HasNoRow(task.num_tokens)) return;
  const int token = BlockX(), head = BlockY();
  const TokenRow row = task.tokens[token];
  const int64_t column = static_cast<int64_t>(head) * task.head_dim;
  const int64_t width = static_cast<int64_t>(task.heads) * task.head_dim;
  const int64_t farthest = Farthest(task, row.position);
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
  if (row.end - row.begin == 1) StoreInRing<T>(task, row.cache, row.position, token, column);
}

constexpr int kQueries = kQueriesOfATile;
constexpr int kTileKeys = 64;
constexpr int kTileWarps = kTile / kWarp;
constexpr int kTerms = 3;                             // BF16 numbers that make a float32
constexpr int kQueryWords = kMaxTileColumns / 2 + 4;  // of a row; the four spread the banks
constexpr int kWeightWords = kTileKeys / 2 + 4;
constexpr int kColumnTiles = kMaxTileColumns / kFragmentColumns / kTileWarps;  // of a warp
static_assert(kQueries == kFragmentRows && kTileKeys == kTileWarps * 2 * kFragmentColumns);

// Term `i` of x and y, as a word: the rest after the terms before is exact.
BST_DEVICE uint32_t TakeTerm(float& x, float& y) {
  const uint32_t word = PackBf16(x, y);
  x -= Round<Bf16>(x);
  y -= Round<Bf16>(y);
  return word;
}

BST_DEVICE FragmentA RowsOf(const uint32_t* words, int stride, int g, int t, int first_word) {
  const uint32_t* low = words + g * stride + first_word + t;
  const uint32_t* high = low + 8 * stride;
  return {{low[0], high[0], low[4], high[4]}};
}

// What a tile of queries looks at. Keys are named by their positions, in the document or in the
// context; `oldest` and `newest` are those that any of the queries sees.
struct RingView {
  const AttentionTask& task;
  const QueryTile& tile;
  int head;
  Keys<Bf16> keys;
  int64_t oldest, newest;

  // REQUIRES: oldest <= position <= newest.
  BST_DEVICE int Source(int64_t position) const {
    const int64_t row_position = tile.position - (tile.first - tile.begin);
    if (position < 0) return kZeroKey;
    if (position >= row_position) return ~(tile.begin + static_cast<int>(position - row_position));
    return static_cast<int>(position % task.window);
  }
  BST_DEVICE bool Sees(int query, int64_t position) const {
    const int64_t own = tile.position + query, distance = own - position;
    return distance >= task.nearest && distance <= Farthest(task, own);
  }
  BST_DEVICE float Bias(int query, int64_t position) const {
    if (task.bias == nullptr) return 0.0f;
    return task.bias[head * (task.window + 1) + (tile.position + query - position)];
  }
};

struct ContextView {
  Keys<Bf16> keys;
  int64_t oldest, newest;

  BST_DEVICE int Source(int64_t row) const { return static_cast<int>(row); }
  BST_DEVICE bool Sees(int /*query*/, int64_t row) const { return row <= newest; }
  BST_DEVICE float Bias(int /*query*/, int64_t /*row*/) const { return 0.0f; }
};

// Queries of one head, in neighbouring rows; at most kQueries of them.
struct Queries {
  Matrix q, out;  // of the first
  int count, head_dim;
  float scale;
};

// Shared arrays are written between two barriers by one part of the loop and read after the second
// by the next.
template <typename View>
BST_DEVICE void AttendTile(const Queries& own, const View& view) {
  BST_SHARED(uint32_t, queries, kTerms * kQueries * kQueryWords);
  BST_SHARED(uint32_t, weights, kTerms * kQueries * kWeightWords);
  BST_SHARED(float, scores, kQueries* kTileKeys);
  BST_SHARED(int, sources, kTileKeys);
  BST_SHARED(float, totals, kQueries);
  BST_SHARED(float, decays, kQueries);
  const int lane = ThreadX() % kWarp, warp = ThreadX() / kWarp, g = lane / 4, t = lane % 4;
  const int depth = (own.head_dim + kFragmentDepth - 1) / kFragmentDepth * kFragmentDepth;

  for (int i = ThreadX(); i < kQueries * depth / 2; i += kTile) {
    const int row = i / (depth / 2), c = i % (depth / 2) * 2;
    const float* q = own.q.data + row * own.q.stride + c;
    float x = row < own.count && c < own.head_dim ? q[0] : 0.0f;
    float y = row < own.count && c + 1 < own.head_dim ? q[1] : 0.0f;
    for (int term = 0; term < kTerms; ++term)
      queries[(term * kQueries + row) * kQueryWords + c / 2] = TakeTerm(x, y);
  }
  // Of rows warp + 4 i, the same in all lanes.
  float row_tops[kQueries / kTileWarps], row_totals[kQueries / kTileWarps];
  BST_UNROLL
  for (int i = 0; i < kQueries / kTileWarps; ++i) {
    row_tops[i] = -INFINITY;
    row_totals[i] = 0.0f;
  }
  const auto floor_tile = [](int64_t position) {
    return (position >= 0 ? position : position - kTileKeys + 1) / kTileKeys * kTileKeys;
  };
  FragmentC sums[kColumnTiles] = {};  // of columns (warp + 4 i) 8 ..
  for (int64_t first = floor_tile(view.oldest); first <= view.newest; first += kTileKeys) {
    SyncThreads();
    if (ThreadX() < kTileKeys) {
      const int64_t position = first + ThreadX();
      const bool is_seen = position >= view.oldest && position <= view.newest;
      sources[ThreadX()] = is_seen ? view.Source(position) : kZeroKey;
    }
    SyncThreads();
    // Whether any of the queries sees any of `n` keys; the same in all lanes.
    const auto are_seen = [&](int key, int n) {
      return first + key <= view.newest && first + key + n > view.oldest;
    };
    FragmentC dots[2] = {};
    const int key0 = warp * 2 * kFragmentColumns;
    for (int k = 0; k < depth; k += kFragmentDepth) {
      BST_UNROLL
      for (int n = 0; n < 2; ++n) {
        if (!are_seen(key0 + n * kFragmentColumns, kFragmentColumns)) continue;
        const int source = sources[key0 + n * kFragmentColumns + g];
        const auto word = [&](int c) {
          return PackBf16(c < own.head_dim ? view.keys.Key(source, c) : 0.0f,
                          c + 1 < own.head_dim ? view.keys.Key(source, c + 1) : 0.0f);
        };
        const FragmentB b = {{word(k + 2 * t), word(k + 2 * t + 8)}};
        BST_UNROLL
        for (int term = 0; term < kTerms; ++term) {
          MultiplyAdd(RowsOf(queries + term * kQueries * kQueryWords, kQueryWords, g, t, k / 2), b,
                      dots[n]);
        }
      }
    }
    BST_UNROLL
    for (int n = 0; n < 2; ++n) {
      BST_UNROLL
      for (int i = 0; i < 4; ++i) {
        const int row = g + i / 2 * 8, key = key0 + n * kFragmentColumns + 2 * t + i % 2;
        float score = -INFINITY;
        if (row < own.count && view.Sees(row, first + key))
          score = (dots[n].values[i] + view.Bias(row, first + key)) * own.scale;
        scores[row * kTileKeys + key] = score;
      }
    }
    SyncThreads();
    BST_UNROLL
    for (int i = 0; i < kQueries / kTileWarps; ++i) {
      const int row = warp + i * kTileWarps;
      float x = scores[row * kTileKeys + 2 * lane], y = scores[row * kTileKeys + 2 * lane + 1];
      const float new_top = fmaxf(row_tops[i], MaxLanes(fmaxf(x, y)));
      const bool is_none = new_top == -INFINITY;  // the query has seen no key yet
      x = is_none ? 0.0f : expf(x - new_top);
      y = is_none ? 0.0f : expf(y - new_top);
      const float decay = is_none ? 1.0f : expf(row_tops[i] - new_top);
      row_tops[i] = new_top;
      row_totals[i] = row_totals[i] * decay + SumLanes(x + y, kWarp);
      if (lane == 0) decays[row] = decay;
      for (int term = 0; term < kTerms; ++term)
        weights[(term * kQueries + row) * kWeightWords + lane] = TakeTerm(x, y);
    }
    SyncThreads();
    BST_UNROLL
    for (int i = 0; i < kColumnTiles; ++i) {
      const int c = (warp + i * kTileWarps) * kFragmentColumns + g;
      if (c - g >= own.head_dim) break;  // all lanes
      for (int j = 0; j < 4; ++j) sums[i].values[j] *= decays[g + j / 2 * 8];
      BST_UNROLL
      for (int k = 0; k < kTileKeys; k += kFragmentDepth) {
        if (!are_seen(k, kFragmentDepth)) continue;
        const auto word = [&](int key) {
          return c < own.head_dim ? PackBf16(view.keys.Value(sources[key], c),
                                             view.keys.Value(sources[key + 1], c))
                                  : 0u;
        };
        const FragmentB b = {{word(k + 2 * t), word(k + 2 * t + 8)}};
        BST_UNROLL
        for (int term = 0; term < kTerms; ++term) {
          MultiplyAdd(RowsOf(weights + term * kQueries * kWeightWords, kWeightWords, g, t, k / 2),
                      b, sums[i]);
        }
      }
    }
  }
  BST_UNROLL
  for (int i = 0; i < kQueries / kTileWarps; ++i) {
    if (lane == 0) totals[warp + i * kTileWarps] = row_totals[i];
  }
  SyncThreads();
  BST_UNROLL
  for (int i = 0; i < kColumnTiles; ++i) {
    BST_UNROLL
    for (int j = 0; j < 4; ++j) {
      const int row = g + j / 2 * 8;
      const int c = (warp + i * kTileWarps) * kFragmentColumns + 2 * t + j % 2;
      if (row >= own.count || c >= own.head_dim) continue;
      const float total = totals[row];
      // + 0: a sum that underflowed may be -0, unless tiles of weight 0 came after it.
      own.out.data[row * own.out.stride + c] =
          total == 0.0f ? 0.0f : sums[i].values[j] / total + 0.0f;
    }
  }
}

template <typename Task>
BST_DEVICE Queries QueriesOf(const Task& task, int first, int count, int64_t column) {
  return {.q = {task.q.data + first * task.q.stride + column, task.q.stride},
          .out = {task.out.data + first * task.out.stride + column, task.out.stride},
          .count = count,
          .head_dim = task.head_dim,
          .scale = task.scale[BlockY()]};
}

BST_DEVICE void AttendRingTile(const AttentionTask& task) {
  if (HasNoRow(task.num_tiles)) return;
  const QueryTile tile = task.tiles[BlockX()];
  const int head = BlockY();
  const int64_t column = static_cast<int64_t>(head) * task.head_dim;
  const int64_t width = static_cast<int64_t>(task.heads) * task.head_dim;
  const Bf16* ring = static_cast<const Bf16*>(tile.cache);
  int64_t oldest = tile.position;
  for (int row = 0; row < tile.count; ++row) {
    const int64_t position = tile.position + row, first = position - Farthest(task, position);
    if (first < oldest) oldest = first;
  }
  const RingView view = {.task = task,
                         .tile = tile,
                         .head = head,
                         .keys = {.k = ring + column,
                                  .v = ring + task.window * width + column,
                                  .stride = width,
                                  .new_k = {task.k.data + column, task.k.stride},
                                  .new_v = {task.v.data + column, task.v.stride}},
                         .oldest = oldest,
                         .newest = tile.position + tile.count - 1 - task.nearest};
  AttendTile(QueriesOf(task, tile.first, tile.count, column), view);
  if (tile.end - tile.begin == 1)
    StoreInRing<Bf16>(task, tile.cache, tile.position, tile.first, column);
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

template <typename T>
BST_DEVICE void AttendContext(const ContextTask& task) {
  if (HasNoRow(task.num_queries)) return;
  const int query = BlockX(), head = BlockY();
  const QueryContext use = task.queries[query];
  const int64_t column = static_cast<int64_t>(head) * task.head_dim;
  Attend(
      task.q.data + query * task.q.stride + column, ContextKeys<T>(task, use.context, column),
      task.head_dim, task.scale[head], use.num_rows, [](int i) { return i; },
      [](int) { return 0.0f; }, task.out.data + query * task.out.stride + column);
}

BST_DEVICE void AttendContextTile(const ContextTask& task) {
  if (HasNoRow(task.num_tiles)) return;
  const ContextTile tile = task.tiles[BlockX()];
  const int64_t column = static_cast<int64_t>(BlockY()) * task.head_dim;
  const ContextView view = {.keys = ContextKeys<Bf16>(task, tile.context, column),
                            .oldest = 0,
                            .newest = tile.num_rows - 1};
  AttendTile(QueriesOf(task, tile.first, tile.count, column), view);
}

constexpr int kCopyWords = 1024;  // of a block

struct alignas(16) FourWords {
  uint32_t words[4];
};

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
BST_KERNEL void BST_BOUNDS(128, 4) bst_attention_tiles(AttentionTask task) { AttendRingTile(task); }
BST_KERNEL void BST_BOUNDS(128, 8) bst_context_f32(ContextTask task) { AttendContext<float>(task); }
BST_KERNEL void BST_BOUNDS(128, 8) bst_context_bf16(ContextTask task) { AttendContext<Bf16>(task); }
BST_KERNEL void BST_BOUNDS(128, 4) bst_context_tiles(ContextTask task) { AttendContextTile(task); }
BST_KERNEL void BST_BOUNDS(256, 8) bst_store_f32(StoreTask task) { StoreOne<float>(task); }
BST_KERNEL void BST_BOUNDS(256, 8) bst_store_bf16(StoreTask task) { StoreOne<Bf16>(task); }
BST_KERNEL void BST_BOUNDS(256, 8) bst_copy_words(CopyTask task) {
  if (task.word_bytes == int{sizeof(FourWords)}) {
    CopyOneBlock<FourWords>(task);
  } else {
    CopyOneBlock<uint32_t>(task);
  }
}

void Attention(Stream& stream, bool bf16, const AttentionTask& task) {
  const bool has_tiles = task.tiles != nullptr;
  const LaunchShape shape = {.blocks_x = has_tiles ? task.num_tiles.most : task.num_tokens.most,
                             .blocks_y = task.heads,
                             .threads = kTile};
  if (shape.blocks_x == 0) return;
  if (has_tiles) {
    BST_LAUNCH(bst_attention_tiles, shape, stream, task);
  } else if (bf16) {
    BST_LAUNCH(bst_attention_bf16, shape, stream, task);
  } else {
    BST_LAUNCH(bst_attention_f32, shape, stream, task);
  }
}
void ContextAttention(Stream& stream, bool bf16, const ContextTask& task) {
  const bool has_tiles = task.tiles != nullptr;
  const LaunchShape shape = {.blocks_x = has_tiles ? task.num_tiles.most : task.num_queries.most,
                             .blocks_y = task.heads,
                             .threads = kTile};
  if (shape.blocks_x == 0) return;
  if (has_tiles) {
    BST_LAUNCH(bst_context_tiles, shape, stream, task);
  } else if (bf16) {
    BST_LAUNCH(bst_context_bf16, shape, stream, task);
  } else {
    BST_LAUNCH(bst_context_f32, shape, stream, task);
  }
}
void StoreRows(Stream& stream, bool bf16, const StoreTask& task) {
  if (task.rows.most == 0) return;
  const LaunchShape shape = {.blocks_x = task.rows.most};
  if (bf16) {
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
