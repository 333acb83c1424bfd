#include "engine/checkpoint/tensor_schema.h"

#include <utility>

#include "absl/strings/str_cat.h"

namespace bst {
namespace {

enum class Precision { kAny, kF32Only };
enum class Presence { kRequired, kOptional };

class SchemaBuilder {
 public:
  explicit SchemaBuilder(const ModelConfig& config) : config_(config) {}

  std::vector<TensorSpec> Build() && {
    const int64_t vocab = config_.vocab_size;
    Add("embed.weight", {vocab, hidden_}, TensorRole::kEmbedding);
    for (size_t i = 0; i < config_.layers.size(); ++i) AddLayer(static_cast<int>(i));
    Add("final_norm.weight", {hidden_}, TensorRole::kNormGain);
    if (!config_.tie_embeddings) Add("lm_head.weight", {vocab, hidden_}, TensorRole::kEmbedding);
    return std::move(specs_);
  }

 private:
  void Add(std::string name, Shape shape, TensorRole role, Precision precision = Precision::kAny,
           Presence presence = Presence::kRequired) {
    specs_.push_back({std::move(name), shape, role, precision == Precision::kF32Only,
                      presence == Presence::kOptional});
  }

  void AddLayer(int n) {
    const auto name = [n](std::string_view suffix) { return LayerTensorName(n, suffix); };
    const bool is_bst = config_.layers[static_cast<size_t>(n)].type == LayerType::kBst;
    const AttentionConfig& attention = config_.attention;
    const int64_t heads = config_.num_heads;
    const int64_t inner = config_.attention_size();
    const int64_t ffn = config_.ffn_size;

    Add(name("attn_norm.weight"), {hidden_}, TensorRole::kNormGain);
    for (const char* projection :
         {"attn.q_proj.weight", "attn.k_proj.weight", "attn.v_proj.weight"}) {
      Add(name(projection), {inner, hidden_}, TensorRole::kMatrix);
    }
    if (attention.qk_norm) {
      Add(name("attn.scale"), {heads}, TensorRole::kAttentionScale, Precision::kF32Only);
    }
    if (attention.position == PositionKind::kT5) {
      Add(name("attn.position_bias"), {heads, attention.t5_num_buckets}, TensorRole::kPositionBias,
          Precision::kF32Only);
    }
    if (is_bst) AddContext(n);
    Add(name("attn.o_proj.weight"), {hidden_, is_bst ? 2 * inner : inner},
        TensorRole::kOutputMatrix);

    Add(name("ffn_norm.weight"), {hidden_}, TensorRole::kNormGain);
    if (config_.ffn_activation == Activation::kGeglu ||
        config_.ffn_activation == Activation::kSwiglu) {
      Add(name("ffn.gate_proj.weight"), {ffn, hidden_}, TensorRole::kMatrix);
    }
    Add(name("ffn.up_proj.weight"), {ffn, hidden_}, TensorRole::kMatrix);
    Add(name("ffn.down_proj.weight"), {hidden_, ffn}, TensorRole::kOutputMatrix);
  }

  // The state-space model and the cross-attention of a bst layer with single-head context: one
  // filter per feature.
  void AddContext(int n) {
    const auto name = [n](std::string_view suffix) { return LayerTensorName(n, suffix); };
    constexpr auto kF32Only = Precision::kF32Only;
    const int64_t filters = 1;
    const int64_t pairs = config_.layers[static_cast<size_t>(n)].ssm.state_size / 2;
    const int64_t inner = config_.attention_size();

    Add(name("ssm_norm.weight"), {hidden_}, TensorRole::kNormGain);
    Add(name("ssm.log_dt"), {filters, hidden_}, TensorRole::kSsmLogDt, kF32Only);
    Add(name("ssm.log_neg_a_real"), {filters, hidden_, pairs}, TensorRole::kSsmLogNegAReal,
        kF32Only);
    Add(name("ssm.a_imag"), {filters, hidden_, pairs}, TensorRole::kSsmAImag, kF32Only);
    Add(name("ssm.b"), {filters, hidden_, pairs, 2}, TensorRole::kSsmB, kF32Only,
        Presence::kOptional);
    Add(name("ssm.c"), {filters, hidden_, pairs, 2}, TensorRole::kSsmC, kF32Only);
    Add(name("ssm.d"), {filters, hidden_}, TensorRole::kSsmD, kF32Only);
    Add(name("cross.norm.weight"), {hidden_}, TensorRole::kNormGain);
    for (const char* projection :
         {"cross.q_proj.weight", "cross.k_proj.weight", "cross.v_proj.weight"}) {
      Add(name(projection), {inner, hidden_}, TensorRole::kMatrix);
    }
    if (config_.attention.qk_norm) {
      Add(name("cross.scale"), {config_.num_heads}, TensorRole::kAttentionScale, kF32Only);
    }
  }

  const ModelConfig& config_;
  const int64_t hidden_ = config_.hidden_size;
  std::vector<TensorSpec> specs_;
};

}  // namespace

std::vector<TensorSpec> TensorSchema(const ModelConfig& config) {
  return SchemaBuilder(config).Build();
}

std::string LayerTensorName(int layer, std::string_view suffix) {
  return absl::StrCat("layers.", layer, ".", std::string(suffix));
}

}  // namespace bst
