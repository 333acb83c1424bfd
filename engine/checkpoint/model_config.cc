#include "engine/checkpoint/model_config.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/base/status_macros.h"
#include "engine/checkpoint/json.h"
#include "nlohmann/json.hpp"

namespace bst {
namespace {

using nlohmann::json;

// A name of the format and what it means here.
template <typename Enum>
struct NamedValue {
  std::string_view name;
  Enum value;
};

// One JSON object, read key by key. `value` must outlive the reader.
class ObjectReader {
 public:
  // `path` is the object's own place; empty for the whole document.
  ObjectReader(const json& value, std::string path) : value_(value), path_(std::move(path)) {}

  // An error unless this is an object whose keys are all among `known`. Missing keys are found by
  // the functions that read them.
  absl::Status CheckKeys(std::initializer_list<std::string_view> known) const {
    BST_RETURN_IF_ERROR(CheckIsObject());
    for (const auto& [key, unused] : value_.items()) {
      if (std::find(known.begin(), known.end(), key) == known.end()) {
        const std::vector<std::string> names(known.begin(), known.end());
        return absl::FailedPreconditionError(absl::StrCat(
            "unknown key `", Path(Excerpt(key)), "`; known here: ", absl::StrJoin(names, ", ")));
      }
    }
    return absl::OkStatus();
  }

  bool Has(std::string_view key) const { return value_.contains(key); }

  absl::StatusOr<ObjectReader> Object(std::string_view key) const {
    BST_ASSIGN_OR_RETURN(const json* value, Find(key));
    return ObjectReader(*value, Path(key));
  }

  absl::StatusOr<int> Int(std::string_view key, int min, int max) const {
    BST_ASSIGN_OR_RETURN(const json* value, Find(key));
    // An unsigned value beyond int64_t would come out of get<int64_t>() negative.
    const bool fits = !value->is_number_unsigned() || value->get<uint64_t>() <= INT32_MAX;
    if (!value->is_number_integer() || !fits || value->get<int64_t>() < min ||
        value->get<int64_t>() > max) {
      return Bad(key, min == max ? absl::StrCat("the integer ", min)
                                 : absl::StrCat("an integer from ", min, " to ", max));
    }
    return value->get<int>();
  }

  absl::StatusOr<int> EvenInt(std::string_view key, int min, int max) const {
    BST_ASSIGN_OR_RETURN(const int value, Int(key, min, max));
    if (value % 2 != 0) return Bad(key, "even");
    return value;
  }

  // A number that stays above 0 when rounded to float32.
  absl::StatusOr<double> Positive(std::string_view key, double max) const {
    BST_ASSIGN_OR_RETURN(const json* value, Find(key));
    if (!value->is_number() || value->get<double>() > max ||
        !(static_cast<float>(value->get<double>()) > 0.0f)) {
      return Bad(key, absl::StrCat("a number above 0 in float32, at most ", max));
    }
    return value->get<double>();
  }

  // A number that is finite when rounded to float32.
  absl::StatusOr<float> Float(std::string_view key) const {
    BST_ASSIGN_OR_RETURN(const json* value, Find(key));
    if (!value->is_number() || !std::isfinite(static_cast<float>(value->get<double>()))) {
      return Bad(key, "a number in the range of float32");
    }
    return static_cast<float>(value->get<double>());
  }

  absl::StatusOr<bool> Bool(std::string_view key) const {
    BST_ASSIGN_OR_RETURN(const json* value, Find(key));
    if (!value->is_boolean()) return Bad(key, "true or false");
    return value->get<bool>();
  }

  absl::StatusOr<std::string> String(std::string_view key) const {
    BST_ASSIGN_OR_RETURN(const json* value, Find(key));
    if (!value->is_string()) return Bad(key, "a string");
    return value->get<std::string>();
  }

