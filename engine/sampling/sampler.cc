#include "engine/sampling/sampler.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/check.h"
#include "engine/base/status_macros.h"
#include "engine/sampling/filters.h"
#include "engine/sampling/philox.h"
#include "engine/sampling/softmax.h"

namespace bst {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

size_t Index(TokenId token) { return static_cast<size_t>(token.value()); }

bool InVocabulary(TokenId token, size_t vocab_size) {
  return token.value() >= 0 && Index(token) < vocab_size;
}

// The largest logit of the model. Errors: kInternal when the logits are no distribution.
absl::StatusOr<float> CheckedMax(const LogitRange& range) {
  if (range.has_nan) return absl::InternalError("the model's logits contain NaN");
  if (!std::isfinite(range.max)) {
    return absl::InternalError(absl::StrCat("the model's largest logit is ", range.max));
  }
  return range.max;
}

// Likeliest first; an insertion into a short sorted list per token that beats its last.
std::vector<std::pair<TokenId, float>> TopTokens(absl::Span<const float> logits, int count,
                                                 double log_sum) {
  std::vector<std::pair<TokenId, float>> top;
  const size_t size = std::min(static_cast<size_t>(count), logits.size());
  if (size == 0) return top;
  top.reserve(size + 1);
  for (size_t i = 0; i < logits.size(); ++i) {
    if (top.size() == size && !(logits[i] > top.back().second)) continue;
    const auto after =
        std::upper_bound(top.begin(), top.end(), logits[i],
                         [](float x, const auto& entry) { return x > entry.second; });
    top.insert(after, {TokenId(static_cast<int32_t>(i)), logits[i]});
    if (top.size() > size) top.pop_back();
  }
  for (auto& [token, value] : top) value = static_cast<float>(static_cast<double>(value) - log_sum);
  return top;
}

absl::Status NoTokenLeft() { return absl::InternalError("every token is banned"); }

// The result for `token`, given the logarithm of sum_i exp(logit_i).
SampledToken Describe(absl::Span<const float> logits, TokenId token, int top_logprobs,
                      double log_sum) {
  return {token, static_cast<float>(static_cast<double>(logits[Index(token)]) - log_sum),
          TopTokens(logits, top_logprobs, log_sum)};
}

// The lowest id whose cumulative weight exceeds u times the total. REQUIRES: some weight is above
// 0.
size_t DrawFromWeights(double u, SamplerScratch& scratch) {
  const std::vector<float>& weights = scratch.weights;
  Crossing blocks = {.target = u * SumWeights(weights, scratch.block_sums)};
  for (size_t i = 0; i < scratch.block_sums.size(); ++i) {
    if (blocks.Add(static_cast<int32_t>(i), scratch.block_sums[i])) break;
  }
  const size_t begin = static_cast<size_t>(blocks.at) * kSumBlock;
  Crossing tokens = {.target = blocks.target, .sum = blocks.before};
  for (size_t i = begin; i < begin + kSumBlock; ++i) {
    if (tokens.Add(static_cast<int32_t>(i), static_cast<double>(weights[i]))) break;
  }
  return static_cast<size_t>(tokens.at);
}

}  // namespace

Sampler::Sampler(Options options, absl::Span<const TokenId> prompt)
    : options_(std::make_shared<const Options>(std::move(options))),
      sequence_index_(options_->sequence_index) {
  AddPrompt(prompt);
}

void Sampler::AddPrompt(absl::Span<const TokenId> tokens) {
  if (!looks_at_prompt()) return;
  for (const TokenId token : tokens) {
    BST_CHECK(InVocabulary(token, static_cast<size_t>(options_->vocab_size)), "token ",
              token.value());
    output_counts_.try_emplace(token, 0);
  }
}

Sampler Sampler::ForSequence(uint32_t sequence_index) const& {
  return Sampler(*this).ForSequence(sequence_index);
}

Sampler Sampler::ForSequence(uint32_t sequence_index) && {
  sequence_index_ = sequence_index;
  return std::move(*this);
}

bool Sampler::has_penalties() const {
  const SamplingParams& params = this->params();
  return params.repetition_penalty != 1 || params.presence_penalty != 0 ||
         params.frequency_penalty != 0;
}

absl::Span<const float> Sampler::Adjust(absl::Span<const float> logits,
                                        absl::Span<const TokenId> banned,
                                        SamplerScratch& scratch) const {
  const SamplingParams& params = this->params();
  if (params.logit_bias.empty() && output_counts_.empty() && banned.empty()) return logits;
  scratch.logits.assign(logits.begin(), logits.end());
  for (const auto& [token, bias] : params.logit_bias) {
    float& logit = scratch.logits[Index(token)];
    logit = AddBias(logit, bias);
  }
  for (const auto& [token, count] : output_counts_) {
    float& logit = scratch.logits[Index(token)];
    logit = Penalize(logit, count, params.repetition_penalty, params.presence_penalty,
                     params.frequency_penalty);
  }
  for (const TokenId token : banned) {
    BST_CHECK(InVocabulary(token, logits.size()), "token ", token.value());
    scratch.logits[Index(token)] = -kInfinity;
  }
  return scratch.logits;
}

