#include "engine/backend/cpu/cpu_recurrence.h"

#include <algorithm>
#include <cstring>

#include "absl/functional/function_ref.h"

namespace bst {
namespace {

// Updates of modes, each of a dozen operations, below which a step is over sooner than another
// thread wakes up.
constexpr int64_t kSmallStep = 20'000;

void RunTasks(CpuContext& context, int tasks, int64_t mode_updates,
              absl::FunctionRef<void(int index)> run) {
  if (mode_updates < kSmallStep) {
    for (int i = 0; i < tasks; ++i) run(i);
  } else {
    context.pool().Run(tasks, [&](int index, int) { run(index); });
  }
}

void CopyRows(TensorView from, int64_t begin, int64_t n, float* to) {
  const auto width = static_cast<size_t>(from.dim(1));
  for (int64_t i = 0; i < n; ++i, to += width)
    std::memcpy(to, from.row<float>(begin + i), width * sizeof(float));
}

}  // namespace

CpuRecurrence::CpuRecurrence(const SsmSpec& spec, int64_t modes, int constants, int parts,
                             Kernel kernel)
    : CpuSequence(spec),
      modes_(modes),
      constants_(constants),
      parts_(parts),
      groups_per_filter_((spec.num_inputs + kLanes - 1) / kLanes),
      kernel_(kernel) {
  BST_CHECK(spec.outputs == SsmOutputs::kEveryToken || spec.block > 0, "block of ", spec.block);
}

absl::Status CpuRecurrence::Allocate() {
  BST_ASSIGN_OR_RETURN(packed_,
                       Buffer::Allocate(static_cast<size_t>(num_groups()) *
                                        static_cast<size_t>(GroupWeights()) * sizeof(float)));
  return absl::OkStatus();
}

float* CpuRecurrence::Lane(int64_t feature) {
  const int64_t filter = feature / spec().num_inputs, input = feature % spec().num_inputs;
  const int64_t group = filter * groups_per_filter_ + input / kLanes;
  return packed() + group * GroupWeights() + input % kLanes;
}
float& CpuRecurrence::Constant(int64_t feature, int index) { return Lane(feature)[index * kLanes]; }
float& CpuRecurrence::ModePart(int64_t feature, int64_t mode, int part) {
  return Lane(feature)[(constants_ + mode * parts_ + part) * kLanes];
}

size_t CpuRecurrence::state_bytes() const {
  const int64_t inputs =
      spec().outputs == SsmOutputs::kBlockEnds ? int64_t{spec().block} * spec().num_inputs : 0;
  return static_cast<size_t>(num_groups() * GroupState() + inputs) * sizeof(float);
}

RecurrenceTask CpuRecurrence::Task(int group, float* slot) const {
  RecurrenceTask task = {};
  task.weights = packed() + group * GroupWeights();
  task.state = slot + group * GroupState();
  task.num_modes = static_cast<int>(modes_);
  task.num_features = std::min(kLanes, spec().num_inputs - group % groups_per_filter_ * kLanes);
  return task;
}

void CpuRecurrence::Run(CpuContext& context, TensorView u, absl::Span<const Row> rows,
                        PoolView state, TensorView y) const {
  BST_CHECK(u.dim(1) == spec().num_inputs, "inputs ", u.dim(1), ", the filters take ",
            spec().num_inputs);
  if (spec().outputs == SsmOutputs::kBlockEnds) return RunBlocks(context, u, rows, state, y);
  RunTokens(context, u, rows, state, y);
}

void CpuRecurrence::RunTokens(CpuContext& context, TensorView u, absl::Span<const Row> rows,
                              PoolView state, TensorView y) const {
  BST_CHECK_SHAPE(y, {u.dim(0), spec().num_features()});
  // Rows within a group, not groups within a row: neighbouring tasks share their weights.
  const int num_rows = static_cast<int>(rows.size());
  const auto run = [&](int index) {
    const int group = index / num_rows;
    const Row& row = rows[static_cast<size_t>(index % num_rows)];
    const int input = group % groups_per_filter_ * kLanes;
    const int filter = group / groups_per_filter_;
    RecurrenceTask task = Task(group, state.slot<float>(row.slot));
    task.u = u.row<float>(row.begin) + input;
    task.u_stride = u.row_stride();
    task.y = y.row<float>(row.begin) + filter * spec().num_inputs + input;
    task.y_stride = y.row_stride();
    task.num_tokens = row.num_tokens();
    kernel_(task);
  };
  RunTasks(context, num_groups() * num_rows, u.dim(0) * spec().num_features() * modes_, run);
}

void CpuRecurrence::RunBlocks(CpuContext& context, TensorView u, absl::Span<const Row> rows,
                              PoolView state, TensorView y) const {
  const int64_t block = spec().block;
  int64_t output = 0;
  for (const Row& row : rows) {
    float* slot = state.slot<float>(row.slot);
    float* waiting = slot + num_groups() * GroupState();  // [W][D]
    const int64_t offset = row.position % block;
    // The rest of a block begun in earlier steps, then whole blocks, then the start of another.
    const int64_t rest = offset > 0 ? std::min<int64_t>(row.num_tokens(), block - offset) : 0;
    CopyRows(u, row.begin, rest, waiting + offset * spec().num_inputs);
    const bool completes = rest > 0 && offset + rest == block;
    const int64_t whole = (row.num_tokens() - rest) / block;
    const int64_t ends = whole + (completes ? 1 : 0);
    BST_CHECK(output + ends <= y.dim(0), "outputs ", y.dim(0), " are too few");
    const auto run = [&](int group) {
      const int input = group % groups_per_filter_ * kLanes;
      const int filter = group / groups_per_filter_;
      RecurrenceTask task = Task(group, slot);
      task.last_output_only = true;
      task.num_tokens = static_cast<int>(block);
      for (int64_t i = 0; i < ends; ++i) {
        const bool from_slot = completes && i == 0;
        const int64_t first = row.begin + rest + (i - (completes ? 1 : 0)) * block;
        task.u = (from_slot ? waiting : u.row<float>(first)) + input;
        task.u_stride = from_slot ? spec().num_inputs : u.row_stride();
        task.y = y.row<float>(output + i) + filter * spec().num_inputs + input;
        kernel_(task);
      }
    };
    if (ends > 0)
      RunTasks(context, num_groups(), ends * block * spec().num_features() * modes_, run);
    const int64_t consumed = rest + whole * block;
    CopyRows(u, row.begin + consumed, row.num_tokens() - consumed, waiting);
    output += ends;
  }
  BST_CHECK_SHAPE(y, {output, spec().num_features()});
}

}  // namespace bst
