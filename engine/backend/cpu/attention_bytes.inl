// Attention where keys and values are INT8 and the processor multiplies bytes: on dot products or
// on AMX tiles. Included by kernels_avx512.cc after attention_pairs.inl, whose shape it has.
//
// The bytes are multiplied as they lie in the ring. Queries and softmax weights become integers of
// 16 bits, each over its own row's range, and those two digits of a byte each: the high digits and
// the low ones are multiplied separately. (One digit of a weight would lose what many small weights
// beside a large one add up to.) Sums are exact integers, so no order along K can matter, zero
// weights silence whatever they meet, and dot products and tiles give the same bits.
//
// A query's digits are of q + 2^15, which is never negative: 2^15 times the sum of a key's bytes
// comes off its score. The ring keeps 128 times that sum for the high digits.

// Rows 2 r and 2 r + 1 of all these are query r's high and low digits, or what becomes of them.
struct ByteScratch {
  static constexpr int kRows = 2 * kGroupQueries;
  static constexpr int64_t kStep = 4 * kStepGroups;  // ring indices

  explicit ByteScratch(const AttendTask& task)
      : dims(RoundUpInt8Inputs(task.head_dim)),
        stride(RoundUpInt8Inputs(std::max(task.window, task.head_dim)) + kLanes),
        sums(task.scores),
        queries(reinterpret_cast<uint8_t*>(sums + kRows * stride)),
        weights(queries + kRows * dims),
        own(weights + kRows * stride),
        previous(own + kRows * kStep) {}

  int64_t dims, stride;
  float* sums;        // [32][stride] int32; in even rows then float32 scores and weights
  uint8_t* queries;   // [32][dims]
  uint8_t* weights;   // [32][stride]
  uint8_t* own;       // [32][64], of the step with the border
  uint8_t* previous;  // likewise
};

// The digits of `num_queries` queries times a matrix, sixteen rows at a time; `runs` are those of
// `product` and move along.
template <typename Products>
inline void MultiplyDigits(Products& products, int num_queries, ProductRun* runs, Product product) {
  for (int left = 2 * num_queries; left > 0; left -= kGroupQueries) {
    product.num_rows = std::min(kGroupQueries, left);
    products.Multiply(product);
    for (int n = 0; n < product.num_runs; ++n) runs[n].rows += kGroupQueries * runs[n].row_stride;
    product.out += kGroupQueries * product.out_stride;
  }
}

// Sixteen integers of 16 bits as two digits each.
inline void StoreDigits(uint8_t* high, uint8_t* low, V16 integers) {
  const __m512i u = _mm512_cvtps_epi32(integers.v);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(high), _mm512_cvtepi32_epi8(_mm512_srli_epi32(u, 8)));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(low), _mm512_cvtepi32_epi8(u));
}
// Sums of digits' products to those of the integers.
inline V16 JoinDigits(V16Int high, V16Int low) {
  return Fma(Set1(256.0f), ToFloats(high), ToFloats(low));
}
inline V16Int LoadSums(const float* p) { return LoadInts(reinterpret_cast<const int32_t*>(p)); }

// The rows' queries as digits, zeros behind; scales[r] is a step of row r.
inline void PackByteQueries(const AttendTask& task, const ByteScratch& scratch, int num_rows,
                            float* scales) {
  const auto load = [&](const float* q, int i) {
    return LoadPartial(q + i, std::min(kLanes, task.head_dim - i));
  };
  for (int r = 0; r < num_rows; ++r) {
    const float* q = task.q + r * task.q_stride;
    V16 largest = Zero(), poison = Zero();
    for (int i = 0; i < task.head_dim; i += kLanes) {
      largest = Max(Abs(load(q, i)), largest);
      poison = Fma(load(q, i), Zero(), poison);
    }
    const float scale = ReduceMax(largest) / 32767.0f, inverse = Int8Reciprocal(scale);
    scales[r] = scale + ReduceAdd(poison);
    uint8_t* high = scratch.queries + 2 * r * scratch.dims;
    uint8_t* low = high + scratch.dims;
    std::memset(high, 0, 2 * static_cast<size_t>(scratch.dims));
    for (int i = 0; i < task.head_dim; i += kLanes) {
      const V16 u = Round(load(q, i) * Set1(inverse)) + Set1(32768.0f);
      uint8_t digits[2][kLanes];
      StoreDigits(digits[0], digits[1], u);
      const auto n = static_cast<size_t>(std::min(kLanes, task.head_dim - i));
      std::memcpy(high + i, digits[0], n);
      std::memcpy(low + i, digits[1], n);
    }
  }
}

