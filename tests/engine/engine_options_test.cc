// Engine::Create: options, what they are resolved to, and what the engine says of itself.
#include <limits>
#include <memory>
#include <string>

#include "engine/checkpoint/checkpoint.h"
#include "engine/create_engine.h"
#include "engine/engine.h"
#include "engine/model_info.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/tiny_model.h"

namespace bst {
namespace {

using ::testing::AllOf;
using ::testing::ContainsRegex;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::StartsWith;

EngineOptions Options(const TinyModel& model) {
  EngineOptions options;
  options.model_directory = model.directory();
  options.threads = 1;
  options.max_sequences = 3;
  options.max_step_tokens = 64;
  options.chunk_tokens = 30;
  return options;
}

std::unique_ptr<Engine> MustCreate(const EngineOptions& options) {
  auto engine = Engine::Create(options, nullptr);
  EXPECT_TRUE(engine.ok()) << engine.status();
  return *std::move(engine);
}

TEST(EngineOptionsTest, AllProblemsAreReportedTogether) {
  EngineOptions options;
  options.backend = "tpu";
  options.weights = "int3";
  options.kv = "f64";
  options.threads = -1;
  options.max_sequences = 0;
  options.max_step_tokens = -1;
  options.chunk_tokens = 0;
  options.max_queue = -1;
  options.max_queue_tokens = -1;
  options.max_prompt_tokens = 0;
  options.reserved_sequences = -2;
  options.long_prompt_tokens = 0;
  options.target_step = absl::ZeroDuration();
  options.priority_ageing = -absl::Seconds(1);
  options.upload_timeout = absl::ZeroDuration();
  const absl::Status status = Engine::Create(options, nullptr).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  for (const char* problem :
       {"model_directory is empty", "backend is \"tpu\"", "weights is \"int3\"", "kv is \"f64\"",
        "threads is -1", "max_sequences is 0", "max_step_tokens is -1", "chunk_tokens is 0",
        "max_queue is -1", "max_queue_tokens is -1", "max_prompt_tokens is 0",
        "reserved_sequences is -2", "long_prompt_tokens is 0", "target_step is 0",
        "priority_ageing is -1s", "upload_timeout is 0"}) {
    EXPECT_THAT(std::string(status.message()), HasSubstr(problem));
  }
}

TEST(EngineOptionsTest, SequencesAreBounded) {
  EngineOptions options;
  options.model_directory = "somewhere";
  options.max_sequences = std::numeric_limits<int>::max();
  const absl::Status status = Engine::Create(options, nullptr).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("max_sequences is 2147483647"));
}

TEST(EngineOptionsTest, NotEverySlotIsReserved) {
  const TinyModel model;
  EngineOptions options = Options(model);
  options.reserved_sequences = 3;
  const absl::Status status = Engine::Create(options, nullptr).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("reserved_sequences is 3, must be less than max_sequences, 3"));
  options.reserved_sequences = 2;
  options.target_step = options.priority_ageing = absl::InfiniteDuration();
  EXPECT_EQ(MustCreate(options)->info().max_sequences, 3);
}

TEST(EngineOptionsTest, BackendsAreNamed) {
  EngineOptions options;
  options.model_directory = "somewhere";
  options.backend = "tpu";
  const absl::Status status = Engine::Create(options, nullptr).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("must be one of auto, cpu, cuda, reference"));
}

// On a machine with a GPU it serves; elsewhere it says what is missing and does not fall back.
TEST(EngineOptionsTest, CudaIsTheGpuOrAnError) {
  const TinyModel model;
  EngineOptions options = Options(model);
  options.backend = "cuda";
  const auto engine = Engine::Create(options, nullptr);
  if (engine.ok()) {
    EXPECT_THAT((*engine)->info().backend, HasSubstr("cuda ("));
    return;
  }
  EXPECT_EQ(engine.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(engine.status().message()),
              ContainsRegex("no CUDA (engine|driver|device): "));
}

