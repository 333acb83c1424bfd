// The law: the logits of token t are one function of tokens 0..t, however the document is cut into
// rows, whatever shares the step, whichever slot holds the state. On one backend bit for bit.
#include "engine/model/model.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_replace.h"
#include "engine/checkpoint/random_checkpoint.h"
#include "gtest/gtest.h"
#include "tests/support/model_runner.h"
#include "tests/support/sanitized.h"

namespace bst {
namespace {

constexpr char kConfig[] = R"({
  "model_type": "block_state_transformer", "format_version": 1,
  "vocab_size": 300, "hidden_size": WIDTH, "num_heads": HEADS, "head_dim": HEAD, "ffn_size": 100,
  "ffn_activation": "ACTIVATION", "window": 20, "norm_eps": 1e-6, "logit_scale": 1.0, "tie_embeddings": true,
  "attention": {"scope": "SCOPE", "include_self": SELF, "empty_prefix": "PREFIX", "qk_norm": QKNORM,
                "position": "POSITION", "t5_num_buckets": 8, "t5_max_distance": 16, "rope_theta": 10000.0},
  "layers": [LAYERS],
  "tokenizer": {"type": "byte"}, "bos_token_id": null, "eos_token_id": null, "pad_token_id": null })";

// Layer mixes: every layer type, context and kernel, S below and above W, filters shorter and
// longer than a block.
constexpr char kS4d[] = R"({"type": "transformer"},
  {"type": "bst", "context": "single_head", "ssm": {"kernel": "s4d", "state_size": 6, "discretization": "zoh"}},
  {"type": "bst", "context": "single_head", "ssm": {"kernel": "s4d", "state_size": 10, "discretization": "bilinear"}})";
constexpr char kMultiHead[] = R"(
  {"type": "bst", "context": "multi_head", "ssm": {"kernel": "s4", "state_size": 6, "discretization": "bilinear"}},
  {"type": "bst", "context": "multi_head", "ssm": {"kernel": "explicit", "length": 50}})";
constexpr char kMultiFilter[] = R"(
  {"type": "bst", "context": "multi_filter", "num_states": 23, "ssm": {"kernel": "s4d", "state_size": 4}},
  {"type": "bst", "context": "multi_filter", "num_states": 3, "ssm": {"kernel": "s5", "state_size": 10}},
  {"type": "bst", "context": "multi_filter", "num_states": 5, "ssm": {"kernel": "explicit", "length": 45}})";
constexpr char kKernels[] = R"(
  {"type": "bst", "context": "single_head", "ssm": {"kernel": "s5", "state_size": 8, "discretization": "bilinear"}},
  {"type": "bst", "context": "multi_filter", "num_states": 2, "ssm": {"kernel": "dss", "state_size": 5}},
  {"type": "bst", "context": "single_head", "ssm": {"kernel": "explicit", "length": 7}},
  {"type": "bst", "context": "multi_filter", "num_states": 2, "ssm": {"kernel": "s4", "state_size": 4, "discretization": "bilinear"}})";
constexpr char kBrect[] = R"({"type": "brect", "num_states": 5, "gate": "fixed"},
  {"type": "transformer"}, {"type": "brect", "num_states": 33, "gate": "fixed"})";
// So many states that the rows of a step are updated one by one, and two by two.
constexpr char kBrectBatches[] = R"({"type": "brect", "num_states": 130, "gate": "fixed"},
  {"type": "brect", "num_states": 90, "gate": "fixed"})";
constexpr char kHybrid[] = R"(
  {"type": "gss", "inner_size": 40, "ssm_size": 24, "ssm": {"kernel": "dss", "state_size": 5}},
  {"type": "transformer"},
  {"type": "gss", "inner_size": 33, "ssm_size": 17, "ssm": {"kernel": "s4d", "state_size": 6}})";

constexpr char kTransformerLast[] = R"(
  {"type": "gss", "inner_size": 40, "ssm_size": 24, "ssm": {"kernel": "s4d", "state_size": 4}},
  {"type": "transformer"})";