// Products of the queries with keys of tiles [first, end), their scales applied.
template <typename Products>
inline void ByteScores(Products& products, const ByteScratch& scratch, int num_rows,
                       const float* query_scales, const void* keys, const float* key_scales,
                       const int32_t* key_offsets, int64_t first, int64_t end) {
  const int64_t tile_bytes = kLanes * scratch.dims;
  ProductRun run = {.rows = reinterpret_cast<const char*>(scratch.queries),
                    .row_stride = scratch.dims,
                    .matrix = static_cast<const char*>(keys) + first * tile_bytes,
                    .groups = scratch.dims / 4};
  MultiplyDigits(products, num_rows, &run,
                 {.runs = &run,
                  .num_runs = 1,
                  .num_rows = 0,
                  .num_vectors = static_cast<int>(end - first),
                  .group_stride = 4 * kLanes,
                  .vector_stride = tile_bytes,
                  .out = scratch.sums + first * kLanes,
                  .out_stride = scratch.stride});
  for (int r = 0; r < num_rows; ++r) {
    float* scores = scratch.sums + 2 * r * scratch.stride;
    const float* low = scores + scratch.stride;
    for (int64_t j = first * kLanes; j < end * kLanes; j += kLanes) {
      const V16Int high = {_mm512_sub_epi32(LoadSums(scores + j).v, LoadInts(key_offsets + j).v)};
      Store(scores + j,
            JoinDigits(high, LoadSums(low + j)) * (Set1(query_scales[r]) * Load(key_scales + j)));
    }
  }
}

// Scores to weights of one query, as digits, with the values' scales in them; zeros up to `end`, a
// multiple of 64. Returns what a sum of the integers is multiplied with, 0 when nothing is visible.
template <bool kBias>
inline float ByteWeights(const AttendTask& task, const ByteScratch& scratch, int row, int offset,
                         int own, int visible, int64_t end) {
  float* scores = scratch.sums + 2 * row * scratch.stride;
  const float* bias =
      kBias ? task.bias + task.window - offset - (task.include_self ? 1 : 0) : nullptr;
  const V16 scale = Set1(task.scale);
  V16 largest = Set1(-INFINITY);
  // Whole vectors, then what is left of one.
  const int whole = visible / kLanes * kLanes, rest = visible - whole;
  const auto with_bias = [&](int j, int n) {
    const V16 score = Load(scores + j);
    if constexpr (!kBias) return score;
    return score + (n == kLanes ? Load(bias + j) : LoadPartial(bias + j, n));
  };
  for (int j = 0; j < whole; j += kLanes) largest = Max(largest, with_bias(j, kLanes));
  if (rest > 0) largest = Max(largest, SelectFirst(rest, with_bias(whole, rest), largest));
  const V16 top = Set1(ReduceMax(largest) * task.scale);
  V16 sum = Zero(), most = Zero(), poison = Zero();
  const auto weigh = [&](int j, int n, V16 value_scales) {
    V16 p = Exp2(Fma(with_bias(j, n), scale, Zero() - top));
    if (n < kLanes) p = SelectFirst(n, p, Zero());
    sum = sum + p;
    V16 weight = p * value_scales;
    if (n < kLanes) weight = SelectFirst(n, weight, Zero());
    most = Max(weight, most);
    poison = Fma(weight, Zero(), poison);
    Store(scores + j, weight);
  };
  // Whose values the indices of a vector meet: own, both, or those of the block before.
  for (int j = 0; j < visible; j += kLanes) {
    const int n = std::min(kLanes, visible - j), of_own = own - j;
    if (of_own >= kLanes || !task.previous_visible) {
      weigh(j, n, Load(task.current_value_scales + j));
    } else if (of_own <= 0) {
      weigh(j, n, Load(task.previous_value_scales + j));
    } else {
      weigh(j, n,
            SelectFirst(of_own, Load(task.current_value_scales + j),
                        Load(task.previous_value_scales + j)));
    }
  }
  const float step = ReduceMax(most) / 65535.0f;
  const V16 inverse = Set1(Int8Reciprocal(step));
  uint8_t* high = scratch.weights + 2 * row * scratch.stride;
  uint8_t* low = high + scratch.stride;
  for (int64_t j = 0; j < end; j += kLanes) {
    const V16 weight = j < visible ? Load(scores + j) : Zero();
    StoreDigits(high + j, low + j, Min(Round(weight * inverse), Set1(65535.0f)));
  }
  return visible == 0 ? 0.0f : step / ReduceAdd(sum) + ReduceAdd(poison);
}

