// BF16 and INT8 linear layers on AMX tiles. Included by kernels_avx512.cc after linear_formats.inl.
//
// The kernel is written over a `Tiles` type: the processor's eight tile registers, or plain arrays
// that do the same: for the self-check, and for tests on machines without AMX. A tile is 16 rows
// of 64 bytes: 16 x 32 BF16 or 16 x 64 INT8 inputs, 16 groups of two or four k x 16 outputs of
// weights (a panel's own layout), or 16 x 16 float32 or int32 sums.
//
// Inputs lie in tiles too (kernels.h): sixteen lines that follow one another load faster than lines
// of sixteen rows, which are far apart and share few sets of the first-level cache.
//
// Batch law: a row of sums depends on its own row of inputs; along K the order is the tile's,
// always one tile at a time from the start.

// Tiles 0 to 3 hold sums. A processor seems to have twenty registers for the contents of eight
// tiles, and ten while the core's other thread runs (README.md). A tile of zeros takes none: inputs
// and weights are set to zero where they were used last, and the next ones come one product early.
constexpr int kFirstWeights = 6;  // tiles of sums or inputs before, of weights from here on

// Steps along K whose weights stay in the first-level cache: of a panel they are 32 KB.
constexpr int64_t kMostBlockSteps = 16;

// The instruction set's registers. One thread configures them for the length of a kernel: tiles of
// sums and inputs have `rows` rows, as multiplying and storing take as long as those are high.
class HardwareTiles {
 public:
  explicit HardwareTiles(int rows) {
    alignas(64) Config config = {};
    config.palette = 1;
    for (int t = 0; t < 8; ++t) {
      config.row_bytes[t] = 64;
      config.rows[t] = static_cast<uint8_t>(t < kFirstWeights ? rows : kTileRows);
    }
    asm volatile("ldtilecfg %0" : : "m"(config));
  }
  ~HardwareTiles() { asm volatile("tilerelease"); }
  HardwareTiles(const HardwareTiles&) = delete;
  HardwareTiles& operator=(const HardwareTiles&) = delete;

