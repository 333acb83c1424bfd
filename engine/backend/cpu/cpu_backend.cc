#include "engine/backend/cpu/cpu_backend.h"

#include <sched.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <system_error>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/backend/cpu/cpu_attention.h"
#include "engine/backend/cpu/cpu_context.h"
#include "engine/backend/cpu/cpu_context_attention.h"
#include "engine/backend/cpu/cpu_convolution.h"
#include "engine/backend/cpu/cpu_dplr.h"
#include "engine/backend/cpu/cpu_head_projection.h"
#include "engine/backend/cpu/cpu_linear.h"
#include "engine/backend/cpu/cpu_scan.h"
#include "engine/backend/cpu/cpu_sequence.h"
#include "engine/backend/cpu/cpu_ssm.h"
#include "engine/backend/cpu/self_check.h"
#include "engine/base/log.h"
#include "engine/tensor/host_convert.h"

namespace bst {
namespace {

class CpuEmbedding : public EmbeddingWeights {
 public:
  static absl::StatusOr<std::unique_ptr<CpuEmbedding>> Pack(TensorView table, DType type) {
    BST_ASSIGN_OR_RETURN(
        Buffer buffer,
        Buffer::Allocate(static_cast<size_t>(table.shape().num_elements()) * SizeOf(type)));
    const TensorView packed = buffer.View(type, table.shape());
    for (int64_t i = 0; i < table.shape().num_elements(); ++i) {
      const float x = ElementAsFloat(table, i);
      if (type == DType::kBF16) {
        packed.as<BFloat16>()[i] = ToBFloat16(x);
      } else {
        packed.as<float>()[i] = x;
      }
    }
    return std::unique_ptr<CpuEmbedding>(new CpuEmbedding(std::move(buffer), packed));
  }
  const TensorView& table() const { return table_; }
  size_t bytes() const override { return buffer_.bytes(); }

 private:
  CpuEmbedding(Buffer buffer, TensorView table) : buffer_(std::move(buffer)), table_(table) {}
  Buffer buffer_;
  TensorView table_;  // [V, D]
};

// Rows of an elementwise operator that one task takes: enough that handing it out costs nothing.
constexpr int64_t kTaskElements = 16'384;

class CpuBackend : public Backend {
 public:
  CpuBackend(std::string_view isa, const CpuKernels& kernels, int threads)
      : isa_(isa), context_(kernels, threads) {}

  std::string name() const override {
    return absl::StrCat("cpu (", isa_, ", ", num_threads(),
                        num_threads() == 1 ? " thread)" : " threads)");
  }
  int num_threads() const override { return num_threads_; }
  bool HasInt8() const override { return true; }
  bool PacksHeads() const override {
    return kernels().write_pairs != nullptr || kernels().write_bytes != nullptr;
  }

  size_t AvailableBytes() const override { return Buffer::AvailableBytes(); }
  absl::StatusOr<Buffer> Allocate(size_t bytes) override { return Buffer::Allocate(bytes); }

  absl::StatusOr<std::unique_ptr<EmbeddingWeights>> PackEmbedding(TensorView table,
                                                                  DType type) override {
    return CpuEmbedding::Pack(table, type);
  }
  absl::StatusOr<std::unique_ptr<LinearWeights>> PackLinear(absl::Span<const TensorView> parts,
                                                            DType type) override {
    return CpuLinear::Pack(context_, parts, type);
  }
  absl::StatusOr<std::unique_ptr<AttentionWeights>> PackAttention(
      const AttentionParameters& parameters) override {
    return CpuAttention::Pack(context_, parameters);
  }
  absl::StatusOr<std::unique_ptr<ContextWeights>> PackContextAttention(
      const ContextParameters& parameters) override {
    return CpuContextAttention::Pack(context_, parameters);
  }
  absl::StatusOr<std::unique_ptr<SsmWeights>> PackSsm(const SsmParameters& parameters) override {
    return PackCpuSsm(context_, parameters);
  }
  absl::StatusOr<std::unique_ptr<SsmWeights>> PackDplr(const DplrParameters& parameters) override {
    return PackCpuDplr(context_, parameters);
  }
  absl::StatusOr<std::unique_ptr<SsmWeights>> PackConvolution(
      const ConvolutionParameters& parameters) override {
    return PackCpuConvolution(context_, parameters);
  }
  absl::StatusOr<std::unique_ptr<ScanWeights>> PackScan(TensorView a_minus_one) override {
    return CpuScan::Pack(a_minus_one);
  }
  absl::StatusOr<Buffer> PackVector(TensorView vector) override {
    const std::vector<float> values = ToFloats(vector);
    BST_ASSIGN_OR_RETURN(Buffer buffer, Buffer::Allocate(values.size() * sizeof(float)));
    std::memcpy(buffer.data(), values.data(), values.size() * sizeof(float));
    return buffer;
  }