// Up to sixteen queries of one tile.
template <typename Products>
inline void AttendByteGroup(Products& products, const AttendTask& task, const ByteScratch& scratch,
                            int num_rows) {
  constexpr int64_t kStep = ByteScratch::kStep;
  const int offset = task.first_offset;
  const bool all_own = task.num_visible >= 0;
  const bool has_border = task.previous_visible && task.current_keys != task.previous_keys;
  const auto tiles = [](int64_t indices) { return (indices + kLanes - 1) / kLanes; };
  const int64_t border_tile = offset / kLanes, border_step = offset / kStep;
  const int64_t visible_tiles = all_own                 ? tiles(task.num_visible)
                                : task.previous_visible ? tiles(task.window)
                                                        : border_tile + 1;
  float query_scales[kGroupQueries];
  PackByteQueries(task, scratch, num_rows, query_scales);
  if (has_border) {
    ByteScores(products, scratch, num_rows, query_scales, task.previous_keys,
               task.previous_key_scales, task.previous_key_offsets, border_tile, visible_tiles);
    V16 beyond[kGroupQueries];
    float* border = scratch.sums + border_tile * kLanes;
    for (int r = 0; r < num_rows; ++r) beyond[r] = Load(border + 2 * r * scratch.stride);
    ByteScores(products, scratch, num_rows, query_scales, task.current_keys,
               task.current_key_scales, task.current_key_offsets, 0, border_tile + 1);
    for (int r = 0; r < num_rows; ++r, border += 2 * scratch.stride) {
      const int own = CurrentEnd(task, offset + r) - static_cast<int>(border_tile) * kLanes;
      Store(border, SelectFirst(own, Load(border), beyond[r]));
    }
  } else {
    ByteScores(products, scratch, num_rows, query_scales, task.current_keys,
               task.current_key_scales, task.current_key_offsets, 0, visible_tiles);
  }

  const int64_t steps = (visible_tiles * kLanes + kStep - 1) / kStep;
  float factors[kGroupQueries];
  for (int r = 0; r < num_rows; ++r) {
    const int own = CurrentEnd(task, all_own ? 0 : offset + r);
    const auto weights = task.bias != nullptr ? ByteWeights<true> : ByteWeights<false>;
    factors[r] = weights(task, scratch, r, offset + r, own,
                         task.previous_visible ? task.window : own, steps * kStep);
    if (!has_border) continue;
    const auto before = static_cast<int>(own - border_step * kStep);  // of the step's indices
    const __mmask64 mask = before == kStep ? ~uint64_t{0} : (uint64_t{1} << before) - 1;
    for (int64_t digits = 2 * r; digits < 2 * r + 2; ++digits) {
      const __m512i all =
          _mm512_loadu_si512(scratch.weights + digits * scratch.stride + border_step * kStep);
      _mm512_storeu_si512(scratch.own + digits * kStep, _mm512_maskz_mov_epi8(mask, all));
      _mm512_storeu_si512(scratch.previous + digits * kStep, _mm512_maskz_mov_epi8(~mask, all));
    }
  }

  const int64_t columns = (task.head_dim + kLanes - 1) / kLanes * kLanes;
  const int64_t group_bytes = 4 * columns, step_bytes = kStepGroups * group_bytes;
  ProductRun runs[4];
  int num_runs = 0;
  const auto add = [&](const uint8_t* weights, int64_t stride, const void* values, int64_t first,
                       int64_t end) {
    if (first >= end) return;
    runs[num_runs++] = {.rows = reinterpret_cast<const char*>(weights),
                        .row_stride = stride,
                        .matrix = static_cast<const char*>(values) + first * step_bytes,
                        .groups = (end - first) * kStepGroups};
  };
  const auto add_steps = [&](const void* values, int64_t first, int64_t end) {
    add(scratch.weights + first * kStep, scratch.stride, values, first, end);
  };
  if (has_border) {
    add_steps(task.current_values, 0, border_step);
    add(scratch.own, kStep, task.current_values, border_step, border_step + 1);
    add(scratch.previous, kStep, task.previous_values, border_step, border_step + 1);
    add_steps(task.previous_values, border_step + 1, steps);
  } else {
    add_steps(task.current_values, 0, steps);
  }
  MultiplyDigits(products, num_rows, runs,
                 {.runs = runs,
                  .num_runs = num_runs,
                  .num_rows = 0,
                  .num_vectors = static_cast<int>(columns / kLanes),
                  .group_stride = group_bytes,
                  .vector_stride = 4 * kLanes,
                  .out = scratch.sums,
                  .out_stride = scratch.stride});
  for (int r = 0; r < num_rows; ++r) {
    const float* high = scratch.sums + 2 * r * scratch.stride;
    const float* low = high + scratch.stride;
    for (int c = 0; c < task.head_dim; c += kLanes) {
      StorePartial(task.out + r * task.out_stride + c,
                   JoinDigits(LoadSums(high + c), LoadSums(low + c)) * Set1(factors[r]),
                   std::min(kLanes, task.head_dim - c));
    }
  }
}

