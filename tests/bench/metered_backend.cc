#include "tests/bench/metered_backend.h"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/backend/cuda/kernels.h"
#include "engine/base/status_macros.h"

namespace bst {
namespace {

constexpr double kFloat = 4;  // bytes

// What the costs of an operator need to know of its weights.
struct WeightFacts {
  size_t bytes = 0;
  size_t state_bytes = 0;
  double element_bytes = kFloat;
  // Convolutions.
  double output_operations = 0;
  double taps = 0;
  // Recurrences, as engine/backend/cuda/kernels.h has them.
  int chunk = 0;
  int reals = 0;                // of a feature's state
  double carry_weights = 0;     // of a feature
  double carry_operations = 0;  // at a chunk's end, likewise
  double carry_chain = 0;
};

template <typename Base>
class Metered final : public Base {
 public:
  template <typename... Arguments>
  Metered(std::unique_ptr<Base> inner_weights, const WeightFacts& its_facts, Arguments... arguments)
      : Base(arguments...), inner(std::move(inner_weights)), facts(its_facts) {}
  size_t bytes() const override { return inner == nullptr ? facts.bytes : inner->bytes(); }

  std::unique_ptr<Base> inner;
  WeightFacts facts;
};
template <typename Base>
const Metered<Base>& AsMetered(const Base& weights) {
  return dynamic_cast<const Metered<Base>&>(weights);
}

double Elements(const TensorView& view) { return static_cast<double>(view.shape().num_elements()); }
double Columns(const TensorView& view) { return static_cast<double>(view.dim(1)); }

size_t KeyValueBytes(int rows, int heads, int head_dim, DType type) {
  return size_t{2} * static_cast<size_t>(rows) * static_cast<size_t>(heads) *
         static_cast<size_t>(head_dim) * SizeOf(type);
}

// Keys that each token of `row` from `first` on sees, summed; those of them that lay in the ring;
// and those of the row itself that are read, to be seen or for the ring.
struct VisibleKeys {
  double seen = 0;
  double from_ring = 0;
  double from_row = 0;
};
VisibleKeys KeysOf(const Row& row, int first, const AttentionSpec& spec) {
  VisibleKeys keys;
  const auto reach = [&](int64_t position) {  // distances 0 .. reach - 1, or 1 .. reach
    int64_t n = spec.window;
    if (spec.empty_prefix == EmptyPrefix::kMasked)
      n = std::min(n, spec.include_self ? position + 1 : position);
    if (spec.scope == AttentionScope::kBlock)
      n = std::min<int64_t>(n, position % spec.window + (spec.include_self ? 1 : 0));
    return n;
  };
  const int64_t position = row.position + (first - row.begin);
  for (int t = 0; t < row.end - first; ++t) keys.seen += static_cast<double>(reach(position + t));
  int64_t before = 0;  // those that `first` sees
  if (first < row.end) before = std::max<int64_t>(0, reach(position) - (spec.include_self ? 1 : 0));
  keys.from_ring = static_cast<double>(std::max<int64_t>(0, before - (first - row.begin)));
  keys.from_row = static_cast<double>(std::min<int64_t>(
      row.num_tokens(), std::max<int64_t>(row.end - first + before, spec.window)));
  return keys;
}

// Float32 queries and weights against BF16 keys and values go to the tensor cores: three products
// for one.
struct AttentionCost {
  RooflineUnit unit;
  double products;
};
AttentionCost AttentionUnit(CountedBackend counted, DType kv_type, int head_dim) {
  if (counted == CountedBackend::kCuda && kv_type == DType::kBF16 && head_dim <= 128 &&
      head_dim % 8 == 0) {
    return {RooflineUnit::kTensorBf16, 3};
  }
  return {RooflineUnit::kFloat32, 1};
}

WeightFacts RecurrenceFacts(const SsmSpec& spec, int64_t modes, bool dplr) {
  const auto reals = static_cast<double>(2 * modes);
  WeightFacts facts;
  facts.chunk = dplr ? cuda::kDplrChunk : cuda::kDiagonalChunk;
  facts.reals = static_cast<int>(2 * modes);
  facts.carry_weights = dplr ? reals * reals : reals;
  // A matrix, or four fmaf for each mode; and the sum with X.
  facts.carry_operations = dplr ? 2 * reals * reals + reals : 5 * reals;
  facts.carry_chain = dplr ? reals + 1 : 3;
  const double features = spec.num_features(), chunk = facts.chunk;
  facts.bytes =
      static_cast<size_t>(features * (chunk + 2 * chunk * reals + facts.carry_weights) * kFloat);
  facts.state_bytes =
      static_cast<size_t>(((dplr ? 2 : 1) * features * reals + chunk * spec.num_inputs) * kFloat);
  return facts;
}

// Beside the weights `numbers` float32 numbers are read or written.
OperatorCost LinearCost(const Metered<LinearWeights>& w, TensorView x, double numbers) {
  const double in = w.in_features(), features = w.out_features();
  return {
      .bytes = in * features * w.facts.element_bytes + numbers * kFloat,
      .operations = 2 * Elements(x) * features,
      .unit = w.facts.element_bytes == kFloat ? RooflineUnit::kFloat32 : RooflineUnit::kTensorBf16};
}

// But for u and y.
OperatorCost RecurrenceCost(const SsmSpec& spec, const WeightFacts& facts,
                            absl::Span<const Row> rows) {
  const int chunk = facts.chunk;
  const int block = spec.outputs == SsmOutputs::kEveryToken ? 1 : spec.block;
  const double features = spec.num_features(), reals = facts.reals;
  OperatorCost cost;
  double numbers = 0;
  std::vector<bool> is_read(static_cast<size_t>(chunk));  // of the weights of outputs
  int taps = 0;
  bool ends = false;
  for (const Row& row : rows) {
    const int64_t end = row.position + row.num_tokens();
    const auto completed = static_cast<double>(end / chunk - row.position / chunk);
    int last_output = -1;  // its index in the row's last chunk
    for (int64_t position = row.position; position < end; ++position) {
      if (position % block != block - 1) continue;
      const auto index = static_cast<int>(position % chunk);
      cost.operations += features * (2 * (index + 1) + 2 * reals);
      is_read[static_cast<size_t>(index)] = true;
      taps = std::max(taps, index + 1);
      if (position / chunk == (end - 1) / chunk) last_output = index;
    }
    cost.operations += features * completed * (2 * chunk * reals + facts.carry_operations);
    ends = ends || completed > 0;
    // X read, and written if a chunk ends; the inputs of the chunk before the row and after it.
    const auto before = static_cast<double>(row.position % chunk),
               after = static_cast<double>(end % chunk);
    numbers += features * reals * (completed > 0 ? 2 : 1) +
               spec.num_inputs * (before + after - (completed > 0 ? 0 : before));
    // S of a chunk, its end and those after it; and an output of the last chunk.
    const auto chain = [&](double carries) {
      return carries > 0 ? chunk + carries * facts.carry_chain : 0;
    };
    const auto earlier = static_cast<double>((end - 1) / chunk - row.position / chunk);
    cost.chain = std::max(cost.chain, chain(completed));
    if (last_output >= 0)
      cost.chain = std::max(cost.chain, chain(earlier) + last_output + 1 + reals);
  }
  const auto outputs = static_cast<double>(std::count(is_read.begin(), is_read.end(), true));
  numbers += features * (taps + outputs * reals);
  if (ends) numbers += features * (chunk * reals + facts.carry_weights);
  cost.bytes = numbers * kFloat;
  return cost;
}

// Likewise token by token, as engine/backend/cpu/cpu_ssm.h has it: of each mode four fused
// multiply-adds for x, two for y, and the sum with u.
OperatorCost SteppedRecurrenceCost(const SsmSpec& spec, const WeightFacts& facts,
                                   absl::Span<const Row> rows) {
  const double numbers = static_cast<double>(spec.num_features()) * facts.reals;
  OperatorCost cost = {.bytes = 2 * numbers * kFloat};  // E and C
  for (const Row& row : rows) {
    cost.bytes += 2 * numbers * kFloat;
    cost.operations += 7 * numbers * row.num_tokens();
  }
  return cost;
}

void Unmap(void* data, size_t bytes) { ::munmap(data, bytes); }

}  // namespace

OperatorCost& OperatorCost::operator+=(const OperatorCost& other) {
  bytes += other.bytes;
  operations += other.operations;
  chain += other.chain;
  unit = other.unit;
  return *this;
}

void MeteredBackend::Start() {
  uses_.clear();
  places_.clear();
  metering_ = true;
}

std::vector<OperatorUse> MeteredBackend::Stop() {
  metering_ = false;
  return std::move(uses_);
}

void MeteredBackend::Run(const std::string& name, const OperatorCost& cost,
                         absl::FunctionRef<void(Backend&)> run) {
  if (!metering_) {
    if (inner_ != nullptr) run(*inner_);
    return;
  }
  const auto [place, is_new] = places_.emplace(name, uses_.size());
  if (is_new) uses_.push_back({.name = name, .cost = {}});
  OperatorUse& use = uses_[place->second];
  ++use.calls;
  use.cost += cost;
  if (inner_ == nullptr) return;
  (void)inner_->Sync();  // its status sticks
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < repeats_; ++i) run(*inner_);
  (void)inner_->Sync();
  use.seconds +=
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() / repeats_;
}

