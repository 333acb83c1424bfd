#include "engine/checkpoint/random_checkpoint.h"

#include <cmath>
#include <filesystem>
#include <numbers>

#include "engine/checkpoint/checkpoint.h"
#include "engine/checkpoint/tensor_schema.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/engine/checkpoint/checkpoint_files.h"
#include "tests/support/status_matchers.h"

namespace bst {
namespace {

using testing::HasSubstr;

std::vector<double> Values(const TensorView& view) {
  std::vector<double> values;
  for (int64_t i = 0; i < view.shape().num_elements(); ++i) {
    if (view.dtype() == DType::kF32) values.push_back(view.as<const float>()[i]);
    if (view.dtype() == DType::kF16) values.push_back(ToFloat(view.as<const Float16>()[i]));
    if (view.dtype() == DType::kBF16) values.push_back(ToFloat(view.as<const BFloat16>()[i]));
  }
  return values;
}

double Mean(const std::vector<double>& values) {
  double sum = 0;
  for (const double x : values) sum += x;
  return sum / static_cast<double>(values.size());
}

double Deviation(const std::vector<double>& values) {
  const double mean = Mean(values);
  double sum = 0;
  for (const double x : values) sum += (x - mean) * (x - mean);
  return std::sqrt(sum / static_cast<double>(values.size()));
}

class RandomCheckpointTest : public testing::Test {
 protected:
  // kSmallConfig, made large enough for statistics: hundreds of features, two layers.
  RandomCheckpointTest() : config_(nlohmann::json::parse(kSmallConfig)) {
    config_["hidden_size"] = 192;
    config_["num_heads"] = 3;
    config_["head_dim"] = 64;
    config_["ffn_size"] = 256;
    config_["layers"][1]["ssm"]["state_size"] = 16;
    options_ = {.config_path = directory_.File("given.json"),
                .directory = directory_.File("out/model"),
                .seed = 7,
                .dtype = DType::kF32,
                .tokenizer_path = ""};
  }

  absl::Status Write() {
    directory_.Write("given.json", config_.dump(1));
    return WriteRandomCheckpoint(options_);
  }

