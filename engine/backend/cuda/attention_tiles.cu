// Attention of prompts on the tensor cores. attention_tiles.cuh has the arithmetic.
//
// A block has 64 neighbouring queries of a row, or of one use of a context, and a head; each of its
// four warps has sixteen of them, with their sums in registers, and its terms of them in shared
// memory for itself. Tiles of keys, then of values, go through registers, where new ones are
// rounded, to shared memory: while one is worked on, the next is on its way. What a barrier ends is
// the use of the other of the two, so there are two for a tile.
//
// Banks: FourWords of a row are permuted (Place), so that eight lanes that read a fragment of keys
// (two rows, four neighbours each) or of values (four rows two apart, two neighbours each) touch
// each bank once.
#include "engine/backend/cuda/attention_tiles.cuh"
#include "engine/backend/cuda/launch.h"
#include "engine/backend/cuda/row_count.cuh"

namespace bst::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarp;
constexpr int kRows = 2;  // of queries, that a lane has sums of: g and g + 8
constexpr int kRowWords = kMaxTileColumns / kColumnsOfWords;  // FourWords of a key
constexpr int kLoads = kTileKeys / 2 * kRowWords / kThreads;  // of a thread, of half a tile
constexpr int kQuerySteps = kMaxTileColumns / kFragmentDepth;
constexpr int kQueryFragments = kQuerySteps * kTerms * kWarp;  // words of lanes, of a warp's
constexpr int kTileWords = kTileKeys * kRowWords;
constexpr int kHalfKeys = kTileKeys / 2;
constexpr int kSharedBytes =
    (kWarps * kQueryFragments + 2 * kTileWords) * static_cast<int>(sizeof(FourWords));
static_assert(kQueriesOfATile == kWarps * kFragmentRows && kThreads % kRowWords == 0);

BST_DEVICE int Place(int key, int column_words) {
  const int permuted = column_words ^ ((key / 2 % 4) ^ (key % 2 * 2)) * 2;
  return key * kRowWords + permuted;
}

// A thread's share of half a tile on its way to shared memory: eight columns of every eighth key.
struct OnItsWay {
  FourWords words[kLoads][2];  // eight BF16 in the first, or eight floats
  int sources[kLoads];
};

// Up to kQueriesOfATile queries of one head. They see keys up to `newest`, and the first of them
// those from `oldest` on.
struct Queries {
  Matrix q;  // of the first
  int count, head_dim;
  float scale;
  Keys<Bf16> keys;
  int oldest, newest;
};