TEST(EngineOptionsTest, AMissingCheckpointIsNotFound) {
  EngineOptions options;
  options.model_directory = testing::TempDir() + "/no_such_checkpoint";
  const absl::Status status = Engine::Create(options, nullptr).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr("no_such_checkpoint"));
}

TEST(EngineOptionsTest, AStepHoldsABlockAndATokenOfEachOtherSequence) {
  const TinyModel model;
  EngineOptions options = Options(model);
  options.max_step_tokens = TinyModel::kWindow + options.max_sequences - 2;
  const absl::Status status = Engine::Create(options, nullptr).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("max_step_tokens is 9"), HasSubstr("at least 10")));
  ++options.max_step_tokens;
  EXPECT_EQ(MustCreate(options)->info().max_step_tokens, 10);
  // Left open, it is what most models want, and never too small for this one.
  options.max_step_tokens = 0;
  EXPECT_EQ(MustCreate(options)->info().max_step_tokens, 2048);
  options.max_sequences = 2100;
  EXPECT_EQ(MustCreate(options)->info().max_step_tokens, TinyModel::kWindow + 2099);
}

TEST(EngineOptionsTest, ChunksAreWholeBlocksAndAtLeastOne) {
  const TinyModel model;
  EngineOptions options = Options(model);
  EXPECT_EQ(MustCreate(options)->info().chunk_tokens, 24);
  options.chunk_tokens = 1;
  EXPECT_EQ(MustCreate(options)->info().chunk_tokens, 8);
}

TEST(EngineOptionsTest, TheEngineDescribesTheModelItServes) {
  const TinyModel model;
  const std::unique_ptr<Engine> engine = MustCreate(Options(model));
  const ModelInfo& info = engine->info();
  EXPECT_EQ(info.name, "tiny");
  EXPECT_THAT(info.backend, StartsWith("cpu"));
  EXPECT_EQ(info.threads, 1);
  EXPECT_EQ(info.config_json, std::string(TinyModel::kConfig));
  EXPECT_EQ(info.directory, model.directory());
  EXPECT_EQ(info.vocab_size, 259);
  EXPECT_EQ(info.hidden_size, 32);
  EXPECT_EQ(info.num_heads, 2);
  EXPECT_EQ(info.head_dim, 16);
  EXPECT_EQ(info.ffn_size, 64);
  EXPECT_EQ(info.window, 8);
  EXPECT_THAT(info.layers, ElementsAre("transformer", "bst single_head s4d N=8 zoh"));
  EXPECT_GT(info.num_parameters, 259 * 32);
  EXPECT_GT(info.weight_bytes, info.num_parameters);
  EXPECT_GT(info.state_bytes_per_sequence, 0);
  EXPECT_EQ(info.max_sequences, 3);
  EXPECT_EQ(info.max_prompt_tokens, 4'000'000);
  EXPECT_EQ(info.tokenizer_type, "byte");
  EXPECT_THAT(info.tokenizer_path, IsEmpty());
  EXPECT_THAT(info.bos, ElementsAre(TokenId(256)));
  EXPECT_THAT(info.eos, ElementsAre(TokenId(257)));
  EXPECT_THAT(info.pad, ElementsAre(TokenId(258)));
  EXPECT_EQ(info.default_sampling.temperature, 1.0f);
  EXPECT_EQ(info.default_max_new_tokens, 256);
  EXPECT_GT(info.load_seconds, 0);

  const EngineLoad load = engine->load();
  EXPECT_EQ(load.slots_total, 3);
  EXPECT_EQ(load.slots_used, 0);  // The warm-up step gave its slot back.
  EXPECT_EQ(load.steps, 0);
  EXPECT_TRUE(load.healthy);
  EXPECT_FALSE(load.draining);
}

