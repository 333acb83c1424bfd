#include "engine/backend/reference/reference_backend.h"

#include <cmath>
#include <complex>
#include <cstring>
#include <vector>

#include "engine/backend/int8.h"
#include "engine/backend/reference/reference_context_attention.h"
#include "engine/backend/reference/reference_convolution.h"
#include "engine/backend/reference/reference_key_values.h"
#include "engine/backend/reference/reference_recurrence.h"
#include "engine/backend/reference/reference_sequence.h"
#include "engine/base/status_macros.h"
#include "engine/tensor/host_convert.h"

namespace bst {
namespace {

float Round(float x, DType type) { return type == DType::kBF16 ? ToFloat(ToBFloat16(x)) : x; }

class ReferenceEmbedding : public EmbeddingWeights {
 public:
  ReferenceEmbedding(std::vector<float> table, int64_t dim) : table_(std::move(table)), dim_(dim) {}
  const float* row(TokenId token) const { return table_.data() + token.value() * dim_; }
  int64_t dim() const { return dim_; }
  size_t bytes() const override { return table_.size() * sizeof(float); }

 private:
  std::vector<float> table_;  // [V, D]
  int64_t dim_;
};

class ReferenceLinear : public LinearWeights {
 public:
  ReferenceLinear(std::vector<float> weights, DType type, int in, int out)
      : LinearWeights(in, out), weights_(std::move(weights)), type_(type) {
    if (type_ == DType::kI8 && in > kMaxInt8Inputs) type_ = DType::kBF16;
    if (type_ == DType::kI8) {
      std::vector<int8_t> bytes(static_cast<size_t>(in));
      for (int o = 0; o < out; ++o) {
        float* row = weights_.data() + int64_t{o} * in;
        scales_.push_back(QuantizeSymmetric({row, bytes.size()}, bytes.data()));
        std::copy(bytes.begin(), bytes.end(), row);
      }
    } else {
      for (float& x : weights_) x = Round(x, type_);
    }
  }
  const float* row(int64_t i) const { return weights_.data() + i * in_features(); }
  float scale(int64_t i) const { return scales_[static_cast<size_t>(i)]; }
  DType type() const { return type_; }
  size_t bytes() const override { return (weights_.size() + scales_.size()) * sizeof(float); }

 private:
  std::vector<float> weights_;  // [out, in], already rounded to type_; I8: the integers
  std::vector<float> scales_;   // I8: [out]
  DType type_;
};

class ReferenceAttention : public AttentionWeights {
 public:
  explicit ReferenceAttention(const AttentionParameters& p)
      : AttentionWeights(p.spec),
        scale_(ToFloats(p.scale)),
        bias_(p.bias.empty() ? std::vector<float>() : ToFloats(p.bias)) {}
  float scale(int head) const { return scale_[static_cast<size_t>(head)]; }
  float bias(int head, int64_t distance) const {
    return bias_.empty() ? 0.0f : bias_[static_cast<size_t>(head * (spec().window + 1) + distance)];
  }
  size_t bytes() const override { return (scale_.size() + bias_.size()) * sizeof(float); }

 private:
  std::vector<float> scale_;  // [H]
  std::vector<float> bias_;   // [H, W + 1]
};

double Gelu(double x) { return 0.5 * x * (1.0 + std::erf(x / std::sqrt(2.0))); }
double Silu(double x) { return x / (1.0 + std::exp(-x)); }

ReferenceKeyValues Ring(const AttentionSpec& spec, const std::byte* slot) {
  return {spec.window, spec.num_heads, spec.head_dim, spec.kv_type, slot};
}

class ReferenceBackend : public Backend {
 public:
  std::string name() const override { return "reference"; }
  int num_threads() const override { return 1; }
  bool HasInt8() const override { return true; }

  size_t AvailableBytes() const override { return Buffer::AvailableBytes(); }
  absl::StatusOr<Buffer> Allocate(size_t bytes) override { return Buffer::Allocate(bytes); }

