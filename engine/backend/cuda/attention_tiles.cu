// Attention of prompts on the tensor cores. attention_tiles.cuh has the arithmetic.
//
// A block has 64 neighbouring queries of a row, or of one use of a context, and a head, in groups
// of sixteen. It takes tiles two by two. A group has two warps: each multiplies its queries with
// the keys of one of the two tiles and leaves the weights in shared memory; then each multiplies
// the weights of both, in order, with half of the columns of the values. So a warp has the sums of
// half a head in registers, few enough for twice as many warps.
//
// Tiles of keys, then of values, go through registers, where new ones are rounded, to shared
// memory: while one is worked on, the next is on its way. What a barrier ends is the use of the
// other of the two, so there are two for a pair of tiles.
//
// Banks: FourWords of a row are permuted (Place), so that eight lanes that read a fragment of keys
// (two rows, four neighbours each) or of values (four rows two apart, two neighbours each) touch
// each bank once.
#include "engine/backend/cuda/attention_tiles.cuh"
#include "engine/backend/cuda/launch.h"
#include "engine/backend/cuda/row_count.cuh"

namespace bst::cuda {
namespace {

constexpr int kSides = 2;  // warps of a group of queries, tiles of a pair, halves of the columns
constexpr int kGroups = kQueriesOfATile / kFragmentRows;
constexpr int kWarps = kSides * kGroups;
constexpr int kThreads = kWarps * kWarp;
constexpr int kPairKeys = kSides * kTileKeys;
constexpr int kRows = 2;  // of queries, that a lane has sums of: g and g + 8
constexpr int kRowWords = kMaxTileColumns / kColumnsOfWords;  // FourWords of a key
constexpr int kLoadedKeys = kThreads / kRowWords;             // by all threads at once
constexpr int kLoads = kTileKeys / kLoadedKeys;               // for a tile
constexpr int kQuerySteps = kMaxTileColumns / kFragmentDepth;
constexpr int kQueryFragments = kQuerySteps * kTerms * kWarp;  // words of lanes, of a group
constexpr int kWeightFragments = kKeySteps * kTerms * kWarp;   // likewise, of a tile
constexpr int kTileWords = kTileKeys * kRowWords;
// What a tile gives a query besides its weights.
struct alignas(8) Share {
  float top, total;
};
// What a lane has of its queries besides their sums. It is used once in a tile.
struct alignas(16) SoFar {
  float tops[kRows], totals[kRows];
};
constexpr int kShares = kGroups * kSides * kFragmentRows;
// The keys that a query sees.
struct alignas(8) Range {
  int oldest, newest;
};
constexpr int kWhereBytes = 64;  // of a View::Where
constexpr int kSharedWords =
    kThreads + kGroups * (kQueryFragments + kSides * kWeightFragments) + 2 * kSides * kTileWords;
constexpr int kSharedBytes = kSharedWords * static_cast<int>(sizeof(FourWords)) +
                             kShares * static_cast<int>(sizeof(Share)) +
                             kQueriesOfATile * static_cast<int>(sizeof(Range)) +
                             2 * kPairKeys * static_cast<int>(sizeof(int)) + kWhereBytes;
// Two blocks on a multiprocessor of 9.0, one on one of 8.0, with the 1 KB of each that is the
// system's.
static_assert(2 * (kSharedBytes + 1024) <= 228 << 10 && kSharedBytes + 1024 <= 164 << 10);
static_assert(kSides == kHalves && kPieces % kSides == 0 && kThreads % kRowWords == 0 &&
              kPairKeys == kPieces * kLoadedKeys && kLoads == kKeySteps);

BST_DEVICE int Place(int key, int column_words) {
  const int permuted = column_words ^ ((key / 2 % 4) ^ (key % 2 * 2)) * 2;
  return key * kRowWords + permuted;
}

// Eight columns of a key on their way to shared memory.
struct OnItsWay {
  FourWords words[2];  // eight BF16 in the first, or eight floats
  int source;
};

// The step's keys and values of a head; those in the cache are in View::Where.
struct NewKeys {
  int64_t stride;  // of the cache
  Matrix new_k, new_v;
};

// Up to kQueriesOfATile queries of one head.
struct Queries {
  Matrix q;  // of the first
  int head_dim;
  NewKeys keys;
};

// Where a thread stands in its block: its lane's row g and column t of a fragment, its warp's
// group of queries and side.
struct Stand {
  int g, t, group, side;
};

// Half of the terms of the group's queries, of which there are those up to `count` of the block.
BST_DEVICE void StoreTerms(const Queries& own, int count, const Stand& at, FourWords* queries) {
  const bool is_wide = IsWide(own.q);
  BST_UNROLL
  for (int i = 0; i < kPieces / kSides; ++i) {
    const int j = at.side * (kPieces / kSides) + i;
    FourWords terms[kRows][kTerms] = {};
    BST_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const int query = at.group * kFragmentRows + at.g + 8 * r;
      const int column = j * kPieceColumns + at.t * kColumnsOfWords;
      if (query < count && column < own.head_dim)
        TakeTerms(own.q.data + query * own.q.stride + column, is_wide, terms[r]);
    }
    BST_UNROLL
    for (int k = 0; k < 2 * kTerms; ++k) {
      const uint32_t* low = terms[0][k % kTerms].words + k / kTerms * 2;
      const uint32_t* high = terms[1][k % kTerms].words + k / kTerms * 2;
      queries[(2 * j * kTerms + k) * kWarp] = {{low[0], high[0], low[1], high[1]}};
    }
  }
}

// The queries with piece j of the columns of the side's tile of keys.
BST_DEVICE void MultiplyKeys(const FourWords* queries, const FourWords* keys, const Stand& at,
                             int j, FragmentC (&dots)[kKeyFragments]) {
  FourWords words[kKeyFragments];
  BST_UNROLL
  for (int n = 0; n < kKeyFragments; ++n)
    words[n] = keys[Place(at.side * kTileKeys + n * kFragmentColumns + at.g, 4 * j + at.t)];
  BST_UNROLL
  for (int i = 0; i < 2 * kTerms; ++i) {
    const FourWords a = queries[(2 * j * kTerms + i) * kWarp];
    BST_UNROLL
    for (int n = 0; n < kKeyFragments; ++n) {
      const uint32_t* b = words[n].words + i / kTerms * 2;
      MultiplyAdd({{a.words[0], a.words[1], a.words[2], a.words[3]}}, {{b[0], b[1]}}, dots[n]);
    }
  }
}

// The dots of the lane's query g + 8 r, which sees the keys of `range`, with the keys from
// `first_key` on become weights; biases as View::Biases has them. Range and scale, in shared
// memory, are read where they are used: registers are short.
BST_DEVICE Share WeighQuery(const FragmentC (&dots)[kKeyFragments], int r, int first_key,
                            bool sees_all, const Range& range, const float* biases,
                            const float& scale, float (&scores)[kScores]) {
  const auto key_of = [&](int i) { return first_key + i / 2 * kFragmentColumns + i % 2; };
  BST_UNROLL
  for (int i = 0; i < kScores; ++i) scores[i] = dots[i / 2].values[2 * r + i % 2];
  if (sees_all) {
    if (biases != nullptr) {
      BST_UNROLL
      for (int i = 0; i < kScores; ++i) scores[i] += biases[-key_of(i)];
    }
    BST_UNROLL
    for (int i = 0; i < kScores; ++i) scores[i] *= scale;
  } else {
    const int oldest = range.oldest, newest = range.newest;
    BST_UNROLL
    for (int i = 0; i < kScores; ++i) {
      const bool is_seen = key_of(i) >= oldest && key_of(i) <= newest;
      if (biases != nullptr && is_seen) scores[i] += biases[-key_of(i)];
      scores[i] = is_seen ? scores[i] * scale : -INFINITY;
    }
  }
  Share share;
  Weigh(scores, share.top, share.total);
  return share;
}

// A tile's weights become terms.
BST_DEVICE void StoreWeights(const float (&scores)[kRows][kScores], FourWords* weights) {
  BST_UNROLL
  for (int step = 0; step < kKeySteps; ++step) {
    FourWords terms[kTerms];
    BST_UNROLL
    for (int i = 0; i < 4; ++i) {
      const int r = i % 2, at = step * 4 + i / 2 * 2;
      float x = scores[r][at], y = scores[r][at + 1];
      BST_UNROLL
      for (int term = 0; term < kTerms; ++term) terms[term].words[i] = TakeTerm(x, y);
    }
    BST_UNROLL
    for (int term = 0; term < kTerms; ++term) weights[(step * kTerms + term) * kWarp] = terms[term];
  }
}

// A tile's weights with the side's columns of its values.
BST_DEVICE void MultiplyValues(const FourWords* weights, const FourWords* values, const Stand& at,
                               int tile, FragmentC (&parts)[kHalfFragments]) {
  BST_UNROLL
  for (int step = 0; step < kKeySteps; ++step) {
    FourWords words[4];  // of keys 2 t, 2 t + 1, 2 t + 8, 2 t + 9
    BST_UNROLL
    for (int i = 0; i < 4; ++i) {
      const int key = tile * kTileKeys + step * kFragmentDepth + 2 * at.t + i % 2 + i / 2 * 8;
      words[i] = values[Place(key, at.side * kHalfColumns / kColumnsOfWords + at.g)];
    }
    FragmentA a[kTerms];
    BST_UNROLL
    for (int term = 0; term < kTerms; ++term) {
      const FourWords from = weights[(step * kTerms + term) * kWarp];
      a[term] = {{from.words[0], from.words[1], from.words[2], from.words[3]}};
    }
    BST_UNROLL
    for (int i = 0; i < kHalfFragments; ++i) {
      const FragmentB b = {{PairOf(words[0], words[1], i), PairOf(words[2], words[3], i)}};
      BST_UNROLL
      for (int term = 0; term < kTerms; ++term) MultiplyAdd(a[term], b, parts[i]);
    }
  }
}

// A tile joins those before it.
BST_DEVICE void JoinTile(const Share* shares, const FragmentC (&parts)[kHalfFragments],
                         SoFar* so_far, FragmentC (&sums)[kHalfFragments]) {
  JoinWeights joins[kRows];
  SoFar joined = *so_far;
  BST_UNROLL
  for (int r = 0; r < kRows; ++r) {
    const Share share = shares[8 * r];
    joins[r] = JoinTops(joined.tops[r], share.top);
    joined.totals[r] = Join(joins[r], joined.totals[r], share.total);
  }
  *so_far = joined;
  BST_UNROLL
  for (int i = 0; i < kHalfFragments; ++i) {
    BST_UNROLL
    for (int j = 0; j < 4; ++j)
      sums[i].values[j] = Join(joins[j / 2], sums[i].values[j], parts[i].values[j]);
  }
}

// Element j of fragment i has row g + 8 (j / 2) and column 8 (2 t + j % 2) + i of its half.
BST_DEVICE void WriteOutputs(const FragmentC (&sums)[kHalfFragments], const float (&totals)[kRows],
                             const Matrix& out, int count, int head_dim, const Stand& at) {
  const bool is_wide = IsWide(out);
  BST_UNROLL
  for (int j = 0; j < 4; ++j) {
    const int query = at.group * kFragmentRows + at.g + j / 2 * 8;
    const int column = at.side * kHalfColumns + (2 * at.t + j % 2) * kColumnsOfWords;
    if (query >= count || column >= head_dim) continue;
    const float inverse = Inverse(totals[j / 2]);
    float* const to = out.data + query * out.stride + column;
    BST_UNROLL
    for (int i = 0; i < kHalfFragments; i += 4) {
      FourFloats four;
      BST_UNROLL
      for (int k = 0; k < 4; ++k) four.values[k] = Output(sums[i + k].values[j], inverse);
      if (is_wide) {
        *reinterpret_cast<FourFloats*>(to + i) = four;
      } else {
        BST_UNROLL
        for (int k = 0; k < 4; ++k) to[i + k] = four.values[k];
      }
    }
  }
}

// View::kHasNew says whether keys may be new ones of the step; view.where.Source(key), of any that
// a query sees, which are where.oldest .. where.newest, and how many queries there are;
// view.Oldest(query) and view.Newest(query) of those it sees, which neither grow smaller from query
// to query; view.Biases(query)[-key], if not null, of keys that it sees. out() are the outputs, of
// the first query on.
template <typename View, typename Out>
BST_DEVICE void AttendTile(const Queries& own, const View& view, Out out) {
  BST_DYNAMIC_SHARED(FourWords, shared);
  const auto thread = static_cast<uint32_t>(ThreadX());
  const int lane = thread % kWarp, warp = thread / kWarp, g = thread % kWarp / 4, t = thread % 4;
  const int group = warp % kGroups, side = warp / kGroups;
  const Stand at = {.g = g, .t = t, .group = group, .side = side};
  FourWords* const queries = shared + group * kQueryFragments + lane;  // A of each step and term
  FourWords* const weights =  // likewise, of the tiles one after the other
      shared + kGroups * kQueryFragments + group * kSides * kWeightFragments + lane;
  FourWords* const keys = shared + kGroups * (kQueryFragments + kSides * kWeightFragments);
  FourWords* const values = keys + kSides * kTileWords;
  SoFar* const so_far = reinterpret_cast<SoFar*>(values + kSides * kTileWords) + thread;
  Share* const shares =  // of the lane's first query, of the tiles one after the other
      reinterpret_cast<Share*>(shared + kSharedWords) + group * kSides * kFragmentRows + g;

  Range* const ranges =
      reinterpret_cast<Range*>(reinterpret_cast<Share*>(shared + kSharedWords) + kShares);

  // Where the keys of a pair lie, in two copies in turn.
  int* const sources = reinterpret_cast<int*>(ranges + kQueriesOfATile);
  using Where = typename View::Where;  // in shared memory, for registers are short
  Where* const where = reinterpret_cast<Where*>(sources + 2 * kPairKeys);
  static_assert(sizeof(Where) <= kWhereBytes);
  if (thread == 0) {
    *where = view.where;
    if (where->newest < where->oldest) where->newest = -1;
  }
  const auto find_sources = [&](int first) {
    if (thread >= kPairKeys) return;
    const int key = first + static_cast<int>(thread);
    sources[first % (2 * kPairKeys) + thread] =
        key >= where->oldest && key <= where->newest ? where->Source(key) : kZeroKey;
  };

  const bool is_wide = IsWide(own.keys.new_k) && IsWide(own.keys.new_v);
  const int load_words = thread % kRowWords, load_key = thread / kRowWords;
  const uint32_t load_column = load_words * kColumnsOfWords;
  const auto stride = static_cast<uint32_t>(own.keys.stride);  // 32 bits each: one instruction
  const auto load = [&](OnItsWay& next, bool is_values, int first, int first_of_pair) {
    const int source = static_cast<int>(load_column) < own.head_dim
                           ? sources[first % (2 * kPairKeys) + first_of_pair + load_key]
                           : kZeroKey;
    next = {{}, source};
    if (source >= 0) {
      const Bf16* from = (is_values ? where->v : where->k) +
                         (uint64_t{static_cast<uint32_t>(source)} * stride + load_column);
      next.words[0] = *reinterpret_cast<const FourWords*>(from);
    } else if (View::kHasNew && source != kZeroKey) {
      const Matrix& fresh = is_values ? own.keys.new_v : own.keys.new_k;
      const float* from = fresh.data + (uint64_t{static_cast<uint32_t>(~source)} *
                                            static_cast<uint32_t>(fresh.stride) +
                                        load_column);
      BST_UNROLL
      for (int half = 0; half < 2; ++half) {
        const FourFloats floats = LoadFour(from + 4 * half, is_wide);
        BST_UNROLL
        for (int j = 0; j < 4; ++j) next.words[half].words[j] = FloatBits(floats.values[j]);
      }
    }
  };
  const auto store = [&](const OnItsWay& next, FourWords* to, int first_key) {
    FourWords words = next.words[0];
    if (View::kHasNew && next.source < 0 && next.source != kZeroKey) {
      BST_UNROLL
      for (int j = 0; j < 4; ++j) {
        const uint32_t* floats = next.words[j / 2].words + j % 2 * 2;
        words.words[j] = PackBf16(FloatFromBits(floats[0]), FloatFromBits(floats[1]));
      }
    }
    to[Place(first_key + load_key, load_words)] = words;
  };

  const int first_query = group * kFragmentRows;
  StoreTerms(own, view.where.count, at, queries);
  // Queries that are not there see what the last one does: nothing is written of them.
  if (thread < kQueriesOfATile) {
    const int query = static_cast<int>(thread) < view.where.count ? thread : view.where.count - 1;
    ranges[thread] = {view.Oldest(query), view.Newest(query)};
  }
  SyncThreads();
  find_sources(0);
  SyncThreads();
  if (where->newest >= 0) {
    BST_NO_UNROLL
    for (int i = 0; i < kSides * kLoads; ++i) {
      OnItsWay next = {};
      load(next, false, 0, i * kLoadedKeys);
      store(next, keys, i * kLoadedKeys);
    }
  }
  const Range* const of_group = ranges + first_query;
  // Whether any query of the group sees a key of a tile, and whether all see all of them.
  const auto is_seen = [&](int first) {
    return first_query < where->count && first <= of_group[kFragmentRows - 1].newest &&
           first + kTileKeys > of_group[0].oldest;
  };
  const auto all_see = [&](int first) {
    return first >= of_group[kFragmentRows - 1].oldest &&
           first + kTileKeys - 1 <= of_group[0].newest;
  };

  FragmentC sums[kHalfFragments] = {};
  *so_far = {{-INFINITY, -INFINITY}, {0.0f, 0.0f}};
  for (int first = 0; first <= where->newest; first += kPairKeys) {
    const int own_first = first + side * kTileKeys;  // of the tile that this warp weighs
    FragmentC dots[kKeyFragments] = {};
    SyncThreads();
    find_sources(first + kPairKeys);
    const bool weighs = is_seen(own_first);
    BST_NO_UNROLL
    for (int j = 0; j < kPieces; ++j) {
      OnItsWay next = {};
      load(next, true, first, j * kLoadedKeys);
      if (weighs && j * kPieceColumns < own.head_dim) MultiplyKeys(queries, keys, at, j, dots);
      store(next, values, j * kLoadedKeys);
    }
    if (weighs) {
      float scores[kRows][kScores];
      BST_UNROLL
      for (int r = 0; r < kRows; ++r) {
        const int query = first_query + g + 8 * r;
        const float* const biases = query < where->count ? view.Biases(query) : nullptr;
        const Share share = WeighQuery(dots, r, own_first + 2 * t, all_see(own_first),
                                       ranges[query], biases, where->scale, scores[r]);
        if (t == 0) shares[side * kFragmentRows + 8 * r] = share;
      }
      StoreWeights(scores, weights + side * kWeightFragments);
    }
    SyncThreads();
    const bool goes_on = first + kPairKeys <= where->newest;
    BST_NO_UNROLL
    for (int tile = 0; tile < kSides; ++tile) {
      const int load_first = tile * kTileKeys;
      const bool weighed = is_seen(first + tile * kTileKeys) && side * kHalfColumns < own.head_dim;
      FragmentC parts[kHalfFragments] = {};
      if (weighed) MultiplyValues(weights + tile * kWeightFragments, values, at, tile, parts);
      OnItsWay next[kLoads] = {};
      if (goes_on) {
        BST_UNROLL
        for (int i = 0; i < kLoads; ++i)
          load(next[i], false, first + kPairKeys, load_first + i * kLoadedKeys);
      }
      if (weighed) JoinTile(shares + tile * kFragmentRows, parts, so_far, sums);
      if (goes_on) {
        BST_UNROLL
        for (int i = 0; i < kLoads; ++i) store(next[i], keys, load_first + i * kLoadedKeys);
      }
    }
  }
  WriteOutputs(sums, so_far->totals, out(), where->count, own.head_dim, at);
}

struct RingView {
  static constexpr bool kHasNew = true;
  struct Where {
    const Bf16* k;
    const Bf16* v;
    int count;  // of queries
    float scale;
    int oldest, newest;
    int document;              // the number of the document's first key: those before it are zeros
    int step_key, step_token;  // the number of the row's first token of the step, and which that is
    RingRows rows;

