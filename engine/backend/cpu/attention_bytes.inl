// Attention where keys and values are INT8 and the processor multiplies bytes: on dot products or
// on AMX tiles. Included by kernels_avx512.cc after attention_pairs.inl, whose shape it has.
//
// The bytes are multiplied as they lie in the ring. Queries and softmax weights become integers of
// 16 bits, each over its own row's range, and those two digits of a byte each: the high digits and
// the low ones are multiplied separately. (One digit of a weight would lose what many small weights
// beside a large one add up to.) Sums are exact integers, so no order along K can matter, zero
// weights silence whatever they meet, and dot products and tiles give the same bits.
//
// The instructions multiply signed by unsigned bytes. Weights are never negative, and values are
// signed. Of a query both digits are signed, and the bytes of keys are 128 too large: what that
// adds to a score, 128 times the sum of the query's digits, comes off again.
//
// Weights of a chunk of ring indices are integers over the chunk's own range; chunks meet in
// float32.

// Rows 2 r and 2 r + 1 of all but the outputs are query r's high and low digits, or what becomes of
// them. Strides are odd in cache lines.
struct ByteScratch {
  static constexpr int kQueries = kProductRows / 2;
  static constexpr int64_t kStep = ByteRing::kStep;

  explicit ByteScratch(const AttendTask& task)
      : dims(RoundUpInt8Inputs(task.head_dim)),
        scores(task.scores),
        factors(scores + kNumScores),
        steps(factors + kProductRows),
        border_scores(steps + kProductRows),
        sums(border_scores + kProductRows * kLanes),
        outputs(sums + kProductRows * dims),
        queries(reinterpret_cast<uint8_t*>(outputs + kQueries * dims)),
        own(queries + kProductRows * dims),
        previous(own + kProductRows * kStep) {}

  int64_t dims;
  float* scores;   // [32][kScoreStride] of a chunk: int32, in even rows then float32 scores and
                   // weights, then the weights' digits
  float* factors;  // [32], of a chunk's queries
  float* steps;    // [32], of their weights' integers
  float* border_scores;  // [32][16]: the border's tile with the block before
  float* sums;           // [32][dims] int32 of a chunk
  float* outputs;        // [16][dims] of the chunks so far
  uint8_t* queries;      // [32][dims]
  uint8_t* own;          // [32][64], of the step with the border
  uint8_t* previous;     // likewise
};

// The digits of four vectors' lower sixteen bits. Signed ones are both of -128 .. 127, and the
// numbers come with 128 added.
template <bool kSigned = false>
inline void StoreDigits(const __m512i (&u)[4], uint8_t* high, uint8_t* low) {
  // Lane i of two vectors, then bytes of four: those of numbers i, 16 + i, 32 + i, 48 + i.
  constexpr __mmask32 kOddWords = 0xaaaaaaaa;
  const __m512i even = _mm512_mask_blend_epi16(kOddWords, u[0], _mm512_slli_epi32(u[2], 16));
  const __m512i odd = _mm512_mask_blend_epi16(kOddWords, u[1], _mm512_slli_epi32(u[3], 16));
  constexpr __mmask64 kOddBytes = 0xaaaaaaaaaaaaaaaa;
  const __m512i highs = _mm512_mask_blend_epi8(kOddBytes, _mm512_srli_epi16(even, 8), odd);
  __m512i lows = _mm512_mask_blend_epi8(kOddBytes, even, _mm512_slli_epi16(odd, 8));
  if constexpr (kSigned) lows = _mm512_xor_si512(lows, _mm512_set1_epi8(-128));
  // Four by four bytes transposed in each quarter, then the sixteen groups of four.
  const __m512i in_quarter =
      _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  const __m512i groups = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  _mm512_storeu_si512(high,
                      _mm512_permutexvar_epi32(groups, _mm512_shuffle_epi8(highs, in_quarter)));
  _mm512_storeu_si512(low, _mm512_permutexvar_epi32(groups, _mm512_shuffle_epi8(lows, in_quarter)));
}
// The lower sixteen bits are the nearest integer, as those of a float32 from 2^23 to 2^24 are: 1.5
// times 2^23 keeps negative numbers there too.
inline __m512i NearestInteger(V16 x, V16 factor, float offset) {
  return _mm512_castps_si512(Fma(x, factor, Set1(0x1.8p23f + offset)).v);
}
// Bits of positive numbers order as integers, and NaN above all.
inline float LargestOfPositive(__m512i bits) {
  const auto largest = static_cast<uint32_t>(_mm512_reduce_max_epu32(bits));
  float number;
  std::memcpy(&number, &largest, sizeof(number));
  return number;
}
// Sums of digits' products to those of the integers.
inline V16 JoinDigits(V16Int high, V16Int low) {
  return Fma(Set1(256.0f), ToFloats(high), ToFloats(low));
}
inline V16Int LoadSums(const float* p) { return LoadInts(reinterpret_cast<const int32_t*>(p)); }