  absl::StatusOr<std::unique_ptr<EmbeddingWeights>> PackEmbedding(TensorView table,
                                                                  DType type) override {
    std::vector<float> values = ToFloats(table);
    for (float& x : values) x = Round(x, type);
    return std::make_unique<ReferenceEmbedding>(std::move(values), table.dim(1));
  }

  absl::StatusOr<std::unique_ptr<LinearWeights>> PackLinear(absl::Span<const TensorView> parts,
                                                            DType type) override {
    std::vector<float> values;
    int out = 0;
    for (const TensorView& part : parts) {
      BST_CHECK(part.dim(1) == parts[0].dim(1), "stacked layers must share their inputs");
      const std::vector<float> rows = ToFloats(part);
      values.insert(values.end(), rows.begin(), rows.end());
      out += static_cast<int>(part.dim(0));
    }
    return std::make_unique<ReferenceLinear>(std::move(values), type,
                                             static_cast<int>(parts[0].dim(1)), out);
  }

  absl::StatusOr<std::unique_ptr<AttentionWeights>> PackAttention(
      const AttentionParameters& parameters) override {
    return std::make_unique<ReferenceAttention>(parameters);
  }

  absl::StatusOr<std::unique_ptr<ContextWeights>> PackContextAttention(
      const ContextParameters& parameters) override {
    return std::make_unique<ReferenceContextAttention>(parameters);
  }

  absl::StatusOr<std::unique_ptr<SsmWeights>> PackSsm(const SsmParameters& parameters) override {
    return PackReferenceSsm(parameters);
  }
  absl::StatusOr<std::unique_ptr<SsmWeights>> PackDplr(const DplrParameters& parameters) override {
    return PackReferenceDplr(parameters);
  }
  absl::StatusOr<std::unique_ptr<SsmWeights>> PackConvolution(
      const ConvolutionParameters& parameters) override {
    return std::make_unique<ReferenceConvolution>(parameters);
  }
  absl::StatusOr<std::unique_ptr<ScanWeights>> PackScan(TensorView a_minus_one) override {
    return std::make_unique<ReferenceScan>(a_minus_one);
  }

  absl::StatusOr<Buffer> PackVector(TensorView vector) override {
    const std::vector<float> values = ToFloats(vector);
    BST_ASSIGN_OR_RETURN(Buffer buffer, Allocate(values.size() * sizeof(float)));
    std::memcpy(buffer.data(), values.data(), values.size() * sizeof(float));
    return buffer;
  }

  size_t RingBytes(const AttentionSpec& spec) const override {
    return ReferenceKeyValues::Bytes(spec.window, spec.num_heads, spec.head_dim, spec.kv_type);
  }
  size_t ContextBytes(const ContextSpec& spec) const override {
    return ReferenceContextAttention::ContextBytes(spec);
  }
  size_t SsmStateBytes(const SsmWeights& weights) const override {
    return dynamic_cast<const ReferenceSequence&>(weights).state_bytes();
  }
  size_t ScanStateBytes(const ScanWeights& weights) const override {
    return dynamic_cast<const ReferenceScan&>(weights).state_bytes();
  }
  void ClearSlot(PoolView pool, SlotId slot) override {
    std::memset(pool.slot<std::byte>(slot), 0, pool.slot_bytes);
  }
  void CopySlot(PoolView from, SlotId from_slot, PoolView to, SlotId to_slot) override {
    std::memcpy(to.slot<std::byte>(to_slot), from.slot<std::byte>(from_slot),
                std::min(from.slot_bytes, to.slot_bytes));
  }

  void Embed(const EmbeddingWeights& table, absl::Span<const TokenId> tokens,
             TensorView out) override {
    const auto& w = dynamic_cast<const ReferenceEmbedding&>(table);
    BST_CHECK_SHAPE(out, {static_cast<int64_t>(tokens.size()), w.dim()});
    for (size_t t = 0; t < tokens.size(); ++t) {
      std::memcpy(out.row<float>(static_cast<int64_t>(t)), w.row(tokens[t]),
                  static_cast<size_t>(w.dim()) * sizeof(float));
    }
  }