  // Assembly: g++ 12's intrinsics do not say which memory they read.
  template <int T>
  void Zero() {
    asm volatile("tilezero %%tmm%c0" : : "i"(T));
  }
  // Once: what is not read again soon should not push what is out of the first-level cache.
  template <int T, bool Once = false>
  void Load(const void* from, int64_t stride_bytes) {
    if constexpr (Once) {
      asm volatile("tileloaddt1 (%1,%2,1), %%tmm%c0"
                   :
                   : "i"(T), "r"(from), "r"(stride_bytes)
                   : "memory");
    } else {
      asm volatile("tileloadd (%1,%2,1), %%tmm%c0"
                   :
                   : "i"(T), "r"(from), "r"(stride_bytes)
                   : "memory");
    }
  }
  template <int Sum, int Inputs, int Weights>
  void MultiplyAdd() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(Sum), "i"(Inputs), "i"(Weights));
  }
  template <int Sum, int Inputs, int Weights>
  void MultiplyAddBytes() {
    asm volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(Sum), "i"(Inputs), "i"(Weights));
  }
  // Signed inputs, unsigned weights.
  template <int Sum, int Inputs, int Weights>
  void MultiplyAddSignedBytes() {
    asm volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(Sum), "i"(Inputs), "i"(Weights));
  }
  template <int T>
  void Store(float* to, int64_t stride_bytes) {
    asm volatile("tilestored %%tmm%c0, (%1,%2,1)"
                 :
                 : "i"(T), "r"(to), "r"(stride_bytes)
                 : "memory");
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
  explicit EmulatedTiles(int rows) : rows_(rows) {}

  template <int T>
  void Zero() {
    std::memset(tiles_[T], 0, sizeof(tiles_[T]));
  }
  template <int T, bool Once = false>
  void Load(const void* from, int64_t stride_bytes) {
    const char* row = static_cast<const char*>(from);
    const int rows = T < kFirstWeights ? rows_ : kTileRows;
    for (int r = 0; r < rows; ++r) std::memcpy(tiles_[T][r], row + r * stride_bytes, 64);
  }
  template <int Sum, int Inputs, int Weights>
  void MultiplyAdd() {
    V16Pair inputs[kTileRows], sums[kTileRows];
    for (int m = 0; m < rows_; ++m) {
      inputs[m] = Pairs(Inputs, m);
      sums[m] = {bst::Zero(), bst::Zero()};
    }
    for (int k = 0; k < kTileRows; ++k) {
      const V16Pair weights = Pairs(Weights, k);
      const __m512i lane = _mm512_set1_epi32(k);
      for (int m = 0; m < rows_; ++m) {
        const V16 even = {_mm512_permutexvar_ps(lane, inputs[m].low.v)};
        const V16 odd = {_mm512_permutexvar_ps(lane, inputs[m].high.v)};
        sums[m] = {Fma(even, weights.low, sums[m].low), Fma(odd, weights.high, sums[m].high)};
      }
    }
    for (int m = 0; m < rows_; ++m) {
      float* const row = reinterpret_cast<float*>(tiles_[Sum][m]);
      bst::Store(row, bst::Load(row) + (sums[m].low + sums[m].high));
    }
  }
  template <int Sum, int Inputs, int Weights>
  void MultiplyAddBytes() {
    MultiplyAddBytesOf<Sum, Inputs, Weights, /*kSignedInputs=*/false>();
  }
  template <int Sum, int Inputs, int Weights>
  void MultiplyAddSignedBytes() {
    MultiplyAddBytesOf<Sum, Inputs, Weights, /*kSignedInputs=*/true>();
  }
  template <int T>
  void Store(float* to, int64_t stride_bytes) {
    for (int r = 0; r < rows_; ++r)
      std::memcpy(reinterpret_cast<char*>(to) + r * stride_bytes, tiles_[T][r], 64);
  }

 private:
  V16Pair Pairs(int tile, int row) const {
    return LoadPairs(reinterpret_cast<const BFloat16*>(tiles_[tile][row]));
  }

  template <bool kSigned>
  static __m512i Widened(__m256i bytes) {
    return kSigned ? _mm512_cvtepi8_epi16(bytes) : _mm512_cvtepu8_epi16(bytes);
  }
  template <int Sum, int Inputs, int Weights, bool kSignedInputs>
  void MultiplyAddBytesOf() {
    // Two sums for each output, those of eight outputs beside one another.
    __m512i sums[kTileRows][2] = {};
    for (int k = 0; k < kTileRows; ++k) {
      const __m512i bytes = _mm512_loadu_si512(tiles_[Weights][k]);
      const __m512i weights[] = {Widened<!kSignedInputs>(_mm512_castsi512_si256(bytes)),
                                 Widened<!kSignedInputs>(_mm512_extracti64x4_epi64(bytes, 1))};
      for (int m = 0; m < rows_; ++m) {
        int32_t group;
        std::memcpy(&group, tiles_[Inputs][m] + 4 * k, sizeof(group));
        const __m512i inputs = Widened<kSignedInputs>(_mm256_set1_epi32(group));
        for (int half = 0; half < 2; ++half) {
          sums[m][half] = _mm512_add_epi32(sums[m][half], _mm512_madd_epi16(weights[half], inputs));
        }
      }
    }
    const __m512i even =
        _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
    for (int m = 0; m < rows_; ++m) {
      const __m512i sum = _mm512_add_epi32(_mm512_permutex2var_epi32(sums[m][0], even, sums[m][1]),
                                           _mm512_permutex2var_epi32(sums[m][0], odd, sums[m][1]));
      char* const row = tiles_[Sum][m];
      _mm512_storeu_si512(row, _mm512_add_epi32(_mm512_loadu_si512(row), sum));
    }
  }

  int rows_;
  alignas(64) char tiles_[8][kTileRows][64];
};

