// Products of packed groups on dot-product instructions, for attention_pairs.inl and
// attention_bytes.inl. Included by kernels_avx512.cc in their target region, after the Dots.
struct NoRegisters {
  explicit NoRegisters(int /*rows*/) {}
};

template <typename Dot>
class DotProducts {
 public:
  static constexpr bool kBytes = std::is_same_v<typename Dot::Sum, __v16si>;
  static constexpr bool kFetchesAhead = kBytes;

  using Registers = NoRegisters;
  explicit DotProducts(Registers&) {}

  void Multiply(const Product& product) { Rows<kRows>(product, 0, product.num_rows); }

 private:
  static constexpr int kRows = 8;  // of a register tile of two vectors
  // Integers may be added in any order.
  static constexpr int kChains = kBytes ? 2 : 1;

  // Rows [row, row + rows), Most of them at a time.
  template <int Most>
  static void Rows(const Product& product, int row, int rows) {
    for (; rows >= Most; row += Most, rows -= Most) {
      if constexpr (Most <= 2) {
        for (int vector = 0; vector < product.num_vectors; ++vector)
          Stream<Most>(product, row, vector);
      } else {
        int vector = 0;
        for (; vector + 2 <= product.num_vectors; vector += 2) Tile<Most, 2>(product, row, vector);
        if (vector < product.num_vectors) Tile<Most, 1>(product, row, vector);
      }
    }
    if constexpr (Most > 1) {
      if (rows > 0) Rows<Most - 1>(product, row, rows);
    }
  }

  template <int NumRows>
  static void Stream(const Product& product, int row, int vector) {
    if constexpr (kFetchesAhead && NumRows == 2) {
      if (product.ahead != 0) return Stream<NumRows, true>(product, row, vector);
    }
    Stream<NumRows, false>(product, row, vector);
  }

  // One query, or what is left of a group: memory is what takes the time. One vector at a time is
  // one long stream that the processor sees coming; several at once are as many short ones. Few
  // instructions to a line, so that it begins the next vectors meanwhile.
  template <int NumRows, bool kFetches>
  static void Stream(const Product& product, int row, int vector) {
    typename Dot::Sum sum[NumRows][kChains];
    for (int r = 0; r < NumRows; ++r) {
      for (int c = 0; c < kChains; ++c) sum[r][c] = Dot::Zero();
    }
    const ProductRun* run = product.runs;
    const ProductRun* const last = run + product.num_runs;
    constexpr int kUnrolled = 2;
    do {
      const int64_t row_stride = run->row_stride;
      const char* rows = run->rows + row * row_stride;
      const char* const end = rows + 4 * run->groups;
      const char* matrix = run->matrix + vector * run->vector_stride;
      do {
#pragma GCC unroll 2
        for (int g = 0; g < kUnrolled; ++g) {
          const char* from = matrix + g * kVectorBytes;
          if constexpr (kFetches) _mm_prefetch(from + product.ahead, _MM_HINT_T1);
          typename Dot::Weights b = Dot::LoadWeights(from);
          if constexpr (NumRows > 1) asm("" : "+v"(b));  // or each row loads it
          for (int r = 0; r < NumRows; ++r) {
            const typename Dot::Inputs a = Dot::LoadInputs(rows + r * row_stride + 4 * g);
            sum[r][g % kChains] = Dot::MultiplyAdd(sum[r][g % kChains], a, b);
          }
        }
        rows += 4 * kUnrolled;
        matrix += kUnrolled * kVectorBytes;
      } while (rows != end);
    } while (++run != last);
    for (int r = 0; r < NumRows; ++r) {
      typename Dot::Sum all = sum[r][0];
      if constexpr (kChains == 2) all += sum[r][1];
      Store(product, row + r, vector, all);
    }
  }

  // Loops that run at least once, and no closure: the sums never leave their registers, where
  // g++ 12 otherwise writes all of them to the stack and back around the loops.
  template <int NumRows, int Wide>
  static void Tile(const Product& product, int row, int vector) {
    typename Dot::Sum sum[NumRows][Wide];
    for (int r = 0; r < NumRows; ++r) {
      for (int c = 0; c < Wide; ++c) sum[r][c] = Dot::Zero();
    }
    const ProductRun* run = product.runs;
    const ProductRun* const last = run + product.num_runs;
    do {
      const int64_t row_stride = run->row_stride, vector_stride = run->vector_stride;
      const char* rows = run->rows + row * row_stride;
      const char* const end = rows + 4 * run->groups;
      const char* matrix = run->matrix + vector * vector_stride;
      do {
        typename Dot::Weights b[Wide];
        for (int c = 0; c < Wide; ++c) b[c] = Dot::LoadWeights(matrix + c * vector_stride);
        for (int r = 0; r < NumRows; ++r) {
          const typename Dot::Inputs a = Dot::LoadInputs(rows + r * row_stride);
          for (int c = 0; c < Wide; ++c) sum[r][c] = Dot::MultiplyAdd(sum[r][c], a, b[c]);
        }
        rows += 4;
        matrix += kVectorBytes;
      } while (rows != end);
    } while (++run != last);
    for (int r = 0; r < NumRows; ++r) {
      for (int c = 0; c < Wide; ++c) Store(product, row + r, vector + c, sum[r][c]);
    }
  }

  static void Store(const Product& product, int row, int vector, typename Dot::Sum sum) {
    _mm512_storeu_ps(product.out + row * product.out_stride + vector * kLanes,
                     reinterpret_cast<__m512>(sum));
  }
};