  size_t RingBytes(const AttentionSpec& spec) const override {
    return CpuAttention::RingBytes(context_, spec);
  }
  size_t ContextBytes(const ContextSpec& spec) const override {
    return CpuContextAttention::ContextBytes(context_, spec);
  }
  size_t SsmStateBytes(const SsmWeights& weights) const override {
    return dynamic_cast<const CpuSequence&>(weights).state_bytes();
  }
  size_t ScanStateBytes(const ScanWeights& weights) const override {
    return dynamic_cast<const CpuScan&>(weights).state_bytes();
  }
  void ClearSlot(PoolView pool, SlotId slot) override {
    std::memset(pool.slot<std::byte>(slot), 0, pool.slot_bytes);
  }
  void CopySlot(PoolView from, SlotId from_slot, PoolView to, SlotId to_slot) override {
    std::memcpy(to.slot<std::byte>(to_slot), from.slot<std::byte>(from_slot),
                std::min(from.slot_bytes, to.slot_bytes));
  }

  void Embed(const EmbeddingWeights& weights, absl::Span<const TokenId> tokens,
             TensorView out) override {
    const TensorView& table = dynamic_cast<const CpuEmbedding&>(weights).table();
    const int64_t dim = table.dim(1);
    BST_CHECK_SHAPE(out, {static_cast<int64_t>(tokens.size()), dim});
    ForEachRow(out.dim(0), dim, [&](int64_t t) {
      const int32_t token = tokens[static_cast<size_t>(t)].value();
      float* row = out.row<float>(t);
      if (table.dtype() == DType::kBF16) {
        const BFloat16* from = table.row<BFloat16>(token);
        for (int64_t i = 0; i < dim; ++i) row[i] = ToFloat(from[i]);
      } else {
        std::memcpy(row, table.row<float>(token), static_cast<size_t>(dim) * sizeof(float));
      }
    });
  }

  void RmsNorm(TensorView x, TensorView gain, float epsilon, TensorView out) override {
    BST_CHECK_SHAPE(gain, {x.dim(1)});
    BST_CHECK_SHAPE(out, {x.dim(0), x.dim(1)});
    ForEachRow(x.dim(0), x.dim(1), [&](int64_t t) {
      kernels().rms_norm(x.row<float>(t), gain.as<float>(), epsilon, static_cast<int>(x.dim(1)),
                         out.row<float>(t));
    });
  }

  void Linear(TensorView x, const LinearWeights& weights, const LinearOptions& options,
              TensorView out) override {
    dynamic_cast<const CpuLinear&>(weights).Run(context_, x, options, out);
  }

  void FeedForward(TensorView x, TensorView gain, float epsilon, const LinearWeights& up,
                   LinearEpilogue act, const LinearWeights& down, TensorView normed,
                   TensorView hidden) override {
    const bool done =
        CpuLinear::RunFeedForward(context_, x, gain, epsilon, dynamic_cast<const CpuLinear&>(up),
                                  act, dynamic_cast<const CpuLinear&>(down));
    if (!done) Backend::FeedForward(x, gain, epsilon, up, act, down, normed, hidden);
  }