// ---------------------------------------------------------------- memory and weights

TensorView MeteredBackend::Random(const TensorView& like) {
  const auto count = static_cast<size_t>(like.shape().num_elements());
  while (random_.size() < count)
    random_.push_back(ToBFloat16(static_cast<float>(generator_() % 2001) * 1e-5f - 0.01f));
  return {random_.data(), DType::kBF16, like.shape()};
}

absl::StatusOr<Buffer> MeteredBackend::Allocate(size_t bytes) {
  allocated_bytes_ += bytes;
  if (inner_ != nullptr) return inner_->Allocate(bytes);
  const size_t mapped = std::max<size_t>(bytes, 1);
  void* const data = ::mmap(nullptr, mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) return absl::ResourceExhaustedError(absl::StrCat(bytes, " addresses"));
  return Buffer(data, mapped, Unmap);
}

absl::StatusOr<Buffer> MeteredBackend::AllocateHostReadable(size_t bytes) {
  return inner_ == nullptr ? Allocate(bytes) : inner_->AllocateHostReadable(bytes);
}

absl::StatusOr<std::unique_ptr<EmbeddingWeights>> MeteredBackend::PackEmbedding(TensorView table,
                                                                                DType type) {
  const WeightFacts facts = {
      .bytes = static_cast<size_t>(table.shape().num_elements()) * SizeOf(type),
      .element_bytes = static_cast<double>(SizeOf(type))};
  std::unique_ptr<EmbeddingWeights> inner;
  if (inner_ != nullptr) {
    BST_ASSIGN_OR_RETURN(inner, inner_->PackEmbedding(Random(table), type));
  }
  auto weights = std::make_unique<Metered<EmbeddingWeights>>(std::move(inner), facts);
  weight_bytes_ += weights->bytes();
  return weights;
}

