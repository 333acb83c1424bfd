// Products of packed groups on AMX tiles, for attention_pairs.inl and attention_bytes.inl: 32 rows
// by 32 outputs at a time, so that every tile that is loaded is multiplied twice. Included by
// kernels_avx512.cc after linear_tiles.inl, whose tiles and formats these are.
template <typename Format, typename Tiles>
class TileProducts {
 public:
  static constexpr bool kFetchesAhead = false;

  // One copy of its loops, not one for each call.
  [[gnu::noinline]] void Multiply(const Product& product) {
    if (product.num_rows > kTileRows) {
      Rows<2>(product);
    } else {
      Rows<1>(product);
    }
  }

 private:
  template <int RowTiles>
  void Rows(const Product& product) {
    int vector = 0;
    for (; vector + 2 <= product.num_vectors; vector += 2) Block<RowTiles, 2>(product, vector);
    if (vector < product.num_vectors) Block<RowTiles, 1>(product, vector);
  }

  template <int RowTiles, int Vectors>
  void Block(const Product& product, int vector) {
    constexpr bool kRows = RowTiles == 2, kVectors = Vectors == 2;
    tiles_.template Zero<0>();
    if constexpr (kVectors) tiles_.template Zero<1>();
    if constexpr (kRows) tiles_.template Zero<2>();
    if constexpr (kRows && kVectors) tiles_.template Zero<3>();
    for (int n = 0; n < product.num_runs; ++n) {
      const ProductRun& run = product.runs[n];
      const char* rows = run.rows;
      const char* matrix = run.matrix + vector * product.vector_stride;
      const char* const end = rows + 4 * run.groups;
      for (; rows < end; rows += 4 * kStepGroups, matrix += kStepGroups * product.group_stride) {
        tiles_.template Load<4>(rows, run.row_stride);
        tiles_.template Load<6>(matrix, product.group_stride);
        Format::template MultiplyAdd<0>(tiles_);
        if constexpr (kVectors) {
          tiles_.template Load<7>(matrix + product.vector_stride, product.group_stride);
          Format::template MultiplyAdd<1>(tiles_);
        }
        if constexpr (kRows) {
          tiles_.template Load<5>(rows + kTileRows * run.row_stride, run.row_stride);
          Format::template MultiplyAdd<2>(tiles_);
          if constexpr (kVectors) Format::template MultiplyAdd<3>(tiles_);
        }
      }
    }
    float* out = product.out + vector * kLanes;
    float* below = out + kTileRows * product.out_stride;
    const int64_t out_bytes = product.out_stride * static_cast<int64_t>(sizeof(float));
    tiles_.template Store<0>(out, out_bytes);
    if constexpr (kVectors) tiles_.template Store<1>(out + kLanes, out_bytes);
    if constexpr (kRows) tiles_.template Store<2>(below, out_bytes);
    if constexpr (kRows && kVectors) tiles_.template Store<3>(below + kLanes, out_bytes);
  }

  Tiles tiles_;
};
