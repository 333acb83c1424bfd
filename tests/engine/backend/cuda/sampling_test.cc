// Sampling on the device, emulated and, where there is one, on a GPU, against the host's: the same
// tokens and the same numbers.
#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <memory>
#include <ostream>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "engine/backend/cuda/cuda_backend.h"
#include "engine/sampling/softmax.h"
#include "engine/sampling/step_sampler.h"
#include "gtest/gtest.h"
#include "tests/engine/engine_fixture.h"
#include "tests/support/cuda_on_cpu/libraries.h"
#include "tests/support/faulty_backend.h"
#include "tests/support/model_runner.h"
#include "tests/support/sanitized.h"
#include "tests/support/tiny_model.h"

namespace bst {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kMax = std::numeric_limits<float>::max();

// Everything about a token, with every bit.
std::string Text(const absl::StatusOr<SampledToken>& token) {
  if (!token.ok()) return token.status().ToString();
  const auto hex = [](float x) { return absl::StrCat(absl::Hex(std::bit_cast<uint32_t>(x))); };
  std::string text = absl::StrCat(token->token.value(), " ", hex(token->logprob), " of");
  for (const auto& [id, logprob] : token->top)
    absl::StrAppend(&text, " ", id.value(), ":", hex(logprob));
  return text;
}

// One of the two ways: a backend, a sampler of steps on it, and logits that it can read.
class Way {
 public:
  Way(const std::string& backend, int vocab_size, int rows, int slots)
      : backend_(*MakeBackend(backend)),
        sampler_(*StepSampler::Create(*backend_, vocab_size, slots, rows)),
        logits_(*backend_->AllocateHostReadable(static_cast<size_t>(rows) *
                                                static_cast<size_t>(vocab_size) * sizeof(float))),
        vocab_size_(vocab_size) {
    EXPECT_EQ(backend_->HasSampling(), backend != "reference");
  }

  std::vector<std::string> Sample(const std::vector<std::vector<float>>& rows,
                                  const std::vector<StepSampler::Draw>& draws) {
    std::vector<absl::StatusOr<SampledToken>> tokens;
    const absl::Status status = sampler_->Sample(Place(rows), draws, tokens);
    EXPECT_TRUE(status.ok()) << status;
    return Texts(tokens);
  }
  std::vector<std::string> Score(const std::vector<std::vector<float>>& rows,
                                 const std::vector<TokenId>& targets, int top_logprobs) {
    std::vector<absl::StatusOr<SampledToken>> tokens;
    const absl::Status status = sampler_->Score(Place(rows), targets, top_logprobs, tokens);
    EXPECT_TRUE(status.ok()) << status;
    return Texts(tokens);
  }

 private:
  TensorView Place(const std::vector<std::vector<float>>& rows) {
    auto* out = static_cast<float*>(logits_.data());
    for (const std::vector<float>& row : rows) out = std::copy(row.begin(), row.end(), out);
    return logits_.View(DType::kF32, {static_cast<int64_t>(rows.size()), vocab_size_});
  }
  static std::vector<std::string> Texts(const std::vector<absl::StatusOr<SampledToken>>& tokens) {
    std::vector<std::string> texts;
    for (const auto& token : tokens) texts.push_back(Text(token));
    return texts;
  }

  std::unique_ptr<Backend> backend_;
  std::unique_ptr<StepSampler> sampler_;
  Buffer logits_;
  int vocab_size_;
};

class Random {
 public:
  explicit Random(uint32_t seed) : generator_(seed) {}

  int Below(int n) { return static_cast<int>(generator_() % static_cast<uint32_t>(n)); }
  float Uniform(float low, float high) {
    return std::uniform_real_distribution<float>(low, high)(generator_);
  }
  float Normal() { return std::normal_distribution<float>()(generator_); }
  TokenId Token(int vocab_size) { return TokenId(Below(vocab_size)); }
  bool OneIn(int n) { return Below(n) == 0; }

  std::vector<float> Logits(int vocab_size) {
    const int kind = Below(12);
    std::vector<float> logits(static_cast<size_t>(vocab_size));
    for (float& x : logits) {
      x = 3 * Normal();
      if (kind == 1) x = static_cast<float>(Below(5)) - 2;  // ties, zeros of both signs among them
      if (kind == 1 && OneIn(2)) x = -x;
      if (kind == 2) x = 1.5f;                            // nothing but ties
      if (kind == 3 && !OneIn(10)) x = -kInfinity;        // few are left
      if (kind == 4) x *= 100;                            // most weights vanish
      if (kind == 5) x *= 1e-6f;                          // all are alike
      if (kind == 6) x = OneIn(3) ? kMax : -kMax;         // differences overflow
      if (kind == 7) x = x > 0 ? x * 1e30f : x * 1e-40f;  // every exponent
    }
    const auto any = [&]() -> float& { return logits[static_cast<size_t>(Below(vocab_size))]; };
    if (kind == 8) any() = kNan;
    if (kind == 9) any() = kInfinity;
    if (kind == 10) std::fill(logits.begin(), logits.end(), -kInfinity);
    if (kind == 3) any() = 0;
    return logits;
  }

