#include "engine/backend/cuda/cuda_backend.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/backend/cuda/cuda_device.h"
#include "engine/backend/cuda/cuda_linear.h"
#include "engine/backend/cuda/cuda_sampling.h"
#include "engine/backend/cuda/cuda_weights.h"
#include "engine/backend/cuda/kernels.h"
#include "engine/base/status_macros.h"

namespace bst {
namespace {

static_assert(sizeof(TokenId) == sizeof(int32_t), "kernels take token ids as int32");

int Rows(const TensorView& view) { return static_cast<int>(view.dim(0)); }
int Columns(const TensorView& view) { return static_cast<int>(view.dim(1)); }
class CudaBackend final : public Backend {
 public:
  CudaBackend(std::unique_ptr<CudaDevice> device, const CudaOptions& options)
      : device_(std::move(device)),
        has_tile_memory_(cuda::PrepareAttention(device_->stream())),
        products_(*device_, options.panel_rows, options.product_seconds),
        sampling_(*device_),
        options_(options) {}

  std::string name() const override {
    return absl::StrCat("cuda (", device_->name(), ", ", products_.Summary(), ")");
  }
  int num_threads() const override { return 1; }
  std::optional<DeviceMemory> device_memory() const override { return cuda::MemoryOfDevice(); }
  // What is free leaves out, where the device shares the host's memory, what the host would give
  // back.
  size_t AvailableBytes() const override { return SIZE_MAX; }

  absl::StatusOr<Buffer> Allocate(size_t bytes) override { return device_->Allocate(bytes); }
  absl::StatusOr<Buffer> AllocateHostReadable(size_t bytes) override {
    return device_->AllocateHostReadable(bytes);
  }

  absl::StatusOr<std::unique_ptr<EmbeddingWeights>> PackEmbedding(TensorView table,
                                                                  DType type) override {
    return CudaEmbedding::Pack(*device_, table, type);
  }
  absl::StatusOr<std::unique_ptr<LinearWeights>> PackLinear(absl::Span<const TensorView> parts,
                                                            DType type) override {
    BST_ASSIGN_OR_RETURN(std::unique_ptr<CudaLinear> weights,
                         CudaLinear::Pack(*device_, parts, type));
    products_.Choose(*weights);
    return weights;
  }
  absl::StatusOr<std::unique_ptr<AttentionWeights>> PackAttention(
      const AttentionParameters& parameters) override {
    return CudaAttention::Pack(*device_, parameters);
  }
  absl::StatusOr<std::unique_ptr<ContextWeights>> PackContextAttention(
      const ContextParameters& parameters) override {
    return CudaContext::Pack(*device_, parameters);
  }
  absl::StatusOr<std::unique_ptr<SsmWeights>> PackSsm(const SsmParameters& parameters) override {
    return PackCudaSsm(*device_, parameters, options_.most_chunk_places);
  }
  absl::StatusOr<std::unique_ptr<SsmWeights>> PackDplr(const DplrParameters& parameters) override {
    return PackCudaDplr(*device_, parameters, options_.most_chunk_places);
  }
  absl::StatusOr<std::unique_ptr<SsmWeights>> PackConvolution(
      const ConvolutionParameters& parameters) override {
    return PackCudaConvolution(*device_, parameters);
  }
  absl::StatusOr<std::unique_ptr<ScanWeights>> PackScan(TensorView a_minus_one) override {
    return CudaScan::Pack(*device_, a_minus_one);
  }
  absl::StatusOr<Buffer> PackVector(TensorView vector) override {
    return UploadFloats(*device_, vector);
  }

