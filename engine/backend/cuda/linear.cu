// Linear layers: two kernels for each type, one order of summation (kernels.h).
//
//   few, F32    a block has 32 columns and up to four rows, a thread per output; all threads bring
//               the weights
//   few, BF16   a block has up to 16 tiles of 16 features and up to 32 rows, a warp for each tile
//               and segment; four to sixteen more warps bring weights and x to shared memory, by
//               copies that run several stages ahead; x is rounded on its way to the tensor cores
//   tile, F32   64 x 64 outputs in shared memory, 4 x 4 of a thread
//   tile, BF16  128 features x 64 rows, 32 x 32 of a warp, in fragments; x is rounded on its way
//               into shared memory
//
// The few are bound by the weights' bytes, tiles by operations.
// Shared memory is written between two barriers and read after the second. Rows of a BF16 tile are
// 20 words apart: the eight rows and four words that a fragment reads lie in 32 banks.
//
// One file, though long: that the few and the tiles of a type add in the same order is seen best
// where they stand side by side.
#include "engine/backend/cuda/activation.cuh"
#include "engine/backend/cuda/device.h"
#include "engine/backend/cuda/four_floats.cuh"
#include "engine/backend/cuda/kernels.h"
#include "engine/backend/cuda/launch.h"
#include "engine/backend/cuda/mma.cuh"
#include "engine/backend/cuda/row_count.cuh"

