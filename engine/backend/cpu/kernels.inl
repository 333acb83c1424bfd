// The kernels, written over V16. Included by kernels_<isa>.cc inside a target region.

// ---------------------------------------------------------------- elementary functions

// e^x to 3 ulp for x in [-87, 88]; below, about 1e-38. Cody and Waite's reduction, x = n ln 2 + r
// with ln 2 in two parts, then the degree-6 Taylor polynomial on |r| <= 0.35 (remainder 1.2e-7).
inline V16 Exp(V16 x) {
  x = Max(Set1(-87.0f), x);  // in this order a NaN stays one
  const V16 n = Round(x * Set1(1.44269504089f));
  V16 r = NegFma(n, Set1(0.693359375f), x);
  r = NegFma(n, Set1(-2.12194440e-4f), r);
  V16 p = Set1(1.0f / 720.0f);
  p = Fma(p, r, Set1(1.0f / 120.0f));
  p = Fma(p, r, Set1(1.0f / 24.0f));
  p = Fma(p, r, Set1(1.0f / 6.0f));
  p = Fma(p, r, Set1(0.5f));
  p = Fma(p, r, Set1(1.0f));
  p = Fma(p, r, Set1(1.0f));
  return ScaleByPowerOfTwo(p, n);
}

// erf(x) with absolute error below 2e-7: Abramowitz and Stegun 7.1.26.
inline V16 Erf(V16 x) {
  const V16 a = Abs(x);
  const V16 t = Set1(1.0f) / Fma(Set1(0.3275911f), a, Set1(1.0f));
  V16 p = Set1(1.061405429f);
  p = Fma(p, t, Set1(-1.453152027f));
  p = Fma(p, t, Set1(1.421413741f));
  p = Fma(p, t, Set1(-0.284496736f));
  p = Fma(p, t, Set1(0.254829592f));
  const V16 tail = p * t * Exp(Zero() - a * a);
  return CopySign(Set1(1.0f) - tail, x);
}

inline V16 Gelu(V16 x) {
  const V16 half = x * Set1(0.5f);
  return Fma(half, Erf(x * Set1(0.70710678f)), half);
}

inline V16 Silu(V16 x) { return x / (Set1(1.0f) + Exp(Min(Set1(87.0f), Zero() - x))); }

// ---------------------------------------------------------------- linear layers

// Every epilogue but kAdd.
inline V16 Activate(const LinearTask& task, V16 sum) {
  switch (task.epilogue) {
    case CpuEpilogue::kRelu:
      return Max(Zero(), sum);  // NaN stays
    case CpuEpilogue::kGelu:
      return Gelu(sum);
    default:
      return sum * Set1(task.scale);
  }
}

inline void StoreOutputs(const LinearTask& task, float* out, V16 sum, int n) {
  sum = task.epilogue == CpuEpilogue::kAdd ? sum + LoadPartial(out, n) : Activate(task, sum);
  if (n == kLanes) {
    Store(out, sum);
  } else {
    StorePartial(out, sum, n);
  }
}

// The places of `rows` rows' outputs come to the cache while their sums are made: a store that
// misses holds up all behind it.
inline void PrefetchOutputs(const LinearTask& task, int row, int rows, int first, int vectors) {
  for (int c = 0; c < vectors && first + c * kLanes < task.out_features; ++c) {
    for (int r = 0; r < rows; ++r)
      PrefetchToWrite(task.out + (row + r) * task.out_stride + first + c * kLanes);
  }
}

inline int64_t PanelElements(const float*, int k) { return int64_t{k} * kPanelOutputs; }
inline int64_t PanelElements(const BFloat16*, int k) { return RoundUpInputs(k) * kPanelOutputs; }

