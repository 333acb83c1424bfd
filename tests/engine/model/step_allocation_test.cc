// Counts calls of operator new, for the whole program: hence a test binary of its own.
#include <atomic>
#include <cstdlib>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "tests/support/cuda_on_cpu/libraries.h"
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

// A backend and a golden model.
using Param = std::pair<std::string, std::string>;
class StepAllocationTest : public testing::TestWithParam<Param> {};

// Prompts, single tokens and both in one step, over block ends and beyond the first window: once
// buffers have their sizes, a step asks the heap for nothing, with any of the types. Of the CUDA
// backend the operators are counted; what the emulated device does when it runs them is not. A step
// that ends with the host reading results is counted while the emulated device does nothing.
TEST_P(StepAllocationTest, AStepAllocatesNothing) {
  const auto& [backend_name, model_name] = GetParam();
  const auto backend = *MakeBackend(backend_name);
  std::vector<DType> types = {DType::kF32, DType::kBF16};
  if (backend->HasInt8()) types.push_back(DType::kI8);
  for (const DType type : types) {
    const auto runner =
        *ModelRunner::Create("tests/golden/" + model_name, *backend, type, 96, 3, type);
    std::vector<SlotLease> leases;
    for (int i = 0; i < 3; ++i) leases.push_back(*runner->pool().Acquire());
    std::vector<TokenId> tokens;
    for (int i = 0; i < 96; ++i) tokens.emplace_back(i * 7 % runner->config().vocab_size);
    std::vector<int64_t> positions(3);
    std::vector<Row> rows;
    const std::vector<int> last = {0, 1, 2};
    std::vector<int> wanted;
    const auto step = [&](const std::vector<int>& lengths) -> long {
      rows.clear();
      wanted.clear();
      int begin = 0;
      for (size_t i = 0; i < lengths.size(); ++i) {
        rows.push_back({leases[i].id(), begin, begin + lengths[i], positions[i]});
        begin += lengths[i];
        // Of the first step no logits, of the third some of its tokens', else all.
        if (lengths[0] == 1) wanted.push_back(begin - 1);
        positions[i] += lengths[i];
      }
      const long before = g_allocations;
      runner->model().Forward(absl::MakeConstSpan(tokens).first(static_cast<size_t>(begin)), rows,
                              wanted, runner->pool());
      runner->model().Logits(wanted);
      const long allocated = g_allocations - before;
      EXPECT_TRUE(backend->Sync().ok());
      return allocated;
    };
    const std::vector<std::vector<int>> steps = {{32, 32, 32}, {1, 1, 1}, {1, 60, 1}, {1, 1, 1}};
    const auto rounds = [&](int n) {
      long allocated = 0;
      for (int round = 0; round < n; ++round) {
        for (const std::vector<int>& lengths : steps) allocated += step(lengths);
      }
      return allocated;
    };
    const long at_first = g_allocations;
    (void)rounds(2);
    EXPECT_GT(g_allocations, at_first) << "the count works: the first steps size their buffers";
    EXPECT_EQ(rounds(backend_name == "cpu" ? 20 : 2), 0) << Name(type);
    // A step, until its results are on the host.
    std::vector<DrawResult> results(3);
    std::vector<TokenDraw> draws(3);
    for (int i = 0; i < 3; ++i) draws[static_cast<size_t>(i)].row = i;
    std::vector<float> logprobs(3);
    rows.clear();
    for (int i = 0; i < 3; ++i) rows.push_back({leases[static_cast<size_t>(i)].id(), i, i + 1, 5});
    ASSERT_TRUE(!backend->HasSampling() ||
                backend->ReserveSampling(runner->config().vocab_size, 3).ok());
    for (const bool draw : {false, true}) {
      if (draw && !backend->HasSampling()) continue;
      const auto whole_step = [&]() -> long {
        const long before = g_allocations;
        runner->model().Forward(absl::MakeConstSpan(tokens).first(3), rows, last, runner->pool());
        const TensorView logits = runner->model().Logits(last);
        if (draw) {
          backend->SampleTokens(logits, draws, {}, absl::MakeSpan(results), {});
        } else {
          backend->TargetLogprobs(logits, absl::MakeConstSpan(tokens).first(3),
                                  absl::MakeSpan(logprobs));
        }
        return g_allocations - before;
      };
      for (int i = 0; i < 3; ++i) (void)whole_step();
      cuda_on_cpu::SetDiscards(true);
      EXPECT_EQ(whole_step(), 0) << Name(type) << (draw ? ", drawn" : ", scored");
      cuda_on_cpu::SetDiscards(false);
    }
  }
}

// Rows whose heads a backend may keep in a form of its own, beside others.
TEST(LongStepAllocationTest, ALongStepAllocatesNothing) {
  for (const DType type : {DType::kBF16, DType::kI8}) {
    const auto backend = *MakeBackend("cpu");
    const auto runner = *ModelRunner::Create("models/bst-books-4m", *backend, type, 400, 3, type);
    std::vector<SlotLease> leases;
    for (int i = 0; i < 3; ++i) leases.push_back(*runner->pool().Acquire());
    const std::vector<TokenId> tokens(400, TokenId(7));
    std::vector<int64_t> positions(3);
    const auto steps = [&] {
      long allocated = 0;
      for (const std::vector<int>& lengths :
           std::vector<std::vector<int>>{{300, 1, 1}, {1, 300, 40}}) {
        std::vector<Row> rows;
        int begin = 0;
        for (size_t i = 0; i < lengths.size(); ++i) {
          rows.push_back({leases[i].id(), begin, begin + lengths[i], positions[i]});
          begin += lengths[i];
          positions[i] += lengths[i];
        }
        const std::vector<int> wanted = {begin - 1};
        const long before = g_allocations;
        runner->model().Forward(absl::MakeConstSpan(tokens).first(static_cast<size_t>(begin)), rows,
                                wanted, runner->pool());
        runner->model().Logits(wanted);
        allocated += g_allocations - before;
      }
      return allocated;
    };
    EXPECT_GT(steps(), 0);
    EXPECT_EQ(steps(), 0) << Name(type);
  }
}

std::vector<Param> Params() {
  std::vector<std::string> backends = EmulatedBackendNames();
  backends.push_back("cpu");
  std::vector<Param> params;
  for (const std::string& backend : backends) {
    for (const char* model : {"transformer", "bst_single_head_s4d", "bst_multi_head_s4",
                              "bst_multi_filter_dss", "bst_s5", "bst_explicit", "brect", "hybrid"})
      params.emplace_back(backend, model);
  }
  return params;
}
INSTANTIATE_TEST_SUITE_P(All, StepAllocationTest, testing::ValuesIn(Params()));

}  // namespace
}  // namespace bst
