#include "server/output_assembler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "server/prompt_echo.h"

namespace bst {
namespace {

using testing::ElementsAre;

GeneratedEvent Token(int32_t id, float logprob = -1, std::vector<TokenLogprob> top = {}) {
  return {{TokenId(id), logprob}, std::move(top), 0};
}

class OutputAssemblerTest : public testing::Test {
 protected:
  OutputAssembler Make(const OutputOptions& options = {}) {
    return OutputAssembler(*tokenizer_, options, StreamDecoder::Position::kContinuation);
  }
  static void AddBytes(OutputAssembler& output, const std::string& bytes) {
    for (const char byte : bytes) output.Add(Token(static_cast<unsigned char>(byte)));
  }

  std::unique_ptr<Tokenizer> tokenizer_ = Tokenizer::Byte(259);
};

TEST_F(OutputAssemblerTest, MergesReadyTokensIntoOneMessage) {
  OutputAssembler output = Make();
  EXPECT_FALSE(output.TakeOutput().has_value());
  AddBytes(output, "abc");
  const std::optional<v1::Tokens> message = output.TakeOutput();
  ASSERT_TRUE(message.has_value());
  EXPECT_THAT(message->token_ids(), ElementsAre('a', 'b', 'c'));
  EXPECT_EQ(message->text(), "abc");
  EXPECT_EQ(message->logprobs_size(), 0);
  EXPECT_FALSE(message->is_prompt());
  EXPECT_FALSE(output.TakeOutput().has_value());
  EXPECT_EQ(output.num_tokens(), 3);
}

TEST_F(OutputAssemblerTest, HoldsBackHalfACharacterButNotItsTokens) {
  OutputAssembler output = Make();
  AddBytes(output, "\xE2\x82");
  std::optional<v1::Tokens> message = output.TakeOutput();
  EXPECT_THAT(message->token_ids(), ElementsAre(0xE2, 0x82));
  EXPECT_EQ(message->text(), "");
  AddBytes(output, "\xAC");
  message = output.TakeOutput();
  EXPECT_THAT(message->token_ids(), ElementsAre(0xAC));
  EXPECT_EQ(message->text(), "€");
}

TEST_F(OutputAssemblerTest, TheEndTurnsHalfACharacterIntoAReplacement) {
  OutputAssembler output = Make();
  AddBytes(output, "x\xE2\x82");
  output.TakeOutput();
  output.Finish();
  const std::optional<v1::Tokens> message = output.TakeOutput();
  EXPECT_EQ(message->token_ids_size(), 0);
  EXPECT_EQ(message->text(), "\uFFFD");
}

TEST_F(OutputAssemblerTest, StopsAtAStopStringAndCountsTheTokenThatCompletedIt) {
  OutputAssembler output = Make({.stop = {{"END"}, false}});
  AddBytes(output, "the EN");
  std::optional<v1::Tokens> message = output.TakeOutput();
  EXPECT_EQ(message->text(), "the ");
  EXPECT_EQ(message->token_ids_size(), 6);
  AddBytes(output, "D and more");
  EXPECT_EQ(output.stop_match(), "END");
  EXPECT_EQ(output.num_tokens(), 7);
  output.Finish();
  message = output.TakeOutput();
  EXPECT_THAT(message->token_ids(), ElementsAre('D'));
  EXPECT_EQ(message->text(), "");
  EXPECT_FALSE(output.TakeOutput().has_value());
}

TEST_F(OutputAssemblerTest, KeepsTheStopStringWhenAsked) {
  OutputAssembler output = Make({.stop = {{"END"}, true}});
  AddBytes(output, "the END");
  output.Finish();
  EXPECT_EQ(output.TakeOutput()->text(), "the END");
}

TEST_F(OutputAssemblerTest, TheEndReleasesTheBeginningOfAStopString) {
  OutputAssembler output = Make({.stop = {{"END"}, false}});
  AddBytes(output, "the EN");
  output.Finish();
  EXPECT_EQ(output.TakeOutput()->text(), "the EN");
}

TEST_F(OutputAssemblerTest, LogprobsAndAlternativesOnlyWhereAsked) {
  const std::vector<TokenLogprob> top = {{TokenId(7), -0.25f}, {TokenId(8), -1.5f}};
  OutputAssembler output = Make({.stop = {}, .logprobs = true});
  output.Add(Token(7, -0.25f, top));
  const std::optional<v1::Tokens> message = output.TakeOutput();
  ASSERT_EQ(message->logprobs_size(), 1);
  EXPECT_EQ(message->logprobs(0).logprob(), -0.25f);
  ASSERT_EQ(message->logprobs(0).top_size(), 2);
  EXPECT_EQ(message->logprobs(0).top(1).token_id(), 8u);
  EXPECT_EQ(message->logprobs(0).top(1).logprob(), -1.5f);
}

TEST_F(OutputAssemblerTest, NoMessageHoldsMoreThanTheLimit) {
  OutputAssembler output = Make();
  const int kTokens = 2 * kMaxTokensPerMessage + 3;
  for (int i = 0; i < kTokens; ++i) output.Add(Token('a' + i % 26));
  std::vector<int> sizes;
  std::string text;
  while (const std::optional<v1::Tokens> message = output.TakeOutput()) {
    sizes.push_back(message->token_ids_size());
    text += message->text();
  }
  EXPECT_THAT(sizes, ElementsAre(kMaxTokensPerMessage, kMaxTokensPerMessage, 3));
  EXPECT_EQ(text.size(), static_cast<size_t>(kTokens));
  EXPECT_EQ(text.substr(0, 3), "abc");
}

// ---- PromptEcho ----

std::vector<v1::Tokens> TakeAll(PromptEcho& echo) {
  std::vector<v1::Tokens> messages;
  while (std::optional<v1::Tokens> message = echo.Take()) messages.push_back(*std::move(message));
  return messages;
}

TEST(PromptEchoTest, SendsThePromptInPieces) {
  const std::unique_ptr<Tokenizer> tokenizer = Tokenizer::Byte(259);
  std::vector<TokenId> prompt(static_cast<size_t>(kMaxTokensPerMessage) + 1, TokenId('p'));
  prompt[0] = TokenId(256);
  PromptEcho echo(*tokenizer);
  EXPECT_FALSE(echo.Take().has_value());
  echo.Add(prompt, PromptEnd::kComplete);
  const std::vector<v1::Tokens> messages = TakeAll(echo);
  ASSERT_EQ(messages.size(), 2u);
  EXPECT_TRUE(messages[0].is_prompt());
  EXPECT_EQ(messages[0].token_ids_size(), kMaxTokensPerMessage);
  EXPECT_EQ(messages[0].token_ids(0), 256u);
  EXPECT_EQ(messages[0].text().size(),
            static_cast<size_t>(kMaxTokensPerMessage) - 1);  // bos has no text
  EXPECT_EQ(messages[1].token_ids_size(), 1);
}

TEST(PromptEchoTest, APromptThatArrivesInPartsIsWholeCharacters) {
  const std::unique_ptr<Tokenizer> tokenizer = Tokenizer::Byte(259);
  PromptEcho echo(*tokenizer);
  echo.Add({TokenId('a'), TokenId(0xE2)}, PromptEnd::kMoreFollows);
  std::vector<v1::Tokens> messages = TakeAll(echo);
  ASSERT_EQ(messages.size(), 1u);
  EXPECT_EQ(messages[0].text(), "a");
  echo.Add({TokenId(0x82), TokenId(0xAC), TokenId(0xC3)}, PromptEnd::kMoreFollows);
  EXPECT_EQ(TakeAll(echo).at(0).text(), "\u20ac");
  echo.Add({}, PromptEnd::kComplete);
  messages = TakeAll(echo);
  ASSERT_EQ(messages.size(), 1u);
  EXPECT_EQ(messages[0].token_ids_size(), 0);
  EXPECT_EQ(messages[0].text(), "\ufffd");
}

}  // namespace
}  // namespace bst