absl::StatusOr<std::unique_ptr<LinearWeights>> MeteredBackend::PackLinear(
    absl::Span<const TensorView> parts, DType type) {
  int64_t out = 0;
  for (const TensorView& part : parts) out += part.dim(0);
  const int64_t in = parts[0].dim(1);
  const WeightFacts facts = {.bytes = static_cast<size_t>(in * out) * SizeOf(type),
                             .element_bytes = static_cast<double>(SizeOf(type))};
  std::unique_ptr<LinearWeights> inner;
  if (inner_ != nullptr) {
    for (const TensorView& part : parts) (void)Random(part);  // grows, which moves the numbers
    std::vector<TensorView> filled;
    for (const TensorView& part : parts) filled.push_back(Random(part));
    BST_ASSIGN_OR_RETURN(inner, inner_->PackLinear(filled, type));
  }
  auto weights = std::make_unique<Metered<LinearWeights>>(
      std::move(inner), facts, static_cast<int>(in), static_cast<int>(out));
  weight_bytes_ += weights->bytes();
  return weights;
}

absl::StatusOr<std::unique_ptr<AttentionWeights>> MeteredBackend::PackAttention(
    const AttentionParameters& parameters) {
  const WeightFacts facts = {
      .bytes =
          static_cast<size_t>(parameters.spec.num_heads) * sizeof(float) +
          (parameters.bias.empty() ? 0 : static_cast<size_t>(Elements(parameters.bias) * kFloat))};
  std::unique_ptr<AttentionWeights> inner;
  if (inner_ != nullptr) {
    BST_ASSIGN_OR_RETURN(inner, inner_->PackAttention(parameters));
  }
  return std::make_unique<Metered<AttentionWeights>>(std::move(inner), facts, parameters.spec);
}