  size_t RingBytes(const AttentionSpec& spec) const override {
    return KeyValueBytes(spec.window, spec.num_heads, spec.head_dim, spec.kv_type);
  }
  size_t ContextBytes(const ContextSpec& spec) const override {
    return KeyValueBytes(spec.capacity, spec.num_heads, spec.head_dim, spec.kv_type);
  }
  size_t SsmStateBytes(const SsmWeights& weights) const override {
    return dynamic_cast<const CudaSequence&>(weights).state_bytes();
  }
  size_t ScanStateBytes(const ScanWeights& weights) const override {
    return dynamic_cast<const CudaScan&>(weights).state_bytes();
  }
  void ClearSlot(PoolView pool, SlotId slot) override {
    cuda::Fill(stream(), pool.slot<std::byte>(slot), 0, pool.slot_bytes);
    Done();
  }
  void CopySlot(PoolView from, SlotId from_slot, PoolView to, SlotId to_slot) override {
    const size_t bytes = std::min(from.slot_bytes, to.slot_bytes);
    // Where every slot begins at a multiple of this, and ends at one.
    const uintptr_t places = reinterpret_cast<uintptr_t>(from.base) |
                             reinterpret_cast<uintptr_t>(to.base) | from.slot_bytes | to.slot_bytes;
    const int word_bytes = places % 16 == 0 ? 16 : 4;
    if (device_->in_step() && places % 4 == 0) {
      // Which slots is not part of the call, so that steps that copy others are the same graph.
      const cuda::CopyPlace place = {.from = from.slot<const std::byte>(from_slot),
                                     .to = to.slot<std::byte>(to_slot)};
      cuda::CopyWords(stream(), {.place = device_->Stage(absl::MakeConstSpan(&place, 1)),
                                 .words = static_cast<int64_t>(bytes) / word_bytes,
                                 .word_bytes = word_bytes});
    } else {
      cuda::Copy(stream(), to.slot<std::byte>(to_slot), from.slot<std::byte>(from_slot), bytes);
    }
    Done();
  }

  void Embed(const EmbeddingWeights& table, absl::Span<const TokenId> tokens,
             TensorView out) override {
    // The first operator of a step.
    if (static_cast<int>(tokens.size()) <= options_.graph_tokens && !options_.blocking)
      device_->BeginStep();
    const auto& w = dynamic_cast<const CudaEmbedding&>(table);
    BST_CHECK_SHAPE(out, {static_cast<int64_t>(tokens.size()), w.dim()});
    cuda::Gather(stream(), ToElement(w.type()),
                 {.table = w.table().data(),
                  .table_stride = w.dim(),
                  .indices = StageTokens(tokens),
                  .out = ToMatrix(out),
                  .rows = Count(out),
                  .columns = Columns(out)});
    Done();
  }

  void RmsNorm(TensorView x, TensorView gain, float epsilon, TensorView out) override {
    BST_CHECK_SHAPE(gain, {x.dim(1)});
    BST_CHECK_SHAPE(out, {x.dim(0), x.dim(1)});
    cuda::RmsNorm(stream(), {.x = ToMatrix(x),
                             .out = ToMatrix(out),
                             .gain = gain.as<float>(),
                             .epsilon = epsilon,
                             .rows = Count(x),
                             .columns = Columns(x)});
    Done();
  }

  void Linear(TensorView x, const LinearWeights& weights, const LinearOptions& options,
              TensorView out) override {
    products_.Run(x, dynamic_cast<const CudaLinear&>(weights), options, out);
    Done();
  }

  void Gate(TensorView x, GateActivation activation, TensorView out) override {
    BST_CHECK_SHAPE(x, {out.dim(0), 2 * out.dim(1)});
    cuda::Gate(stream(),
               {.x = ToMatrix(x),
                .out = ToMatrix(out),
                .activation = activation == GateActivation::kGelu ? cuda::Activation::kGelu
                                                                  : cuda::Activation::kSilu,
                .rows = Count(out),
                .columns = Columns(out)});
    Done();
  }

  void NormalizeHeads(TensorView x, int head_dim, TensorView rotary) override {
    BST_CHECK(x.dim(1) % head_dim == 0, x.dim(1), " columns in heads of ", head_dim);
    if (!rotary.empty()) {
      BST_CHECK(head_dim % 2 == 0, "heads of ", head_dim, " cannot be rotated");
      BST_CHECK_SHAPE(rotary, {x.dim(0), head_dim});
    }
    cuda::NormalizeHeads(stream(), {.x = ToMatrix(x),
                                    .rotary = rotary.empty() ? cuda::Matrix{} : ToMatrix(rotary),
                                    .rows = Count(x),
                                    .heads = Columns(x) / head_dim,
                                    .head_dim = head_dim});
    Done();
  }

