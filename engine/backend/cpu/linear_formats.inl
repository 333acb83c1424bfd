// What the linear layers of a number type share, whatever multiplies. Included by kernels_<isa>.cc
// after kernels.inl.

// Sums of INT8 products to float32 outputs (int8.h). Outputs and rows as in StoreOutputs.
inline V16 Dequantize(const LinearTask& task, int row, int first, V16Int sum) {
  const QuantizedRow x = task.quantized_rows[row];
  const V16Int exact = SubtractProduct(sum, x.zero, LoadInts(task.weight_sums + first));
  return ToFloats(exact) * Set1(x.scale) * Load(task.weight_scales + first);
}

// Where a row's inputs lie, for each type of weights; in tiles, rows that are multiples of 16.
struct Bf16Rows {
  static int64_t RowBytes(const LinearTask& task) { return 2 * RoundUpInputs(task.in_features); }
  static const char* Row(const LinearTask& task, int row) {
    return reinterpret_cast<const char*>(task.packed_x) + row * RowBytes(task);
  }
};
struct Int8Rows {
  static int64_t RowBytes(const LinearTask& task) { return RoundUpInt8Inputs(task.in_features); }
  static const char* Row(const LinearTask& task, int row) {
    return reinterpret_cast<const char*>(task.quantized_x) + row * RowBytes(task);
  }
};
