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
    typename Dot::Sum sum[NumRows][Wide];
    for (int r = 0; r < NumRows; ++r) {
      for (int c = 0; c < Wide; ++c) sum[r][c] = Dot::Zero();
    }
    const auto add_runs = [&](auto fetching) {
      for (int n = 0; n < product.num_runs; ++n) {
        const ProductRun& run = product.runs[n];
        const char* rows = run.rows + row * run.row_stride;
        const char* matrix = run.matrix + vector * product.vector_stride;
        for (int64_t i = 0; i < run.groups; ++i, rows += 4, matrix += product.group_stride) {
          typename Dot::Weights b[Wide];
          for (int c = 0; c < Wide; ++c) {
            const char* from = matrix + c * product.vector_stride;
            if constexpr (fetching) _mm_prefetch(from + product.ahead, _MM_HINT_T1);
            b[c] = Dot::LoadWeights(from);
          }
          for (int r = 0; r < NumRows; ++r) {
            const typename Dot::Inputs a = Dot::LoadInputs(rows + r * run.row_stride);
            for (int c = 0; c < Wide; ++c) sum[r][c] = Dot::MultiplyAdd(sum[r][c], a, b[c]);
          }
        }
      }
    };
    if constexpr (kFetchesAhead && NumRows == 2) {
      if (product.ahead != 0) {
        add_runs(std::true_type());
      } else {
        add_runs(std::false_type());
      }
    } else {
      add_runs(std::false_type());
    }
    for (int r = 0; r < NumRows; ++r) {
      for (int c = 0; c < Wide; ++c) {
        _mm512_storeu_ps(product.out + (row + r) * product.out_stride + (vector + c) * kLanes,
                         reinterpret_cast<__m512>(sum[r][c]));
      }
    }
  }
};
