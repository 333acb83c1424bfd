// Products of packed groups on AMX tiles, for attention_pairs.inl and attention_bytes.inl: 32 rows
// by 32 outputs at a time, or by 16, so that every tile that is loaded is multiplied twice; few
// rows by 64. Included by kernels_avx512.cc after linear_tiles.inl, whose tiles and formats these
// are, and whose use of zeros.
template <typename Tiles>
struct ProductRegisters : Tiles {
  explicit ProductRegisters(int rows) : Tiles(std::min(rows, kTileRows)) {}
};

template <typename Format, typename Tiles>
class TileProducts {
 public:
  using Registers = ProductRegisters<Tiles>;
  explicit TileProducts(Registers& registers) : tiles_(registers) {}

  // Single queries on bytes go through dot products.
  static constexpr bool kFetchesAhead = std::is_same_v<Format, Bf16Tiles>;

  // One copy of its loops, not one for each call.
  [[gnu::noinline]] void Multiply(const Product& product) {
    if (product.num_rows > kTileRows) return Rows<2, false>(product);
    if constexpr (kFetchesAhead) {
      if (product.ahead != 0) return Rows<1, true>(product);
    }
    Rows<1, false>(product);
  }

 private:
  template <int RowTiles, bool Fetching>
  void Rows(const Product& product) {
    const int64_t groups = product.num_runs == 1 ? product.runs[0].groups : 0;
    if (groups == kStepGroups) return Held<RowTiles, 1, Fetching>(product);
    if (groups == 2 * kStepGroups) return Held<RowTiles, 2, Fetching>(product);
    int vector = 0;
    if constexpr (RowTiles == 1) {
      for (; vector + 4 <= product.num_vectors; vector += 4) Wide<Fetching>(product, vector);
    }
    for (; vector + 2 <= product.num_vectors; vector += 2)
      Block<RowTiles, 2, Fetching>(product, vector);
    if (vector < product.num_vectors) Block<RowTiles, 1, Fetching>(product, vector);
  }

  // multiply(rows, their stride, matrix, its vectors' stride) for each step along K, the matrix
  // from `vector` on.
  template <typename Multiply>
  static void ForEachStep(const Product& product, int vector, const Multiply& multiply) {
    for (int n = 0; n < product.num_runs; ++n) {
      const ProductRun& run = product.runs[n];
      const char* rows = run.rows;
      const char* matrix = run.matrix + vector * run.vector_stride;
      const char* const end = rows + 4 * run.groups;
      for (; rows < end; rows += 4 * kStepGroups, matrix += kStepGroups * kVectorBytes)
        multiply(rows, run.row_stride, matrix, run.vector_stride);
    }
  }

  // A tile of the matrix. Meanwhile what lies product.ahead bytes behind comes to the second-level
  // cache.
  template <int T, bool Fetching>
  void LoadMatrix(const Product& product, const char* from) {
    if constexpr (Fetching) {
      const char* line = from + product.ahead;
      for (int g = 0; g < kTileRows; ++g, line += kVectorBytes) _mm_prefetch(line, _MM_HINT_T1);
    }
    tiles_.template Load<T>(from, kVectorBytes);
  }

  template <int RowTiles, int Vectors, bool Fetching>
  void Block(const Product& product, int vector) {
    constexpr bool kRows = RowTiles == 2, kVectors = Vectors == 2;
    tiles_.template Zero<0>();
    if constexpr (kVectors) tiles_.template Zero<1>();
    if constexpr (kRows) tiles_.template Zero<2>();
    if constexpr (kRows && kVectors) tiles_.template Zero<3>();
    ForEachStep(
        product, vector,
        [&](const char* rows, int64_t row_stride, const char* matrix, int64_t vector_stride) {
          tiles_.template Load<4>(rows, row_stride);
          LoadMatrix<6, Fetching>(product, matrix);
          Format::template MultiplyAdd<0, 4, 6>(tiles_);
          if constexpr (kVectors) {
            LoadMatrix<7, Fetching>(product, matrix + vector_stride);
            Format::template MultiplyAdd<1, 4, 7>(tiles_);
          }
          tiles_.template Zero<4>();
          if constexpr (kRows) {
            tiles_.template Load<5>(rows + kTileRows * row_stride, row_stride);
            Format::template MultiplyAdd<2, 5, 6>(tiles_);
          }
          tiles_.template Zero<6>();
          if constexpr (kRows) {
            if constexpr (kVectors) Format::template MultiplyAdd<3, 5, 7>(tiles_);
            tiles_.template Zero<5>();
          }
          if constexpr (kVectors) tiles_.template Zero<7>();
        });
    float* out = product.out + vector * kLanes;
    float* below = out + kTileRows * product.out_stride;
    const int64_t out_bytes = product.out_stride * static_cast<int64_t>(sizeof(float));
    tiles_.template Store<0>(out, out_bytes);
    if constexpr (kVectors) tiles_.template Store<1>(out + kLanes, out_bytes);
    if constexpr (kRows) tiles_.template Store<2>(below, out_bytes);
    if constexpr (kRows && kVectors) tiles_.template Store<3>(below + kLanes, out_bytes);
  }

