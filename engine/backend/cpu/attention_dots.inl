// Products of packed groups on dot-product instructions, for attention_pairs.inl and
// attention_bytes.inl. Included by kernels_avx512.cc in their target region, after the Dots.
template <typename Dot>
class DotProducts {
 public:
  static constexpr bool kFetchesAhead = std::is_same_v<typename Dot::Sum, __v16si>;  // bytes

  explicit DotProducts(int /*rows*/) {}

  void Multiply(const Product& product) { Rows<kRows>(product, 0, product.num_rows); }

 private:
  static constexpr int kRows = 8;  // of a register tile of two vectors

  // Rows [row, row + rows), Most of them at a time.
  template <int Most>
  static void Rows(const Product& product, int row, int rows) {
    for (; rows >= Most; row += Most, rows -= Most) {
      if constexpr (Most <= 2) {
        // One query (or what is left of a group): memory is what takes the time. Where a vector's
        // groups lie one after the other (keys), one vector at a time is one long stream that the
        // processor sees coming; several at once are as many short ones.
        if (product.group_stride == 4 * kLanes) {
          Vectors<Most, 1>(product, row);
          continue;
        }
      }
      Vectors<Most, Most == 1 ? 8 : Most == 2 ? 4 : 2>(product, row);
    }
    if constexpr (Most > 1) {
      if (rows > 0) Rows<Most - 1>(product, row, rows);
    }
  }

  template <int NumRows, int Wide>
  static void Vectors(const Product& product, int row, int vector = 0) {
    for (; vector + Wide <= product.num_vectors; vector += Wide)
      Tile<NumRows, Wide>(product, row, vector);
    if constexpr (Wide > 1) {
      if (vector < product.num_vectors) Vectors<NumRows, Wide / 2>(product, row, vector);
    }
  }

  template <int NumRows, int Wide>
  static void Tile(const Product& product, int row, int vector) {
    if constexpr (kFetchesAhead && NumRows == 2) {
      if (product.ahead != 0) return Tile<NumRows, Wide, true>(product, row, vector);
    }
    Tile<NumRows, Wide, false>(product, row, vector);
  }

  // Loops that run at least once, and no closure: the sums never leave their registers, where
  // g++ 12 otherwise writes all of them to the stack and back around the loops.
  template <int NumRows, int Wide, bool kFetches>
  static void Tile(const Product& product, int row, int vector) {
    typename Dot::Sum sum[NumRows][Wide];
    for (int r = 0; r < NumRows; ++r) {
      for (int c = 0; c < Wide; ++c) sum[r][c] = Dot::Zero();
    }
    const int64_t group_stride = product.group_stride, vector_stride = product.vector_stride;
    const ProductRun* run = product.runs;
    const ProductRun* const last = run + product.num_runs;
    do {
      const int64_t row_stride = run->row_stride;
      const char* rows = run->rows + row * row_stride;
      const char* const end = rows + 4 * run->groups;
      const char* matrix = run->matrix + vector * vector_stride;
      do {
        typename Dot::Weights b[Wide];
        for (int c = 0; c < Wide; ++c) {
          const char* from = matrix + c * vector_stride;
          if constexpr (kFetches) _mm_prefetch(from + product.ahead, _MM_HINT_T1);
          b[c] = Dot::LoadWeights(from);
        }
        for (int r = 0; r < NumRows; ++r) {
          const typename Dot::Inputs a = Dot::LoadInputs(rows + r * row_stride);
          for (int c = 0; c < Wide; ++c) sum[r][c] = Dot::MultiplyAdd(sum[r][c], a, b[c]);
        }
        rows += 4;
        matrix += group_stride;
      } while (rows != end);
    } while (++run != last);
    for (int r = 0; r < NumRows; ++r) {
      for (int c = 0; c < Wide; ++c) {
        _mm512_storeu_ps(product.out + (row + r) * product.out_stride + (vector + c) * kLanes,
                         reinterpret_cast<__m512>(sum[r][c]));
      }
    }
  }
};