// View::kHasNew says whether keys may be new ones of the step; view.Source(key), of keys that any
// query sees; view.Oldest(query) and view.Newest(query) of those it sees, which neither grow
// smaller from query to query; view.Bias(query, key). out() are the outputs, of the first query on.
template <typename View, typename Out>
BST_DEVICE void AttendTile(const Queries& own, const View& view, Out out) {
  BST_DYNAMIC_SHARED(FourWords, shared);
  const auto thread = static_cast<uint32_t>(ThreadX());
  const int lane = thread % kWarp, warp = thread / kWarp, g = thread % kWarp / 4, t = thread % 4;
  FourWords* const queries = shared + warp * kQueryFragments + lane;  // A of each step and term
  FourWords* const keys = shared + kWarps * kQueryFragments;
  FourWords* const values = keys + kTileWords;

  const bool is_wide = IsWide(own.keys.new_k) && IsWide(own.keys.new_v);
  const int load_words = thread % kRowWords, load_key = thread / kRowWords;
  const int load_column = load_words * kColumnsOfWords;
  OnItsWay next;
  const auto load = [&](bool is_values, int first_key) {
    BST_UNROLL
    for (int i = 0; i < kLoads; ++i) {
      const int key = first_key + load_key + i * (kThreads / kRowWords);
      const bool is_seen = key >= own.oldest && key <= own.newest;
      const int source = is_seen && load_column < own.head_dim ? view.Source(key) : kZeroKey;
      next.sources[i] = source;
      next.words[i][0] = {};
      if (source >= 0) {
        const Bf16* from = (is_values ? own.keys.v : own.keys.k) + source * own.keys.stride;
        next.words[i][0] = *reinterpret_cast<const FourWords*>(from + load_column);
      } else if (View::kHasNew && source != kZeroKey) {
        const Matrix& fresh = is_values ? own.keys.new_v : own.keys.new_k;
        const float* from = fresh.data + ~source * fresh.stride + load_column;
        BST_UNROLL
        for (int half = 0; half < 2; ++half) {
          const FourFloats floats = LoadFour(from + 4 * half, is_wide);
          BST_UNROLL
          for (int j = 0; j < 4; ++j) next.words[i][half].words[j] = FloatBits(floats.values[j]);
        }
      }
    }
  };
  const auto store = [&](FourWords* to, int first_key) {
    BST_UNROLL
    for (int i = 0; i < kLoads; ++i) {
      FourWords words = next.words[i][0];
      if (View::kHasNew && next.sources[i] < 0 && next.sources[i] != kZeroKey) {
        BST_UNROLL
        for (int j = 0; j < 4; ++j) {
          const uint32_t* floats = next.words[i][j / 2].words + j % 2 * 2;
          words.words[j] = PackBf16(FloatFromBits(floats[0]), FloatFromBits(floats[1]));
        }
      }
      to[Place(first_key + load_key + i * (kThreads / kRowWords), load_words)] = words;
    }
  };
  const int tiles = own.newest < own.oldest ? 0 : own.newest / kTileKeys + 1;
  if (tiles > 0) load(false, 0);

  // A thread reads what it writes here.
  const int first_query = warp * kFragmentRows;
  const bool q_is_wide = IsWide(own.q);
  BST_UNROLL
  for (int j = 0; j < kPieces; ++j) {
    FourWords terms[kRows][kTerms] = {};
    BST_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const int query = first_query + g + 8 * r, column = j * kPieceColumns + t * kColumnsOfWords;
      if (query < own.count && column < own.head_dim)
        TakeTerms(own.q.data + query * own.q.stride + column, q_is_wide, terms[r]);
    }
    BST_UNROLL
    for (int i = 0; i < 2 * kTerms; ++i) {
      const uint32_t* low = terms[0][i % kTerms].words + i / kTerms * 2;
      const uint32_t* high = terms[1][i % kTerms].words + i / kTerms * 2;
      queries[(2 * j * kTerms + i) * kWarp] = {{low[0], high[0], low[1], high[1]}};
    }
  }
  // What the queries of this lane see, and what any of the warp's does.
  int oldest[kRows], newest[kRows];
  BST_UNROLL
  for (int r = 0; r < kRows; ++r) {
    const int query = first_query + g + 8 * r;
    oldest[r] = query < own.count ? view.Oldest(query) : INT32_MAX;
    newest[r] = query < own.count ? view.Newest(query) : INT32_MIN;
  }
  const int end_query =
      first_query + kFragmentRows < own.count ? first_query + kFragmentRows : own.count;
  const bool has_queries = first_query < own.count;
  const int warp_oldest = has_queries ? view.Oldest(first_query) : 0;
  const int warp_newest = has_queries ? view.Newest(end_query - 1) : -1;
  if (tiles > 0) {
    store(keys, 0);
    load(false, kHalfKeys);
    store(keys, kHalfKeys);
  }

  FragmentC sums[kHalves * kHalfFragments] = {};
  float tops[kRows] = {-INFINITY, -INFINITY}, totals[kRows] = {};
  for (int tile = 0; tile < tiles; ++tile) {
    const int first = tile * kTileKeys;
    const bool is_seen = first <= warp_newest && first + kTileKeys > warp_oldest;  // by the warp
    float scores[kRows][kScores] = {};
    JoinWeights joins[kRows] = {};
    FragmentC dots[kKeyFragments] = {};
    // Of half of the columns.
    const auto multiply_keys = [&](int half) {
      BST_UNROLL
      for (int j = half * kPieces / 2; j < (half + 1) * kPieces / 2; ++j) {
        if (j * kPieceColumns >= own.head_dim) break;
        FourWords words[kKeyFragments];
        BST_UNROLL
        for (int n = 0; n < kKeyFragments; ++n)
          words[n] = keys[Place(n * kFragmentColumns + g, 4 * j + t)];
        BST_UNROLL
        for (int i = 0; i < 2 * kTerms; ++i) {
          const FourWords a = queries[(2 * j * kTerms + i) * kWarp];
          BST_UNROLL
          for (int n = 0; n < kKeyFragments; ++n) {
            const uint32_t* b = words[n].words + i / kTerms * 2;
            MultiplyAdd({{a.words[0], a.words[1], a.words[2], a.words[3]}}, {{b[0], b[1]}},
                        dots[n]);
          }
        }
      }
    };
    SyncThreads();
    load(true, first);
    if (is_seen) multiply_keys(0);
    store(values, 0);
    load(true, first + kHalfKeys);
    if (is_seen) {
      multiply_keys(1);
      BST_UNROLL
      for (int r = 0; r < kRows; ++r) {
        const auto key_of = [&](int i) { return first + i / 2 * kFragmentColumns + 2 * t + i % 2; };
        const auto sees = [&](int key) { return key >= oldest[r] && key <= newest[r]; };
        float biases[kScores];
        BST_UNROLL
        for (int i = 0; i < kScores; ++i) {
          const int key = key_of(i);
          biases[i] = sees(key) ? view.Bias(first_query + g + 8 * r, key) : 0.0f;
        }
        BST_UNROLL
        for (int i = 0; i < kScores; ++i) {
          const float dot = dots[i / 2].values[2 * r + i % 2];
          scores[r][i] = sees(key_of(i)) ? (dot + biases[i]) * own.scale : -INFINITY;
        }
        float tile_top, tile_total;
        Weigh(scores[r], tile_top, tile_total);
        joins[r] = JoinTops(tops[r], tile_top);
        totals[r] = Join(joins[r], totals[r], tile_total);
      }
    }
    store(values, kHalfKeys);
    SyncThreads();
    FragmentA weights[kKeySteps][kTerms];
    BST_UNROLL
    for (int i = 0; i < 4 * kKeySteps; ++i) {
      const int r = i % 2, at = i / 4 * 4 + i % 4 / 2 * 2;
      float x = scores[r][at], y = scores[r][at + 1];
      BST_UNROLL
      for (int term = 0; term < kTerms; ++term) weights[i / 4][term].words[i % 4] = TakeTerm(x, y);
    }
    const auto multiply_values = [&](int half) {
      FourWords words[kKeySteps][4];  // of keys 2 t, 2 t + 1, 2 t + 8, 2 t + 9 of a step
      BST_UNROLL
      for (int i = 0; i < 4 * kKeySteps; ++i) {
        const int key = i / 4 * kFragmentDepth + 2 * t + i % 2 + i % 4 / 2 * 8;
        words[i / 4][i % 4] = values[Place(key, half * kHalfColumns / kColumnsOfWords + g)];
      }
      BST_UNROLL
      for (int i = 0; i < kHalfFragments; ++i) {
        FragmentC part = {};
        BST_UNROLL
        for (int step = 0; step < kKeySteps; ++step) {
          const FragmentB b = {{PairOf(words[step][0], words[step][1], i),
                                PairOf(words[step][2], words[step][3], i)}};
          BST_UNROLL
          for (int term = 0; term < kTerms; ++term) MultiplyAdd(weights[step][term], b, part);
        }
        FragmentC& sum = sums[half * kHalfFragments + i];
        BST_UNROLL
        for (int j = 0; j < 4; ++j)
          sum.values[j] = Join(joins[j / 2], sum.values[j], part.values[j]);
      }
    };
    BST_UNROLL
    for (int half = 0; half < kHalves; ++half) {
      if (tile + 1 < tiles) load(false, first + kTileKeys + half * kHalfKeys);
      if (is_seen && half * kHalfColumns < own.head_dim) multiply_values(half);
      if (tile + 1 < tiles) store(keys, half * kHalfKeys);
    }
  }
  // Element j of fragment i has row g + 8 (j / 2) and column 8 (2 t + j % 2) + i of its half.
  const Matrix outputs = out();
  const bool out_is_wide = IsWide(outputs);
  for (float& total : totals) total = Inverse(total);
  BST_UNROLL
  for (int j = 0; j < 4; ++j) {
    const int query = first_query + g + j / 2 * 8;
    if (query >= own.count) continue;
    BST_UNROLL
    for (int half = 0; half < kHalves; ++half) {
      const int column = half * kHalfColumns + (2 * t + j % 2) * kColumnsOfWords;
      if (column >= own.head_dim) continue;
      float* const to = outputs.data + query * outputs.stride + column;
      BST_UNROLL
      for (int i = 0; i < kHalfFragments; i += 4) {
        FourFloats four;
        BST_UNROLL
        for (int k = 0; k < 4; ++k) {
          four.values[k] = Output(sums[half * kHalfFragments + i + k].values[j], totals[j / 2]);
        }
        if (out_is_wide) {
          *reinterpret_cast<FourFloats*>(to + i) = four;
        } else {
          BST_UNROLL
          for (int k = 0; k < 4; ++k) to[i + k] = four.values[k];
        }
      }
    }
  }
}