// Of a row's digits, times 128.
struct DigitSums {
  int32_t high, low;
};
inline DigitSums SumDigits(const uint8_t* high, const uint8_t* low, int64_t count) {
  const __m512i offset = _mm512_set1_epi8(-128);
  const auto sum = [&](const uint8_t* digits) {  // with 128 for each
    return _mm512_sad_epu8(_mm512_xor_si512(_mm512_loadu_si512(digits), offset),
                           _mm512_setzero_si512());
  };
  __m512i sums = _mm512_setzero_si512();  // the high digits' in the upper halves
  for (int64_t i = 0; i < count; i += 4 * kLanes) {
    sums = _mm512_add_epi64(sums,
                            _mm512_add_epi64(_mm512_slli_epi64(sum(high + i), 32), sum(low + i)));
  }
  const auto both = static_cast<uint64_t>(_mm512_reduce_add_epi64(sums));
  const auto times128 = [&](uint64_t all) {
    return 128 * static_cast<int32_t>(static_cast<int64_t>(all) - 128 * count);
  };
  return {times128(both >> 32), times128(both & 0xffffffff)};
}

// The rows' queries as digits, zeros behind; scales[r] is a step of row r, NaN if a number is not
// finite.
inline void PackByteQueries(const AttendTask& task, const ByteScratch& scratch, int num_rows,
                            float* scales, DigitSums* sums) {
  constexpr float kLargest = 32639.0f;  // so that both digits are at most 127
  const int head_dim = task.head_dim;
  const auto load = [&](const float* q, int i) {
    const int n = std::clamp(head_dim - i, 0, kLanes);
    return n == kLanes ? Load(q + i) : LoadPartial(q + i, n);
  };
  for (int r = 0; r < num_rows; ++r) {
    const float* q = task.q + r * task.q_stride;
    __m512i largest = _mm512_setzero_si512();
    for (int i = 0; i < head_dim; i += kLanes)
      largest = _mm512_max_epu32(largest, _mm512_castps_si512(Abs(load(q, i)).v));
    const float scale = LargestOfPositive(largest) / kLargest;
    scales[r] = scale + scale * 0.0f;
    const V16 inverse = Set1(Int8Reciprocal(scale));
    uint8_t* high = scratch.queries + 2 * r * scratch.dims;
    for (int i = 0; i < scratch.dims; i += 4 * kLanes) {
      __m512i u[4];
      for (int v = 0; v < 4; ++v) {
        const int first = i + v * kLanes;
        u[v] = NearestInteger(load(q, first), inverse, 128.0f);
      }
      StoreDigits<true>(u, high + i, high + scratch.dims + i);
    }
    sums[r] = SumDigits(high, high + scratch.dims, scratch.dims);
  }
}

// Of a tile's indices, from Scales(tile) on.
inline V16 KeyScales(const char* scales) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(scales), 16))};
}
inline V16 ValueScales(const char* scales) {
  const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000));
  return {_mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(scales), upper))};
}