// Rows x 32 outputs in registers; each output is one chain of additions along K.
template <typename Weight, int Rows>
inline void LinearTile(const LinearTask& task, int row, int panel) {
  constexpr int kVectors = kPanelOutputs / kLanes;
  PrefetchOutputs(task, row, Rows, panel * kPanelOutputs, kVectors);
  V16 sum[Rows][kVectors];
  for (int r = 0; r < Rows; ++r) {
    for (int c = 0; c < kVectors; ++c) sum[r][c] = Zero();
  }
  const int k_size = task.in_features;
  const int64_t panel_size = PanelElements(static_cast<const Weight*>(nullptr), k_size);
  const Weight* w = static_cast<const Weight*>(task.weights) + panel * panel_size;
  const float* x = task.x + row * task.x_stride;
  if constexpr (sizeof(Weight) == sizeof(float)) {
    for (int k = 0; k < k_size; ++k) {
      V16 b[kVectors];
      for (int c = 0; c < kVectors; ++c) b[c] = Load(w + k * kPanelOutputs + c * kLanes);
      for (int r = 0; r < Rows; ++r) {
        const V16 a = Set1(x[r * task.x_stride + k]);
        for (int c = 0; c < kVectors; ++c) sum[r][c] = Fma(a, b[c], sum[r][c]);
      }
    }
  } else {
    for (int k = 0; k < k_size; k += 2) {
      V16Pair b[kVectors];
      for (int c = 0; c < kVectors; ++c) b[c] = LoadPairs(w + k * kPanelOutputs + c * 2 * kLanes);
      for (int r = 0; r < Rows; ++r) {
        const V16 a = Set1(x[r * task.x_stride + k]);
        for (int c = 0; c < kVectors; ++c) sum[r][c] = Fma(a, b[c].low, sum[r][c]);
      }
      if (k + 1 == k_size) break;  // K is odd: the last pair is half padding
      for (int r = 0; r < Rows; ++r) {
        const V16 a = Set1(x[r * task.x_stride + k + 1]);
        for (int c = 0; c < kVectors; ++c) sum[r][c] = Fma(a, b[c].high, sum[r][c]);
      }
    }
  }
  for (int c = 0; c < kVectors; ++c) {
    const int first = panel * kPanelOutputs + c * kLanes;
    const int n = std::min(kLanes, task.out_features - first);
    if (n <= 0) break;
    for (int r = 0; r < Rows; ++r)
      StoreOutputs(task, task.out + (row + r) * task.out_stride + first, sum[r][c], n);
  }
}

// `rows` of one panel, 1 <= rows <= Rows.
template <typename Weight, int Rows>
void LinearTileOf(const LinearTask& task, int row, int rows, int panel) {
  if constexpr (Rows > 1) {
    if (rows < Rows) return LinearTileOf<Weight, Rows - 1>(task, row, rows, panel);
  }
  LinearTile<Weight, Rows>(task, row, panel);
}

template <typename Weight>
void LinearKernel(const LinearTask& task) {
  // A panel stays in the cache while the rows pass over it, in tiles of nearly equal height. Few
  // rows too take one panel after the other: weights that come from memory come faster in one
  // stream than in several, whose sums would hide the latency of one another.
  const int tiles = (task.num_rows + kMaxTileRows - 1) / kMaxTileRows;
  for (int panel = task.first_panel; panel < task.last_panel; ++panel) {
    for (int tile = 0; tile < tiles; ++tile) {
      const int row = task.num_rows * tile / tiles;
      LinearTileOf<Weight, kMaxTileRows>(task, row, task.num_rows * (tile + 1) / tiles - row,
                                         panel);
    }
  }
}

void RoundToBFloat16Kernel(const float* in, float* out, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) Store(out + i, RoundToBFloat16(Load(in + i)));
  if (i < n) {
    const int rest = static_cast<int>(n - i);
    StorePartial(out + i, RoundToBFloat16(LoadPartial(in + i, rest)), rest);
  }
}

void PackBFloat16Kernel(const float* in, BFloat16* out, int64_t n, int64_t line_stride) {
  constexpr int64_t kLine = kLineBytes / int64_t{sizeof(BFloat16)};
  for (int64_t first = 0; first < n;
       first += kLine, out += line_stride / int64_t{sizeof(BFloat16)}) {
    const int64_t size = std::min(kLine, n - first);
    int64_t i = 0;
    for (; i + kLanes <= size; i += kLanes) StoreBFloat16(out + i, Load(in + first + i));
    for (; i < size; ++i) out[i] = ToBFloat16(in[first + i]);
  }
}

