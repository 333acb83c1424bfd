// Attention where keys and values are BF16 and the processor multiplies pairs of BF16: on dot
// products or on AMX tiles. Included by kernels_avx512.cc after attention_products.inl.
//
// Both halves of attention are products of a few rows with a packed matrix: scores, of queries
// (rounded to BF16) with keys, and outputs, of weights (rounded to BF16 too) with values. Sums are
// float32. The kernel is written over a `Products` type, which multiplies up to sixteen rows:
//   void Multiply(const Product&)
// and makes each output one chain of additions along K that no other row has a part in.
//
// Queries come in groups that lie in one tile of sixteen ring indices, at the same places whatever
// the chunk. In that tile each query has its own border between its own block's keys and those of
// the block before: both are multiplied and the scores picked by index. Values go in steps of 32
// indices. The step with the border is always taken twice, before the border from the query's own
// block and beyond from the block before, each with weights of zero for the rest: so a decode
// step, which finds both in one ring, adds the same numbers in the same order.
//
// All scores of a group are kept (16 W floats, in the second-level cache), so the maximum is known
// before the first weight: nothing is rescaled, and the order of sums is the ring's.
//
// Zero weights silence only finite values: NaN among the keys and values of a sequence reaches its
// tokens up to 31 positions earlier in the same chunk.

// Where things lie in AttendTask::scores. Strides are odd in cache lines, lest rows share sets.
struct PairScratch {
  explicit PairScratch(const AttendTask& task)
      : dims(RoundUpInputs(task.head_dim)),
        keys(RoundUpInputs(task.window)),
        score_stride(keys + kLanes),
        weight_stride(keys + 2 * kLanes),
        scores(task.scores),
        outputs(scores + kGroupQueries * score_stride),
        queries(reinterpret_cast<BFloat16*>(outputs + kGroupQueries * dims)),
        weights(queries + kGroupQueries * dims),
        own_weights(weights + kGroupQueries * weight_stride),
        previous_weights(own_weights + kGroupQueries * 2 * kStepGroups),
        last_values(previous_weights + kGroupQueries * 2 * kStepGroups) {}

  int64_t dims, keys;
  int64_t score_stride, weight_stride;
  float* scores;               // [16][score_stride], before bias and scale
  float* outputs;              // [16][dims]
  BFloat16* queries;           // [16][dims]
  BFloat16* weights;           // [16][weight_stride]
  BFloat16* own_weights;       // [16][32], of the step with the border
  BFloat16* previous_weights;  // likewise
  BFloat16* last_values;       // [16 pairs][dims][2]
};

// 2^x to 3e-6 for x <= 0, about 1e-38 below -126: the weight is rounded to BF16 anyway. 2^f - 1 on
// [0, 1) is f times a polynomial fitted to the least relative error; NaN stays NaN.
inline V16 Exp2(V16 x) {
  x = Max(Set1(-126.0f), x);
  const V16 f = {_mm512_reduce_ps(x.v, _MM_FROUND_TO_NEG_INF)};
  V16 p = Set1(0.0134267481f);
  p = Fma(p, f, Set1(0.0522423722f));
  p = Fma(p, f, Set1(0.2412802577f));
  p = Fma(p, f, Set1(0.6930448413f));
  p = Fma(p, f, Set1(1.0f));
  return {_mm512_scalef_ps(p.v, x.v)};
}

// The rows' queries as BF16, padded with zeros.
inline void PackQueries(const AttendTask& task, const PairScratch& scratch, int num_rows) {
  for (int r = 0; r < num_rows; ++r) {
    const float* q = task.q + r * task.q_stride;
    BFloat16* to = scratch.queries + r * scratch.dims;
    for (int64_t i = 0; i < scratch.dims; i += kLanes) {
      const int n = std::clamp(task.head_dim - static_cast<int>(i), 0, kLanes);
      StoreBFloat16(to + i, n == kLanes ? Load(q + i) : LoadPartial(q + i, n));
    }
  }
}

