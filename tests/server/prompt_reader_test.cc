#include "server/prompt_reader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "tests/support/puppet_engine.h"

namespace bst {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

v1::GenerateUploadPart Text(const std::string& text) {
  v1::GenerateUploadPart part;
  part.set_text(text);
  return part;
}

v1::GenerateUploadPart Ids(const std::vector<uint32_t>& ids) {
  v1::GenerateUploadPart part;
  part.mutable_token_ids()->mutable_ids()->Add(ids.begin(), ids.end());
  return part;
}

class PromptReaderTest : public testing::Test {
 protected:
  // The tokens' ids; -1 after a violation.
  std::vector<int> Add(const v1::GenerateUploadPart& part, bool last = false) {
    return Values(
        reader_.Add(part, last ? PromptEnd::kComplete : PromptEnd::kMoreFollows, violations_));
  }
  std::vector<int> Finish() { return Values(reader_.Finish(violations_)); }
  std::string Message() const { return std::string(violations_.status().message()); }

  ModelInfo info_ = PuppetModelInfo();
  std::unique_ptr<Tokenizer> tokenizer_ = Tokenizer::Byte(259);
  PromptReader reader_{info_, *tokenizer_};
  Violations violations_;

 private:
  std::vector<int> Values(const std::vector<TokenId>& tokens) const {
    if (!violations_.empty()) return {-1};
    std::vector<int> values;
    for (const TokenId token : tokens) values.push_back(token.value());
    return values;
  }
};

TEST_F(PromptReaderTest, WhatEndsALongTextIsItsStatus) {
  int asked = 0;
  PromptReader reader(info_, *tokenizer_, [&asked] {
    return ++asked < 3 ? absl::OkStatus() : absl::CancelledError("the client left");
  });
  info_.max_prompt_tokens = 1'000'000;
  reader.Add(Text(std::string(3 * StreamEncoder::kPieceBytes, 'x')), PromptEnd::kComplete,
             violations_);
  EXPECT_EQ(asked, 3);
  EXPECT_FALSE(violations_.empty());
  EXPECT_EQ(violations_.status(), absl::CancelledError("the client left"));
}

TEST_F(PromptReaderTest, ATextGetsBosOnceInFrontOfItsFirstToken) {
  EXPECT_THAT(Add(Text("")), IsEmpty());
  EXPECT_THAT(Add(Text("a")), ElementsAre(256, 'a'));
  EXPECT_THAT(Add(Text("b\xE2")), ElementsAre('b', 0xE2));
  EXPECT_THAT(Finish(), IsEmpty());
  EXPECT_EQ(reader_.num_tokens(), 4);
  EXPECT_TRUE(violations_.empty());
}

TEST_F(PromptReaderTest, IdsAreTakenAsTheyAre) {
  EXPECT_THAT(Add(Ids({7, 258})), ElementsAre(7, 258));
  EXPECT_THAT(Add(Ids({})), IsEmpty());
  EXPECT_THAT(Add(Ids({0}), /*last=*/true), ElementsAre(0));
}

TEST_F(PromptReaderTest, AnIdOutsideTheVocabularyIsNamedByItsPlaceInTheWholePrompt) {
  Add(Ids({1, 2, 3}));
  EXPECT_THAT(Add(Ids({4, 259})), ElementsAre(-1));
  EXPECT_THAT(Message(), HasSubstr("token_ids.ids[4] is 259, must be a token id in [0, 258]"));
}

TEST_F(PromptReaderTest, PartsAreOfOneKind) {
  Add(Text("a"));
  Add(Ids({1}));
  EXPECT_THAT(Message(), HasSubstr("part is token_ids, must be text as the prompt before it"));
}

TEST_F(PromptReaderTest, NothingAtAllIsNoPrompt) {
  Finish();
  EXPECT_THAT(Message(), HasSubstr("prompt is empty"));
}

TEST_F(PromptReaderTest, AnEmptyTextIsNoPromptThoughItWouldHaveABos) {
  Add(Text(""));
  Finish();
  EXPECT_THAT(Message(), HasSubstr("text is empty"));
}

TEST_F(PromptReaderTest, ThePartThatGoesOverTheLimitIsRefused) {
  info_.max_prompt_tokens = 5;
  EXPECT_THAT(Add(Text("abcd")), testing::SizeIs(5));  // bos
  EXPECT_THAT(Add(Text("e")), ElementsAre(-1));
  EXPECT_THAT(Message(), HasSubstr("text has at least 6 tokens, limit 5"));
  EXPECT_TRUE(Violations::IsTooLong(violations_.status()));
}

TEST_F(PromptReaderTest, TheLimitHoldsForIdsToo) {
  info_.max_prompt_tokens = 3;
  EXPECT_THAT(Add(Ids({1, 2, 3})), ElementsAre(1, 2, 3));
  EXPECT_THAT(Add(Ids({4}), /*last=*/true), ElementsAre(-1));
  EXPECT_THAT(Message(), HasSubstr("token_ids.ids has 4 tokens, limit 3"));
  EXPECT_TRUE(Violations::IsTooLong(violations_.status()));
}

// What the tokenizer holds back is bounded too: a text without a place to cut.
TEST_F(PromptReaderTest, BytesAreCountedBeforeTheyAreTokenised) {
  info_.max_prompt_tokens = 5;
  EXPECT_THAT(Add(Text("abcdef")), ElementsAre(-1));
  EXPECT_THAT(Message(), HasSubstr("text has 6 bytes, at least 6 tokens, limit 5"));
}

}  // namespace
}  // namespace bst