// QuantizeInputs of int8.h, bit for bit: minimum and maximum do not depend on an order.
QuantizedRow QuantizeInputsKernel(const float* x, int n, uint8_t* q, int64_t line_stride) {
  V16 low = Zero(), high = Zero(), poison = Zero();
  for (int i = 0; i < n; i += kLanes) {
    const V16 v = i + kLanes <= n ? Load(x + i) : LoadPartial(x + i, n - i);
    low = Min(v, low);
    high = Max(v, high);
    poison = Fma(v, Zero(), poison);
  }
  const float least = 0.0f - ReduceMax(Zero() - low), most = ReduceMax(high);
  const float scale = (most - least) / 255.0f, inverse = Int8Reciprocal(scale);
  const V16 limit = Set1(255.0f);
  const V16 zero = Min(Round(Set1(0.0f - least) * Set1(inverse)), limit);
  for (int i = 0; i < n; i += kLanes) {
    const V16 v = i + kLanes <= n ? Load(x + i) : LoadPartial(x + i, n - i);
    const V16 rounded = Min(Max(Round(v * Set1(inverse)) + zero, Zero()), limit);
    uint8_t* const to = q + i / kLineBytes * line_stride + i % kLineBytes;
    if (i + kLanes <= n) {
      StoreBytes(to, rounded);
    } else {
      uint8_t last[kLanes];
      StoreBytes(last, rounded);
      std::memcpy(to, last, static_cast<size_t>(n - i));
    }
  }
  const float zero_byte = ReduceMax(Max(zero, Zero()));
  return {.scale = scale + ReduceAdd(poison), .zero = static_cast<int32_t>(zero_byte)};
}

// QuantizeKeyOrValue of int8.h, bit for bit, in two parts.
struct KeyValueStep {
  float scale;
  V16 inverse;
};
inline KeyValueStep KeyValueStepOf(const float* x, int n) {
  V16 largest = Zero(), poison = Zero();
  for (int i = 0; i < n; i += kLanes) {
    const V16 v = i + kLanes <= n ? Load(x + i) : LoadPartial(x + i, n - i);
    largest = Max(Abs(v), largest);
    poison = Fma(v, Zero(), poison);
  }
  const float scale = RoundUpToBFloat16(ReduceMax(largest) / 127.0f);
  return {scale + ReduceAdd(poison), Set1(Int8Reciprocal(scale))};
}
// Sixteen integers from x[i] on, zeros behind x[n - 1].
inline V16 RoundSymmetric(const float* x, int i, int n, V16 inverse) {
  const V16 v = i + kLanes <= n ? Load(x + i) : LoadPartial(x + i, n - i);
  return Min(Max(Round(v * inverse), Set1(-127.0f)), Set1(127.0f));
}

template <typename Out>
float QuantizeKeyOrValueKernel(const float* x, int n, Out* q, int64_t stride) {
  const KeyValueStep step = KeyValueStepOf(x, n);
  for (int i = 0; i < n; i += kLanes) {
    float rounded[kLanes];
    Store(rounded, RoundSymmetric(x, i, n, step.inverse));
    for (int lane = 0; lane < std::min(kLanes, n - i); ++lane)
      q[(i + lane) * stride] = static_cast<Out>(rounded[lane]);
  }
  return step.scale;
}

// ---------------------------------------------------------------- attention

// Which ring indices the query at offset i finds in its own block: [0, CurrentEnd).
inline int CurrentEnd(const AttendTask& task, int offset) {
  return task.num_visible >= 0 ? task.num_visible : offset + (task.include_self ? 1 : 0);
}
// How much further each next query sees.
inline int CurrentEndStep(const AttendTask& task) { return task.num_visible >= 0 ? 0 : 1; }

// Scores of `Queries` queries against one tile of 16 keys: sums along dh one by one.
template <typename Kv, int Queries>
inline void TileDots(const AttendTask& task, const Kv* keys, int query, V16* dots) {
  for (int r = 0; r < Queries; ++r) dots[r] = Zero();
  const float* q = task.q + query * task.q_stride;
  for (int i = 0; i < task.head_dim; ++i) {
    const V16 key = Load(keys + i * kLanes);
    for (int r = 0; r < Queries; ++r) dots[r] = Fma(Set1(q[r * task.q_stride + i]), key, dots[r]);
  }
}

