#include "engine/model_info.h"

#include <optional>
#include <string>

#include "absl/strings/str_cat.h"
#include "engine/base/read_file.h"
#include "engine/base/status_macros.h"
#include "engine/checkpoint/json.h"

namespace bst {
namespace {

// "s4d N=16 zoh"; the discretisation where a kernel has a choice.
std::string DescribeSsm(const SsmConfig& ssm) {
  const char* const rule =
      ssm.discretization == Discretization::kZeroOrderHold ? " zoh" : " bilinear";
  switch (ssm.kernel) {
    case SsmKernel::kS4d:
      return absl::StrCat("s4d N=", ssm.state_size, rule);
    case SsmKernel::kDss:
      return absl::StrCat("dss N=", ssm.state_size);
    case SsmKernel::kS4:
      return absl::StrCat("s4 N=", ssm.state_size);
    case SsmKernel::kS5:
      return absl::StrCat("s5 N=", ssm.state_size, rule);
    case SsmKernel::kExplicit:
      return absl::StrCat("explicit T=", ssm.length);
  }
  return "";
}

std::string DescribeContext(const LayerConfig& layer) {
  switch (layer.context) {
    case ContextKind::kSingleHead:
      return "single_head";
    case ContextKind::kMultiHead:
      return "multi_head";
    case ContextKind::kMultiFilter:
      return absl::StrCat("multi_filter S=", layer.num_states);
  }
  return "";
}

// The forms are listed at ModelInfo::layers.
std::string DescribeLayer(const LayerConfig& layer) {
  switch (layer.type) {
    case LayerType::kTransformer:
      return "transformer";
    case LayerType::kBst:
      return absl::StrCat("bst ", DescribeContext(layer), " ", DescribeSsm(layer.ssm));
    case LayerType::kBrect:
      return absl::StrCat("brect S=", layer.num_states);
    case LayerType::kGss:
      return absl::StrCat("gss F=", layer.inner_size, " E=", layer.ssm_size, " ",
                          DescribeSsm(layer.ssm));
  }
  return "";
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
  BST_ASSIGN_OR_RETURN(
      info.config_json,
      ReadTextFile(absl::StrCat(checkpoint.directory(), "/config.json"), kMaxJsonFileBytes));
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
