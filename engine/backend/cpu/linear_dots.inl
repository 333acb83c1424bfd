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

// One half of a panel, or both from its first on.
template <typename Dot, int Rows, int Halves>
inline void DotTile(const LinearTask& task, int row, int first_half) {
  const bool packs_outputs = Dot::kPacksOutputs && task.packed_out != nullptr;
  if (!packs_outputs) PrefetchOutputs(task, row, Rows, first_half * kLanes, Halves);
  typename Dot::Sum sum[Rows][Halves];
  for (int r = 0; r < Rows; ++r) {
    for (int c = 0; c < Halves; ++c) sum[r][c] = Dot::Zero();
  }
  constexpr int64_t kGroupBytes = 4 * kPanelOutputs;
  const int64_t x_stride = Dot::RowBytes(task), groups = x_stride / 4;
  const int64_t panel_bytes = groups * kGroupBytes;
  const char* w = static_cast<const char*>(task.weights) + first_half / 2 * panel_bytes +
                  first_half % 2 * (kGroupBytes / 2);
  // Where several tiles of rows pass over a panel, the first two fetch half of the task's next
  // panel each (those after them the second half again, which is there by then): memory then works
  // all the time, not for the first tile alone. Beside a task's last panel there may be nothing to
  // fetch. Fetching a panel's own weights some lines ahead is what the processor does by itself,
  // and better.
  constexpr bool kFetches = Dot::kRows >= 8 && Rows >= Dot::kRows / 2;
  const char* ahead = w;
  const int panel = first_half / 2;
  const int next_panel = panel + 1 < task.last_panel ? panel + 1 : task.next_panel;
  if (task.num_rows > Dot::kRows && next_panel != 0)
    ahead += (next_panel - panel) * panel_bytes + (row < Dot::kRows / 2 ? 0 : panel_bytes / 2);
  const char* x = Dot::Row(task, row);
  for (const char* const end = x + x_stride; x != end; x += 4, w += kGroupBytes) {
    if constexpr (kFetches) {
      _mm_prefetch(ahead, _MM_HINT_T1);
      ahead += kGroupBytes / 2;
    }
    typename Dot::Weights b[Halves];
    for (int c = 0; c < Halves; ++c) b[c] = Dot::LoadWeights(w + c * (kGroupBytes / 2));
    for (int r = 0; r < Rows; ++r) {
      const typename Dot::Inputs a = Dot::LoadInputs(x + r * x_stride);
      for (int c = 0; c < Halves; ++c) sum[r][c] = Dot::MultiplyAdd(sum[r][c], a, b[c]);
    }
  }
  for (int c = 0; c < Halves; ++c) {
    const int first = (first_half + c) * kLanes;
    if (packs_outputs) {
      char* line = reinterpret_cast<char*>(task.packed_out) + row * task.packed_out_row_bytes +
                   first / kPanelOutputs * kLineBytes;
      for (int r = 0; r < Rows; ++r, line += task.packed_out_row_bytes)
        PackOutputs(task, line, first, Dot::Finish(task, row + r, first, sum[r][c]));
      continue;
    }
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

template <typename Dot>
void LinearDotsKernel(const LinearTask& task) {
  if constexpr (Dot::kHalves == 1) {
    if (task.num_rows == 1) {  // leaves registers for whole panels: the order of memory
      for (int panel = task.first_panel; panel < task.last_panel; ++panel)
        DotTile<Dot, 1, 2>(task, 0, 2 * panel);
      return;
    }
  }
  // Weights stay in the cache while the rows pass over them, in tiles of nearly equal height. (One
  // panel after the other also where rows are few: see LinearKernel.)
  const int tiles = (task.num_rows + Dot::kRows - 1) / Dot::kRows;
  for (int half = 2 * task.first_panel; half < 2 * task.last_panel; half += Dot::kHalves) {
    for (int tile = 0; tile < tiles; ++tile) {
      const int row = task.num_rows * tile / tiles;
      DotTileOf<Dot, Dot::kRows, Dot::kHalves>(task, row, task.num_rows * (tile + 1) / tiles - row,
                                               half);
    }
  }
}
