// The softmax that attention on pairs and on bytes shares: over chunks of kChunkIndices ring
// indices, which lie where they lie whatever the prompt's cuts, so that scores and weights never
// leave the first-level cache. A chunk that raises a row's maximum scales what the row's earlier
// chunks came to; any other scales it by one, exactly. A chunk beyond what a row sees is left out
// of that row. (A chunk here is one of the ring, not of a prompt.) Included by kernels_avx512.cc.

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

// Quarters 0 and 1, then 2 and 3, of both vectors to one each.
inline __m512 LargerOfQuarters(__m512 a, __m512 b) {
  return _mm512_max_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
}
// The largest lane of each of sixteen vectors.
inline V16 LargestOfRows(const V16* rows) {
  __m512 pairs[8], quads[4], halves[2];
  for (int i = 0; i < 8; ++i) {
    const __m512 a = rows[2 * i].v, b = rows[2 * i + 1].v;
    pairs[i] = _mm512_max_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  }
  for (int i = 0; i < 4; ++i) {
    const __m512d a = _mm512_castps_pd(pairs[2 * i]), b = _mm512_castps_pd(pairs[2 * i + 1]);
    quads[i] = _mm512_max_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)),
                             _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
  }
  for (int i = 0; i < 2; ++i) halves[i] = LargerOfQuarters(quads[2 * i], quads[2 * i + 1]);
  return {LargerOfQuarters(halves[0], halves[1])};
}

// Of a group of rows, of whose scores weights 2^(scale score - top) are made.
struct Softmax {
  // chunk_factors [kProductRows]: of the chunk that Raise is called for.
  Softmax(int num_queries, float* chunk_factors) : num_rows(num_queries), factors(chunk_factors) {
    const int64_t used = few() ? num_rows : RoundUp(num_rows, kLanes);
    for (int r = 0; r < used; ++r) {
      largest[r] = kLeast;
      scales[r] = 0.0f;
      sums[r] = Zero();
      maxima[r] = Set1(kLeast);
    }
  }

  // From `maxima`: tops for the next weights, and factors for all that earlier chunks came to.
  void Raise() {
    if (few()) {
      for (int r = 0; r < num_rows; ++r) {
        const Step step = StepTo(Set1(largest[r]), Set1(ReduceMax(maxima[r])), Set1(scales[r]));
        largest[r] = _mm512_cvtss_f32(step.largest.v);
        tops[r] = _mm512_cvtss_f32(step.top.v);
        factors[r] = _mm512_cvtss_f32(step.factor.v);
      }
      return;
    }
    for (int r = 0; r < num_rows; r += kLanes) {
      const Step step = StepTo(Load(largest + r), LargestOfRows(maxima + r), Load(scales + r));
      Store(largest + r, step.largest);
      Store(tops + r, step.top);
      Store(factors + r, step.factor);
    }
  }

  // Less than any score. Finite, so that the factor of a row that sees nothing is one.
  static constexpr float kLeast = -1e38f;

  // Whether rows are raised one by one: so few that it is less work than sixteen at once.
  bool few() const { return num_rows <= 4; }

  int num_rows;
  float* factors;
  float largest[kProductRows];
  float scales[kProductRows];
  float tops[kProductRows];
  V16 maxima[kProductRows];  // of a chunk's scores, lane by lane; NaN scores need not show
  V16 sums[kProductRows];    // of weights, lane by lane

 private:
  struct Step {
    V16 largest, top, factor;
  };
  static Step StepTo(V16 before, V16 chunk, V16 scale) {
    const V16 now = Max(before, chunk), top = now * scale;
    return {now, top, Exp2((before - now) * scale)};  // 1 where the maximum is the old one
  }
};

