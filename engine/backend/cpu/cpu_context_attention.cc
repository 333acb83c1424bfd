#include "engine/backend/cpu/cpu_context_attention.h"

#include <algorithm>

#include "engine/backend/cpu/cpu_key_values.h"
#include "engine/tensor/host_convert.h"

namespace bst {
namespace {

// Below so many elements another thread is not worth waking.
constexpr int64_t kSerialElements = 30'000;

KeyValueLayout Layout(const CpuContext& context, const ContextSpec& spec) {
  return {context.kernels(), spec.capacity, spec.head_dim, spec.kv_type};
}

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
  BST_RETURN_IF_ERROR(context.ReserveScratch(AttendScratchBytes(Layout(context, spec))));
  return std::unique_ptr<CpuContextAttention>(new CpuContextAttention(spec, std::move(scale)));
}

size_t CpuContextAttention::ContextBytes(const CpuContext& context, const ContextSpec& spec) {
  return static_cast<size_t>(spec.num_heads) * Layout(context, spec).HeadBytes();
}

void CpuContextAttention::Store(CpuContext& context, TensorView k, TensorView v,
                                absl::Span<const ContextRows> rows, PoolView contexts) const {
  WithHead(Layout(context, spec()),
           [&]<typename Head>() { StoreTyped<Head>(context, k, v, rows, contexts); });
}

template <typename Head>
void CpuContextAttention::StoreTyped(CpuContext& context, TensorView k, TensorView v,
                                     absl::Span<const ContextRows> rows, PoolView contexts) const {
  const int heads = spec().num_heads;
  const KeyValueLayout layout = Layout(context, spec());
  const size_t head_bytes = layout.HeadBytes();
  const auto store = [&](const ContextRows& part, int head) {
    BST_DCHECK(part.first_row + part.end - part.begin <= spec().capacity);
    const int64_t column = int64_t{head} * spec().head_dim;
    const Head to(layout,
                  contexts.slot<std::byte>(part.slot) + static_cast<size_t>(head) * head_bytes);
    to.Write(context.kernels(), part.first_row,
             {k.row<float>(part.begin) + column, v.row<float>(part.begin) + column, k.row_stride(),
              v.row_stride()},
             part.end - part.begin);
  };
  int64_t elements = 0;
  for (const ContextRows& part : rows) elements += int64_t{part.end - part.begin} * k.dim(1);
  if (elements < kSerialElements) {
    for (const ContextRows& part : rows) {
      for (int head = 0; head < heads; ++head) store(part, head);
    }
    return;
  }
  // Parts of one context may meet within a word: one task writes them all. Slots are numbered from
  // 0, so that those of a step are spread over the shares.
  const int shares =
      std::min(static_cast<int>(rows.size()), kTasksOfThread * context.pool().num_threads());
  context.pool().Run(shares * heads, [&](int index, int) {
    for (const ContextRows& part : rows) {
      if (part.slot.value() % shares == index / heads) store(part, index % heads);
    }
  });
}

void CpuContextAttention::Attend(CpuContext& context, TensorView q,
                                 absl::Span<const ContextUse> uses, TensorView out) const {
  BST_CHECK(q.dim(1) == int64_t{spec().num_heads} * spec().head_dim, "queries of ", q.dim(1));
  BST_CHECK_SHAPE(out, {q.dim(0), q.dim(1)});
  WithHead(Layout(context, spec()),
           [&]<typename Head>() { AttendTyped<Head>(context, q, uses, out); });
}

template <typename Head>
void CpuContextAttention::AttendTyped(CpuContext& context, TensorView q,
                                      absl::Span<const ContextUse> uses, TensorView out) const {
  const int heads = spec().num_heads;
  const KeyValueLayout layout = Layout(context, spec());
  const size_t head_bytes = layout.HeadBytes();
  const auto attend = [&](int index, int thread) {
    const ContextUse& use = uses[static_cast<size_t>(index / heads)];
    BST_DCHECK(1 <= use.num_rows && use.num_rows <= spec().capacity);
    const int head = index % heads;
    const int64_t column = int64_t{head} * spec().head_dim;
    const Head stored(layout,
                      const_cast<std::byte*>(use.context) + static_cast<size_t>(head) * head_bytes);
    AttendTask task = {};
    stored.SetBlocks(stored, task);
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
    Head::AttendKernel(context.kernels())(task);
  };
  context.pool().Run(static_cast<int>(uses.size()) * heads, attend);
}

}  // namespace bst
