// Decode steps as graphs: which steps become one, and that nothing else changes.
#include <algorithm>
#include <cmath>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "engine/backend/cuda/cuda_backend.h"
#include "engine/backend/cuda/cuda_device.h"
#include "engine/backend/cuda/kernels.h"
#include "engine/backend/cuda/step_graphs.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/cuda_on_cpu/libraries.h"
#include "tests/support/model_runner.h"

namespace bst {
namespace {

using cuda_on_cpu::CaptureFails;
using cuda_on_cpu::NumGraphLaunches;
using cuda_on_cpu::SetCaptureFails;

struct AddTask {
  float* to;
  float value;
};
void Add(cuda::Stream& stream, const AddTask& task) {
  cuda_on_cpu::EnqueueOnHost(stream, [task] { *task.to += task.value; });
}

class StepGraphsTest : public testing::Test {
 protected:
  void SetUp() override { stream_ = *cuda::CreateStream(); }
  void TearDown() override { cuda::DestroyStream(stream_); }

  // A step that adds `value`; whether it ran as a graph.
  bool Step(StepGraphs& graphs, float value) {
    cuda::CallList calls;
    cuda::StartRecording(*stream_, &calls);
    cuda::CallOrKeep<Add>(*stream_, AddTask{&sum_, value});
    cuda::StopRecording(*stream_);
    const int before = NumGraphLaunches();
    graphs.Run(*stream_, calls);
    EXPECT_TRUE(cuda::Synchronize(*stream_).ok());
    return NumGraphLaunches() > before;
  }

  cuda::Stream* stream_ = nullptr;
  float sum_ = 0;
};

TEST_F(StepGraphsTest, TheSecondTimeOnAStepIsAGraph) {
  StepGraphs graphs(4);
  EXPECT_FALSE(Step(graphs, 1));
  EXPECT_FALSE(Step(graphs, 10));  // other arguments are another step
  EXPECT_TRUE(Step(graphs, 1));
  EXPECT_TRUE(Step(graphs, 1));
  EXPECT_TRUE(Step(graphs, 10));
  EXPECT_EQ(sum_, 23);
}

TEST_F(StepGraphsTest, TheStepsThatWereNotUsedForLongestAreForgotten) {
  StepGraphs graphs(2);
  Step(graphs, 1);
  Step(graphs, 10);
  EXPECT_TRUE(Step(graphs, 1));
  Step(graphs, 100);  // in the place of 10
  EXPECT_TRUE(Step(graphs, 1));
  EXPECT_FALSE(Step(graphs, 10));
  EXPECT_EQ(sum_, 123);
  graphs.Clear();
  EXPECT_FALSE(Step(graphs, 1));
}

TEST_F(StepGraphsTest, AStepThatCannotBeCapturedRunsAsItIs) {
  for (const CaptureFails fails : {CaptureFails::kAtBegin, CaptureFails::kAtEnd}) {
    sum_ = 0;
    StepGraphs graphs(4);
    SetCaptureFails(fails);
    for (int i = 0; i < 3; ++i) EXPECT_FALSE(Step(graphs, 1));
    SetCaptureFails(CaptureFails::kNever);
    EXPECT_FALSE(Step(graphs, 1));  // it is not tried again
    EXPECT_FALSE(Step(graphs, 10));
    EXPECT_TRUE(Step(graphs, 10));
    EXPECT_EQ(sum_, 24);
  }
}

// The first arena is of 1 MiB: two of the arrays that follow are in it, the other four are not.
class CudaArenaTest : public testing::Test {
 protected:
  static constexpr size_t kFloats = 100000;