// The largest of a row's first `visible` scores of a chunk, lane by lane; scores.At(j, n) are n of
// them from j on. A whole chunk is most.
template <typename Scores>
inline V16 LargestScores(const Scores& scores, int visible) {
  V16 largest = Set1(Softmax::kLeast);
  if (visible == kChunkIndices) {
    V16 other = largest;
    for (int j = 0; j < kChunkIndices; j += 2 * kLanes) {
      largest = Max(largest, scores.At(j, kLanes));
      other = Max(other, scores.At(j + kLanes, kLanes));
    }
    return Max(largest, other);
  }
  int j = 0;
  for (; j + kLanes <= visible; j += kLanes) largest = Max(largest, scores.At(j, kLanes));
  if (j < visible) {
    const int rest = visible - j;
    largest = Max(largest, SelectFirst(rest, scores.At(j, rest), Set1(Softmax::kLeast)));
  }
  return largest;
}

// Memory on its way to the first-level cache. It is asked for row by row while weights are made:
// all at once would stand in the way of what is needed now.
class Fetches {
 public:
  void Add(const void* row, int64_t stride, int64_t rows, int64_t row_bytes,
           bool to_write = false) {
    if (rows > 0)
      parts_[num_parts_++] = {static_cast<const char*>(row), stride, rows, row_bytes, to_write};
  }
  // In `calls` calls of Fetch all are asked for.
  void SetCalls(int64_t calls) {
    int64_t rows = 0;
    for (int i = 0; i < num_parts_; ++i) rows += parts_[i].rows;
    rows_of_call_ = (rows + calls - 1) / calls;
  }
  void Fetch() {
    for (int64_t i = 0; i < rows_of_call_ && part_ < num_parts_; ++i) {
      Part& part = parts_[part_];
      if (part.to_write) {
        for (int64_t b = 0; b < part.row_bytes; b += 64) PrefetchToWrite(part.row + b);
      } else {
        for (int64_t b = 0; b < part.row_bytes; b += 64) _mm_prefetch(part.row + b, _MM_HINT_T0);
        _mm_prefetch(part.row + part.row_bytes - 1, _MM_HINT_T0);  // rows may begin within a line
      }
      part.row += part.stride;
      if (--part.rows == 0) ++part_;
    }
  }

 private:
  struct Part {
    const char* row;
    int64_t stride;
    int64_t rows;
    int64_t row_bytes;
    bool to_write;
  };
  Part parts_[4];
  int num_parts_ = 0, part_ = 0;
  int64_t rows_of_call_ = 0;
};

// Rows that lie far apart, which the processor does not see coming: what the next block reads,
// where the outputs of these queries go, and what the next group reads.
inline Fetches FarRows(const AttendTask& task, int query, int num_queries) {
  const int next = query + num_queries, after = std::min(num_queries, task.num_queries - next);
  const auto share = [&](int queries) {
    return int64_t{task.num_next} * queries / task.num_queries;
  };
  const int64_t first = share(query), count = share(next) - first;
  Fetches rows;
  const auto add = [&](const float* row, int64_t stride, int64_t num_rows, bool to_write) {
    rows.Add(row, 4 * stride, num_rows, 4 * int64_t{task.head_dim}, to_write);
  };
  add(task.next_k + first * task.next_k_stride, task.next_k_stride, count, false);
  add(task.next_v + first * task.next_v_stride, task.next_v_stride, count, false);
  add(task.out + query * task.out_stride, task.out_stride, num_queries, true);
  if (task.packed_q == nullptr)  // else they follow one another
    add(task.q + next * task.q_stride, task.q_stride, after, false);
  return rows;
}

// Row r of the outputs.
inline void StoreNormalized(const AttendTask& task, int r, const float* from, float normalizer) {
  const V16 factor = Set1(normalizer);
  const int head_dim = task.head_dim;
  float* out = task.out + r * task.out_stride;
  int c = 0;
  for (; c + kLanes <= head_dim; c += kLanes) Store(out + c, Load(from + c) * factor);
  if (c < head_dim) StorePartial(out + c, Load(from + c) * factor, head_dim - c);
}