  void Gate(TensorView x, GateActivation activation, TensorView out) override {
    BST_CHECK_SHAPE(x, {out.dim(0), 2 * out.dim(1)});
    const auto kernel =
        activation == GateActivation::kGelu ? kernels().gate_gelu : kernels().gate_silu;
    ForEachRow(x.dim(0), x.dim(1), [&](int64_t t) {
      kernel(x.row<float>(t), static_cast<int>(out.dim(1)), out.row<float>(t));
    });
  }

  void NormalizeHeads(TensorView x, int head_dim, TensorView rotary) override {
    CheckHeads(x, head_dim, rotary);
    ForEachRow(x.dim(0), x.dim(1), [&](int64_t t) { NormalizeRow(x, head_dim, rotary, t); });
  }

  void ProjectHeads(TensorView x, TensorView gain, float epsilon, const LinearWeights& weights,
                    const HeadOptions& options, TensorView normed, TensorView heads) override {
    const TensorView first = heads.Columns(0, options.normalized);
    if (options.normalized > 0) CheckHeads(first, options.head_dim, options.rotary);
    const bool done = dynamic_cast<const CpuLinear&>(weights).RunNormed(
        context_, x, gain, epsilon, options.normalized,
        [&](int64_t t) { NormalizeRow(first, options.head_dim, options.rotary, t); }, heads);
    if (!done) Backend::ProjectHeads(x, gain, epsilon, weights, options, normed, heads);
  }

  ProjectedHeads ProjectAttention(TensorView x, TensorView gain, float epsilon,
                                  const LinearWeights& weights, const HeadOptions& options,
                                  const AttentionWeights& attention, absl::Span<const Row> rows,
                                  PoolView ring, TensorView normed, TensorView heads,
                                  TensorView others) override {
    const auto& layer = dynamic_cast<const CpuLinear&>(weights);
    const auto& self = dynamic_cast<const CpuAttention&>(attention);
    const int64_t a = int64_t{self.spec().num_heads} * self.spec().head_dim;
    BST_CHECK_SHAPE(heads, {x.dim(0), weights.out_features()});
    BST_CHECK(options.normalized == 0 || options.normalized == 2 * a, options.normalized,
              " columns to normalise, q and k have ", 2 * a);
    if (options.normalized > 0)
      CheckHeads(heads.Columns(0, 2 * a), self.spec().head_dim, options.rotary);
    const HeadProjection projection(context_, layer, self, heads);
    packed_rows_.clear();
    for (const Row& row : rows) packed_rows_.push_back(projection.Packs(row));
    if (std::find(packed_rows_.begin(), packed_rows_.end(), 1) == packed_rows_.end()) {
      return Backend::ProjectAttention(x, gain, epsilon, weights, options, attention, rows, ring,
                                       normed, heads, others);
    }
    if (heads.dim(1) > 3 * a) BST_CHECK_SHAPE(others, {x.dim(0), heads.dim(1) - 3 * a});
    ProjectedHeads projected = {.q = heads.Columns(0, a),
                                .k = heads.Columns(a, 2 * a),
                                .v = heads.Columns(2 * a, 3 * a),
                                .others = others,
                                .packed = packed_rows_};
    int begin = 0;  // of the rows before that are not packed
    const auto project_rows = [&](int end) {
      if (begin == end) return;
      HeadOptions of_rows = options;
      if (!options.rotary.empty()) of_rows.rotary = options.rotary.Rows(begin, end);
      ProjectHeads(x.Rows(begin, end), gain, epsilon, weights, of_rows, normed.Rows(begin, end),
                   heads.Rows(begin, end));
      for (int t = begin; t < end && !others.empty(); ++t) {
        std::memcpy(others.row<float>(t), heads.row<float>(t) + 3 * a,
                    static_cast<size_t>(others.dim(1)) * sizeof(float));
      }
    };
    for (size_t r = 0; r < rows.size(); ++r) {
      if (packed_rows_[r] == 0) continue;
      project_rows(rows[r].begin);
      projection.Project(rows[r], x, gain, epsilon, options, ring, others);
      begin = rows[r].end;
    }
    project_rows(static_cast<int>(x.dim(0)));
    return projected;
  }

