#include "clients/stress/verify.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace bst::stress {
namespace {

using testing::HasSubstr;

Answers Two() {
  return {{0, {grpc::StatusCode::OK, "", "", {5, 6, 7}, {10, 11, 12}}},
          {1, {grpc::StatusCode::OK, "", "", {8, 9}, {13, 14}}}};
}

TEST(VerifyTest, TheSameIsNoDifference) { EXPECT_EQ(FirstDifference(Two(), Two()), std::nullopt); }

TEST(VerifyTest, NamesRequestTokenAndBothValues) {
  Answers other = Two();
  other[1].token_ids[1] = 3;
  EXPECT_EQ(FirstDifference(Two(), other), "request 1: token 1 is 9 alone and 3 together");
}

TEST(VerifyTest, OneBitOfALogProbabilityIsADifference) {
  Answers other = Two();
  other[0].logprob_bits[2] ^= 1;
  EXPECT_THAT(*FirstDifference(Two(), other),
              HasSubstr("request 0: token 2 (7) has the log-probability 1.68155816e-44 "
                        "(0x0000000c) alone and 1.821688e-44 (0x0000000d) together"));
}

TEST(VerifyTest, AShorterAnswerIsADifference) {
  Answers other = Two();
  other[0].token_ids.pop_back();
  EXPECT_EQ(FirstDifference(Two(), other), "request 0: there are 3 tokens alone and 2 together");
}

TEST(VerifyTest, MissingLogProbabilitiesAreADifference) {
  Answers other = Two();
  other[0].logprob_bits.clear();
  EXPECT_EQ(FirstDifference(Two(), other), "request 0: token 0 has no log-probability");
}

TEST(VerifyTest, FailuresAndMissingAnswersAreDifferences) {
  Answers other = Two();
  other[1].code = grpc::StatusCode::INTERNAL;
  other[1].message = "broken";
  EXPECT_EQ(FirstDifference(Two(), other), "request 1: together it failed with INTERNAL: broken");
  EXPECT_EQ(FirstDifference(other, Two()), "request 1: alone it failed with INTERNAL: broken");
  other.erase(1);
  EXPECT_EQ(FirstDifference(Two(), other), "request 1: was answered alone only");
  EXPECT_NE(FirstDifference(other, Two()), std::nullopt);
}

TEST(VerifyTest, AnswersWithTheSameDefectAreNoProof) {
  RequestRecord record;
  record.defect = "OK without a Finished event";
  record.token_ids = {1};
  record.logprob_bits = {2};
  RequestRecord again = record;
  const Answers alone = {{0, TakeAnswer(record)}}, together = {{0, TakeAnswer(again)}};
  EXPECT_EQ(alone.at(0).token_ids, std::vector<uint32_t>({1}));
  EXPECT_EQ(FirstDifference(alone, together),
            "request 0: alone it failed with OK: OK without a Finished event");
}

TEST(VerifyTest, NoAnswersAreNoProof) {
  EXPECT_EQ(FirstDifference({}, {}), "no request was answered alone");
}

}  // namespace
}  // namespace bst::stress