  template <typename Enum>
  absl::StatusOr<Enum> Choice(std::string_view key,
                              std::initializer_list<NamedValue<Enum>> choices) const {
    BST_ASSIGN_OR_RETURN(const std::string name, String(key));
    std::vector<std::string> known;
    for (const NamedValue<Enum>& choice : choices) {
      if (choice.name == name) return choice.value;
      known.push_back(absl::StrCat("\"", std::string(choice.name), "\""));
    }
    if (known.size() == 1) return Bad(key, known.front());
    return Bad(key, absl::StrCat("one of ", absl::StrJoin(known, ", ")));
  }

  absl::StatusOr<std::optional<TokenId>> TokenOrNull(std::string_view key, int vocab_size) const {
    BST_ASSIGN_OR_RETURN(const json* value, Find(key));
    if (value->is_null()) return std::optional<TokenId>();
    const absl::StatusOr<int> id = Int(key, 0, vocab_size - 1);
    if (!id.ok()) return Bad(key, absl::StrCat("null or a token id below ", vocab_size));
    return std::optional<TokenId>(TokenId(*id));
  }

  absl::StatusOr<const json*> Find(std::string_view key) const {
    BST_RETURN_IF_ERROR(CheckIsObject());
    const auto found = value_.find(key);
    if (found == value_.end()) {
      return absl::FailedPreconditionError(absl::StrCat("missing key `", Path(key), "`"));
    }
    return &*found;
  }

  // REQUIRES: Has(key).
  absl::Status Bad(std::string_view key, std::string_view expected) const {
    return BadValue(Path(key), *value_.find(key), expected);
  }

  std::string Path(std::string_view key) const {
    return absl::StrCat(path_, path_.empty() ? "" : ".", std::string(key));
  }

 private:
  static absl::Status BadValue(const std::string& path, const json& value,
                               std::string_view expected) {
    return absl::FailedPreconditionError(absl::StrCat("`", path, "` is ", Excerpt(value.dump()),
                                                      ", must be ", std::string(expected)));
  }

  absl::Status CheckIsObject() const {
    if (value_.is_object()) return absl::OkStatus();
    return BadValue(path_.empty() ? "the document" : path_, value_, "an object");
  }