// A tile of products and what becomes of a vector of sums, for each type of weights.
struct Bf16Tiles : Bf16Rows {
  template <int Sum, int Inputs, int Weights, typename Tiles>
  static void MultiplyAdd(Tiles& tiles) {
    tiles.template MultiplyAdd<Sum, Inputs, Weights>();
  }
  static V16 Finish(const LinearTask&, int, int, const float* sums) { return Load(sums); }
};
struct Int8Tiles : Int8Rows {
  template <int Sum, int Inputs, int Weights, typename Tiles>
  static void MultiplyAdd(Tiles& tiles) {
    tiles.template MultiplyAddBytes<Sum, Inputs, Weights>();
  }
  static V16 Finish(const LinearTask& task, int row, int first, const float* sums) {
    return Dequantize(task, row, first, LoadInts(reinterpret_cast<const int32_t*>(sums)));
  }
};

// Of signed inputs and unsigned weights, which attention multiplies.
struct SignedInt8Tiles {
  template <int Sum, int Inputs, int Weights, typename Tiles>
  static void MultiplyAdd(Tiles& tiles) {
    tiles.template MultiplyAddSignedBytes<Sum, Inputs, Weights>();
  }
};

// Where a panel is along K, in 64 bytes of a row.
struct TileSteps {
  int64_t first, last;
};

// Sums that are complete: of rows [row, row + num_rows), outputs of one panel, in tiles of 16 x 16.
// They become outputs some rows at a time, while the next rows' tiles are multiplied.
struct TileSums {
  const float* sums = nullptr;
  int row = 0, num_rows = 0, panel = 0;
  int finished = 0;
};

template <typename Format>
inline void FinishRows(const LinearTask& task, TileSums& done, int most) {
  const int last = std::min(done.num_rows, done.finished + most);
  for (int r = done.finished; r < last; ++r) {
    const int row = done.row + r;
    V16 out[2];
    for (int half = 0; half < 2; ++half) {
      const int tile = r / kTileRows * 2 + half;
      out[half] = Format::Finish(task, row, done.panel * kPanelOutputs + half * kLanes,
                                 done.sums + (tile * kTileRows + r % kTileRows) * kLanes);
    }
    if (task.packed_out != nullptr) {
      char* const line = reinterpret_cast<char*>(task.packed_out) +
                         row / kTileRows * kTileRows * task.packed_out_row_bytes +
                         (done.panel * kTileRows + row % kTileRows) * kLineBytes;
      for (int half = 0; half < 2; ++half)
        PackOutputs(task, line, done.panel * kPanelOutputs + half * kLanes, out[half]);
      continue;
    }
    for (int half = 0; half < 2; ++half) {
      const int first = done.panel * kPanelOutputs + half * kLanes;
      const int n = std::min(kLanes, task.out_features - first);
      if (n <= 0) break;
      StoreOutputs(task, task.out + row * task.out_stride + first, out[half], n);
    }
  }
  done.finished = last;
}