// Several tiles of one query at once: independent sums hide the latency.
template <typename Kv, int Tiles>
inline void QueryDots(const AttendTask& task, const Kv* keys, int query, V16* dots) {
  for (int c = 0; c < Tiles; ++c) dots[c] = Zero();
  const float* q = task.q + query * task.q_stride;
  const int64_t tile_size = int64_t{task.head_dim} * kLanes;
  for (int i = 0; i < task.head_dim; ++i) {
    const V16 a = Set1(q[i]);
    for (int c = 0; c < Tiles; ++c)
      dots[c] = Fma(a, Load(keys + c * tile_size + i * kLanes), dots[c]);
  }
}

// What the integers of INT8 keys lack.
inline V16 ScaleDots(V16 dots, const float* scales, int first_index) {
  return scales == nullptr ? dots : dots * Load(scales + first_index);
}

// Likewise of INT8 values: their scales go into one query's weights, [0, visible) of them, of which
// [0, own) meet values of its own block.
inline void ScaleWeights(const AttendTask& task, float* weights, int own, int visible) {
  if (task.current_value_scales == nullptr) return;
  for (int j = 0; j < visible; j += kLanes) {
    const int n = std::clamp(own - j, 0, kLanes);
    V16 scales = n > 0 ? Load(task.current_value_scales + j) : Zero();
    if (n < kLanes && task.previous_visible)
      scales = SelectFirst(n, scales, Load(task.previous_value_scales + j));
    Store(weights + j, Load(weights + j) * scales);
  }
}

// Score of one tile from its dot products; indices that the query does not see become -infinity.
inline V16 TileScore(const AttendTask& task, V16 dot, int first_index, int offset) {
  if (task.bias != nullptr) {
    const int base = task.include_self ? task.window - 1 - offset : task.window - offset;
    dot = dot +
          LoadPartial(task.bias + base + first_index, std::min(kLanes, task.window - first_index));
  }
  const V16 score = dot * Set1(task.scale);
  const int visible = task.previous_visible ? task.window : CurrentEnd(task, offset);
  const int n = std::clamp(visible - first_index, 0, kLanes);
  return n == kLanes ? score : SelectFirst(n, score, Set1(-INFINITY));
}

// scores[0, padded W) become weights exp(s - max); returns 1 / sum, or 0 when nothing is visible.
inline float SoftmaxWeights(const AttendTask& task, float* scores, int visible) {
  const auto padded = static_cast<int>(RoundUp(task.window, kLanes));
  const auto end = static_cast<int>(RoundUp(visible, kLanes));
  V16 largest = Set1(-INFINITY);
  for (int j = 0; j < end; j += kLanes) largest = Max(largest, Load(scores + j));
  const float top = ReduceMax(largest);
  for (int j = end; j < padded; j += kLanes) Store(scores + j, Zero());
  if (visible == 0) return 0.0f;
  V16 sum = Zero();
  for (int j = 0; j < end; j += kLanes) {
    const V16 p =
        SelectFirst(std::min(kLanes, visible - j), Exp(Load(scores + j) - Set1(top)), Zero());
    Store(scores + j, p);
    sum = sum + p;
  }
  return 1.0f / ReduceAdd(sum);
}

// out += weights * values over ring indices [begin, end), in order, for Queries queries and
// Vectors * 16 columns.
template <typename Kv, int Queries, int Vectors>
inline void AddValues(const AttendTask& task, const Kv* values, int begin, int end, int64_t padded,
                      int query, V16 (&sum)[Queries][Vectors]) {
  const float* weights = task.scores + query * padded;
  for (int j = begin; j < end; ++j) {
    V16 value[Vectors];
    for (int c = 0; c < Vectors; ++c) value[c] = Load(values + j * task.value_stride + c * kLanes);
    for (int r = 0; r < Queries; ++r) {
      const V16 p = Set1(weights[r * padded + j]);
      for (int c = 0; c < Vectors; ++c) sum[r][c] = Fma(p, value[c], sum[r][c]);
    }
  }
}

