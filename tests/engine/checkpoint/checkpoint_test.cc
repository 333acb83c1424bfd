#include "engine/checkpoint/checkpoint.h"

#include <cstring>
#include <filesystem>
#include <functional>
#include <limits>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/engine/checkpoint/checkpoint_files.h"
#include "tests/support/status_matchers.h"

namespace bst {
namespace {

using testing::AllOf;
using testing::HasSubstr;

class CheckpointTest : public testing::Test {
 protected:
  CheckpointTest() { Use(kSmallConfig); }

  // Starts from a sound checkpoint of this configuration.
  void Use(std::string_view config) {
    config_ = config;
    tensors_ = TensorsOf(config);
  }

  // Writes config.json and model.safetensors as they are now, and opens them.
  absl::StatusOr<Checkpoint> WriteAndOpen() {
    directory_.Write("config.json", config_);
    WriteTensors(directory_.File("model.safetensors"), tensors_);
    return Checkpoint::Open(directory_.path());
  }

  // Writes the tensors into two shards and an index.
  void WriteShards() {
    directory_.Write("config.json", config_);
    StoredTensors shards[2];
    index_ = {{"metadata", {{"total_size", 1}}}, {"weight_map", nlohmann::json::object()}};
    size_t i = 0;
    for (const auto& [name, tensor] : tensors_) {
      const size_t shard = i++ % 2;
      shards[shard][name] = tensor;
      index_["weight_map"][name] = kShardNames[shard];
    }
    for (const size_t shard : {0, 1})
      WriteTensors(directory_.File(kShardNames[shard]), shards[shard]);
  }
  absl::StatusOr<Checkpoint> OpenShards() {
    directory_.Write("model.safetensors.index.json", index_.dump());
    return Checkpoint::Open(directory_.path());
  }

