// The roofline's counts against sums made by hand, its sizes against the backend it speaks of, and
// the tables of the README against what the program prints.
#include "tests/bench/roofline.h"

#include <fstream>
#include <iterator>
#include <string>
#include <utility>
#include <vector>

#include "engine/backend/cpu/cpu_isa.h"
#include "engine/backend/cuda/cuda_backend.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/bench/metered_backend.h"
#include "tests/support/model_runner.h"
#include "tests/support/sanitized.h"

namespace bst {
namespace {

using testing::HasSubstr;

constexpr char kTiny[] = R"({
  "model_type": "block_state_transformer", "format_version": 1, "vocab_size": 300,
  "hidden_size": 64, "num_heads": 2, "head_dim": 32, "ffn_size": 192, "ffn_activation": "relu",
  "window": 16, "norm_eps": 1e-6, "logit_scale": 1.0, "tie_embeddings": true,
  "attention": {"scope": "sliding", "include_self": true, "empty_prefix": "masked",
                "qk_norm": true, "position": "t5", "t5_num_buckets": 32, "t5_max_distance": 128,
                "rope_theta": 10000.0},
  "layers": [{"type": "transformer"},
             {"type": "bst", "context": "single_head", "ssm": {"kernel": "s4d", "state_size": 8}},
             {"type": "bst", "context": "multi_filter", "num_states": 4,
              "ssm": {"kernel": "explicit", "length": 40}},
             {"type": "bst", "context": "single_head",
              "ssm": {"kernel": "explicit", "length": 60}},
             {"type": "bst", "context": "single_head",
              "ssm": {"kernel": "s4", "state_size": 8, "discretization": "bilinear"}},
             {"type": "bst", "context": "multi_head", "ssm": {"kernel": "s5", "state_size": 8}},
             {"type": "brect", "num_states": 5, "gate": "fixed"},
             {"type": "gss", "inner_size": 96, "ssm_size": 32,
              "ssm": {"kernel": "dss", "state_size": 8}}],
  "tokenizer": {"type": "byte"},
  "bos_token_id": null, "eos_token_id": null, "pad_token_id": null})";
RooflineShape TinyShape() {
  RooflineShape shape;
  shape.chunk_tokens = 40;
  shape.batches = {1, 3};
  shape.rounds = shape.repeats = 1;
  return shape;
}

const OperatorUse& Find(const RooflineStep& step, const std::string& name) {
  for (const OperatorUse& use : step.operators) {
    if (use.name == name) return use;
  }
  ADD_FAILURE() << "no " << name << " in " << step.name;
  return step.operators.front();
}

// Reading the hole that its checkpoint is takes a second.
const Roofline& Model400m() {
  static const auto* const roofline =
      new Roofline(*MakeRoofline(RooflineModels()[0].config, nullptr));
  return *roofline;
}