    BST_DEVICE int Source(int key) const {
      if (key < document) return kZeroKey;
      if (key >= step_key) return ~(step_token + (key - step_key));
      return rows.Row(key);
    }
  };
  const AttentionTask& task;
  Where where;
  int64_t position;  // of the first query
  int first_query;   // its number
  int place;
  int head;

  BST_DEVICE int Oldest(int query) const {
    const int64_t own = position + query;
    return first_query + query - Farthest(task, own, (place + query) % task.window);
  }
  BST_DEVICE int Newest(int query) const { return first_query + query - task.nearest; }
  BST_DEVICE const float* Biases(int query) const {
    if (task.bias == nullptr) return nullptr;
    return task.bias + (head * (task.window + 1) + first_query + query);
  }
};

struct ContextView {
  static constexpr bool kHasNew = false;
  struct Where {
    const Bf16* k;
    const Bf16* v;
    int count;
    float scale;
    int oldest, newest;

    BST_DEVICE int Source(int key) const { return key; }
  };
  Where where;

  BST_DEVICE int Oldest(int /*query*/) const { return 0; }
  BST_DEVICE int Newest(int /*query*/) const { return where.newest; }
  BST_DEVICE const float* Biases(int /*query*/) const { return nullptr; }
};

template <typename Task, typename View>
BST_DEVICE void AttendTileOf(const Task& task, int first, const NewKeys& keys, const View& view) {
  const int64_t column = static_cast<int64_t>(BlockY()) * task.head_dim;
  AttendTile({.q = {task.q.data + first * task.q.stride + column, task.q.stride},
              .head_dim = task.head_dim,
              .keys = keys},
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
  const int first_query = static_cast<int>(tile.position - origin);
  const int oldest_key = static_cast<int>(oldest - origin);
  const RingView view = {.task = task,
                         .where = {.k = ring + column,
                                   .v = ring + task.window * width + column,
                                   .count = tile.count,
                                   .scale = task.scale[BlockY()] * kLog2E,
                                   .oldest = oldest_key,
                                   .newest = first_query + tile.count - 1 - task.nearest,
                                   .document = origin < 0 ? static_cast<int>(-origin) : 0,
                                   .step_key = first_query - (tile.first - tile.begin),
                                   .step_token = tile.begin,
                                   .rows = RingRows(task, tile.place, farthest, oldest_key)},
                         .position = tile.position,
                         .first_query = first_query,
                         .place = tile.place,
                         .head = BlockY()};
  AttendTileOf(task, tile.first,
               {.stride = width,
                .new_k = {task.k.data + column, task.k.stride},
                .new_v = {task.v.data + column, task.v.stride}},
               view);
}

BST_DEVICE void AttendContext(const ContextTask& task) {
  if (HasNoRow(task.num_tiles)) return;
  const ContextTile tile = task.tiles[BlockX()];
  const int64_t column = static_cast<int64_t>(BlockY()) * task.head_dim;
  const Keys<Bf16> keys = ContextKeys<Bf16>(task, tile.context, column);
  AttendTileOf(task, tile.first, {.stride = keys.stride, .new_k = keys.new_k, .new_v = keys.new_v},
               ContextView{.where = {.k = keys.k,
                                     .v = keys.v,
                                     .count = tile.count,
                                     .scale = task.scale[BlockY()] * kLog2E,
                                     .oldest = 0,
                                     .newest = tile.num_rows - 1}});
}

template <typename Task>
LaunchShape ShapeOf(const Task& task) {
  return {.blocks_x = task.num_tiles.most,
          .blocks_y = task.heads,
          .threads = kThreads,
          .shared_bytes = kSharedBytes};
}

}  // namespace

BST_KERNEL void BST_BOUNDS(256, 2) bst_attention_tiles(AttentionTask task) { AttendRing(task); }
BST_KERNEL void BST_BOUNDS(256, 2) bst_context_tiles(ContextTask task) { AttendContext(task); }

bool PrepareAttention(Stream& stream) {
  return BST_ALLOW_SHARED(bst_attention_tiles, kSharedBytes, stream) == kSharedBytes &&
         BST_ALLOW_SHARED(bst_context_tiles, kSharedBytes, stream) == kSharedBytes;
}
void AttentionTiles(Stream& stream, const AttentionTask& task) {
  const LaunchShape shape = ShapeOf(task);
  if (shape.blocks_x > 0) BST_LAUNCH(bst_attention_tiles, shape, stream, task);
}
void ContextTiles(Stream& stream, const ContextTask& task) {
  const LaunchShape shape = ShapeOf(task);
  if (shape.blocks_x > 0) BST_LAUNCH(bst_context_tiles, shape, stream, task);
}

}  // namespace bst::cuda
