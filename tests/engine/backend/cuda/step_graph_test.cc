// Decode steps as graphs: which steps become one, and that nothing else changes.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <memory>
#include <optional>
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
#include "tests/support/sanitized.h"

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

  cuda::StreamPtr stream_;
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
  for (const float value : {1.0f, 10.0f, 100.0f}) {
    EXPECT_FALSE(Step(graphs, value));
    EXPECT_TRUE(Step(graphs, value));
    EXPECT_TRUE(Step(graphs, 1));
  }
  EXPECT_FALSE(Step(graphs, 10));  // 100 came in its place
  EXPECT_TRUE(Step(graphs, 1));
  EXPECT_TRUE(Step(graphs, 100));
  EXPECT_TRUE(Step(graphs, 10));  // in the place of 1
  EXPECT_FALSE(Step(graphs, 1));
  graphs.Clear();
  EXPECT_FALSE(Step(graphs, 1));
  EXPECT_FALSE(Step(graphs, 100));
}

// However many of them there are; and they are forgotten in the end.
TEST_F(StepGraphsTest, StepsThatComeOnceTakeNoPlaceOfAGraph) {
  StepGraphs graphs(2);
  for (const float value : {1.0f, 10.0f, 1.0f, 10.0f}) Step(graphs, value);
  for (int i = 0; i < 100; ++i) {
    EXPECT_FALSE(Step(graphs, 1000.0f + static_cast<float>(i)));
    EXPECT_TRUE(Step(graphs, 1));
    EXPECT_TRUE(Step(graphs, 10));
  }
  EXPECT_FALSE(Step(graphs, 1000));
  EXPECT_TRUE(Step(graphs, 1099));
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

// A graph is launched in vain once; then its step has none.
TEST_F(StepGraphsTest, AGraphThatCannotBeLaunchedIsGivenUp) {
  StepGraphs graphs(4);
  for (const float value : {1.0f, 10.0f}) {
    EXPECT_FALSE(Step(graphs, value));
    EXPECT_TRUE(Step(graphs, value));
  }
  SetCaptureFails(CaptureFails::kAtLaunch);
  for (int i = 0; i < 2; ++i) EXPECT_FALSE(Step(graphs, 1));
  EXPECT_FALSE(Step(graphs, 100));
  EXPECT_FALSE(Step(graphs, 100));  // nor one that was just made
  SetCaptureFails(CaptureFails::kNever);
  EXPECT_FALSE(Step(graphs, 1));
  EXPECT_FALSE(Step(graphs, 100));
  EXPECT_TRUE(Step(graphs, 10));
  EXPECT_EQ(sum_, 5 * 1 + 3 * 10 + 3 * 100);
}

struct SumTask {
  const float* from[6];
  int count;
  size_t at;
  float* to;
};
void Sum(cuda::Stream& stream, const SumTask& task) {
  cuda_on_cpu::EnqueueOnHost(stream, [task] {
    for (int i = 0; i < task.count; ++i) *task.to += task.from[i][task.at];
  });
}

// The arena begins with 1 MiB: of the six arrays that follow the first are in it, the last are not.
class CudaArenaTest : public testing::Test {
 protected:
  static constexpr size_t kFloats = 100000;  // in a step they have room for 131,072

  void TearDown() override {
    cuda_on_cpu::SetLargestAllocation(std::numeric_limits<size_t>::max());
  }
  static std::unique_ptr<CudaDevice> Open() { return *CudaDevice::Open(size_t{1} << 20); }

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
  // All of them in a step, as often as a graph.
  int StepThatSums(CudaDevice& device) {
    const int before = NumGraphLaunches();
    device.BeginStep();
    const std::vector<const float*> staged = StageAll(device);
    SumTask task = {.from = {}, .count = 6, .at = kFloats - 1, .to = &sum_};
    std::copy(staged.begin(), staged.end(), task.from);
    sum_ = 0;
    cuda::CallOrKeep<Sum>(device.stream(), task);
    EXPECT_TRUE(device.Sync().ok());
    EXPECT_EQ(sum_, 15);
    return NumGraphLaunches() - before;
  }
  // What kernels see that are enqueued when all are staged: the first and the last of each.
  static void Look(cuda::Stream& stream, const std::vector<const float*>& staged,
                   std::vector<float>& seen) {
    cuda_on_cpu::EnqueueOnHost(stream, [&seen, staged] {
      for (const float* array : staged) seen.insert(seen.end(), {array[0], array[kFloats - 1]});
    });
  }
  bool has_run_ = false;
  float sum_ = 0;
  const std::vector<float> all_ = {0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5};
};

TEST_F(CudaArenaTest, WhatWasStagedStaysUntilTheNextSync) {
  const auto device = Open();
  for (int step = 0; step < 3; ++step) {
    std::vector<float> seen;
    const std::vector<const float*> staged = StageAll(*device);
    Look(device->stream(), staged, seen);
    EXPECT_TRUE(device->Sync().ok());
    EXPECT_EQ(seen, all_);
  }
}

// It is spread over blocks; where there is memory for no more than it needs, over other ones. Those
// after it are alike, hence graphs, and allocate nothing.
TEST_F(CudaArenaTest, AStepMayOutgrowTheArena) {
  for (const size_t largest : {size_t{4} << 20, size_t{600000}}) {
    cuda_on_cpu::SetLargestAllocation(std::numeric_limits<size_t>::max());
    const auto device = Open();
    cuda_on_cpu::SetLargestAllocation(largest);
    for (const bool is_graph : {false, true, true}) {
      EXPECT_EQ(StepThatSums(*device), is_graph ? 1 : 0);
      cuda_on_cpu::SetLargestAllocation(0);
    }
  }
}

// The arrays of one operator fit into the arena, those of three do not, nor those of two in a step,
// where they have room for more.
TEST_F(CudaArenaTest, WithoutMemoryAStepWaitsForItsOperators) {
  for (const bool is_step : {false, true}) {
    const auto device = Open();
    cuda_on_cpu::SetLargestAllocation(0);
    for (int step = 0; step < 3; ++step) {
      if (is_step) device->BeginStep();
      float sum = 0;
      const std::vector<float> small(1000, 0.25f);
      for (int i = 0; i < 6; ++i) {
        const std::vector<float> values(60000, static_cast<float>(i));
        SumTask task = {.from = {}, .count = 3, .at = small.size() - 1, .to = &sum};
        task.from[0] = device->Stage(absl::MakeConstSpan(small));
        task.from[1] = device->Stage(absl::MakeConstSpan(values));
        task.from[2] = device->Stage(absl::MakeConstSpan(values));
        cuda::CallOrKeep<Sum>(device->stream(), task);
        device->EndOperator();
      }
      const absl::Status status = device->Sync();
      EXPECT_TRUE(status.ok()) << status;
      EXPECT_EQ(sum, 6 * 0.25f + 2 * 15);
    }
    cuda_on_cpu::SetLargestAllocation(std::numeric_limits<size_t>::max());
  }
}

TEST_F(CudaArenaTest, AnOperatorThatNeedsMoreThanThereIsFails) {
  for (const bool is_step : {false, true}) {
    const auto device = Open();
    cuda_on_cpu::SetLargestAllocation(0);
    if (is_step) device->BeginStep();
    const std::vector<float> values(kFloats);
    SumTask task = {.from = {}, .count = 3, .at = 0, .to = &sum_};
    for (int i = 0; i < 3; ++i) task.from[i] = device->Stage(absl::MakeConstSpan(values));
    sum_ = -1;
    cuda::CallOrKeep<Sum>(device->stream(), task);
    EXPECT_EQ(device->Sync().code(), absl::StatusCode::kResourceExhausted);
    EXPECT_EQ(sum_, -1);
    cuda_on_cpu::SetLargestAllocation(std::numeric_limits<size_t>::max());
  }
}

TEST_F(CudaArenaTest, WithoutMemoryForTheArenaThereIsNoBackend) {
  cuda_on_cpu::SetLargestAllocation((size_t{1} << 20) - 1);
  EXPECT_EQ(MakeCudaBackend({.arena_bytes = size_t{1} << 20}).status().code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(MakeCudaBackend({.arena_bytes = 1000}).ok());
}

// What has no bytes has a place too, even where the arena is full to its end.
TEST_F(CudaArenaTest, NothingCanBeStagedAndComesBack) {
  const auto device = Open();
  const std::vector<std::byte> all(size_t{1} << 20);
  for (int i = 0; i < 2; ++i) {
    float copy = -1;
    device->Stage(absl::MakeConstSpan(all));
    device->Download(device->Stage(absl::Span<const float>()), &copy, 0);
    EXPECT_EQ(copy, -1);
  }
  EXPECT_TRUE(device->Sync().ok());
}

TEST_F(CudaArenaTest, ResultsComeBackFromAnyOfItsBlocks) {
  const auto device = Open();
  for (const size_t which : {0u, 5u, 0u, 5u}) {
    float copy = -1;
    const std::vector<const float*> staged = StageAll(*device);
    device->Download(staged[which] + kFloats - 1, &copy, sizeof(copy));
    EXPECT_EQ(copy, static_cast<float>(which));
  }
}

// An explicit filter of blocks of 16 and three partitions, on a backend of its own.
class LongFilter {
 public:
  static constexpr int kWidth = 4, kBlock = 16, kPartitions = 3;

  LongFilter(int graph_tokens, int slots)
      : backend_(*MakeCudaBackend({.panel_rows = {}, .graph_tokens = graph_tokens})) {
    constexpr int kTaps = kPartitions * kBlock + 1;
    std::vector<float> table(16 * kWidth), taps(kWidth * kTaps), d(kWidth, 1.0f);
    for (size_t i = 0; i < table.size(); ++i) table[i] = std::sin(static_cast<float>(i));
    for (size_t i = 0; i < taps.size(); ++i) taps[i] = std::cos(static_cast<float>(i));
    embedding_ =
        *backend_->PackEmbedding(TensorView(table.data(), DType::kF32, {16, kWidth}), DType::kF32);
    weights_ = *backend_->PackConvolution(
        {.spec = {.num_inputs = kWidth, .num_filters = 1, .block = kBlock},
         .taps = {taps.data(), DType::kF32, {kWidth, kTaps}},
         .d = {d.data(), DType::kF32, {kWidth}}});
    const auto rows = static_cast<size_t>(slots);
    memory_ = *backend_->Allocate(rows * backend_->SsmStateBytes(*weights_));
    inputs_ = *backend_->Allocate(rows * kWidth * sizeof(float));
    outputs_ = *backend_->AllocateHostReadable(rows * kWidth * sizeof(float));
  }

  // A token of each row, whose outputs are appended to `all`; whether the step was a graph.
  bool Step(absl::Span<const Row> rows, std::vector<float>& all) {
    const auto n = static_cast<int64_t>(rows.size());
    const TensorView u = inputs_.View(DType::kF32, {n, kWidth});
    const TensorView y = outputs_.View(DType::kF32, {n, kWidth});
    std::vector<TokenId> tokens;
    for (const Row& row : rows)
      tokens.emplace_back(static_cast<int>(row.position + 5 * row.slot.value()) % 16);
    const int before = NumGraphLaunches();
    backend_->Embed(*embedding_, tokens, u);
    backend_->Ssm(*weights_, u, rows,
                  {static_cast<std::byte*>(memory_.data()), backend_->SsmStateBytes(*weights_)}, y);
    EXPECT_TRUE(backend_->Sync().ok());
    all.insert(all.end(), y.as<float>(), y.as<float>() + n * kWidth);
    return NumGraphLaunches() > before;
  }

 private:
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<EmbeddingWeights> embedding_;
  std::unique_ptr<SsmWeights> weights_;
  Buffer memory_, inputs_, outputs_;
};

// The blocks before the one that starts lie in other places of the ring each time.
TEST(CudaGraphTest, BlockStartsOfExplicitFiltersRepeat) {
  std::vector<std::vector<float>> results;
  for (const int graph_tokens : {0, 256}) {
    LongFilter filter(graph_tokens, 2);
    std::vector<float>& all = results.emplace_back();
    for (int slot = 0; slot < 2; ++slot) {
      for (int t = 0; t < 9 * LongFilter::kBlock; ++t) {
        const bool is_graph =
            filter.Step({{.slot = SlotId(slot), .begin = 0, .end = 1, .position = t}}, all);
        // The fourth block is the first after three.
        const bool is_repeated = slot > 0 || t > LongFilter::kPartitions * LongFilter::kBlock;
        EXPECT_TRUE(!is_repeated || is_graph == (graph_tokens > 0)) << t;
      }
    }
  }
  EXPECT_EQ(results[0], results[1]);
}

// From 5 to 24 sequences, of which some start a block: what one of them was for its sizes and as
// many starts, the next is.
TEST(CudaGraphTest, StepsOfNearlyAsManyRowsThatStartBlocksAreOneGraph) {
  constexpr int kSlots = 24, kSteps = 120;
  std::vector<std::vector<float>> results;
  for (const int graph_tokens : {0, 256}) {
    LongFilter filter(graph_tokens, kSlots);
    std::vector<int64_t> positions;
    for (int i = 0; i < kSlots; ++i)
      positions.push_back(LongFilter::kPartitions * LongFilter::kBlock + i);
    std::vector<float>& all = results.emplace_back();
    std::set<std::vector<size_t>> known;
    int graphs_with_starts = 0;
    for (int step = 0; step < kSteps; ++step) {
      const int n = 5 + step * 7 % 20;
      std::vector<Row> rows;
      int starts = 0;
      for (int i = 0; i < n; ++i) {
        const int slot = (i + 5 * step) % kSlots;
        const int64_t position = positions[static_cast<size_t>(slot)]++;
        starts += position % LongFilter::kBlock == 0 ? 1 : 0;
        rows.push_back({.slot = SlotId(slot), .begin = i, .end = i + 1, .position = position});
      }
      const bool is_graph = filter.Step(rows, all);
      const std::vector<size_t> kind = {CudaDevice::GraphSize(static_cast<size_t>(n)),
                                        static_cast<size_t>(starts),
                                        CudaDevice::GraphSize(static_cast<size_t>(n - starts))};
      EXPECT_EQ(is_graph, graph_tokens > 0 && !known.insert(kind).second)
          << n << " rows, " << starts << " block starts";
      graphs_with_starts += is_graph && starts > 0 ? 1 : 0;
    }
    EXPECT_EQ(graphs_with_starts > 30, graph_tokens > 0) << graphs_with_starts;
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
      const auto backend = *MakeCudaBackend({.panel_rows = {2},
                                             .product_seconds = CudaOptions::kUnlimited,
                                             .graph_tokens = graph_tokens});
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
    if (kSanitized) break;
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
struct DecodeOptions {
  int graph_tokens = 256;
  int num_steps = kSanitized ? 30 : 60;
  bool has_prompts = false;  // some rows have several tokens
  // What operators stage goes through this, and no more can be had.
  std::optional<size_t> only_arena_bytes = std::nullopt;
};
Decoded Decode(const std::string& model, DType type, const DecodeOptions& options) {
  constexpr int kSlots = 24, kMaxTokens = 64;
  CudaOptions backend_options = {.panel_rows = {}, .graph_tokens = options.graph_tokens};
  if (options.only_arena_bytes.has_value()) backend_options.arena_bytes = *options.only_arena_bytes;
  const auto backend = *MakeCudaBackend(backend_options);
  const auto runner =
      *ModelRunner::Create("tests/golden/" + model, *backend, type, kMaxTokens, kSlots);
  const int window = runner->config().window, vocab_size = runner->config().vocab_size;
  EXPECT_TRUE(backend->ReserveSampling(vocab_size, kSlots).ok());
  std::vector<SlotLease> leases;
  for (int i = 0; i < kSlots; ++i) leases.push_back(*runner->pool().Acquire());
  std::vector<int64_t> positions(kSlots, 0);
  if (options.only_arena_bytes.has_value()) cuda_on_cpu::SetLargestAllocation(0);
  Decoded decoded;
  for (int step = 0; step < options.num_steps; ++step) {
    const int n = 5 + step * 7 % 20;
    std::vector<Row> rows;
    std::vector<TokenId> tokens;
    std::vector<int> indices;
    std::vector<TokenDraw> draws;
    int block_ends = 0;
    for (int i = 0; i < n; ++i) {
      const auto slot = static_cast<size_t>((i + 5 * step) % kSlots);
      const int64_t position = positions[slot];
      const int begin = static_cast<int>(tokens.size());
      const bool is_prompt = options.has_prompts && (i + step) % 5 == 0;
      const int length = is_prompt ? std::min(11, kMaxTokens - begin - (n - i - 1)) : 1;
      positions[slot] += length;
      block_ends += static_cast<int>(positions[slot] / window - position / window);
      rows.push_back(
          {.slot = leases[slot].id(), .begin = begin, .end = begin + length, .position = position});
      for (int t = 0; t < length; ++t) tokens.emplace_back((step * 7 + begin + t) % vocab_size);
      indices.push_back(begin + length - 1);
      draws.push_back({.row = i});
    }
    std::vector<DrawResult> results(draws.size());
    const int before = NumGraphLaunches();
    runner->model().Forward(tokens, rows, indices, runner->pool());
    const TensorView logits = runner->model().Logits(indices);
    backend->SampleTokens(logits, draws, {}, absl::MakeSpan(results), {});
    const absl::Status status = backend->Sync();
    EXPECT_TRUE(status.ok()) << status;
    decoded.steps.push_back({n, block_ends, NumGraphLaunches() > before});
    decoded.logits.insert(decoded.logits.end(), logits.as<float>(),
                          logits.as<float>() + logits.shape().num_elements());
    for (const DrawResult& result : results) decoded.tokens.push_back(result.token);
  }
  cuda_on_cpu::SetLargestAllocation(std::numeric_limits<size_t>::max());
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
    const Decoded expected = Decode(model, type, {.graph_tokens = 0}),
                  got = Decode(model, type, {});
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
    EXPECT_GT(graphs, kSanitized ? 20 : has_contexts ? 30 : 50) << model;
    for (const Decoded::Step& step : expected.steps) EXPECT_FALSE(step.is_graph);
    if (kSanitized) break;  // the others' kernels run in cuda_orders_test
  }
}

// Block ends have calls of several kinds here. What is a graph for sure is a step of as many rows
// and block ends as one before.
TEST(CudaGraphTest, StepsWithBlockEndsOfEveryKindKeepTheirBits) {
  for (const char* model : {"hybrid", "bst_multi_filter_dss", "bst_explicit"}) {
    const Decoded expected = Decode(model, DType::kBF16, {.graph_tokens = 0});
    const Decoded got = Decode(model, DType::kBF16, {});
    EXPECT_EQ(got.logits, expected.logits) << model;
    EXPECT_EQ(got.tokens, expected.tokens) << model;
    std::set<std::pair<int, int>> known;
    int graphs = 0;
    for (const Decoded::Step& step : got.steps) {
      EXPECT_TRUE(step.is_graph || known.insert({step.rows, step.block_ends}).second)
          << model << ": " << step.rows << " rows, " << step.block_ends << " block ends";
      graphs += step.is_graph ? 1 : 0;
    }
    EXPECT_GT(graphs, kSanitized ? 5 : 20) << model;
    if (kSanitized) break;
  }
}

// Prompts and tokens in the same step.
TEST(CudaGraphTest, StepsWithPromptsKeepTheirBits) {
  for (const auto& [model, type] :
       {std::pair{"transformer", DType::kF32}, std::pair{"bst_explicit", DType::kF32},
        std::pair{"bst_multi_filter_dss", DType::kBF16}, std::pair{"hybrid", DType::kBF16}}) {
    const Decoded expected =
        Decode(model, type, {.graph_tokens = 0, .num_steps = 12, .has_prompts = true});
    const Decoded got = Decode(model, type, {.num_steps = 12, .has_prompts = true});
    EXPECT_EQ(got.logits, expected.logits) << model;
    EXPECT_EQ(got.tokens, expected.tokens) << model;
    if (kSanitized) break;
  }
}

// A step stages more than the arena has; no operator does.
TEST(CudaGraphTest, StepsThatMustWaitForMemoryKeepTheirBits) {
  for (const auto& [model, type] :
       {std::pair{"transformer", DType::kF32}, std::pair{"bst_explicit", DType::kF32},
        std::pair{"hybrid", DType::kBF16}}) {
    DecodeOptions options = {.num_steps = 12, .has_prompts = true};
    const Decoded expected = Decode(model, type, options);
    options.only_arena_bytes = size_t{8} << 10;
    const Decoded got = Decode(model, type, options);
    EXPECT_EQ(got.logits, expected.logits) << model;
    EXPECT_EQ(got.tokens, expected.tokens) << model;
    if (kSanitized) break;
  }
}

}  // namespace
}  // namespace bst
