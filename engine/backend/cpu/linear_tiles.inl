// BF16 and INT8 linear layers on AMX tiles. Included by kernels_avx512.cc after linear_formats.inl.
//
// The kernel is written over a `Tiles` type: the processor's eight tile registers, or plain arrays
// that do the same, so that every machine can test it. A tile is 16 rows of 64 bytes: 16 x 32 BF16
// or 16 x 64 INT8 inputs, 16 groups of two or four k x 16 outputs of weights (a panel's own
// layout), or 16 x 16 float32 or int32 sums.
//
// Inputs lie in tiles too (kernels.h): sixteen lines that follow one another load faster than lines
// of sixteen rows, which are far apart and share few sets of the first-level cache.
//
// Batch law: a row of sums depends on its own row of inputs; along K the order is the tile's,
// always one tile at a time from the start.

// Lines of the next panel that a step along K fetches, of as many as the panel has outputs: the
// whole of it while so many pairs of tiles pass.
constexpr int kLinesAhead = 4;
constexpr int kPassesAhead = kPanelOutputs / kLinesAhead;

// The instruction set's registers. One thread configures them for the length of a kernel.
class HardwareTiles {
 public:
  HardwareTiles() {
    alignas(64) Config config = {};
    config.palette = 1;
    for (int t = 0; t < 8; ++t) {
      config.row_bytes[t] = 64;
      config.rows[t] = kTileRows;
    }
    // g++ 12 does not see that the instruction reads the object and may drop the stores above.
    asm volatile("" : : "r"(&config) : "memory");
    _tile_loadconfig(&config);
  }
  ~HardwareTiles() { _tile_release(); }
  HardwareTiles(const HardwareTiles&) = delete;
  HardwareTiles& operator=(const HardwareTiles&) = delete;

  // The intrinsics spell the register into the instruction: it must be a literal.
  template <int T>
  void Zero() {
    if constexpr (T == 0) _tile_zero(0);
    if constexpr (T == 1) _tile_zero(1);
    if constexpr (T == 2) _tile_zero(2);
    if constexpr (T == 3) _tile_zero(3);
  }
  template <int T>
  void Load(const char* from, int64_t stride_bytes) {
    if constexpr (T == 4) _tile_loadd(4, from, stride_bytes);
    if constexpr (T == 5) _tile_loadd(5, from, stride_bytes);
    if constexpr (T == 6) _tile_loadd(6, from, stride_bytes);
    if constexpr (T == 7) _tile_loadd(7, from, stride_bytes);
  }
  // Tiles 4 and 5 hold inputs, 6 and 7 weights.
  template <int Sum>
  void MultiplyAdd() {
    if constexpr (Sum == 0) _tile_dpbf16ps(0, 4, 6);
    if constexpr (Sum == 1) _tile_dpbf16ps(1, 4, 7);
    if constexpr (Sum == 2) _tile_dpbf16ps(2, 5, 6);
    if constexpr (Sum == 3) _tile_dpbf16ps(3, 5, 7);
  }
  template <int Sum>
  void MultiplyAddBytes() {
    if constexpr (Sum == 0) _tile_dpbusd(0, 4, 6);
    if constexpr (Sum == 1) _tile_dpbusd(1, 4, 7);
    if constexpr (Sum == 2) _tile_dpbusd(2, 5, 6);
    if constexpr (Sum == 3) _tile_dpbusd(3, 5, 7);
  }
  template <int T>
  void Store(float* to, int64_t stride_bytes = 64) {
    if constexpr (T == 0) _tile_stored(0, to, stride_bytes);
    if constexpr (T == 1) _tile_stored(1, to, stride_bytes);
    if constexpr (T == 2) _tile_stored(2, to, stride_bytes);
    if constexpr (T == 3) _tile_stored(3, to, stride_bytes);
  }

 private:
  struct Config {  // the layout that LDTILECFG reads
    uint8_t palette;
    uint8_t start_row;
    uint8_t reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
  };
  static_assert(sizeof(Config) == 64);
};