TEST(RooflineTest, CountsWhatASumByHandCounts) {
  const Roofline& roofline = Model400m();
  // Matrices: attention 4 D^2, and 3 D^2 more in a BST layer; FFN; the tied embedding. The rest is
  // gains, scales, biases and modes.
  const double matrices =
      12 * (4.0 * 1024 * 1024 + 2.0 * 1024 * 12288) + 3 * 4.0 * 1024 * 1024 + 32000.0 * 1024;
  EXPECT_NEAR(static_cast<double>(roofline.parameters), matrices, 1e-3 * matrices);
  // The output layer is packed beside the embedding.
  EXPECT_NEAR(static_cast<double>(roofline.weight_bytes), 2 * (matrices + 32000.0 * 1024),
              1e-3 * matrices);
  // Rings of 12 layers and 3 contexts, K and V in BF16; three states of 8 complex modes and 16
  // inputs; a count and a bias per token of the vocabulary.
  EXPECT_EQ(roofline.slot_bytes, size_t{15} * 2 * 512 * 1024 * 2 +
                                     size_t{3} * 1024 * (8 * 8 + 16 * 4) + size_t{32000} * 8);
  ASSERT_EQ(roofline.steps.size(), 4u);

  const RooflineStep& chunk = roofline.steps[0];
  const OperatorUse& up = Find(chunk, "linear 1024 x 12288");
  EXPECT_EQ(up.calls, 12);
  // The last layer's for the one token whose logits are wanted.
  constexpr double kUpRows = 11 * 2048 + 1;
  EXPECT_DOUBLE_EQ(up.cost.operations, kUpRows * 2 * 1024 * 12288);
  EXPECT_DOUBLE_EQ(up.cost.bytes, 12 * 1024.0 * 12288 * 2 + kUpRows * (1024 + 12288) * 4);
  // Every query of a sliding window sees W keys, within the block (W + 1) / 2 on average; three
  // products for one. Of the last layer the outputs of one are read.
  EXPECT_DOUBLE_EQ(Find(chunk, "attention").cost.operations, kUpRows * 3 * 4.0 * 512 * 1024);
  EXPECT_DOUBLE_EQ(Find(chunk, "attention within the block").cost.operations,
                   3 * 3 * 4.0 * 2048 * 256.5 * 1024);
  // Per feature and chunk of 16 tokens: 136 taps, 16 x 16 weights each out and in, 8 modes whose
  // update is four fmaf and two sums.
  const OperatorCost& recurrence = Find(chunk, "recurrence").cost;
  EXPECT_DOUBLE_EQ(recurrence.operations,
                   3 * 128 * 1024.0 * (2 * (136 + 2 * 16 * 16) + 8 * (2 * 4 + 2)));
  // u, y, all tables, and X in and out.
  EXPECT_DOUBLE_EQ(recurrence.bytes,
                   3 * 1024 * 4.0 * (2 * 2048 + (16 + 2 * 16 * 16 + 16) + 2 * 16));
  // The first sum over a chunk, 127 updates, and an output of the last chunk.
  EXPECT_DOUBLE_EQ(recurrence.chain, 3 * (16 + 127 * 3.0 + 16 + 16));

  const RooflineStep& decode = roofline.steps[2];
  EXPECT_EQ(decode.tokens, 32);
  // The ring but for the key that leaves it, the new keys, and q, k, v and o in float32.
  EXPECT_DOUBLE_EQ(Find(decode, "attention").cost.bytes,
                   12 * 32 * (2 * 1024.0 * 2 * (511 + 1) + 4 * 1024.0 * 4));
  // Rows at every index of a chunk: all tables. Of a row u, y, X, the inputs of its chunk and its
  // own; the last token of a chunk writes X instead.
  double numbers = (16 + 2 * 16 * 16 + 16) + 32 * (2 + 16);
  for (const int64_t position : DecodePositions(32, 512))
    numbers += static_cast<double>(position % 16) + (position % 16 == 15 ? 16 : 1);
  EXPECT_DOUBLE_EQ(Find(decode, "recurrence").cost.bytes, 3 * 1024 * 4.0 * numbers);
  EXPECT_DOUBLE_EQ(Find(decode, "sample").cost.bytes, 32 * 32000.0 * 4);
  EXPECT_DOUBLE_EQ(Find(decode, "sample").cost.chain, 3 * 125.0 + 256);
}

TEST(RooflineTest, DecodingRowsAreSpreadOverBlocksAndChunks) {
  for (const int batch : {32, 256}) {
    const std::vector<int64_t> positions = DecodePositions(batch, 512);
    double mean = 0;
    std::vector<int> rows(16);  // at each index of a chunk
    for (const int64_t position : positions) {
      mean += static_cast<double>(position % 512) / batch;
      ++rows[static_cast<size_t>(position % 16)];
    }
    EXPECT_NEAR(mean, 255.5, 2) << batch;
    for (const int n : rows) EXPECT_NEAR(n, batch / 16, batch / 32) << batch;
  }
  // One row: in the middle.
  EXPECT_EQ(DecodePositions(1, 512)[0] % 512, 263);
}

TEST(RooflineTest, ContextsAreAttendedToOnTheTensorCores) {
  const Roofline roofline = *MakeRoofline(kTiny, nullptr, TinyShape());
  const OperatorCost& cost = Find(roofline.steps[1], "context attention").cost;
  // One token: four rows of the one layer, five of the other; three products for one.
  EXPECT_EQ(cost.unit, RooflineUnit::kTensorBf16);
  EXPECT_DOUBLE_EQ(cost.operations, 3 * 4.0 * 64 * (4 + 5));
  EXPECT_DOUBLE_EQ(cost.bytes, 2 * (2 * 64.0 * 4) + 2 * 64.0 * 2 * (4 + 5));
}