struct RingView {
  static constexpr bool kHasNew = true;
  const AttentionTask& task;
  RingRows rows;
  int document;      // the number of the document's first key: those before it are zeros
  int64_t position;  // of the first query
  int first_query;   // its number
  int place;
  int head;
  int step_key;  // the number of the step's first token of the row, and which token that is
  int step_token;

  BST_DEVICE int Source(int key) const {
    if (key < document) return kZeroKey;
    if (key >= step_key) return ~(step_token + (key - step_key));
    return rows.Row(key);
  }
  BST_DEVICE int Oldest(int query) const {
    const int64_t own = position + query;
    return first_query + query - Farthest(task, own, (place + query) % task.window);
  }
  BST_DEVICE int Newest(int query) const { return first_query + query - task.nearest; }
  BST_DEVICE float Bias(int query, int key) const {
    if (task.bias == nullptr) return 0.0f;
    return task.bias[head * (task.window + 1) + (first_query + query - key)];
  }
};

struct ContextView {
  static constexpr bool kHasNew = false;
  int num_rows;

  BST_DEVICE int Source(int key) const { return key; }
  BST_DEVICE int Oldest(int /*query*/) const { return 0; }
  BST_DEVICE int Newest(int /*query*/) const { return num_rows - 1; }
  BST_DEVICE float Bias(int /*query*/, int /*key*/) const { return 0.0f; }
};

