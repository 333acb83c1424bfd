// Counts calls of operator new, for the whole program: hence a test binary of its own.
#include <atomic>
#include <cstdlib>
#include <new>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tests/support/model_runner.h"

namespace {
std::atomic<long> g_allocations{0};
}

void* operator new(size_t bytes) {
  g_allocations.fetch_add(1, std::memory_order_relaxed);
  void* memory = std::malloc(bytes);
  if (memory == nullptr) std::abort();
  return memory;
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t /*bytes*/) noexcept { std::free(memory); }

namespace bst {
namespace {

class StepAllocationTest : public testing::TestWithParam<std::string> {};

// Prompts, single tokens and both in one step, over block ends and beyond the first window: once
// buffers have their sizes, a step asks the heap for nothing, with any of the types.
TEST_P(StepAllocationTest, AStepAllocatesNothing) {
  const auto backend = *MakeBackend("cpu");
  for (const DType type : {DType::kF32, DType::kBF16, DType::kI8}) {
    const auto runner =
        *ModelRunner::Create("tests/golden/" + GetParam(), *backend, type, 96, 3, type);
    std::vector<SlotLease> leases;
    for (int i = 0; i < 3; ++i) leases.push_back(*runner->pool().Acquire());
    std::vector<TokenId> tokens;
    for (int i = 0; i < 96; ++i) tokens.emplace_back(i * 7 % runner->config().vocab_size);
    std::vector<int64_t> positions(3);
    std::vector<Row> rows;
    const std::vector<int> last = {0, 1, 2};
    const auto step = [&](const std::vector<int>& lengths) {
      rows.clear();
      int begin = 0;
      for (size_t i = 0; i < lengths.size(); ++i) {
        rows.push_back({leases[i].id(), begin, begin + lengths[i], positions[i]});
        begin += lengths[i];
        positions[i] += lengths[i];
      }
      runner->model().Forward(absl::MakeConstSpan(tokens).first(static_cast<size_t>(begin)), rows,
                              runner->pool());
      runner->model().Logits(last);
    };
    const std::vector<std::vector<int>> steps = {{32, 32, 32}, {1, 1, 1}, {1, 60, 1}, {1, 1, 1}};
    const long at_first = g_allocations;
    for (int round = 0; round < 2; ++round) {
      for (const std::vector<int>& lengths : steps) step(lengths);
    }
    const long before = g_allocations;
    for (int round = 0; round < 20; ++round) {
      for (const std::vector<int>& lengths : steps) step(lengths);
    }
    const long after = g_allocations;
    EXPECT_EQ(after - before, 0) << Name(type);
    EXPECT_GT(before, at_first) << "the count works: the first steps size their buffers";
  }
}

INSTANTIATE_TEST_SUITE_P(All, StepAllocationTest,
                         testing::Values("transformer", "bst_single_head_s4d", "bst_multi_head_s4",
                                         "bst_multi_filter_dss", "bst_s5", "bst_explicit", "brect",
                                         "hybrid"));

}  // namespace
}  // namespace bst