struct Variant {
  const char *name, *scope, *self, *prefix, *qk_norm, *position, *activation, *layers;
};
constexpr Variant kVariants[] = {
    {"sliding_self_t5", "sliding", "true", "masked", "true", "t5", "relu", kS4d},
    {"sliding_strict_zeros_t5", "sliding", "false", "zeros", "true", "t5", "geglu", kS4d},
    {"sliding_strict_rope", "sliding", "false", "masked", "false", "rope", "swiglu", kS4d},
    {"block_self_rope", "block", "true", "masked", "true", "rope", "gelu", kS4d},
    {"block_strict_none", "block", "false", "masked", "false", "none", "relu", kS4d},
    {"multi_head", "sliding", "true", "masked", "true", "rope", "relu", kMultiHead},
    {"multi_filter", "sliding", "true", "masked", "false", "rope", "swiglu", kMultiFilter},
    {"kernels", "sliding", "false", "masked", "true", "t5", "relu", kKernels},
    {"brect_rope", "sliding", "true", "masked", "true", "rope", "relu", kBrect},
    {"brect_zeros_t5", "sliding", "false", "zeros", "true", "t5", "relu", kBrect},
    {"brect_block_none", "block", "true", "masked", "false", "none", "gelu", kBrect},
    {"brect_batches", "sliding", "true", "masked", "true", "rope", "relu", kBrectBatches},
    {"hybrid", "sliding", "true", "masked", "true", "rope", "relu", kHybrid},
    {"transformer_last", "sliding", "false", "masked", "true", "rope", "gelu", kTransformerLast},
};

struct Case {
  Variant variant;
  std::string backend;
  DType type;
};
void PrintTo(const Case& c, std::ostream* out) {
  *out << c.variant.name << " on " << c.backend << " in " << std::string(Name(c.type));
}

class ModelLawTest : public testing::TestWithParam<Case> {
 protected:
  static constexpr int kSlots = 4;

  void SetUp() override {
    const Variant& v = GetParam().variant;
    directory_ = std::filesystem::path(testing::TempDir()) /
                 ("model_law_" + std::to_string(::getpid()) + "_" + v.name);
    const bool in_panels = MaxStepTokens() > 256;
    std::filesystem::create_directories(directory_);
    const std::string config_path = directory_ / "source.json";
    std::ofstream(config_path) << absl::StrReplaceAll(kConfig, {{"SCOPE", v.scope},
                                                                {"SELF", v.self},
                                                                {"PREFIX", v.prefix},
                                                                {"QKNORM", v.qk_norm},
                                                                {"POSITION", v.position},
                                                                {"ACTIVATION", v.activation},
                                                                {"LAYERS", v.layers},
                                                                {"WIDTH", in_panels ? "64" : "56"},
                                                                {"HEADS", in_panels ? "2" : "3"},
                                                                {"HEAD", in_panels ? "32" : "24"}});
    RandomCheckpointOptions options;
    options.config_path = config_path;
    options.directory = directory_;
    options.seed = 7;
    options.dtype = DType::kF32;
    const absl::Status written = WriteRandomCheckpoint(options);
    ASSERT_TRUE(written.ok()) << written;
    auto backend = MakeBackend(GetParam().backend);
    ASSERT_TRUE(backend.ok()) << backend.status();
    backend_ = *std::move(backend);
    auto runner = ModelRunner::Create(directory_, *backend_, GetParam().type, MaxStepTokens(),
                                      kSlots, GetParam().type);
    ASSERT_TRUE(runner.ok()) << runner.status();
    runner_ = *std::move(runner);
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }
  virtual int MaxStepTokens() const { return 256; }

  static std::vector<TokenId> RandomTokens(int n, uint32_t seed) {
    std::mt19937 random(seed);
    std::vector<TokenId> tokens;
    for (int i = 0; i < n; ++i) tokens.emplace_back(static_cast<int32_t>(random() % 300));
    return tokens;
  }
  static bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
    return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
  }

  std::filesystem::path directory_;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<ModelRunner> runner_;
};

// Four blocks and a ragged tail: one row, rows of whole blocks, prefill then decode at and around
// block boundaries, and rows that end anywhere.
TEST_P(ModelLawTest, HoweverTheDocumentIsCutTheBitsAreTheSame) {
  const std::vector<TokenId> tokens = RandomTokens(89, 1);
  const std::vector<float> whole = runner_->Logits(tokens, {89});
  const std::vector<std::vector<int>> cuts = {
      {20, 20, 20, 20, 9}, {40, 40, 9}, {60, 29}, {80, 9}, {1, 88}, {19, 1, 1, 68}, {33, 7, 49}};
  for (const std::vector<int>& cut : cuts) {
    EXPECT_TRUE(SameBits(runner_->Logits(tokens, cut), whole)) << "first row of " << cut[0];
  }
  for (const int prompt : {0, 1, 19, 20, 21, 41, 80}) {
    std::vector<int> cut(static_cast<size_t>(89 - prompt), 1);
    if (prompt > 0) cut.insert(cut.begin(), prompt);
    EXPECT_TRUE(SameBits(runner_->Logits(tokens, cut), whole))
        << "prompt of " << prompt << ", then one by one";
  }
}