  void RotaryTable(absl::Span<const Row> rows, double theta, TensorView table) override {
    positions_.resize(static_cast<size_t>(table.dim(0)));
    for (const Row& row : rows) {
      for (int t = row.begin; t < row.end; ++t)
        positions_[static_cast<size_t>(t)] = row.position + (t - row.begin);
    }
    cuda::RotaryTable(stream(), {.positions = device_->Stage(absl::MakeConstSpan(positions_)),
                                 .log_theta = std::log(theta),
                                 .table = ToMatrix(table),
                                 .rows = Count(table),
                                 .half = Columns(table) / 2});
    Done();
  }

  void Rotate(TensorView x, int head_dim, TensorView table) override {
    BST_CHECK_SHAPE(table, {x.dim(0), head_dim});
    BST_CHECK(head_dim % 2 == 0 && x.dim(1) % head_dim == 0, x.dim(1), " columns in heads of ",
              head_dim);
    cuda::Rotate(stream(), {.x = ToMatrix(x),
                            .table = ToMatrix(table),
                            .rows = Count(x),
                            .heads = Columns(x) / head_dim,
                            .half = head_dim / 2});
    Done();
  }

  void Attention(const AttentionWeights& weights, TensorView q, TensorView k, TensorView v,
                 absl::Span<const Row> rows, PoolView ring, TensorView out) override {
    const auto& w = dynamic_cast<const CudaAttention&>(weights);
    const AttentionSpec& spec = w.spec();
    const int64_t width = int64_t{spec.num_heads} * spec.head_dim;
    for (const TensorView& matrix : {q, k, v, out}) BST_CHECK_SHAPE(matrix, {q.dim(0), width});
    const size_t row_bytes = static_cast<size_t>(width) * SizeOf(spec.kv_type);
    const bool has_tiles = HasTiles(spec.kv_type, spec.head_dim);
    tokens_.clear();
    tiles_.clear();
    singles_.clear();
    store_.clear();
    for (const Row& row : rows) {
      auto* const keys = ring.slot<std::byte>(row.slot);
      if (has_tiles) CheckPlace(keys);
      auto* const values = keys + static_cast<size_t>(spec.window) * row_bytes;
      // A single token writes the ring as it attends.
      const bool is_single = row.num_tokens() == 1;
      const int first_read = is_single ? row.begin : std::max(row.begin, row.outputs_from);
      const int first_stored = is_single ? row.end : std::max(row.begin, row.end - spec.window);
      for (int t = std::min(first_read, first_stored); t < row.end; ++t) {
        const int64_t position = row.position + (t - row.begin);
        const auto place = static_cast<int>(position % spec.window);
        const cuda::TokenRow token = {.cache = keys,
                                      .position = position,
                                      .place = place,
                                      .token = t,
                                      .begin = row.begin,
                                      .end = row.end};
        if (t < first_read) {
          // Nobody reads its output.
        } else if (!has_tiles) {
          tokens_.push_back(token);
        } else if (is_single) {
          singles_.push_back(token);
        } else if ((t - first_read) % cuda::kQueriesOfATile == 0) {
          tiles_.push_back({.cache = keys,
                            .position = position,
                            .place = place,
                            .first = t,
                            .count = std::min(cuda::kQueriesOfATile, row.end - t),
                            .begin = row.begin,
                            .end = row.end});
        }
        if (t < first_stored) continue;
        const size_t offset = static_cast<size_t>(place) * row_bytes;
        store_.push_back({.first = keys + offset, .second = values + offset, .source = t});
      }
    }
    const cuda::AttentionTask task = {.q = ToMatrix(q),
                                      .k = ToMatrix(k),
                                      .v = ToMatrix(v),
                                      .out = ToMatrix(out),
                                      .tokens = device_->Stage(absl::MakeConstSpan(tokens_)),
                                      .tiles = device_->Stage(absl::MakeConstSpan(tiles_)),
                                      .singles = device_->Stage(absl::MakeConstSpan(singles_)),
                                      .scale = w.scale(),
                                      .bias = w.bias(),
                                      .num_tokens = Count(tokens_),
                                      .num_tiles = Count(tiles_),
                                      .num_singles = Count(singles_),
                                      .heads = spec.num_heads,
                                      .head_dim = spec.head_dim,
                                      .window = spec.window,
                                      .nearest = spec.include_self ? 0 : 1,
                                      .block_scope = spec.scope == AttentionScope::kBlock,
                                      .zero_prefix = spec.empty_prefix == EmptyPrefix::kZeros};
    cuda::Attention(stream(), ToElement(spec.kv_type), task);
    cuda::AttentionTiles(stream(), task);
    cuda::AttentionSingles(stream(), task);
    // The new keys of prompts replace the oldest, which their queries have read.
    Store(k, v, spec.kv_type);
    Done();
  }

