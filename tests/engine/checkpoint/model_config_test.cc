#include "engine/checkpoint/model_config.h"

#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>
#include <set>

#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/engine/checkpoint/checkpoint_files.h"
#include "tests/support/status_matchers.h"

namespace bst {
namespace {

using nlohmann::json;
using testing::AllOf;
using testing::HasSubstr;

// A configuration with one value replaced or added: `pointer` is a JSON pointer, `value` is JSON.
std::string With(const std::string& pointer, const std::string& value,
                 std::string_view text = kSmallConfig) {
  json config = json::parse(text);
  config[json::json_pointer(pointer)] = json::parse(value);
  return config.dump();
}

TEST(ModelConfigTest, ReadsEveryKey) {
  const absl::StatusOr<ModelConfig> config = ParseModelConfig(kSmallConfig);
  ASSERT_THAT(config, IsOk());
  EXPECT_EQ(config->vocab_size, 260);
  EXPECT_EQ(config->hidden_size, 12);
  EXPECT_EQ(config->num_heads, 2);
  EXPECT_EQ(config->head_dim, 4);
  EXPECT_EQ(config->attention_size(), 8);
  EXPECT_EQ(config->ffn_size, 20);
  EXPECT_EQ(config->ffn_activation, Activation::kGeglu);
  EXPECT_EQ(config->window, 8);
  EXPECT_EQ(config->norm_eps, 1e-6f);
  EXPECT_EQ(config->logit_scale, 0.5f);
  EXPECT_FALSE(config->tie_embeddings);
  EXPECT_EQ(config->attention.scope, AttentionScope::kSliding);
  EXPECT_FALSE(config->attention.include_self);
  EXPECT_EQ(config->attention.empty_prefix, EmptyPrefix::kZeros);
  EXPECT_TRUE(config->attention.qk_norm);
  EXPECT_EQ(config->attention.position, PositionKind::kT5);
  EXPECT_EQ(config->attention.t5_num_buckets, 8);
  EXPECT_EQ(config->attention.t5_max_distance, 16);
  EXPECT_EQ(config->attention.rope_theta, 10000.0);
  ASSERT_EQ(config->layers.size(), 2u);
  EXPECT_EQ(config->layers[0].type, LayerType::kTransformer);
  EXPECT_EQ(config->layers[1].type, LayerType::kBst);
  EXPECT_EQ(config->layers[1].ssm.state_size, 6);
  EXPECT_EQ(config->layers[1].ssm.discretization, Discretization::kZeroOrderHold);
  EXPECT_EQ(config->tokenizer.type, TokenizerConfig::Type::kByte);
  EXPECT_EQ(config->bos_token_id, TokenId(256));
  EXPECT_EQ(config->eos_token_id, TokenId(257));
  EXPECT_EQ(config->pad_token_id, std::nullopt);
}

TEST(ModelConfigTest, ReadsOtherChoices) {
  json text = json::parse(kSmallConfig);
  text["ffn_activation"] = "swiglu";
  text["tie_embeddings"] = true;
  text["attention"]["scope"] = "block";
  text["attention"]["empty_prefix"] = "masked";
  text["attention"]["position"] = "rope";
  text["attention"]["rope_theta"] = 500;  // an integer is a number
  text["layers"][1]["ssm"]["discretization"] = "bilinear";
  text["tokenizer"] = {{"type", "sentencepiece"}, {"file", "tokenizer.model"}};
  const absl::StatusOr<ModelConfig> config = ParseModelConfig(text.dump());
  ASSERT_THAT(config, IsOk());
  EXPECT_EQ(config->ffn_activation, Activation::kSwiglu);
  EXPECT_TRUE(config->tie_embeddings);
  EXPECT_EQ(config->attention.scope, AttentionScope::kBlock);
  EXPECT_EQ(config->attention.empty_prefix, EmptyPrefix::kMasked);
  EXPECT_EQ(config->attention.position, PositionKind::kRope);
  EXPECT_EQ(config->attention.rope_theta, 500.0);
  EXPECT_EQ(config->layers[1].ssm.discretization, Discretization::kBilinear);
  EXPECT_EQ(config->tokenizer.type, TokenizerConfig::Type::kSentencePiece);
  EXPECT_EQ(config->tokenizer.file, "tokenizer.model");

  text["layers"][1]["ssm"].erase("discretization");  // the one optional key
  text["ffn_activation"] = "relu";
  text["attention"]["position"] = "none";
  EXPECT_THAT(ParseModelConfig(text.dump()), IsOk());
  text["ffn_activation"] = "gelu";
  EXPECT_THAT(ParseModelConfig(text.dump()), IsOk());
}

TEST(ModelConfigTest, ReadsEveryTypeOfLayer) {
  const absl::StatusOr<ModelConfig> config = ParseModelConfig(kFamilyConfig);
  ASSERT_THAT(config, IsOk());
  struct Expected {
    LayerType type;
    int num_states, inner_size, ssm_size;
    int num_filters, ssm_inputs;  // of a layer that has an SSM
  };
  const std::vector<Expected> expected = {
      {LayerType::kTransformer, 0, 0, 0, 0, 0}, {LayerType::kBst, 0, 0, 0, 1, 12},
      {LayerType::kBst, 0, 0, 0, 2, 12},        {LayerType::kBst, 3, 0, 0, 3, 12},
      {LayerType::kBst, 0, 0, 0, 1, 12},        {LayerType::kBst, 2, 0, 0, 2, 12},
      {LayerType::kBrect, 4, 0, 0, 0, 0},       {LayerType::kGss, 0, 10, 9, 1, 9},
  };
  ASSERT_EQ(config->layers.size(), expected.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    const LayerConfig& layer = config->layers[i];
    EXPECT_EQ(layer.type, expected[i].type) << i;
    EXPECT_EQ(layer.num_states, expected[i].num_states) << i;
    EXPECT_EQ(layer.inner_size, expected[i].inner_size) << i;
    EXPECT_EQ(layer.ssm_size, expected[i].ssm_size) << i;
    EXPECT_EQ(layer.has_ssm(), expected[i].num_filters > 0) << i;
    if (!layer.has_ssm()) continue;
    EXPECT_EQ(config->num_filters(layer), expected[i].num_filters) << i;
    EXPECT_EQ(config->ssm_inputs(layer), expected[i].ssm_inputs) << i;
  }
  EXPECT_EQ(config->layers[1].context, ContextKind::kSingleHead);
  EXPECT_EQ(config->layers[2].context, ContextKind::kMultiHead);
  EXPECT_EQ(config->layers[3].context, ContextKind::kMultiFilter);
}

TEST(ModelConfigTest, ReadsEveryKernel) {
  const absl::StatusOr<ModelConfig> config = ParseModelConfig(kFamilyConfig);
  ASSERT_THAT(config, IsOk());
  struct Expected {
    size_t layer;
    SsmKernel kernel;
    int state_size, length, num_modes;
    Discretization discretization;
  };
  constexpr auto kZoh = Discretization::kZeroOrderHold, kBilinear = Discretization::kBilinear;
  for (const Expected& e : std::vector<Expected>{{1, SsmKernel::kS4d, 6, 0, 3, kZoh},
                                                 {2, SsmKernel::kS4, 4, 0, 2, kBilinear},
                                                 {3, SsmKernel::kDss, 5, 0, 5, kZoh},
                                                 {4, SsmKernel::kS5, 6, 0, 3, kBilinear},
                                                 {5, SsmKernel::kExplicit, 0, 7, 0, kZoh},
                                                 {7, SsmKernel::kDss, 3, 0, 3, kZoh}}) {
    const SsmConfig& ssm = config->layers[e.layer].ssm;
    EXPECT_EQ(ssm.kernel, e.kernel) << e.layer;
    EXPECT_EQ(ssm.state_size, e.state_size) << e.layer;
    EXPECT_EQ(ssm.length, e.length) << e.layer;
    EXPECT_EQ(ssm.num_modes(), e.num_modes) << e.layer;
    EXPECT_EQ(ssm.discretization, e.discretization) << e.layer;
  }
}

// s4 has no zero-order hold and dss no bilinear rule; without the key each kernel has its default.
TEST(ModelConfigTest, EveryKernelHasItsDiscretizations) {
  struct Case {
    const char* kernel;
    const char* value;  // empty: no such key
    std::optional<Discretization> expected;
  };
  constexpr auto kZoh = Discretization::kZeroOrderHold, kBilinear = Discretization::kBilinear;
  for (const Case& c : std::vector<Case>{{"s4d", "", kZoh},
                                         {"s4d", "zoh", kZoh},
                                         {"s4d", "bilinear", kBilinear},
                                         {"s5", "", kZoh},
                                         {"s5", "zoh", kZoh},
                                         {"s5", "bilinear", kBilinear},
                                         {"s4", "", kBilinear},
                                         {"s4", "bilinear", kBilinear},
                                         {"s4", "zoh", std::nullopt},
                                         {"dss", "", kZoh},
                                         {"dss", "zoh", kZoh},
                                         {"dss", "bilinear", std::nullopt}}) {
    json ssm = {{"kernel", c.kernel}, {"state_size", 6}};
    if (*c.value != '\0') ssm["discretization"] = c.value;
    const absl::StatusOr<ModelConfig> config = ParseModelConfig(With("/layers/1/ssm", ssm.dump()));
    if (c.expected.has_value()) {
      ASSERT_THAT(config, IsOk()) << ssm;
      EXPECT_EQ(config->layers[1].ssm.discretization, *c.expected) << ssm;
    } else {
      EXPECT_THAT(config, StatusIs(kBad, HasSubstr("`layers[1].ssm.discretization` is")));
    }
  }
  EXPECT_THAT(ParseModelConfig(With("/layers/1/ssm", R"({"kernel": "explicit", "length": 3,
                                    "discretization": "zoh"})")),
              StatusIs(kBad, HasSubstr("unknown key `layers[1].ssm.discretization`")));
}

TEST(ModelConfigTest, RefusesLayersThatAreWrong) {
  struct Case {
    const char* pointer;
    const char* value;
    const char* message;
  };
  for (const Case& c : std::vector<Case>{
           {"/layers/2/context", "\"two_head\"", "`layers[2].context` is \"two_head\""},
           {"/layers/2/num_states", "4", "unknown key `layers[2].num_states`"},
           {"/layers/3/num_states", "0", "`layers[3].num_states` is 0"},
           {"/layers/3/num_states", "16385", "`layers[3].num_states` is 16385"},
           {"/layers/3/num_states", "3.0", "`layers[3].num_states` is 3.0"},
           {"/layers/3/ssm/state_size", "0", "`layers[3].ssm.state_size` is 0"},
           {"/layers/3/ssm/state_size", "4097", "`layers[3].ssm.state_size` is 4097"},
           {"/layers/2/ssm/state_size", "5", "`layers[2].ssm.state_size` is 5, must be even"},
           {"/layers/4/ssm/state_size", "7", "`layers[4].ssm.state_size` is 7, must be even"},
           {"/layers/4/ssm/length", "7", "unknown key `layers[4].ssm.length`"},
           {"/layers/5/ssm/length", "0", "`layers[5].ssm.length` is 0"},
           {"/layers/5/ssm/length", "1048577", "`layers[5].ssm.length` is 1048577"},
           {"/layers/5/ssm/length", "\"7\"", "`layers[5].ssm.length` is \"7\""},
           {"/layers/5/ssm/state_size", "4", "unknown key `layers[5].ssm.state_size`"},
           {"/layers/6/gate", "\"lstm\"", "`layers[6].gate` is \"lstm\", must be \"fixed\""},
           {"/layers/6/gate", "true", "`layers[6].gate` is true"},
           {"/layers/6/num_states", "-1", "`layers[6].num_states` is -1"},
           {"/layers/6/ssm", "{}", "unknown key `layers[6].ssm`"},
           {"/layers/6/context", "\"multi_filter\"", "unknown key `layers[6].context`"},
           {"/layers/7/inner_size", "0", "`layers[7].inner_size` is 0"},
           {"/layers/7/inner_size", "1048577", "`layers[7].inner_size` is 1048577"},
           {"/layers/7/ssm_size", "0", "`layers[7].ssm_size` is 0"},
           {"/layers/7/ssm_size", "65537", "`layers[7].ssm_size` is 65537"},
           {"/layers/7/num_states", "2", "unknown key `layers[7].num_states`"},
           {"/layers/7/context", "\"single_head\"", "unknown key `layers[7].context`"},
           {"/layers/7/ssm/kernel", "\"s4\"", "must be one of \"s4d\", \"dss\""},
           {"/layers/7/ssm/kernel", "\"s5\"", "`layers[7].ssm.kernel` is \"s5\""},
           {"/layers/7/ssm", R"({"kernel": "explicit", "length": 3})", "`layers[7].ssm.kernel`"},
           {"/layers/0/num_states", "1", "unknown key `layers[0].num_states`"},
       }) {
    EXPECT_THAT(ParseModelConfig(With(c.pointer, c.value, kFamilyConfig)),
                StatusIs(kBad, HasSubstr(c.message)))
        << c.pointer << " = " << c.value;
  }
  const std::string s4d = R"({"kernel": "s4d", "state_size": 4, "discretization": "bilinear"})";
  EXPECT_THAT(ParseModelConfig(With("/layers/7/ssm", s4d, kFamilyConfig)), IsOk());
}

TEST(ModelConfigTest, RefusesValuesThatAreWrong) {
  struct Case {
    const char* pointer;
    const char* value;
    const char* key;  // as the message names it
  };
  for (const Case& c : std::vector<Case>{
           {"/model_type", "\"llama\"", "`model_type` is \"llama\""},
           {"/model_type", "1", "`model_type` is 1"},
           {"/format_version", "2", "`format_version` is 2, must be the integer 1"},
           {"/format_version", "1.0", "`format_version` is 1.0"},
           {"/vocab_size", "0", "`vocab_size` is 0"},
           {"/vocab_size", "-5", "`vocab_size` is -5"},
           {"/vocab_size", "260.0", "`vocab_size` is 260.0"},
           {"/vocab_size", "\"260\"", "`vocab_size` is \"260\""},
           {"/vocab_size", "true", "`vocab_size` is true"},
           {"/vocab_size", "16777217", "`vocab_size` is 16777217"},
           {"/vocab_size", "18446744073709551615", "`vocab_size` is 18446744073709551615"},
           {"/vocab_size", "4294967556", "`vocab_size` is 4294967556"},  // 260 modulo 2^32
           {"/vocab_size", "1e400", "not JSON"},
           {"/vocab_size", "255", "`tokenizer.type`"},  // bytes need 256
           {"/hidden_size", "65537", "`hidden_size` is 65537"},
           {"/num_heads", "0", "`num_heads` is 0"},
           {"/head_dim", "null", "`head_dim` is null"},
           {"/ffn_size", "[20]", "`ffn_size` is [20]"},
           {"/ffn_activation", "\"silu\"", "`ffn_activation` is \"silu\""},
           {"/window", "0", "`window` is 0"},
           {"/norm_eps", "0", "`norm_eps` is 0"},
           {"/norm_eps", "-1e-6", "`norm_eps` is -1e-06"},
           {"/norm_eps", "1e-60", "`norm_eps` is 1e-60"},  // 0 as float32
           {"/norm_eps", "1e39", "`norm_eps` is 1e+39"},
           {"/norm_eps", "\"x\"", "`norm_eps` is \"x\""},
           {"/logit_scale", "1e300", "`logit_scale` is 1e+300"},
           {"/logit_scale", "-1e39", "`logit_scale` is -1e+39"},
           {"/logit_scale", "\"x\"", "`logit_scale` is \"x\""},
           {"/tie_embeddings", "1", "`tie_embeddings` is 1"},
           {"/attention", "[]", "`attention` is []"},
           {"/attention/scope", "\"global\"", "`attention.scope` is \"global\""},
           {"/attention/scope", "\"block\"", "`attention.empty_prefix` is \"zeros\""},
           {"/attention/include_self", "\"yes\"", "`attention.include_self` is \"yes\""},
           {"/attention/empty_prefix", "null", "`attention.empty_prefix` is null"},
           {"/attention/qk_norm", "0", "`attention.qk_norm` is 0"},
           {"/attention/position", "\"alibi\"", "`attention.position` is \"alibi\""},
           {"/attention/t5_num_buckets", "7", "`attention.t5_num_buckets` is 7"},
           {"/attention/t5_num_buckets", "0", "`attention.t5_num_buckets` is 0"},
           {"/attention/t5_num_buckets", "32", "`attention.t5_max_distance` is 16"},
           {"/attention/t5_max_distance", "4", "`attention.t5_max_distance` is 4"},
           {"/attention/rope_theta", "0", "`attention.rope_theta` is 0"},
           {"/layers", "[]", "`layers` is []"},
           {"/layers", "{}", "`layers` is {}"},
           {"/layers/0", "3", "`layers[0]` is 3"},
           {"/layers/0/type", "\"mamba\"", "`layers[0].type` is \"mamba\""},
           {"/layers/1/context", "\"double_head\"", "`layers[1].context` is \"double_head\""},
           {"/layers/1/ssm", "null", "`layers[1].ssm` is null"},
           {"/layers/1/ssm/kernel", "\"s6\"", "`layers[1].ssm.kernel` is \"s6\""},
           {"/layers/1/ssm/state_size", "5", "`layers[1].ssm.state_size` is 5"},
           {"/layers/1/ssm/state_size", "0", "`layers[1].ssm.state_size` is 0"},
           {"/layers/1/ssm/state_size", "8192", "`layers[1].ssm.state_size` is 8192"},
           {"/layers/1/ssm/discretization", "\"euler\"", "`layers[1].ssm.discretization`"},
           {"/tokenizer", "\"byte\"", "`tokenizer` is \"byte\""},
           {"/tokenizer/type", "\"bpe\"", "`tokenizer.type` is \"bpe\""},
           {"/tokenizer", R"({"type": "sentencepiece", "file": "../x"})",
            "`tokenizer.file` is \"../x\""},
           {"/tokenizer", R"({"type": "sentencepiece", "file": ""})", "`tokenizer.file`"},
           {"/tokenizer", R"({"type": "sentencepiece", "file": 3})", "`tokenizer.file` is 3"},
           {"/bos_token_id", "260", "`bos_token_id` is 260"},
           {"/eos_token_id", "-1", "`eos_token_id` is -1"},
           {"/pad_token_id", "1.0", "`pad_token_id` is 1.0"},
           {"/pad_token_id", "[1]", "`pad_token_id` is [1]"},
       }) {
    // 1e400 cannot be held by the document; it is put in as text.
    const std::string text =
        std::string_view(c.value) == "1e400"
            ? std::string(kSmallConfig).replace(kSmallConfig.find("260"), 3, "1e400")
            : With(c.pointer, c.value);
    EXPECT_THAT(ParseModelConfig(text), StatusIs(kBad, HasSubstr(c.key)))
        << c.pointer << " = " << c.value;
  }
}

TEST(ModelConfigTest, AnyScaleAndEpsilonOfFloat32AreTaken) {
  for (const float scale : {0.0f, -0.5f, 3e38f, -3e38f, 1e-45f, 2e6f}) {
    const auto config = ParseModelConfig(With("/logit_scale", json(scale).dump()));
    ASSERT_THAT(config, IsOk()) << scale;
    EXPECT_EQ(config->logit_scale, scale);
  }
  for (const float epsilon : {1e-45f, 1e-6f, 1.0f, 2.0f, 3e38f}) {
    const auto config = ParseModelConfig(With("/norm_eps", json(epsilon).dump()));
    ASSERT_THAT(config, IsOk()) << epsilon;
    EXPECT_EQ(config->norm_eps, epsilon);
  }
}

TEST(ModelConfigTest, RefusesAnOddHeadSizeWithRotaryPositionsOnly) {
  json config = json::parse(kSmallConfig);
  config["head_dim"] = 5;
  EXPECT_THAT(ParseModelConfig(config.dump()), IsOk());
  config["attention"]["position"] = "rope";
  EXPECT_THAT(ParseModelConfig(config.dump()), StatusIs(kBad, HasSubstr("`head_dim` is 5")));
}

// Calls `visit` with every object of a document and its path.
template <typename Visit>
void ForEachObject(json& value, const std::string& path, Visit visit) {
  if (value.is_object()) visit(value, path);
  if (value.is_object()) {
    for (auto& [key, child] : value.items()) {
      ForEachObject(child, path.empty() ? key : path + "." + key, visit);
    }
  } else if (value.is_array()) {
    for (size_t i = 0; i < value.size(); ++i) {
      ForEachObject(value[i], path + "[" + std::to_string(i) + "]", visit);
    }
  }
}

TEST(ModelConfigTest, EveryKeyIsRequiredButDiscretization) {
  json config = json::parse(kFamilyConfig);
  config["tokenizer"] = {{"type", "sentencepiece"}, {"file", "tokenizer.model"}};
  int keys = 0;
  ForEachObject(config, "", [&](json& object, const std::string& path) {
    const json copy = object;
    for (const auto& [key, value] : copy.items()) {
      object.erase(key);
      const std::string full = path.empty() ? key : path + "." + key;
      if (key == "discretization") {
        EXPECT_THAT(ParseModelConfig(config.dump()), IsOk());
      } else {
        EXPECT_THAT(ParseModelConfig(config.dump()), StatusIs(kBad, "missing key `" + full + "`"));
      }
      object = copy;
      ++keys;
    }
  });
  // The document, attention, tokenizer; then each layer with its ssm.
  EXPECT_EQ(keys, 18 + 8 + 2 + 1 + (3 + 3) + (3 + 3) + (4 + 3) + (3 + 3) + (4 + 2) + 3 + (4 + 3));
}

TEST(ModelConfigTest, EveryUnknownKeyIsAnErrorThatNamesIt) {
  json config = json::parse(kFamilyConfig);
  int objects = 0;
  ForEachObject(config, "", [&](json& object, const std::string& path) {
    const json copy = object;
    object["dropout"] = 0;
    EXPECT_THAT(
        ParseModelConfig(config.dump()),
        StatusIs(kBad, HasSubstr("unknown key `" + (path.empty() ? "" : path + ".") + "dropout`")));
    object = copy;
    ++objects;
  });
  EXPECT_EQ(objects, 3 + 8 + 6);  // the document, attention, tokenizer; layers; their ssm
  // Keys of other kinds of layer, kernel and tokenizer are unknown too.
  EXPECT_THAT(ParseModelConfig(With("/layers/0/ssm", "{}")),
              StatusIs(kBad, HasSubstr("`layers[0].ssm`")));
  EXPECT_THAT(ParseModelConfig(With("/layers/1/ssm/length", "8")),
              StatusIs(kBad, HasSubstr("`layers[1].ssm.length`")));
  EXPECT_THAT(ParseModelConfig(With("/tokenizer/file", "\"x\"")),
              StatusIs(kBad, HasSubstr("`tokenizer.file`")));
}

TEST(ModelConfigTest, RefusesAKeyThatOccursTwice) {
  std::string text(kSmallConfig);
  text.insert(text.find("\"window\""), "\"window\": 16, ");
  EXPECT_THAT(ParseModelConfig(text), StatusIs(kBad, "`window` occurs twice"));
}

TEST(ModelConfigTest, RefusesOtherDocuments) {
  for (const char* text : {"[]", "3", "null", "", "{\"a\":"}) {
    EXPECT_THAT(ParseModelConfig(text), StatusIs(kBad)) << text;
  }
}

// The largest value of every size at once: what depends on their products must not overflow.
TEST(ModelConfigTest, AcceptsTheLargestSizes) {
  json config = json::parse(kSmallConfig);
  config["vocab_size"] = ModelConfig::kMaxVocabSize;
  config["hidden_size"] = ModelConfig::kMaxHiddenSize;
  config["num_heads"] = ModelConfig::kMaxNumHeads;
  config["head_dim"] = ModelConfig::kMaxHeadDim;
  config["ffn_size"] = ModelConfig::kMaxFfnSize;
  config["window"] = ModelConfig::kMaxWindow;
  config["layers"][1]["ssm"]["state_size"] = ModelConfig::kMaxStateSize;
  config["layers"] = json(ModelConfig::kMaxLayers, config["layers"][1]);
  const absl::StatusOr<ModelConfig> parsed = ParseModelConfig(config.dump());
  ASSERT_THAT(parsed, IsOk());
  EXPECT_EQ(parsed->attention_size(), 1 << 22);
  config["layers"].push_back(config["layers"][0]);
  EXPECT_THAT(ParseModelConfig(config.dump()), StatusIs(kBad, HasSubstr("`layers`")));
}

TEST(ModelConfigTest, ReadsTheGoldenConfigurations) {
  std::set<std::string> read;
  for (const auto& entry : std::filesystem::directory_iterator("tests/golden")) {
    if (!std::filesystem::exists(entry.path() / "config.json")) continue;
    std::ifstream file(entry.path() / "config.json");
    const std::string text((std::istreambuf_iterator<char>(file)),
                           std::istreambuf_iterator<char>());
    EXPECT_THAT(ParseModelConfig(text), IsOk()) << entry.path();
    read.insert(entry.path().filename().string());
  }
  EXPECT_THAT(read, testing::IsSupersetOf({"transformer", "bst_single_head_s4d",
                                           "bst_multi_head_s4", "bst_multi_filter_dss", "bst_s5",
                                           "bst_explicit", "brect", "hybrid"}));
}

}  // namespace
}  // namespace bst
