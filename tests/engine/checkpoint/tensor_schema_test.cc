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

TEST(TensorSchemaTest, LayerTensorName) {
  EXPECT_EQ(LayerTensorName(3, "attn.q_proj.weight"), "layers.3.attn.q_proj.weight");
}

}  // namespace
}  // namespace bst