  void StoreContext(const ContextWeights& weights, TensorView k, TensorView v,
                    absl::Span<const ContextRows> rows, PoolView contexts) override {
    const ContextSpec& spec = weights.spec();
    const int64_t width = int64_t{spec.num_heads} * spec.head_dim;
    for (const TensorView& matrix : {k, v}) BST_CHECK_SHAPE(matrix, {k.dim(0), width});
    const size_t row_bytes = static_cast<size_t>(width) * SizeOf(spec.kv_type);
    store_.clear();
    for (const ContextRows& part : rows) {
      auto* const keys = contexts.slot<std::byte>(part.slot);
      auto* const values = keys + static_cast<size_t>(spec.capacity) * row_bytes;
      for (int i = part.begin; i < part.end; ++i) {
        const size_t offset = static_cast<size_t>(part.first_row + i - part.begin) * row_bytes;
        store_.push_back({.first = keys + offset, .second = values + offset, .source = i});
      }
    }
    Store(k, v, spec.kv_type);
    Done();
  }

  void ContextAttention(const ContextWeights& weights, TensorView q,
                        absl::Span<const ContextUse> uses, TensorView out) override {
    const auto& w = dynamic_cast<const CudaContext&>(weights);
    const ContextSpec& spec = w.spec();
    const int64_t width = int64_t{spec.num_heads} * spec.head_dim;
    for (const TensorView& matrix : {q, out}) BST_CHECK_SHAPE(matrix, {q.dim(0), width});
    const bool has_tiles = HasTiles(spec.kv_type, spec.head_dim);
    queries_.clear();
    context_tiles_.clear();
    context_singles_.clear();
    for (const ContextUse& use : uses) {
      if (has_tiles) CheckPlace(use.context);
      for (int i = use.begin; i < use.end; ++i) {
        if (!has_tiles) {
          queries_.push_back({.context = use.context, .num_rows = use.num_rows, .query = i});
        } else if ((i - use.begin) % cuda::kQueriesOfATile == 0) {
          const int count = std::min(cuda::kQueriesOfATile, use.end - i);
          (count == 1 ? context_singles_ : context_tiles_)
              .push_back(
                  {.context = use.context, .num_rows = use.num_rows, .first = i, .count = count});
        }
      }
    }
    const cuda::ContextTask task = {
        .q = ToMatrix(q),
        .out = ToMatrix(out),
        .queries = device_->Stage(absl::MakeConstSpan(queries_)),
        .tiles = device_->Stage(absl::MakeConstSpan(context_tiles_)),
        .singles = device_->Stage(absl::MakeConstSpan(context_singles_)),
        .scale = w.scale(),
        .num_queries = Count(queries_),
        .num_tiles = Count(context_tiles_),
        .num_singles = Count(context_singles_),
        .heads = spec.num_heads,
        .head_dim = spec.head_dim,
        .capacity = spec.capacity};
    cuda::ContextAttention(stream(), ToElement(spec.kv_type), task);
    cuda::ContextTiles(stream(), task);
    cuda::ContextSingles(stream(), task);
    Done();
  }

