// What the linear layers of a number type share, whatever multiplies. Included by kernels_<isa>.cc
// after kernels.inl.

// Sums of INT8 products to float32 outputs (int8.h). Outputs and rows as in StoreOutputs.
inline V16 Dequantize(const LinearTask& task, int row, int first, V16Int sum) {
  const QuantizedRow x = task.quantized_rows[row];
  const V16Int exact = SubtractProduct(sum, x.zero, LoadInts(task.weight_sums + first));
  return ToFloats(exact) * Set1(x.scale) * Load(task.weight_scales + first);
}

// Outputs [first, first + 16) of a row, rounded, into the line that their panel has in packed_out.
// Padding is zero, also of rows that hold infinities.
inline void PackOutputs(const LinearTask& task, char* line, int first, V16 sum) {
  const int n = std::clamp(task.out_features - first, 0, kLanes);
  StoreBFloat16(reinterpret_cast<BFloat16*>(line) + first % kPanelOutputs,
                SelectFirst(n, Activate(task, sum), Zero()));
}

// Where a row's inputs lie, for each type of weights; in tiles, rows that are multiples of 16.
struct Bf16Rows {
  static constexpr bool kPacksOutputs = true;  // where LinearTask::packed_out says so
  static int64_t RowBytes(const LinearTask& task) { return 2 * RoundUpInputs(task.in_features); }
  static const char* Row(const LinearTask& task, int row) {
    return reinterpret_cast<const char*>(task.packed_x) + row * RowBytes(task);
  }
};
struct Int8Rows {
  static constexpr bool kPacksOutputs = false;  // a row's scale is known when all of it is
  static int64_t RowBytes(const LinearTask& task) { return RoundUpInt8Inputs(task.in_features); }
  static const char* Row(const LinearTask& task, int row) {
    return reinterpret_cast<const char*>(task.quantized_x) + row * RowBytes(task);
  }
};