// The same registers as arrays. TDPBF16PS sums the even and the odd products of a row separately,
// then adds both to the destination (Intel's instruction set reference).
class EmulatedTiles {
 public:
  template <int T>
  void Zero() {
    std::memset(tiles_[T], 0, sizeof(tiles_[T]));
  }
  template <int T>
  void Load(const char* from, int64_t stride_bytes) {
    for (int r = 0; r < kTileRows; ++r) std::memcpy(tiles_[T][r], from + r * stride_bytes, 64);
  }
  template <int Sum>
  void MultiplyAdd() {
    constexpr int kInputs = 4 + Sum / 2, kWeights = 6 + Sum % 2;
    V16Pair inputs[kTileRows], sums[kTileRows];
    for (int m = 0; m < kTileRows; ++m) {
      inputs[m] = Pairs(kInputs, m);
      sums[m] = {bst::Zero(), bst::Zero()};
    }
    for (int k = 0; k < kTileRows; ++k) {
      const V16Pair weights = Pairs(kWeights, k);
      const __m512i lane = _mm512_set1_epi32(k);
      for (int m = 0; m < kTileRows; ++m) {
        const V16 even = {_mm512_permutexvar_ps(lane, inputs[m].low.v)};
        const V16 odd = {_mm512_permutexvar_ps(lane, inputs[m].high.v)};
        sums[m] = {Fma(even, weights.low, sums[m].low), Fma(odd, weights.high, sums[m].high)};
      }
    }
    for (int m = 0; m < kTileRows; ++m) {
      float* const row = reinterpret_cast<float*>(tiles_[Sum][m]);
      bst::Store(row, bst::Load(row) + (sums[m].low + sums[m].high));
    }
  }
  template <int Sum>
  void MultiplyAddBytes() {
    constexpr int kInputs = 4 + Sum / 2, kWeights = 6 + Sum % 2;
    // Two sums for each output, those of eight outputs beside one another.
    __m512i sums[kTileRows][2] = {};
    for (int k = 0; k < kTileRows; ++k) {
      const __m512i bytes = _mm512_loadu_si512(tiles_[kWeights][k]);
      const __m512i weights[] = {_mm512_cvtepi8_epi16(_mm512_castsi512_si256(bytes)),
                                 _mm512_cvtepi8_epi16(_mm512_extracti64x4_epi64(bytes, 1))};
      for (int m = 0; m < kTileRows; ++m) {
        int32_t group;
        std::memcpy(&group, tiles_[kInputs][m] + 4 * k, sizeof(group));
        const __m512i inputs = _mm512_broadcastq_epi64(_mm_cvtepu8_epi16(_mm_cvtsi32_si128(group)));
        for (int half = 0; half < 2; ++half) {
          sums[m][half] = _mm512_add_epi32(sums[m][half], _mm512_madd_epi16(weights[half], inputs));
        }
      }
    }
    const __m512i even =
        _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
    for (int m = 0; m < kTileRows; ++m) {
      const __m512i sum = _mm512_add_epi32(_mm512_permutex2var_epi32(sums[m][0], even, sums[m][1]),
                                           _mm512_permutex2var_epi32(sums[m][0], odd, sums[m][1]));
      char* const row = tiles_[Sum][m];
      _mm512_storeu_si512(row, _mm512_add_epi32(_mm512_loadu_si512(row), sum));
    }
  }
  template <int T>
  void Store(float* to, int64_t stride_bytes = 64) {
    for (int r = 0; r < kTileRows; ++r)
      std::memcpy(reinterpret_cast<char*>(to) + r * stride_bytes, tiles_[T][r], 64);
  }

 private:
  V16Pair Pairs(int tile, int row) const {
    return LoadPairs(reinterpret_cast<const BFloat16*>(tiles_[tile][row]));
  }
  alignas(64) char tiles_[8][kTileRows][64];
};

// A tile of products and what becomes of a vector of sums, for each type of weights.
struct Bf16Tiles : Bf16Rows {
  template <int Sum, typename Tiles>
  static void MultiplyAdd(Tiles& tiles) {
    tiles.template MultiplyAdd<Sum>();
  }
  static V16 Finish(const LinearTask&, int, int, const float* sums) { return Load(sums); }
};
struct Int8Tiles : Int8Rows {
  template <int Sum, typename Tiles>
  static void MultiplyAdd(Tiles& tiles) {
    tiles.template MultiplyAddBytes<Sum>();
  }
  static V16 Finish(const LinearTask& task, int row, int first, const float* sums) {
    return Dequantize(task, row, first, LoadInts(reinterpret_cast<const int32_t*>(sums)));
  }
};

