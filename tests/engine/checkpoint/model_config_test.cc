#include "engine/checkpoint/model_config.h"

#include <filesystem>
#include <fstream>
#include <iterator>
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

constexpr auto kBad = absl::StatusCode::kFailedPrecondition;

// kSmallConfig with one value replaced: `pointer` is a JSON pointer, `value` is JSON.
std::string With(const std::string& pointer, const std::string& value) {
  json config = json::parse(kSmallConfig);
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

TEST(ModelConfigTest, RefusesValuesThatAreWrong) {
  struct Case {
    const char* pointer;
    const char* value;
    const char* key;  // as the message names it
  };
  for (const Case& c : std::vector<Case>{
           {"/model_type", "\"llama\"", "`model_type` is \"llama\""},
           {"/model_type", "1", "`model_type` is 1"},
           {"/format_version", "2", "`format_version` is 2"},
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
           {"/norm_eps", "2", "`norm_eps` is 2"},
           {"/logit_scale", "0.0", "`logit_scale` is 0.0"},
           {"/logit_scale", "1e300", "`logit_scale` is 1e+300"},
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
  json config = json::parse(kSmallConfig);
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
  EXPECT_EQ(keys, 18 + 8 + 1 + 3 + 3 + 2);
}

TEST(ModelConfigTest, EveryUnknownKeyIsAnErrorThatNamesIt) {
  json config = json::parse(kSmallConfig);
  int objects = 0;
  ForEachObject(config, "", [&](json& object, const std::string& path) {
    const json copy = object;
    object["num_states"] = 3;
    EXPECT_THAT(ParseModelConfig(config.dump()),
                StatusIs(kBad, HasSubstr("unknown key `" + (path.empty() ? "" : path + ".") +
                                         "num_states`")));
    object = copy;
    ++objects;
  });
  EXPECT_EQ(objects, 6);
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

TEST(ModelConfigTest, WhatThisBuildCannotRunIsUnimplementedAndNamed) {
  constexpr auto kUnimplemented = absl::StatusCode::kUnimplemented;
  struct Case {
    const char* pointer;
    const char* value;
    const char* message;
  };
  for (const Case& c : std::vector<Case>{
           {"/layers/0", R"({"type": "brect", "num_states": 4, "gate": "fixed"})",
            "`layers[0].type` is \"brect\""},
           {"/layers/0", R"({"type": "gss"})", "`layers[0].type` is \"gss\""},
           {"/layers/1/context", "\"multi_head\"", "`layers[1].context` is \"multi_head\""},
           {"/layers/1/context", "\"multi_filter\"", "only runs \"single_head\""},
           {"/layers/1/ssm", R"({"kernel": "explicit", "length": 9})",
            "`layers[1].ssm.kernel` is \"explicit\""},
           {"/layers/1/ssm/kernel", "\"dss\"", "only runs \"s4d\""},
           {"/layers/1/ssm/kernel", "\"s4\"", "\"s4\""},
           {"/layers/1/ssm/kernel", "\"s5\"", "\"s5\""},
       }) {
    EXPECT_THAT(ParseModelConfig(With(c.pointer, c.value)),
                StatusIs(kUnimplemented, HasSubstr(c.message)))
        << c.value;
  }
  // A mistake elsewhere comes first.
  json config = json::parse(With("/layers/0", R"({"type": "gss"})"));
  config["pad_token_id"] = 1000;
  EXPECT_THAT(ParseModelConfig(config.dump()), StatusIs(kBad, HasSubstr("pad_token_id")));
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

// Every example in the tree is either read or part of the format and not run by this build.
TEST(ModelConfigTest, ReadsTheGoldenConfigurations) {
  std::set<std::string> runs;
  for (const auto& entry : std::filesystem::directory_iterator("tests/golden")) {
    if (!std::filesystem::exists(entry.path() / "config.json")) continue;
    std::ifstream file(entry.path() / "config.json");
    const std::string text((std::istreambuf_iterator<char>(file)),
                           std::istreambuf_iterator<char>());
    const absl::StatusOr<ModelConfig> config = ParseModelConfig(text);
    if (config.ok()) {
      runs.insert(entry.path().filename().string());
    } else {
      EXPECT_THAT(config, StatusIs(absl::StatusCode::kUnimplemented)) << entry.path();
    }
  }
  EXPECT_THAT(runs, testing::IsSupersetOf({"transformer", "bst_single_head_s4d"}));
}

}  // namespace
}  // namespace bst