template <typename Products>
void AttendBytesKernel(const AttendTask& task) {
  const ByteScratch scratch(task);
  Products products;
  AttendTask group = task;
  group.scale = task.scale * 1.44269504089f;  // weights are powers of two
  ForEachGroup(task, group, [&](int n) { AttendByteGroup(products, group, scratch, n); });
}

inline __m512i SymmetricIntegers(const float* x, int i, int n, V16 inverse) {
  return _mm512_cvtps_epi32(RoundSymmetric(x, i, n, inverse).v);
}
inline int8_t* ByteKey(const WriteBytesTask& task, int64_t index) {
  const int64_t dims = RoundUpInt8Inputs(task.head_dim);
  return task.keys + index / kLanes * kLanes * dims + index % kLanes * 4;
}
inline int8_t* ByteValues(const WriteBytesTask& task, int64_t index) {
  return task.values + index / 4 * 4 * ((task.head_dim + kLanes - 1) / kLanes * kLanes);
}

inline void WriteByteRow(const WriteBytesTask& task, int i) {
  const int64_t index = task.first_index + i;
  const float* k = task.k + i * task.k_stride;
  const float* v = task.v + i * task.v_stride;
  int8_t* key = ByteKey(task, index);
  __m512i sum = _mm512_setzero_si512();
  const SymmetricStep key_step = SymmetricStepOf(k, task.head_dim);
  for (int d = 0; d < task.head_dim; d += kLanes) {
    const __m512i integers = SymmetricIntegers(k, d, task.head_dim, key_step.inverse);
    sum = _mm512_add_epi32(sum, integers);
    alignas(16) int8_t bytes[kLanes];
    _mm_store_si128(reinterpret_cast<__m128i*>(bytes), _mm512_cvtepi32_epi8(integers));
    for (int g = 0; g < kLanes / 4; ++g)
      std::memcpy(key + (d / 4 + g) * 4 * kLanes, bytes + 4 * g, 4);
  }
  task.key_scales[index] = key_step.scale;
  task.key_offsets[index] = 128 * _mm512_reduce_add_epi32(sum);
  // One byte of each group of four; the others stay.
  int8_t* value = ByteValues(task, index);
  const __m512i byte = _mm512_set1_epi32(0xff);
  const __m128i shift = _mm_cvtsi32_si128(static_cast<int>(index % 4) * 8);
  const SymmetricStep value_step = SymmetricStepOf(v, task.head_dim);
  for (int d = 0; d < task.head_dim; d += kLanes) {
    int8_t* to = value + 4 * d;
    const __m512i own =
        _mm512_and_si512(SymmetricIntegers(v, d, task.head_dim, value_step.inverse), byte);
    const __m512i others =
        _mm512_andnot_si512(_mm512_sll_epi32(byte, shift), _mm512_loadu_si512(to));
    _mm512_storeu_si512(to, _mm512_or_si512(_mm512_sll_epi32(own, shift), others));
  }
  task.value_scales[index] = value_step.scale;
}