  const json& value_;
  const std::string path_;
};

absl::StatusOr<AttentionConfig> ReadAttention(const ObjectReader& reader) {
  BST_RETURN_IF_ERROR(
      reader.CheckKeys({"scope", "include_self", "empty_prefix", "qk_norm", "position",
                        "t5_num_buckets", "t5_max_distance", "rope_theta"}));
  AttentionConfig attention;
  BST_ASSIGN_OR_RETURN(attention.scope, reader.Choice<AttentionScope>(
                                            "scope", {{"sliding", AttentionScope::kSliding},
                                                      {"block", AttentionScope::kBlock}}));
  BST_ASSIGN_OR_RETURN(attention.include_self, reader.Bool("include_self"));
  BST_ASSIGN_OR_RETURN(
      attention.empty_prefix,
      reader.Choice<EmptyPrefix>(
          "empty_prefix", {{"masked", EmptyPrefix::kMasked}, {"zeros", EmptyPrefix::kZeros}}));
  BST_ASSIGN_OR_RETURN(attention.qk_norm, reader.Bool("qk_norm"));
  BST_ASSIGN_OR_RETURN(attention.position,
                       reader.Choice<PositionKind>("position", {{"none", PositionKind::kNone},
                                                                {"t5", PositionKind::kT5},
                                                                {"rope", PositionKind::kRope}}));
  BST_ASSIGN_OR_RETURN(attention.t5_num_buckets,
                       reader.EvenInt("t5_num_buckets", 2, ModelConfig::kMaxT5Distance));
  BST_ASSIGN_OR_RETURN(attention.t5_max_distance,
                       reader.Int("t5_max_distance", 1, ModelConfig::kMaxT5Distance));
  BST_ASSIGN_OR_RETURN(attention.rope_theta,
                       reader.Positive("rope_theta", ModelConfig::kMaxRopeTheta));
  if (attention.t5_max_distance <= attention.t5_num_buckets / 2) {
    return reader.Bad("t5_max_distance", absl::StrCat("more than half of t5_num_buckets, which is ",
                                                      attention.t5_num_buckets));
  }
  if (attention.empty_prefix == EmptyPrefix::kZeros &&
      attention.scope != AttentionScope::kSliding) {
    return reader.Bad("empty_prefix", "\"masked\" unless `attention.scope` is \"sliding\"");
  }
  return attention;
}

absl::StatusOr<SsmKernel> ReadKernel(const ObjectReader& reader, LayerType layer) {
  if (layer == LayerType::kGss) {
    return reader.Choice<SsmKernel>("kernel", {{"s4d", SsmKernel::kS4d}, {"dss", SsmKernel::kDss}});
  }
  return reader.Choice<SsmKernel>("kernel", {{"s4d", SsmKernel::kS4d},
                                             {"dss", SsmKernel::kDss},
                                             {"s4", SsmKernel::kS4},
                                             {"s5", SsmKernel::kS5},
                                             {"explicit", SsmKernel::kExplicit}});
}

// The optional key: each kernel has its own choices and its own default.
absl::StatusOr<Discretization> ReadDiscretization(const ObjectReader& reader, SsmKernel kernel) {
  constexpr std::string_view kKey = "discretization";
  constexpr NamedValue<Discretization> kZoh = {"zoh", Discretization::kZeroOrderHold};
  constexpr NamedValue<Discretization> kBilinear = {"bilinear", Discretization::kBilinear};
  if (!reader.Has(kKey)) return (kernel == SsmKernel::kS4 ? kBilinear : kZoh).value;
  if (kernel == SsmKernel::kS4) return reader.Choice<Discretization>(kKey, {kBilinear});
  if (kernel == SsmKernel::kDss) return reader.Choice<Discretization>(kKey, {kZoh});
  return reader.Choice<Discretization>(kKey, {kZoh, kBilinear});
}

absl::StatusOr<SsmConfig> ReadSsm(const ObjectReader& reader, LayerType layer) {
  SsmConfig ssm;
  // The kernel comes first: it decides which other keys there are.
  BST_ASSIGN_OR_RETURN(ssm.kernel, ReadKernel(reader, layer));
  if (ssm.kernel == SsmKernel::kExplicit) {
    BST_RETURN_IF_ERROR(reader.CheckKeys({"kernel", "length"}));
    BST_ASSIGN_OR_RETURN(ssm.length, reader.Int("length", 1, ModelConfig::kMaxFilterLength));
    return ssm;
  }
  BST_RETURN_IF_ERROR(reader.CheckKeys({"kernel", "state_size", "discretization"}));
  if (ssm.kernel == SsmKernel::kDss) {
    BST_ASSIGN_OR_RETURN(ssm.state_size, reader.Int("state_size", 1, ModelConfig::kMaxStateSize));
  } else {
    BST_ASSIGN_OR_RETURN(ssm.state_size,
                         reader.EvenInt("state_size", 2, ModelConfig::kMaxStateSize));
  }
  BST_ASSIGN_OR_RETURN(ssm.discretization, ReadDiscretization(reader, ssm.kernel));
  return ssm;
}

absl::Status ReadBst(const ObjectReader& reader, LayerConfig& layer) {
  BST_ASSIGN_OR_RETURN(
      layer.context,
      reader.Choice<ContextKind>("context", {{"single_head", ContextKind::kSingleHead},
                                             {"multi_head", ContextKind::kMultiHead},
                                             {"multi_filter", ContextKind::kMultiFilter}}));
  if (layer.context == ContextKind::kMultiFilter) {
    BST_RETURN_IF_ERROR(reader.CheckKeys({"type", "context", "num_states", "ssm"}));
    BST_ASSIGN_OR_RETURN(layer.num_states, reader.Int("num_states", 1, ModelConfig::kMaxNumStates));
  } else {
    BST_RETURN_IF_ERROR(reader.CheckKeys({"type", "context", "ssm"}));
  }
  BST_ASSIGN_OR_RETURN(const ObjectReader ssm, reader.Object("ssm"));
  BST_ASSIGN_OR_RETURN(layer.ssm, ReadSsm(ssm, layer.type));
  return absl::OkStatus();
}

absl::Status ReadBrect(const ObjectReader& reader, LayerConfig& layer) {
  enum class Gate { kFixed };
  BST_RETURN_IF_ERROR(reader.CheckKeys({"type", "num_states", "gate"}));
  BST_ASSIGN_OR_RETURN(layer.num_states, reader.Int("num_states", 1, ModelConfig::kMaxNumStates));
  return reader.Choice<Gate>("gate", {{"fixed", Gate::kFixed}}).status();
}

absl::Status ReadGss(const ObjectReader& reader, LayerConfig& layer) {
  BST_RETURN_IF_ERROR(reader.CheckKeys({"type", "inner_size", "ssm_size", "ssm"}));
  BST_ASSIGN_OR_RETURN(layer.inner_size, reader.Int("inner_size", 1, ModelConfig::kMaxFfnSize));
  BST_ASSIGN_OR_RETURN(layer.ssm_size, reader.Int("ssm_size", 1, ModelConfig::kMaxHiddenSize));
  BST_ASSIGN_OR_RETURN(const ObjectReader ssm, reader.Object("ssm"));
  BST_ASSIGN_OR_RETURN(layer.ssm, ReadSsm(ssm, layer.type));
  return absl::OkStatus();
}

absl::StatusOr<LayerConfig> ReadLayer(const ObjectReader& reader) {
  LayerConfig layer;
  // The type comes first: it decides which other keys there are.
  BST_ASSIGN_OR_RETURN(layer.type,
                       reader.Choice<LayerType>("type", {{"transformer", LayerType::kTransformer},
                                                         {"bst", LayerType::kBst},
                                                         {"brect", LayerType::kBrect},
                                                         {"gss", LayerType::kGss}}));
  switch (layer.type) {
    case LayerType::kTransformer:
      BST_RETURN_IF_ERROR(reader.CheckKeys({"type"}));
      break;
    case LayerType::kBst:
      BST_RETURN_IF_ERROR(ReadBst(reader, layer));
      break;
    case LayerType::kBrect:
      BST_RETURN_IF_ERROR(ReadBrect(reader, layer));
      break;
    case LayerType::kGss:
      BST_RETURN_IF_ERROR(ReadGss(reader, layer));
      break;
  }
  return layer;
}

absl::StatusOr<std::vector<LayerConfig>> ReadLayers(const ObjectReader& root) {
  BST_ASSIGN_OR_RETURN(const json* value, root.Find("layers"));
  if (!value->is_array() || value->empty() || value->size() > ModelConfig::kMaxLayers) {
    return root.Bad("layers", absl::StrCat("a list of 1 to ", ModelConfig::kMaxLayers, " layers"));
  }
  std::vector<LayerConfig> layers;
  for (size_t i = 0; i < value->size(); ++i) {
    BST_ASSIGN_OR_RETURN(layers.emplace_back(),
                         ReadLayer(ObjectReader((*value)[i], absl::StrCat("layers[", i, "]"))));
  }
  return layers;
}

absl::StatusOr<TokenizerConfig> ReadTokenizer(const ObjectReader& reader, int vocab_size) {
  using Type = TokenizerConfig::Type;
  TokenizerConfig tokenizer;
  BST_ASSIGN_OR_RETURN(tokenizer.type,
                       reader.Choice<Type>("type", {{"byte", Type::kByte},
                                                    {"sentencepiece", Type::kSentencePiece}}));
  if (tokenizer.type == Type::kByte) {
    BST_RETURN_IF_ERROR(reader.CheckKeys({"type"}));
    if (vocab_size < 256) {
      return reader.Bad("type", absl::StrCat("\"sentencepiece\" when `vocab_size` is ", vocab_size,
                                             ": bytes need 256 ids"));
    }
    return tokenizer;
  }
  BST_RETURN_IF_ERROR(reader.CheckKeys({"type", "file"}));
  BST_ASSIGN_OR_RETURN(tokenizer.file, reader.String("file"));
  if (!IsPlainFileName(tokenizer.file)) {
    return reader.Bad("file", "the name of a file in the checkpoint directory");
  }
  return tokenizer;
}

// Another program's config.json, or one of a later version, is recognised before its keys are.
absl::Status CheckFormat(const ObjectReader& root) {
  BST_ASSIGN_OR_RETURN(const std::string model_type, root.String("model_type"));
  if (model_type != "block_state_transformer") {
    return root.Bad("model_type", "\"block_state_transformer\"");
  }
  return root.Int("format_version", 1, 1).status();
}

}  // namespace

absl::StatusOr<ModelConfig> ParseModelConfig(std::string_view text) {
  BST_ASSIGN_OR_RETURN(const json document, ParseJson(text));
  const ObjectReader root(document, "");
  BST_RETURN_IF_ERROR(CheckFormat(root));
  BST_RETURN_IF_ERROR(root.CheckKeys(
      {"model_type", "format_version", "vocab_size", "hidden_size", "num_heads", "head_dim",
       "ffn_size", "ffn_activation", "window", "norm_eps", "logit_scale", "tie_embeddings",
       "attention", "layers", "tokenizer", "bos_token_id", "eos_token_id", "pad_token_id"}));
  ModelConfig config;
  BST_ASSIGN_OR_RETURN(config.vocab_size, root.Int("vocab_size", 1, ModelConfig::kMaxVocabSize));
  BST_ASSIGN_OR_RETURN(config.hidden_size, root.Int("hidden_size", 1, ModelConfig::kMaxHiddenSize));
  BST_ASSIGN_OR_RETURN(config.num_heads, root.Int("num_heads", 1, ModelConfig::kMaxNumHeads));
  BST_ASSIGN_OR_RETURN(config.head_dim, root.Int("head_dim", 1, ModelConfig::kMaxHeadDim));
  BST_ASSIGN_OR_RETURN(config.ffn_size, root.Int("ffn_size", 1, ModelConfig::kMaxFfnSize));
  BST_ASSIGN_OR_RETURN(
      config.ffn_activation,
      root.Choice<Activation>("ffn_activation", {{"relu", Activation::kRelu},
                                                 {"gelu", Activation::kGelu},
                                                 {"geglu", Activation::kGeglu},
                                                 {"swiglu", Activation::kSwiglu}}));
  BST_ASSIGN_OR_RETURN(config.window, root.Int("window", 1, ModelConfig::kMaxWindow));
  BST_ASSIGN_OR_RETURN(const double norm_eps,
                       root.Positive("norm_eps", std::numeric_limits<float>::max()));
  config.norm_eps = static_cast<float>(norm_eps);
  BST_ASSIGN_OR_RETURN(config.logit_scale, root.Float("logit_scale"));
  BST_ASSIGN_OR_RETURN(config.tie_embeddings, root.Bool("tie_embeddings"));

  BST_ASSIGN_OR_RETURN(const ObjectReader attention, root.Object("attention"));
  BST_ASSIGN_OR_RETURN(config.attention, ReadAttention(attention));
  if (config.attention.position == PositionKind::kRope && config.head_dim % 2 != 0) {
    return root.Bad("head_dim", "even when `attention.position` is \"rope\"");
  }
  BST_ASSIGN_OR_RETURN(config.layers, ReadLayers(root));
  BST_ASSIGN_OR_RETURN(const ObjectReader tokenizer, root.Object("tokenizer"));
  BST_ASSIGN_OR_RETURN(config.tokenizer, ReadTokenizer(tokenizer, config.vocab_size));
  BST_ASSIGN_OR_RETURN(config.bos_token_id, root.TokenOrNull("bos_token_id", config.vocab_size));
  BST_ASSIGN_OR_RETURN(config.eos_token_id, root.TokenOrNull("eos_token_id", config.vocab_size));
  BST_ASSIGN_OR_RETURN(config.pad_token_id, root.TokenOrNull("pad_token_id", config.vocab_size));
  return config;
}

}  // namespace bst