  SamplingParams Params(int vocab_size) {
    SamplingParams params;
    params.seed = generator_();
    params.temperature = OneIn(4) ? 0.0f : OneIn(3) ? 1.0f : OneIn(8) ? 1e-4f : Uniform(0.2f, 3);
    if (OneIn(2)) params.top_k = 1 + Below(OneIn(2) ? 50 : vocab_size + 1);
    if (OneIn(2)) params.top_p = OneIn(6) ? 1e-30f : Uniform(0.01f, 1);
    if (OneIn(3)) params.min_p = Uniform(0, OneIn(2) ? 0.1f : 1);
    if (OneIn(3)) params.typical_p = Uniform(0.01f, 1);
    if (OneIn(2)) params.repetition_penalty = Uniform(0.5f, 2);
    if (OneIn(2)) params.presence_penalty = Uniform(-2, 2);
    if (OneIn(2)) params.frequency_penalty = Uniform(-2, 2);
    if (OneIn(2)) {
      for (const TokenId token : Distinct(vocab_size)) {
        params.logit_bias.emplace_back(token, OneIn(4) ? -kInfinity : Uniform(-100, 100));
      }
    }
    return params;
  }
  std::vector<TokenId> Distinct(int vocab_size) {
    std::vector<TokenId> tokens;
    for (int n = Below(40); n > 0; --n) tokens.push_back(Token(vocab_size));
    return DistinctTokens(tokens, vocab_size);
  }