// Four rows whose ring indices begin at a multiple of four: they share groups of values, and their
// keys lie side by side.
inline void WriteFourByteRows(const WriteBytesTask& task, int i) {
  const int64_t index = task.first_index + i;
  const auto key_row = [&](int t) { return task.k + (i + t) * task.k_stride; };
  const auto value_row = [&](int t) { return task.v + (i + t) * task.v_stride; };
  V16 key_inverse[4], value_inverse[4];
  __m512i sums[4];
  for (int t = 0; t < 4; ++t) {
    const SymmetricStep key_step = SymmetricStepOf(key_row(t), task.head_dim);
    const SymmetricStep value_step = SymmetricStepOf(value_row(t), task.head_dim);
    task.key_scales[index + t] = key_step.scale;
    task.value_scales[index + t] = value_step.scale;
    key_inverse[t] = key_step.inverse;
    value_inverse[t] = value_step.inverse;
    sums[t] = _mm512_setzero_si512();
  }
  auto* key = reinterpret_cast<__m128i*>(ByteKey(task, index));
  auto* value = reinterpret_cast<__m128i*>(ByteValues(task, index));
  for (int d = 0; d < task.head_dim; d += kLanes) {
    __m128i k[4], v[4];
    for (int t = 0; t < 4; ++t) {
      const __m512i integers = SymmetricIntegers(key_row(t), d, task.head_dim, key_inverse[t]);
      sums[t] = _mm512_add_epi32(sums[t], integers);
      k[t] = _mm512_cvtepi32_epi8(integers);
      v[t] =
          _mm512_cvtepi32_epi8(SymmetricIntegers(value_row(t), d, task.head_dim, value_inverse[t]));
    }
    // Four dwords of four rows, transposed: a group of all rows is one store.
    TransposeDwords(k);
    for (int g = 0; g < 4; ++g) _mm_storeu_si128(key + (d / 4 + g) * 4, k[g]);
    const __m128i low01 = _mm_unpacklo_epi8(v[0], v[1]), high01 = _mm_unpackhi_epi8(v[0], v[1]);
    const __m128i low23 = _mm_unpacklo_epi8(v[2], v[3]), high23 = _mm_unpackhi_epi8(v[2], v[3]);
    _mm_storeu_si128(value + d / 4, _mm_unpacklo_epi16(low01, low23));
    _mm_storeu_si128(value + d / 4 + 1, _mm_unpackhi_epi16(low01, low23));
    _mm_storeu_si128(value + d / 4 + 2, _mm_unpacklo_epi16(high01, high23));
    _mm_storeu_si128(value + d / 4 + 3, _mm_unpackhi_epi16(high01, high23));
  }
  for (int t = 0; t < 4; ++t) task.key_offsets[index + t] = 128 * _mm512_reduce_add_epi32(sums[t]);
}

void WriteBytesKernel(const WriteBytesTask& task) {
  WriteRows(
      task, [&](int i) { WriteByteRow(task, i); }, [&](int i) { WriteFourByteRows(task, i); });
}
