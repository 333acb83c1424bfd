// Counts calls of operator new, for the whole program: hence a test binary of its own.
#include <cstdlib>
#include <new>
#include <random>
#include <vector>

#include "engine/sampling/sampler.h"
#include "gtest/gtest.h"
#include "tests/support/status_matchers.h"

namespace {
long g_allocations = 0;
}

void* operator new(size_t bytes) {
  ++g_allocations;
  void* memory = std::malloc(bytes);
  if (memory == nullptr) std::abort();
  return memory;
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t /*bytes*/) noexcept { std::free(memory); }

namespace bst {
namespace {

TEST(SamplerAllocationTest, NothingIsAllocatedPerTokenOnceTheScratchHasItsSize) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0, 3);
  std::vector<float> logits(5000);
  for (float& x : logits) x = normal(random);
  SamplingParams params;
  params.temperature = 0.8f;
  params.top_k = 100;
  params.top_p = 0.9f;
  params.min_p = 0.01f;
  params.typical_p = 0.95f;
  params.logit_bias = {{TokenId(7), 2.0f}};
  Sampler sampler({.params = params, .vocab_size = 5000, .sequence_index = 0, .top_logprobs = 0},
                  {});
  SamplerScratch scratch;
  const std::vector<TokenId> banned = {TokenId(1)};
  EXPECT_THAT(sampler.Sample(logits, 0, banned, scratch), IsOk());
  const long before = g_allocations;
  bool ok = true;
  for (uint64_t i = 1; i < 50; ++i) ok = sampler.Sample(logits, i, banned, scratch).ok() && ok;
  const long after = g_allocations;
  EXPECT_TRUE(ok);
  EXPECT_EQ(after - before, 0);
  EXPECT_GT(before, 0);  // the count works
}

TEST(SamplerAllocationTest, SequencesOfARequestShareItsParameters) {
  SamplingParams params;
  for (int id = 0; id < 5000; ++id) params.logit_bias.emplace_back(TokenId(id), 1.0f);
  const Sampler first(
      {.params = params, .vocab_size = 5000, .sequence_index = 0, .top_logprobs = 0}, {});
  const long before = g_allocations;
  const Sampler second = first.ForSequence(1);
  EXPECT_EQ(g_allocations - before, 0);
  EXPECT_EQ(second.StateBias().size(), 5000u);
}

}  // namespace
}  // namespace bst
