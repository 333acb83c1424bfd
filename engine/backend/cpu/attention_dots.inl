// Products of pairs on BF16 dot products, for attention_pairs.inl. Included by kernels_avx512.cc in
// the target region that names them.
class DotProducts {
 public:
  void Multiply(const PairProduct& product) { Rows<kRows>(product, 0, product.num_rows); }

 private:
  static constexpr int kRows = 8;  // of a register tile of two vectors

  // Rows [row, row + rows), Most of them at a time.
  template <int Most>
  static void Rows(const PairProduct& product, int row, int rows) {
    for (; rows >= Most; row += Most, rows -= Most) Vectors<Most, Most == 1 ? 8 : 2>(product, row);
    if constexpr (Most > 1) {
      if (rows > 0) Rows<Most - 1>(product, row, rows);
    }
  }

  template <int NumRows, int Wide>
  static void Vectors(const PairProduct& product, int row, int vector = 0) {
    for (; vector + Wide <= product.num_vectors; vector += Wide)
      Tile<NumRows, Wide>(product, row, vector);
    if constexpr (Wide > 1) {
      if (vector < product.num_vectors) Vectors<NumRows, Wide / 2>(product, row, vector);
    }
  }

  template <int NumRows, int Wide>
  static void Tile(const PairProduct& product, int row, int vector) {
    __m512 sum[NumRows][Wide];
    for (int r = 0; r < NumRows; ++r) {
      for (int c = 0; c < Wide; ++c) sum[r][c] = _mm512_setzero_ps();
    }
    for (int n = 0; n < product.num_runs; ++n) {
      const PairRun& run = product.runs[n];
      const char* rows = run.rows + row * run.row_stride;
      const char* matrix = run.matrix + vector * product.vector_stride;
      for (int64_t i = 0; i < run.pairs; ++i, rows += 4, matrix += product.pair_stride) {
        __m512bh b[Wide];
        for (int c = 0; c < Wide; ++c) {
          b[c] = reinterpret_cast<__m512bh>(_mm512_loadu_si512(matrix + c * product.vector_stride));
        }
        for (int r = 0; r < NumRows; ++r) {
          int32_t pair;
          std::memcpy(&pair, rows + r * run.row_stride, sizeof(pair));
          const auto a = reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair));
          for (int c = 0; c < Wide; ++c) sum[r][c] = _mm512_dpbf16_ps(sum[r][c], a, b[c]);
        }
      }
    }
    for (int r = 0; r < NumRows; ++r) {
      for (int c = 0; c < Wide; ++c) {
        _mm512_storeu_ps(product.out + (row + r) * product.out_stride + (vector + c) * kLanes,
                         sum[r][c]);
      }
    }
  }
};