  void RmsNorm(TensorView x, TensorView gain, float epsilon, TensorView out) override {
    const int64_t dim = x.dim(1);
    BST_CHECK_SHAPE(gain, {dim});
    BST_CHECK_SHAPE(out, {x.dim(0), dim});
    for (int64_t t = 0; t < x.dim(0); ++t) {
      const float* in = x.row<float>(t);
      double squares = 0;
      for (int64_t i = 0; i < dim; ++i) squares += double{in[i]} * in[i];
      const double factor = 1.0 / std::sqrt(squares / static_cast<double>(dim) + epsilon);
      for (int64_t i = 0; i < dim; ++i)
        out.row<float>(t)[i] = static_cast<float>(gain.as<float>()[i] * (in[i] * factor));
    }
  }

  void Linear(TensorView x, const LinearWeights& weights, const LinearOptions& options,
              TensorView out) override {
    const auto& w = dynamic_cast<const ReferenceLinear&>(weights);
    BST_CHECK(x.dim(1) == w.in_features(), "inputs ", x.dim(1), ", weights take ", w.in_features());
    BST_CHECK_SHAPE(out, {x.dim(0), w.out_features()});
    std::vector<float> input(static_cast<size_t>(w.in_features()));
    std::vector<uint8_t> bytes(input.size());
    for (int64_t t = 0; t < x.dim(0); ++t) {
      QuantizedRow quantized = {};
      if (w.type() == DType::kI8) {
        quantized = QuantizeInputs({x.row<float>(t), input.size()}, bytes.data());
        for (size_t i = 0; i < input.size(); ++i)
          input[i] = static_cast<float>(bytes[i] - quantized.zero);
      } else {
        for (size_t i = 0; i < input.size(); ++i) input[i] = Round(x.row<float>(t)[i], w.type());
      }
      for (int64_t o = 0; o < w.out_features(); ++o) {
        double sum = 0;
        for (size_t i = 0; i < input.size(); ++i) sum += double{input[i]} * w.row(o)[i];
        // Exact so far; the factors in float32, as every backend applies them.
        if (w.type() == DType::kI8)
          sum = double{static_cast<float>(sum) * quantized.scale * w.scale(o)};
        float& y = out.row<float>(t)[o];
        switch (options.epilogue) {
          case LinearEpilogue::kStore:
            y = static_cast<float>(options.scale * sum);
            break;
          case LinearEpilogue::kRelu:
            y = static_cast<float>(sum < 0 ? 0 : sum);  // NaN stays
            break;
          case LinearEpilogue::kGelu:
            y = static_cast<float>(Gelu(sum));
            break;
          case LinearEpilogue::kAdd:
            y = static_cast<float>(y + sum);
            break;
        }
      }
    }
  }

  void Gate(TensorView x, GateActivation activation, TensorView out) override {
    const int64_t width = out.dim(1);
    BST_CHECK_SHAPE(x, {out.dim(0), 2 * width});
    for (int64_t t = 0; t < x.dim(0); ++t) {
      const float* in = x.row<float>(t);
      for (int64_t f = 0; f < width; ++f) {
        const double gate = activation == GateActivation::kGelu ? Gelu(in[f]) : Silu(in[f]);
        out.row<float>(t)[f] = static_cast<float>(gate * in[width + f]);
      }
    }
  }

  void NormalizeHeads(TensorView x, int head_dim, TensorView rotary) override {
    BST_CHECK(x.dim(1) % head_dim == 0, x.dim(1), " columns in heads of ", head_dim);
    for (int64_t t = 0; t < x.dim(0); ++t) {
      for (int64_t h = 0; h < x.dim(1); h += head_dim) {
        float* v = x.row<float>(t) + h;
        double squares = 0;
        for (int64_t i = 0; i < head_dim; ++i) squares += double{v[i]} * v[i];
        const double factor = 1.0 / std::sqrt(squares + 1e-6);
        for (int64_t i = 0; i < head_dim; ++i) v[i] = static_cast<float>(v[i] * factor);
      }
    }
    if (!rotary.empty()) Rotate(x, head_dim, rotary);
  }