// Sequences of several lengths, at different offsets of their blocks, share every step in changing
// company and order; each gives what it gives alone.
TEST_P(ModelLawTest, WhateverSharesTheStepTheBitsAreTheSame) {
  std::mt19937 random(3);
  const std::vector<int> lengths = {1, 37, 64, 101};
  std::vector<std::vector<TokenId>> documents;
  std::vector<std::vector<float>> alone, together(lengths.size());
  for (size_t i = 0; i < lengths.size(); ++i) {
    documents.push_back(RandomTokens(lengths[i], static_cast<uint32_t>(10 + i)));
    alone.push_back(runner_->Logits(documents[i], {lengths[i]}));
  }
  std::vector<SlotLease> leases;
  for (int i = 0; i < kSlots; ++i) leases.push_back(*runner_->pool().Acquire());
  std::vector<int> done(lengths.size(), 0);
  const auto vocab = static_cast<size_t>(runner_->config().vocab_size);
  for (;;) {
    std::vector<TokenId> tokens;
    std::vector<Row> rows;
    std::vector<size_t> owners;
    std::vector<size_t> order = {0, 1, 2, 3};
    std::shuffle(order.begin(), order.end(), random);
    for (const size_t i : order) {
      const int left = lengths[i] - done[i];
      if (left == 0 || random() % 4 == 0) continue;
      const int n = random() % 2 == 0 ? 1 : std::min(left, 1 + static_cast<int>(random() % 50));
      const int begin = static_cast<int>(tokens.size());
      tokens.insert(tokens.end(), documents[i].begin() + done[i],
                    documents[i].begin() + done[i] + n);
      rows.push_back({.slot = leases[(i + 2) % kSlots].id(),
                      .begin = begin,
                      .end = begin + n,
                      .position = done[i]});
      owners.push_back(i);
      done[i] += n;
    }
    if (rows.empty()) {
      if (done == lengths) break;
      continue;
    }
    std::vector<float> logits;
    runner_->Step(tokens, rows, logits);
    for (size_t r = 0; r < rows.size(); ++r) {
      const auto first =
          logits.begin() + static_cast<std::ptrdiff_t>(static_cast<size_t>(rows[r].begin) * vocab);
      const auto last =
          logits.begin() + static_cast<std::ptrdiff_t>(static_cast<size_t>(rows[r].end) * vocab);
      together[owners[r]].insert(together[owners[r]].end(), first, last);
    }
  }
  for (size_t i = 0; i < lengths.size(); ++i) {
    EXPECT_TRUE(SameBits(together[i], alone[i])) << "document of " << lengths[i] << " tokens";
  }
}