TEST(EngineOptionsTest, EveryTypeOfLayerIsDescribed) {
  const auto layers = [](const std::string& name) {
    const absl::StatusOr<Checkpoint> checkpoint = Checkpoint::Open("tests/golden/" + name);
    EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
    const absl::StatusOr<ModelInfo> info = DescribeCheckpoint(*checkpoint);
    EXPECT_TRUE(info.ok()) << info.status();
    return info->layers;
  };
  EXPECT_THAT(layers("bst_single_head_s4d"),
              ElementsAre("transformer", "bst single_head s4d N=8 zoh"));
  EXPECT_THAT(layers("bst_multi_head_s4"), ElementsAre("bst multi_head s4 N=8", "transformer"));
  EXPECT_THAT(layers("bst_multi_filter_dss"),
              ElementsAre("transformer", "bst multi_filter S=6 dss N=6"));
  EXPECT_THAT(layers("bst_s5"),
              ElementsAre("bst single_head s5 N=8 zoh", "bst multi_head s5 N=6 bilinear"));
  EXPECT_THAT(layers("bst_explicit"),
              ElementsAre("bst multi_filter S=4 explicit T=24", "bst single_head explicit T=256"));
  EXPECT_THAT(layers("brect"), ElementsAre("transformer", "brect S=10"));
  EXPECT_THAT(layers("hybrid"),
              ElementsAre("gss F=48 E=20 dss N=8", "bst multi_filter S=5 s4d N=8 bilinear",
                          "brect S=5", "transformer"));
}

TEST(EngineOptionsTest, TheReferenceBackendCanBeChosen) {
  const TinyModel model;
  EngineOptions options = Options(model);
  options.backend = "reference";
  EXPECT_THAT(MustCreate(options)->info().backend, StartsWith("reference"));
}

TEST(EngineOptionsTest, TypesFollowTheCheckpointUnlessChosen) {
  const TinyModel f32;
  const TinyModel bf16({.dtype = DType::kBF16, .generation_config = ""});
  const auto types = [](const EngineOptions& options) {
    const std::unique_ptr<Engine> engine = MustCreate(options);
    return engine->info().weights + " " + engine->info().kv;
  };
  EXPECT_EQ(types(Options(f32)), "f32 f32");
  EXPECT_EQ(types(Options(bf16)), "bf16 bf16");
  EngineOptions options = Options(f32);
  options.weights = "bf16";
  EXPECT_EQ(types(options), "bf16 bf16");
  options.kv = "f32";
  EXPECT_EQ(types(options), "bf16 f32");
  options = Options(bf16);
  options.weights = "f32";
  options.kv = "bf16";
  EXPECT_EQ(types(options), "f32 bf16");
  options.weights = "int8";
  options.kv = "auto";
  EXPECT_EQ(types(options), "int8 bf16");
  options.kv = "int8";
  EXPECT_EQ(types(options), "int8 int8");
}

TEST(EngineOptionsTest, GenerationConfigSetsTheDefaults) {
  const TinyModel model(
      {.generation_config = R"({"temperature": 0.5, "top_k": 7, "top_p": 0.25, "min_p": 0.125,
      "typical_p": 0.75, "repetition_penalty": 1.5, "max_new_tokens": 33, "do_sample": true})"});
  const std::unique_ptr<Engine> engine = MustCreate(Options(model));
  const SamplingParams& sampling = engine->info().default_sampling;
  EXPECT_EQ(sampling.temperature, 0.5f);
  EXPECT_EQ(sampling.top_k, 7);
  EXPECT_EQ(sampling.top_p, 0.25f);
  EXPECT_EQ(sampling.min_p, 0.125f);
  EXPECT_EQ(sampling.typical_p, 0.75f);
  EXPECT_EQ(sampling.repetition_penalty, 1.5f);
  EXPECT_EQ(engine->info().default_max_new_tokens, 33);
}

TEST(EngineOptionsTest, NoSamplingMeansGreedy) {
  const TinyModel model({.generation_config = R"({"temperature": 0.5, "do_sample": false})"});
  EXPECT_EQ(MustCreate(Options(model))->info().default_sampling.temperature, 0.0f);
}

}  // namespace
}  // namespace bst