  void RotaryTable(absl::Span<const Row> rows, double theta, TensorView table) override {
    const int64_t half = table.dim(1) / 2;
    for (const Row& row : rows) {
      for (int t = row.begin; t < row.end; ++t) {
        const auto position = static_cast<double>(row.position + (t - row.begin));
        float* out = table.row<float>(t);
        for (int64_t j = 0; j < half; ++j) {
          const double frequency =
              std::exp(-std::log(theta) * static_cast<double>(j) / static_cast<double>(half));
          const std::complex<double> turn = std::polar(1.0, position * frequency);
          out[j] = static_cast<float>(turn.real());
          out[half + j] = static_cast<float>(turn.imag());
        }
      }
    }
  }

  void Rotate(TensorView x, int head_dim, TensorView table) override {
    BST_CHECK_SHAPE(table, {x.dim(0), head_dim});
    const int64_t half = head_dim / 2;
    for (int64_t t = 0; t < x.dim(0); ++t) {
      const float* cosines = table.row<float>(t);
      const float* sines = cosines + half;
      for (int64_t h = 0; h < x.dim(1); h += head_dim) {
        float* v = x.row<float>(t) + h;
        for (int64_t j = 0; j < half; ++j) {
          const std::complex<double> turned =
              std::complex<double>(v[j], v[j + half]) * std::complex<double>(cosines[j], sines[j]);
          v[j] = static_cast<float>(turned.real());
          v[j + half] = static_cast<float>(turned.imag());
        }
      }
    }
  }

  // One token after the other: write its key and value (after the attention when it does not see
  // itself), attend over the ring as it then is.
  void Attention(const AttentionWeights& weights, TensorView q, TensorView k, TensorView v,
                 absl::Span<const Row> rows, PoolView ring_pool, TensorView out) override {
    const auto& w = dynamic_cast<const ReferenceAttention&>(weights);
    const AttentionSpec& spec = w.spec();
    const int64_t window = spec.window;
    for (const Row& row : rows) {
      const ReferenceKeyValues ring = Ring(spec, ring_pool.slot<std::byte>(row.slot));
      for (int t = row.begin; t < row.end; ++t) {
        const int64_t position = row.position + (t - row.begin);
        if (spec.include_self) ring.Write(position % window, k.row<float>(t), v.row<float>(t));
        for (int head = 0; head < spec.num_heads; ++head) {
          Attend(w, ring, head, position, q.row<float>(t), out.row<float>(t));
        }
        if (!spec.include_self) ring.Write(position % window, k.row<float>(t), v.row<float>(t));
      }
    }
  }

  void StoreContext(const ContextWeights& weights, TensorView k, TensorView v,
                    absl::Span<const ContextRows> rows, PoolView contexts) override {
    dynamic_cast<const ReferenceContextAttention&>(weights).Store(k, v, rows, contexts);
  }

  void ContextAttention(const ContextWeights& weights, TensorView q,
                        absl::Span<const ContextUse> uses, TensorView out) override {
    dynamic_cast<const ReferenceContextAttention&>(weights).Attend(q, uses, out);
  }

  void Ssm(const SsmWeights& weights, TensorView u, absl::Span<const Row> rows, PoolView state,
           TensorView y) override {
    dynamic_cast<const ReferenceSequence&>(weights).Run(u, rows, state, y);
  }

  void Scan(const ScanWeights& weights, TensorView v, absl::Span<const Row> rows,
            PoolView state) override {
    dynamic_cast<const ReferenceScan&>(weights).Run(v, rows, state);
  }

  void AddScaled(TensorView x, TensorView gain, TensorView y) override {
    const int64_t inputs = x.dim(1);
    BST_CHECK_SHAPE(gain, {y.dim(1)});
    BST_CHECK(x.dim(0) == y.dim(0) && y.dim(1) % inputs == 0, y.dim(1), " of ", inputs, " inputs");
    for (int64_t t = 0; t < y.dim(0); ++t) {
      for (int64_t f = 0; f < y.dim(1); ++f) {
        float& sum = y.row<float>(t)[f];
        sum = static_cast<float>(sum + double{gain.as<float>()[f]} * x.row<float>(t)[f % inputs]);
      }
    }
  }