// Which ring indices the rows of a group see, in tiles of sixteen. The queries lie between two
// multiples of `border` indices, where each has its own border between the two blocks.
struct GroupIndices {
  GroupIndices(const AttendTask& task, int num_queries, int64_t border)
      : num_rows(num_queries),
        all_own(task.num_visible >= 0),
        two_blocks(task.previous_visible && task.current_ring != task.previous_ring),
        own(CurrentEnd(task, task.first_offset)),
        more_own(CurrentEndStep(task)),
        visible(task.previous_visible ? task.window : own),
        more_visible(task.previous_visible ? 0 : more_own),
        tiles(std::max((Visible(num_rows - 1) + kLanes - 1) / kLanes, 1)),
        border_tile(task.first_offset / border * border / kLanes),
        border_end(std::min(border_tile + border / kLanes, tiles)) {}

  // How many row r finds in its own block, and sees.
  int Own(int r) const { return own + more_own * r; }
  int Visible(int r) const { return visible + more_visible * r; }
  // Whether tiles [first, end) are some of the border's.
  bool HasBorder(int64_t first, int64_t end) const {
    return first <= border_tile && border_tile < end;
  }
  // Where those of the query's own block end in tiles [first, end), those of the border with them.
  int64_t OwnEnd(int64_t first, int64_t end) const {
    return two_blocks ? std::clamp(border_end, first, end) : end;
  }

  int num_rows;
  bool all_own, two_blocks;
  int own, more_own, visible, more_visible;
  int64_t tiles, border_tile, border_end;
};

// A chunk of tiles [first, end): its ring indices, and their steps of values.
struct Chunk {
  Chunk(const GroupIndices& indices, int64_t first_tile, int64_t step)
      : first(first_tile),
        end(std::min(first + kChunkIndices / kLanes, indices.tiles)),
        begin(first * kLanes),
        first_step(begin / step),
        end_step((end * kLanes + step - 1) / step),
        end_index(end_step * step) {}

  int64_t first, end;
  int64_t begin;
  int64_t first_step, end_step;
  int64_t end_index;  // with the last step complete
};

// The runs of a chunk's weights along its values. The step with the border, if it is to be split,
// is taken twice: each time with weights of zero for what belongs to the other block.
struct ValueRuns {
  static constexpr int64_t kStepBytes = 4 * kStepGroups;  // of a row

  void Add(const void* rows, int64_t row_stride, const void* values, int64_t vector_stride,
           int64_t num_steps) {
    runs[num_runs++] = {.rows = static_cast<const char*>(rows),
                        .row_stride = row_stride,
                        .matrix = static_cast<const char*>(values),
                        .vector_stride = vector_stride,
                        .groups = num_steps * kStepGroups};
  }
  // Of a head of `ring`.
  template <typename Ring>
  void AddStep(const void* rows, int64_t row_stride, const void* head, const Ring& ring,
               int64_t step, int64_t num_steps = 1) {
    Add(rows, row_stride, static_cast<const char*>(head) + ring.Step(step), ring.ValueStride(step),
        num_steps);
  }
  // Those of the chunk's steps that lie in [from, to). `weights` are those from its first step on.
  template <typename Ring>
  void AddSteps(const void* weights, int64_t row_stride, const void* head, const Ring& ring,
                const Chunk& chunk, int64_t from, int64_t to) {
    from = std::max(from, chunk.first_step), to = std::min(to, chunk.end_step);
    if (from >= to) return;
    AddStep(static_cast<const char*>(weights) + (from - chunk.first_step) * kStepBytes, row_stride,
            head, ring, from, to - from);
  }

  ProductRun runs[4];
  int num_runs = 0;
};

// What a group does, chunk by chunk: scores to weights, and values times them.
template <typename MakeScores, typename Weigh, typename AddValues>
inline void ForEachChunk(const GroupIndices& indices, int64_t step, Fetches& far,
                         const MakeScores& make_scores, const Weigh& weigh,
                         const AddValues& add_values) {
  constexpr int64_t kTiles = kChunkIndices / kLanes;
  far.SetCalls((indices.tiles + kTiles - 1) / kTiles * indices.num_rows);
  for (int64_t first = 0; first < indices.tiles; first += kTiles) {
    const Chunk chunk(indices, first, step);
    make_scores(chunk);
    weigh(chunk);
    add_values(chunk);
  }
}
