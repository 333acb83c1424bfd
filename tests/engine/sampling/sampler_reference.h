// ReferenceSample: what Sampler promises, in the plainest form: exact exponentials, and every
// filter sorts all tokens.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <map>
#include <vector>

#include "absl/types/span.h"
#include "engine/sampling/philox.h"
#include "engine/sampling/sampling_params.h"

namespace bst {

struct ReferenceToken {
  int id = 0;
  double probability = 0;  // of the distribution drawn from
};

// The tokens that may be drawn, with their probabilities, by ascending id.
inline std::vector<ReferenceToken> ReferenceDistribution(const SamplingParams& params,
                                                         std::vector<float> logits,
                                                         const std::vector<int>& prompt,
                                                         const std::vector<int>& output,
                                                         const std::vector<int>& banned) {
  static constexpr float kMax = std::numeric_limits<float>::max();
  const auto limit = [](float x) {
    return std::isinf(x) && x < 0 ? x : std::clamp(x, -kMax, kMax);
  };
  for (const auto& [token, bias] : params.logit_bias) {
    float& logit = logits[static_cast<size_t>(token.value())];
    logit = limit(logit + bias);
  }
  for (int id = 0; id < static_cast<int>(logits.size()); ++id) {
    float& logit = logits[static_cast<size_t>(id)];
    const auto in_prompt = std::count(prompt.begin(), prompt.end(), id);
    const auto in_output = std::count(output.begin(), output.end(), id);
    if (params.repetition_penalty != 1 && in_prompt + in_output > 0) {
      logit = logit > 0 ? logit / params.repetition_penalty : logit * params.repetition_penalty;
    }
    if (in_output > 0) {
      logit -= params.presence_penalty + params.frequency_penalty * static_cast<float>(in_output);
    }
    logit = limit(logit);
    if (std::count(banned.begin(), banned.end(), id) > 0)
      logit = -std::numeric_limits<float>::infinity();
  }

  // By descending logit, ties by ascending id.
  std::vector<ReferenceToken> tokens;
  const float max = *std::max_element(logits.begin(), logits.end());
  for (int id = 0; id < static_cast<int>(logits.size()); ++id) tokens.push_back({id, 0});
  std::stable_sort(tokens.begin(), tokens.end(),
                   [&](const ReferenceToken& a, const ReferenceToken& b) {
                     return logits[static_cast<size_t>(a.id)] > logits[static_cast<size_t>(b.id)];
                   });
  if (params.temperature == 0) return {{tokens.front().id, 1}};
  const auto scaled = [&](int id) {
    return static_cast<double>((max - logits[static_cast<size_t>(id)]) / params.temperature);
  };
  for (ReferenceToken& token : tokens) token.probability = std::exp(-scaled(token.id));

  const auto total = [&] {
    double sum = 0;
    for (const ReferenceToken& token : tokens) sum += token.probability;
    return sum;
  };
  const auto keep_mass = [&](double mass) {
    const double target = mass * total();
    double sum = 0;
    size_t count = 0;
    while (count < tokens.size() && sum < target) sum += tokens[count++].probability;
    tokens.resize(count);
  };
  if (params.top_k > 0) tokens.resize(std::min(tokens.size(), static_cast<size_t>(params.top_k)));
  if (params.top_p < 1) keep_mass(params.top_p);
  if (params.min_p > 0) {
    std::erase_if(tokens, [&](const ReferenceToken& token) {
      return token.probability < static_cast<double>(params.min_p) * tokens.front().probability;
    });
  }
  if (params.typical_p < 1) {
    double entropy = 0;
    const double sum = total();
    for (const ReferenceToken& token : tokens) {
      const double p = token.probability / sum;
      if (p > 0) entropy -= p * std::log(p);
    }
    std::stable_sort(tokens.begin(), tokens.end(),
                     [](const ReferenceToken& a, const ReferenceToken& b) { return a.id < b.id; });
    // Tokens of one logit are equally far off, whatever rounding says.
    const auto distance = [&](const ReferenceToken& token) {
      return static_cast<float>(std::abs(scaled(token.id) + std::log(sum) - entropy));
    };
    std::stable_sort(tokens.begin(), tokens.end(),
                     [&](const ReferenceToken& a, const ReferenceToken& b) {
                       return distance(a) < distance(b);
                     });
    keep_mass(params.typical_p);
  }
  const double sum = total();
  for (ReferenceToken& token : tokens) token.probability /= sum;
  std::sort(tokens.begin(), tokens.end(),
            [](const ReferenceToken& a, const ReferenceToken& b) { return a.id < b.id; });
  return tokens;
}

inline int ReferenceDraw(const std::vector<ReferenceToken>& tokens, double u) {
  double sum = 0;
  int drawn = tokens.front().id;
  for (const ReferenceToken& token : tokens) {
    if (token.probability > 0) drawn = token.id;
    sum += token.probability;
    if (sum > u) break;
  }
  return drawn;
}

}  // namespace bst
