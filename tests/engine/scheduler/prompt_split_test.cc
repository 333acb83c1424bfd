// SplitPromptTokens: the shares one by one, and its invariants over random claims.
#include "engine/scheduler/prompt_split.h"

#include <algorithm>
#include <cstdint>
#include <random>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace bst {
namespace {

using ::testing::ElementsAre;

constexpr SplitLimits kLimits = {.chunk_tokens = 1024, .window = 128};

// What prompts with so many tokens left get, oldest first.
std::vector<int> Split(int budget, const std::vector<int64_t>& left,
                       SplitTurn turn = SplitTurn::kOldest) {
  std::vector<PromptClaim> claims;
  for (const int64_t tokens : left) claims.push_back({.readable = tokens, .remaining = tokens});
  SplitPromptTokens(kLimits, budget, turn, absl::MakeSpan(claims));
  std::vector<int> tokens;
  for (const PromptClaim& claim : claims) tokens.push_back(claim.tokens);
  return tokens;
}

TEST(PromptSplitTest, ALonePromptTakesAChunk) {
  EXPECT_THAT(Split(2048, {1'000'000}), ElementsAre(1024));
  EXPECT_THAT(Split(500, {1'000'000}), ElementsAre(384));
  EXPECT_THAT(Split(500, {300}), ElementsAre(300));
}

TEST(PromptSplitTest, HalfGoesToTheShortestTheRestToTheOldest) {
  EXPECT_THAT(Split(1024, {1'000'000, 5000}), ElementsAre(512, 512));
  EXPECT_THAT(Split(1024, {1'000'000, 9000, 5000}), ElementsAre(512, 0, 512));
}

TEST(PromptSplitTest, WhatTheShortestDoNotUseIsTheOldests) {
  EXPECT_THAT(Split(900, {1'000'000, 5000}), ElementsAre(512, 384));  // 450 is three blocks.
  EXPECT_THAT(Split(2048, {5000, 5000, 5000}), ElementsAre(1024, 1024, 0));
}

TEST(PromptSplitTest, AStepThatEndsAShortPromptIsShort) {
  EXPECT_THAT(Split(2048, {1'000'000, 100}, SplitTurn::kShortest), ElementsAre(0, 100));
  EXPECT_THAT(Split(2048, {1'000'000, 100}), ElementsAre(128, 100));
  EXPECT_THAT(Split(2048, {1'000'000, 100, 100, 100}), ElementsAre(256, 100, 100, 100));
  EXPECT_THAT(Split(2048, {1'000'000, 700}), ElementsAre(640, 700));
}

TEST(PromptSplitTest, WithRoomForOneBlockTheTurnDecides) {
  EXPECT_THAT(Split(200, {1'000'000, 5000}, SplitTurn::kOldest), ElementsAre(128, 0));
  EXPECT_THAT(Split(200, {1'000'000, 5000}, SplitTurn::kShortest), ElementsAre(0, 128));
  EXPECT_THAT(Split(200, {1'000'000, 72}, SplitTurn::kOldest), ElementsAre(128, 72));
  EXPECT_THAT(Split(200, {1'000'000, 73}, SplitTurn::kOldest), ElementsAre(128, 0));
  EXPECT_THAT(Split(200, {1'000'000, 50}, SplitTurn::kShortest), ElementsAre(128, 50));
}

TEST(PromptSplitTest, APromptWithoutAnEndYetIsTheLongest) {
  std::vector<PromptClaim> claims = {{.readable = 128}, {.readable = 9000, .remaining = 9000}};
  SplitPromptTokens(kLimits, 256, SplitTurn::kShortest, absl::MakeSpan(claims));
  EXPECT_EQ(claims[0].tokens, 128);
  EXPECT_EQ(claims[1].tokens, 128);
}

TEST(PromptSplitTest, RandomClaimsKeepTheInvariants) {
  std::mt19937 random(1);
  const auto below = [&random](int n) {
    return static_cast<int>(random() % static_cast<uint32_t>(n));
  };
  for (int round = 0; round < 20'000; ++round) {
    const int window = 1 + below(8);
    const SplitLimits limits = {.chunk_tokens = window * (1 + below(5)), .window = window};
    const int budget = window + below(12 * window);
    const SplitTurn turn = below(2) == 0 ? SplitTurn::kShortest : SplitTurn::kOldest;
    std::vector<PromptClaim> claims(static_cast<size_t>(1 + below(6)));
    for (PromptClaim& claim : claims) {
      claim.readable = 1 + below(10 * window);
      if (below(3) == 0) {
        claim.readable = (claim.readable + window - 1) / window * window;
      } else {
        claim.remaining = claim.readable;
      }
    }
    SplitPromptTokens(limits, budget, turn, absl::MakeSpan(claims));
    int sum = 0;
    for (const PromptClaim& claim : claims) {
      sum += claim.tokens;
      EXPECT_LE(claim.tokens, limits.chunk_tokens);
      EXPECT_LE(claim.tokens, claim.readable);
      EXPECT_TRUE(claim.tokens % window == 0 || claim.tokens == claim.remaining);
    }
    EXPECT_LE(sum, budget);
    EXPECT_GT(sum, 0);
    const bool ends = std::any_of(claims.begin(), claims.end(), [](const PromptClaim& claim) {
      return claim.tokens == claim.remaining;
    });
    const bool oldest_is_due = turn == SplitTurn::kOldest || (budget >= 2 * window && !ends);
    EXPECT_TRUE(claims[0].tokens > 0 || !oldest_is_due);
    ASSERT_FALSE(HasFailure()) << "round " << round;
  }
}

}  // namespace
}  // namespace bst