// Products of the queries with the keys of tiles [first, end) of one chunk, the keys' scales
// applied.
template <typename Products>
inline void ByteScores(Products& products, const ByteScratch& scratch, int num_rows,
                       const DigitSums* sums, const void* head, const ByteRing& ring, int64_t first,
                       int64_t end, int64_t next_ring, float* out, int64_t out_stride) {
  if (first >= end) return;
  const ProductRun run = {.rows = reinterpret_cast<const char*>(scratch.queries),
                          .row_stride = scratch.dims,
                          .matrix = static_cast<const char*>(head) + ring.Tile(first),
                          .vector_stride = ring.tile_bytes,
                          .groups = scratch.dims / 4};
  products.Multiply({.runs = &run,
                     .num_runs = 1,
                     .num_rows = 2 * num_rows,
                     .num_vectors = static_cast<int>(end - first),
                     .out = out,
                     .out_stride = out_stride,
                     .ahead = next_ring});
  const char* scales = static_cast<const char*>(head) + ring.Scales(first);
  for (int64_t tile = first; tile < end; ++tile) {
    const V16 scale = KeyScales(scales);
    float* scores = out;
    for (int r = 0; r < num_rows; ++r) {
      const auto sum = [&](const float* digits, int32_t too_much) -> V16Int {
        return {_mm512_sub_epi32(LoadSums(digits).v, _mm512_set1_epi32(too_much))};
      };
      const V16Int high = sum(scores, sums[r].high), low = sum(scores + out_stride, sums[r].low);
      Store(scores, JoinDigits(high, low) * scale);
      scores += 2 * out_stride;
    }
    out += kLanes, scales += ByteRing::kScaleBytes;
  }
}

// The scales of a chunk's values.
struct ChunkValueScales {
  ChunkValueScales(const void* head, const ByteRing& ring, const Chunk& chunk)
      : scales(static_cast<const char*>(head) + ring.Scales(chunk.first)) {}

  // Of value j of the chunk, a multiple of sixteen, and those behind.
  V16 At(int64_t j) const { return ValueScales(scales + j / kLanes * ByteRing::kScaleBytes); }

  const char* scales;
};

// A row's part of a chunk's scores. With a bias they become scores proper, else the softmax's scale
// takes the query's.
template <bool kBias>
struct ByteScoresOfRow {
  ByteScoresOfRow(const AttendTask& task, float* row_scores, const float* query_scales, int row,
                  int64_t begin)
      : scores(row_scores) {
    if constexpr (kBias) {
      const int offset = task.first_offset + row;
      bias = task.bias + task.window - offset - (task.include_self ? 1 : 0) + begin;
      query_scale = Set1(query_scales[row]);
    }
  }
  // n of them, the others anything.
  V16 At(int64_t j, int n) const {
    const V16 score = Load(scores + j);
    if constexpr (!kBias) return score;
    return Fma(score, query_scale, n == kLanes ? Load(bias + j) : LoadPartial(bias + j, n));
  }

  float* scores;
  const float* bias = nullptr;
  V16 query_scale;
};

// A row's scores of a chunk to weights in their place, the values' scales in them: of the first
// `visible`, zeros up to `end`, a multiple of 64; as digits. The first `own` meet `own_scales`, the
// others `previous_scales`. Adds up the weights without scales in `sum`, lane by lane; returns a
// step of the integers.
template <bool kBias>
inline float ByteWeights(const ByteScoresOfRow<kBias>& scores, float row_scale, float row_top,
                         const ChunkValueScales& own_scales,
                         const ChunkValueScales& previous_scales, int own, int visible, int64_t end,
                         uint8_t* low, V16& sum) {
  auto* high = reinterpret_cast<uint8_t*>(scores.scores);
  const V16 scale = Set1(row_scale), top = Set1(row_top);
  __m512i most = _mm512_setzero_si512();
  V16 part = Zero();
  const auto weigh = [&](int j, int n, V16 value_scales) {
    V16 p = Exp2(Fma(scores.At(j, n), scale, Zero() - top));
    if (n < kLanes) p = SelectFirst(n, p, Zero());
    part = part + p;
    V16 weight = p * value_scales;
    if (n < kLanes) weight = SelectFirst(n, weight, Zero());
    most = _mm512_max_epu32(most, _mm512_castps_si512(weight.v));
    Store(scores.scores + j, weight);
  };
  // Whole vectors of the query's own block, one with the border, whole ones of the block before,
  // and what is left of one.
  int j = 0;
  for (; j + kLanes <= std::min(own, visible); j += kLanes) weigh(j, kLanes, own_scales.At(j));
  const auto mixed = [&] {
    return SelectFirst(std::clamp(own - j, 0, kLanes), own_scales.At(j), previous_scales.At(j));
  };
  if (j < own && j + kLanes <= visible) {
    weigh(j, kLanes, mixed());
    j += kLanes;
  }
  for (; j + kLanes <= visible; j += kLanes) weigh(j, kLanes, previous_scales.At(j));
  if (j < visible) {
    weigh(j, visible - j, mixed());
    j += kLanes;
  }
  for (; j < end; j += kLanes) Store(scores.scores + j, Zero());
  sum = part;
  const float step = LargestOfPositive(most) / 65535.0f;
  const V16 inverse = Set1(Int8Reciprocal(step));
  for (j = 0; j < end; j += 4 * kLanes) {
    __m512i u[4];
    for (int v = 0; v < 4; ++v)
      u[v] = NearestInteger(Load(scores.scores + j + v * kLanes), inverse, 0.0f);
    StoreDigits(u, high + j, low + j);
  }
  return step;
}