absl::StatusOr<std::unique_ptr<ContextWeights>> MeteredBackend::PackContextAttention(
    const ContextParameters& parameters) {
  const WeightFacts facts = {.bytes =
                                 static_cast<size_t>(parameters.spec.num_heads) * sizeof(float)};
  std::unique_ptr<ContextWeights> inner;
  if (inner_ != nullptr) {
    BST_ASSIGN_OR_RETURN(inner, inner_->PackContextAttention(parameters));
  }
  return std::make_unique<Metered<ContextWeights>>(std::move(inner), facts, parameters.spec);
}

absl::StatusOr<std::unique_ptr<SsmWeights>> MeteredBackend::PackSsm(
    const SsmParameters& parameters) {
  std::unique_ptr<SsmWeights> inner;
  if (inner_ != nullptr) {
    BST_ASSIGN_OR_RETURN(inner, inner_->PackSsm(parameters));
  }
  return std::make_unique<Metered<SsmWeights>>(
      std::move(inner), RecurrenceFacts(parameters.spec, parameters.c.dim(1), /*dplr=*/false),
      parameters.spec);
}

absl::StatusOr<std::unique_ptr<SsmWeights>> MeteredBackend::PackDplr(
    const DplrParameters& parameters) {
  std::unique_ptr<SsmWeights> inner;
  if (inner_ != nullptr) {
    BST_ASSIGN_OR_RETURN(inner, inner_->PackDplr(parameters));
  }
  return std::make_unique<Metered<SsmWeights>>(
      std::move(inner), RecurrenceFacts(parameters.spec, parameters.c.dim(1), /*dplr=*/true),
      parameters.spec);
}

absl::StatusOr<std::unique_ptr<SsmWeights>> MeteredBackend::PackConvolution(
    const ConvolutionParameters& parameters) {
  const auto taps = static_cast<size_t>(parameters.taps.dim(1));
  const SsmSpec& spec = parameters.spec;
  const auto features = static_cast<size_t>(spec.num_features()),
             inputs = static_cast<size_t>(spec.num_inputs), block = static_cast<size_t>(spec.block);
  WeightFacts facts = {.bytes = (taps + 1) * features * sizeof(float),
                       .state_bytes = taps * inputs * sizeof(float),
                       .output_operations = 2 * static_cast<double>(taps),
                       .taps = static_cast<double>(taps)};
  // The partitioned form, as engine/backend/cuda/cuda_convolution.cc has it.
  const size_t partitions =
      spec.outputs == SsmOutputs::kEveryToken && block >= 16 ? (taps - 1 + block - 1) / block : 0;
  if (partitions >= 2) {
    const size_t size = 2 * std::bit_ceil(block), points = size / 2 + 1;
    facts.bytes = (partitions * points * 2 + block + 1) * features * sizeof(float);
    facts.state_bytes = (partitions * block * inputs + block * features) * sizeof(float);
    // Within the block, and per token of it a transform of size n forth for each input and back for
    // each feature, 2.5 n log2 n, and a product of spectra.
    const double transform = 2.5 * static_cast<double>(size) *
                             static_cast<double>(std::bit_width(size) - 1) *
                             (1 + static_cast<double>(inputs) / static_cast<double>(features));
    facts.output_operations =
        static_cast<double>(block + 1) +
        (transform + 8.0 * static_cast<double>(partitions * points)) / static_cast<double>(block);
  }
  std::unique_ptr<SsmWeights> inner;
  if (inner_ != nullptr) {
    BST_ASSIGN_OR_RETURN(inner, inner_->PackConvolution(parameters));
  }
  return std::make_unique<Metered<SsmWeights>>(std::move(inner), facts, parameters.spec);
}

absl::StatusOr<std::unique_ptr<ScanWeights>> MeteredBackend::PackScan(TensorView a_minus_one) {
  WeightFacts facts;
  facts.bytes = facts.state_bytes = static_cast<size_t>(Elements(a_minus_one) * kFloat);
  std::unique_ptr<ScanWeights> inner;
  if (inner_ != nullptr) {
    BST_ASSIGN_OR_RETURN(inner, inner_->PackScan(a_minus_one));
  }
  return std::make_unique<Metered<ScanWeights>>(std::move(inner), facts);
}