// Two documents share steps, in rows cut anywhere; wanted are the logits of their last tokens, of
// some tokens here and there, of half and of nearly all: each is what it is when all are wanted.
TEST_P(ModelLawTest, WhateverIsWantedTheBitsAreTheSame) {
  std::mt19937 random(8);
  const auto below = [&](int n) { return static_cast<int>(random() % static_cast<unsigned>(n)); };
  const std::vector<int> lengths = {89, 61};
  std::vector<std::vector<TokenId>> documents;
  std::vector<std::vector<float>> all;
  for (size_t i = 0; i < lengths.size(); ++i) {
    documents.push_back(RandomTokens(lengths[i], static_cast<uint32_t>(30 + i)));
    all.push_back(runner_->Logits(documents[i], {lengths[i]}));
  }
  const auto vocab = static_cast<size_t>(runner_->config().vocab_size);
  // The first reads both documents in one step.
  for (const auto& [percent, longest] :
       {std::pair(0, 89), {0, 50}, {0, 25}, {4, 50}, {50, 50}, {97, 50}}) {
    std::vector<SlotLease> leases;
    for (size_t i = 0; i < lengths.size(); ++i) leases.push_back(*runner_->pool().Acquire());
    std::vector<int> done(lengths.size(), 0);
    while (done != lengths) {
      std::vector<TokenId> tokens;
      std::vector<Row> rows;
      std::vector<int> wanted;
      std::vector<float> expected, logits;
      for (size_t i = 0; i < lengths.size(); ++i) {
        const int left = lengths[i] - done[i];
        if (left == 0) continue;
        const int n = longest == 89 ? left : below(4) == 0 ? 1 : std::min(left, 1 + below(longest));
        const int begin = static_cast<int>(tokens.size());
        rows.push_back({leases[i].id(), begin, begin + n, done[i]});
        for (int t = done[i]; t < done[i] + n; ++t) {
          tokens.push_back(documents[i][static_cast<size_t>(t)]);
          if (below(100) >= percent && t != lengths[i] - 1) continue;
          wanted.push_back(static_cast<int>(tokens.size()) - 1);
          const auto row =
              all[i].begin() + static_cast<std::ptrdiff_t>(static_cast<size_t>(t) * vocab);
          expected.insert(expected.end(), row, row + static_cast<std::ptrdiff_t>(vocab));
        }
        done[i] += n;
      }
      runner_->Step(tokens, rows, wanted, logits);
      ASSERT_TRUE(SameBits(logits, expected))
          << percent << " % wanted, rows of up to " << longest << ": " << wanted.size() << " of "
          << tokens.size() << " tokens, the first row from " << rows[0].position;
    }
  }
}

// A slot that another sequence has used gives what a fresh one gives.
TEST_P(ModelLawTest, ASlotKeepsNothingOfItsFormerSequence) {
  const std::vector<TokenId> tokens = RandomTokens(45, 5);
  const std::vector<float> fresh = runner_->Logits(tokens, {45});
  for (uint32_t i = 0; i < kSlots; ++i) runner_->Logits(RandomTokens(77, 20 + i), {77});
  EXPECT_TRUE(SameBits(runner_->Logits(tokens, {45}), fresh));
}

// Rows so long, and heads so wide, that a backend may keep what a prompt's attention reads in a form
// of its own: as a whole, in long and short pieces, and beside another document.
class LongRowLawTest : public ModelLawTest {
 protected:
  int MaxStepTokens() const override { return 1000; }
};
TEST_P(LongRowLawTest, LongRowsGiveTheBitsOfShortOnes) {
  const std::vector<TokenId> tokens = RandomTokens(640, 1), other = RandomTokens(300, 2);
  const auto pieces = [](int total, int length) {
    std::vector<int> cut(static_cast<size_t>(total / length), length);
    if (total % length != 0) cut.push_back(total % length);
    return cut;
  };
  const std::vector<float> expected = runner_->Logits(tokens, pieces(640, 64));
  const std::vector<std::vector<int>> cuts = {{640}, {300, 340}, {9, 270, 1, 360}, {331, 20, 289}};
  for (const std::vector<int>& cut : cuts)
    EXPECT_TRUE(SameBits(runner_->Logits(tokens, cut), expected)) << "first row of " << cut[0];

  std::vector<float> alone = runner_->Logits(other, pieces(300, 50)), logits;
  const auto row_size = static_cast<std::ptrdiff_t>(runner_->config().vocab_size);
  const SlotLease first = *runner_->pool().Acquire(), second = *runner_->pool().Acquire();
  std::vector<TokenId> both = other;
  both.insert(both.end(), tokens.begin(), tokens.end());
  // Of the second the logits after its last tokens alone.
  std::vector<int> wanted;
  for (int t = 0; t < 940; ++t) {
    if (t < 300 || t >= 930) wanted.push_back(t);
  }
  runner_->Step(both, {Row{second.id(), 0, 300, 0}, Row{first.id(), 300, 940, 0}}, wanted, logits);
  alone.insert(alone.end(), expected.end() - 10 * row_size, expected.end());
  EXPECT_TRUE(SameBits(logits, alone)) << "beside another document";
}

