// Attention where keys and values are BF16 and the processor multiplies pairs of BF16: on dot
// products or on AMX tiles. Included by kernels_avx512.cc after attention_softmax.inl.
//
// Both halves of attention are products of a few rows with a packed matrix: scores, of queries
// (rounded to BF16) with keys, and outputs, of weights (rounded to BF16 too) with values. Sums are
// float32. The kernel is written over a `Products` type (attention_products.inl), which makes each
// output one chain of additions along K that no other row has a part in.
//
// Queries come in groups that lie in one step of 32 ring indices, at the same places whatever the
// chunk. In that step each query has its own border between its own block's keys and those of the
// block before: both are multiplied and the scores picked by index. Values go in such steps too.
// The step with the border is always taken twice, before the border from the query's own block and
// beyond from the block before, each with weights of zero for the rest: so a decode step, which
// finds both in one ring, adds the same numbers in the same order.
//
// Zero weights silence only finite values: a NaN or an infinity among a sequence's values reaches
// those of its own tokens, earlier ones and ones that no longer see it, whose borders lie in one
// step with it.

// Where things lie in AttendTask::scores. Strides are odd in cache lines, lest rows share sets.
struct PairScratch {
  static constexpr int64_t kStep = PairRing::kStep;
  static constexpr int64_t kBorderStride = kStep + kLanes;

  explicit PairScratch(const AttendTask& task)
      : dims(RoundUpInputs(task.head_dim)),
        scores(task.scores),
        factors(scores + kNumScores),
        border_scores(factors + kProductRows),
        products(border_scores + kProductRows * kBorderStride),
        outputs(products + kProductRows * dims),
        queries(reinterpret_cast<BFloat16*>(outputs + kProductRows * dims)),
        own_weights(queries + kProductRows * dims),
        previous_weights(own_weights + kProductRows * kStep),
        last_values(previous_weights + kProductRows * kStep) {}

  int64_t dims;
  float* scores;          // [32][kScoreStride] of a chunk: before bias and scale, then, as BF16,
                          // weights in their place
  float* factors;         // [32], of a chunk
  float* border_scores;   // [32][kBorderStride]: the border's step with the block before
  float* products;        // [32][dims] of a chunk
  float* outputs;         // [32][dims] of the chunks so far
  BFloat16* queries;      // [32][dims]
  BFloat16* own_weights;  // [32][32], of the step with the border
  BFloat16* previous_weights;  // likewise
  BFloat16* last_values;       // a step, [dims / 16][16 pairs][16][2]
};

// The rows' queries as BF16, padded with zeros, unless they came so.
inline void PackQueries(const AttendTask& task, const PairScratch& scratch, int num_rows) {
  if (task.packed_q != nullptr) return;
  for (int r = 0; r < num_rows; ++r) {
    const float* q = task.q + r * task.q_stride;
    BFloat16* to = scratch.queries + r * scratch.dims;
    for (int64_t i = 0; i < scratch.dims; i += kLanes) {
      const int n = std::clamp(task.head_dim - static_cast<int>(i), 0, kLanes);
      StoreBFloat16(to + i, n == kLanes ? Load(q + i) : LoadPartial(q + i, n));
    }
  }
}

// Products of the queries with the keys of tiles [first, end) of one chunk.
template <typename Products>
inline void PairScores(Products& products, const AttendTask& task, const PairScratch& scratch,
                       int num_rows, const void* head, const PairRing& ring, int64_t first,
                       int64_t end, float* out, int64_t out_stride) {
  if (first >= end) return;
  const BFloat16* queries = task.packed_q != nullptr ? task.packed_q : scratch.queries;
  const ProductRun run = {.rows = reinterpret_cast<const char*>(queries),
                          .row_stride = 2 * scratch.dims,
                          .matrix = static_cast<const char*>(head) + ring.Tile(first),
                          .vector_stride = ring.tile_bytes,
                          .groups = scratch.dims / 2};
  products.Multiply({.runs = &run,
                     .num_runs = 1,
                     .num_rows = num_rows,
                     .num_vectors = static_cast<int>(end - first),
                     .out = out,
                     .out_stride = out_stride,
                     .ahead = task.next_ring});
}

