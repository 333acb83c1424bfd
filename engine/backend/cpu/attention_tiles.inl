// Products of packed groups on AMX tiles, for attention_pairs.inl and attention_bytes.inl: sixteen
// rows by 32 outputs at a time. Included by kernels_avx512.cc after linear_tiles.inl, whose tiles
// and formats these are.
template <typename Format, typename Tiles>
class TileProducts {
 public:
  void Multiply(const Product& product) {
    int vector = 0;
    for (; vector + 2 <= product.num_vectors; vector += 2) Block<2>(product, vector);
    if (vector < product.num_vectors) Block<1>(product, vector);
  }

 private:
  template <int Vectors>
  void Block(const Product& product, int vector) {
    tiles_.template Zero<0>();
    if constexpr (Vectors == 2) tiles_.template Zero<1>();
    for (int n = 0; n < product.num_runs; ++n) {
      const ProductRun& run = product.runs[n];
      const char* matrix = run.matrix + vector * product.vector_stride;
      for (int64_t i = 0; i < run.groups; i += kStepGroups) {
        tiles_.template Load<4>(run.rows + 4 * i, run.row_stride);
        tiles_.template Load<6>(matrix + i * product.group_stride, product.group_stride);
        Format::template MultiplyAdd<0>(tiles_);
        if constexpr (Vectors == 2) {
          tiles_.template Load<7>(matrix + i * product.group_stride + product.vector_stride,
                                  product.group_stride);
          Format::template MultiplyAdd<1>(tiles_);
        }
      }
    }
    float* out = product.out + vector * kLanes;
    const int64_t out_bytes = product.out_stride * static_cast<int64_t>(sizeof(float));
    tiles_.template Store<0>(out, out_bytes);
    if constexpr (Vectors == 2) tiles_.template Store<1>(out + kLanes, out_bytes);
  }

  Tiles tiles_;
};