// All rows' scores of a chunk to weights; steps[r] is one of row r. Row r finds `own` and `more` r
// indices of the ring in its own block and sees `visible` and `more_visible` r; its scores begin at
// `first_scores` and `stride` r.
template <bool kBias>
inline void WeighByteChunk(const AttendTask& task, const ByteRing& ring, const Chunk& chunk,
                           const float* query_scales, Softmax& softmax, Fetches& far,
                           float* first_scores, int64_t stride, int own, int more, int visible,
                           int more_visible, float* steps) {
  const int64_t begin = chunk.begin, end = chunk.end_index;
  const auto in_chunk = [&](int index) {
    return static_cast<int>(std::clamp<int64_t>(index - begin, 0, end - begin));
  };
  const ChunkValueScales own_scales(task.current_ring, ring, chunk);
  const ChunkValueScales previous_scales(
      task.previous_visible ? task.previous_ring : task.current_ring, ring, chunk);
  const auto scores = [&](int r) {
    return ByteScoresOfRow<kBias>(task, first_scores + r * stride, query_scales, r, begin);
  };
  for (int r = 0; r < softmax.num_rows; ++r)
    softmax.maxima[r] = LargestScores(scores(r), in_chunk(visible + more_visible * r));
  softmax.Raise();
  for (int r = 0; r < softmax.num_rows; ++r) {
    auto* low = reinterpret_cast<uint8_t*>(first_scores + r * stride + stride / 2);
    V16 sum;
    steps[r] = ByteWeights(scores(r), softmax.scales[r], softmax.tops[r], own_scales,
                           previous_scales, in_chunk(own + more * r),
                           in_chunk(visible + more_visible * r), end - begin, low, sum);
    softmax.sums[r] = Fma(softmax.sums[r], Set1(softmax.factors[r]), sum);
    far.Fetch();
  }
}

// Up to sixteen queries of one tile.
template <typename KeyProducts, typename ValueProducts>
class ByteGroup {
 public:
  using Registers = typename KeyProducts::Registers;

  ByteGroup(Registers& registers, const AttendTask& task, const ByteScratch& scratch,
            const Fetches& far, int num_rows)
      : key_products_(registers),
        value_products_(registers),
        task_(task),
        scratch_(scratch),
        far_(far),
        ring_(task.window, task.head_dim),
        indices_(task, num_rows, kLanes),
        softmax_(num_rows, scratch.factors) {}

  void Attend() {
    PackByteQueries(task_, scratch_, indices_.num_rows, query_scales_, query_sums_);
    for (int r = 0; r < indices_.num_rows; ++r)
      softmax_.scales[r] = task_.bias != nullptr ? task_.scale : task_.scale * query_scales_[r];
    ForEachChunk(
        indices_, kStep, far_, [&](const Chunk& chunk) { MakeScores(chunk); },
        [&](const Chunk& chunk) { Weigh(chunk); }, [&](const Chunk& chunk) { AddValues(chunk); });
    for (int r = 0; r < indices_.num_rows; ++r)
      StoreNormalized(task_, r, scratch_.outputs + r * scratch_.dims,
                      indices_.Visible(r) > 0 ? 1.0f / ReduceAdd(softmax_.sums[r]) : 0.0f);
  }

