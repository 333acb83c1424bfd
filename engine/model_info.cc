#include "engine/model_info.h"

#include <fstream>
#include <iterator>
#include <optional>
#include <string>

#include "absl/strings/str_cat.h"
#include "engine/base/status_macros.h"

namespace bst {
namespace {

// "bst single_head s4d N=16 zoh"
std::string DescribeLayer(const LayerConfig& layer) {
  if (layer.type == LayerType::kTransformer) return "transformer";
  const bool zoh = layer.ssm.discretization == Discretization::kZeroOrderHold;
  return absl::StrCat("bst single_head s4d N=", layer.ssm.state_size, zoh ? " zoh" : " bilinear");
}

absl::StatusOr<std::string> ReadText(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  if (!file.good() && !file.eof())
    return absl::NotFoundError(absl::StrCat(path, ": cannot be read"));
  return text;
}

std::vector<TokenId> ZeroOrOne(const std::optional<TokenId>& id) {
  return id.has_value() ? std::vector<TokenId>{*id} : std::vector<TokenId>{};
}

SamplingParams DefaultSampling(const GenerationDefaults& defaults) {
  SamplingParams params;
  params.temperature = defaults.temperature.value_or(params.temperature);
  params.top_k = defaults.top_k.value_or(params.top_k);
  params.top_p = defaults.top_p.value_or(params.top_p);
  params.min_p = defaults.min_p.value_or(params.min_p);
  params.typical_p = defaults.typical_p.value_or(params.typical_p);
  params.repetition_penalty = defaults.repetition_penalty.value_or(params.repetition_penalty);
  if (!defaults.do_sample.value_or(true)) params.temperature = 0;
  return params;
}

}  // namespace

absl::StatusOr<ModelInfo> DescribeCheckpoint(const Checkpoint& checkpoint) {
  const ModelConfig& config = checkpoint.config();
  ModelInfo info;
  info.name = checkpoint.name();
  info.directory = checkpoint.directory();
  BST_ASSIGN_OR_RETURN(info.config_json,
                       ReadText(absl::StrCat(checkpoint.directory(), "/config.json")));
  info.vocab_size = config.vocab_size;
  info.hidden_size = config.hidden_size;
  info.num_heads = config.num_heads;
  info.head_dim = config.head_dim;
  info.ffn_size = config.ffn_size;
  info.window = config.window;
  for (const LayerConfig& layer : config.layers) info.layers.push_back(DescribeLayer(layer));
  info.num_parameters = checkpoint.num_parameters();
  if (config.tokenizer.type == TokenizerConfig::Type::kSentencePiece) {
    info.tokenizer_type = "sentencepiece";
    info.tokenizer_path = absl::StrCat(checkpoint.directory(), "/", config.tokenizer.file);
  } else {
    info.tokenizer_type = "byte";
  }
  info.bos = ZeroOrOne(config.bos_token_id);
  info.eos = ZeroOrOne(config.eos_token_id);
  info.pad = ZeroOrOne(config.pad_token_id);

  const GenerationDefaults& defaults = checkpoint.generation_defaults();
  info.default_sampling = DefaultSampling(defaults);
  info.default_max_new_tokens = defaults.max_new_tokens.value_or(info.default_max_new_tokens);
  return info;
}

}  // namespace bst