absl::StatusOr<Buffer> MeteredBackend::PackVector(TensorView vector) {
  if (inner_ != nullptr) return inner_->PackVector(vector);
  return Allocate(static_cast<size_t>(Elements(vector) * kFloat));
}

size_t MeteredBackend::RingBytes(const AttentionSpec& spec) const {
  if (inner_ != nullptr) return inner_->RingBytes(spec);
  return KeyValueBytes(spec.window, spec.num_heads, spec.head_dim, spec.kv_type);
}
size_t MeteredBackend::ContextBytes(const ContextSpec& spec) const {
  if (inner_ != nullptr) return inner_->ContextBytes(spec);
  return KeyValueBytes(spec.capacity, spec.num_heads, spec.head_dim, spec.kv_type);
}
// What more rows take: those of one slot are padded.
constexpr int kMoreRows = 1024;
double MeteredBackend::KeyValueBytesOf(const AttentionSpec& spec) const {
  AttentionSpec more = spec;
  more.window += kMoreRows;
  return static_cast<double>(RingBytes(more) - RingBytes(spec)) / kMoreRows;
}
double MeteredBackend::KeyValueBytesOf(const ContextSpec& spec) const {
  ContextSpec more = spec;
  more.capacity += kMoreRows;
  return static_cast<double>(ContextBytes(more) - ContextBytes(spec)) / kMoreRows;
}
size_t MeteredBackend::SsmStateBytes(const SsmWeights& weights) const {
  const auto& w = AsMetered(weights);
  return w.inner == nullptr ? w.facts.state_bytes : inner_->SsmStateBytes(*w.inner);
}
size_t MeteredBackend::ScanStateBytes(const ScanWeights& weights) const {
  const auto& w = AsMetered(weights);
  return w.inner == nullptr ? w.facts.state_bytes : inner_->ScanStateBytes(*w.inner);
}
void MeteredBackend::ClearSlot(PoolView pool, SlotId slot) {
  if (inner_ != nullptr) inner_->ClearSlot(pool, slot);
}
void MeteredBackend::CopySlot(PoolView from, SlotId from_slot, PoolView to, SlotId to_slot) {
  Run("copy slot", {.bytes = 2 * static_cast<double>(std::min(from.slot_bytes, to.slot_bytes))},
      [&](Backend& inner) { inner.CopySlot(from, from_slot, to, to_slot); });
}

// ---------------------------------------------------------------- operators

void MeteredBackend::Embed(const EmbeddingWeights& table, absl::Span<const TokenId> tokens,
                           TensorView out) {
  const auto& w = AsMetered(table);
  Run("embed", {.bytes = Elements(out) * (kFloat + w.facts.element_bytes)},
      [&](Backend& inner) { inner.Embed(*w.inner, tokens, out); });
}

void MeteredBackend::RmsNorm(TensorView x, TensorView gain, float epsilon, TensorView out) {
  Run("rms norm",
      {.bytes = (2 * Elements(x) + Elements(gain)) * kFloat, .operations = 4 * Elements(x)},
      [&](Backend& inner) { inner.RmsNorm(x, gain, epsilon, out); });
}

void MeteredBackend::Linear(TensorView x, const LinearWeights& weights,
                            const LinearOptions& options, TensorView out) {
  const auto& w = AsMetered(weights);
  const double out_passes = options.epilogue == LinearEpilogue::kAdd ? 2 : 1;
  Run(absl::StrCat("linear ", w.in_features(), " x ", w.out_features()),
      LinearCost(w, x, Elements(x) + out_passes * Elements(out)),
      [&](Backend& inner) { inner.Linear(x, *w.inner, options, out); });
}