template <typename Task, typename View>
BST_DEVICE void AttendTileOf(const Task& task, int first, int count, const Keys<Bf16>& keys,
                             const View& view) {
  const int64_t column = static_cast<int64_t>(BlockY()) * task.head_dim;
  AttendTile({.q = {task.q.data + first * task.q.stride + column, task.q.stride},
              .count = count,
              .head_dim = task.head_dim,
              .scale = task.scale[BlockY()],
              .keys = keys,
              .oldest = view.Oldest(0),
              .newest = view.Newest(count - 1)},
             view,
             [&]() -> Matrix {  // looked up in the end: registers are short until then
               return {task.out.data + task.tiles[BlockX()].first * task.out.stride +
                           static_cast<int64_t>(BlockY()) * task.head_dim,
                       task.out.stride};
             });
}

BST_DEVICE void AttendRing(const AttentionTask& task) {
  if (HasNoRow(task.num_tiles)) return;
  const QueryTile tile = task.tiles[BlockX()];
  const int64_t column = static_cast<int64_t>(BlockY()) * task.head_dim;
  const int64_t width = static_cast<int64_t>(task.heads) * task.head_dim;
  const Bf16* ring = static_cast<const Bf16*>(tile.cache);
  const int farthest = Farthest(task, tile.position, tile.place);
  const int64_t oldest = tile.position - farthest, origin = FloorTile(oldest);
  const RingView view = {
      .task = task,
      .rows = RingRows(task, tile.place, farthest, static_cast<int>(oldest - origin)),
      .document = origin < 0 ? static_cast<int>(-origin) : 0,
      .position = tile.position,
      .first_query = static_cast<int>(tile.position - origin),
      .place = tile.place,
      .head = BlockY(),
      .step_key = static_cast<int>(tile.position - (tile.first - tile.begin) - origin),
      .step_token = tile.begin};
  AttendTileOf(task, tile.first, tile.count,
               {.k = ring + column,
                .v = ring + task.window * width + column,
                .stride = width,
                .new_k = {task.k.data + column, task.k.stride},
                .new_v = {task.v.data + column, task.v.stride}},
               view);
}

BST_DEVICE void AttendContext(const ContextTask& task) {
  if (HasNoRow(task.num_tiles)) return;
  const ContextTile tile = task.tiles[BlockX()];
  const int64_t column = static_cast<int64_t>(BlockY()) * task.head_dim;
  AttendTileOf(task, tile.first, tile.count, ContextKeys<Bf16>(task, tile.context, column),
               ContextView{.num_rows = tile.num_rows});
}

}  // namespace

BST_KERNEL void BST_BOUNDS(128, 2) bst_attention_tiles(AttentionTask task) { AttendRing(task); }
BST_KERNEL void BST_BOUNDS(128, 2) bst_context_tiles(ContextTask task) { AttendContext(task); }

void PrepareAttention(Stream& stream) {
  BST_ALLOW_SHARED(bst_attention_tiles, kSharedBytes, stream);
  BST_ALLOW_SHARED(bst_context_tiles, kSharedBytes, stream);
}
void AttentionTiles(Stream& stream, const AttentionTask& task) {
  const LaunchShape shape = {.blocks_x = task.num_tiles.most,
                             .blocks_y = task.heads,
                             .threads = kThreads,
                             .shared_bytes = kSharedBytes};
  if (shape.blocks_x > 0) BST_LAUNCH(bst_attention_tiles, shape, stream, task);
}
void ContextTiles(Stream& stream, const ContextTask& task) {
  const LaunchShape shape = {.blocks_x = task.num_tiles.most,
                             .blocks_y = task.heads,
                             .threads = kThreads,
                             .shared_bytes = kSharedBytes};
  if (shape.blocks_x > 0) BST_LAUNCH(bst_context_tiles, shape, stream, task);
}

}  // namespace bst::cuda