  void Multiply(TensorView x, TensorView y) override {
    BST_CHECK_SHAPE(y, {x.dim(0), x.dim(1)});
    for (int64_t t = 0; t < y.dim(0); ++t) {
      for (int64_t i = 0; i < y.dim(1); ++i) y.row<float>(t)[i] *= x.row<float>(t)[i];
    }
  }

  void AddTable(TensorView table, TensorView x) override {
    BST_CHECK_SHAPE(table, {table.dim(0), x.dim(1)});
    BST_CHECK(x.dim(0) % table.dim(0) == 0, x.dim(0), " rows, ", table.dim(0), " in the table");
    for (int64_t t = 0; t < x.dim(0); ++t) {
      for (int64_t i = 0; i < x.dim(1); ++i)
        x.row<float>(t)[i] += table.row<float>(t % table.dim(0))[i];
    }
  }

  void Interpolate(TensorView s, TensorView gate, TensorView z) override {
    BST_CHECK_SHAPE(z, {s.dim(0), s.dim(1)});
    BST_CHECK_SHAPE(gate, {s.dim(1)});
    for (int64_t t = 0; t < z.dim(0); ++t) {
      for (int64_t i = 0; i < z.dim(1); ++i) {
        const double g = gate.as<float>()[i];
        float& x = z.row<float>(t)[i];
        x = static_cast<float>(s.row<float>(t)[i] * g + x * (1 - g));
      }
    }
  }

  void GatherRows(TensorView x, absl::Span<const int> indices, TensorView out) override {
    for (size_t i = 0; i < indices.size(); ++i) {
      std::memcpy(out.row<float>(static_cast<int64_t>(i)), x.row<float>(indices[i]),
                  static_cast<size_t>(x.dim(1)) * sizeof(float));
    }
  }

  void TargetLogprobs(TensorView logits, absl::Span<const TokenId> targets,
                      absl::Span<float> logprobs) override {
    for (size_t i = 0; i < targets.size(); ++i) {
      const float* row = logits.row<float>(static_cast<int64_t>(i));
      double largest = row[0];
      for (int64_t v = 1; v < logits.dim(1); ++v) largest = std::max(largest, double{row[v]});
      double sum = 0;
      for (int64_t v = 0; v < logits.dim(1); ++v) sum += std::exp(row[v] - largest);
      logprobs[i] = static_cast<float>(row[targets[i].value()] - largest - std::log(sum));
    }
  }

  absl::Status Sync() override { return absl::OkStatus(); }

 private:
  // The output of one head for the query at `position`.
  static void Attend(const ReferenceAttention& w, const ReferenceKeyValues& ring, int head,
                     int64_t position, const float* q, float* out) {
    const AttentionSpec& spec = w.spec();
    const int64_t window = spec.window;
    const int64_t column = int64_t{head} * spec.head_dim;
    const int64_t nearest = spec.include_self ? 0 : 1;
    const int64_t farthest = nearest + window - 1;
    std::vector<double> scores;
    std::vector<int64_t> indices;
    for (int64_t distance = nearest; distance <= farthest; ++distance) {
      const int64_t key = position - distance;
      if (key < 0 && spec.empty_prefix == EmptyPrefix::kMasked) break;
      if (spec.scope == AttentionScope::kBlock && (key < 0 || key / window != position / window))
        break;
      const int64_t index = (key % window + window) % window;
      double dot = 0;
      for (int64_t i = 0; i < spec.head_dim; ++i)
        dot += double{q[column + i]} * ring.Key(index, column + i);
      scores.push_back((dot + w.bias(head, distance)) * w.scale(head));
      indices.push_back(index);
    }
    double largest = -1e300, sum = 0;
    for (const double s : scores) largest = std::max(largest, s);
    for (double& s : scores) sum += s = std::exp(s - largest);
    for (int64_t i = 0; i < spec.head_dim; ++i) {
      double o = 0;
      for (size_t j = 0; j < scores.size(); ++j)
        o += scores[j] / sum * ring.Value(indices[j], column + i);
      out[column + i] = static_cast<float>(o);
    }
  }
};

}  // namespace

std::unique_ptr<Backend> MakeReferenceBackend() { return std::make_unique<ReferenceBackend>(); }

}  // namespace bst