namespace bst::cuda {

// LinearTask in blocks of few tokens.
struct FewTask {
  LinearTask linear;
  int tiles;       // of 16 features
  int segments;    // side by side
  int stages;      // in shared memory
  int rows;        // that a stage has room for
  int copy_warps;  // the last ones of a block
};

namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;

// The sums of `count` segments, `stride` apart, of which the first begins at `first`, join those
// before them, which lie in `out`.
BST_DEVICE void AddSegments(const LinearTask& task, int first, int count, int row, int column,
                            const float* sums, int stride) {
  float& out = task.out.data[row * task.out.stride + column];
  float total = first > 0 || task.add ? out + sums[0] : sums[0];
  BST_NO_UNROLL
  for (int i = 1; i < count; ++i) total += sums[i * stride];
  const bool last = first + count * kLinearSegment >= task.in;
  out = last && !task.add ? Apply(task.activation, total * task.scale) : total;
}
BST_DEVICE void AddSegment(const LinearTask& task, int first, int row, int column, float sum) {
  AddSegments(task, first, 1, row, column, &sum, 0);
}

// ---- F32

constexpr int kFewRows = 4;
constexpr int kFewColumns = 32;
constexpr int kFewDepth = 128;  // of the weights brought at a time
constexpr int kFewLoads = kFewColumns * kFewDepth / kThreads;
static_assert(kFewRows * kFewColumns <= kThreads && kLinearSegment % kFewDepth == 0);

BST_DEVICE void FewRows(const LinearTask& task) {
  BST_SHARED(float, ws, kFewDepth* kFewColumns);  // [k][column]
  BST_SHARED(float, xs, kFewRows* kFewDepth);
  const int column = BlockX() * kFewColumns + ThreadX() % kFewColumns;
  const int row = ThreadX() / kFewColumns, rows = Exact(task.rows);
  const bool has_output = row < rows && column < task.out_features;
  const float* weights = static_cast<const float*>(task.weights) + BlockX() * kFewColumns;
  float next[kFewLoads];
  const auto load = [&](int first) {
    BST_UNROLL
    for (int i = 0; i < kFewLoads; ++i) {
      const int at = ThreadX() + i * kThreads, k = first + at / kFewColumns;
      next[i] = k < task.in ? weights[int64_t{k} * task.padded_out + at % kFewColumns] : 0.0f;
    }
  };
  load(0);
  float sum = 0.0f;
  for (int first = 0; first < task.in; first += kFewDepth) {
    const int depth = task.in - first < kFewDepth ? task.in - first : kFewDepth;
    SyncThreads();
    BST_UNROLL
    for (int i = 0; i < kFewLoads; ++i) ws[ThreadX() + i * kThreads] = next[i];
    for (int i = ThreadX(); i < kFewRows * kFewDepth; i += kThreads) {
      const int r = i / kFewDepth, k = i % kFewDepth;
      xs[i] = r < rows && k < depth ? task.x.data[r * task.x.stride + first + k] : 0.0f;
    }
    SyncThreads();
    load(first + kFewDepth);  // on its way while these are added
    if (!has_output) continue;
    for (int k = 0; k < depth; ++k)
      sum = fmaf(xs[row * kFewDepth + k], ws[k * kFewColumns + ThreadX() % kFewColumns], sum);
    if ((first + kFewDepth) % kLinearSegment == 0 || first + kFewDepth >= task.in) {
      AddSegment(task, first / kLinearSegment * kLinearSegment, row, column, sum);
      sum = 0.0f;
    }
  }
}

constexpr int kTile = 64;
constexpr int kDepth = 16;
constexpr int kMicro = 4;  // a thread's outputs: kMicro x kMicro
static_assert(kLinearColumns % kTile == 0 && kLinearSegment % kDepth == 0);
static_assert(kThreads * kMicro * kMicro == kTile * kTile);

BST_DEVICE void Tile(const LinearTask& task) {
  BST_SHARED(float, xs, kDepth*(kTile + 1));  // [k][row]; the odd stride spreads the banks
  BST_SHARED(float, ws, kDepth* kTile);       // [k][column]
  const int first_row = BlockY() * kTile, first_column = BlockX() * kTile;
  const int rows = Exact(task.rows);
  if (first_row >= rows) return;
  const int x0 = ThreadX() % (kTile / kMicro), y0 = ThreadX() / (kTile / kMicro) * kMicro;
  const float* weights = static_cast<const float*>(task.weights) + first_column;
  float sums[kMicro][kMicro] = {};
  for (int first = 0; first < task.in; first += kDepth) {
    const int depth = task.in - first < kDepth ? task.in - first : kDepth;
    for (int i = ThreadX(); i < kTile * kDepth; i += kThreads) {
      const int k = i % kDepth, row = i / kDepth;
      const bool inside = k < depth && first_row + row < rows;
      xs[k * (kTile + 1) + row] =
          inside ? task.x.data[(first_row + row) * task.x.stride + first + k] : 0.0f;
    }
    for (int i = ThreadX(); i < kTile * kDepth; i += kThreads) {
      const int k = i / kTile, column = i % kTile;
      ws[i] = k < depth ? weights[int64_t{first + k} * task.padded_out + column] : 0.0f;
    }
    SyncThreads();
    for (int k = 0; k < depth; ++k) {
      float x[kMicro], w[kMicro];
      BST_UNROLL
      for (int i = 0; i < kMicro; ++i) x[i] = xs[k * (kTile + 1) + y0 + i];
      BST_UNROLL
      for (int j = 0; j < kMicro; ++j) w[j] = ws[k * kTile + x0 + j * (kTile / kMicro)];
      BST_UNROLL
      for (int i = 0; i < kMicro; ++i) {
        BST_UNROLL
        for (int j = 0; j < kMicro; ++j) sums[i][j] = fmaf(x[i], w[j], sums[i][j]);
      }
    }
    if ((first + kDepth) % kLinearSegment == 0 || first + kDepth >= task.in) {
      BST_UNROLL
      for (int i = 0; i < kMicro; ++i) {
        BST_UNROLL
        for (int j = 0; j < kMicro; ++j) {
          const int row = first_row + y0 + i, column = first_column + x0 + j * (kTile / kMicro);
          if (row < rows && column < task.out_features)
            AddSegment(task, first / kLinearSegment * kLinearSegment, row, column, sums[i][j]);
          sums[i][j] = 0.0f;
        }
      }
    }
    SyncThreads();
  }
}

// ---- BF16. Fragments: A is of the weights, features in its rows; B of x, tokens in its columns.

BST_DEVICE const uint32_t* WeightWords(const LinearTask& task, int feature) {
  return static_cast<const uint32_t*>(task.weights) + int64_t{feature} * (task.padded_in / 2);
}

// Shared memory of a block of few tokens: stages of kStageDepth k of the weights and of x, in turn;
// behind them the sums of a round of segments. A stage has for each segment of the round the
// weights of its tiles; then x of its tokens for each. Rows lie at multiples of 128 bytes; their
// pieces of 16 bytes are exchanged (WeightWord, InputWord) so that the rows that a fragment reads
// lie in 32 banks.
constexpr int kFewTokens = 32;
constexpr int kFewWarps = 16;  // that multiply, at most
// Warps that copy: of few rows one of each scheduler of a multiprocessor; of more all that there is
// room for, since a row costs as many instructions as a tile.
constexpr int kCopyWarps = 4, kMostCopyWarps = 16, kMostWarps = 20;
constexpr int kFewGroups = 8;  // of tokens, at most: beyond that tiles
constexpr int kStageDepth = 128;
constexpr int kStageSteps = kStageDepth / kFragmentDepth;
constexpr int kSegmentStages = kLinearSegment / kStageDepth;
constexpr int kMostStages = 8;
constexpr int kMostSharedBytes = 227 << 10;  // all that a block of an H100 can have
constexpr int kTileWords = kFragmentRows * kStageDepth / 2;
constexpr int kSumsOfARow = kFragmentRows + 4;  // lanes of a fragment's columns: in 32 banks
static_assert(kLinearSegment % kStageDepth == 0 && kLinearColumns % kFragmentRows == 0);

BST_DEVICE int WeightWord(int feature, int word) {
  return feature * (kStageDepth / 2) + (word ^ feature % 8 * 4);
}
BST_DEVICE int InputWord(int token, int k) { return token * kStageDepth + (k ^ token % 4 * 8); }

// What a thread of the warps that copy brings of every stage: pieces of 16 bytes, of every
// `copy_warps`-th tile of weights and, counted from the other end, of every such row of x. Warps
// that multiply wait for a stage's copies to begin, so whatever can be is worked out once, here.
class StageCopies {
 public:
  // `rows` tokens from `x` on. `thread` is that among the copying ones.
  BST_DEVICE StageCopies(const FewTask& few, const float* x, int rows, int thread)
      : warps_(few.copy_warps),
        tiles_(few.tiles),
        all_tiles_(few.segments * few.tiles),
        rows_(rows),
        all_rows_(few.segments * rows),
        row_words_(few.linear.padded_in / 2),
        x_stride_(few.linear.x.stride),
        input_words_(few.rows * kStageDepth),
        round_(kStageDepth + (few.segments - 1) * kLinearSegment) {
    const LinearTask& task = few.linear;
    const int lane = thread % kWarp;
    const int first_feature = BlockX() * few.tiles * kFragmentRows;
    const int tiles = (task.padded_out - first_feature) / kFragmentRows;
    there_ = tiles < few.tiles ? tiles : few.tiles;
    first_tile_ = thread / kWarp;
    const int segment_of_tile = first_tile_ / few.tiles;
    tile_ = first_tile_ % few.tiles;
    feature_ = lane / kPieces;
    word_ = lane % kPieces * 4;
    weights_ = WeightWords(task, first_feature + tile_ * kFragmentRows + feature_) + word_ +
               segment_of_tile * (kLinearSegment / 2);
    weights_left_ = task.padded_in - 2 * word_ - segment_of_tile * kLinearSegment;

    by_four_ = reinterpret_cast<uintptr_t>(x) % 16 == 0 && x_stride_ % 4 == 0;
    k_ = by_four_ ? 4 * lane : lane;
    first_row_ = warps_ - 1 - first_tile_;
    const int segment_of_row = first_row_ / rows;
    row_ = first_row_ % rows;
    x_ = x + row_ * x_stride_ + segment_of_row * kLinearSegment + k_;
    x_left_ = task.in - segment_of_row * kLinearSegment - k_;
    inputs_at_ = all_tiles_ * kTileWords + segment_of_row * input_words_;
  }

