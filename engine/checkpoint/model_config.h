// ModelConfig: the hyper-parameters of a checkpoint, read from config.json key by key.
//
// Symbols   V, D vocabulary and model width; H, dh heads and head size, A = H * dh (may differ from
//           D); F feed-forward width; W block length = attention window; S context vectors or
//           recurrent states; C SSM filters per input; N real SSM state size per filter, M = N / 2
//           stored conjugate pairs; F_g, E inner and SSM width of a gss layer.
// Invariants of a value that ParseModelConfig returned: every number is in its range (see
//           the limits below; norm_eps and rope_theta are above 0 as floats, logit_scale is any),
//           `layers` is not empty, head_dim is even with RoPE, "zeros" goes with "sliding" only,
//           a gss layer's kernel is s4d or dss, and what a layer does not have is 0.
// Errors    kFailedPrecondition, naming the key (`layers[2].ssm.state_size`) and its value: a key
//           unknown to this kind of layer or kernel, missing, twice, of a wrong type (1.0 is no
//           integer) or out of range.
// Threads   A value.
// Tested by tests/engine/checkpoint/model_config_test.cc
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/backend/attention.h"
#include "engine/base/ids.h"

namespace bst {

enum class Activation { kRelu, kGelu, kGeglu, kSwiglu };
enum class PositionKind { kNone, kT5, kRope };
enum class LayerType { kTransformer, kBst, kBrect, kGss };
enum class ContextKind { kSingleHead, kMultiHead, kMultiFilter };
enum class SsmKernel { kS4d, kDss, kS4, kS5, kExplicit };
enum class Discretization { kZeroOrderHold, kBilinear };

struct AttentionConfig {
  AttentionScope scope = AttentionScope::kSliding;
  bool include_self = true;
  EmptyPrefix empty_prefix = EmptyPrefix::kMasked;
  bool qk_norm = false;
  PositionKind position = PositionKind::kNone;
  int t5_num_buckets = 32;    // even
  int t5_max_distance = 128;  // > t5_num_buckets / 2
  double rope_theta = 10000.0;
};

struct SsmConfig {
  SsmKernel kernel = SsmKernel::kS4d;
  // N: stored conjugate pairs are N / 2 (s4d, s4, s5; N is even), dss stores all N modes; 0 with
  // kExplicit.
  int state_size = 0;
  int length = 0;  // taps; kExplicit only
  // s4: always kBilinear; dss: always kZeroOrderHold; not read with kExplicit.
  Discretization discretization = Discretization::kZeroOrderHold;

  // Stored complex modes per filter, or of the whole layer (s5); 0 with kExplicit.
  int num_modes() const { return kernel == SsmKernel::kDss ? state_size : state_size / 2; }
};

struct LayerConfig {
  LayerType type = LayerType::kTransformer;
  ContextKind context = ContextKind::kSingleHead;  // kBst only
  int num_states = 0;  // S: context vectors (kMultiFilter) or recurrent states (kBrect)
  int inner_size = 0;  // F_g, kGss only
  int ssm_size = 0;    // E, kGss only
  SsmConfig ssm;       // kBst and kGss

  bool has_ssm() const { return type == LayerType::kBst || type == LayerType::kGss; }
};

struct TokenizerConfig {
  enum class Type { kByte, kSentencePiece };
  Type type = Type::kByte;
  std::string
      file;  // kSentencePiece only, relative to the checkpoint directory, no path separators
};

struct ModelConfig {
  // The largest values that are read: far beyond any model, small enough that no product of the
  // sizes of one tensor overflows int64_t.
  static constexpr int kMaxVocabSize = 1 << 24;
  static constexpr int kMaxHiddenSize = 1 << 16;  // also of ssm_size
  static constexpr int kMaxNumHeads = 1 << 10;
  static constexpr int kMaxHeadDim = 1 << 12;
  static constexpr int kMaxFfnSize = 1 << 20;  // also of inner_size
  static constexpr int kMaxWindow = 1 << 16;
  static constexpr int kMaxLayers = 1 << 10;
  static constexpr int kMaxStateSize = 1 << 12;
  static constexpr int kMaxNumStates = 1 << 14;
  static constexpr int kMaxFilterLength = 1 << 20;
  static constexpr int kMaxT5Distance = 1 << 20;  // also of t5_num_buckets
  static constexpr double kMaxRopeTheta = 1e15;

  int vocab_size = 0;   // V
  int hidden_size = 0;  // D
  int num_heads = 0;    // H
  int head_dim = 0;     // dh
  int ffn_size = 0;     // F
  Activation ffn_activation = Activation::kRelu;
  int window = 0;  // W
  float norm_eps = 1e-6f;
  float logit_scale = 1.0f;
  bool tie_embeddings = true;
  AttentionConfig attention;
  std::vector<LayerConfig> layers;
  TokenizerConfig tokenizer;
  std::optional<TokenId> bos_token_id, eos_token_id, pad_token_id;

  int attention_size() const { return num_heads * head_dim; }  // A
  // C: SSM filters per input of a layer that has an SSM.
  int num_filters(const LayerConfig& layer) const {
    if (layer.type != LayerType::kBst || layer.context == ContextKind::kSingleHead) return 1;
    return layer.context == ContextKind::kMultiHead ? num_heads : layer.num_states;
  }
  // Inputs of a layer's SSM: D, or E in a gss layer.
  int ssm_inputs(const LayerConfig& layer) const {
    return layer.type == LayerType::kGss ? layer.ssm_size : hidden_size;
  }
};

// Parses the text of a config.json.
absl::StatusOr<ModelConfig> ParseModelConfig(std::string_view json);

}  // namespace bst
