// Checkpoints with logits and continuations that a float64 evaluation of the model's definition
// gave, independent of this engine (tests/golden/README.md).
#include <algorithm>
#include <fstream>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/support/model_runner.h"
#include "tests/support/npy.h"
#include "tests/support/sanitized.h"

namespace bst {
namespace {

constexpr char kGolden[] = "tests/golden/";

std::vector<std::string> Int8Backends() {
  std::vector<std::string> names = CpuBackendNames();
  if (!kSanitizedForRaces) names.push_back("reference");  // it has no threads
  return names;
}

std::vector<std::string> Backends() {
  std::vector<std::string> names = Int8Backends();
  for (const std::string& cuda : EmulatedBackendNames()) names.push_back(cuda);
  for (const std::string& gpu : GpuBackendNames()) names.push_back(gpu);
  return names;
}

struct Case {
  std::string checkpoint, backend;
};
void PrintTo(const Case& c, std::ostream* out) { *out << c.checkpoint << " on " << c.backend; }

std::vector<Case> CasesOn(const std::vector<std::string>& backends) {
  std::vector<Case> cases;
  for (const char* checkpoint :
       {"transformer", "bst_single_head_s4d", "bst_multi_head_s4", "bst_multi_filter_dss", "bst_s5",
        "bst_explicit", "brect", "hybrid"}) {
    for (const std::string& backend : backends) cases.push_back({checkpoint, backend});
  }
  return cases;
}

class GoldenTest : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    directory_ = kGolden + GetParam().checkpoint;
    auto backend = MakeBackend(GetParam().backend);
    ASSERT_TRUE(backend.ok()) << backend.status();
    backend_ = *std::move(backend);
    auto tokens = ReadTokens(directory_ + "/tokens.json");
    ASSERT_TRUE(tokens.ok()) << tokens.status();
    tokens_ = *tokens;
    auto expected = ReadNpy(directory_ + "/expected_logits.npy");
    ASSERT_TRUE(expected.ok()) << expected.status();
    expected_ = *expected;
  }
  std::unique_ptr<ModelRunner> Runner(DType type, std::optional<DType> kv = std::nullopt) {
    auto runner = ModelRunner::Create(directory_, *backend_, type, 64, /*num_slots=*/1, kv);
    EXPECT_TRUE(runner.ok()) << runner.status();
    return *std::move(runner);
  }
  // Lengths of at most `chunk` that cover the tokens.
  std::vector<int> Chunks(int chunk) const {
    std::vector<int> lengths;
    for (int left = static_cast<int>(tokens_.size()); left > 0; left -= lengths.back()) {
      lengths.push_back(std::min(chunk, left));
    }
    return lengths;
  }

  std::string directory_;
  std::unique_ptr<Backend> backend_;
  std::vector<TokenId> tokens_;
  NpyMatrix expected_;
};

// 1e-4 is what the format promises; plain float32 gives below 1e-6, so 1e-5 already means a bug.
TEST_P(GoldenTest, LogitsAgreeInFloat32HoweverThePromptIsCut) {
  const auto runner = Runner(DType::kF32);
  for (const int chunk : {64, 16, 7, 1}) {
    EXPECT_LT(RelativeRms(runner->Logits(tokens_, Chunks(chunk)), expected_.values), 1e-5)
        << "chunks of " << chunk;
  }
}

TEST_P(GoldenTest, LogitsAgreeInBFloat16) {
  const auto runner = Runner(DType::kBF16);
  EXPECT_LT(RelativeRms(runner->Logits(tokens_, Chunks(64)), expected_.values), 2e-2);
}

// What INT8 costs in accuracy, and that a cut costs nothing on top.
using Int8GoldenTest = GoldenTest;
TEST_P(Int8GoldenTest, LogitsAgreeHoweverThePromptIsCut) {
  for (const DType kv : {DType::kBF16, DType::kI8}) {
    const auto runner = Runner(DType::kI8, kv);
    const std::vector<float> whole = runner->Logits(tokens_, Chunks(64));
    EXPECT_LT(RelativeRms(whole, expected_.values), 5e-2) << Name(kv);
    for (const int chunk : {16, 7, 1})
      EXPECT_EQ(runner->Logits(tokens_, Chunks(chunk)), whole)
          << Name(kv) << " in " << chunk << "s";
  }
}

TEST_P(GoldenTest, GreedyContinuationIsTheExpectedOne) {
  std::ifstream file(directory_ + "/expected_greedy.json");
  const nlohmann::json expected = nlohmann::json::parse(file);
  const auto runner = Runner(DType::kF32);
  const auto lease = runner->pool().Acquire();
  const auto vocab = static_cast<size_t>(runner->config().vocab_size);
  std::vector<TokenId> input = tokens_;
  int64_t position = 0;
  for (const int want : expected["tokens"].get<std::vector<int>>()) {
    std::vector<float> logits;
    for (size_t done = 0; done < input.size();) {
      const int n = static_cast<int>(std::min<size_t>(input.size() - done, 64));
      runner->Step(absl::MakeConstSpan(input).subspan(done, static_cast<size_t>(n)),
                   {Row{.slot = lease->id(), .begin = 0, .end = n, .position = position}}, logits);
      done += static_cast<size_t>(n);
      position += n;
    }
    const auto last = logits.end() - static_cast<std::ptrdiff_t>(vocab);
    const auto best = static_cast<int>(std::max_element(last, logits.end()) - last);
    ASSERT_EQ(best, want) << "at position " << position;
    input = {TokenId(best)};
  }
}

std::string CaseName(const testing::TestParamInfo<Case>& param) {
  std::string name = param.param.checkpoint + "_" + param.param.backend;
  std::replace_if(
      name.begin(), name.end(), [](char c) { return c == ':' || c == '-'; }, '_');
  return name;
}

INSTANTIATE_TEST_SUITE_P(All, GoldenTest, testing::ValuesIn(CasesOn(Backends())), CaseName);
INSTANTIATE_TEST_SUITE_P(All, Int8GoldenTest, testing::ValuesIn(CasesOn(Int8Backends())), CaseName);

}  // namespace
}  // namespace bst