  // The next stage's copies begin.
  BST_DEVICE void Start(uint32_t* to) const {
    StartWeights(to + first_tile_ * kTileWords);
    StartInputs(to + inputs_at_);
  }
  // To the stage after that; `ends` a round, after which the segments begin behind those so far.
  BST_DEVICE void Advance(bool ends) {
    const int k = ends ? round_ : kStageDepth;
    weights_ += k / 2;
    weights_left_ -= k;
    x_ += k;
    x_left_ -= k;
  }

 private:
  BST_DEVICE void StartWeights(uint32_t* to) const {
    const uint32_t* from = weights_;
    int tile = tile_, left = weights_left_;
    BST_NO_UNROLL
    for (int i = first_tile_; i < all_tiles_;) {
      if (tile < there_ && left > 0) {
        BST_UNROLL
        for (int row = 0; row < kFragmentRows; row += kRowsAtATime)
          StartCopy<16>(to + WeightWord(feature_ + row, word_), from + int64_t{row} * row_words_,
                        16);
      }
      i += warps_;
      if (i >= all_tiles_) break;
      to += warps_ * kTileWords;
      tile += warps_;
      from += int64_t{warps_} * kFragmentRows * row_words_;
      BST_NO_UNROLL
      for (; tile >= tiles_; tile -= tiles_) {
        from += kLinearSegment / 2 - int64_t{tiles_} * kFragmentRows * row_words_;
        left -= kLinearSegment;
      }
    }
  }
  BST_DEVICE void StartInputs(uint32_t* to) const {
    const float* from = x_;
    int row = row_, left = x_left_;
    BST_NO_UNROLL
    for (int i = first_row_; i < all_rows_;) {
      if (by_four_) {
        StartCopy<16>(to + InputWord(row, k_), from, left <= 0 ? 0 : left < 4 ? 4 * left : 16);
      } else {
        BST_NO_UNROLL
        for (int k = 0; k < kStageDepth; k += kWarp)
          StartCopy<4>(to + InputWord(row, k_ + k), from + k, k < left ? 4 : 0);
      }
      i += warps_;
      if (i >= all_rows_) break;
      row += warps_;
      from += warps_ * x_stride_;
      BST_NO_UNROLL
      for (; row >= rows_; row -= rows_) {
        from += kLinearSegment - rows_ * x_stride_;
        left -= kLinearSegment;
        to += input_words_;
      }
    }
  }

