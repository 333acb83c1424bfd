#include "engine/sampling/sampler.h"

#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <set>

#include "engine/sampling/philox.h"
#include "gtest/gtest.h"
#include "tests/engine/sampling/sampler_reference.h"
#include "tests/support/status_matchers.h"

namespace bst {
namespace {

using testing::HasSubstr;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

std::vector<TokenId> Ids(const std::vector<int>& values) {
  std::vector<TokenId> tokens;
  for (const int value : values) tokens.emplace_back(value);
  return tokens;
}

// Draws token `index` of a fresh sequence.
absl::StatusOr<SampledToken> SampleOnce(const SamplingParams& params,
                                        const std::vector<float>& logits, uint64_t index = 0,
                                        const std::vector<int>& banned = {}, int top_logprobs = 0) {
  SamplerScratch scratch;
  Sampler sampler({.params = params,
                   .vocab_size = static_cast<int>(logits.size()),
                   .sequence_index = 0,
                   .top_logprobs = top_logprobs},
                  {});
  return sampler.Sample(logits, index, Ids(banned), scratch);
}

// The set of tokens that `draws` draws give.
std::set<int> Drawn(const SamplingParams& params, const std::vector<float>& logits,
                    int draws = 500) {
  std::set<int> drawn;
  for (int i = 0; i < draws; ++i) {
    const absl::StatusOr<SampledToken> token = SampleOnce(params, logits, static_cast<uint64_t>(i));
    EXPECT_THAT(token, IsOk());
    if (token.ok()) drawn.insert(token->token.value());
  }
  return drawn;
}

TEST(SamplerTest, GreedyTakesTheLargestLogitAndTheLowestIdAtATie) {
  SamplingParams params;
  params.temperature = 0;
  EXPECT_EQ(SampleOnce(params, {1, 5, 3})->token, TokenId(1));
  EXPECT_EQ(SampleOnce(params, {1, 5, 3, 5, 5})->token, TokenId(1));
  EXPECT_EQ(SampleOnce(params, {-0.0f, 0.0f})->token, TokenId(0));
  EXPECT_EQ(SampleOnce(params, {0.0f, -0.0f})->token, TokenId(0));
  EXPECT_EQ(SampleOnce(params, {-kInfinity, -3})->token, TokenId(1));
}

TEST(SamplerTest, LogprobsAreThoseOfTheModelsOwnLogits) {
  const std::vector<float> logits = {1.0f, 4.0f, 2.0f, -kInfinity, 4.0f, 0.5f};
  double sum = 0;
  for (const float x : logits) sum += std::exp(static_cast<double>(x));
  const auto logprob = [&](size_t i) { return static_cast<double>(logits[i]) - std::log(sum); };

  SamplingParams params;
  params.temperature = 0;
  params.logit_bias = {{TokenId(1), -kInfinity}, {TokenId(2), 100.0f}};
  params.top_k = 1;
  const absl::StatusOr<SampledToken> token = SampleOnce(params, logits, 0, {4}, 4);
  ASSERT_THAT(token, IsOk());
  EXPECT_EQ(token->token, TokenId(2));
  EXPECT_NEAR(token->logprob, logprob(2), 1e-6);
  ASSERT_EQ(token->top.size(), 4u);
  const size_t expected[] = {1, 4, 2, 0};  // ties: the lower id first
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(token->top[i].first, TokenId(static_cast<int>(expected[i])));
    EXPECT_NEAR(token->top[i].second, logprob(expected[i]), 1e-6);
  }
  EXPECT_EQ(SampleOnce(params, logits, 0, {}, 20)->top.size(), logits.size());
  EXPECT_EQ(SampleOnce(params, logits, 0, {}, 20)->top.back().second, -kInfinity);
  EXPECT_TRUE(SampleOnce(params, logits)->top.empty());
}

TEST(SamplerTest, ScoreTokenGivesTheSameNumbers) {
  const std::vector<float> logits = {1.0f, 4.0f, 2.0f, 4.0f};
  SamplerScratch scratch;
  const absl::StatusOr<SampledToken> scored = ScoreToken(logits, TokenId(2), 2, scratch);
  ASSERT_THAT(scored, IsOk());
  EXPECT_EQ(scored->token, TokenId(2));
  EXPECT_NEAR(scored->logprob, 2 - std::log(std::exp(1.0) + 2 * std::exp(4.0) + std::exp(2.0)),
              1e-6);
  ASSERT_EQ(scored->top.size(), 2u);
  EXPECT_EQ(scored->top[0].first, TokenId(1));
  EXPECT_EQ(scored->top[1].first, TokenId(3));
  EXPECT_THAT(ScoreToken({1.0f, kNan}, TokenId(0), 0, scratch),
              StatusIs(absl::StatusCode::kInternal));
}

TEST(SamplerTest, LogitsThatAreNoDistributionAreAnError) {
  constexpr auto kInternal = absl::StatusCode::kInternal;
  for (const float temperature : {0.0f, 1.0f}) {
    SamplingParams params;
    params.temperature = temperature;
    for (size_t at = 0; at < 40; ++at) {
      std::vector<float> logits(40, 1.0f);
      logits[at] = kNan;
      EXPECT_THAT(SampleOnce(params, logits), StatusIs(kInternal, HasSubstr("NaN")));
      logits[at] = kInfinity;
      EXPECT_THAT(SampleOnce(params, logits), StatusIs(kInternal, HasSubstr("inf")));
    }
    EXPECT_THAT(SampleOnce(params, {-kInfinity, -kInfinity}), StatusIs(kInternal));
    EXPECT_THAT(SampleOnce(params, {1, 2}, 0, {0, 1}), StatusIs(kInternal, HasSubstr("banned")));
    params.logit_bias = {{TokenId(0), -kInfinity}, {TokenId(1), -kInfinity}};
    EXPECT_THAT(SampleOnce(params, {1, 2}), StatusIs(kInternal, HasSubstr("banned")));
    // A NaN is an error even where a ban would hide it.
    EXPECT_THAT(SampleOnce(params, {1, kNan}), StatusIs(kInternal, HasSubstr("NaN")));
  }
}

TEST(SamplerTest, AFailedDrawIsNotRemembered) {
  SamplingParams params;
  params.temperature = 0;
  params.presence_penalty = 2;
  Sampler sampler({.params = params, .vocab_size = 2, .sequence_index = 0, .top_logprobs = 0}, {});
  SamplerScratch scratch;
  EXPECT_THAT(sampler.Sample({2.0f, kNan}, 0, {}, scratch), StatusIs(absl::StatusCode::kInternal));
  EXPECT_EQ(sampler.Sample({2.0f, 1.0f}, 0, {}, scratch)->token, TokenId(0));
  EXPECT_EQ(sampler.Sample({2.0f, 1.0f}, 1, {}, scratch)->token, TokenId(1));
}

TEST(SamplerTest, FiltersKeepWhatTheyPromise) {
  // Probabilities 0.4, 0.3, 0.2, 0.1 in mixed order.
  const std::vector<float> logits = {std::log(0.2f), std::log(0.4f), std::log(0.1f),
                                     std::log(0.3f)};
  using Set = std::set<int>;
  SamplingParams params;
  EXPECT_EQ(Drawn(params, logits), (Set{0, 1, 2, 3}));
  params.top_k = 2;
  EXPECT_EQ(Drawn(params, logits), (Set{1, 3}));
  params.top_k = -1;
  params.top_p = 0.69f;
  EXPECT_EQ(Drawn(params, logits), (Set{1, 3}));
  params.top_p = 0.71f;
  EXPECT_EQ(Drawn(params, logits), (Set{0, 1, 3}));
  params.top_p = 1e-30f;
  EXPECT_EQ(Drawn(params, logits), Set{1});
  params.top_p = 1;
  params.min_p = 0.6f;  // of 0.4: at least 0.24
  EXPECT_EQ(Drawn(params, logits), (Set{1, 3}));
  params.min_p = 1;
  EXPECT_EQ(Drawn(params, logits), Set{1});
  params.min_p = 0;
  // Entropy 1.2799; surprises 1.609, 0.916, 2.303, 1.204: 3, then 0, 1, 2 are nearest.
  params.typical_p = 0.29f;
  EXPECT_EQ(Drawn(params, logits), Set{3});
  params.typical_p = 0.45f;
  EXPECT_EQ(Drawn(params, logits), (Set{0, 3}));
  params.typical_p = 0.6f;
  EXPECT_EQ(Drawn(params, logits), (Set{0, 1, 3}));
}

TEST(SamplerTest, OfEqualLogitsTheLowerIdsAreKept) {
  const std::vector<float> logits(1000, 1.5f);  // several blocks of one weight
  SamplingParams params;
  params.top_k = 3;
  EXPECT_EQ(Drawn(params, logits), (std::set<int>{0, 1, 2}));
  params.top_k = 0;
  params.top_p = 0.002f;
  EXPECT_EQ(Drawn(params, logits), (std::set<int>{0, 1, 2}));  // 0.002f is a little more than 0.002
  params.top_p = 1;
  params.typical_p = 0.002f;
  EXPECT_EQ(Drawn(params, logits), (std::set<int>{0, 1, 2}));
}

TEST(SamplerTest, BannedTokensAreNotDrawn) {
  SamplingParams params;
  params.logit_bias = {{TokenId(1), -kInfinity}};
  std::set<int> drawn;
  for (uint64_t i = 0; i < 200; ++i)
    drawn.insert(SampleOnce(params, {1, 9, 1, 9}, i, {3})->token.value());
  EXPECT_EQ(drawn, (std::set<int>{0, 2}));
}

TEST(SamplerTest, PenaltiesCountWhatTheyPromise) {
  SamplingParams params;
  params.temperature = 0;
  SamplerScratch scratch;
  const auto run = [&](const std::vector<float>& logits, const std::vector<int>& prompt,
                       int tokens) {
    Sampler sampler({.params = params,
                     .vocab_size = static_cast<int>(logits.size()),
                     .sequence_index = 0,
                     .top_logprobs = 0},
                    Ids(prompt));
    std::vector<int> output;
    for (int i = 0; i < tokens; ++i) {
      output.push_back(
          sampler.Sample(logits, static_cast<uint64_t>(i), {}, scratch)->token.value());
    }
    return output;
  };
  using Output = std::vector<int>;
  // Presence: once, however often; the prompt does not count.
  params.presence_penalty = 1;
  EXPECT_EQ(run({2.0f, 1.5f, 0.0f}, {0, 0, 1}, 5), (Output{0, 1, 0, 0, 0}));
  // Frequency: each time. 2, 1.5 -> 1, 1.5 -> 1, 0.5 -> 0, 0.5
  params.presence_penalty = 0;
  params.frequency_penalty = 1;
  EXPECT_EQ(run({2.0f, 1.5f, -9.0f}, {0}, 4), (Output{0, 1, 0, 1}));
  // Repetition: prompt and output, once; divides what is above 0 and multiplies what is below.
  params.frequency_penalty = 0;
  params.repetition_penalty = 2;
  EXPECT_EQ(run({2.0f, 1.5f, 1.2f, 0.0f}, {0}, 3), (Output{1, 2, 0}));
  EXPECT_EQ(run({-1.0f, -1.5f, -9.0f}, {0, 0}, 2), (Output{1, 0}));
  params.repetition_penalty = 0.5f;
  EXPECT_EQ(run({1.0f, 1.5f}, {0}, 1), (Output{0}));
}

TEST(SamplerTest, ExtremePenaltiesStayNumbers) {
  SamplingParams params;
  params.repetition_penalty = std::numeric_limits<float>::denorm_min();
  params.logit_bias = {{TokenId(1), 100.0f}};
  SamplerScratch scratch;
  Sampler sampler({.params = params, .vocab_size = 3, .sequence_index = 0, .top_logprobs = 0},
                  Ids({0, 1, 2}));
  const float huge = std::numeric_limits<float>::max();
  for (uint64_t i = 0; i < 20; ++i) {
    EXPECT_THAT(sampler.Sample({huge, 1.0f, -huge}, i, {}, scratch), IsOk());
  }
}

TEST(SamplerTest, TokenDependsOnSeedSequenceAndIndexAlone) {
  const std::vector<float> logits(1000, 0.0f);
  SamplingParams params;
  const auto token = [&](uint64_t seed, uint32_t sequence, uint64_t index) {
    params.seed = seed;
    SamplerScratch scratch;
    Sampler sampler(
        {.params = params, .vocab_size = 1000, .sequence_index = sequence, .top_logprobs = 0}, {});
    return sampler.Sample(logits, index, {}, scratch)->token.value();
  };
  EXPECT_EQ(token(1, 2, 3), token(1, 2, 3));
  std::set<int> seeds, sequences, indices;
  for (int i = 0; i < 50; ++i) {
    seeds.insert(token(static_cast<uint64_t>(i), 0, 0));
    sequences.insert(token(0, static_cast<uint32_t>(i), 0));
    indices.insert(token(0, 0, static_cast<uint64_t>(i)));
  }
  // Of 50 draws from 1000, 48.8 are distinct on average.
  EXPECT_GT(seeds.size(), 40u);
  EXPECT_GT(sequences.size(), 40u);
  EXPECT_GT(indices.size(), 40u);
  // All weights are 1: drawn is token floor(1000 u).
  EXPECT_EQ(token(7, 1, 9), static_cast<int>(1000 * TokenUniform(7, 1, 9)));
}

TEST(SamplerTest, APromptInPartsAndAnotherSequenceAreAsIfMadeSo) {
  Sampler::Options options;
  options.params.repetition_penalty = 2.0f;
  options.params.seed = 5;
  options.vocab_size = 50;
  const std::vector<TokenId> prompt = {TokenId(1), TokenId(7), TokenId(7), TokenId(30)};
  std::vector<float> logits(50);
  for (size_t i = 0; i < logits.size(); ++i) logits[i] = static_cast<float>(i % 5);
  Sampler first(options, absl::MakeConstSpan(prompt).first(1));
  first.AddPrompt(DistinctTokens(absl::MakeConstSpan(prompt).subspan(1), 50));
  Sampler::Options third_options = options;
  third_options.sequence_index = 2;
  Sampler third(third_options, prompt), of_first = first.ForSequence(2);
  Sampler whole(options, prompt);
  SamplerScratch scratch;
  bool differ = false;
  for (uint64_t i = 0; i < 40; ++i) {
    const TokenId expected = third.Sample(logits, i, {}, scratch)->token;
    EXPECT_EQ(of_first.Sample(logits, i, {}, scratch)->token, expected);
    const TokenId token = first.Sample(logits, i, {}, scratch)->token;
    EXPECT_EQ(whole.Sample(logits, i, {}, scratch)->token, token);
    differ |= token != expected;
  }
  EXPECT_TRUE(differ);
}

TEST(SamplerTest, DistinctTokensAreEachOnce) {
  const std::vector<TokenId> tokens = {TokenId(49), TokenId(0), TokenId(49), TokenId(7),
                                       TokenId(0)};
  EXPECT_EQ(DistinctTokens(tokens, 50),
            (std::vector<TokenId>{TokenId(49), TokenId(0), TokenId(7)}));
  EXPECT_TRUE(DistinctTokens({}, 50).empty());
  EXPECT_DEATH(DistinctTokens(tokens, 49), "token 49");
}

TEST(SamplerTest, FrequenciesFollowTheProbabilities) {
  // Chi-square over 60,000 draws of 12 tokens: 11 degrees of freedom, 37.4 with probability 1e-4.
  std::mt19937 random(11);
  std::normal_distribution<float> normal(0, 1.5f);
  std::vector<float> logits(12);
  for (float& x : logits) x = normal(random);
  for (const float temperature : {0.7f, 1.0f, 2.0f}) {
    SamplingParams params;
    params.temperature = temperature;
    params.seed = 99;
    const std::vector<ReferenceToken> expected = ReferenceDistribution(params, logits, {}, {}, {});
    Sampler sampler({.params = params, .vocab_size = 12, .sequence_index = 3, .top_logprobs = 0},
                    {});
    SamplerScratch scratch;
    std::vector<int> counts(12);
    constexpr int kDraws = 60'000;
    for (uint64_t i = 0; i < kDraws; ++i) {
      ++counts[static_cast<size_t>(sampler.Sample(logits, i, {}, scratch)->token.value())];
    }
    double chi_square = 0;
    for (const ReferenceToken& token : expected) {
      const double mean = kDraws * token.probability;
      const double difference = counts[static_cast<size_t>(token.id)] - mean;
      chi_square += difference * difference / mean;
    }
    EXPECT_LT(chi_square, 37.4) << "temperature " << temperature;
  }
}

// A random value, now and then one of the awkward ones.
float Pick(std::mt19937& random, std::initializer_list<float> awkward, float low, float high) {
  if (random() % 2 == 0) return awkward.begin()[random() % awkward.size()];
  return std::uniform_real_distribution<float>(low, high)(random);
}

struct RandomCase {
  SamplingParams params;
  std::vector<float> logits;
  std::vector<int> prompt, banned;
};

RandomCase MakeCase(std::mt19937& random) {
  RandomCase c;
  const size_t sizes[] = {1, 2, 3, 17, 64, 255, 256, 257, 300, 1000};
  const size_t size = sizes[random() % std::size(sizes)];
  const float spread = Pick(random, {0.0f, 1.0f, 5.0f, 40.0f}, 0, 10);
  const bool coarse = random() % 4 == 0;  // many ties
  std::normal_distribution<float> normal(0, 1);
  for (size_t i = 0; i < size; ++i) {
    float x = spread * normal(random);
    if (coarse) x = std::round(x);
    c.logits.push_back(random() % 40 == 0 ? -kInfinity : x);
  }
  c.logits[random() % size] = 1;  // at least one is finite
  SamplingParams& p = c.params;
  p.temperature = Pick(random, {0, 1, 1, 0.01f, 100}, 0.1f, 3);
  p.top_k = static_cast<int>(Pick(random, {-1, 0, 1, 2, 300, 1e6f}, 1, 50));
  p.top_p = Pick(random, {1, 1, 0.01f, 0.999f}, 0.1f, 1);
  p.min_p = Pick(random, {0, 0, 1, 1e-4f}, 0, 0.5f);
  p.typical_p = Pick(random, {1, 1, 0.01f, 0.999f}, 0.1f, 1);
  p.repetition_penalty = Pick(random, {1, 1, 1, 10, 0.1f}, 0.5f, 2);
  p.presence_penalty = Pick(random, {0, 0, -2, 2}, -1, 1);
  p.frequency_penalty = Pick(random, {0, 0, -2, 2}, -1, 1);
  p.seed = random();
  std::vector<int> ids(size);
  std::iota(ids.begin(), ids.end(), 0);
  std::shuffle(ids.begin(), ids.end(), random);
  for (size_t i = 0; i < size / 4 && random() % 3 != 0; ++i) {
    p.logit_bias.emplace_back(TokenId(ids[i]), Pick(random, {-kInfinity, 100, -100}, -5, 5));
  }
  for (size_t n = random() % 5; n > 0; --n) c.prompt.push_back(static_cast<int>(random() % size));
  for (size_t n = random() % 3; n > 0; --n) c.banned.push_back(static_cast<int>(random() % size));
  return c;
}

TEST(SamplerPropertyTest, AgreesWithTheReferenceThatSortsEverything) {
  std::mt19937 random(20240607);
  SamplerScratch scratch;  // one for all, as in the server
  int drawn = 0, impossible = 0;
  for (int round = 0; round < 6000; ++round) {
    const RandomCase c = MakeCase(random);
    const auto sequence = static_cast<uint32_t>(random() % 3);
    Sampler sampler({.params = c.params,
                     .vocab_size = static_cast<int>(c.logits.size()),
                     .sequence_index = sequence,
                     .top_logprobs = 0},
                    Ids(c.prompt));
    std::vector<int> output;
    for (uint64_t index = 0; index < 4; ++index) {
      const std::vector<ReferenceToken> expected =
          ReferenceDistribution(c.params, c.logits, c.prompt, output, c.banned);
      const absl::StatusOr<SampledToken> token =
          sampler.Sample(c.logits, index, Ids(c.banned), scratch);
      if (!token.ok()) {
        EXPECT_TRUE(std::isnan(expected.front().probability) || c.params.temperature == 0)
            << token.status();
        ++impossible;
        break;
      }
      const double u = TokenUniform(c.params.seed, sequence, index);
      ASSERT_EQ(token->token.value(), ReferenceDraw(expected, u))
          << "round " << round << ", token " << index << ", temperature " << c.params.temperature
          << ", top_k " << c.params.top_k << ", top_p " << c.params.top_p << ", min_p "
          << c.params.min_p << ", typical_p " << c.params.typical_p << ", V " << c.logits.size();
      output.push_back(token->token.value());
      ++drawn;
    }
  }
  EXPECT_GT(drawn, 20'000);
  EXPECT_GT(impossible, 10);  // everything banned: that branch is taken too
}

// The largest sizes, through every digit of the radix selection: the set that each filter keeps.
TEST(SamplerPropertyTest, LargeVocabulariesAgreeWithTheReference) {
  std::mt19937 random(5);
  SamplerScratch scratch;
  constexpr int kVocabSize = 32'000;
  for (int round = 0; round < 24; ++round) {
    std::normal_distribution<float> normal(0, round % 3 == 0 ? 1e-4f : 2.0f);
    std::vector<float> logits(kVocabSize);
    for (float& x : logits) x = normal(random) + 3.0f;
    SamplingParams params;
    params.seed = static_cast<uint64_t>(round);
    if (round % 4 == 0) params.top_k = 5000;
    if (round % 4 == 1) params.top_p = 0.7f;
    if (round % 4 == 2) params.typical_p = 0.6f;
    if (round % 4 == 3) params.min_p = 0.3f;
    const std::vector<ReferenceToken> expected = ReferenceDistribution(params, logits, {}, {}, {});
    Sampler sampler(
        {.params = params, .vocab_size = kVocabSize, .sequence_index = 0, .top_logprobs = 0}, {});
    for (uint64_t index = 0; index < 20; ++index) {
      const absl::StatusOr<SampledToken> token = sampler.Sample(logits, index, {}, scratch);
      ASSERT_THAT(token, IsOk());
      ASSERT_EQ(token->token.value(), ReferenceDraw(expected, TokenUniform(params.seed, 0, index)))
          << "round " << round << ", token " << index;
    }
  }
}

TEST(SamplerDeathTest, WrongSizesAreABug) {
  SamplerScratch scratch;
  Sampler sampler(
      {.params = SamplingParams(), .vocab_size = 3, .sequence_index = 0, .top_logprobs = 0}, {});
  EXPECT_DEATH(sampler.Sample({1.0f, 2.0f}, 0, {}, scratch).IgnoreError(), "2 logits");
  EXPECT_DEATH(sampler.Sample({1.0f, 2.0f, 3.0f}, 0, {TokenId(3)}, scratch).IgnoreError(),
               "token 3");
}

}  // namespace
}  // namespace bst
