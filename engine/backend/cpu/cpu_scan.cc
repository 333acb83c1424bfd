#include "engine/backend/cpu/cpu_scan.h"

#include <algorithm>

namespace bst {

absl::StatusOr<std::unique_ptr<CpuScan>> CpuScan::Pack(TensorView a_minus_one) {
  const int64_t modes = a_minus_one.dim(0);
  BST_CHECK_SHAPE(a_minus_one, {modes, 2});
  auto scan = std::unique_ptr<CpuScan>(new CpuScan(modes));
  BST_ASSIGN_OR_RETURN(scan->packed_, Buffer::Allocate(scan->state_bytes()));
  float* packed = static_cast<float*>(scan->packed_.data());
  for (int64_t m = 0; m < modes; ++m) {
    packed[m] = a_minus_one.row<float>(m)[0];
    packed[scan->padded_ + m] = a_minus_one.row<float>(m)[1];
  }
  return scan;
}

void CpuScan::Run(CpuContext& context, TensorView v, absl::Span<const Row> rows,
                  PoolView state) const {
  BST_CHECK(v.dim(1) == 2 * modes_, "columns ", v.dim(1), " of ", modes_, " modes");
  const float* e = static_cast<const float*>(packed_.data());
  const int groups = static_cast<int>((modes_ + kScanModes - 1) / kScanModes);
  const auto run = [&](int index, int) {
    const Row& row = rows[static_cast<size_t>(index / groups)];
    const int64_t first = int64_t{index % groups} * kScanModes;
    ScanTask task = {};
    task.e_real = e + first;
    task.e_imag = e + padded_ + first;
    task.x_real = state.slot<float>(row.slot) + first;
    task.x_imag = task.x_real + padded_;
    task.v_real = v.row<float>(row.begin) + first;
    task.v_imag = task.v_real + modes_;
    task.v_stride = v.row_stride();
    task.num_tokens = row.num_tokens();
    task.num_modes = static_cast<int>(std::min<int64_t>(kScanModes, modes_ - first));
    context.kernels().scan(task);
  };
  const int tasks = static_cast<int>(rows.size()) * groups;
  // A handful of tokens is over sooner than another thread wakes up.
  if (v.dim(0) * modes_ < 20'000) {
    for (int i = 0; i < tasks; ++i) run(i, 0);
  } else {
    context.pool().Run(tasks, run);
  }
}

}  // namespace bst
