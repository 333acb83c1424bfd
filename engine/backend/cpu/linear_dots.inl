// Linear layers on dot-product instructions: four bytes of a row's inputs, two BF16 or four bytes,
// against as many weights of sixteen outputs at once. Included by kernels_<isa>.cc after
// linear_formats.inl and the Dots, in their target region: code compiled for fewer instructions
// would call them one by one, not contain them.
//
// Written over a `Dot`, which names the instructions:
//   Sum        sixteen outputs' sums
//   Weights    of sixteen outputs, kGroup inputs each: 64 bytes of the packed weights
//   Inputs     kGroup inputs, in every lane
//   kRows      of a register tile of 2 kHalves vectors
// Batch law: one order along K for every number of rows; padding along K adds exact zeros.

template <typename Dot, int Rows, int Halves>
inline void DotTile(const LinearTask& task, int row, int first_half) {
  typename Dot::Sum sum[Rows][Halves];
  for (int r = 0; r < Rows; ++r) {
    for (int c = 0; c < Halves; ++c) sum[r][c] = Dot::Zero();
  }
  constexpr int64_t kGroupBytes = 4 * kPanelOutputs;
  const int64_t x_stride = Dot::RowBytes(task), groups = x_stride / 4;
  const char* x = Dot::Row(task, row);
  const char* w[Halves];  // of each sixteen outputs
  for (int c = 0; c < Halves; ++c) {
    const int half = first_half + c;
    w[c] = static_cast<const char*>(task.weights) + half / 2 * (groups * kGroupBytes) +
           half % 2 * (kGroupBytes / 2);
  }
  for (int64_t g = 0; g < groups; ++g) {
    typename Dot::Weights b[Halves];
    for (int c = 0; c < Halves; ++c) b[c] = Dot::LoadWeights(w[c] + g * kGroupBytes);
    for (int r = 0; r < Rows; ++r) {
      const typename Dot::Inputs a = Dot::LoadInputs(x + r * x_stride + 4 * g);
      for (int c = 0; c < Halves; ++c) sum[r][c] = Dot::MultiplyAdd(sum[r][c], a, b[c]);
    }
  }
  for (int c = 0; c < Halves; ++c) {
    const int first = (first_half + c) * kLanes;
    const int n = std::min(kLanes, task.out_features - first);
    if (n <= 0) break;
    for (int r = 0; r < Rows; ++r) {
      StoreOutputs(task, task.out + (row + r) * task.out_stride + first,
                   Dot::Finish(task, row + r, first, sum[r][c]), n);
    }
  }
}

// `rows` rows, 1 <= rows <= Rows, of Halves vectors of outputs.
template <typename Dot, int Rows, int Halves>
void DotTileOf(const LinearTask& task, int row, int rows, int first_half) {
  if constexpr (Rows > 1) {
    if (rows < Rows) return DotTileOf<Dot, Rows - 1, Halves>(task, row, rows, first_half);
  }
  DotTile<Dot, Rows, Halves>(task, row, first_half);
}

// So few rows leave registers free for several panels, whose independent sums hide the latency.
template <typename Dot, int Rows>
void DotFewRows(const LinearTask& task) {
  if constexpr (Rows > 1) {
    if (task.num_rows < Rows) return DotFewRows<Dot, Rows - 1>(task);
  }
  constexpr int kWide =
      2 * std::max(1, std::min(4, Dot::kRows * Dot::kHalves / (2 * Rows)));  // whole panels
  int half = 2 * task.first_panel;
  for (; half + kWide <= 2 * task.last_panel; half += kWide)
    DotTile<Dot, Rows, kWide>(task, 0, half);
  for (; half < 2 * task.last_panel; half += Dot::kHalves)
    DotTile<Dot, Rows, Dot::kHalves>(task, 0, half);
}

template <typename Dot>
void LinearDotsKernel(const LinearTask& task) {
  constexpr int kFewRows = std::max(1, Dot::kRows / 2);
  if (task.num_rows <= kFewRows) return DotFewRows<Dot, kFewRows>(task);
  // Weights stay in the cache while the rows pass over them, in tiles of nearly equal height.
  const int tiles = (task.num_rows + Dot::kRows - 1) / Dot::kRows;
  for (int half = 2 * task.first_panel; half < 2 * task.last_panel; half += Dot::kHalves) {
    for (int tile = 0; tile < tiles; ++tile) {
      const int row = task.num_rows * tile / tiles;
      DotTileOf<Dot, Dot::kRows, Dot::kHalves>(task, row, task.num_rows * (tile + 1) / tiles - row,
                                               half);
    }
  }
}