  void ProjectedAttention(const AttentionWeights& weights, const ProjectedHeads& heads,
                          absl::Span<const Row> rows, PoolView ring, TensorView out) override {
    if (heads.packed.empty()) {
      return Backend::ProjectedAttention(weights, heads, rows, ring, out);
    }
    const auto& self = dynamic_cast<const CpuAttention&>(weights);
    other_rows_.clear();
    for (size_t r = 0; r < rows.size(); ++r) {
      if (heads.packed[r] == 0) {
        other_rows_.push_back(rows[r]);
      } else {
        self.RunPacked(context_, HeadProjection::PackedIn(context_, self, rows[r], heads.q), ring,
                       out);
      }
    }
    if (!other_rows_.empty()) Attention(weights, heads.q, heads.k, heads.v, other_rows_, ring, out);
  }

  void RotaryTable(absl::Span<const Row> rows, double theta, TensorView table) override {
    const int64_t half = table.dim(1) / 2;
    if (frequencies_theta_ != theta || static_cast<int64_t>(frequencies_.size()) != half) {
      frequencies_.resize(static_cast<size_t>(half));  // once per model: these are fixed by it
      for (int64_t j = 0; j < half; ++j) {
        frequencies_[static_cast<size_t>(j)] =
            std::pow(theta, -2.0 * static_cast<double>(j) / static_cast<double>(2 * half));
      }
      frequencies_theta_ = theta;
    }
    for (const Row& row : rows) {
      ForEachRow(row.num_tokens(), 16 * table.dim(1), [&](int64_t i) {
        float* out = table.row<float>(row.begin + i);
        for (int64_t j = 0; j < half; ++j) {
          const double angle =
              static_cast<double>(row.position + i) * frequencies_[static_cast<size_t>(j)];
          out[j] = static_cast<float>(std::cos(angle));
          out[half + j] = static_cast<float>(std::sin(angle));
        }
      });
    }
  }

  void Rotate(TensorView x, int head_dim, TensorView table) override {
    BST_CHECK_SHAPE(table, {x.dim(0), head_dim});
    ForEachRow(x.dim(0), x.dim(1), [&](int64_t t) { RotateRow(x, head_dim, table, t); });
  }

  void Attention(const AttentionWeights& weights, TensorView q, TensorView k, TensorView v,
                 absl::Span<const Row> rows, PoolView ring, TensorView out) override {
    dynamic_cast<const CpuAttention&>(weights).Run(context_, q, k, v, rows, ring, out, segments_);
  }

  void StoreContext(const ContextWeights& weights, TensorView k, TensorView v,
                    absl::Span<const ContextRows> rows, PoolView contexts) override {
    dynamic_cast<const CpuContextAttention&>(weights).Store(context_, k, v, rows, contexts);
  }

  void ContextAttention(const ContextWeights& weights, TensorView q,
                        absl::Span<const ContextUse> uses, TensorView out) override {
    dynamic_cast<const CpuContextAttention&>(weights).Attend(context_, q, uses, out);
  }

  void Ssm(const SsmWeights& weights, TensorView u, absl::Span<const Row> rows, PoolView state,
           TensorView y) override {
    dynamic_cast<const CpuSequence&>(weights).Run(context_, u, rows, state, y);
  }

  void Scan(const ScanWeights& weights, TensorView v, absl::Span<const Row> rows,
            PoolView state) override {
    dynamic_cast<const CpuScan&>(weights).Run(context_, v, rows, state);
  }

  void AddScaled(TensorView x, TensorView gain, TensorView y) override {
    const int64_t inputs = x.dim(1), filters = y.dim(1) / inputs;
    BST_CHECK_SHAPE(y, {x.dim(0), filters * inputs});
    BST_CHECK_SHAPE(gain, {filters * inputs});
    ForEachRow(x.dim(0), y.dim(1), [&](int64_t t) {
      for (int64_t c = 0; c < y.dim(1); c += inputs) {
        kernels().add_scaled(x.row<float>(t), gain.as<float>() + c, static_cast<int>(inputs),
                             y.row<float>(t) + c);
      }
    });
  }