  TestDirectory directory_;
  nlohmann::json config_;
  RandomCheckpointOptions options_;
};

// The new file beside the old index would be no checkpoint.
TEST_F(RandomCheckpointTest, LeavesAShardedCheckpointAlone) {
  ASSERT_THAT(Write(), IsOk());
  const std::string weights = directory_.Read("out/model/model.safetensors");
  directory_.Write("out/model/model.safetensors.index.json", R"({"weight_map": {}})");
  options_.seed = 8;
  EXPECT_THAT(Write(), StatusIs(absl::StatusCode::kFailedPrecondition,
                                HasSubstr("out/model/model.safetensors.index.json names")));
  EXPECT_TRUE(directory_.Read("out/model/model.safetensors") == weights);
}

TEST_F(RandomCheckpointTest, LoadsInEveryType) {
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    options_.dtype = dtype;
    ASSERT_THAT(Write(), IsOk());
    const absl::StatusOr<Checkpoint> checkpoint = Checkpoint::Open(options_.directory);
    ASSERT_THAT(checkpoint, IsOk());
    EXPECT_EQ(checkpoint->has_f32_matrices(), dtype == DType::kF32);
    for (const TensorSpec& spec : TensorSchema(checkpoint->config())) {
      EXPECT_EQ(checkpoint->Tensor(spec.name).dtype(), spec.f32_only ? DType::kF32 : dtype)
          << spec.name;
    }
  }
}

TEST_F(RandomCheckpointTest, ConfigurationIsCopiedAsItIs) {
  ASSERT_THAT(Write(), IsOk());
  EXPECT_EQ(directory_.Read("out/model/config.json"), config_.dump(1));
}

TEST_F(RandomCheckpointTest, SameSeedSameFileAndOtherSeedOtherFile) {
  ASSERT_THAT(Write(), IsOk());
  const std::string first = directory_.Read("out/model/model.safetensors");
  ASSERT_THAT(Write(), IsOk());  // replaces what is there
  EXPECT_TRUE(directory_.Read("out/model/model.safetensors") == first);
  options_.seed = 8;
  ASSERT_THAT(Write(), IsOk());
  EXPECT_FALSE(directory_.Read("out/model/model.safetensors") == first);
}

TEST_F(RandomCheckpointTest, NumbersAreDistributedAsPromised) {
  ASSERT_THAT(Write(), IsOk());
  const absl::StatusOr<Checkpoint> checkpoint = Checkpoint::Open(options_.directory);
  ASSERT_THAT(checkpoint, IsOk());
  const auto values = [&](const char* name) { return Values(checkpoint->Tensor(name)); };
  const auto expect_normal = [&](const char* name, double deviation) {
    // Five standard errors of the mean; of the deviation it is 1 / sqrt(2 n).
    const auto count = static_cast<double>(values(name).size());
    EXPECT_NEAR(Mean(values(name)), 0, 5 * deviation / std::sqrt(count)) << name;
    EXPECT_NEAR(Deviation(values(name)), deviation, 5 * deviation / std::sqrt(2 * count)) << name;
  };
  expect_normal("embed.weight", 0.02);
  expect_normal("lm_head.weight", 0.02);
  expect_normal("layers.0.attn.q_proj.weight", 1 / std::sqrt(192.0));
  expect_normal("layers.1.cross.v_proj.weight", 1 / std::sqrt(192.0));
  expect_normal("layers.0.ffn.gate_proj.weight", 1 / std::sqrt(192.0));
  expect_normal("layers.0.attn.o_proj.weight", 1 / std::sqrt(192.0) / 2);  // sqrt(2 * 2 layers)
  expect_normal("layers.1.attn.o_proj.weight", 1 / std::sqrt(384.0) / 2);
  expect_normal("layers.0.ffn.down_proj.weight", 1 / std::sqrt(256.0) / 2);
  expect_normal("layers.0.attn.position_bias", 0.05);
  expect_normal("layers.1.ssm.c", std::sqrt(0.5));
  expect_normal("layers.1.ssm.d", 1);

  for (const double x : values("layers.1.ssm_norm.weight")) EXPECT_EQ(x, 1);
  for (const double x : values("layers.1.cross.scale")) EXPECT_EQ(x, 8);
  // logit deviation = gain * 0.02 * sqrt(D) * logit_scale = 1
  for (const double x : values("final_norm.weight"))
    EXPECT_NEAR(x * 0.02 * std::sqrt(192.0) * 0.5, 1, 1e-6);
  const std::vector<double> log_dt = values("layers.1.ssm.log_dt");
  for (const double x : log_dt)
    EXPECT_TRUE(x >= std::log(1e-3) - 1e-6 && x <= std::log(1e-1) + 1e-6) << x;
  EXPECT_NEAR(Mean(log_dt), std::log(1e-2), 5 * std::log(100.0) / std::sqrt(12 * 192.0));
  for (const double x : values("layers.1.ssm.log_neg_a_real"))
    EXPECT_NEAR(-std::exp(x), -0.5, 1e-6);
  const std::vector<double> a_imag = values("layers.1.ssm.a_imag"), b = values("layers.1.ssm.b");
  for (size_t i = 0; i < a_imag.size(); ++i) {
    EXPECT_NEAR(a_imag[i], std::numbers::pi * static_cast<double>(i % 8), 1e-5);
    EXPECT_EQ(b[2 * i], 1);
    EXPECT_EQ(b[2 * i + 1], 0);
  }
}

TEST_F(RandomCheckpointTest, LogitsKeepTheirDeviationWhateverTheSignOfTheirScale) {
  config_["logit_scale"] = -0.5;
  ASSERT_THAT(Write(), IsOk());
  const auto checkpoint = Checkpoint::Open(options_.directory);
  ASSERT_THAT(checkpoint, IsOk());
  for (const double x : Values(checkpoint->Tensor("final_norm.weight")))
    EXPECT_NEAR(x * 0.02 * std::sqrt(192.0) * 0.5, 1, 1e-6);
}

// The same of the types of layer that kSmallConfig does not have.
TEST_F(RandomCheckpointTest, NumbersOfEveryTypeOfLayerAreDistributedAsPromised) {
  config_ = nlohmann::json::parse(kFamilyConfig);
  config_["hidden_size"] = 192;
  config_["layers"][2]["ssm"]["state_size"] = 16;
  config_["layers"][5]["ssm"]["length"] = 64;
  config_["layers"][6]["num_states"] = 32;
  ASSERT_THAT(Write(), IsOk());
  const absl::StatusOr<Checkpoint> checkpoint = Checkpoint::Open(options_.directory);
  ASSERT_THAT(checkpoint, IsOk());
  const auto values = [&](const char* name) { return Values(checkpoint->Tensor(name)); };
  const auto expect_normal = [&](const char* name, double mean, double deviation) {
    const auto count = static_cast<double>(values(name).size());
    EXPECT_NEAR(Mean(values(name)), mean, 5 * deviation / std::sqrt(count)) << name;
    EXPECT_NEAR(Deviation(values(name)), deviation, 5 * deviation / std::sqrt(2 * count)) << name;
  };
  const double writes = std::sqrt(2 * 8.0);  // 8 layers write to the residual stream
  expect_normal("layers.2.cross.k_proj.weight", 0, 1 / std::sqrt(192.0));
  expect_normal("layers.3.cross.context_ids", 0, 0.5);
  expect_normal("layers.3.cross.initial_context", 0, 1);
  expect_normal("layers.3.ssm.w", 0, std::sqrt(0.5));
  expect_normal("layers.4.ssm.b", 0, std::sqrt(0.5 / 192));
  expect_normal("layers.4.ssm.c", 0, std::sqrt(0.5));
  expect_normal("layers.6.state.ids", 0, 0.5);
  expect_normal("layers.6.state.initial", 0, 1);
  expect_normal("layers.6.state.gate_bias", 1, 1);
  expect_normal("layers.6.state.o_proj.weight", 0, 1 / std::sqrt(16.0));
  expect_normal("layers.6.attn.o_proj.weight", 0, 1 / std::sqrt(16.0) / writes);
  expect_normal("layers.7.gss.u_proj.weight", 0, 1 / std::sqrt(192.0));
  expect_normal("layers.7.gss.out_proj.weight", 0, 1 / std::sqrt(10.0) / writes);

  const std::vector<double> lambda_imag = values("layers.4.ssm.lambda_imag");
  for (size_t m = 0; m < lambda_imag.size(); ++m) {
    EXPECT_EQ(values("layers.4.ssm.lambda_real")[m], -0.5);
    EXPECT_NEAR(lambda_imag[m], std::numbers::pi * static_cast<double>(m), 1e-5);
  }
  // S4D-Inv, and b b^H = 2 p p^H as in HiPPO-LegS.
  const std::vector<double> a_imag = values("layers.2.ssm.a_imag");
  const std::vector<double> p = values("layers.2.ssm.p"), b = values("layers.2.ssm.b");
  for (size_t i = 0; i < a_imag.size(); ++i) {
    const auto m = static_cast<double>(i % 8);
    EXPECT_NEAR(a_imag[i], 16 / std::numbers::pi * (16 / (2 * m + 1) - 1), 1e-4);
    EXPECT_NEAR(p[2 * i] * p[2 * i], 2 / std::numbers::pi * a_imag[i], 1e-4);
    EXPECT_NEAR(b[2 * i], std::numbers::sqrt2 * p[2 * i], 1e-5);
    EXPECT_EQ(p[2 * i + 1], 0);
    EXPECT_EQ(b[2 * i + 1], 0);
  }
}

// Energy 1 on average, most of it in the early taps.
TEST_F(RandomCheckpointTest, FiltersDecay) {
  config_["layers"][1]["ssm"] = {{"kernel", "explicit"}, {"length", 64}};
  ASSERT_THAT(Write(), IsOk());
  const absl::StatusOr<Checkpoint> checkpoint = Checkpoint::Open(options_.directory);
  ASSERT_THAT(checkpoint, IsOk());
  const std::vector<double> filter = Values(checkpoint->Tensor("layers.1.ssm.filter"));
  ASSERT_EQ(filter.size(), 192u * 64u);
  double first_half = 0, second_half = 0;
  for (size_t i = 0; i < filter.size(); ++i) {
    (i % 64 < 32 ? first_half : second_half) += filter[i] * filter[i];
  }
  EXPECT_NEAR((first_half + second_half) / 192, 1, 0.3);
  EXPECT_GT(first_half, 20 * second_half);
  EXPECT_GT(second_half, 0);
}

TEST_F(RandomCheckpointTest, TensorsDifferFromEachOther) {
  ASSERT_THAT(Write(), IsOk());
  const absl::StatusOr<Checkpoint> checkpoint = Checkpoint::Open(options_.directory);
  ASSERT_THAT(checkpoint, IsOk());
  EXPECT_NE(Values(checkpoint->Tensor("layers.0.attn.q_proj.weight")),
            Values(checkpoint->Tensor("layers.0.attn.k_proj.weight")));
}

TEST_F(RandomCheckpointTest, TokenizerIsCopiedUnderItsName) {
  config_["tokenizer"] = {{"type", "sentencepiece"}, {"file", "spm.model"}};
  ASSERT_THAT(Write(), IsOk());
  EXPECT_FALSE(std::filesystem::exists(directory_.File("out/model/spm.model")));
  directory_.Write("trained", "pieces");
  options_.tokenizer_path = directory_.File("trained");
  ASSERT_THAT(Write(), IsOk());
  EXPECT_EQ(directory_.Read("out/model/spm.model"), "pieces");
  options_.tokenizer_path = directory_.File("out/model/spm.model");  // already in its place
  ASSERT_THAT(Write(), IsOk());
  EXPECT_EQ(directory_.Read("out/model/spm.model"), "pieces");

  options_.tokenizer_path = directory_.File("none");
  EXPECT_THAT(Write(), StatusIs(absl::StatusCode::kNotFound, HasSubstr("none")));
  config_["tokenizer"] = {{"type", "byte"}};
  EXPECT_THAT(Write(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("\"byte\"")));
}

TEST_F(RandomCheckpointTest, ErrorsSayWhatIsWrong) {
  EXPECT_THAT(WriteRandomCheckpoint(options_),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("given.json")));
  config_["window"] = 0;
  EXPECT_THAT(Write(), StatusIs(absl::StatusCode::kFailedPrecondition,
                                HasSubstr("given.json: `window` is 0")));
  config_["window"] = 8;
  directory_.Write("file", "");
  options_.directory = directory_.File("file") + "/model";
  EXPECT_THAT(Write(), StatusIs(absl::StatusCode::kInternal, HasSubstr("cannot create")));
}

}  // namespace
}  // namespace bst