// Rows [row, row + 16 * RowTiles) of one panel; rows past num_rows are computed from whatever the
// caller's padding holds and not stored. Meanwhile kLinesAhead lines of `ahead` for each step along
// K come to the second-level cache, if there are two tiles of rows.
template <typename Format, int RowTiles, typename Tiles>
inline void LinearTileBlock(Tiles& tiles, const LinearTask& task, int row, int panel,
                            const char* ahead) {
  const int64_t row_bytes = Format::RowBytes(task);
  // 64 bytes of a row meet sixteen groups of four bytes of each of the panel's outputs.
  constexpr int64_t kWeightStride = 4 * kPanelOutputs;
  const char* w = static_cast<const char*>(task.weights) + panel * (row_bytes / 4 * kWeightStride);
  const char* x = Format::Row(task, row);
  const char* const x_end = x + kTileRows * row_bytes;
  tiles.template Zero<0>();
  tiles.template Zero<1>();
  if constexpr (RowTiles == 2) {
    tiles.template Zero<2>();
    tiles.template Zero<3>();
  }
  // The outputs' places come meanwhile too, some rows at a time: all at once they would keep what
  // the tiles wait for from coming.
  const int rows = std::min(RowTiles * kTileRows, task.num_rows - row);
  const int steps = static_cast<int>(row_bytes / kLineBytes);
  const int rows_a_step = task.packed_out == nullptr ? (rows + steps - 1) / steps : 0;
  int prefetched = 0;
  for (; x != x_end; x += kTileRows * kLineBytes) {
    if (prefetched < rows) {
      const int last = std::min(rows, prefetched + rows_a_step);
      PrefetchOutputs(task, row + prefetched, last - prefetched, panel * kPanelOutputs, 2);
      prefetched = last;
    }
    tiles.template Load<6>(w, kWeightStride);
    tiles.template Load<7>(w + kWeightStride / 2, kWeightStride);
    tiles.template Load<4>(x, kLineBytes);
    Format::template MultiplyAdd<0>(tiles);
    Format::template MultiplyAdd<1>(tiles);
    if constexpr (RowTiles == 2) {
      tiles.template Load<5>(x + kTileRows * row_bytes, kLineBytes);
      for (int line = 0; line < kLinesAhead; ++line)
        _mm_prefetch(ahead + line * kLineBytes, _MM_HINT_T1);
      ahead += kLinesAhead * kLineBytes;
      Format::template MultiplyAdd<2>(tiles);
      Format::template MultiplyAdd<3>(tiles);
    }
    w += kTileRows * kWeightStride;
  }
  alignas(64) float sums[2 * RowTiles][kTileRows][kLanes];  // or int32
  tiles.template Store<0>(&sums[0][0][0]);
  tiles.template Store<1>(&sums[1][0][0]);
  if constexpr (RowTiles == 2) {
    tiles.template Store<2>(&sums[2][0][0]);
    tiles.template Store<3>(&sums[3][0][0]);
  }
  for (int r = 0; r < rows; ++r) {
    V16 out[2];
    for (int half = 0; half < 2; ++half) {
      out[half] = Format::Finish(task, row + r, panel * kPanelOutputs + half * kLanes,
                                 sums[r / kTileRows * 2 + half][r % kTileRows]);
    }
    if (task.packed_out != nullptr) {
      char* const line = reinterpret_cast<char*>(task.packed_out) +
                         (row + r) / kTileRows * kTileRows * task.packed_out_row_bytes +
                         (panel * kTileRows + r % kTileRows) * kLineBytes;
      for (int half = 0; half < 2; ++half)
        PackOutputs(task, line, panel * kPanelOutputs + half * kLanes, out[half]);
      continue;
    }
    for (int half = 0; half < 2; ++half) {
      const int first = panel * kPanelOutputs + half * kLanes;
      const int n = std::min(kLanes, task.out_features - first);
      if (n <= 0) break;
      StoreOutputs(task, task.out + (row + r) * task.out_stride + first, out[half], n);
    }
  }
}

// A panel stays in the second-level cache while the rows pass over it, and the task's next one
// comes; beside the last, itself, which is there.
template <typename Format, typename Tiles>
void LinearTilesKernel(const LinearTask& task) {
  Tiles tiles;
  const int64_t panel_bytes = Format::RowBytes(task) * kPanelOutputs;
  for (int panel = task.first_panel; panel < task.last_panel; ++panel) {
    const int next_panel = std::min(panel + 1, task.last_panel - 1);
    const char* next = static_cast<const char*>(task.weights) + next_panel * panel_bytes;
    int row = 0;
    for (; row + kTileRows < task.num_rows; row += 2 * kTileRows) {
      LinearTileBlock<Format, 2>(tiles, task, row, panel, next);
      next += panel_bytes / kPassesAhead;
    }
    if (row < task.num_rows) LinearTileBlock<Format, 1>(tiles, task, row, panel, nullptr);
  }
}