 private:
  std::mt19937 generator_;
};

struct Sequence {
  Sampler on_device, on_host;
  std::vector<TokenId> banned;
  int row = 0;
  bool has_failed = false;
};

// Several sequences, some from one row of logits, drawn from step after step, so that penalties
// count what was drawn before. All share a launch; the host draws them one by one.
struct Case {
  std::string backend;
  int vocab_size;
};
void PrintTo(const Case& c, std::ostream* out) { *out << c.backend << " " << c.vocab_size; }
class SamplingAgreementTest : public testing::TestWithParam<Case> {};

std::vector<std::string> Backends() {
  std::vector<std::string> backends = GpuBackendNames();
  backends.insert(backends.begin(), "cuda");
  return backends;
}
std::vector<Case> Cases() {
  std::vector<Case> cases;
  for (const std::string& backend : Backends()) {
    for (const int vocab_size : {1, 2, 31, 33, 257, 1000, 32000})
      cases.push_back({backend, vocab_size});
  }
  return cases;
}

TEST_P(SamplingAgreementTest, EveryDrawIsTheHosts) {
  const int vocab_size = GetParam().vocab_size;
  const int num_sequences = vocab_size > 1000 ? 12 : 40, num_rows = num_sequences / 2;
  const int num_steps = kSanitized ? 1 : 4, num_rounds = kSanitized ? 1 : vocab_size > 1000 ? 2 : 8;
  Random random(static_cast<uint32_t>(vocab_size));
  Way device(GetParam().backend, vocab_size, num_rows, num_sequences);
  Way host("reference", vocab_size, num_rows, num_sequences);
  int num_drawn = 0;
  for (int round = 0; round < num_rounds; ++round) {
    std::vector<Sequence> sequences;
    for (int i = 0; i < num_sequences; ++i) {
      const Sampler sampler({.params = random.Params(vocab_size),
                             .vocab_size = vocab_size,
                             .sequence_index = static_cast<uint32_t>(random.Below(3)),
                             .top_logprobs = random.OneIn(2) ? random.Below(21) : 0},
                            random.Distinct(vocab_size));
      sequences.push_back(
          {.on_device = sampler,
           .on_host = sampler,
           .banned = random.OneIn(3) ? random.Distinct(vocab_size) : std::vector<TokenId>(),
           .row = random.Below(num_rows)});
      // Twice the same, as an end token that is a stop token too.
      if (!sequences.back().banned.empty())
        sequences.back().banned.push_back(sequences.back().banned.front());
    }
    for (int step = 0; step < num_steps; ++step) {
      std::vector<std::vector<float>> rows;
      for (int i = 0; i < num_rows; ++i) rows.push_back(random.Logits(vocab_size));
      std::vector<StepSampler::Draw> on_device, on_host;
      std::vector<int> drawn;
      for (int i = 0; i < num_sequences; ++i) {
        Sequence& sequence = sequences[static_cast<size_t>(i)];
        if (sequence.has_failed) continue;  // a request ends with that
        StepSampler::Draw draw = {.sampler = &sequence.on_device,
                                  .row = sequence.row,
                                  .slot = SlotId(num_sequences - 1 - i),
                                  .token_index = static_cast<uint64_t>(step),
                                  .banned = sequence.banned};
        on_device.push_back(draw);
        draw.sampler = &sequence.on_host;
        on_host.push_back(draw);
        drawn.push_back(i);
      }
      const std::vector<std::string> expected = host.Sample(rows, on_host);
      const std::vector<std::string> got = device.Sample(rows, on_device);
      ASSERT_EQ(got.size(), expected.size());
      for (size_t i = 0; i < got.size(); ++i) {
        EXPECT_EQ(got[i], expected[i]) << "round " << round << " step " << step << " draw " << i;
        const bool is_token = expected[i].find(" of") != std::string::npos;
        sequences[static_cast<size_t>(drawn[i])].has_failed = !is_token;
        num_drawn += is_token ? 1 : 0;
      }
    }
  }
  EXPECT_GT(num_drawn, kSanitized ? 3 : 20);
}
INSTANTIATE_TEST_SUITE_P(All, SamplingAgreementTest, testing::ValuesIn(Cases()),
                         [](const auto& param) {
                           return absl::StrCat("on_", param.param.backend, "_",
                                               param.param.vocab_size);
                         });

// More rows than one call draws, and scores of tokens that are given.
TEST(SamplingTest, ManyRowsAndGivenTokens) {
  constexpr int kVocabSize = 300, kRows = kSanitized ? 5 : 260;
  Random random(7);
  Way device("cuda", kVocabSize, kRows, kRows), host("reference", kVocabSize, kRows, kRows);
  std::vector<std::vector<float>> rows;
  std::vector<TokenId> targets;
  std::vector<Sampler> samplers;
  for (int i = 0; i < kRows; ++i) {
    rows.push_back(random.Logits(kVocabSize));
    targets.push_back(random.Token(kVocabSize));
    samplers.push_back(Sampler({.params = random.Params(kVocabSize),
                                .vocab_size = kVocabSize,
                                .sequence_index = 0,
                                .top_logprobs = 2},
                               {}));
  }
  std::vector<Sampler> host_samplers = samplers;
  std::vector<StepSampler::Draw> on_device, on_host;
  for (int i = 0; i < kRows; ++i) {
    const auto at = static_cast<size_t>(i);
    on_device.push_back({.sampler = &samplers[at], .row = i, .slot = SlotId(i), .banned = {}});
    on_host.push_back({.sampler = &host_samplers[at], .row = i, .slot = SlotId(i), .banned = {}});
  }
  EXPECT_EQ(device.Sample(rows, on_device), host.Sample(rows, on_host));
  EXPECT_EQ(device.Score(rows, targets, 20), host.Score(rows, targets, 20));
}

// Another order of the same sum would seldom show in a token, or at all unless weights are of very
// different size.
class SamplingSumTest : public testing::TestWithParam<std::string> {};
TEST_P(SamplingSumTest, HasTheHostsOrder) {
  const auto backend = *MakeBackend(GetParam());
  Random random(3);
  for (const int vocab_size : {7, 257, 900, 1000, 2000, 3000, 4000}) {
    ASSERT_TRUE(backend->ReserveSampling(vocab_size, 1).ok());
    const Buffer memory =
        *backend->AllocateHostReadable(static_cast<size_t>(vocab_size) * sizeof(float));
    const TensorView logits = memory.View(DType::kF32, {1, vocab_size});
    for (int i = 0; i < vocab_size; ++i) logits.as<float>()[i] = 15 * random.Normal();
    std::vector<DrawResult> results(1);
    backend->SampleTokens(logits, {TokenDraw()}, {}, absl::MakeSpan(results), {});
    std::vector<float> weights;
    std::vector<double> block_sums;
    ComputeWeights({logits.as<float>(), static_cast<size_t>(vocab_size)}, results[0].max, 1,
                   weights);
    EXPECT_EQ(results[0].sum, SumWeights(weights, block_sums)) << vocab_size;
  }
}

INSTANTIATE_TEST_SUITE_P(All, SamplingSumTest, testing::ValuesIn(Backends()),
                         [](const auto& param) { return "on_" + param.param; });

// A slot's next sequence begins anew.
TEST(SamplingTest, ASlotForgetsItsLastSequence) {
  SamplingParams params;
  params.temperature = 0;
  params.presence_penalty = 2;
  const std::vector<std::vector<float>> rows = {{1.0f, 2.0f, 1.5f}};
  Way device("cuda", 3, 1, 1);
  for (int sequence = 0; sequence < 2; ++sequence) {
    Sampler sampler({.params = params, .vocab_size = 3, .sequence_index = 0, .top_logprobs = 0},
                    {});
    std::string tokens;
    for (uint64_t i = 0; i < 3; ++i) {
      const std::vector<std::string> drawn = device.Sample(
          rows,
          {{.sampler = &sampler, .row = 0, .slot = SlotId(0), .token_index = i, .banned = {}}});
      tokens += drawn[0].substr(0, 1);
    }
    EXPECT_EQ(tokens, "120");
  }
}

// Whole engines over the emulated device: one draws there, of the other the backend hides that it
// can. Every kind of parameter, several sequences of a prompt, few slots that change hands, so that
// most draw their first token from kept logits; and slots enough for all.
TEST(SamplingTest, AnEngineDrawsTheSameTokensOnDeviceAndHost) {
  const TinyModel model;
  EngineOptions options = TinyOptions(model);
  std::vector<GenerateRequest> requests;
  for (int i = 0; i < 10; ++i) {
    GenerateRequest request;
    request.prompt = LongPrompt(3 + 5 * i);
    request.sampling.seed = static_cast<uint64_t>(i);
    request.stopping.max_new_tokens = 6;
    request.num_sequences = 1 + i % 3;
    request.top_logprobs = i % 4;
    requests.push_back(request);
  }
  UseEverySamplingParameter(requests);
  // So strong that without them other tokens would be drawn.
  requests[5].sampling.repetition_penalty = 1.8f;
  requests[6].sampling.presence_penalty = 1.5f;
  requests[7].sampling.frequency_penalty = 1.5f;
  requests[8].sampling.logit_bias = {{TokenId(65), 9.0f}};
  requests[9].stopping.stop_token_ids = {TokenId(7), TokenId(9)};
  requests[9].stopping.min_new_tokens = 3;
  ScoreRequest score;
  score.tokens = LongPrompt(20);
  score.top_logprobs = 3;

  std::vector<std::vector<std::string>> transcripts;
  for (const auto& [hides, slots] : {std::pair(false, 3), {true, 3}, {false, 24}}) {
    options.max_sequences = slots;
    options.max_step_tokens = options.chunk_tokens + slots - 1;
    EngineParts parts;
    parts.backend = *MakeCudaBackend({.panel_rows = {}});
    if (hides) parts.backend = std::make_unique<FaultyBackend>(std::move(parts.backend));
    EXPECT_EQ(parts.backend->HasSampling(), !hides);
    const auto engine = MakeEngine(options, nullptr, std::move(parts));
    std::vector<Stream> streams;
    for (const GenerateRequest& request : requests) streams.push_back(Start(*engine, request));
    streams.push_back(Start(*engine, score));
    std::vector<std::string>& texts = transcripts.emplace_back();
    for (const Stream& stream : streams) {
      EXPECT_TRUE(stream.sink->WaitFinished().status.ok());
      for (int sequence = 0; sequence < 3; ++sequence)
        texts.push_back(Transcript(stream, sequence));
      for (const auto& [token, logprob] : TopOf(stream))
        absl::StrAppend(&texts.back(), " ", token.value(), ":", logprob);
    }
  }
  EXPECT_EQ(transcripts[0], transcripts[1]);
  EXPECT_EQ(transcripts[0], transcripts[2]);
}

// The tokens come back in the step's own copy: a decode step is one graph, sampling in it, and the
// same graph whatever is wanted of its draws.
TEST(SamplingTest, ADecodingStepThatSamplesIsAGraph) {
  const TinyModel model;
  EngineParts parts;
  parts.backend = *MakeCudaBackend({.panel_rows = {}});
  const auto engine = MakeEngine(TinyOptions(model), nullptr, std::move(parts));
  const auto single_kernels_of = [&](int new_tokens, int top_logprobs) {
    GenerateRequest request;
    request.prompt = LongPrompt(8);
    request.sampling.presence_penalty = 0.5f;
    request.sampling.top_p = 0.9f;
    request.stopping.max_new_tokens = new_tokens;
    request.stopping.min_new_tokens = top_logprobs;  // so long something is banned
    request.stopping.stop_token_ids = {TokenId(3)};
    request.stopping.ignore_eos = true;
    request.top_logprobs = top_logprobs;
    const int before = cuda_on_cpu::NumSingleKernels();
    EXPECT_TRUE(Start(*engine, request).sink->WaitFinished().status.ok());
    return cuda_on_cpu::NumSingleKernels() - before;
  };
  // Until the steps of a prompt, within a block and at its end are known.
  EXPECT_GT(single_kernels_of(40, 0), 0);
  (void)single_kernels_of(40, 0);
  EXPECT_EQ(single_kernels_of(40, 0), 0);
  EXPECT_EQ(single_kernels_of(40, 3), 0);
  EXPECT_EQ(single_kernels_of(40, 5), 0);
}

}  // namespace
}  // namespace bst