// Of more tokens than Logits takes at once all are computed, wanted or not.
TEST(ModelTest, MoreMayBeWantedThanLogitsTakesAtOnce) {
  const auto backend = *MakeBackend("cpu");
  const auto runner = *ModelRunner::Create("tests/golden/hybrid", *backend, DType::kF32, 400);
  constexpr int kTokens = 300;
  ASSERT_LT(runner->model().max_logit_rows(), kTokens - 1);
  std::vector<TokenId> tokens;
  for (int t = 0; t < kTokens; ++t) tokens.emplace_back(t * 7 % runner->config().vocab_size);
  std::vector<float> all, but_one;
  for (const int wanted : {kTokens, kTokens - 1}) {
    std::vector<int> first(static_cast<size_t>(wanted));
    std::iota(first.begin(), first.end(), 0);
    const SlotLease lease = *runner->pool().Acquire();
    runner->Step(tokens, {Row{.slot = lease.id(), .begin = 0, .end = kTokens}}, first,
                 wanted == kTokens ? all : but_one);
  }
  all.resize(but_one.size());
  EXPECT_EQ(but_one, all);
}

TEST(ModelDeathTest, LogitsAreOfWantedTokens) {
  const auto backend = *MakeBackend("reference");
  const auto runner = *ModelRunner::Create("tests/golden/transformer", *backend, DType::kF32, 8);
  const SlotLease lease = *runner->pool().Acquire();
  const std::vector<TokenId> tokens(4, TokenId(0));
  const auto forward = [&](const std::vector<int>& wanted) {
    runner->model().Forward(tokens, {Row{.slot = lease.id(), .begin = 0, .end = 4}}, wanted,
                            runner->pool());
  };
  forward({1, 3});
  EXPECT_DEATH(runner->model().Logits({2}), "token 2 was not wanted");
  EXPECT_DEATH(forward({3, 1}), "not some in order");
  EXPECT_DEATH(forward({4}), "not some in order");
}

// The reference, which takes as long as ten others, has one of the types with each variant, in turn.
// Under sanitizers every backend has, and the reference a third of the variants. ThreadSanitizer
// sees each variant on one backend, in turn, and not on the reference, which has no threads.
std::vector<Case> Cases() {
  std::vector<Case> cases;
  std::vector<std::string> backends = CpuBackendNames(/*traps=*/false);
  backends.push_back("reference");
  const std::vector<DType> types = {DType::kF32, DType::kBF16, DType::kI8};
  size_t turn = 0;
  for (const Variant& variant : kVariants) {
    for (size_t b = 0; b < backends.size(); ++b) {
      const std::string& backend = backends[b];
      const DType type_in_turn = types[turn++ % types.size()];
      const auto index = static_cast<size_t>(&variant - kVariants);
      const bool is_reference = backend == "reference";
      if (kSanitized && is_reference && index % 3 != index / 3 % 3) continue;
      if (kSanitizedForRaces && b != index % (backends.size() - 1)) continue;  // it is the last
      for (const DType type : types) {
        if (type == type_in_turn || !(kSanitized || is_reference))
          cases.push_back({variant, backend, type});
      }
    }
    if (backends.size() % types.size() == 0) ++turn;  // each backend meets every type
    for (const std::string& gpu : GpuBackendNames()) {
      for (const DType type : {DType::kF32, DType::kBF16}) cases.push_back({variant, gpu, type});
    }
  }
  // The emulated device takes seconds for what others do in milliseconds: a model of each kind.
  DType type = DType::kF32;
  for (const Variant& variant : kVariants) {
    for (const char* name : {"sliding_strict_zeros_t5", "multi_head", "multi_filter", "kernels",
                             "brect_rope", "hybrid"}) {
      if (std::string(variant.name) != name) continue;
      for (const std::string& cuda : EmulatedBackendNames()) cases.push_back({variant, cuda, type});
      type = type == DType::kF32 ? DType::kBF16 : DType::kF32;
    }
  }
  return cases;
}

std::string CaseName(const testing::TestParamInfo<Case>& param) {
  std::string name = std::string(param.param.variant.name) + "_" + param.param.backend + "_" +
                     std::string(Name(param.param.type));
  std::replace_if(
      name.begin(), name.end(), [](char c) { return c == ':' || c == '-'; }, '_');
  return name;
}

// Of the CPU, and of types that it packs.
std::vector<Case> LongRowCases() {
  std::vector<Case> cases = Cases();
  std::erase_if(cases,
                [](const Case& c) { return c.type == DType::kF32 || c.backend.find("cpu:") != 0; });
  return cases;
}

INSTANTIATE_TEST_SUITE_P(All, ModelLawTest, testing::ValuesIn(Cases()), CaseName);
INSTANTIATE_TEST_SUITE_P(All, LongRowLawTest, testing::ValuesIn(LongRowCases()), CaseName);

}  // namespace
}  // namespace bst