void MeteredBackend::FeedForward(TensorView x, TensorView gain, float epsilon,
                                 const LinearWeights& up, LinearEpilogue act,
                                 const LinearWeights& down, TensorView normed, TensorView hidden) {
  if (counted_ == CountedBackend::kCuda)
    return Backend::FeedForward(x, gain, epsilon, up, act, down, normed, hidden);
  const auto& first = AsMetered(up);
  const auto& second = AsMetered(down);
  const double weights =
      static_cast<double>(up.in_features()) * up.out_features() * first.facts.element_bytes +
      static_cast<double>(down.in_features()) * down.out_features() * second.facts.element_bytes;
  Run(absl::StrCat("feed forward ", up.in_features(), " x ", up.out_features()),
      {.bytes = weights + 2 * Elements(x) * kFloat,
       .operations = 2 * Elements(x) * (up.out_features() + down.in_features()),
       .unit = first.facts.element_bytes == kFloat ? RooflineUnit::kFloat32
                                                   : RooflineUnit::kTensorBf16},
      [&](Backend& inner) {
        inner.FeedForward(x, gain, epsilon, *first.inner, act, *second.inner, normed, hidden);
      });
}

void MeteredBackend::Gate(TensorView x, GateActivation activation, TensorView out) {
  Run("gate", {.bytes = 3 * Elements(out) * kFloat, .operations = 2 * Elements(out)},
      [&](Backend& inner) { inner.Gate(x, activation, out); });
}

void MeteredBackend::NormalizeHeads(TensorView x, int head_dim, TensorView rotary) {
  const bool rotates = !rotary.empty();
  Run(rotates ? "normalize and rotate heads" : "normalize heads",
      {.bytes = (2 * Elements(x) + (rotates ? Elements(rotary) : 0)) * kFloat,
       .operations = (rotates ? 6 : 3) * Elements(x)},
      [&](Backend& inner) { inner.NormalizeHeads(x, head_dim, rotary); });
}

void MeteredBackend::ProjectHeads(TensorView x, TensorView gain, float epsilon,
                                  const LinearWeights& weights, const HeadOptions& options,
                                  TensorView normed, TensorView heads) {
  if (counted_ == CountedBackend::kCuda)
    return Backend::ProjectHeads(x, gain, epsilon, weights, options, normed, heads);
  RunProjection(x, weights, options, heads, [&](Backend& inner, const LinearWeights& w) {
    inner.ProjectHeads(x, gain, epsilon, w, options, normed, heads);
  });
}

void MeteredBackend::RunProjection(
    TensorView x, const LinearWeights& weights, const HeadOptions& options, TensorView heads,
    absl::FunctionRef<void(Backend& inner, const LinearWeights& weights)> run) {
  const auto& w = AsMetered(weights);
  const double rotary = options.rotary.empty() ? 0 : Elements(options.rotary);
  Run(absl::StrCat("norm and heads ", w.in_features(), " x ", w.out_features()),
      LinearCost(w, x, Elements(x) + Elements(heads) + rotary),
      [&](Backend& inner) { run(inner, *w.inner); });
}

ProjectedHeads MeteredBackend::ProjectAttention(
    TensorView x, TensorView gain, float epsilon, const LinearWeights& weights,
    const HeadOptions& options, const AttentionWeights& attention, absl::Span<const Row> rows,
    PoolView ring, TensorView normed, TensorView heads, TensorView others) {
  if (inner_ == nullptr || counted_ == CountedBackend::kCuda) {
    return Backend::ProjectAttention(x, gain, epsilon, weights, options, attention, rows, ring,
                                     normed, heads, others);
  }
  ProjectedHeads projected;
  RunProjection(x, weights, options, heads, [&](Backend& inner, const LinearWeights& w) {
    projected = inner.ProjectAttention(x, gain, epsilon, w, options, *AsMetered(attention).inner,
                                       rows, ring, normed, heads, others);
  });
  return projected;
}

void MeteredBackend::RotaryTable(absl::Span<const Row> rows, double theta, TensorView table) {
  Run("rotary table", {.bytes = Elements(table) * kFloat, .operations = 2 * Elements(table)},
      [&](Backend& inner) { inner.RotaryTable(rows, theta, table); });
}

void MeteredBackend::Rotate(TensorView x, int head_dim, TensorView table) {
  Run("rotate",
      {.bytes = (2 * Elements(x) + Elements(table)) * kFloat, .operations = 3 * Elements(x)},
      [&](Backend& inner) { inner.Rotate(x, head_dim, table); });
}