  void Ssm(const SsmWeights& weights, TensorView u, absl::Span<const Row> rows, PoolView state,
           TensorView y) override {
    dynamic_cast<const CudaSequence&>(weights).Run(*device_, u, rows, state, y);
    Done();
  }
  void Scan(const ScanWeights& weights, TensorView v, absl::Span<const Row> rows,
            PoolView state) override {
    dynamic_cast<const CudaScan&>(weights).Run(*device_, v, rows, state);
    Done();
  }

  void AddScaled(TensorView x, TensorView gain, TensorView y) override {
    BST_CHECK_SHAPE(gain, {y.dim(1)});
    BST_CHECK(x.dim(0) == y.dim(0) && y.dim(1) % x.dim(1) == 0, y.dim(1), " of ", x.dim(1),
              " inputs");
    cuda::AddScaled(stream(), {.x = ToMatrix(x),
                               .y = ToMatrix(y),
                               .gain = gain.as<float>(),
                               .rows = Count(y),
                               .columns = Columns(y),
                               .inputs = Columns(x)});
    Done();
  }
  void Multiply(TensorView x, TensorView y) override {
    BST_CHECK_SHAPE(y, {x.dim(0), x.dim(1)});
    cuda::Multiply(stream(),
                   {.x = ToMatrix(x), .y = ToMatrix(y), .rows = Count(y), .columns = Columns(y)});
    Done();
  }
  void AddTable(TensorView table, TensorView x) override {
    BST_CHECK_SHAPE(table, {table.dim(0), x.dim(1)});
    BST_CHECK(x.dim(0) % table.dim(0) == 0, x.dim(0), " rows, ", table.dim(0), " in the table");
    cuda::AddTable(stream(), {.table = ToMatrix(table),
                              .x = ToMatrix(x),
                              .rows = Count(x),
                              .columns = Columns(x),
                              .table_rows = Rows(table)});
    Done();
  }
  void Interpolate(TensorView s, TensorView gate, TensorView z) override {
    BST_CHECK_SHAPE(z, {s.dim(0), s.dim(1)});
    BST_CHECK_SHAPE(gate, {s.dim(1)});
    cuda::Interpolate(stream(), {.s = ToMatrix(s),
                                 .z = ToMatrix(z),
                                 .gate = gate.as<float>(),
                                 .rows = Count(z),
                                 .columns = Columns(z)});
    Done();
  }

  void GatherRows(TensorView x, absl::Span<const int> indices, TensorView out) override {
    BST_CHECK_SHAPE(out, {static_cast<int64_t>(indices.size()), x.dim(1)});
    cuda::Gather(stream(), cuda::Element::kF32,
                 {.table = x.data(),
                  .table_stride = x.row_stride(),
                  .indices = device_->Stage(indices),
                  .out = ToMatrix(out),
                  .rows = Count(out),
                  .columns = Columns(out)});
    Done();
  }

  void TargetLogprobs(TensorView logits, absl::Span<const TokenId> targets,
                      absl::Span<float> logprobs) override {
    // The targets, and after them the place for the results.
    const auto n = targets.size();
    BST_CHECK(static_cast<size_t>(logits.dim(0)) == n && logprobs.size() == n, logits.dim(0),
              " rows of logits, ", n, " targets, ", logprobs.size(), " results");
    targets_.resize(2 * n);
    for (size_t i = 0; i < n; ++i) {
      targets_[i] = targets[i].value();
      BST_CHECK(0 <= targets_[i] && targets_[i] < logits.dim(1), "token ", targets_[i]);
    }
    const int32_t* const place = device_->Stage(absl::MakeConstSpan(targets_));
    auto* const results = reinterpret_cast<float*>(const_cast<int32_t*>(place) + n);
    cuda::TargetLogprobs(stream(), {.logits = ToMatrix(logits),
                                    .targets = place,
                                    .logprobs = results,
                                    .rows = static_cast<int>(n),
                                    .columns = Columns(logits)});
    device_->Download(results, logprobs.data(), n * sizeof(float));
  }