// Columns [column, column + 16 Vectors) of the outputs of Queries queries.
template <typename Kv, int Queries, int Vectors>
inline void WeightedValues(const AttendTask& task, int query, int column, const float* normalizer) {
  const int64_t padded = RoundUp(task.window, kLanes);
  const Kv* current = static_cast<const Kv*>(task.current_values) + column;
  const Kv* previous = static_cast<const Kv*>(task.previous_values) + column;
  V16 sum[Queries][Vectors];
  for (int r = 0; r < Queries; ++r) {
    for (int c = 0; c < Vectors; ++c) sum[r][c] = Zero();
  }
  // Indices below `low` are the own block's for all queries, from `high` on the previous one's; in
  // between each query has its own border.
  const int low = CurrentEnd(task, task.first_offset + query), step = CurrentEndStep(task);
  const int high = low + (Queries - 1) * step;
  AddValues<Kv, Queries, Vectors>(task, current, 0, low, padded, query, sum);
  for (int j = low; j < high; ++j) {
    for (int r = 0; r < Queries; ++r) {
      const bool own = j < low + r * step;
      if (!own && !task.previous_visible) continue;
      const Kv* value = (own ? current : previous) + j * task.value_stride;
      const V16 p = Set1(task.scores[(query + r) * padded + j]);
      for (int c = 0; c < Vectors; ++c) sum[r][c] = Fma(p, Load(value + c * kLanes), sum[r][c]);
    }
  }
  if (task.previous_visible)
    AddValues<Kv, Queries, Vectors>(task, previous, high, task.window, padded, query, sum);
  for (int r = 0; r < Queries; ++r) {
    for (int c = 0; c < Vectors; ++c) {
      const int first = column + c * kLanes;
      float* out = task.out + (query + r) * task.out_stride + first;
      const V16 o = sum[r][c] * Set1(normalizer[r]);
      const int n = std::min(kLanes, task.head_dim - first);
      if (n == kLanes) {
        Store(out, o);
      } else {
        StorePartial(out, o, n);
      }
    }
  }
}

template <typename Kv, int Queries>
inline void AttendQueries(const AttendTask& task, int query) {
  const int64_t padded = RoundUp(task.window, kLanes);
  const int64_t tile_size = int64_t{task.head_dim} * kLanes;
  const Kv* current = static_cast<const Kv*>(task.current_keys);
  const Kv* previous = static_cast<const Kv*>(task.previous_keys);
  const int offset = task.first_offset + query;
  const int low = CurrentEnd(task, offset), step = CurrentEndStep(task);
  const int high = low + (Queries - 1) * step;
  const int visible_end = task.previous_visible ? task.window : high;
  int j = 0;
  if constexpr (Queries == 1) {
    // The decode case: current and previous are one ring, all of it in order.
    constexpr int kTiles = 8;
    while (current == previous && j + kTiles * kLanes <= visible_end) {
      V16 dots[kTiles];
      QueryDots<Kv, kTiles>(task, current + j / kLanes * tile_size, query, dots);
      for (int c = 0; c < kTiles; ++c) {
        const int first = j + c * kLanes;
        Store(task.scores + query * padded + first,
              TileScore(task, ScaleDots(dots[c], task.current_key_scales, first), first, offset));
      }
      j += kTiles * kLanes;
    }
  }
  for (; j < visible_end; j += kLanes) {
    const int64_t tile = j / kLanes * tile_size;
    V16 dots[Queries];
    // A tile is the own block's, the previous one's, or holds the borders between the two.
    if (j + kLanes <= low || current == previous) {
      TileDots<Kv, Queries>(task, current + tile, query, dots);
      for (int r = 0; r < Queries; ++r) dots[r] = ScaleDots(dots[r], task.current_key_scales, j);
    } else if (j >= high) {
      TileDots<Kv, Queries>(task, previous + tile, query, dots);
      for (int r = 0; r < Queries; ++r) dots[r] = ScaleDots(dots[r], task.previous_key_scales, j);
    } else {
      V16 before[Queries];
      TileDots<Kv, Queries>(task, current + tile, query, dots);
      TileDots<Kv, Queries>(task, previous + tile, query, before);
      for (int r = 0; r < Queries; ++r) {
        dots[r] = SelectFirst(std::clamp(low + r * step - j, 0, kLanes),
                              ScaleDots(dots[r], task.current_key_scales, j),
                              ScaleDots(before[r], task.previous_key_scales, j));
      }
    }
    for (int r = 0; r < Queries; ++r) {
      Store(task.scores + (query + r) * padded + j, TileScore(task, dots[r], j, offset + r));
    }
  }
  float normalizer[Queries];
  for (int r = 0; r < Queries; ++r) {
    float* weights = task.scores + (query + r) * padded;
    const int own = low + r * step, visible = task.previous_visible ? task.window : own;
    normalizer[r] = SoftmaxWeights(task, weights, visible);
    ScaleWeights(task, weights, own, visible);
  }
  int column = 0;
  // Values are padded to whole vectors; only the stores are ragged.
  const int64_t padded_dim = RoundUp(task.head_dim, kLanes);
  for (; column + kValueVectors * kLanes <= padded_dim; column += kValueVectors * kLanes) {
    WeightedValues<Kv, Queries, kValueVectors>(task, query, column, normalizer);
  }
  if constexpr (kValueVectors > 1) {
    for (; column < task.head_dim; column += kLanes)
      WeightedValues<Kv, Queries, 1>(task, query, column, normalizer);
  }
}

