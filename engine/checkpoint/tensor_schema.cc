#include "engine/checkpoint/tensor_schema.h"

#include <initializer_list>
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

  // A tensor of the layer being described.
  void AddToLayer(std::string_view suffix, Shape shape, TensorRole role,
                  Precision precision = Precision::kAny, Presence presence = Presence::kRequired) {
    Add(LayerTensorName(layer_number_, suffix), shape, role, precision, presence);
  }

  void AddLayer(int n) {
    layer_number_ = n;
    const LayerConfig& layer = config_.layers[static_cast<size_t>(n)];
    if (layer.type == LayerType::kGss) {
      AddGss(layer);
      return;
    }
    const AttentionConfig& attention = config_.attention;
    AddToLayer("attn_norm.weight", {hidden_}, TensorRole::kNormGain);
    AddProjections({"attn.q_proj.weight", "attn.k_proj.weight", "attn.v_proj.weight"});
    AddScale("attn.scale");
    if (attention.position == PositionKind::kT5) {
      AddToLayer("attn.position_bias", {config_.num_heads, attention.t5_num_buckets},
                 TensorRole::kPositionBias, Precision::kF32Only);
    }
    if (layer.type == LayerType::kBst) AddContext(layer);
    if (layer.type == LayerType::kBrect) AddRecurrence(layer);
    const bool has_cross_attention = layer.type != LayerType::kTransformer;
    AddToLayer("attn.o_proj.weight", {hidden_, has_cross_attention ? 2 * inner_ : inner_},
               TensorRole::kOutputMatrix);
    AddFeedForward();
  }

  void AddProjections(std::initializer_list<std::string_view> suffixes) {
    for (const std::string_view suffix : suffixes) {
      AddToLayer(suffix, {inner_, hidden_}, TensorRole::kMatrix);
    }
  }

  void AddScale(std::string_view suffix) {
    if (!config_.attention.qk_norm) return;
    AddToLayer(suffix, {config_.num_heads}, TensorRole::kAttentionScale, Precision::kF32Only);
  }

  void AddFeedForward() {
    const int64_t ffn = config_.ffn_size;
    AddToLayer("ffn_norm.weight", {hidden_}, TensorRole::kNormGain);
    if (config_.ffn_activation == Activation::kGeglu ||
        config_.ffn_activation == Activation::kSwiglu) {
      AddToLayer("ffn.gate_proj.weight", {ffn, hidden_}, TensorRole::kMatrix);
    }
    AddToLayer("ffn.up_proj.weight", {ffn, hidden_}, TensorRole::kMatrix);
    AddToLayer("ffn.down_proj.weight", {hidden_, ffn}, TensorRole::kOutputMatrix);
  }

  // The state-space model and the cross-attention of a bst layer.
  void AddContext(const LayerConfig& layer) {
    AddToLayer("ssm_norm.weight", {hidden_}, TensorRole::kNormGain);
    AddSsm(layer);
    AddToLayer("cross.norm.weight", {hidden_}, TensorRole::kNormGain);
    if (layer.context == ContextKind::kMultiFilter) {
      AddToLayer("cross.context_ids", {layer.num_states, hidden_}, TensorRole::kContextIds);
      AddToLayer("cross.initial_context", {layer.num_states, hidden_}, TensorRole::kInitialContext);
    }
    AddProjections({"cross.q_proj.weight"});
    if (layer.context == ContextKind::kMultiHead) {
      const Shape per_head = {config_.num_heads, config_.head_dim, hidden_};
      AddToLayer("cross.k_proj.weight", per_head, TensorRole::kMatrix);
      AddToLayer("cross.v_proj.weight", per_head, TensorRole::kMatrix);
    } else {
      AddProjections({"cross.k_proj.weight", "cross.v_proj.weight"});
    }
    AddScale("cross.scale");
  }

  // The recurrent states of a brect layer, how tokens read them and how a block updates them.
  void AddRecurrence(const LayerConfig& layer) {
    AddToLayer("state.initial", {layer.num_states, hidden_}, TensorRole::kInitialContext);
    AddToLayer("state.norm.weight", {hidden_}, TensorRole::kNormGain);
    AddToLayer("state.ids", {layer.num_states, hidden_}, TensorRole::kContextIds);
    AddProjections({"state.k_proj.weight", "state.v_proj.weight", "state.q_proj.weight",
                    "state.cross_q_proj.weight", "cross.q_proj.weight"});
    AddScale("cross.scale");
    AddScale("state.scale");
    AddScale("state.cross_scale");
    // It writes to the states, not to the residual stream.
    AddToLayer("state.o_proj.weight", {hidden_, 2 * inner_}, TensorRole::kMatrix);
    AddToLayer("state.gate_bias", {hidden_}, TensorRole::kStateGateBias, Precision::kF32Only);
  }

  void AddGss(const LayerConfig& layer) {
    const int64_t inner = layer.inner_size, width = layer.ssm_size;
    AddToLayer("gss.norm.weight", {hidden_}, TensorRole::kNormGain);
    AddToLayer("gss.u_proj.weight", {inner, hidden_}, TensorRole::kMatrix);
    AddToLayer("gss.v_proj.weight", {width, hidden_}, TensorRole::kMatrix);
    AddSsm(layer);
    AddToLayer("gss.gate_proj.weight", {inner, width}, TensorRole::kMatrix);
    AddToLayer("gss.out_proj.weight", {hidden_, inner}, TensorRole::kOutputMatrix);
  }

  void AddSsm(const LayerConfig& layer) {
    const int64_t filters = config_.num_filters(layer), inputs = config_.ssm_inputs(layer);
    const int64_t modes = layer.ssm.num_modes();
    constexpr auto kF32Only = Precision::kF32Only;
    const auto add = [this](std::string_view suffix, Shape shape, TensorRole role,
                            Presence presence = Presence::kRequired) {
      AddToLayer(suffix, shape, role, kF32Only, presence);
    };
    const Shape mode_shape = {filters, inputs, modes}, complex_shape = {filters, inputs, modes, 2};
    switch (layer.ssm.kernel) {
      case SsmKernel::kS4d:
        add("ssm.log_dt", {filters, inputs}, TensorRole::kSsmLogDt);
        add("ssm.log_neg_a_real", mode_shape, TensorRole::kSsmLogNegAReal);
        add("ssm.a_imag", mode_shape, TensorRole::kSsmAImag);
        add("ssm.b", complex_shape, TensorRole::kSsmB, Presence::kOptional);
        add("ssm.c", complex_shape, TensorRole::kSsmC);
        break;
      case SsmKernel::kDss:
        add("ssm.log_dt", {filters, inputs}, TensorRole::kSsmLogDt);
        add("ssm.log_neg_a_real", {modes}, TensorRole::kSsmLogNegAReal);
        add("ssm.a_imag", {modes}, TensorRole::kSsmAImag);
        add("ssm.w", complex_shape, TensorRole::kSsmC);
        break;
      case SsmKernel::kS4:
        add("ssm.log_dt", {filters, inputs}, TensorRole::kSsmLogDt);
        add("ssm.log_neg_a_real", mode_shape, TensorRole::kSsmLogNegAReal);
        add("ssm.a_imag", mode_shape, TensorRole::kS4AImag);
        add("ssm.p", complex_shape, TensorRole::kS4P);
        add("ssm.b", complex_shape, TensorRole::kS4B);
        add("ssm.c", complex_shape, TensorRole::kSsmC);
        break;
      case SsmKernel::kS5:
        add("ssm.log_step", {modes}, TensorRole::kSsmLogDt);
        add("ssm.lambda_real", {modes}, TensorRole::kSsmAReal);
        add("ssm.lambda_imag", {modes}, TensorRole::kSsmAImag);
        add("ssm.b", {modes, inputs, 2}, TensorRole::kS5B);
        add("ssm.c", complex_shape, TensorRole::kSsmC);
        break;
      case SsmKernel::kExplicit:
        add("ssm.filter", {filters, inputs, layer.ssm.length}, TensorRole::kFilter);
        break;
    }
    add("ssm.d", {filters, inputs}, TensorRole::kSsmD);
  }

  const ModelConfig& config_;
  const int64_t hidden_ = config_.hidden_size;
  const int64_t inner_ = config_.attention_size();
  int layer_number_ = 0;
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
