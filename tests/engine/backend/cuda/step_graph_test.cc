// Decode steps as graphs: which steps become one, and that nothing else changes.
#include <memory>
#include <string>
#include <vector>

#include "engine/backend/cuda/cuda_backend.h"
#include "engine/backend/cuda/step_graphs.h"
#include "gtest/gtest.h"
#include "tests/support/cuda_on_cpu/libraries.h"
#include "tests/support/model_runner.h"

namespace bst {
namespace {

using cuda_on_cpu::NumGraphLaunches;

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

// Models decode 1, 2 and 3 sequences in turn: after the first steps all but
// those at block ends are graphs, and the logits are those of a backend without.
TEST(CudaGraphTest, DecodeStepsBecomeGraphsAndKeepTheirBits) {
  for (const char* model : {"bst_single_head_s4d", "bst_explicit", "hybrid"}) {
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

}  // namespace
}  // namespace bst
