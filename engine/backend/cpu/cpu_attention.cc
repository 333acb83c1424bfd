#include "engine/backend/cpu/cpu_attention.h"

#include <algorithm>

#include "engine/backend/cpu/cpu_key_values.h"
#include "engine/tensor/host_convert.h"

namespace bst {
namespace {

KeyValueLayout RingLayout(const AttentionSpec& spec) { return {spec.window, spec.head_dim}; }

size_t ScoreBytes(const AttentionSpec& spec) {
  return static_cast<size_t>(kMaxQueries * RoundUp(spec.window, kLanes)) * sizeof(float);
}

template <typename Kv>
HeadKeyValues<Kv> RingHead(const AttentionSpec& spec, PoolView ring, SlotId slot, int head) {
  const KeyValueLayout layout = RingLayout(spec);
  return {layout,
          ring.slot<std::byte>(slot) + static_cast<size_t>(head) * layout.HeadBytes(spec.kv_type)};
}

template <typename Kv>
void SetKeyValues(const HeadKeyValues<Kv>& current, const HeadKeyValues<Kv>& previous,
                  AttendTask& task) {
  task.current_keys = current.keys;
  task.current_values = current.values;
  task.current_key_scales = current.key_scales;
  task.current_value_scales = current.value_scales;
  task.previous_keys = previous.keys;
  task.previous_values = previous.values;
  task.previous_key_scales = previous.key_scales;
  task.previous_value_scales = previous.value_scales;
}

}  // namespace

absl::StatusOr<std::unique_ptr<CpuAttention>> CpuAttention::Pack(
    CpuContext& context, const AttentionParameters& parameters) {
  const AttentionSpec& spec = parameters.spec;
  auto attention = std::unique_ptr<CpuAttention>(new CpuAttention(spec));
  attention->has_bias_ = !parameters.bias.empty();
  const int64_t bias_size = attention->has_bias_ ? 2 * int64_t{spec.window} : 0;
  BST_ASSIGN_OR_RETURN(
      attention->tables_,
      Buffer::Allocate(static_cast<size_t>(spec.num_heads * (1 + bias_size)) * sizeof(float)));
  float* table = static_cast<float*>(attention->tables_.data());
  for (int h = 0; h < spec.num_heads; ++h) *table++ = ElementAsFloat(parameters.scale, h);
  if (attention->has_bias_) {
    // A query at offset i needs distances i, i-1, .., nearest for its own block and W-1+nearest, ..
    // for the block before: a run of the distances in descending order, written twice.
    const int nearest = spec.include_self ? 0 : 1;
    for (int h = 0; h < spec.num_heads; ++h) {
      for (int copy = 0; copy < 2; ++copy) {
        for (int d = spec.window - 1; d >= 0; --d) {
          *table++ = ElementAsFloat(parameters.bias, int64_t{h} * (spec.window + 1) + d + nearest);
        }
      }
    }
  }
  BST_RETURN_IF_ERROR(context.ReserveScratch(ScoreBytes(spec) + 2 * RingLayout(spec).CopyBytes()));
  return attention;
}

size_t CpuAttention::RingBytes(const AttentionSpec& spec) {
  return static_cast<size_t>(spec.num_heads) * RingLayout(spec).HeadBytes(spec.kv_type);
}

const float* CpuAttention::bias(int head) const {
  return has_bias_ ? scale() + spec().num_heads + int64_t{head} * 2 * spec().window : nullptr;
}

bool CpuAttention::PreviousVisible(int64_t block) const {
  if (spec().scope == AttentionScope::kBlock) return false;
  return block > 0 || spec().empty_prefix == EmptyPrefix::kZeros;
}

AttendTask CpuAttention::HeadTask(int head, float* scores) const {
  AttendTask task = {};
  task.num_visible = -1;
  task.window = spec().window;
  task.head_dim = spec().head_dim;
  task.value_stride = RingLayout(spec()).value_stride();
  task.include_self = spec().include_self;
  task.scale = scale()[head];
  task.bias = bias(head);
  task.scores = scores;
  return task;
}

void CpuAttention::Run(CpuContext& context, TensorView q, TensorView k, TensorView v,
                       absl::Span<const Row> rows, PoolView ring, TensorView out,
                       std::vector<Segment>& segments) const {
  const int64_t width = int64_t{spec().num_heads} * spec().head_dim;
  for (const TensorView& matrix : {k, v, out}) BST_CHECK_SHAPE(matrix, {q.dim(0), width});
  segments.clear();
  for (const Row& row : rows) {
    for (int t = row.begin; t < row.end;) {
      const int64_t position = row.position + (t - row.begin);
      const int offset = static_cast<int>(position % spec().window);
      const int count = std::min(row.end - t, spec().window - offset);
      segments.push_back({row, position / spec().window, t, offset, count});
      t += count;
    }
  }
  if (spec().kv_type == DType::kBF16) {
    RunTyped<BFloat16>(context, q, k, v, rows, ring, out, segments);
  } else if (spec().kv_type == DType::kI8) {
    RunTyped<int8_t>(context, q, k, v, rows, ring, out, segments);
  } else {
    RunTyped<float>(context, q, k, v, rows, ring, out, segments);
  }
}

template <typename Kv>
void CpuAttention::RunTyped(CpuContext& context, TensorView q, TensorView k, TensorView v,
                            absl::Span<const Row> rows, PoolView ring, TensorView out,
                            absl::Span<const Segment> segments) const {
  const int heads = spec().num_heads;
  context.pool().Run(static_cast<int>(segments.size()) * heads, [&](int index, int thread) {
    RunSegment<Kv>(context, thread, segments[static_cast<size_t>(index / heads)], index % heads, q,
                   k, v, ring, out);
  });
  // Only now that every block of a chunk has read the old ring may its last W tokens replace it.
  // Single tokens did so on the way.
  const bool chunks =
      std::any_of(rows.begin(), rows.end(), [](const Row& row) { return row.num_tokens() > 1; });
  if (!chunks) return;
  context.pool().Run(static_cast<int>(rows.size()) * heads, [&](int index, int) {
    const Row& row = rows[static_cast<size_t>(index / heads)];
    if (row.num_tokens() == 1) return;
    const int head = index % heads;
    const HeadKeyValues<Kv> head_ring = RingHead<Kv>(spec(), ring, row.slot, head);
    const int64_t column = int64_t{head} * spec().head_dim;
    for (int t = std::max(row.begin, row.end - spec().window); t < row.end; ++t) {
      head_ring.template Write<Kv>(context.kernels(),
                                   (row.position + (t - row.begin)) % spec().window,
                                   k.row<float>(t) + column, v.row<float>(t) + column);
    }
  });
}

template <typename Kv>
void CpuAttention::RunSegment(CpuContext& context, int thread, const Segment& segment, int head,
                              TensorView q, TensorView k, TensorView v, PoolView ring,
                              TensorView out) const {
  const int64_t column = int64_t{head} * spec().head_dim;
  const Row& row = segment.row;
  const HeadKeyValues<Kv> head_ring = RingHead<Kv>(spec(), ring, row.slot, head);
  float* scores = context.scratch(thread);
  AttendTask task = HeadTask(head, scores);
  task.q = q.row<float>(segment.begin) + column;
  task.q_stride = q.row_stride();
  task.out = out.row<float>(segment.begin) + column;
  task.out_stride = out.row_stride();
  task.num_queries = segment.count;
  task.first_offset = segment.offset;
  task.previous_visible = PreviousVisible(segment.block);

  if (row.num_tokens() == 1) {
    const float* key = k.row<float>(segment.begin) + column;
    const float* value = v.row<float>(segment.begin) + column;
    const auto write = [&] {
      head_ring.template Write<Kv>(context.kernels(), segment.offset, key, value);
    };
    if (spec().include_self) write();
    SetKeyValues(head_ring, head_ring, task);
    AttendKernel<Kv>(context.kernels())(task);
    if (!spec().include_self) write();
    return;
  }

  // Float32 copies of the two blocks, rounded as the ring will round them. What precedes
  // the row comes from the ring, the rest from the row itself.
  std::byte* copies = reinterpret_cast<std::byte*>(scores) + ScoreBytes(spec());
  const KeyValueLayout layout = RingLayout(spec());
  constexpr bool kScaled = std::is_same_v<Kv, int8_t>;
  const HeadKeyValues<float> current(layout, copies, kScaled);
  const HeadKeyValues<float> previous(layout, copies + layout.CopyBytes(), kScaled);
  const auto fill = [&](const HeadKeyValues<float>& copy, int64_t block, int begin, int end) {
    for (int j = begin; j < end; ++j) {
      const int64_t in_row = block * spec().window + j - row.position;
      if (in_row < 0) {
        copy.Copy(j, head_ring);
        continue;
      }
      const int64_t t = row.begin + in_row;
      copy.Write<Kv>(context.kernels(), j, k.row<float>(t) + column, v.row<float>(t) + column);
    }
  };
  fill(current, segment.block, 0, segment.offset + segment.count);
  if (task.previous_visible) fill(previous, segment.block - 1, segment.offset, spec().window);
  SetKeyValues(current, previous, task);
  context.kernels().attend_f32(task);
}

}  // namespace bst
