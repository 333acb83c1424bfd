// What attention_pairs.inl and attention_bytes.inl ask of a `Products` type: a few rows times a
// packed matrix. Both come in groups of four bytes along K: two BF16, summed in float32, or four
// bytes, summed in int32. Of bytes the rows are signed or the matrix is, as the type says.
//   Registers: what several types share while a kernel runs; Registers(rows) for products of so
//   many rows at most, or of more than sixteen
//   explicit Products(Registers&)
//   void Multiply(const Product&): of up to kProductRows rows
//   static constexpr bool kFetchesAhead: see Product::ahead

// One run along K: rows [kProductRows][groups] against the matrix.
struct ProductRun {
  const char* rows;
  int64_t row_stride;  // bytes
  const char* matrix;  // group i of vector c at i * kVectorBytes + c * vector_stride
  int64_t vector_stride;
  int64_t groups;  // a multiple of kStepGroups, not 0
};
// out[r][16 c ..] = the sum of the runs in order.
struct Product {
  const ProductRun* runs;
  int num_runs;     // at least 1
  int num_rows;     // what completes them to a multiple of 16 may be read and written
  int num_vectors;  // of sixteen outputs
  float* out;       // or int32
  int64_t out_stride;
  // What lies so many bytes behind the matrix comes to the second-level cache meanwhile, if
  // Products::kFetchesAhead and the rows are those of one query; 0: nothing.
  int64_t ahead = 0;
};