  static constexpr int kPieces = kStageDepth / 8;  // of 16 bytes in a row of weights
  static constexpr int kRowsAtATime = kWarp / kPieces;
  int warps_;
  int tiles_, there_, all_tiles_;  // of a segment in the stage, of them in the matrix, of the stage
  int rows_, all_rows_;
  int row_words_;
  int64_t x_stride_;
  int input_words_;  // of a segment
  int round_;        // k from the last stage of a round to the first of the next
  // The thread's first tile and first row of a stage.
  int first_tile_, tile_, feature_, word_;
  const uint32_t* weights_;
  int weights_left_;  // k that are there from its own on
  bool by_four_;
  int k_, first_row_, row_;
  const float* x_;
  int x_left_, inputs_at_;
};

// `kSteps` steps of one tile of features: their fragments come into registers before the first
// product, for a product in a chain would wait for loads of its own.
template <int kTokenTiles, int kSteps>
struct Fragments {
  FragmentA a[kSteps];
  FragmentB b[kSteps][kTokenTiles];
};
// `weight_word` and `input_words` are the lane's, for k = 0. Pieces are exchanged within 32 words
// (WeightWord, InputWord), so what is exchanged is the same again and again.
template <int kTokenTiles, int kSteps>
BST_DEVICE void LoadFragments(const uint32_t* weights, const uint32_t* inputs, int first_step,
                              int weight_word, const int (&input_words)[kTokenTiles],
                              Fragments<kTokenTiles, kSteps>& to) {
  BST_UNROLL
  for (int i = 0; i < kSteps; ++i) {
    const int step = first_step + i;
    const uint32_t* const w0 = weights + (weight_word ^ step % 4 * 8) + step / 4 * 32;
    const uint32_t* const w8 = weights + (weight_word ^ (step % 4 * 8 + 4)) + step / 4 * 32;
    to.a[i] = {{w0[0], w0[4 * kStageDepth], w8[0], w8[4 * kStageDepth]}};
    BST_UNROLL
    for (int j = 0; j < kTokenTiles; ++j) {
      const auto pair = [&](int k) {
        const auto x =
            *reinterpret_cast<const TwoFloats*>(inputs + (input_words[j] ^ k % 32) + k / 32 * 32);
        return PackBf16(x.values[0], x.values[1]);
      };
      to.b[i][j] = {{pair(step * 16), pair(step * 16 + 8)}};
    }
  }
}
template <int kTokenTiles, int kSteps>
BST_DEVICE void Multiply(const Fragments<kTokenTiles, kSteps>& fragments,
                         FragmentC (&sums)[kTokenTiles]) {
  BST_UNROLL
  for (int i = 0; i < kSteps; ++i) {
    BST_UNROLL
    for (int j = 0; j < kTokenTiles; ++j) MultiplyAdd(fragments.a[i], fragments.b[i][j], sums[j]);
  }
}

// A stage, of which `steps` steps, an even number, are there.
template <int kTokenTiles>
BST_DEVICE void MultiplyStage(const uint32_t* weights, const uint32_t* inputs, int steps,
                              int weight_word, const int (&input_words)[kTokenTiles],
                              FragmentC (&sums)[kTokenTiles]) {
  static_assert(kLinearDepth % (2 * kFragmentDepth) == 0);
  if (steps < kStageSteps) {
    BST_NO_UNROLL
    for (int step = 0; step < steps; step += 2) {
      Fragments<kTokenTiles, 2> fragments;
      LoadFragments(weights, inputs, step, weight_word, input_words, fragments);
      Multiply(fragments, sums);
    }
    return;
  }
  // While the products of one burst are made the next one is on its way.
  constexpr int kBurst = kTokenTiles == 4 ? 2 : 4;
  Fragments<kTokenTiles, kBurst> bursts[2];
  LoadFragments(weights, inputs, 0, weight_word, input_words, bursts[0]);
  BST_UNROLL
  for (int i = 0; i < kStageSteps / kBurst; ++i) {
    if ((i + 1) * kBurst < kStageSteps) {
      LoadFragments(weights, inputs, (i + 1) * kBurst, weight_word, input_words,
                    bursts[(i + 1) % 2]);
    }
    Multiply(bursts[i % 2], sums);
  }
}

// The warp's sums of `rows` tokens, to shared memory; they begin anew.
template <int kTokenTiles>
BST_DEVICE void StoreSums(const FewTask& few, int rows, float* all_sums,
                          FragmentC (&sums)[kTokenTiles]) {
  const int lane = ThreadX() % kWarp, warp = ThreadX() / kWarp, g = lane / 4, t = lane % 4;
  BST_UNROLL
  for (int j = 0; j < kTokenTiles; ++j) {
    BST_UNROLL
    for (int i = 0; i < 4; ++i) {
      const int row = j * kFragmentColumns + 2 * t + i % 2;
      if (row < rows)
        all_sums[(warp * few.rows + row) * kSumsOfARow + g + i / 2 * 8] = sums[j].values[i];
      sums[j].values[i] = 0.0f;
    }
  }
}
// The segments of the round that begins with input `first` join what is in `out`, one after the
// other.
BST_DEVICE void AddRound(const FewTask& few, int first, int first_row, int rows,
                         const float* all_sums) {
  const LinearTask& task = few.linear;
  const int features = few.tiles * kFragmentRows;
  const int left = (task.padded_in - first + kLinearSegment - 1) / kLinearSegment;
  const int segments = left < few.segments ? left : few.segments;
  BST_NO_UNROLL
  for (int i = ThreadX(); i < rows * features; i += NumThreads()) {
    const int row = i / features, of_block = i % features;
    const int feature = BlockX() * features + of_block;
    if (feature < task.out_features) {
      AddSegments(task, first, segments, first_row + row, feature,
                  all_sums + (of_block / kFragmentRows * few.rows + row) * kSumsOfARow +
                      of_block % kFragmentRows,
                  few.tiles * few.rows * kSumsOfARow);
    }
  }
}

template <int kTokenTiles>
BST_DEVICE void FewTokens(const FewTask& few, int rows) {
  BST_DYNAMIC_SHARED(uint32_t, shared);
  const LinearTask& task = few.linear;
  const int lane = ThreadX() % kWarp, warp = ThreadX() / kWarp, g = lane / 4, t = lane % 4;
  const int first_row = BlockY() * kFewTokens;
  rows = rows - first_row < kFewTokens ? rows - first_row : kFewTokens;
  const float* const x = task.x.data + first_row * task.x.stride;
  const int segment = warp / few.tiles, tile = warp % few.tiles;
  const int first_feature = (BlockX() * few.tiles + tile) * kFragmentRows;
  const bool has_tile = segment < few.segments && first_feature < task.padded_out;  // all lanes

  const int copy_thread = ThreadX() - few.segments * few.tiles * kWarp;
  const bool copies = copy_thread >= 0;

  const int stage_words = few.segments * (few.tiles * kTileWords + few.rows * kStageDepth);
  const int weights_at = warp * kTileWords;
  const int inputs_at = few.segments * few.tiles * kTileWords + segment * few.rows * kStageDepth;
  auto* const all_sums = reinterpret_cast<float*>(shared + few.stages * stage_words);
  const int weight_word = WeightWord(g, t);
  int input_words[kTokenTiles];
  BST_UNROLL
  for (int j = 0; j < kTokenTiles; ++j) {
    // A column of no row is another one's, for nobody.
    const int row = j * kFragmentColumns + g;
    input_words[j] = InputWord(row < rows ? row : rows - 1, 2 * t);
  }

  const int rounds =
      (task.padded_in + few.segments * kLinearSegment - 1) / (few.segments * kLinearSegment);
  const int last_begin = (rounds - 1) * few.segments * kLinearSegment;
  const int last_stages = (task.padded_in - last_begin + kStageDepth - 1) / kStageDepth;
  const int stages =
      (rounds - 1) * kSegmentStages + (last_stages < kSegmentStages ? last_stages : kSegmentStages);
  StageCopies stage_copies(few, x, rows, copies ? copy_thread : 0);
  const auto copy = [&](int stage, int place) {
    if (stage < stages) {
      stage_copies.Start(shared + place * stage_words);
      stage_copies.Advance((stage + 1) % kSegmentStages == 0);
    }
    CommitCopies();
  };
  if (copies) {
    for (int stage = 0; stage < few.stages - 1; ++stage) copy(stage, stage);
  }

  FragmentC sums[kTokenTiles] = {};
  int place = 0, free_place = few.stages - 1;
  int left = task.padded_in - segment * kLinearSegment;  // k that are there from the stage's on
  for (int stage = 0; stage < stages; ++stage) {
    if (copies) WaitForCopies(few.stages - 2);
    SyncThreads();  // the stage is there, and all have read the one before, whose place is free
    if (copies) {
      copy(stage + few.stages - 1, free_place);
    } else if (has_tile && left > 0) {
      const uint32_t* const at = shared + place * stage_words;
      const int steps = left / kFragmentDepth;
      MultiplyStage(at + weights_at, at + inputs_at, steps < kStageSteps ? steps : kStageSteps,
                    weight_word, input_words, sums);
    }
    free_place = place;
    place = place + 1 < few.stages ? place + 1 : 0;
    left -= kStageDepth;
    if ((stage + 1) % kSegmentStages != 0 && stage + 1 < stages) continue;
    left -= (few.segments - 1) * kLinearSegment;
    StoreSums(few, has_tile ? rows : 0, all_sums, sums);
    SyncThreads();
    AddRound(few, stage / kSegmentStages * few.segments * kLinearSegment, first_row, rows,
             all_sums);
  }
}

BST_DEVICE void Few(const FewTask& few) {
  const int rows = Exact(few.linear.rows), of_block = rows - BlockY() * kFewTokens;
  if (of_block <= 0) return;
  if (of_block <= kFragmentColumns) {
    FewTokens<1>(few, rows);
  } else if (of_block <= 2 * kFragmentColumns) {
    FewTokens<2>(few, rows);
  } else {
    FewTokens<4>(few, rows);
  }
}

constexpr int kTileFeatures = 128;
constexpr int kTileTokens = 64;
constexpr int kTileDepth = 32;
constexpr int kTileRowWords = kTileDepth / 2 + 4;  // from a row to the next
constexpr int kWarpFeatures = 32, kWarpTokens = 32;
constexpr int kFeatureTiles = kWarpFeatures / kFragmentRows;
constexpr int kTokenTiles = kWarpTokens / kFragmentColumns;
static_assert(kLinearColumns % kTileFeatures == 0 && kLinearSegment % kTileDepth == 0);
static_assert(kLinearDepth % kTileDepth == 0 && kLinearDepth % kFragmentDepth == 0);
static_assert(kTileFeatures / kWarpFeatures * (kTileTokens / kWarpTokens) == kWarps);

using WarpTiles = FragmentC[kFeatureTiles][kTokenTiles];

// The warp's tiles of the weights and of x in shared memory, from the lane's words on.
BST_DEVICE void MultiplyTiles(const uint32_t* weights, const uint32_t* inputs, WarpTiles& sums) {
  BST_UNROLL
  for (int k = 0; k < kTileDepth / 2; k += kFragmentDepth / 2) {  // in words
    FragmentA a[kFeatureTiles];
    BST_UNROLL
    for (int i = 0; i < kFeatureTiles; ++i) {
      const uint32_t* w = weights + i * kFragmentRows * kTileRowWords + k;
      a[i] = {{w[0], w[8 * kTileRowWords], w[4], w[8 * kTileRowWords + 4]}};
    }
    BST_UNROLL
    for (int j = 0; j < kTokenTiles; ++j) {
      const uint32_t* x = inputs + j * kFragmentColumns * kTileRowWords + k;
      const FragmentB b = {{x[0], x[4]}};
      BST_UNROLL
      for (int i = 0; i < kFeatureTiles; ++i) MultiplyAdd(a[i], b, sums[i][j]);
    }
  }
}
// The segment that begins with input `first` joins those before it; the sums, of the lane's rows
// and features from the first on, begin anew.
BST_DEVICE void AddTiles(const LinearTask& task, int first, int rows, int first_row,
                         int first_feature, WarpTiles& sums) {
  BST_UNROLL
  for (int i = 0; i < kFeatureTiles; ++i) {
    BST_UNROLL
    for (int j = 0; j < kTokenTiles; ++j) {
      BST_UNROLL
      for (int c = 0; c < 4; ++c) {
        const int row = first_row + j * kFragmentColumns + c % 2;
        const int feature = first_feature + i * kFragmentRows + c / 2 * 8;
        if (row < rows && feature < task.out_features)
          AddSegment(task, first, row, feature, sums[i][j].values[c]);
        sums[i][j].values[c] = 0.0f;
      }
    }
  }
}

BST_DEVICE void TokenTile(const LinearTask& task) {
  BST_SHARED(uint32_t, ws, kTileFeatures * kTileRowWords);
  BST_SHARED(uint32_t, xs, kTileTokens * kTileRowWords);
  constexpr int kWeightLoads = kTileFeatures * kTileDepth / 8 / kThreads;  // of four words
  constexpr int kInputs = kTileTokens * kTileDepth / kThreads;             // of one row
  const int lane = ThreadX() % kWarp, warp = ThreadX() / kWarp, g = lane / 4, t = lane % 4;
  const int first_feature = BlockX() * kTileFeatures, first_token = BlockY() * kTileTokens;
  const int warp_feature = warp % (kTileFeatures / kWarpFeatures) * kWarpFeatures;
  const int warp_token = warp / (kTileFeatures / kWarpFeatures) * kWarpTokens;
  const int rows = Exact(task.rows);
  if (first_token >= rows) return;
  const bool has_tokens = first_token + warp_token < rows;  // all lanes of the warp

  FourWords next_weights[kWeightLoads];
  float next_x[kInputs];
  const int x_row = ThreadX() / (kTileDepth / kInputs);
  const int x_k = ThreadX() % (kTileDepth / kInputs) * kInputs;
  const auto load = [&](int first) {
    if (first >= task.padded_in) return;
    BST_UNROLL
    for (int i = 0; i < kWeightLoads; ++i) {
      const int at = ThreadX() + i * kThreads;
      const uint32_t* words = WeightWords(task, first_feature + at / (kTileDepth / 8)) + first / 2;
      next_weights[i] = *reinterpret_cast<const FourWords*>(words + at % (kTileDepth / 8) * 4);
    }
    const float* x = task.x.data + (first_token + x_row) * task.x.stride + first + x_k;
    BST_UNROLL
    for (int i = 0; i < kInputs; ++i) {
      const bool inside = first_token + x_row < rows && first + x_k + i < task.in;
      next_x[i] = inside ? x[i] : 0.0f;
    }
  };
  load(0);
  WarpTiles sums = {};
  for (int first = 0; first < task.padded_in; first += kTileDepth) {
    SyncThreads();
    BST_UNROLL
    for (int i = 0; i < kWeightLoads; ++i) {
      const int at = ThreadX() + i * kThreads;
      uint32_t* to = ws + at / (kTileDepth / 8) * kTileRowWords + at % (kTileDepth / 8) * 4;
      *reinterpret_cast<FourWords*>(to) = next_weights[i];
    }
    BST_UNROLL
    for (int i = 0; i < kInputs; i += 2)
      xs[x_row * kTileRowWords + (x_k + i) / 2] = PackBf16(next_x[i], next_x[i + 1]);
    SyncThreads();
    load(first + kTileDepth);
    if (!has_tokens) continue;
    MultiplyTiles(ws + (warp_feature + g) * kTileRowWords + t,
                  xs + (warp_token + g) * kTileRowWords + t, sums);
    if ((first + kTileDepth) % kLinearSegment != 0 && first + kTileDepth < task.padded_in) continue;
    AddTiles(task, first / kLinearSegment * kLinearSegment, rows, first_token + warp_token + 2 * t,
             first_feature + warp_feature + g, sums);
  }
}

}  // namespace

