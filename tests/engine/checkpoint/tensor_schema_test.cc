#include "engine/checkpoint/tensor_schema.h"

#include <map>
#include <set>
#include <string>

#include "engine/checkpoint/safetensors.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/engine/checkpoint/checkpoint_files.h"
#include "tests/support/status_matchers.h"

namespace bst {
namespace {

using nlohmann::json;

std::vector<TensorSpec> SchemaOf(const json& config) {
  const absl::StatusOr<ModelConfig> parsed = ParseModelConfig(config.dump());
  EXPECT_THAT(parsed, IsOk());
  return TensorSchema(*parsed);
}

std::string Describe(const std::vector<TensorSpec>& schema) {
  std::string text;
  for (const TensorSpec& spec : schema) {
    text += spec.name + " " + spec.shape.ToString() + (spec.f32_only ? " f32" : "") +
            (spec.optional ? " optional" : "") + "\n";
  }
  return text;
}

std::set<std::string> NamesOf(const std::vector<TensorSpec>& schema) {
  std::set<std::string> names;
  for (const TensorSpec& spec : schema) names.insert(spec.name);
  return names;
}

TEST(TensorSchemaTest, ListsEveryTensorInTheOrderOfTheForwardPass) {
  EXPECT_EQ(Describe(SchemaOf(json::parse(kSmallConfig))), R"(embed.weight [260, 12]
layers.0.attn_norm.weight [12]
layers.0.attn.q_proj.weight [8, 12]
layers.0.attn.k_proj.weight [8, 12]
layers.0.attn.v_proj.weight [8, 12]
layers.0.attn.scale [2] f32
layers.0.attn.position_bias [2, 8] f32
layers.0.attn.o_proj.weight [12, 8]
layers.0.ffn_norm.weight [12]
layers.0.ffn.gate_proj.weight [20, 12]
layers.0.ffn.up_proj.weight [20, 12]
layers.0.ffn.down_proj.weight [12, 20]
layers.1.attn_norm.weight [12]
layers.1.attn.q_proj.weight [8, 12]
layers.1.attn.k_proj.weight [8, 12]
layers.1.attn.v_proj.weight [8, 12]
layers.1.attn.scale [2] f32
layers.1.attn.position_bias [2, 8] f32
layers.1.ssm_norm.weight [12]
layers.1.ssm.log_dt [1, 12] f32
layers.1.ssm.log_neg_a_real [1, 12, 3] f32
layers.1.ssm.a_imag [1, 12, 3] f32
layers.1.ssm.b [1, 12, 3, 2] f32 optional
layers.1.ssm.c [1, 12, 3, 2] f32
layers.1.ssm.d [1, 12] f32
layers.1.cross.norm.weight [12]
layers.1.cross.q_proj.weight [8, 12]
layers.1.cross.k_proj.weight [8, 12]
layers.1.cross.v_proj.weight [8, 12]
layers.1.cross.scale [2] f32
layers.1.attn.o_proj.weight [12, 16]
layers.1.ffn_norm.weight [12]
layers.1.ffn.gate_proj.weight [20, 12]
layers.1.ffn.up_proj.weight [20, 12]
layers.1.ffn.down_proj.weight [12, 20]
final_norm.weight [12]
lm_head.weight [260, 12]
)");
}

// The tensors of one layer that no transformer layer has, with the output projection, which is
// wider beside a cross-attention.
std::string DescribeOwn(const std::vector<TensorSpec>& schema, int layer) {
  std::vector<TensorSpec> own;
  for (const TensorSpec& spec : schema) {
    const std::string prefix = LayerTensorName(layer, "");
    if (!spec.name.starts_with(prefix)) continue;
    const std::string name = spec.name.substr(prefix.size());
    if (name.starts_with("ffn")) continue;
    if (name.starts_with("attn") && name != "attn.o_proj.weight") continue;
    own.push_back(spec);
    own.back().name = name;
  }
  return Describe(own);
}

TEST(TensorSchemaTest, ListsTheTensorsOfEveryTypeOfLayer) {
  const std::vector<TensorSpec> schema = SchemaOf(json::parse(kFamilyConfig));
  EXPECT_EQ(DescribeOwn(schema, 0), "attn.o_proj.weight [12, 8]\n");
  const std::string single_head = R"(cross.norm.weight [12]
cross.q_proj.weight [8, 12]
cross.k_proj.weight [8, 12]
cross.v_proj.weight [8, 12]
cross.scale [2] f32
attn.o_proj.weight [12, 16]
)";
  EXPECT_EQ(DescribeOwn(schema, 1), R"(ssm_norm.weight [12]
ssm.log_dt [1, 12] f32
ssm.log_neg_a_real [1, 12, 3] f32
ssm.a_imag [1, 12, 3] f32
ssm.b [1, 12, 3, 2] f32 optional
ssm.c [1, 12, 3, 2] f32
ssm.d [1, 12] f32
)" + single_head);
  EXPECT_EQ(DescribeOwn(schema, 2), R"(ssm_norm.weight [12]
ssm.log_dt [2, 12] f32
ssm.log_neg_a_real [2, 12, 2] f32
ssm.a_imag [2, 12, 2] f32
ssm.p [2, 12, 2, 2] f32
ssm.b [2, 12, 2, 2] f32
ssm.c [2, 12, 2, 2] f32
ssm.d [2, 12] f32
cross.norm.weight [12]
cross.q_proj.weight [8, 12]
cross.k_proj.weight [2, 4, 12]
cross.v_proj.weight [2, 4, 12]
cross.scale [2] f32
attn.o_proj.weight [12, 16]
)");
  EXPECT_EQ(DescribeOwn(schema, 3), R"(ssm_norm.weight [12]
ssm.log_dt [3, 12] f32
ssm.log_neg_a_real [5] f32
ssm.a_imag [5] f32
ssm.w [3, 12, 5, 2] f32
ssm.d [3, 12] f32
cross.norm.weight [12]
cross.context_ids [3, 12]
cross.initial_context [3, 12]
cross.q_proj.weight [8, 12]
cross.k_proj.weight [8, 12]
cross.v_proj.weight [8, 12]
cross.scale [2] f32
attn.o_proj.weight [12, 16]
)");
  EXPECT_EQ(DescribeOwn(schema, 4), R"(ssm_norm.weight [12]
ssm.log_step [3] f32
ssm.lambda_real [3] f32
ssm.lambda_imag [3] f32
ssm.b [3, 12, 2] f32
ssm.c [1, 12, 3, 2] f32
ssm.d [1, 12] f32
)" + single_head);
  EXPECT_EQ(DescribeOwn(schema, 5), R"(ssm_norm.weight [12]
ssm.filter [2, 12, 7] f32
ssm.d [2, 12] f32
cross.norm.weight [12]
cross.context_ids [2, 12]
cross.initial_context [2, 12]
cross.q_proj.weight [8, 12]
cross.k_proj.weight [8, 12]
cross.v_proj.weight [8, 12]
cross.scale [2] f32
attn.o_proj.weight [12, 16]
)");
  EXPECT_EQ(DescribeOwn(schema, 6), R"(state.initial [4, 12]
state.norm.weight [12]
state.ids [4, 12]
state.k_proj.weight [8, 12]
state.v_proj.weight [8, 12]
state.q_proj.weight [8, 12]
state.cross_q_proj.weight [8, 12]
cross.q_proj.weight [8, 12]
cross.scale [2] f32
state.scale [2] f32
state.cross_scale [2] f32
state.o_proj.weight [12, 16]
state.gate_bias [12] f32
attn.o_proj.weight [12, 16]
)");
  EXPECT_EQ(DescribeOwn(schema, 7), R"(gss.norm.weight [12]
gss.u_proj.weight [10, 12]
gss.v_proj.weight [9, 12]
ssm.log_dt [1, 9] f32
ssm.log_neg_a_real [3] f32
ssm.a_imag [3] f32
ssm.w [1, 9, 3, 2] f32
ssm.d [1, 9] f32
gss.gate_proj.weight [10, 9]
gss.out_proj.weight [12, 10]
)");
  // Attention and feed-forward are in every layer but the last.
  const std::set<std::string> names = NamesOf(schema);
  for (int layer = 0; layer < 8; ++layer) {
    for (const char* suffix :
         {"attn_norm.weight", "attn.q_proj.weight", "attn.k_proj.weight", "attn.v_proj.weight",
          "attn.scale", "attn.position_bias", "ffn_norm.weight", "ffn.gate_proj.weight",
          "ffn.up_proj.weight", "ffn.down_proj.weight"}) {
      EXPECT_EQ(names.contains(LayerTensorName(layer, suffix)), layer != 7) << layer << suffix;
    }
  }
}

TEST(TensorSchemaTest, OnlyAnS4dKernelMayGoWithoutB) {
  for (const TensorSpec& spec : SchemaOf(json::parse(kFamilyConfig))) {
    EXPECT_EQ(spec.optional, spec.name == "layers.1.ssm.b") << spec.name;
  }
}

// The largest sizes that a configuration may have, all at once: byte counts still fit.
TEST(TensorSchemaTest, TheLargestTensorsCanBeCounted) {
  json config = json::parse(kFamilyConfig);
  config["vocab_size"] = ModelConfig::kMaxVocabSize;
  config["hidden_size"] = ModelConfig::kMaxHiddenSize;
  config["num_heads"] = ModelConfig::kMaxNumHeads;
  config["head_dim"] = ModelConfig::kMaxHeadDim;
  config["ffn_size"] = ModelConfig::kMaxFfnSize;
  for (json& layer : config["layers"]) {
    if (layer.contains("num_states")) layer["num_states"] = ModelConfig::kMaxNumStates;
    if (layer.contains("inner_size")) layer["inner_size"] = ModelConfig::kMaxFfnSize;
    if (layer.contains("ssm_size")) layer["ssm_size"] = ModelConfig::kMaxHiddenSize;
    if (!layer.contains("ssm")) continue;
    json& ssm = layer["ssm"];
    if (ssm.contains("state_size")) ssm["state_size"] = ModelConfig::kMaxStateSize;
    if (ssm.contains("length")) ssm["length"] = ModelConfig::kMaxFilterLength;
  }
  for (const TensorSpec& spec : SchemaOf(config)) {
    double bytes = sizeof(float);
    for (const int64_t dim : spec.shape.dims()) bytes *= static_cast<double>(dim);
    EXPECT_LT(bytes, 0x1p62) << spec.name;
    EXPECT_EQ(static_cast<double>(spec.shape.num_elements()), bytes / sizeof(float)) << spec.name;
  }
}

TEST(TensorSchemaTest, TensorsComeAndGoWithTheirOptions) {
  const json full = json::parse(kSmallConfig);
  const std::set<std::string> all = NamesOf(SchemaOf(full));
  const auto missing_with = [&](const json& patch) {
    json config = full;
    config.merge_patch(patch);
    std::set<std::string> gone = all;
    for (const std::string& name : NamesOf(SchemaOf(config))) gone.erase(name);
    return gone;
  };
  using Names = std::set<std::string>;
  const Names gates = {"layers.0.ffn.gate_proj.weight", "layers.1.ffn.gate_proj.weight"};
  const Names biases = {"layers.0.attn.position_bias", "layers.1.attn.position_bias"};
  EXPECT_EQ(missing_with({{"tie_embeddings", true}}), Names{"lm_head.weight"});
  EXPECT_EQ(missing_with({{"ffn_activation", "relu"}}), gates);
  EXPECT_EQ(missing_with({{"ffn_activation", "gelu"}}), gates);
  EXPECT_EQ(missing_with({{"ffn_activation", "swiglu"}}), Names{});
  EXPECT_EQ(missing_with({{"attention", {{"position", "rope"}}}}), biases);
  EXPECT_EQ(missing_with({{"attention", {{"position", "none"}}}}), biases);
  EXPECT_EQ(missing_with({{"attention", {{"qk_norm", false}}}}),
            (Names{"layers.0.attn.scale", "layers.1.attn.scale", "layers.1.cross.scale"}));
}

TEST(TensorSchemaTest, NoTypeOfLayerHasScalesWithoutQkNorm) {
  json config = json::parse(kFamilyConfig);
  config["attention"]["qk_norm"] = false;
  for (const TensorSpec& spec : SchemaOf(config)) {
    EXPECT_FALSE(spec.name.ends_with("scale")) << spec.name;
  }
}

TEST(TensorSchemaTest, LayerTensorName) {
  EXPECT_EQ(LayerTensorName(3, "attn.q_proj.weight"), "layers.3.attn.q_proj.weight");
}

}  // namespace
}  // namespace bst