 private:
  static constexpr int64_t kStep = ByteScratch::kStep;

  void MakeScores(const Chunk& chunk) {
    if constexpr (KeyProducts::kFetchesAhead) FetchNextScales(chunk);
    const int64_t first = chunk.first, own_end = indices_.OwnEnd(first, chunk.end);
    MakeScores(task_.current_ring, first, own_end, scratch_.scores, kScoreStride);
    MakeScores(task_.previous_ring, own_end, chunk.end,
               scratch_.scores + (own_end - first) * kLanes, kScoreStride);
    const int64_t border = indices_.border_tile;
    if (!indices_.two_blocks || !indices_.HasBorder(first, chunk.end)) return;
    MakeScores(task_.previous_ring, border, border + 1, scratch_.border_scores, kLanes);
    for (int r = 0; r < indices_.num_rows; ++r) {
      float* score = scratch_.scores + 2 * r * kScoreStride + (border - first) * kLanes;
      Store(score, SelectFirst(indices_.Own(r) - static_cast<int>(border) * kLanes, Load(score),
                               Load(scratch_.border_scores + 2 * r * kLanes)));
    }
  }
  // Of tiles [first, end) of a chunk, side by side.
  void MakeScores(const void* head, int64_t first, int64_t end, float* out, int64_t out_stride) {
    ByteScores(key_products_, scratch_, indices_.num_rows, query_sums_, head, ring_, first, end,
               task_.next_ring, out, out_stride);
  }

  void FetchNextScales(const Chunk& chunk) const {
    if (task_.next_ring == 0) return;
    const char* scales = static_cast<const char*>(task_.current_ring) + ring_.Scales(chunk.first);
    const int64_t bytes = (chunk.end - chunk.first) * ByteRing::kScaleBytes;
    for (int64_t line = 0; line < bytes; line += kLineBytes)
      _mm_prefetch(scales + line + task_.next_ring, _MM_HINT_T1);
  }

  int64_t border_step() const { return task_.first_offset / kStep; }
  bool HasBorder(const Chunk& chunk) const {
    return indices_.two_blocks && chunk.first_step <= border_step() &&
           border_step() < chunk.end_step;
  }
  ValueRuns Runs(const Chunk& chunk) const {
    ValueRuns runs;
    const auto add_steps = [&](const void* head, int64_t from, int64_t to) {
      runs.AddSteps(scratch_.scores, 4 * kScoreStride, head, ring_, chunk, from, to);
    };
    if (!indices_.two_blocks) {
      add_steps(task_.current_ring, 0, chunk.end_step);
      return runs;
    }
    add_steps(task_.current_ring, 0, border_step());
    if (HasBorder(chunk)) {
      runs.AddStep(scratch_.own, kStep, task_.current_ring, ring_, border_step());
      runs.AddStep(scratch_.previous, kStep, task_.previous_ring, ring_, border_step());
    }
    add_steps(task_.previous_ring, border_step() + 1, chunk.end_step);
    return runs;
  }

  void Weigh(const Chunk& chunk) {
    const auto weigh = task_.bias != nullptr ? WeighByteChunk<true> : WeighByteChunk<false>;
    weigh(task_, ring_, chunk, query_scales_, softmax_, far_, scratch_.scores, 2 * kScoreStride,
          indices_.own, indices_.more_own, indices_.visible, indices_.more_visible, scratch_.steps);
    if (!HasBorder(chunk)) return;
    const int64_t border = border_step() * kStep;
    for (int r = 0; r < indices_.num_rows; ++r) {
      const auto* digits = reinterpret_cast<const uint8_t*>(scratch_.scores + 2 * r * kScoreStride);
      SplitDigits(r, digits + (border - chunk.begin), indices_.Own(r) - static_cast<int>(border));
    }
  }
  // Row r's digits of the step with the border, of which the query sees `own` indices in its own
  // block.
  void SplitDigits(int r, const uint8_t* digits, int own) {
    const __mmask64 first = own == kStep ? ~uint64_t{0} : (uint64_t{1} << own) - 1;
    for (int64_t to = 2 * r * kStep; to < 2 * (r + 1) * kStep; to += kStep) {
      const __m512i all = _mm512_loadu_si512(digits);
      _mm512_storeu_si512(scratch_.own + to, _mm512_maskz_mov_epi8(first, all));
      _mm512_storeu_si512(scratch_.previous + to, _mm512_maskz_mov_epi8(~first, all));
      digits += 4 * kScoreStride;
    }
  }