  static constexpr const char* kShardNames[2] = {"model-00001-of-00002.safetensors",
                                                 "model-00002-of-00002.safetensors"};
  TestDirectory directory_;
  std::string_view config_;
  StoredTensors tensors_;
  nlohmann::json index_;
};

TEST_F(CheckpointTest, OpensASoundCheckpoint) {
  const absl::StatusOr<Checkpoint> checkpoint = WriteAndOpen();
  ASSERT_THAT(checkpoint, IsOk());
  EXPECT_EQ(checkpoint->directory(), directory_.path());
  EXPECT_EQ(checkpoint->config().hidden_size, 12);
  EXPECT_FALSE(checkpoint->has_f32_matrices());
  int64_t elements = 0;
  for (auto& [name, tensor] : tensors_) {
    ASSERT_TRUE(checkpoint->Has(name)) << name;
    const TensorView view = checkpoint->Tensor(name);
    EXPECT_EQ(view.dtype(), tensor.dtype);
    EXPECT_EQ(view.shape(), Shape(tensor.shape));
    EXPECT_EQ(std::memcmp(view.data(), tensor.bytes.data(), tensor.bytes.size()), 0) << name;
    elements += view.shape().num_elements();
  }
  EXPECT_EQ(checkpoint->num_parameters(), elements);
  EXPECT_FALSE(checkpoint->Has("layers.2.attn_norm.weight"));
  EXPECT_EQ(checkpoint->generation_defaults().temperature, std::nullopt);
}

TEST_F(CheckpointTest, OpensEveryTypeOfLayer) {
  Use(kFamilyConfig);
  const absl::StatusOr<Checkpoint> checkpoint = WriteAndOpen();
  ASSERT_THAT(checkpoint, IsOk());
  for (auto& [name, tensor] : tensors_) {
    ASSERT_TRUE(checkpoint->Has(name)) << name;
    EXPECT_EQ(checkpoint->Tensor(name).shape(), Shape(tensor.shape)) << name;
  }
}

TEST_F(CheckpointTest, ViewsStayValidWhenTheCheckpointIsMoved) {
  absl::StatusOr<Checkpoint> opened = WriteAndOpen();
  ASSERT_THAT(opened, IsOk());
  const void* before = opened->Tensor("embed.weight").data();
  const Checkpoint checkpoint = *std::move(opened);
  EXPECT_EQ(checkpoint.Tensor("embed.weight").data(), before);
  EXPECT_EQ(checkpoint.Tensor("embed.weight").as<const uint16_t>()[0],
            tensors_["embed.weight"].halves()[0]);
}

TEST_F(CheckpointTest, IsNamedAfterItsDirectory) {
  ASSERT_THAT(WriteAndOpen(), IsOk());
  const std::string expected = std::filesystem::path(directory_.path()).filename();
  for (const char* suffix : {"", "/", "/.", "//"}) {
    const absl::StatusOr<Checkpoint> checkpoint = Checkpoint::Open(directory_.path() + suffix);
    ASSERT_THAT(checkpoint, IsOk());
    EXPECT_EQ(checkpoint->name(), expected) << suffix;
  }
}

TEST_F(CheckpointTest, AnyFloatingTypeWillDoForMatricesAndGains) {
  tensors_["embed.weight"] = MakeTensor(DType::kF16, {260, 12});
  tensors_["final_norm.weight"] = MakeTensor(DType::kF32, {12});
  absl::StatusOr<Checkpoint> checkpoint = WriteAndOpen();
  ASSERT_THAT(checkpoint, IsOk());
  EXPECT_FALSE(checkpoint->has_f32_matrices());  // gains are no matrices
  for (const char* matrix : {"embed.weight", "lm_head.weight", "layers.0.attn.o_proj.weight",
                             "layers.1.cross.v_proj.weight"}) {
    StoredTensors original = tensors_;
    tensors_[matrix] = MakeTensor(DType::kF32, tensors_[matrix].shape);
    checkpoint = WriteAndOpen();
    ASSERT_THAT(checkpoint, IsOk());
    EXPECT_TRUE(checkpoint->has_f32_matrices()) << matrix;
    tensors_ = original;
  }
}

TEST_F(CheckpointTest, OptionalTensorMayBeAbsent) {
  tensors_.erase("layers.1.ssm.b");
  const absl::StatusOr<Checkpoint> checkpoint = WriteAndOpen();
  ASSERT_THAT(checkpoint, IsOk());
  EXPECT_FALSE(checkpoint->Has("layers.1.ssm.b"));
}

TEST_F(CheckpointTest, EveryMissingTensorIsNamed) {
  Use(kFamilyConfig);
  const StoredTensors all = tensors_;
  for (const auto& [name, tensor] : all) {
    if (name == "layers.1.ssm.b") continue;
    tensors_.erase(name);
    EXPECT_THAT(WriteAndOpen(),
                StatusIs(kBad, AllOf(HasSubstr("tensor '" + name + "'"), HasSubstr("is missing"),
                                     HasSubstr(directory_.path()))));
    tensors_ = all;
  }
}

TEST_F(CheckpointTest, EveryWrongShapeIsNamed) {
  Use(kFamilyConfig);
  const StoredTensors all = tensors_;
  for (const auto& [name, tensor] : all) {
    std::vector<int64_t> shape = tensor.shape;
    ++shape.back();
    tensors_[name] = MakeTensor(tensor.dtype, shape);
    EXPECT_THAT(WriteAndOpen(),
                StatusIs(kBad, AllOf(HasSubstr("tensor '" + name + "' has shape"),
                                     HasSubstr("asks for " + Shape(tensor.shape).ToString()))));
    tensors_ = all;
  }
}

TEST_F(CheckpointTest, EveryNonFiniteTensorIsNamedWithTheElement) {
  Use(kFamilyConfig);
  const StoredTensors all = tensors_;
  const float bad[] = {std::numeric_limits<float>::quiet_NaN(),
                       std::numeric_limits<float>::infinity(),
                       -std::numeric_limits<float>::infinity()};
  size_t i = 0;
  for (const auto& [name, tensor] : all) {
    StoredTensor& spoiled = tensors_[name];
    const size_t last = spoiled.bytes.size() / SizeOf(tensor.dtype) - 1;
    const float value = bad[i++ % 3];
    if (tensor.dtype == DType::kF32) {
      spoiled.floats()[last] = value;
    } else {
      spoiled.halves()[last] = ToBFloat16(value).bits;
    }
    std::vector<int64_t> place;
    for (const int64_t dim : tensor.shape) place.push_back(dim - 1);
    EXPECT_THAT(WriteAndOpen(),
                StatusIs(kBad, HasSubstr(absl::StrCat("tensor '", name, "' at element ",
                                                      Shape(place).ToString(), " is ", value,
                                                      ", must be finite"))));
    tensors_ = all;
  }
}

// What is wrong with a checkpoint, one thing at a time.
TEST_F(CheckpointTest, SpoiledTensorsAreRefusedWithTheReason) {
  struct Case {
    const char* name;
    std::function<void(StoredTensors&)> spoil;
    const char* message;
  };
  const std::vector<Case> cases = {
      {"superfluous tensor",
       [](StoredTensors& t) { t["extra.weight"] = MakeTensor(DType::kF32, {1}); },
       "tensor 'extra.weight' is superfluous"},
      {"layer too many",
       [](StoredTensors& t) { t["layers.8.attn_norm.weight"] = MakeTensor(DType::kBF16, {12}); },
       "tensor 'layers.8.attn_norm.weight' is superfluous"},
      {"superfluous bytes", [](StoredTensors& t) { t["note"] = MakeTensor(DType::kU8, {4}); },
       "tensor 'note' is superfluous"},
      {"bytes for a matrix",
       [](StoredTensors& t) {
         t["embed.weight"] = MakeTensor(DType::kU8, {260, 12});
       },
       "tensor 'embed.weight' has dtype U8, must be F32, F16 or BF16"},
      {"BF16 where F32 must be",
       [](StoredTensors& t) {
         t["layers.1.ssm.log_dt"] = MakeTensor(DType::kBF16, {1, 12});
       },
       "tensor 'layers.1.ssm.log_dt' has dtype BF16, must be F32"},
      {"F16 where F32 must be",
       [](StoredTensors& t) { t["layers.0.attn.scale"] = MakeTensor(DType::kF16, {2}); },
       "tensor 'layers.0.attn.scale' has dtype F16, must be F32"},
      {"transposed matrix",
       [](StoredTensors& t) {
         t["layers.0.ffn.up_proj.weight"] = MakeTensor(DType::kBF16, {12, 20});
       },
       "has shape [12, 20], config.json asks for [20, 12]"},
      {"another rank",
       [](StoredTensors& t) {
         t["final_norm.weight"] = MakeTensor(DType::kBF16, {1, 12});
       },
       "has shape [1, 12], config.json asks for [12]"},
      {"time step that underflows",
       [](StoredTensors& t) { t["layers.1.ssm.log_dt"].floats()[5] = -2000; },
       "tensor 'layers.1.ssm.log_dt' at element [0, 5]: time step is"},
      {"time step that overflows",
       [](StoredTensors& t) { t["layers.1.ssm.log_dt"].floats()[5] = 2000; },
       "tensor 'layers.1.ssm.log_dt' at element [0, 5]: time step is"},
      {"mode that overflows",
       [](StoredTensors& t) { t["layers.1.ssm.log_neg_a_real"].floats()[7] = 1e30f; },
       "tensor 'layers.1.ssm.log_neg_a_real' at element [0, 2, 1]: mode a = -inf"},
      {"matrices per head where all heads share one",
       [](StoredTensors& t) {
         t["layers.1.cross.k_proj.weight"] = MakeTensor(DType::kBF16, {2, 4, 12});
       },
       "tensor 'layers.1.cross.k_proj.weight' has shape [2, 4, 12], config.json asks for [8, 12]"},
      {"one matrix where every head has its own",
       [](StoredTensors& t) {
         t["layers.2.cross.v_proj.weight"] = MakeTensor(DType::kBF16, {8, 12});
       },
       "tensor 'layers.2.cross.v_proj.weight' has shape [8, 12], config.json asks for [2, 4, 12]"},
      {"s4 without its low-rank part", [](StoredTensors& t) { t.erase("layers.2.ssm.p"); },
       "tensor 'layers.2.ssm.p' [2, 12, 2, 2] is missing"},
      {"s4 without b", [](StoredTensors& t) { t.erase("layers.2.ssm.b"); },
       "tensor 'layers.2.ssm.b' [2, 12, 2, 2] is missing"},
      {"dss with b, which is 1",
       [](StoredTensors& t) {
         t["layers.3.ssm.b"] = MakeTensor(DType::kF32, {5, 2});
       },
       "tensor 'layers.3.ssm.b' is superfluous"},
      {"dss with modes of every feature",
       [](StoredTensors& t) {
         t["layers.3.ssm.a_imag"] = MakeTensor(DType::kF32, {3, 12, 5});
       },
       "tensor 'layers.3.ssm.a_imag' has shape [3, 12, 5], config.json asks for [5]"},
      {"a context too few",
       [](StoredTensors& t) {
         t["layers.3.cross.initial_context"] = MakeTensor(DType::kBF16, {2, 12});
       },
       "tensor 'layers.3.cross.initial_context' has shape [2, 12], config.json asks for [3, 12]"},
      {"s5 mode that is NaN",
       [](StoredTensors& t) {
         t["layers.4.ssm.lambda_real"].floats()[1] = std::numeric_limits<float>::quiet_NaN();
       },
       "tensor 'layers.4.ssm.lambda_real' at element [1] is nan, must be finite"},
      {"s5 mode that grows",
       [](StoredTensors& t) { t["layers.4.ssm.lambda_real"].floats()[2] = 0.125f; },
       "tensor 'layers.4.ssm.lambda_real' at element [2]: mode a = 0.125 + "},
      {"s5 time step that overflows",
       [](StoredTensors& t) { t["layers.4.ssm.log_step"].floats()[0] = 1000; },
       "tensor 'layers.4.ssm.log_step' at element [0]: time step is inf"},
      {"filter that is too long",
       [](StoredTensors& t) {
         t["layers.5.ssm.filter"] = MakeTensor(DType::kF32, {2, 12, 8});
       },
       "tensor 'layers.5.ssm.filter' has shape [2, 12, 8], config.json asks for [2, 12, 7]"},
      {"filter of all features in one",
       [](StoredTensors& t) {
         t["layers.5.ssm.filter"] = MakeTensor(DType::kF32, {24, 7});
       },
       "tensor 'layers.5.ssm.filter' has shape [24, 7]"},
      {"rounded filter",
       [](StoredTensors& t) {
         t["layers.5.ssm.filter"] = MakeTensor(DType::kBF16, {2, 12, 7});
       },
       "tensor 'layers.5.ssm.filter' has dtype BF16, must be F32"},
      {"rounded gate bias",
       [](StoredTensors& t) { t["layers.6.state.gate_bias"] = MakeTensor(DType::kBF16, {12}); },
       "tensor 'layers.6.state.gate_bias' has dtype BF16, must be F32"},
      {"a feed-forward network in a gss layer",
       [](StoredTensors& t) { t["layers.7.ffn_norm.weight"] = MakeTensor(DType::kBF16, {12}); },
       "tensor 'layers.7.ffn_norm.weight' is superfluous"},
      {"gss filters of the model's width",
       [](StoredTensors& t) {
         t["layers.7.ssm.d"] = MakeTensor(DType::kF32, {1, 12});
       },
       "tensor 'layers.7.ssm.d' has shape [1, 12], config.json asks for [1, 9]"},
  };
  Use(kFamilyConfig);
  const StoredTensors all = tensors_;
  for (const Case& c : cases) {
    c.spoil(tensors_);
    EXPECT_THAT(WriteAndOpen(),
                StatusIs(kBad, AllOf(HasSubstr(c.message), HasSubstr(directory_.path()))))
        << c.name;
    tensors_ = all;
  }
}

TEST_F(CheckpointTest, MissingFilesAreNotFound) {
  constexpr auto kNotFound = absl::StatusCode::kNotFound;
  EXPECT_THAT(Checkpoint::Open(directory_.File("none")),
              StatusIs(kNotFound, HasSubstr("no such directory")));
  EXPECT_THAT(Checkpoint::Open(directory_.path()), StatusIs(kNotFound, HasSubstr("config.json")));
  directory_.Write("config.json", kSmallConfig);
  EXPECT_THAT(Checkpoint::Open(directory_.path()),
              StatusIs(kNotFound, HasSubstr("model.safetensors")));
  EXPECT_THAT(Checkpoint::Open(directory_.File("config.json")), StatusIs(kNotFound));
}

TEST_F(CheckpointTest, ErrorsOfConfigurationsNameTheFile) {
  ASSERT_THAT(WriteAndOpen(), IsOk());
  directory_.Write("config.json", "{}");
  EXPECT_THAT(
      Checkpoint::Open(directory_.path()),
      StatusIs(kBad, AllOf(HasSubstr(directory_.File("config.json")), HasSubstr("`model_type`"))));
  directory_.Write("config.json", kSmallConfig);
  directory_.Write("generation_config.json", R"({"top_p": 3})");
  EXPECT_THAT(Checkpoint::Open(directory_.path()),
              StatusIs(kBad, AllOf(HasSubstr(directory_.File("generation_config.json")),
                                   HasSubstr("`top_p`"))));
  directory_.Write("generation_config.json", R"({"top_p": 0.5, "unknown": 1})");
  const absl::StatusOr<Checkpoint> checkpoint = Checkpoint::Open(directory_.path());
  ASSERT_THAT(checkpoint, IsOk());
  EXPECT_EQ(checkpoint->generation_defaults().top_p, 0.5f);
}

TEST_F(CheckpointTest, OpensShards) {
  WriteShards();
  const absl::StatusOr<Checkpoint> checkpoint = OpenShards();
  ASSERT_THAT(checkpoint, IsOk());
  for (auto& [name, tensor] : tensors_) {
    EXPECT_EQ(
        std::memcmp(checkpoint->Tensor(name).data(), tensor.bytes.data(), tensor.bytes.size()), 0)
        << name;
  }
}

TEST_F(CheckpointTest, ShardsAndIndexMustAgree) {
  struct Case {
    const char* name;
    std::function<void(nlohmann::json&)> spoil;
    const char* message;
  };
  const std::vector<Case> cases = {
      {"tensor not listed", [](auto& index) { index["weight_map"].erase("embed.weight"); },
       "tensor 'embed.weight' is not listed for this file"},
      {"tensor listed in the other shard",
       [](auto& index) { index["weight_map"]["embed.weight"] = kShardNames[1]; },
       "tensor 'embed.weight' is not listed for this file"},
      {"listed tensor in no shard",
       [](auto& index) { index["weight_map"]["ghost"] = kShardNames[0]; },
       "tensor 'ghost' is not in model-00001-of-00002.safetensors"},
      {"path above", [](auto& index) { index["weight_map"]["embed.weight"] = "../x.safetensors"; },
       "must be the name of a file in the checkpoint directory"},
      {"absolute path", [](auto& index) { index["weight_map"]["embed.weight"] = "/etc/passwd"; },
       "must be the name of a file in the checkpoint directory"},
      {"directory", [](auto& index) { index["weight_map"]["embed.weight"] = ".."; },
       "must be the name of a file in the checkpoint directory"},
      {"number for a file", [](auto& index) { index["weight_map"]["embed.weight"] = 3; },
       "tensor 'embed.weight' is in 3"},
      {"no map", [](auto& index) { index.erase("weight_map"); }, "no object `weight_map`"},
      {"map that is a list", [](auto& index) { index["weight_map"] = nlohmann::json::array(); },
       "no object `weight_map`"},
      {"not an object", [](auto& index) { index = 3; }, "no object `weight_map`"},
      {"no tensors", [](auto& index) { index["weight_map"] = nlohmann::json::object(); },
       "is missing"},
  };
  WriteShards();
  const nlohmann::json good = index_;
  for (const Case& c : cases) {
    c.spoil(index_);
    EXPECT_THAT(OpenShards(), StatusIs(kBad, HasSubstr(c.message))) << c.name;
    index_ = good;
  }
  index_["weight_map"]["embed.weight"] = "none.safetensors";
  EXPECT_THAT(OpenShards(), StatusIs(absl::StatusCode::kNotFound,
                                     AllOf(HasSubstr("the file of tensor 'embed.weight': "),
                                           HasSubstr("none.safetensors: No such file"))));
  directory_.Write("model.safetensors.index.json", R"({"weight_map": {"a": "x", "a": "y"}})");
  EXPECT_THAT(Checkpoint::Open(directory_.path()),
              StatusIs(kBad, HasSubstr("`weight_map.a` occurs twice")));
}

TEST_F(CheckpointTest, ATensorInTwoShardsIsRefused) {
  WriteShards();
  StoredTensors both = tensors_;
  WriteTensors(directory_.File(kShardNames[1]), both);
  EXPECT_THAT(OpenShards(), StatusIs(kBad, HasSubstr("is not listed for this file")));
}

TEST_F(CheckpointTest, AShardMayHaveTheNameOfASingleFile) {
  WriteShards();
  const std::string single = "model.safetensors";
  std::filesystem::rename(directory_.File(kShardNames[1]), directory_.File(single));
  for (auto& [tensor, file] : index_["weight_map"].items()) {
    if (file == kShardNames[1]) file = single;
  }
  EXPECT_THAT(OpenShards(), IsOk());

  for (auto& [tensor, file] : index_["weight_map"].items()) file = single;
  WriteTensors(directory_.File(single), tensors_);
  EXPECT_THAT(OpenShards(), IsOk());
}

TEST_F(CheckpointTest, ASingleFileBesideAnIndexIsAmbiguous) {
  WriteShards();
  ASSERT_THAT(OpenShards(), IsOk());
  const auto is_ambiguous = StatusIs(kBad, HasSubstr("holds both model.safetensors and"));
  EXPECT_THAT(WriteAndOpen(), is_ambiguous);
  // Also where the shards were merged and removed.
  for (const char* shard : kShardNames) std::filesystem::remove(directory_.File(shard));
  EXPECT_THAT(WriteAndOpen(), is_ambiguous);
}

TEST_F(CheckpointTest, OpensEveryGoldenCheckpoint) {
  for (const char* name : {"transformer", "bst_single_head_s4d", "bst_multi_head_s4",
                           "bst_multi_filter_dss", "bst_s5", "bst_explicit", "brect", "hybrid"}) {
    const absl::StatusOr<Checkpoint> checkpoint =
        Checkpoint::Open(std::string("tests/golden/") + name);
    ASSERT_THAT(checkpoint, IsOk()) << name;
    EXPECT_EQ(checkpoint->name(), name);
  }
}

TEST_F(CheckpointTest, AskingForATensorThatIsNotThereIsABug) {
  const absl::StatusOr<Checkpoint> checkpoint = WriteAndOpen();
  ASSERT_THAT(checkpoint, IsOk());
  EXPECT_DEATH(checkpoint->Tensor("none"), "no tensor none");
}

}  // namespace
}  // namespace bst
