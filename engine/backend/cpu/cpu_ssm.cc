#include "engine/backend/cpu/cpu_ssm.h"

#include <algorithm>

namespace bst {

absl::StatusOr<std::unique_ptr<CpuSsm>> CpuSsm::Pack(const SsmParameters& p) {
  const int64_t features = p.a_minus_one.dim(0), modes = p.a_minus_one.dim(1);
  auto ssm =
      std::unique_ptr<CpuSsm>(new CpuSsm(static_cast<int>(features), static_cast<int>(modes)));
  BST_ASSIGN_OR_RETURN(
      ssm->packed_,
      Buffer::Allocate(static_cast<size_t>(ssm->num_groups() * (ssm->GroupWeights() + kLanes)) *
                       sizeof(float)));
  float* packed = static_cast<float*>(ssm->packed_.data());
  float* d = packed + ssm->num_groups() * ssm->GroupWeights();
  for (int64_t f = 0; f < features; ++f) {
    float* group = packed + f / kLanes * ssm->GroupWeights() + f % kLanes;
    for (int64_t m = 0; m < modes; ++m) {
      int64_t part = 0;
      for (const TensorView& tensor : {p.a_minus_one, p.b, p.c}) {
        for (int64_t imaginary = 0; imaginary < 2; ++imaginary, ++part) {
          group[(m * 6 + part) * kLanes] = tensor.as<float>()[(f * modes + m) * 2 + imaginary];
        }
      }
    }
    d[f] = p.d.as<float>()[f];
  }
  return ssm;
}

void CpuSsm::Run(CpuContext& context, TensorView u, absl::Span<const Row> rows, PoolView state,
                 TensorView y) const {
  BST_CHECK(u.dim(1) == num_features_, "inputs ", u.dim(1), ", features ", num_features_);
  BST_CHECK_SHAPE(y, {u.dim(0), u.dim(1)});
  const float* weights = static_cast<const float*>(packed_.data());
  const float* d = weights + num_groups() * GroupWeights();
  const int groups = num_groups();
  const auto run = [&](int index) {
    const Row& row = rows[static_cast<size_t>(index / groups)];
    const int group = index % groups;
    SsmTask task = {};
    task.weights = weights + group * GroupWeights();
    task.d = d + group * kLanes;
    task.state = state.slot<float>(row.slot) + group * GroupState();
    task.u = u.row<float>(row.begin) + group * kLanes;
    task.u_stride = u.row_stride();
    task.y = y.row<float>(row.begin) + group * kLanes;
    task.y_stride = y.row_stride();
    task.num_tokens = row.num_tokens();
    task.num_modes = num_modes_;
    task.num_features = std::min(kLanes, num_features_ - group * kLanes);
    context.kernels().ssm(task);
  };
  const int tasks = static_cast<int>(rows.size()) * groups;
  // A handful of tokens is over sooner than another thread wakes up.
  if (u.dim(0) * num_features_ * num_modes_ < 20'000) {
    for (int i = 0; i < tasks; ++i) run(i);
    return;
  }
  context.pool().Run(tasks, [&](int index, int) { run(index); });
}

}  // namespace bst