BST_KERNEL void BST_BOUNDS(256, 3) bst_linear_few_f32(LinearTask task) { FewRows(task); }
BST_KERNEL void BST_BOUNDS(640, 1) bst_linear_few_bf16(FewTask task) { Few(task); }
BST_KERNEL void BST_BOUNDS(256, 3) bst_linear_tile_f32(LinearTask task) { Tile(task); }
BST_KERNEL void BST_BOUNDS(256, 2) bst_linear_tile_bf16(LinearTask task) { TokenTile(task); }

BST_KERNEL void BST_BOUNDS(256, 8) bst_round_rows(RoundTask task) {
  const float* x = task.x.data + BlockX() * task.x.stride;
  Bf16* out = static_cast<Bf16*>(task.out) + int64_t{BlockX()} * task.padded_columns;
  for (int k = ThreadX(); k < task.padded_columns; k += kThreads)
    out[k] = Store<Bf16>(k < task.columns ? x[k] : 0.0f);
}

BST_KERNEL void BST_BOUNDS(256, 8) bst_count_differences(DifferenceTask task) {
  BST_SHARED(int, counts, kWarps);
  const float* a = task.a.data + BlockX() * task.a.stride;
  const float* b = task.b.data + BlockX() * task.b.stride;
  int count = 0;
  for (int c = ThreadX(); c < task.columns; c += kThreads)
    count += FloatBits(a[c]) != FloatBits(b[c]) && !(a[c] != a[c] && b[c] != b[c]);
  count = SumLanes(count, kWarp);
  if (ThreadX() % kWarp == 0) counts[ThreadX() / kWarp] = count;
  SyncThreads();
  if (ThreadX() != 0) return;
  for (int warp = 1; warp < kWarps; ++warp) count += counts[warp];
  task.counts[BlockX()] = count;
}