  bool HasSampling() const override { return true; }
  size_t SamplingStateBytes(int vocab_size) const override {
    return static_cast<size_t>(vocab_size) * sizeof(cuda::TokenState);
  }
  absl::Status ReserveSampling(int vocab_size, int max_draws) override {
    return sampling_.Reserve(vocab_size, max_draws);
  }
  void SetSamplingState(PoolView state, SlotId slot, absl::Span<const TokenId> prompt,
                        absl::Span<const TokenBias> biases) override {
    sampling_.SetState(state, slot, prompt, biases);
    Done();
  }
  void SampleTokens(TensorView logits, absl::Span<const TokenDraw> draws, PoolView state,
                    absl::Span<DrawResult> results, absl::Span<TokenLogit> top) override {
    sampling_.Draw(logits, draws, state, results, top);
  }

  absl::Status Sync() override { return device_->Sync(); }

 private:
  // Whether the tensor cores take the queries of attention.
  bool HasTiles(DType type, int head_dim) const {
    return has_tile_memory_ && type == DType::kBF16 && head_dim <= cuda::kMaxTileColumns &&
           head_dim % cuda::kTileColumnsMultiple == 0;
  }

  // The tensor cores' forms read 16 bytes of a ring or a context at a time.
  static void CheckPlace(const std::byte* cache) {
    BST_CHECK(reinterpret_cast<uintptr_t>(cache) % 16 == 0, "keys at an odd address");
  }
  static size_t KeyValueBytes(int rows, int heads, int head_dim, DType type) {
    return size_t{2} * static_cast<size_t>(rows) * static_cast<size_t>(heads) *
           static_cast<size_t>(head_dim) * SizeOf(type);
  }

  cuda::Stream& stream() { return device_->stream(); }
  cuda::RowCount Count(const TensorView& rows) { return device_->Count(Rows(rows)); }
  template <typename T>
  cuda::RowCount Count(const std::vector<T>& list) {
    return device_->Count(static_cast<int>(list.size()));
  }
  // At the end of every operator.
  void Done() {
    device_->EndOperator();
    if (options_.blocking) (void)device_->Sync();  // its status sticks
  }
  const int32_t* StageTokens(absl::Span<const TokenId> tokens) {
    return reinterpret_cast<const int32_t*>(device_->Stage(tokens));
  }
  // Rows of k and v, to where store_ says.
  void Store(TensorView k, TensorView v, DType type) {
    cuda::StoreRows(stream(), ToElement(type),
                    {.first = ToMatrix(k),
                     .second = ToMatrix(v),
                     .store = device_->Stage(absl::MakeConstSpan(store_)),
                     .rows = Count(store_),
                     .columns = Columns(k),
                     .has_second = true});
  }

  std::unique_ptr<CudaDevice> device_;
  bool has_tile_memory_;
  CudaProducts products_;
  CudaSampling sampling_;
  CudaOptions options_;
  // What an operator stages; they keep their capacity.
  std::vector<int64_t> positions_;
  std::vector<cuda::TokenRow> tokens_, singles_;
  std::vector<cuda::QueryTile> tiles_;
  std::vector<cuda::QueryContext> queries_;
  std::vector<cuda::ContextTile> context_tiles_, context_singles_;
  std::vector<cuda::StoreRow> store_;
  std::vector<int32_t> targets_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Backend>> MakeCudaBackend(const CudaOptions& options) {
  BST_ASSIGN_OR_RETURN(std::unique_ptr<CudaDevice> device, CudaDevice::Open(options.arena_bytes));
  auto backend = std::make_unique<CudaBackend>(std::move(device), options);
  // The first look at the kernels: a driver may know the device and not this build's code for it.
  if (const absl::Status status = backend->Sync(); !status.ok()) {
    return absl::UnavailableError(
        absl::StrCat("the CUDA device cannot run this build's kernels: ", status.message()));
  }
  return backend;
}

}  // namespace bst
