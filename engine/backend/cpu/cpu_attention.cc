#include "engine/backend/cpu/cpu_attention.h"

#include <algorithm>
#include <utility>

#include "engine/backend/cpu/cpu_key_values.h"
#include "engine/tensor/host_convert.h"

namespace bst {
namespace {

KeyValueLayout RingLayout(const CpuContext& context, const AttentionSpec& spec) {
  return {context.kernels(), spec.window, spec.head_dim, spec.kv_type};
}

template <typename Head>
Head RingHead(const KeyValueLayout& layout, PoolView ring, SlotId slot, int head) {
  return {layout, ring.slot<std::byte>(slot) + static_cast<size_t>(head) * layout.HeadBytes()};
}

// The packed tokens of `row` from `first` on.
Row TokensFrom(const Row& row, int first) {
  Row rest = row;
  rest.begin = first;
  rest.position += first - row.begin;
  return rest;
}

// Blocks of a row that one task takes, of num_blocks, at least one, in all.
int64_t TaskBlocks(int64_t num_blocks, int64_t heads, int64_t threads) {
  return std::clamp<int64_t>(num_blocks * heads / (kTasksOfThread * threads), 1, num_blocks);
}

KeyValueRows RowsFrom(TensorView k, TensorView v, int64_t row, int64_t column) {
  return {k.row<float>(row) + column, v.row<float>(row) + column, k.row_stride(), v.row_stride()};
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
  const KeyValueLayout layout = RingLayout(context, spec);
  BST_RETURN_IF_ERROR(context.ReserveScratch(AttendScratchBytes(layout) + 2 * layout.CopyBytes()));
  return attention;
}

size_t CpuAttention::RingBytes(const CpuContext& context, const AttentionSpec& spec) {
  return static_cast<size_t>(spec.num_heads) * RingLayout(context, spec).HeadBytes();
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
  task.value_stride = RoundUp(spec().head_dim, kLanes);
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
    // What comes before is skipped; a single token is written beside its heads.
    const int first = row.num_tokens() == 1 ? row.begin : std::max(row.begin, row.outputs_from);
    ForEachBlock(
        TokensFrom(row, first), spec().window,
        [&](int64_t block, int64_t begin, int64_t end, int64_t token) {
          segments.push_back({row, block, first + static_cast<int>(token), static_cast<int>(begin),
                              static_cast<int>(end - begin), token == 0});
        });
  }
  // Long rows in as few tasks as still share the work evenly: that of single tokens is nothing
  // beside theirs.
  const int64_t blocks =
      std::count_if(segments.begin(), segments.end(),
                    [](const Segment& segment) { return segment.row.num_tokens() > 1; });
  const int64_t most =
      TaskBlocks(std::max<int64_t>(1, blocks), spec().num_heads, context.pool().num_threads());
  int64_t length = 0;
  for (Segment& segment : segments) {
    length = segment.begins_task || length == most ? 1 : length + 1;
    segment.begins_task = length == 1;
  }
  WithHead(Layout(context),
           [&]<typename Head>() { RunTyped<Head>(context, q, k, v, rows, ring, out, segments); });
}

template <typename Head>
void CpuAttention::RunTyped(CpuContext& context, TensorView q, TensorView k, TensorView v,
                            absl::Span<const Row> rows, PoolView ring, TensorView out,
                            absl::Span<const Segment> segments) const {
  const int heads = spec().num_heads;
  const auto heads_of_all = static_cast<int>(segments.size()) * heads;
  // Heads of a single token that one task takes, nearly as many in each of its tasks.
  const int most =
      std::clamp(heads_of_all / (kTasksOfThread * context.pool().num_threads()), 1, heads);
  const int groups = (heads + most - 1) / most, group_heads = (heads + groups - 1) / groups;
  const KeyValueLayout layout = RingLayout(context, spec());
  context.pool().Run(heads_of_all, [&](int index, int thread) {
    const auto first = static_cast<size_t>(index / heads);
    if (!segments[first].begins_task) return;
    const bool is_token = segments[first].row.num_tokens() == 1;
    const int head = index % heads;
    if (is_token && head % group_heads != 0) return;  // another task's
    const int last_head = is_token ? std::min(heads, head + group_heads) : head + 1;
    size_t last = first + 1;
    while (last < segments.size() && !segments[last].begins_task) ++last;
    // New keys and values before all or after all: what is touched between two heads stands in the
    // way of what the processor sees coming.
    const auto write_token = [&] {
      const Segment& token = segments[first];
      for (int h = head; h < last_head; ++h) {
        RingHead<Head>(layout, ring, token.row.slot, h)
            .Write(context.kernels(), token.offset,
                   RowsFrom(k, v, token.begin, int64_t{h} * spec().head_dim), 1);
      }
    };
    if (is_token && spec().include_self) write_token();
    for (int h = head; h < last_head; ++h) {
      RunSegments<Head>(context, thread, layout, segments.subspan(first, last - first), h,
                        /*next_head=*/h + 1 < last_head, q, k, v, ring, out);
    }
    if (is_token && !spec().include_self) write_token();
  });
  // Only now that every block of a chunk has read the old ring may its last W tokens replace it.
  // Single tokens are there already.
  const bool chunks =
      std::any_of(rows.begin(), rows.end(), [](const Row& row) { return row.num_tokens() > 1; });
  if (!chunks) return;
  context.pool().Run(static_cast<int>(rows.size()) * heads, [&](int index, int) {
    const Row& row = rows[static_cast<size_t>(index / heads)];
    if (row.num_tokens() == 1) return;
    const int head = index % heads;
    const Head head_ring = RingHead<Head>(layout, ring, row.slot, head);
    const int first = std::max(row.begin, row.end - spec().window);
    ForEachBlock(TokensFrom(row, first), spec().window,
                 [&](int64_t, int64_t begin, int64_t end, int64_t token) {
                   const int64_t column = int64_t{head} * spec().head_dim;
                   head_ring.Write(context.kernels(), begin, RowsFrom(k, v, first + token, column),
                                   end - begin);
                 });
  });
}

template <typename Head>
void CpuAttention::RunSegments(CpuContext& context, int thread, const KeyValueLayout& layout,
                               absl::Span<const Segment> segments, int head, bool next_head,
                               TensorView q, TensorView k, TensorView v, PoolView ring,
                               TensorView out) const {
  const int64_t column = int64_t{head} * spec().head_dim;
  const Row& row = segments[0].row;
  const Head head_ring = RingHead<Head>(layout, ring, row.slot, head);
  float* scores = context.scratch(thread);
  AttendTask task = HeadTask(head, scores);
  task.q_stride = q.row_stride();
  task.out_stride = out.row_stride();
  const auto attend = [&](const Segment& segment, const auto& current, const auto& previous) {
    task.q = q.row<float>(segment.begin) + column;
    task.out = out.row<float>(segment.begin) + column;
    task.num_queries = segment.count;
    task.first_offset = segment.offset;
    task.previous_visible = PreviousVisible(segment.block);
    current.SetBlocks(previous, task);
    current.AttendKernel(context.kernels())(task);
  };

  if (row.num_tokens() == 1) {
    if (next_head && context.kernels().fetches_next_ring)
      task.next_ring = static_cast<int64_t>(layout.HeadBytes());
    attend(segments[0], head_ring, head_ring);
    return;
  }

  // Copies of two blocks, with the numbers that the ring will hold. What precedes the row comes
  // from the ring, the rest from the row itself.
  using Copied = typename Head::Copied;
  std::byte* copies = reinterpret_cast<std::byte*>(scores) + AttendScratchBytes(layout);
  Copied current(layout, copies), previous(layout, copies + layout.CopyBytes());
  const auto fill = [&](const Copied& copy, int64_t block, int64_t begin, int64_t end) {
    copy.Pad(begin, end);
    const int64_t first = block * spec().window - row.position;  // in the row, of the block
    const int64_t split = std::clamp(-first, begin, end);
    copy.Copy(begin, split, head_ring);
    if (split == end) return;
    copy.Write(context.kernels(), split, RowsFrom(k, v, row.begin + first + split, column),
               end - split);
  };
  for (const Segment& segment : segments) {
    if (&segment == segments.data() && PreviousVisible(segment.block))
      fill(previous, segment.block - 1, segment.offset, spec().window);
    fill(current, segment.block, 0, segment.offset + segment.count);
    task.num_next = 0;
    if (&segment != &segments.back()) {
      const Segment& next = *(&segment + 1);
      const KeyValueRows rows = RowsFrom(k, v, next.begin, column);
      task.next_k = rows.k;
      task.next_v = rows.v;
      task.next_k_stride = rows.k_stride;
      task.next_v_stride = rows.v_stride;
      task.num_next = next.count;
    }
    attend(segment, current, previous);
    std::swap(current, previous);
  }
}

KeyValueLayout CpuAttention::Layout(const CpuContext& context) const {
  return RingLayout(context, spec());
}

void CpuAttention::StartPacked(CpuContext& context, const PackedHeads& heads, PoolView ring) const {
  WithPackedHead(Layout(context),
                 [&]<typename Head>() { StartPackedTyped<Head>(context, heads, ring); });
}

template <typename Head>
void CpuAttention::StartPackedTyped(CpuContext& context, const PackedHeads& heads,
                                    PoolView ring) const {
  const KeyValueLayout layout = Layout(context);
  const Row& row = heads.row();
  context.pool().Run(spec().num_heads, [&](int head, int) {
    ForEachBlock(row, spec().window, [&](int64_t block, int64_t begin, int64_t end, int64_t) {
      const Head to(layout, heads.block(head, block));
      to.Pad(0, end);
      if (block == heads.first_block())
        to.Copy(0, begin, RingHead<Head>(layout, ring, row.slot, head));
    });
  });
}

void CpuAttention::WritePacked(const CpuContext& context, const PackedHeads& heads, int head,
                               int64_t token, int64_t n, const float* k, const float* v) const {
  const KeyValueLayout layout = Layout(context);
  const Row part = {.slot = heads.row().slot,
                    .begin = 0,
                    .end = static_cast<int>(n),
                    .position = heads.row().position + token};
  const int64_t stride = spec().head_dim;
  ForEachBlock(part, spec().window, [&](int64_t block, int64_t begin, int64_t end, int64_t at) {
    const KeyValueRows rows = {k + at * stride, v + at * stride, stride, stride};
    WithPackedHead(layout, [&]<typename Head>() {
      Head(layout, heads.block(head, block)).Write(context.kernels(), begin, rows, end - begin);
    });
  });
}

void CpuAttention::RunPacked(CpuContext& context, const PackedHeads& heads, PoolView ring,
                             TensorView out) const {
  WithPackedHead(Layout(context),
                 [&]<typename Head>() { RunPackedTyped<Head>(context, heads, ring, out); });
}

template <typename Head>
void CpuAttention::RunPackedTyped(CpuContext& context, const PackedHeads& heads, PoolView ring,
                                  TensorView out) const {
  const KeyValueLayout layout = Layout(context);
  const Row& row = heads.row();
  const int64_t window = spec().window;
  const auto ring_head = [&](int head) { return RingHead<Head>(layout, ring, row.slot, head); };
  const auto block_head = [&](int head, int64_t block) {
    return Head(layout, heads.block(head, block));
  };
  const int64_t length =
      TaskBlocks(heads.num_blocks(), spec().num_heads, context.pool().num_threads());
  const auto groups = static_cast<int>((heads.num_blocks() + length - 1) / length);
  context.pool().Run(groups * spec().num_heads, [&](int index, int thread) {
    const int head = index / groups;
    const int64_t first = heads.first_block() + index % groups * length;
    AttendTask task = HeadTask(head, context.scratch(thread));
    task.out_stride = out.row_stride();
    ForEachBlock(row, window, [&](int64_t block, int64_t begin, int64_t end, int64_t token) {
      if (block < first || block >= first + length) return;
      const int64_t unread =
          std::clamp<int64_t>(row.outputs_from - row.begin - token, 0, end - begin);
      if (unread == end - begin) return;
      begin += unread, token += unread;
      std::byte* const queries = heads.queries(head, token);
      if (layout.group == 2) {
        task.packed_q = reinterpret_cast<const BFloat16*>(queries);
      } else {
        task.q = reinterpret_cast<const float*>(queries);
        task.q_stride = spec().head_dim;
      }
      task.out = out.row<float>(row.begin + token) + int64_t{head} * spec().head_dim;
      task.num_queries = static_cast<int>(end - begin);
      task.first_offset = static_cast<int>(begin);
      task.previous_visible = PreviousVisible(block);
      block_head(head, block)
          .SetBlocks(block == heads.first_block() ? ring_head(head) : block_head(head, block - 1),
                     task);
      Head::AttendKernel(context.kernels())(task);
    });
  });
  // Only now that every block has read the old ring may the last W tokens replace it.
  context.pool().Run(spec().num_heads, [&](int head, int) {
    ForEachBlock(row, window, [&](int64_t block, int64_t begin, int64_t end, int64_t token) {
      // Of tokens that no later one replaces.
      begin = std::max(begin, begin + (row.num_tokens() - window - token));
      if (begin < end) ring_head(head).CopyExactly(begin, end, block_head(head, block));
    });
  });
}

}  // namespace bst