// Rows [row, row + 16 * RowTiles) of one panel, some steps along K; rows past num_rows may be
// computed from whatever the caller's padding holds and are not finished. `sums` hold what earlier
// steps came to, then that of these: four tiles, or two. Meanwhile Lines lines of `ahead` for each
// step along K come to the second-level cache, if there are two tiles of rows. kMany: other rows
// take the same weights next.
template <typename Format, int RowTiles, int Lines, bool kMany, typename Tiles>
inline void LinearTileBlock(Tiles& tiles, const LinearTask& task, int row, int panel,
                            const TileSteps& steps, float* sums, const char* ahead,
                            TileSums& done) {
  constexpr bool kTwo = RowTiles == 2;
  constexpr int kTileSums = kTileRows * kLanes;
  const int64_t row_bytes = Format::RowBytes(task), count = row_bytes / kLineBytes;
  // 64 bytes of a row meet sixteen groups of four bytes of each of the panel's outputs.
  constexpr int64_t kWeightStride = 4 * kPanelOutputs, kWeightStep = kTileRows * kWeightStride;
  constexpr int64_t kInputStep = kTileRows * kLineBytes;
  const char* w =
      static_cast<const char*>(task.weights) + (panel * count + steps.first) * kWeightStep;
  const char* x = Format::Row(task, row) + steps.first * kInputStep;
  const char* const x_last = x + (steps.last - steps.first - 1) * kInputStep;
  const int64_t below = kTileRows * row_bytes;
  if (steps.first == 0) {
    tiles.template Zero<0>();
    tiles.template Zero<1>();
    if constexpr (kTwo) tiles.template Zero<2>();
    if constexpr (kTwo) tiles.template Zero<3>();
  } else {
    tiles.template Load<0>(sums, kLineBytes);
    tiles.template Load<1>(sums + kTileSums, kLineBytes);
    if constexpr (kTwo) tiles.template Load<2>(sums + 2 * kTileSums, kLineBytes);
    if constexpr (kTwo) tiles.template Load<3>(sums + 3 * kTileSums, kLineBytes);
  }
  // The step whose tiles are there, and unless it is the last the next one's loads.
  const auto multiply = [&](auto is_last) __attribute__((always_inline)) {
    Format::template MultiplyAdd<0, 4, 6>(tiles);
    Format::template MultiplyAdd<1, 4, 7>(tiles);
    tiles.template Zero<4>();
    if constexpr (kTwo) Format::template MultiplyAdd<2, 5, 6>(tiles);
    tiles.template Zero<6>();
    if constexpr (!is_last) {
      x += kInputStep, w += kWeightStep;
      tiles.template Load<4, kMany>(x, kLineBytes);
      tiles.template Load<6>(w, kWeightStride);
    }
    if constexpr (kTwo) Format::template MultiplyAdd<3, 5, 7>(tiles);
    if constexpr (kTwo) tiles.template Zero<5>();
    tiles.template Zero<7>();
    if constexpr (!is_last) {
      tiles.template Load<7>(w + kWeightStride / 2, kWeightStride);
      if constexpr (kTwo) tiles.template Load<5, kMany>(x + below, kLineBytes);
    }
  };
  tiles.template Load<4, kMany>(x, kLineBytes);
  tiles.template Load<6>(w, kWeightStride);
  tiles.template Load<7>(w + kWeightStride / 2, kWeightStride);
  if constexpr (kTwo) tiles.template Load<5, kMany>(x + below, kLineBytes);
  // The outputs' places come meanwhile too, some rows at a time: all at once they would keep what
  // the tiles wait for from coming.
  const bool finishes = steps.last == count;
  const int rows = std::min(RowTiles * kTileRows, task.num_rows - row);
  const int places = finishes && task.packed_out == nullptr ? rows : 0;
  const auto num_steps = static_cast<int>(steps.last - steps.first);
  const int places_a_step = (places + num_steps - 1) / num_steps;
  const int finished_a_step = (done.num_rows - done.finished + num_steps - 1) / num_steps;
  int prefetched = 0;
  const auto fetch = [&] {
    if (prefetched < places) {
      const int last = std::min(places, prefetched + places_a_step);
      PrefetchOutputs(task, row + prefetched, last - prefetched, panel * kPanelOutputs, 2);
      prefetched = last;
    }
    if constexpr (kTwo) {
      for (int line = 0; line < Lines; ++line) _mm_prefetch(ahead + line * kLineBytes, _MM_HINT_T1);
      ahead += Lines * kLineBytes;
    }
  };
  while (x != x_last && done.finished < done.num_rows) {
    multiply(std::false_type());
    fetch();
    FinishRows<Format>(task, done, finished_a_step);
  }
  while (x != x_last) {
    multiply(std::false_type());
    fetch();
  }
  multiply(std::true_type());
  fetch();
  FinishRows<Format>(task, done, finished_a_step);
  tiles.template Store<0>(sums, kLineBytes);
  tiles.template Store<1>(sums + kTileSums, kLineBytes);
  if constexpr (kTwo) tiles.template Store<2>(sums + 2 * kTileSums, kLineBytes);
  if constexpr (kTwo) tiles.template Store<3>(sums + 3 * kTileSums, kLineBytes);
  if (finishes) done = {.sums = sums, .row = row, .num_rows = rows, .panel = panel};
}