  // Up to sixteen rows by four vectors.
  template <bool Fetching>
  void Wide(const Product& product, int vector) {
    tiles_.template Zero<0>();
    tiles_.template Zero<1>();
    tiles_.template Zero<2>();
    tiles_.template Zero<3>();
    ForEachStep(
        product, vector,
        [&](const char* rows, int64_t row_stride, const char* matrix, int64_t vector_stride) {
          tiles_.template Load<4>(rows, row_stride);
          LoadMatrix<6, Fetching>(product, matrix);
          Format::template MultiplyAdd<0, 4, 6>(tiles_);
          LoadMatrix<7, Fetching>(product, matrix + vector_stride);
          Format::template MultiplyAdd<1, 4, 7>(tiles_);
          LoadMatrix<6, Fetching>(product, matrix + 2 * vector_stride);
          Format::template MultiplyAdd<2, 4, 6>(tiles_);
          tiles_.template Zero<6>();
          LoadMatrix<7, Fetching>(product, matrix + 3 * vector_stride);
          Format::template MultiplyAdd<3, 4, 7>(tiles_);
          tiles_.template Zero<4>();
          tiles_.template Zero<7>();
        });
    float* out = product.out + vector * kLanes;
    const int64_t out_bytes = product.out_stride * static_cast<int64_t>(sizeof(float));
    tiles_.template Store<0>(out, out_bytes);
    tiles_.template Store<1>(out + kLanes, out_bytes);
    tiles_.template Store<2>(out + 2 * kLanes, out_bytes);
    tiles_.template Store<3>(out + 3 * kLanes, out_bytes);
  }

  // A product of one or two steps: the rows' tiles stay, and each of the matrix is loaded once. The
  // same additions in the same order.
  template <int RowTiles, int Steps, bool Fetching>
  void Held(const Product& product) {
    constexpr bool kRows = RowTiles == 2, kSteps = Steps == 2;
    const ProductRun& run = product.runs[0];
    const char* const below = run.rows + kTileRows * run.row_stride;
    tiles_.template Load<2>(run.rows, run.row_stride);
    if constexpr (kRows) tiles_.template Load<3>(below, run.row_stride);
    if constexpr (kSteps) tiles_.template Load<4>(run.rows + kLineBytes, run.row_stride);
    if constexpr (kRows && kSteps) tiles_.template Load<5>(below + kLineBytes, run.row_stride);
    const char* matrix = run.matrix;
    float* out = product.out;
    const int64_t out_bytes = product.out_stride * static_cast<int64_t>(sizeof(float));
    for (int vector = 0; vector < product.num_vectors; ++vector) {
      tiles_.template Zero<0>();
      if constexpr (kRows) tiles_.template Zero<1>();
      LoadMatrix<6, Fetching>(product, matrix);
      Format::template MultiplyAdd<0, 2, 6>(tiles_);
      if constexpr (kRows) Format::template MultiplyAdd<1, 3, 6>(tiles_);
      tiles_.template Zero<6>();
      if constexpr (kSteps) {
        LoadMatrix<7, Fetching>(product, matrix + kStepGroups * kVectorBytes);
        Format::template MultiplyAdd<0, 4, 7>(tiles_);
        if constexpr (kRows) Format::template MultiplyAdd<1, 5, 7>(tiles_);
        tiles_.template Zero<7>();
      }
      tiles_.template Store<0>(out, out_bytes);
      if constexpr (kRows)
        tiles_.template Store<1>(out + kTileRows * product.out_stride, out_bytes);
      matrix += run.vector_stride;
      out += kLanes;
    }
    // Tiles of zeros take no register from what comes next.
    tiles_.template Zero<2>();
    if constexpr (kRows) tiles_.template Zero<3>();
    if constexpr (kSteps) tiles_.template Zero<4>();
    if constexpr (kRows && kSteps) tiles_.template Zero<5>();
  }

  Tiles& tiles_;
};
