#include "engine/backend/cpu/cpu_context_attention.h"

#include "engine/backend/cpu/cpu_key_values.h"
#include "engine/tensor/host_convert.h"

namespace bst {
namespace {

// Below so many elements another thread is not worth waking.
constexpr int64_t kSerialElements = 30'000;

KeyValueLayout Layout(const ContextSpec& spec) { return {spec.capacity, spec.head_dim}; }

}  // namespace

absl::StatusOr<std::unique_ptr<CpuContextAttention>> CpuContextAttention::Pack(
    CpuContext& context, const ContextParameters& parameters) {
  const ContextSpec& spec = parameters.spec;
  const auto heads = static_cast<size_t>(spec.num_heads);
  BST_ASSIGN_OR_RETURN(Buffer scale, Buffer::Allocate(heads * sizeof(float)));
  for (size_t h = 0; h < heads; ++h) {
    static_cast<float*>(scale.data())[h] =
        ElementAsFloat(parameters.scale, static_cast<int64_t>(h));
  }
  const auto scores = static_cast<size_t>(kMaxQueries * RoundUp(spec.capacity, kLanes));
  BST_RETURN_IF_ERROR(context.ReserveScratch(scores * sizeof(float)));
  return std::unique_ptr<CpuContextAttention>(new CpuContextAttention(spec, std::move(scale)));
}

size_t CpuContextAttention::ContextBytes(const ContextSpec& spec) {
  return static_cast<size_t>(spec.num_heads * Layout(spec).elements()) * SizeOf(spec.kv_type);
}

void CpuContextAttention::Store(CpuContext& context, TensorView k, TensorView v,
                                absl::Span<const ContextRows> rows, PoolView contexts) const {
  if (spec().kv_type == DType::kBF16) {
    StoreTyped<BFloat16>(context, k, v, rows, contexts);
  } else {
    StoreTyped<float>(context, k, v, rows, contexts);
  }
}

template <typename Kv>
void CpuContextAttention::StoreTyped(CpuContext& context, TensorView k, TensorView v,
                                     absl::Span<const ContextRows> rows, PoolView contexts) const {
  const int heads = spec().num_heads;
  const KeyValueLayout layout = Layout(spec());
  const auto store = [&](int index, int) {
    const ContextRows& part = rows[static_cast<size_t>(index / heads)];
    BST_DCHECK(part.first_row + part.end - part.begin <= spec().capacity);
    const int head = index % heads;
    const int64_t column = int64_t{head} * spec().head_dim;
    const HeadKeyValues<Kv> to(layout, contexts.slot<Kv>(part.slot) + head * layout.elements());
    for (int i = part.begin; i < part.end; ++i) {
      to.Write(part.first_row + (i - part.begin), k.row<float>(i) + column,
               v.row<float>(i) + column);
    }
  };
  const int tasks = static_cast<int>(rows.size()) * heads;
  int64_t elements = 0;
  for (const ContextRows& part : rows) elements += int64_t{part.end - part.begin} * k.dim(1);
  if (elements < kSerialElements) {
    for (int i = 0; i < tasks; ++i) store(i, 0);
  } else {
    context.pool().Run(tasks, store);
  }
}

void CpuContextAttention::Attend(CpuContext& context, TensorView q,
                                 absl::Span<const ContextUse> uses, TensorView out) const {
  BST_CHECK(q.dim(1) == int64_t{spec().num_heads} * spec().head_dim, "queries of ", q.dim(1));
  BST_CHECK_SHAPE(out, {q.dim(0), q.dim(1)});
  if (spec().kv_type == DType::kBF16) {
    AttendTyped<BFloat16>(context, q, uses, out);
  } else {
    AttendTyped<float>(context, q, uses, out);
  }
}

template <typename Kv>
void CpuContextAttention::AttendTyped(CpuContext& context, TensorView q,
                                      absl::Span<const ContextUse> uses, TensorView out) const {
  const int heads = spec().num_heads;
  const KeyValueLayout layout = Layout(spec());
  const auto attend = [&](int index, int thread) {
    const ContextUse& use = uses[static_cast<size_t>(index / heads)];
    BST_DCHECK(1 <= use.num_rows && use.num_rows <= spec().capacity);
    const int head = index % heads;
    const int64_t column = int64_t{head} * spec().head_dim;
    const Kv* base = reinterpret_cast<const Kv*>(use.context) + head * layout.elements();
    AttendTask task = {};
    task.current_keys = task.previous_keys = base;
    task.current_values = task.previous_values = base + layout.KeyElements();
    task.previous_visible = false;
    task.q = q.row<float>(use.begin) + column;
    task.q_stride = q.row_stride();
    task.out = out.row<float>(use.begin) + column;
    task.out_stride = out.row_stride();
    task.num_queries = use.end - use.begin;
    task.num_visible = use.num_rows;
    task.window = spec().capacity;
    task.head_dim = spec().head_dim;
    task.value_stride = layout.value_stride();
    task.scale = static_cast<const float*>(scale_.data())[head];
    task.scores = context.scratch(thread);
    (sizeof(Kv) == sizeof(float) ? context.kernels().attend_f32
                                 : context.kernels().attend_bf16)(task);
  };
  context.pool().Run(static_cast<int>(uses.size()) * heads, attend);
}

}  // namespace bst