// Keys and values of bytes come with a scale each, which is half as long where they are multiplied
// as bytes; a slot's padding is not counted.
TEST(MeteredBackendTest, CountsWhatStandsBesideBytes) {
  constexpr int kHeads = 2, kHeadDim = 64, kWidth = kHeads * kHeadDim, kWindow = 40, kRows = 5;
  constexpr double kNumbers = 4 * kWidth * 4;  // q, k, v and o of one token
  std::vector<std::pair<std::string, int>> levels = {{"reference", 8}, {"cpu:avx2:1", 8}};
  if (Supports(DetectCpuIsa(), CpuIsa::kAvx512Vnni)) levels.emplace_back("cpu:avx512vnni:1", 4);
  for (const auto& [name, beside] : levels) {
    const auto inner = *MakeBackend(name);
    MeteredBackend metered(inner.get(), /*repeats=*/1, CountedBackend::kCpu);
    float scale[kHeads] = {1.0f, 1.0f};
    const TensorView scales(scale, DType::kF32, {kHeads});
    const AttentionSpec spec = {
        .num_heads = kHeads, .head_dim = kHeadDim, .window = kWindow, .kv_type = DType::kI8};
    const ContextSpec context_spec = {
        .num_heads = kHeads, .head_dim = kHeadDim, .capacity = kRows, .kv_type = DType::kI8};
    const auto attention = *metered.PackAttention({.spec = spec, .scale = scales, .bias = {}});
    const auto contexts = *metered.PackContextAttention({.spec = context_spec, .scale = scales});
    const size_t ring_bytes = metered.RingBytes(spec),
                 context_bytes = metered.ContextBytes(context_spec);
    const Buffer ring = *metered.Allocate(ring_bytes), context = *metered.Allocate(context_bytes),
                 numbers = *metered.Allocate(4 * kRows * kWidth * sizeof(float));
    const PoolView rings = {static_cast<std::byte*>(ring.data()), ring_bytes},
                   pool = {static_cast<std::byte*>(context.data()), context_bytes};
    const auto matrix = [&](int i) {
      return TensorView(static_cast<float*>(numbers.data()) + i * kRows * kWidth, DType::kF32,
                        {kRows, kWidth});
    };
    const auto token = [&](int i) { return matrix(i).Rows(0, 1); };
    metered.Start();
    metered.Attention(*attention, token(0), token(1), token(2),
                      {Row{.slot = SlotId(0), .begin = 0, .end = 1, .position = 1000}}, rings,
                      token(3));
    metered.StoreContext(*contexts, matrix(1), matrix(2),
                         {ContextRows{.begin = 1, .end = kRows, .slot = SlotId(0), .first_row = 0}},
                         pool);
    metered.ContextAttention(*contexts, token(0),
                             {ContextUse{0, 1, pool.slot<std::byte>(SlotId(0)), kRows - 1}},
                             token(3));
    const std::vector<OperatorUse> uses = metered.Stop();
    ASSERT_EQ(uses.size(), 3u);
    const double row_bytes = 2 * kWidth + kHeads * beside;
    EXPECT_DOUBLE_EQ(uses[0].cost.bytes, kNumbers + kWindow * row_bytes) << name;
    EXPECT_DOUBLE_EQ(uses[1].cost.bytes, (kRows - 1) * (2 * kWidth * 4 + row_bytes)) << name;
    EXPECT_DOUBLE_EQ(uses[2].cost.bytes, kNumbers / 2 + (kRows - 1) * row_bytes) << name;
  }
}

TEST(RooflineTest, TheSlowestOfThreeBoundsCounts) {
  constexpr GpuRates kGpu = {"", "", 1e12, 1e10, 1e9, 4e6, 80e9};
  const auto predict = [&](const OperatorCost& cost) { return Predict(cost, kGpu); };
  EXPECT_EQ(predict({.bytes = 1e9, .operations = 1e9}).bound, Bound::kBytes);
  EXPECT_EQ(predict({.bytes = 1e9, .operations = 2e10}).bound, Bound::kOperations);
  EXPECT_EQ(predict({.bytes = 1e9, .operations = 2e10, .unit = RooflineUnit::kTensorBf16}).bound,
            Bound::kBytes);
  const Prediction chain = predict({.bytes = 1e9, .chain = 5e6});
  EXPECT_EQ(chain.bound, Bound::kChain);
  EXPECT_DOUBLE_EQ(chain.seconds, 5.0);
}

// The backend itself, emulated, takes the sizes that paper says and is timed in each operator.
TEST(RooflineTest, PaperAndBackendAgree) {
  const Roofline paper = *MakeRoofline(kTiny, nullptr, TinyShape());
  const auto backend = *MakeCudaBackend({.panel_rows = {}});
  const Roofline measured = *MakeRoofline(kTiny, backend.get(), TinyShape());
  EXPECT_EQ(measured.slot_bytes, paper.slot_bytes);
  EXPECT_GE(measured.weight_bytes, paper.weight_bytes);  // matrices are padded
  for (const RooflineStep& step : measured.steps) {
    EXPECT_GT(step.seconds, 0);
    for (const OperatorUse& use : step.operators) EXPECT_GT(use.seconds, 0) << use.name;
  }
  const std::string table = MeasuredTable(measured, kGpus[0]);
  EXPECT_THAT(table, HasSubstr("prompt chunk of 40"));
  EXPECT_THAT(table, HasSubstr("predicted us   measured us"));
}

TEST(RooflineTest, TheReadmeHasWhatTheProgramPrints) {
  std::ifstream file("engine/backend/cuda/README.md");
  const std::string readme((std::istreambuf_iterator<char>(file)), {});
  for (const RooflineModel& model : RooflineModels()) {
    const std::string heading = *RooflineHeading(model);
    EXPECT_THAT(readme, HasSubstr(heading));
    const bool is_400m = model.name == std::string("400m");
    if (!is_400m && kSanitized) continue;  // the other one's tables take longer
    const Roofline roofline = is_400m ? Model400m() : *MakeRoofline(model.config, nullptr);
    EXPECT_TRUE(readme.find(heading + RooflineTables(model, roofline)) != readme.npos)
        << "put the output of `bst-bench roofline` into engine/backend/cuda/README.md";
  }
}

}  // namespace
}  // namespace bst