template <typename Kv>
void AttendKernel(const AttendTask& task) {
  AttendTask part = task;
  int query = 0;
  for (; query + kMaxQueries <= task.num_queries; query += kMaxQueries) {
    part.q = task.q + query * task.q_stride;
    part.out = task.out + query * task.out_stride;
    part.first_offset = task.first_offset + query;
    AttendQueries<Kv, kMaxQueries>(part, 0);
  }
  for (; query < task.num_queries; ++query) {
    part.q = task.q + query * task.q_stride;
    part.out = task.out + query * task.out_stride;
    part.first_offset = task.first_offset + query;
    AttendQueries<Kv, 1>(part, 0);
  }
}

// ---------------------------------------------------------------- norms, gates, log-probabilities

inline double SumOfSquares(const float* x, int n) {
  V16 sum = Zero();
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const V16 v = Load(x + i);
    sum = Fma(v, v, sum);
  }
  if (i < n) {
    const V16 v = LoadPartial(x + i, n - i);
    sum = Fma(v, v, sum);
  }
  const float total = ReduceAdd(sum);
  if (total <= 3.4e38f) return static_cast<double>(total);
  // Beyond float32, or NaN: squares of float32 fit into float64.
  double squares = 0;
  for (i = 0; i < n; ++i) squares += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  return squares;
}

void RmsNormKernel(const float* x, const float* gain, float epsilon, int dim, float* out) {
  const double mean = SumOfSquares(x, dim) / dim;
  const V16 factor = Set1(static_cast<float>(1.0 / std::sqrt(mean + static_cast<double>(epsilon))));
  int i = 0;
  for (; i + kLanes <= dim; i += kLanes) Store(out + i, Load(gain + i) * (Load(x + i) * factor));
  if (i < dim) {
    const int n = dim - i;
    StorePartial(out + i, LoadPartial(gain + i, n) * (LoadPartial(x + i, n) * factor), n);
  }
}

void NormalizeHeadsKernel(float* x, int num_heads, int head_dim) {
  for (int h = 0; h < num_heads; ++h, x += head_dim) {
    const V16 factor = Set1(static_cast<float>(1.0 / std::sqrt(SumOfSquares(x, head_dim) + 1e-6)));
    int i = 0;
    for (; i + kLanes <= head_dim; i += kLanes) Store(x + i, Load(x + i) * factor);
    if (i < head_dim) StorePartial(x + i, LoadPartial(x + i, head_dim - i) * factor, head_dim - i);
  }
}

// The compiler makes vectors of this loop.
void RotateKernel(const float* __restrict cosines, const float* __restrict sines, int n,
                  float* __restrict x) {
  float* __restrict y = x + n;
  for (int j = 0; j < n; ++j) {
    const float a = x[j], b = y[j];
    x[j] = a * cosines[j] - b * sines[j];
    y[j] = b * cosines[j] + a * sines[j];
  }
}