// All rows of a panel, `block` steps along K at a time: so much of its weights stays in the
// first-level cache while the rows pass over it, and their sums wait in the second-level one. The
// next panel comes there meanwhile; where none is known, the last one again, which is there.
template <typename Format, int Lines, bool kMany, typename Tiles>
inline void LinearTilePanels(const LinearTask& task, int64_t block) {
  Tiles tiles(std::min(task.num_rows, kTileRows));
  alignas(kLineBytes) float sums[kTileTaskRows * kPanelOutputs];
  const int64_t row_bytes = Format::RowBytes(task), count = row_bytes / kLineBytes;
  const int64_t panel_bytes = row_bytes * kPanelOutputs;
  TileSums done;
  for (int panel = task.first_panel; panel < task.last_panel; ++panel) {
    const int next_panel = panel + 1 < task.last_panel ? panel + 1
                           : task.next_panel != 0      ? task.next_panel
                                                       : panel;
    const char* ahead = static_cast<const char*>(task.weights) + next_panel * panel_bytes;
    const char* const ahead_end = ahead + panel_bytes;
    for (TileSteps steps = {0, 0}; steps.first < count; steps.first = steps.last) {
      steps.last = std::min(count, steps.first + block);
      const int64_t ahead_bytes = (steps.last - steps.first) * Lines * kLineBytes;
      int row = 0;
      for (; row + kTileRows < task.num_rows; row += 2 * kTileRows) {
        ahead = std::min(ahead, ahead_end - ahead_bytes);
        LinearTileBlock<Format, 2, Lines, kMany>(tiles, task, row, panel, steps,
                                                 sums + row * kPanelOutputs, ahead, done);
        ahead += ahead_bytes;
      }
      if (row < task.num_rows) {
        LinearTileBlock<Format, 1, Lines, kMany>(tiles, task, row, panel, steps,
                                                 sums + row * kPanelOutputs, ahead, done);
      }
      if constexpr (!kMany) FinishRows<Format>(task, done, done.num_rows);
    }
  }
  FinishRows<Format>(task, done, done.num_rows);
}

// Up to kTileTaskRows rows.
template <typename Format, typename Tiles>
void LinearTilesKernel(const LinearTask& task) {
  const int64_t count = Format::RowBytes(task) / kLineBytes;
  const int64_t blocks = (count + kMostBlockSteps - 1) / kMostBlockSteps;
  const int64_t block = (count + blocks - 1) / blocks;
  const auto run = [&](auto lines) { LinearTilePanels<Format, lines, true, Tiles>(task, block); };
  if (task.num_rows <= 2 * kTileRows)
    return LinearTilePanels<Format, kPanelOutputs, false, Tiles>(task, count);
  // As many lines ahead as bring a panel while all rows pass, two tiles of them at a time.
  const int pairs = (task.num_rows + kTileRows - 1) / (2 * kTileRows);
  if (pairs >= 8) return run(std::integral_constant<int, kPanelOutputs / 8>());
  if (pairs >= 4) return run(std::integral_constant<int, kPanelOutputs / 4>());
  if (pairs >= 2) return run(std::integral_constant<int, kPanelOutputs / 2>());
  run(std::integral_constant<int, kPanelOutputs>());
}