// Numbers in [0, 1] to the nearest BF16, ties up.
inline void StoreWeights(BFloat16* to, V16 a, V16 b) {
  const __m512i half = _mm512_set1_epi32(0x8000);
  const __m512i upper =
      _mm512_set_epi16(63, 61, 59, 57, 55, 53, 51, 49, 47, 45, 43, 41, 39, 37, 35, 33, 31, 29, 27,
                       25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
  _mm512_storeu_si512(
      to, _mm512_permutex2var_epi16(_mm512_add_epi32(_mm512_castps_si512(a.v), half), upper,
                                    _mm512_add_epi32(_mm512_castps_si512(b.v), half)));
}

// A row's part of a chunk's scores, with the bias that belongs to them.
template <bool kBias>
struct PairScoresOfRow {
  PairScoresOfRow(const AttendTask& task, float* scores, int row, int64_t begin)
      : products(scores) {
    if constexpr (kBias) {
      const int offset = task.first_offset + row;
      bias = task.bias + task.window - offset - (task.include_self ? 1 : 0) + begin;
    }
  }
  // n of them.
  V16 At(int64_t j, int n) const {
    const auto load = [&](const float* p) {
      return n == kLanes ? Load(p + j) : LoadPartial(p + j, n);
    };
    if constexpr (kBias) return load(products) + load(bias);
    return load(products);
  }

  float* products;
  const float* bias = nullptr;
};

// A row's scores of a chunk to weights in their place: of the first `visible`, zeros up to `end`, a
// multiple of 32. Returns their sum, lane by lane. Scores are scaled once more, which costs less
// than to store them.
template <bool kBias>
inline V16 PairWeights(const PairScoresOfRow<kBias>& scores, float row_scale, float row_top,
                       int visible, int64_t end) {
  auto* weights = reinterpret_cast<BFloat16*>(scores.products);
  const V16 scale = Set1(row_scale), top = Set1(row_top);
  const auto weight = [&](V16 x) { return Exp2(Fma(x, scale, Zero() - top)); };
  V16 sum = Zero();
  int64_t j = 0;
  for (; j + 2 * kLanes <= visible; j += 2 * kLanes) {
    const V16 a = weight(scores.At(j, kLanes)), b = weight(scores.At(j + kLanes, kLanes));
    sum = sum + a;
    sum = sum + b;
    StoreWeights(weights + j, a, b);
  }
  for (; j < end; j += 2 * kLanes) {
    V16 p[2];
    for (int h = 0; h < 2; ++h) {
      const int64_t first = j + h * kLanes;
      const int n = static_cast<int>(std::clamp<int64_t>(visible - first, 0, kLanes));
      p[h] = SelectFirst(n, weight(scores.At(first, n)), Zero());
      sum = sum + p[h];
    }
    StoreWeights(weights + j, p[0], p[1]);
  }
  return sum;
}

// All rows' scores of the chunk [begin, end), end a multiple of 32, to weights. Row r sees
// `visible` indices of the ring and `more` r; its scores begin at `scores` and `stride` r.
template <bool kBias>
inline void WeighPairChunk(const AttendTask& task, Softmax& softmax, Fetches& far, float* scores,
                           int64_t stride, int64_t begin, int64_t end, int visible, int more) {
  const auto seen = [&](int r) {
    return static_cast<int>(std::clamp<int64_t>(visible + more * r - begin, 0, end - begin));
  };
  const auto row_scores = [&](int r) {
    return PairScoresOfRow<kBias>(task, scores + r * stride, r, begin);
  };
  for (int r = 0; r < softmax.num_rows; ++r)
    softmax.maxima[r] = LargestScores(row_scores(r), seen(r));
  softmax.Raise();
  for (int r = 0; r < softmax.num_rows; ++r) {
    const V16 sum = PairWeights(row_scores(r), task.scale, softmax.tops[r], seen(r), end - begin);
    softmax.sums[r] = Fma(softmax.sums[r], Set1(softmax.factors[r]), sum);
    far.Fetch();
  }
}

// The step of values with the last of `visible` and zeros behind, where anything may lie.
inline const void* LastValues(const PairScratch& scratch, const void* head, const PairRing& ring,
                              int visible) {
  const int64_t step = visible / PairRing::kStep, rest = visible % PairRing::kStep;
  auto* last = reinterpret_cast<char*>(scratch.last_values);
  for (int64_t v = 0; v < ring.columns / kLanes; ++v) {
    const char* values =
        static_cast<const char*>(head) + ring.Step(step) + v * ring.ValueStride(step);
    for (int64_t i = 0; i < kStepGroups; ++i, last += kVectorBytes) {
      const auto seen = static_cast<unsigned>(std::clamp<int64_t>(rest - 2 * i, 0, 2));
      const __mmask32 mask = seen == 0 ? 0 : seen == 1 ? 0x55555555 : 0xffffffff;
      _mm512_storeu_si512(last, _mm512_maskz_loadu_epi16(mask, values + i * kVectorBytes));
    }
  }
  return scratch.last_values;
}

// Up to 32 queries of one step.
template <typename Products>
class PairGroup {
 public:
  PairGroup(Products& products, const AttendTask& task, const PairScratch& scratch,
            const Fetches& far, int num_rows)
      : products_(products),
        task_(task),
        scratch_(scratch),
        far_(far),
        ring_(task.window, task.head_dim),
        indices_(task, num_rows, kStep),
        softmax_(num_rows, scratch.factors) {
    std::fill_n(softmax_.scales, kProductRows, task.scale);
    if (indices_.all_own && task.num_visible % kStep != 0)
      last_values_ = LastValues(scratch, task.current_ring, ring_, task.num_visible);
  }

  void Attend() {
    PackQueries(task_, scratch_, indices_.num_rows);
    ForEachChunk(
        indices_, kStep, far_, [&](const Chunk& chunk) { MakeScores(chunk); },
        [&](const Chunk& chunk) { Weigh(chunk); }, [&](const Chunk& chunk) { AddValues(chunk); });
    for (int r = 0; r < indices_.num_rows; ++r)
      StoreNormalized(task_, r, scratch_.outputs + r * scratch_.dims,
                      indices_.Visible(r) > 0 ? 1.0f / ReduceAdd(softmax_.sums[r]) : 0.0f);
  }

 private:
  static constexpr int64_t kStep = PairScratch::kStep;

  void MakeScores(const Chunk& chunk) {
    const int64_t first = chunk.first, own_end = indices_.OwnEnd(first, chunk.end);
    MakeScores(task_.current_ring, first, own_end, scratch_.scores, kScoreStride);
    MakeScores(task_.previous_ring, own_end, chunk.end,
               scratch_.scores + (own_end - first) * kLanes, kScoreStride);
    if (!indices_.two_blocks || !indices_.HasBorder(first, chunk.end)) return;
    MakeScores(task_.previous_ring, indices_.border_tile, indices_.border_end,
               scratch_.border_scores, PairScratch::kBorderStride);
    for (int r = 0; r < indices_.num_rows; ++r) {
      const float* before = scratch_.border_scores + r * PairScratch::kBorderStride;
      float* score = scratch_.scores + r * kScoreStride + (indices_.border_tile - first) * kLanes;
      int left = indices_.Own(r) - static_cast<int>(indices_.border_tile) * kLanes;
      for (int64_t t = indices_.border_tile; t < indices_.border_end; ++t) {
        Store(score, SelectFirst(std::clamp(left, 0, kLanes), Load(score), Load(before)));
        score += kLanes, before += kLanes, left -= kLanes;
      }
    }
  }
  // Of tiles [first, end) of a chunk, side by side.
  void MakeScores(const void* head, int64_t first, int64_t end, float* out, int64_t out_stride) {
    PairScores(products_, task_, scratch_, indices_.num_rows, head, ring_, first, end, out,
               out_stride);
  }

  ValueRuns Runs(const Chunk& chunk) const {
    const auto* weights = reinterpret_cast<const BFloat16*>(scratch_.scores);
    const int64_t stride = 4 * kScoreStride;
    ValueRuns runs;
    const auto add_steps = [&](const void* head, int64_t from, int64_t to) {
      runs.AddSteps(weights, stride, head, ring_, chunk, from, to);
    };
    if (indices_.all_own) {
      const int64_t whole = task_.num_visible / kStep;
      add_steps(task_.current_ring, 0, whole);
      if (whole < chunk.end_step)
        runs.Add(weights + (whole - chunk.first_step) * kStep, stride, last_values_,
                 kStepGroups * kVectorBytes, 1);
      return runs;
    }
    const int64_t border = task_.first_offset / kStep, border_stride = ValueRuns::kStepBytes;
    add_steps(task_.current_ring, 0, border);
    if (indices_.HasBorder(chunk.first, chunk.end)) {
      if (task_.previous_visible)
        runs.AddStep(scratch_.previous_weights, border_stride, task_.previous_ring, ring_, border);
      runs.AddStep(scratch_.own_weights, border_stride, task_.current_ring, ring_, border);
    }
    if (task_.previous_visible) add_steps(task_.previous_ring, border + 1, chunk.end_step);
    return runs;
  }

  void Weigh(const Chunk& chunk) {
    float* scores = scratch_.scores;
    const auto weigh = task_.bias != nullptr ? WeighPairChunk<true> : WeighPairChunk<false>;
    weigh(task_, softmax_, far_, scores, kScoreStride, chunk.begin, chunk.end_index,
          indices_.visible, indices_.more_visible);
    if (indices_.all_own || !indices_.HasBorder(chunk.first, chunk.end)) return;
    const int64_t border = indices_.border_tile * kLanes;
    for (int r = 0; r < indices_.num_rows; ++r) {
      const auto* weights = reinterpret_cast<const BFloat16*>(scores + r * kScoreStride);
      SplitWeights(r, weights + (border - chunk.begin), indices_.Own(r) - static_cast<int>(border));
    }
  }
  // Row r's weights of the step with the border, of which the query sees `own` indices in its own
  // block.
  void SplitWeights(int r, const BFloat16* weights, int own) {
    const __m512i all = _mm512_loadu_si512(weights);
    const auto first = static_cast<__mmask32>((uint64_t{1} << own) - 1);
    const int64_t at = r * kStep;
    _mm512_storeu_si512(scratch_.own_weights + at, _mm512_maskz_mov_epi16(first, all));
    _mm512_storeu_si512(scratch_.previous_weights + at, _mm512_maskz_mov_epi16(~first, all));
  }

  void AddValues(const Chunk& chunk) {
    const ValueRuns runs = Runs(chunk);
    products_.Multiply({.runs = runs.runs,
                        .num_runs = runs.num_runs,
                        .num_rows = indices_.num_rows,
                        .num_vectors = static_cast<int>(ring_.columns / kLanes),
                        .out = chunk.first == 0 ? scratch_.outputs : scratch_.products,
                        .out_stride = scratch_.dims,
                        .ahead = task_.next_ring});
    if (chunk.first == 0) return;
    for (int r = 0; r < indices_.num_rows; ++r) {
      if (indices_.Visible(r) <= chunk.begin) continue;  // the chunk is its neighbours'
      const V16 factor = Set1(scratch_.factors[r]);
      const float* from = scratch_.products + r * scratch_.dims;
      float* to = scratch_.outputs + r * scratch_.dims;
      for (int64_t c = 0; c < ring_.columns; c += kLanes)
        Store(to + c, Fma(Load(to + c), factor, Load(from + c)));
    }
  }

  Products& products_;
  const AttendTask& task_;
  const PairScratch& scratch_;
  Fetches far_;
  const PairRing ring_;
  const GroupIndices indices_;
  Softmax softmax_;
  const void* last_values_ = nullptr;
};

// Sets `group` to each group of the task's queries in turn: up to kQueries that lie between two
// multiples of it.
template <int kQueries, typename Attend>
inline void ForEachGroup(const AttendTask& task, AttendTask& group, const Attend& attend) {
  for (int query = 0; query < task.num_queries;) {
    group.q = task.q + query * task.q_stride;
    if (task.packed_q != nullptr)
      group.packed_q = task.packed_q + query * RoundUpInputs(task.head_dim);
    group.out = task.out + query * task.out_stride;
    group.first_offset = task.first_offset + query;
    const int before = task.num_visible >= 0 ? 0 : group.first_offset % kQueries;
    const int n = std::min(kQueries - before, task.num_queries - query);
    attend(FarRows(task, query, n), n);
    query += n;
  }
}

template <typename Products>
void AttendPairsKernel(const AttendTask& task) {
  const PairScratch scratch(task);
  typename Products::Registers registers(task.num_queries);
  Products products(registers);
  AttendTask group = task;
  group.scale = task.scale * 1.44269504089f;  // weights are powers of two
  ForEachGroup<kProductRows>(task, group, [&](const Fetches& far, int n) {
    PairGroup<Products>(products, group, scratch, far, n).Attend();
  });
}

// New keys and values lie far apart: the processor does not see the next rows coming.
inline void PrefetchRows(const WriteRingTask& task, int row) {
  constexpr int kAhead = 8;
  if (row + kAhead >= task.count) return;
  for (int d = 0; d < task.head_dim; d += kLanes) {
    _mm_prefetch(task.k + (row + kAhead) * task.k_stride + d, _MM_HINT_T0);
    _mm_prefetch(task.v + (row + kAhead) * task.v_stride + d, _MM_HINT_T0);
  }
}

// write(i) for single rows, write_four(i) for four whose ring indices begin at a multiple of four.
template <typename Write, typename WriteFour>
inline void WriteRows(const WriteRingTask& task, const Write& write, const WriteFour& write_four) {
  for (int i = 0; i < task.count;) {
    const bool four = (task.first_index + i) % 4 == 0 && i + 4 <= task.count;
    for (int t = 0; t < (four ? 4 : 1); ++t) PrefetchRows(task, i + t);
    if (four) {
      write_four(i);
    } else {
      write(i);
    }
    i += four ? 4 : 1;
  }
}

inline void TransposeDwords(__m128i (&rows)[4]) {
  const __m128i low01 = _mm_unpacklo_epi32(rows[0], rows[1]);
  const __m128i high01 = _mm_unpackhi_epi32(rows[0], rows[1]);
  const __m128i low23 = _mm_unpacklo_epi32(rows[2], rows[3]);
  const __m128i high23 = _mm_unpackhi_epi32(rows[2], rows[3]);
  rows[0] = _mm_unpacklo_epi64(low01, low23);
  rows[1] = _mm_unpackhi_epi64(low01, low23);
  rows[2] = _mm_unpacklo_epi64(high01, high23);
  rows[3] = _mm_unpackhi_epi64(high01, high23);
}

inline V16 LoadOfHead(const WriteRingTask& task, const float* row, int first) {
  const int n = std::clamp(task.head_dim - first, 0, kLanes);
  return n == kLanes ? Load(row + first) : LoadPartial(row + first, n);
}
// Sixteen BF16 in the upper halves.
inline __m512i UpperHalves(const WriteRingTask& task, const float* row, int first) {
  return _mm512_castps_si512(RoundToBFloat16(LoadOfHead(task, row, first)).v);
}

inline void WritePairRow(const WriteRingTask& task, const PairRing& ring, int i) {
  const int64_t index = task.first_index + i;
  const float* key = task.k + i * task.k_stride;
  const float* value = task.v + i * task.v_stride;
  char* to_key = static_cast<char*>(task.ring) + ring.Key(index);
  for (int d = 0; d < ring.dims; d += kLanes) {
    alignas(32) uint32_t pairs[kLanes / 2];
    StoreBFloat16(reinterpret_cast<BFloat16*>(pairs), LoadOfHead(task, key, d));
    for (int p = 0; p < kLanes / 2; ++p)
      std::memcpy(to_key + (d / 2 + p) * kVectorBytes, &pairs[p], sizeof(uint32_t));
  }
  // The value's half of each pair; the other half stays.
  char* to_value = static_cast<char*>(task.ring) + ring.Value(index);
  const int64_t value_stride = ring.ValueStride(index / PairRing::kStep);
  const bool odd = index % 2 != 0;
  const __m512i mask = _mm512_set1_epi32(static_cast<int>(odd ? 0xffff0000u : 0x0000ffffu));
  for (int c = 0; c < task.head_dim; c += kLanes) {
    const __m512i bits = UpperHalves(task, value, c);
    const __m512i half = odd ? bits : _mm512_srli_epi32(bits, 16);
    const __m512i old = _mm512_loadu_si512(to_value);
    _mm512_storeu_si512(to_value, _mm512_or_si512(half, _mm512_andnot_si512(mask, old)));
    to_value += value_stride;
  }
}

// Four rows whose ring indices begin at a multiple of four: two pairs of values, and keys that lie
// side by side.
inline void WriteFourPairRows(const WriteRingTask& task, const PairRing& ring, int i) {
  const int64_t index = task.first_index + i;
  const auto key_row = [&](int t) { return task.k + (i + t) * task.k_stride; };
  const auto value_row = [&](int t) { return task.v + (i + t) * task.v_stride; };
  char* to_key = static_cast<char*>(task.ring) + ring.Key(index);
  for (int d = 0; d < ring.dims; d += kLanes) {
    __m128i low[4], high[4];  // four pairs each
    for (int t = 0; t < 4; ++t) {
      const __m256i pairs =
          _mm512_cvtepi32_epi16(_mm512_srli_epi32(UpperHalves(task, key_row(t), d), 16));
      low[t] = _mm256_castsi256_si128(pairs);
      high[t] = _mm256_extracti128_si256(pairs, 1);
    }
    TransposeDwords(low);
    TransposeDwords(high);
    for (int p = 0; p < 4; ++p) {
      char* to = to_key + (d / 2 + p) * kVectorBytes;
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to), low[p]);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to + 4 * kVectorBytes), high[p]);
    }
  }
  for (int t = 0; t < 4; t += 2) {
    char* to_value = static_cast<char*>(task.ring) + ring.Value(index + t);
    const int64_t value_stride = ring.ValueStride((index + t) / PairRing::kStep);
    for (int c = 0; c < task.head_dim; c += kLanes) {
      const __m512i even = _mm512_srli_epi32(UpperHalves(task, value_row(t), c), 16);
      _mm512_storeu_si512(to_value, _mm512_or_si512(even, UpperHalves(task, value_row(t + 1), c)));
      to_value += value_stride;
    }
  }
}

void WritePairsKernel(const WriteRingTask& task) {
  const PairRing ring(task.window, task.head_dim);
  WriteRows(
      task, [&](int i) { WritePairRow(task, ring, i); },
      [&](int i) { WriteFourPairRows(task, ring, i); });
}