  void Multiply(TensorView x, TensorView y) override {
    BST_CHECK_SHAPE(y, {x.dim(0), x.dim(1)});
    ForEachRow(x.dim(0), x.dim(1), [&](int64_t t) {
      kernels().multiply(x.row<float>(t), static_cast<int>(x.dim(1)), y.row<float>(t));
    });
  }

  void AddTable(TensorView table, TensorView x) override {
    const int64_t size = table.dim(0);
    BST_CHECK_SHAPE(table, {size, x.dim(1)});
    BST_CHECK(x.dim(0) % size == 0, x.dim(0), " rows, ", size, " in the table");
    ForEachRow(x.dim(0), x.dim(1), [&](int64_t i) {
      kernels().add(table.row<float>(i % size), static_cast<int>(x.dim(1)), x.row<float>(i));
    });
  }

  void Interpolate(TensorView s, TensorView gate, TensorView z) override {
    BST_CHECK_SHAPE(z, {s.dim(0), s.dim(1)});
    BST_CHECK_SHAPE(gate, {s.dim(1)});
    ForEachRow(s.dim(0), s.dim(1), [&](int64_t i) {
      kernels().interpolate(s.row<float>(i), gate.as<float>(), static_cast<int>(s.dim(1)),
                            z.row<float>(i));
    });
  }

  void GatherRows(TensorView x, absl::Span<const int> indices, TensorView out) override {
    BST_CHECK_SHAPE(out, {static_cast<int64_t>(indices.size()), x.dim(1)});
    for (size_t i = 0; i < indices.size(); ++i) {
      std::memcpy(out.row<float>(static_cast<int64_t>(i)), x.row<float>(indices[i]),
                  static_cast<size_t>(x.dim(1)) * sizeof(float));
    }
  }

  void TargetLogprobs(TensorView logits, absl::Span<const TokenId> targets,
                      absl::Span<float> logprobs) override {
    BST_CHECK(static_cast<size_t>(logits.dim(0)) == targets.size() &&
              targets.size() == logprobs.size());
    ForEachRow(logits.dim(0), 16 * logits.dim(1), [&](int64_t i) {
      const float* row = logits.row<float>(i);
      const double sum = kernels().log_sum_exp(row, static_cast<int>(logits.dim(1)));
      const auto index = static_cast<size_t>(i);
      logprobs[index] = static_cast<float>(static_cast<double>(row[targets[index].value()]) - sum);
    });
  }

  absl::Status Sync() override { return absl::OkStatus(); }

 private:
  static void CheckHeads(TensorView x, int head_dim, TensorView rotary) {
    BST_CHECK(x.dim(1) % head_dim == 0, x.dim(1), " columns in heads of ", head_dim);
    if (rotary.empty()) return;
    BST_CHECK(head_dim % 2 == 0, "heads of ", head_dim, " cannot be rotated");
    BST_CHECK_SHAPE(rotary, {x.dim(0), head_dim});
  }
  void NormalizeRow(TensorView x, int head_dim, TensorView rotary, int64_t t) const {
    kernels().normalize_heads(x.row<float>(t), static_cast<int>(x.dim(1) / head_dim), head_dim);
    if (!rotary.empty()) RotateRow(x, head_dim, rotary, t);
  }
  void RotateRow(TensorView x, int head_dim, TensorView table, int64_t t) const {
    const int64_t half = head_dim / 2;
    const float* cosines = table.row<float>(t);
    for (int64_t h = 0; h < x.dim(1); h += head_dim) {
      kernels().rotate(cosines, cosines + half, static_cast<int>(half), x.row<float>(t) + h);
    }
  }

  const CpuKernels& kernels() const { return context_.kernels(); }

