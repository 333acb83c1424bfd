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