void MeteredBackend::Attention(const AttentionWeights& weights, TensorView q, TensorView k,
                               TensorView v, absl::Span<const Row> rows, PoolView ring,
                               TensorView out) {
  RunAttention(weights, q, rows, [&](Backend& inner, const AttentionWeights& w) {
    inner.Attention(w, q, k, v, rows, ring, out);
  });
}

void MeteredBackend::ProjectedAttention(const AttentionWeights& weights,
                                        const ProjectedHeads& heads, absl::Span<const Row> rows,
                                        PoolView ring, TensorView out) {
  RunAttention(weights, heads.q, rows, [&](Backend& inner, const AttentionWeights& w) {
    inner.ProjectedAttention(w, heads, rows, ring, out);
  });
}

void MeteredBackend::RunAttention(
    const AttentionWeights& weights, TensorView q, absl::Span<const Row> rows,
    absl::FunctionRef<void(Backend& inner, const AttentionWeights& weights)> run) {
  const auto& w = AsMetered(weights);
  const AttentionSpec& spec = w.spec();
  const double key_bytes = KeyValueBytesOf(spec);
  const auto [unit, products] = AttentionUnit(counted_, spec.kv_type, spec.head_dim);
  OperatorCost cost = {.unit = unit};
  for (const Row& row : rows) {
    const int first = row.num_tokens() > 1 ? std::max(row.begin, row.outputs_from) : row.begin;
    const VisibleKeys keys = KeysOf(row, first, spec);
    cost.bytes += 2 * (row.end - first + keys.from_row) * Columns(q) * kFloat;
    cost.bytes += (keys.from_ring + std::min(row.num_tokens(), spec.window)) * key_bytes;
    cost.operations += products * 4 * Columns(q) * keys.seen;
  }
  Run(spec.scope == AttentionScope::kBlock ? "attention within the block" : "attention", cost,
      [&](Backend& inner) { run(inner, *w.inner); });
}

void MeteredBackend::StoreContext(const ContextWeights& weights, TensorView k, TensorView v,
                                  absl::Span<const ContextRows> rows, PoolView contexts) {
  const auto& w = AsMetered(weights);
  double stored = 0;
  for (const ContextRows& part : rows) stored += part.end - part.begin;
  Run("store context", {.bytes = stored * (2 * Columns(k) * kFloat + KeyValueBytesOf(w.spec()))},
      [&](Backend& inner) { inner.StoreContext(*w.inner, k, v, rows, contexts); });
}

void MeteredBackend::ContextAttention(const ContextWeights& weights, TensorView q,
                                      absl::Span<const ContextUse> uses, TensorView out) {
  const auto& w = AsMetered(weights);
  const ContextSpec& spec = w.spec();
  const double row_bytes = KeyValueBytesOf(spec);
  const auto [unit, products] = AttentionUnit(counted_, spec.kv_type, spec.head_dim);
  OperatorCost cost = {.unit = unit};
  for (const ContextUse& use : uses) {
    cost.bytes += 2 * (use.end - use.begin) * Columns(q) * kFloat + row_bytes * use.num_rows;
    cost.operations += products * 4 * Columns(q) * (use.end - use.begin) * use.num_rows;
  }
  Run("context attention", cost,
      [&](Backend& inner) { inner.ContextAttention(*w.inner, q, uses, out); });
}

void MeteredBackend::Ssm(const SsmWeights& weights, TensorView u, absl::Span<const Row> rows,
                         PoolView state, TensorView y) {
  const auto& w = AsMetered(weights);
  const WeightFacts& facts = w.facts;
  OperatorCost cost;
  if (facts.taps > 0) {
    cost.bytes = static_cast<double>(w.bytes());
    cost.operations = Elements(y) * (facts.output_operations + 2);
    for (const Row& row : rows) {  // reads the ring, writes what is new
      const double held = std::min(static_cast<double>(row.position), facts.taps - 1);
      cost.bytes += (held + std::min<double>(row.num_tokens(), facts.taps)) * Columns(u) * kFloat;
    }
  } else {
    cost = counted_ == CountedBackend::kCuda ? RecurrenceCost(w.spec(), facts, rows)
                                             : SteppedRecurrenceCost(w.spec(), facts, rows);
  }
  cost.bytes += (Elements(u) + Elements(y)) * kFloat;
  Run(facts.taps > 0 ? "convolution" : "recurrence", cost,
      [&](Backend& inner) { inner.Ssm(*w.inner, u, rows, state, y); });
}