  // Stages six arrays; in a step or not, nothing runs before all are there.
  std::vector<const float*> StageAll(CudaDevice& device) {
    has_run_ = false;
    cuda_on_cpu::EnqueueOnHost(device.stream(), [this] { has_run_ = true; });
    std::vector<const float*> staged;
    for (int i = 0; i < 6; ++i) {
      const std::vector<float> values(kFloats, static_cast<float>(i));
      staged.push_back(device.Stage(absl::MakeConstSpan(values)));
    }
    EXPECT_FALSE(has_run_);
    return staged;
  }
  // What kernels see that are enqueued when all are staged: the first and the last of each.
  static void Look(cuda::Stream& stream, const std::vector<const float*>& staged,
                   std::vector<float>& seen) {
    cuda_on_cpu::EnqueueOnHost(stream, [&seen, staged] {
      for (const float* array : staged) seen.insert(seen.end(), {array[0], array[kFloats - 1]});
    });
  }
  bool has_run_ = false;
  const std::vector<float> all_ = {0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5};
};

TEST_F(CudaArenaTest, WhatWasStagedStaysUntilTheNextSync) {
  const auto device = *CudaDevice::Open();
  for (int step = 0; step < 3; ++step) {
    std::vector<float> seen;
    const std::vector<const float*> staged = StageAll(*device);
    Look(device->stream(), staged, seen);
    EXPECT_TRUE(device->Sync().ok());
    EXPECT_EQ(seen, all_);
  }
}

struct SumTask {
  const float* from[6];
  float* to;
};
void Sum(cuda::Stream& stream, const SumTask& task) {
  cuda_on_cpu::EnqueueOnHost(stream, [task] {
    for (const float* array : task.from) *task.to = *task.to * 10 + array[99999];
  });
}

// The first step of its size is spread over blocks; those after it are alike, and a graph.
TEST_F(CudaArenaTest, AStepMayOutgrowTheArena) {
  const auto device = *CudaDevice::Open();
  float sum = 0;
  for (const bool is_graph : {false, false, true, true}) {
    const int before = NumGraphLaunches();
    sum = 0;
    device->BeginStep();
    const std::vector<const float*> staged = StageAll(*device);
    SumTask task = {.from = {}, .to = &sum};
    std::copy(staged.begin(), staged.end(), task.from);
    cuda::CallOrKeep<Sum>(device->stream(), task);
    EXPECT_TRUE(device->Sync().ok());
    EXPECT_EQ(sum, 12345);
    EXPECT_EQ(NumGraphLaunches() - before, is_graph ? 1 : 0);
  }
}

TEST_F(CudaArenaTest, ResultsComeBackFromAnyOfItsBlocks) {
  const auto device = *CudaDevice::Open();
  for (const size_t which : {0u, 5u, 0u, 5u}) {
    float copy = -1;
    const std::vector<const float*> staged = StageAll(*device);
    device->Download(staged[which] + kFloats - 1, &copy, sizeof(copy));
    EXPECT_EQ(copy, static_cast<float>(which));
  }
}

// An explicit filter of blocks of 16 and three partitions: the blocks before the one that starts
// lie in other places of the ring each time.
TEST(CudaGraphTest, BlockStartsOfExplicitFiltersRepeat) {
  constexpr int kWidth = 4, kBlock = 16, kTaps = 3 * kBlock + 1, kSteps = 9 * kBlock;
  std::vector<std::vector<float>> results;
  for (const int graph_tokens : {0, 256}) {
    const auto backend = *MakeCudaBackend({.panel_rows = {}, .graph_tokens = graph_tokens});
    std::vector<float> table(16 * kWidth), taps(kWidth * kTaps), d(kWidth, 1.0f);
    for (size_t i = 0; i < table.size(); ++i) table[i] = std::sin(static_cast<float>(i));
    for (size_t i = 0; i < taps.size(); ++i) taps[i] = std::cos(static_cast<float>(i));
    const auto embedding =
        *backend->PackEmbedding(TensorView(table.data(), DType::kF32, {16, kWidth}), DType::kF32);
    const auto weights = *backend->PackConvolution(
        {.spec = {.num_inputs = kWidth, .num_filters = 1, .block = kBlock},
         .taps = {taps.data(), DType::kF32, {kWidth, kTaps}},
         .d = {d.data(), DType::kF32, {kWidth}}});
    const size_t slot_bytes = backend->SsmStateBytes(*weights);
    const Buffer memory = *backend->Allocate(2 * slot_bytes);
    const Buffer inputs = *backend->Allocate(kWidth * sizeof(float));
    const Buffer outputs = *backend->AllocateHostReadable(kWidth * sizeof(float));
    const TensorView u = inputs.View(DType::kF32, {1, kWidth});
    const TensorView y = outputs.View(DType::kF32, {1, kWidth});
    std::vector<float>& all = results.emplace_back();
    for (int slot = 0; slot < 2; ++slot) {
      for (int t = 0; t < kSteps; ++t) {
        const int before = NumGraphLaunches();
        backend->Embed(*embedding, {TokenId((t + 5 * slot) % 16)}, u);
        backend->Ssm(*weights, u, {{.slot = SlotId(slot), .begin = 0, .end = 1, .position = t}},
                     {static_cast<std::byte*>(memory.data()), slot_bytes}, y);
        EXPECT_TRUE(backend->Sync().ok());
        all.insert(all.end(), y.as<float>(), y.as<float>() + kWidth);
        // The fourth block is the first after three.
        const bool is_repeated = slot > 0 || t > 3 * kBlock;
        const int graphs = NumGraphLaunches() - before;
        EXPECT_TRUE(!is_repeated || graphs == (graph_tokens > 0 ? 1 : 0)) << t;
      }
    }
  }
  EXPECT_EQ(results[0], results[1]);
}

// Of two sequences, which end their chunks at different steps: from the second step on all are one
// graph.
TEST(CudaGraphTest, StepsOfRecurrencesRepeatAtEndsOfChunksToo) {
  constexpr int kWidth = 4, kModes = 3, kSteps = 3 * cuda::kDplrChunk;
  for (const bool dplr : {false, true}) {
    std::vector<std::vector<float>> results;
    for (const int graph_tokens : {0, 256}) {
      const auto backend = *MakeCudaBackend({.panel_rows = {}, .graph_tokens = graph_tokens});
      std::vector<float> numbers(16 * kWidth);
      for (size_t i = 0; i < numbers.size(); ++i)
        numbers[i] = 0.1f * std::sin(static_cast<float>(i));
      const auto embedding = *backend->PackEmbedding(
          TensorView(numbers.data(), DType::kF32, {16, kWidth}), DType::kF32);
      const TensorView modes(numbers.data(), DType::kF32, {kWidth, kModes, 2}),
          features(numbers.data(), DType::kF32, {kWidth});
      const SsmSpec spec = {.num_inputs = kWidth};
      const auto weights =
          dplr ? *backend->PackDplr({.spec = spec,
                                     .dt_lambda = modes,
                                     .dt_b = modes,
                                     .p = modes,
                                     .g = modes,
                                     .w = modes,
                                     .c = modes,
                                     .dt = features,
                                     .d = features})
               : *backend->PackSsm(
                     {.spec = spec, .a_minus_one = modes, .b = modes, .c = modes, .d = features});
      const size_t slot_bytes = backend->SsmStateBytes(*weights);
      const Buffer memory = *backend->Allocate(2 * slot_bytes);
      const Buffer inputs = *backend->Allocate(2 * kWidth * sizeof(float));
      const Buffer outputs = *backend->AllocateHostReadable(2 * kWidth * sizeof(float));
      const TensorView u = inputs.View(DType::kF32, {2, kWidth});
      const TensorView y = outputs.View(DType::kF32, {2, kWidth});
      std::vector<float>& all = results.emplace_back();
      for (int t = 0; t < kSteps; ++t) {
        const int before = NumGraphLaunches();
        backend->Embed(*embedding, {TokenId(t % 16), TokenId((t + 5) % 16)}, u);
        backend->Ssm(*weights, u,
                     {{{.slot = SlotId(0), .begin = 0, .end = 1, .position = t},
                       {.slot = SlotId(1), .begin = 1, .end = 2, .position = t + 7}}},
                     {static_cast<std::byte*>(memory.data()), slot_bytes}, y);
        EXPECT_TRUE(backend->Sync().ok());
        all.insert(all.end(), y.as<float>(), y.as<float>() + 2 * kWidth);
        EXPECT_EQ(NumGraphLaunches() - before, graph_tokens > 0 && t > 0 ? 1 : 0) << t;
      }
    }
    EXPECT_EQ(results[0], results[1]);
  }
}

// Models decode 1, 2 and 3 sequences in turn: after the first steps all but
// those at block ends are graphs, and the logits are those of a backend without.
TEST(CudaGraphTest, DecodeStepsBecomeGraphsAndKeepTheirBits) {
  for (const char* model : {"bst_single_head_s4d", "bst_multi_head_s4", "bst_explicit", "hybrid"}) {
    const std::string directory = std::string("tests/golden/") + model;
    std::vector<std::vector<float>> logits;
    for (const int graph_tokens : {0, 256}) {
      const auto backend = *MakeCudaBackend({.panel_rows = {2}, .graph_tokens = graph_tokens});
      const auto runner = *ModelRunner::Create(directory, *backend, DType::kBF16, 64, 3);
      std::vector<SlotLease> leases;
      for (int i = 0; i < 3; ++i) leases.push_back(*runner->pool().Acquire());
      std::vector<int64_t> positions(3, 0);
      const int before = NumGraphLaunches();
      std::vector<float>& all = logits.emplace_back();
      for (int step = 0; step < 36; ++step) {
        std::vector<Row> rows;
        std::vector<TokenId> tokens;
        for (int i = 0; i <= step % 3; ++i) {
          const auto at = static_cast<size_t>(i);
          rows.push_back(
              {.slot = leases[at].id(), .begin = i, .end = i + 1, .position = positions[at]++});
          tokens.emplace_back((step * 7 + i) % 256);
        }
        runner->Step(tokens, rows, all);
      }
      if (graph_tokens == 0) {
        EXPECT_EQ(NumGraphLaunches(), before);
      } else {
        EXPECT_GT(NumGraphLaunches() - before, 15) << model;
      }
    }
    EXPECT_EQ(logits[0], logits[1]) << model;
  }
}

TEST(CudaGraphTest, GraphsAreForAFewSizes) {
  std::set<size_t> sizes;
  for (size_t n = 0; n <= 256; ++n) {
    const size_t size = CudaDevice::GraphSize(n);
    EXPECT_LE(n, size);
    EXPECT_LE(size, n + n / 2);
    sizes.insert(size);
  }
  EXPECT_THAT(sizes,
              testing::ElementsAre(0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256));
}

// What decode steps of varying sets of sequences gave, and which were graphs.
struct Decoded {
  struct Step {
    int rows, block_ends;
    bool is_graph;
  };
  std::vector<Step> steps;
  std::vector<float> logits;
  std::vector<int> tokens;
};
Decoded Decode(const std::string& model, DType type, int graph_tokens) {
  constexpr int kSlots = 24, kSteps = 60;
  const auto backend = *MakeCudaBackend({.panel_rows = {}, .graph_tokens = graph_tokens});
  const auto runner = *ModelRunner::Create("tests/golden/" + model, *backend, type, 64, kSlots);
  const int window = runner->config().window, vocab_size = runner->config().vocab_size;
  EXPECT_TRUE(backend->ReserveSampling(vocab_size, kSlots).ok());
  std::vector<SlotLease> leases;
  for (int i = 0; i < kSlots; ++i) leases.push_back(*runner->pool().Acquire());
  std::vector<int64_t> positions(kSlots, 0);
  Decoded decoded;
  for (int step = 0; step < kSteps; ++step) {
    const int n = 5 + step * 7 % 20;
    std::vector<Row> rows;
    std::vector<TokenId> tokens;
    std::vector<int> indices;
    std::vector<TokenDraw> draws;
    int block_ends = 0;
    for (int i = 0; i < n; ++i) {
      const auto slot = static_cast<size_t>((i + 5 * step) % kSlots);
      const int64_t position = positions[slot]++;
      block_ends += position % window == window - 1 ? 1 : 0;
      rows.push_back({.slot = leases[slot].id(), .begin = i, .end = i + 1, .position = position});
      tokens.emplace_back((step * 7 + i) % vocab_size);
      indices.push_back(i);
      draws.push_back({.row = i});
    }
    std::vector<DrawResult> results(draws.size());
    const int before = NumGraphLaunches();
    runner->model().Forward(tokens, rows, runner->pool());
    const TensorView logits = runner->model().Logits(indices);
    backend->SampleTokens(logits, draws, {}, absl::MakeSpan(results), {});
    EXPECT_TRUE(backend->Sync().ok());
    decoded.steps.push_back({n, block_ends, NumGraphLaunches() > before});
    decoded.logits.insert(decoded.logits.end(), logits.as<float>(),
                          logits.as<float>() + logits.shape().num_elements());
    for (const DrawResult& result : results) decoded.tokens.push_back(result.token);
  }
  return decoded;
}

// From 5 to 24 sequences take part in a step, never as many as in the one before. A step is a graph
// when one of its size was there before, and, where block ends have calls of their own, one with as
// many of them.
TEST(CudaGraphTest, StepsOfNearlyAsManyRowsAreOneGraph) {
  for (const auto& [model, type] :
       {std::pair{"transformer", DType::kF32}, std::pair{"bst_single_head_s4d", DType::kBF16},
        std::pair{"bst_multi_head_s4", DType::kF32}, std::pair{"bst_s5", DType::kBF16},
        std::pair{"brect", DType::kBF16}}) {
    const Decoded expected = Decode(model, type, 0), got = Decode(model, type, 256);
    EXPECT_EQ(got.logits, expected.logits) << model;
    EXPECT_EQ(got.tokens, expected.tokens) << model;
    const bool has_contexts = model == std::string("brect");
    std::set<std::vector<size_t>> known;
    int graphs = 0;
    for (const Decoded::Step& step : got.steps) {
      const auto n = static_cast<size_t>(step.rows), ends = static_cast<size_t>(step.block_ends);
      std::vector<size_t> kind = {CudaDevice::GraphSize(n)};
      if (has_contexts) {
        // Ten states per end; tokens of unfinished blocks; each number is in the arena once.
        kind.insert(kind.end(),
                    {ends, CudaDevice::GraphSize(n - ends), 10 * ends == n, 10 * ends == n - ends});
      }
      EXPECT_EQ(step.is_graph, !known.insert(kind).second)
          << model << ": " << n << " rows, " << ends << " block ends";
      graphs += step.is_graph ? 1 : 0;
    }
    EXPECT_GT(graphs, has_contexts ? 30 : 50) << model;
    for (const Decoded::Step& step : expected.steps) EXPECT_FALSE(step.is_graph);
  }
}

}  // namespace
}  // namespace bst