// Products of the queries with tiles [first, end) of the keys.
template <typename Products>
inline void PairScores(Products& products, const PairScratch& scratch, int num_rows,
                       const void* keys, int64_t first, int64_t end) {
  const int64_t tile_bytes = 2 * kLanes * scratch.dims;
  const ProductRun run = {.rows = reinterpret_cast<const char*>(scratch.queries),
                          .row_stride = 2 * scratch.dims,
                          .matrix = static_cast<const char*>(keys) + first * tile_bytes,
                          .groups = scratch.dims / 2};
  products.Multiply({.runs = &run,
                     .num_runs = 1,
                     .num_rows = num_rows,
                     .num_vectors = static_cast<int>(end - first),
                     .group_stride = 4 * kLanes,
                     .vector_stride = tile_bytes,
                     .out = scratch.scores + first * kLanes,
                     .out_stride = scratch.score_stride});
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

// Products to weights of one query: of [0, visible), zeros up to `end`, a multiple of 32. Returns
// 1 / sum, or 0 when nothing is visible. Products stay as they are: to scale them twice costs less
// than to store them.
template <bool kBias>
inline float PairWeights(const AttendTask& task, const PairScratch& scratch, int row, int offset,
                         int visible, int64_t end) {
  const float* products = scratch.scores + row * scratch.score_stride;
  const float* bias =
      kBias ? task.bias + task.window - offset - (task.include_self ? 1 : 0) : nullptr;
  BFloat16* weights = scratch.weights + row * scratch.weight_stride;
  const auto dot = [&](int64_t j) {
    if constexpr (kBias) return Load(products + j) + Load(bias + j);
    return Load(products + j);
  };
  const auto partial_dot = [&](int64_t j, int n) {
    if constexpr (kBias) return LoadPartial(products + j, n) + LoadPartial(bias + j, n);
    return LoadPartial(products + j, n);
  };
  const int whole = visible / kLanes * kLanes, rest = visible - whole;
  V16 largest = Set1(-INFINITY);
  for (int j = 0; j < whole; j += kLanes) largest = Max(largest, dot(j));
  if (rest > 0)
    largest = Max(largest, SelectFirst(rest, partial_dot(whole, rest), Set1(-INFINITY)));
  const V16 scale = Set1(task.scale), top = Set1(ReduceMax(largest) * task.scale);
  const auto weight = [&](V16 x) { return Exp2(Fma(x, scale, Zero() - top)); };
  V16 sum = Zero();
  int64_t j = 0;
  for (; j + 2 * kLanes <= whole; j += 2 * kLanes) {
    const V16 a = weight(dot(j)), b = weight(dot(j + kLanes));
    sum = sum + a;
    sum = sum + b;
    StoreWeights(weights + j, a, b);
  }
  for (; j < end; j += 2 * kLanes) {
    V16 p[2];
    for (int h = 0; h < 2; ++h) {
      const int64_t first = j + h * kLanes;
      const int n = static_cast<int>(std::clamp<int64_t>(visible - first, 0, kLanes));
      p[h] = SelectFirst(n, weight(partial_dot(first, n)), Zero());
      sum = sum + p[h];
    }
    StoreWeights(weights + j, p[0], p[1]);
  }
  return visible == 0 ? 0.0f : 1.0f / ReduceAdd(sum);
}

// The weights of the step with the border, of a query that sees `own` of its indices in its own
// block.
inline void SplitWeights(const PairScratch& scratch, int row, int64_t step, int own) {
  const __m512i all =
      _mm512_loadu_si512(scratch.weights + row * scratch.weight_stride + step * 2 * kStepGroups);
  const auto first = static_cast<__mmask32>((uint64_t{1} << own) - 1);
  const int64_t at = int64_t{row} * 2 * kStepGroups;
  _mm512_storeu_si512(scratch.own_weights + at, _mm512_maskz_mov_epi16(first, all));
  _mm512_storeu_si512(scratch.previous_weights + at, _mm512_maskz_mov_epi16(~first, all));
}

// Up to sixteen queries of one tile.
template <typename Products>
inline void AttendPairGroup(Products& products, const AttendTask& task, const PairScratch& scratch,
                            int num_rows) {
  const int offset = task.first_offset;
  const bool all_own = task.num_visible >= 0;
  const bool one_ring = task.current_keys == task.previous_keys;
  const auto tiles = [](int64_t indices) { return (indices + kLanes - 1) / kLanes; };
  const int64_t border_tile = offset / kLanes;
  const int64_t visible_tiles = all_own                 ? tiles(task.num_visible)
                                : task.previous_visible ? tiles(task.window)
                                                        : border_tile + 1;
  PackQueries(task, scratch, num_rows);
  const bool has_border = task.previous_visible && !one_ring;
  if (has_border) {
    PairScores(products, scratch, num_rows, task.previous_keys, border_tile, visible_tiles);
    V16 beyond[kGroupQueries];
    float* border = scratch.scores + border_tile * kLanes;
    for (int r = 0; r < num_rows; ++r) beyond[r] = Load(border + r * scratch.score_stride);
    PairScores(products, scratch, num_rows, task.current_keys, 0, border_tile + 1);
    for (int r = 0; r < num_rows; ++r, border += scratch.score_stride) {
      const int own = CurrentEnd(task, offset + r) - static_cast<int>(border_tile) * kLanes;
      Store(border, SelectFirst(own, Load(border), beyond[r]));
    }
  } else {
    PairScores(products, scratch, num_rows, task.current_keys, 0, visible_tiles);
  }

  constexpr int kStep = 2 * kStepGroups;
  const int64_t steps = (visible_tiles * kLanes + kStep - 1) / kStep;
  const int64_t border_step = offset / kStep;
  float normalizer[kGroupQueries];
  for (int r = 0; r < num_rows; ++r) {
    const int own = CurrentEnd(task, all_own ? 0 : offset + r);
    const int visible = task.previous_visible ? task.window : own;
    const auto weights = task.bias != nullptr ? PairWeights<true> : PairWeights<false>;
    normalizer[r] = weights(task, scratch, r, offset + r, visible, steps * kStep);
    if (!all_own)
      SplitWeights(scratch, r, border_step, own - static_cast<int>(border_step) * kStep);
  }

  const int64_t columns = (task.head_dim + kLanes - 1) / kLanes * kLanes;
  const int64_t pair_bytes = 4 * columns, step_bytes = kStepGroups * pair_bytes;
  ProductRun runs[4];
  int num_runs = 0;
  const auto add = [&](const BFloat16* weights, int64_t stride, const void* values, int64_t first,
                       int64_t end) {
    if (first >= end) return;
    runs[num_runs++] = {.rows = reinterpret_cast<const char*>(weights),
                        .row_stride = 2 * stride,
                        .matrix = static_cast<const char*>(values) + first * step_bytes,
                        .groups = (end - first) * kStepGroups};
  };
  const auto add_steps = [&](const void* values, int64_t first, int64_t end) {
    add(scratch.weights + first * kStep, scratch.weight_stride, values, first, end);
  };
  const auto add_border = [&](const BFloat16* weights, const void* values) {
    add(weights, kStep, values, border_step, border_step + 1);
  };
  if (all_own) {
    const int64_t whole = task.num_visible / kStep;
    add_steps(task.current_values, 0, whole);
    if (whole < steps) {
      // What lies beyond the last visible value may be anything.
      auto* last = reinterpret_cast<char*>(scratch.last_values);
      const int rest = task.num_visible % kStep;
      std::memcpy(last, static_cast<const char*>(task.current_values) + whole * step_bytes,
                  static_cast<size_t>((rest + 1) / 2 * pair_bytes));
      if (rest % 2 != 0) {
        for (int64_t c = 0; c < columns; ++c)
          scratch.last_values[rest / 2 * 2 * columns + 2 * c + 1] = {};
      }
      const int64_t used = (rest + 1) / 2 * pair_bytes;
      std::memset(last + used, 0, static_cast<size_t>(step_bytes - used));
      add(scratch.weights + whole * kStep, scratch.weight_stride, last, 0, 1);
    }
  } else {
    add_steps(task.current_values, 0, border_step);
    if (task.previous_visible) add_border(scratch.previous_weights, task.previous_values);
    add_border(scratch.own_weights, task.current_values);
    if (task.previous_visible) add_steps(task.previous_values, border_step + 1, steps);
  }
  products.Multiply({.runs = runs,
                     .num_runs = num_runs,
                     .num_rows = num_rows,
                     .num_vectors = static_cast<int>(columns / kLanes),
                     .group_stride = pair_bytes,
                     .vector_stride = 4 * kLanes,
                     .out = scratch.outputs,
                     .out_stride = scratch.dims});
  for (int r = 0; r < num_rows; ++r) {
    float* out = task.out + r * task.out_stride;
    for (int c = 0; c < task.head_dim; c += kLanes) {
      const V16 o = Load(scratch.outputs + r * scratch.dims + c) * Set1(normalizer[r]);
      StorePartial(out + c, o, std::min(kLanes, task.head_dim - c));
    }
  }
}

// Sets `group` to each group of the task's queries in turn.
template <typename Attend>
inline void ForEachGroup(const AttendTask& task, AttendTask& group, const Attend& attend) {
  for (int query = 0; query < task.num_queries;) {
    group.q = task.q + query * task.q_stride;
    group.out = task.out + query * task.out_stride;
    group.first_offset = task.first_offset + query;
    const int in_tile = task.num_visible >= 0 ? 0 : group.first_offset % kGroupQueries;
    const int n = std::min(kGroupQueries - in_tile, task.num_queries - query);
    attend(n);
    query += n;
  }
}

template <typename Products>
void AttendPairsKernel(const AttendTask& task) {
  const PairScratch scratch(task);
  Products products;
  AttendTask group = task;
  group.scale = task.scale * 1.44269504089f;  // weights are powers of two
  ForEachGroup(task, group, [&](int n) { AttendPairGroup(products, group, scratch, n); });
}

// New keys and values lie far apart: the processor does not see the next rows coming.
template <typename WriteTask>
inline void PrefetchRows(const WriteTask& task, int row) {
  constexpr int kAhead = 8;
  if (row + kAhead >= task.count) return;
  for (int d = 0; d < task.head_dim; d += kLanes) {
    _mm_prefetch(task.k + (row + kAhead) * task.k_stride + d, _MM_HINT_T0);
    _mm_prefetch(task.v + (row + kAhead) * task.v_stride + d, _MM_HINT_T0);
  }
}

// write(i) for single rows, write_four(i) for four whose ring indices begin at a multiple of four.
template <typename WriteTask, typename Write, typename WriteFour>
inline void WriteRows(const WriteTask& task, const Write& write, const WriteFour& write_four) {
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

inline V16 LoadOfHead(const WritePairsTask& task, const float* row, int first) {
  const int n = std::clamp(task.head_dim - first, 0, kLanes);
  return n == kLanes ? Load(row + first) : LoadPartial(row + first, n);
}
// Sixteen BF16 in the upper halves.
inline __m512i UpperHalves(const WritePairsTask& task, const float* row, int first) {
  return _mm512_castps_si512(RoundToBFloat16(LoadOfHead(task, row, first)).v);
}
inline char* PairKey(const WritePairsTask& task, int64_t index) {
  const int64_t dims = RoundUpInputs(task.head_dim);
  return reinterpret_cast<char*>(task.keys + index / kLanes * kLanes * dims + index % kLanes * 2);
}
inline BFloat16* PairValues(const WritePairsTask& task, int64_t index) {
  return task.values + index / 2 * 2 * ((task.head_dim + kLanes - 1) / kLanes * kLanes);
}

inline void WritePairRow(const WritePairsTask& task, int i) {
  const int64_t index = task.first_index + i;
  const float* key = task.k + i * task.k_stride;
  const float* value = task.v + i * task.v_stride;
  char* to_key = PairKey(task, index);
  for (int d = 0; d < RoundUpInputs(task.head_dim); d += kLanes) {
    alignas(32) uint32_t pairs[kLanes / 2];
    StoreBFloat16(reinterpret_cast<BFloat16*>(pairs), LoadOfHead(task, key, d));
    for (int p = 0; p < kLanes / 2; ++p)
      std::memcpy(to_key + (d / 2 + p) * 4 * kLanes, &pairs[p], sizeof(uint32_t));
  }
  // The value's half of each pair; the other half stays.
  BFloat16* to_value = PairValues(task, index);
  const bool odd = index % 2 != 0;
  const __m512i mask = _mm512_set1_epi32(static_cast<int>(odd ? 0xffff0000u : 0x0000ffffu));
  for (int c = 0; c < task.head_dim; c += kLanes) {
    const __m512i bits = UpperHalves(task, value, c);
    const __m512i half = odd ? bits : _mm512_srli_epi32(bits, 16);
    const __m512i old = _mm512_loadu_si512(to_value + 2 * c);
    _mm512_storeu_si512(to_value + 2 * c, _mm512_or_si512(half, _mm512_andnot_si512(mask, old)));
  }
}

// Four rows whose ring indices begin at a multiple of four: two pairs of values, and keys that lie
// side by side.
inline void WriteFourPairRows(const WritePairsTask& task, int i) {
  const int64_t index = task.first_index + i;
  const auto key_row = [&](int t) { return task.k + (i + t) * task.k_stride; };
  const auto value_row = [&](int t) { return task.v + (i + t) * task.v_stride; };
  char* to_key = PairKey(task, index);
  for (int d = 0; d < RoundUpInputs(task.head_dim); d += kLanes) {
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
      char* to = to_key + (d / 2 + p) * 4 * kLanes;
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to), low[p]);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to + 4 * 4 * kLanes), high[p]);
    }
  }
  for (int t = 0; t < 4; t += 2) {
    BFloat16* to_value = PairValues(task, index + t);
    for (int c = 0; c < task.head_dim; c += kLanes) {
      const __m512i even = _mm512_srli_epi32(UpperHalves(task, value_row(t), c), 16);
      _mm512_storeu_si512(to_value + 2 * c,
                          _mm512_or_si512(even, UpperHalves(task, value_row(t + 1), c)));
    }
  }
}

void WritePairsKernel(const WritePairsTask& task) {
  WriteRows(
      task, [&](int i) { WritePairRow(task, i); }, [&](int i) { WriteFourPairRows(task, i); });
}