  void AddValues(const Chunk& chunk) {
    const ValueRuns runs = Runs(chunk);
    value_products_.Multiply({.runs = runs.runs,
                              .num_runs = runs.num_runs,
                              .num_rows = 2 * indices_.num_rows,
                              .num_vectors = static_cast<int>(ring_.columns / kLanes),
                              .out = scratch_.sums,
                              .out_stride = scratch_.dims,
                              .ahead = task_.next_ring});
    for (int r = 0; r < indices_.num_rows; ++r) {
      // The first chunk is every row's; another one may be its neighbours' alone.
      if (chunk.first != 0 && indices_.Visible(r) <= chunk.begin) continue;
      const float* high = scratch_.sums + 2 * r * scratch_.dims;
      const float* low = high + scratch_.dims;
      float* outputs = scratch_.outputs + r * scratch_.dims;
      const V16 factor = Set1(scratch_.factors[r]), step = Set1(scratch_.steps[r]);
      for (int64_t c = 0; c < ring_.columns; c += kLanes) {
        const V16 sum = JoinDigits(LoadSums(high + c), LoadSums(low + c)) * step;
        Store(outputs + c, chunk.first == 0 ? sum : Fma(Load(outputs + c), factor, sum));
      }
    }
  }

  KeyProducts key_products_;
  ValueProducts value_products_;
  const AttendTask& task_;
  const ByteScratch& scratch_;
  Fetches far_;
  const ByteRing ring_;
  const GroupIndices indices_;
  Softmax softmax_;
  float query_scales_[kProductRows];
  DigitSums query_sums_[ByteScratch::kQueries];
};

// Products of signed rows with unsigned bytes, and of unsigned rows with signed bytes.
template <typename KeyProducts, typename ValueProducts>
void AttendBytesKernel(const AttendTask& task) {
  using Group = ByteGroup<KeyProducts, ValueProducts>;
  const ByteScratch scratch(task);
  typename Group::Registers registers(2 * task.num_queries);
  AttendTask group = task;
  group.scale = task.scale * 1.44269504089f;  // weights are powers of two
  ForEachGroup<ByteScratch::kQueries>(task, group, [&](const Fetches& far, int n) {
    Group(registers, group, scratch, far, n).Attend();
  });
}

inline __m512i SymmetricIntegers(const float* x, int i, int n, V16 inverse) {
  return _mm512_cvtps_epi32(RoundSymmetric(x, i, n, inverse).v);
}
// What the ring keeps of one index.
inline void WriteByteScales(const WriteRingTask& task, const ByteRing& ring, int64_t index,
                            float key_scale, float value_scale) {
  const BFloat16 scales[] = {ToBFloat16(key_scale), ToBFloat16(value_scale)};
  std::memcpy(
      static_cast<char*>(task.ring) + ring.Scales(index / kLanes) + index % kLanes * sizeof(scales),
      scales, sizeof(scales));
}
// Bytes of keys, 128 too large.
inline __m128i OffsetBytes(__m512i integers) {
  return _mm_xor_si128(_mm512_cvtepi32_epi8(integers), _mm_set1_epi8(-128));
}