void MeteredBackend::Scan(const ScanWeights& weights, TensorView v, absl::Span<const Row> rows,
                          PoolView state) {
  const auto& w = AsMetered(weights);
  int longest = 0;
  for (const Row& row : rows) longest = std::max(longest, row.num_tokens());
  Run("scan",
      {.bytes = 2 * Elements(v) * kFloat +
                2 * static_cast<double>(rows.size()) * static_cast<double>(w.facts.state_bytes),
       .operations = 5 * Elements(v),
       .chain = 3.0 * longest},
      [&](Backend& inner) { inner.Scan(*w.inner, v, rows, state); });
}

void MeteredBackend::AddScaled(TensorView x, TensorView gain, TensorView y) {
  Run("add scaled",
      {.bytes = (Elements(x) + 2 * Elements(y)) * kFloat, .operations = 2 * Elements(y)},
      [&](Backend& inner) { inner.AddScaled(x, gain, y); });
}
void MeteredBackend::Multiply(TensorView x, TensorView y) {
  Run("multiply", {.bytes = 3 * Elements(y) * kFloat, .operations = Elements(y)},
      [&](Backend& inner) { inner.Multiply(x, y); });
}
void MeteredBackend::AddTable(TensorView table, TensorView x) {
  Run("add table", {.bytes = 2 * Elements(x) * kFloat, .operations = Elements(x)},
      [&](Backend& inner) { inner.AddTable(table, x); });
}
void MeteredBackend::Interpolate(TensorView s, TensorView gate, TensorView z) {
  Run("interpolate", {.bytes = 3 * Elements(z) * kFloat, .operations = 4 * Elements(z)},
      [&](Backend& inner) { inner.Interpolate(s, gate, z); });
}
void MeteredBackend::GatherRows(TensorView x, absl::Span<const int> indices, TensorView out) {
  Run("gather rows", {.bytes = 2 * Elements(out) * kFloat},
      [&](Backend& inner) { inner.GatherRows(x, indices, out); });
}
void MeteredBackend::TargetLogprobs(TensorView logits, absl::Span<const TokenId> targets,
                                    absl::Span<float> logprobs) {
  Run("target logprobs", {.bytes = Elements(logits) * kFloat, .operations = 2 * Elements(logits)},
      [&](Backend& inner) { inner.TargetLogprobs(logits, targets, logprobs); });
}

size_t MeteredBackend::SamplingStateBytes(int vocab_size) const {
  if (inner_ != nullptr) return inner_->SamplingStateBytes(vocab_size);
  return static_cast<size_t>(vocab_size) * 2 * sizeof(float);  // a count and a bias
}
absl::Status MeteredBackend::ReserveSampling(int vocab_size, int max_draws) {
  allocated_bytes_ += static_cast<size_t>(max_draws) * SamplingScratchBytes(vocab_size);
  return inner_ == nullptr ? absl::OkStatus() : inner_->ReserveSampling(vocab_size, max_draws);
}
void MeteredBackend::SetSamplingState(PoolView state, SlotId slot, absl::Span<const TokenId> prompt,
                                      absl::Span<const TokenBias> biases) {
  if (inner_ != nullptr) inner_->SetSamplingState(state, slot, prompt, biases);
}
void MeteredBackend::SampleTokens(TensorView logits, absl::Span<const TokenDraw> draws,
                                  PoolView state, absl::Span<DrawResult> results,
                                  absl::Span<TokenLogit> top) {
  double row_bytes = 0;
  for (const TokenDraw& draw : draws) row_bytes += draw.state.has_value() ? 3 * kFloat : kFloat;
  const double blocks = Columns(logits) / static_cast<double>(kSumBlock);
  // A maximum, two weights and two sums. All draws side by side: of one draw two sums over the
  // blocks, a walk to the token's block, and one within it.
  Run("sample",
      {.bytes = row_bytes * Columns(logits),
       .operations = 5 * static_cast<double>(draws.size()) * Columns(logits),
       .chain = 3 * blocks + static_cast<double>(kSumBlock)},
      [&](Backend& inner) { inner.SampleTokens(logits, draws, state, results, top); });
}

}  // namespace bst