  // body(row) for each row; `row_cost` in elements decides how many rows make a task.
  template <typename Body>
  void ForEachRow(int64_t rows, int64_t row_cost, const Body& body) {
    const int64_t step = std::max<int64_t>(1, kTaskElements / std::max<int64_t>(1, row_cost));
    context_.pool().Run(static_cast<int>((rows + step - 1) / step), [&](int index, int) {
      for (int64_t t = index * step; t < std::min(rows, (index + 1) * step); ++t) body(t);
    });
  }

  std::string isa_;
  CpuContext context_;
  int num_threads_ = context_.pool().num_threads();
  std::vector<CpuAttention::Segment> segments_;
  std::vector<uint8_t> packed_rows_;  // of the last ProjectAttention
  std::vector<Row> other_rows_;
  std::vector<double> frequencies_;  // of the rotary angles, for frequencies_theta_
  double frequencies_theta_ = 0;
};

// The backend on AMX tiles, if it computes what the emulation computes.
absl::StatusOr<std::unique_ptr<Backend>> MakeAmxBackend(int threads) {
  auto tiles = std::make_unique<CpuBackend>(Name(CpuIsa::kAmx), AmxKernels(), threads);
  CpuBackend emulation("amx emulated", EmulatedAmxKernels(), 1);
  BST_ASSIGN_OR_RETURN(const std::vector<float> values, SelfCheckValues(*tiles));
  BST_ASSIGN_OR_RETURN(const std::vector<float> expected, SelfCheckValues(emulation));
  if (!AreAlike(values, expected)) return absl::InternalError("the tiles compute something else");
  return tiles;
}

int ProcessorsOfThisProcess() {
  cpu_set_t set;
  if (::sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

}  // namespace

absl::StatusOr<std::unique_ptr<Backend>> MakeCpuBackend(const CpuOptions& options) {
  if (options.threads < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("threads is ", options.threads, "; it must be 0 (all) or more"));
  }
  const int threads = options.threads == 0 ? ProcessorsOfThisProcess() : options.threads;
  const CpuIsa best = DetectCpuIsa();
  CpuIsa isa = options.isa.value_or(best);
  if (options.emulate_amx) isa = CpuIsa::kAvx512;
  if (isa == CpuIsa::kNone || !(options.assume_isa || Supports(best, isa))) {
    return absl::UnimplementedError(absl::StrCat(
        "the cpu backend needs a processor with AVX2 and FMA (asked for ", std::string(Name(isa)),
        ", found ", std::string(Name(best)), "); use the reference backend"));
  }
  try {
    if (options.emulate_amx)
      return std::make_unique<CpuBackend>("amx emulated", EmulatedAmxKernels(), threads);
    switch (isa) {
      case CpuIsa::kAmx: {
        if (!options.self_check)
          return std::make_unique<CpuBackend>(Name(isa), AmxKernels(), threads);
        absl::StatusOr<std::unique_ptr<Backend>> backend = MakeAmxBackend(threads);
        if (backend.ok()) return backend;
        Log(LogLevel::kError, "amx_self_check_failed",
            {{"reason", backend.status().ToString()}, {"fallback", "avx512vnni"}});
        [[fallthrough]];
      }
      case CpuIsa::kAvx512Vnni:
        return std::make_unique<CpuBackend>(Name(CpuIsa::kAvx512Vnni), Avx512VnniKernels(),
                                            threads);
      case CpuIsa::kAvx512Bf16:
        return std::make_unique<CpuBackend>(Name(isa), Avx512Bf16Kernels(), threads);
      case CpuIsa::kAvx512:
        return std::make_unique<CpuBackend>(Name(isa), Avx512Kernels(), threads);
      default:
        return std::make_unique<CpuBackend>(Name(isa), Avx2Kernels(), threads);
    }
  } catch (const std::system_error& error) {
    return absl::ResourceExhaustedError(
        absl::StrCat("cannot start ", threads, " threads: ", error.what()));
  }
}

}  // namespace bst