namespace {

// How a block of few tokens is shaped: as many tiles as give each multiprocessor a block, as many
// segments side by side as there is room for, and then as many stages.
void LaunchFew(Stream& stream, const LinearTask& task) {
  constexpr int kBlocks = 128;  // an H100 has 132 multiprocessors
  const auto over = [](int n, int of) { return (n + of - 1) / of; };
  const int groups = over(task.rows.most, kFewTokens), segments = over(task.in, kLinearSegment);
  const int rows = task.rows.most < kFewTokens ? task.rows.most : kFewTokens;
  FewTask few = {.linear = task,
                 .tiles = 1,
                 .segments = 1,
                 .stages = 2,
                 .rows = rows,
                 .copy_warps = kCopyWarps};
  const int all_tiles = over(task.out_features, kFragmentRows);
  const auto stage_bytes = [&] {
    return 4 * few.segments * (few.tiles * kTileWords + rows * kStageDepth);
  };
  const auto sums_bytes = [&] { return 4 * few.segments * few.tiles * rows * kSumsOfARow; };
  const auto fits = [&] {
    return few.tiles * few.segments <= kFewWarps &&
           2 * stage_bytes() + sums_bytes() <= task.shared_bytes;
  };
  few.tiles = over(all_tiles * groups, kBlocks);
  if (few.tiles > kFewWarps) few.tiles = kFewWarps;
  while (few.tiles > 1 && !fits()) --few.tiles;
  few.segments = segments;
  while (few.segments > 1 && !fits()) --few.segments;
  few.stages = (task.shared_bytes - sums_bytes()) / stage_bytes();
  const int needed = over(task.padded_in, kStageDepth);
  for (const int most : {kMostStages, needed < 2 ? 2 : needed})
    if (few.stages > most) few.stages = most;
  const int warps = few.tiles * few.segments;
  if (rows > kFragmentColumns) {
    few.copy_warps = kMostWarps - warps;
    for (const int most : {kMostCopyWarps, few.segments * (few.tiles + rows)})
      if (few.copy_warps > most) few.copy_warps = most;
  }
  const LaunchShape shape = {.blocks_x = over(all_tiles, few.tiles),
                             .blocks_y = groups,
                             .threads = (warps + few.copy_warps) * kWarp,
                             .shared_bytes = few.stages * stage_bytes() + sums_bytes()};
  BST_LAUNCH(bst_linear_few_bf16, shape, stream, few);
}

}  // namespace