absl::StatusOr<SampledToken> Sampler::Sample(absl::Span<const float> logits, uint64_t token_index,
                                             absl::Span<const TokenId> banned,
                                             SamplerScratch& scratch) {
  const SamplingParams& params = this->params();
  BST_CHECK(logits.size() == static_cast<size_t>(options_->vocab_size), logits.size(), " logits");
  BST_ASSIGN_OR_RETURN(const float raw_max, CheckedMax(ScanLogits(logits)));
  ComputeWeights(logits, raw_max, 1.0f, scratch.weights);
  const double log_sum =
      static_cast<double>(raw_max) + std::log(SumWeights(scratch.weights, scratch.block_sums));

  const absl::Span<const float> adjusted = Adjust(logits, banned, scratch);
  const bool changed = adjusted.data() != logits.data();
  const float max = changed ? ScanLogits(adjusted).max : raw_max;
  if (max == -kInfinity) return NoTokenLeft();

  size_t drawn = 0;
  if (params.temperature == 0) {
    drawn =
        static_cast<size_t>(std::find(adjusted.begin(), adjusted.end(), max) - adjusted.begin());
  } else {
    if (changed || params.temperature != 1)
      ComputeWeights(adjusted, max, params.temperature, scratch.weights);
    ApplyFilters(params, adjusted, max, scratch);
    drawn = DrawFromWeights(TokenUniform(params.seed, sequence_index_, token_index), scratch);
  }
  const TokenId token(static_cast<int32_t>(drawn));
  if (has_penalties()) ++output_counts_[token];
  return Describe(logits, token, options_->top_logprobs, log_sum);
}

TokenDraw Sampler::DeviceDraw(uint64_t token_index, absl::Span<const TokenId> banned, int row,
                              SlotId state) const {
  const SamplingParams& params = this->params();
  TokenDraw draw = {.params = {.seed = params.seed,
                               .temperature = params.temperature,
                               .top_k = params.top_k,
                               .top_p = params.top_p,
                               .min_p = params.min_p,
                               .typical_p = params.typical_p,
                               .repetition_penalty = params.repetition_penalty,
                               .presence_penalty = params.presence_penalty,
                               .frequency_penalty = params.frequency_penalty},
                    .token_index = token_index,
                    .sequence_index = sequence_index_,
                    .row = row,
                    .banned = banned,
                    .num_top = std::min(options_->top_logprobs, options_->vocab_size)};
  if (HasState()) draw.state = state;
  return draw;
}

std::vector<TokenId> Sampler::StateTokens() const {
  std::vector<TokenId> tokens;
  tokens.reserve(output_counts_.size());
  for (const auto& [token, count] : output_counts_) tokens.push_back(token);
  return tokens;
}

std::vector<TokenBias> Sampler::StateBias() const {
  std::vector<TokenBias> biases;
  for (const auto& [token, bias] : params().logit_bias) biases.push_back({token, bias});
  return biases;
}

absl::StatusOr<SampledToken> FromDevice(const DrawResult& result,
                                        absl::Span<const TokenLogit> top) {
  BST_ASSIGN_OR_RETURN(const float max, CheckedMax({result.max, result.has_nan != 0}));
  if (result.token < 0) return NoTokenLeft();
  const double log_sum = static_cast<double>(max) + std::log(result.sum);
  const auto logprob = [&](float logit) {
    return static_cast<float>(static_cast<double>(logit) - log_sum);
  };
  SampledToken token = {TokenId(result.token), logprob(result.logit), {}};
  token.top.reserve(top.size());
  for (const TokenLogit& t : top) token.top.emplace_back(TokenId(t.token), logprob(t.logit));
  return token;
}

std::vector<TokenId> DistinctTokens(absl::Span<const TokenId> tokens, int vocab_size) {
  std::vector<bool> seen(static_cast<size_t>(vocab_size));
  std::vector<TokenId> distinct;
  for (const TokenId token : tokens) {
    BST_CHECK(InVocabulary(token, seen.size()), "token ", token.value());
    if (seen[Index(token)]) continue;
    seen[Index(token)] = true;
    distinct.push_back(token);
  }
  return distinct;
}

absl::StatusOr<SampledToken> ScoreToken(absl::Span<const float> logits, TokenId token,
                                        int top_logprobs, SamplerScratch& scratch) {
  BST_CHECK(InVocabulary(token, logits.size()), "token ", token.value());
  BST_ASSIGN_OR_RETURN(const float max, CheckedMax(ScanLogits(logits)));
  ComputeWeights(logits, max, 1.0f, scratch.weights);
  const double log_sum =
      static_cast<double>(max) + std::log(SumWeights(scratch.weights, scratch.block_sums));
  return Describe(logits, token, top_logprobs, log_sum);
}

}  // namespace bst