template <V16 (*Activation)(V16)>
void GateKernel(const float* x, int width, float* out) {
  int i = 0;
  for (; i + kLanes <= width; i += kLanes)
    Store(out + i, Activation(Load(x + i)) * Load(x + width + i));
  if (i < width) {
    const int n = width - i;
    StorePartial(out + i, Activation(LoadPartial(x + i, n)) * LoadPartial(x + width + i, n), n);
  }
}

// Plain loops: the compiler makes vectors of these.
void AddScaledKernel(const float* __restrict x, const float* __restrict gain, int n,
                     float* __restrict y) {
  for (int i = 0; i < n; ++i) y[i] += gain[i] * x[i];
}
void AddKernel(const float* __restrict x, int n, float* __restrict y) {
  for (int i = 0; i < n; ++i) y[i] += x[i];
}
void MultiplyKernel(const float* __restrict x, int n, float* __restrict y) {
  for (int i = 0; i < n; ++i) y[i] *= x[i];
}
void InterpolateKernel(const float* __restrict s, const float* __restrict gate, int n,
                       float* __restrict z) {
  for (int i = 0; i < n; ++i) z[i] = s[i] * gate[i] + z[i] * (1.0f - gate[i]);
}

double LogSumExpKernel(const float* x, int n) {
  V16 largest = Set1(-INFINITY);
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) largest = Max(largest, Load(x + i));
  if (i < n) largest = Max(largest, SelectFirst(n - i, LoadPartial(x + i, n - i), Set1(-INFINITY)));
  const float top = ReduceMax(largest);
  // Float32 lanes over 64 vectors at a time, float64 across: large vocabularies lose nothing.
  double sum = 0;
  for (i = 0; i < n;) {
    V16 part = Zero();
    for (int v = 0; v < 64 && i < n; ++v, i += kLanes) {
      const int lanes = std::min(kLanes, n - i);
      part = part + SelectFirst(lanes, Exp(LoadPartial(x + i, lanes) - Set1(top)), Zero());
    }
    sum += static_cast<double>(ReduceAdd(part));
  }
  return static_cast<double>(top) + std::log(sum);
}

constexpr CpuKernels MakeKernels(void (*linear_int8)(const LinearTask&)) {
  return {.linear_f32 = LinearKernel<float>,
          .linear_bf16 = LinearKernel<BFloat16>,
          .linear_bf16_takes_packed_inputs = false,
          .linear_int8 = linear_int8,
          .linear_takes_tiles = false,
          .round_to_bf16 = RoundToBFloat16Kernel,
          .pack_bf16 = PackBFloat16Kernel,
          .quantize_inputs = QuantizeInputsKernel,
          .attend_f32 = AttendKernel<float>,
          .attend_bf16 = AttendKernel<BFloat16>,
          .write_pairs = nullptr,
          .attend_int8 = AttendKernel<int8_t>,
          .write_bytes = nullptr,
          .fetches_next_ring = false,
          .quantize_key_or_value = QuantizeKeyOrValueKernel<int8_t>,
          .quantize_key_or_value_as_floats = QuantizeKeyOrValueKernel<float>,
          .ssm = SsmKernel,
          .dplr = DplrKernel,
          .scan = ScanKernel,
          .transform = TransformKernel,
          .transform_real = TransformRealKernel,
          .inverse_transform = InverseTransformKernel,
          .multiply_spectra = MultiplySpectraKernel,
          .convolve_block = ConvolveBlockKernel,
          .convolve_ends = ConvolveEndsKernel,
          .rms_norm = RmsNormKernel,
          .normalize_heads = NormalizeHeadsKernel,
          .rotate = RotateKernel,
          .gate_gelu = GateKernel<Gelu>,
          .gate_silu = GateKernel<Silu>,
          .add_scaled = AddScaledKernel,
          .add = AddKernel,
          .multiply = MultiplyKernel,
          .interpolate = InterpolateKernel,
          .log_sum_exp = LogSumExpKernel};
}