int PrepareLinear(Stream& stream) {
  return BST_ALLOW_SHARED(bst_linear_few_bf16, kMostSharedBytes, stream);
}
void Linear(Stream& stream, Element weights, const LinearTask& task) {
  if (task.rows.most == 0) return;
  const bool is_bf16 = weights == Element::kBf16;
  const auto blocks = [](int n, int of) { return (n + of - 1) / of; };
  if (is_bf16 && task.rows.most <= kFewGroups * kFewTokens) {
    LaunchFew(stream, task);
  } else if (is_bf16) {
    const LaunchShape shape = {.blocks_x = blocks(task.out_features, kTileFeatures),
                               .blocks_y = blocks(task.rows.most, kTileTokens)};
    BST_LAUNCH(bst_linear_tile_bf16, shape, stream, task);
  } else if (task.rows.most <= kFewRows) {
    const LaunchShape shape = {.blocks_x = blocks(task.out_features, kFewColumns)};
    BST_LAUNCH(bst_linear_few_f32, shape, stream, task);
  } else {
    const LaunchShape shape = {.blocks_x = blocks(task.out_features, kTile),
                               .blocks_y = blocks(task.rows.most, kTile)};
    BST_LAUNCH(bst_linear_tile_f32, shape, stream, task);
  }
}
void RoundRows(Stream& stream, const RoundTask& task) {
  if (task.rows > 0) BST_LAUNCH(bst_round_rows, LaunchShape{.blocks_x = task.rows}, stream, task);
}
void CountDifferences(Stream& stream, const DifferenceTask& task) {
  if (task.rows == 0) return;
  BST_LAUNCH(bst_count_differences, LaunchShape{.blocks_x = task.rows}, stream, task);
}

}  // namespace bst::cuda