inline void WriteByteRow(const WriteRingTask& task, const ByteRing& ring, int i) {
  const int64_t index = task.first_index + i;
  const float* k = task.k + i * task.k_stride;
  const float* v = task.v + i * task.v_stride;
  char* key = static_cast<char*>(task.ring) + ring.Key(index);
  const KeyValueStep key_step = KeyValueStepOf(k, task.head_dim);
  for (int d = 0; d < task.head_dim; d += kLanes) {
    const __m512i integers = SymmetricIntegers(k, d, task.head_dim, key_step.inverse);
    alignas(16) uint8_t bytes[kLanes];
    _mm_store_si128(reinterpret_cast<__m128i*>(bytes), OffsetBytes(integers));
    for (int g = 0; g < kLanes / 4; ++g)
      std::memcpy(key + (d / 4 + g) * kVectorBytes, bytes + 4 * g, 4);
  }
  // One byte of each group of four; the others stay.
  char* value = static_cast<char*>(task.ring) + ring.Value(index);
  const int64_t value_stride = ring.ValueStride(index / ByteRing::kStep);
  const __m512i byte = _mm512_set1_epi32(0xff);
  const __m128i shift = _mm_cvtsi32_si128(static_cast<int>(index % 4) * 8);
  const KeyValueStep value_step = KeyValueStepOf(v, task.head_dim);
  for (int d = 0; d < task.head_dim; d += kLanes) {
    const __m512i own =
        _mm512_and_si512(SymmetricIntegers(v, d, task.head_dim, value_step.inverse), byte);
    const __m512i others =
        _mm512_andnot_si512(_mm512_sll_epi32(byte, shift), _mm512_loadu_si512(value));
    _mm512_storeu_si512(value, _mm512_or_si512(_mm512_sll_epi32(own, shift), others));
    value += value_stride;
  }
  WriteByteScales(task, ring, index, key_step.scale, value_step.scale);
}

// Four rows whose ring indices begin at a multiple of four: they share groups of values, and their
// keys lie side by side.
inline void WriteFourByteRows(const WriteRingTask& task, const ByteRing& ring, int i) {
  const int64_t index = task.first_index + i;
  const auto key_row = [&](int t) { return task.k + (i + t) * task.k_stride; };
  const auto value_row = [&](int t) { return task.v + (i + t) * task.v_stride; };
  KeyValueStep key_steps[4], value_steps[4];
  for (int t = 0; t < 4; ++t) {
    key_steps[t] = KeyValueStepOf(key_row(t), task.head_dim);
    value_steps[t] = KeyValueStepOf(value_row(t), task.head_dim);
  }
  char* const head = static_cast<char*>(task.ring);
  auto* key = reinterpret_cast<__m128i*>(head + ring.Key(index));
  char* value = head + ring.Value(index);
  const int64_t value_stride = ring.ValueStride(index / ByteRing::kStep);
  for (int d = 0; d < task.head_dim; d += kLanes) {
    __m128i k[4], v[4];
    for (int t = 0; t < 4; ++t) {
      k[t] = OffsetBytes(SymmetricIntegers(key_row(t), d, task.head_dim, key_steps[t].inverse));
      v[t] = _mm512_cvtepi32_epi8(
          SymmetricIntegers(value_row(t), d, task.head_dim, value_steps[t].inverse));
    }
    // Four dwords of four rows, transposed: a group of all rows is one store.
    TransposeDwords(k);
    for (int g = 0; g < 4; ++g) _mm_storeu_si128(key + (d / 4 + g) * 4, k[g]);
    const __m128i low01 = _mm_unpacklo_epi8(v[0], v[1]), high01 = _mm_unpackhi_epi8(v[0], v[1]);
    const __m128i low23 = _mm_unpacklo_epi8(v[2], v[3]), high23 = _mm_unpackhi_epi8(v[2], v[3]);
    auto* to = reinterpret_cast<__m128i*>(value);
    _mm_storeu_si128(to, _mm_unpacklo_epi16(low01, low23));
    _mm_storeu_si128(to + 1, _mm_unpackhi_epi16(low01, low23));
    _mm_storeu_si128(to + 2, _mm_unpacklo_epi16(high01, high23));
    _mm_storeu_si128(to + 3, _mm_unpackhi_epi16(high01, high23));
    value += value_stride;
  }
  for (int t = 0; t < 4; ++t)
    WriteByteScales(task, ring, index + t, key_steps[t].scale, value_steps[t].scale);
}

void WriteBytesKernel(const WriteRingTask& task) {
  const ByteRing ring(task.window, task.head_dim);
  WriteRows(
      task, [&](int i) { WriteByteRow(task, ring, i); },
      [&](int i) { WriteFourByteRows(task, ring, i); });
}
