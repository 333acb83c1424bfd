// Lets operator new fail, for the whole program: hence a test binary of its own.
#include <cstdlib>
#include <memory>
#include <new>
#include <string>

#include "engine/checkpoint/checkpoint.h"
#include "engine/engine.h"
#include "engine/tokenizer/tokenizer.h"
#include "gtest/gtest.h"
#include "tests/support/sanitized.h"
#include "tests/support/status_matchers.h"

namespace {

// Smaller ones are left alone: destructors of libraries make some, and could not say that they
// failed.
constexpr size_t kLargeBytes = 512;
// The large allocations of this thread until one fails; negative: none does.
thread_local long g_until_failure = -1;

}  // namespace

void* operator new(size_t bytes) {
  if (bytes >= kLargeBytes && g_until_failure >= 0 && g_until_failure-- == 0) {
    throw std::bad_alloc();
  }
  void* memory = std::malloc(bytes);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t /*bytes*/) noexcept { std::free(memory); }

namespace bst {
namespace {

using testing::AnyOf;
using testing::HasSubstr;

const auto kDoesNotFit =
    StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("not enough memory"));

// Runs `load` with the first large allocation failing, then the second and so on until it succeeds.
// Returns how many failed.
template <typename Load, typename Matcher>
int FailEachAllocation(Load load, Matcher refused) {
  for (int failed = 0;; ++failed) {
    g_until_failure = failed;
    const auto loaded = load();
    const bool all_were_given = g_until_failure >= 0;
    g_until_failure = -1;
    if (all_were_given) {
      EXPECT_THAT(loaded, IsOk());
      return failed;
    }
    EXPECT_THAT(loaded, refused) << "allocation " << failed;
    if (testing::Test::HasFailure()) return failed;
  }
}

class EngineMemoryTest : public testing::TestWithParam<std::string> {};

TEST_P(EngineMemoryTest, AnEngineThatDoesNotFitIsRefused) {
  // Every kind of layer and kernel.
  for (const char* const model :
       {"bst_multi_head_s4", "bst_s5", "bst_multi_filter_dss", "bst_explicit", "brect", "hybrid"}) {
    EngineOptions options;
    options.model_directory = std::string("tests/golden/") + model;
    options.backend = GetParam();
    options.threads = 1;
    options.max_sequences = 2;
    EXPECT_GT(FailEachAllocation([&] { return Engine::Create(options, nullptr); }, kDoesNotFit), 20)
        << model;
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, EngineMemoryTest, testing::Values("reference", "cpu"),
                         [](const auto& param) { return param.param; });

TEST(CheckpointMemoryTest, ACheckpointThatDoesNotFitIsRefused) {
  EXPECT_GT(FailEachAllocation([] { return Checkpoint::Open("tests/golden/hybrid"); }, kDoesNotFit),
            5);
}

TEST(TokenizerMemoryTest, AVocabularyThatDoesNotFitIsRefused) {
  if (kSanitized) GTEST_SKIP() << "the library leaks a table that was half built: LeakSanitizer";
  const auto load = [] {
    return Tokenizer::SentencePiece("models/bst-books-4m/tokenizer.model", 4096);
  };
  // What the library says of its own allocations.
  const auto in_library =
      StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("std::bad_alloc"));
  EXPECT_GT(FailEachAllocation(load, AnyOf(kDoesNotFit, in_library)), 5);
}

}  // namespace
}  // namespace bst
