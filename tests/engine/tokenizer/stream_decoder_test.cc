#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "engine/tokenizer/tokenizer.h"
#include "gtest/gtest.h"
#include "tests/engine/tokenizer/utf8_reference.h"

namespace bst {
namespace {

// Tokens of several bytes each, so that characters may be cut anywhere.
class PieceTokenizer final : public Tokenizer {
 public:
  explicit PieceTokenizer(std::vector<std::string> pieces) : pieces_(std::move(pieces)) {}

  absl::StatusOr<std::vector<TokenId>> Encode(std::string_view /*text*/) const override {
    return absl::UnimplementedError("not needed here");
  }
  std::optional<Cut> LastCut(std::string_view, size_t) const override { return std::nullopt; }
  std::string TokenBytes(TokenId token, bool at_start) const override {
    const std::string& piece = pieces_[static_cast<size_t>(token.value())];
    return at_start && piece.starts_with(' ') ? piece.substr(1) : piece;
  }
  int vocab_size() const override { return static_cast<int>(pieces_.size()); }
  int max_token_bytes() const override {
    size_t most = 1;
    for (const std::string& piece : pieces_) most = std::max(most, piece.size());
    return static_cast<int>(most);
  }

 private:
  std::vector<std::string> pieces_;
};

TEST(StreamDecoderTest, HoldsBackHalfACharacter) {
  const std::unique_ptr<Tokenizer> tokenizer = Tokenizer::Byte(256);
  StreamDecoder decoder(*tokenizer);
  EXPECT_EQ(decoder.Push(TokenId('a')), "a");
  EXPECT_EQ(decoder.Push(TokenId(0xF0)), "");
  EXPECT_EQ(decoder.Push(TokenId(0x9F)), "");
  EXPECT_EQ(decoder.Push(TokenId(0x98)), "");
  EXPECT_EQ(decoder.Push(TokenId(0x80)), "\U0001F600");
  EXPECT_EQ(decoder.Finish(), "");
}

TEST(StreamDecoderTest, WhatCanNoLongerBecomeACharacterIsReplacedAtOnce) {
  const std::unique_ptr<Tokenizer> tokenizer = Tokenizer::Byte(256);
  StreamDecoder decoder(*tokenizer);
  EXPECT_EQ(decoder.Push(TokenId(0xF0)), "");
  EXPECT_EQ(decoder.Push(TokenId(0x9F)), "");
  EXPECT_EQ(decoder.Push(TokenId('z')), "\uFFFDz");
  EXPECT_EQ(decoder.Push(TokenId(0xFF)), "\uFFFD");
  EXPECT_EQ(decoder.Push(TokenId(0xE2)), "");
  EXPECT_EQ(decoder.Finish(), "\uFFFD");
  EXPECT_EQ(decoder.Finish(), "");  // nothing is left
}

TEST(StreamDecoderTest, SpaceOfTheFirstTextIsDroppedOnceAndOnlyAtTheStart) {
  const PieceTokenizer tokenizer({"", " the", " ", "end"});
  const auto decode = [&](StreamDecoder::Position position, const std::vector<int>& ids) {
    StreamDecoder decoder(tokenizer, position);
    std::string text;
    for (const int id : ids) text += decoder.Push(TokenId(id));
    return text + decoder.Finish();
  };
  constexpr auto kStart = StreamDecoder::Position::kStartOfText;
  constexpr auto kContinuation = StreamDecoder::Position::kContinuation;
  EXPECT_EQ(decode(kStart, {1, 1}), "the the");
  EXPECT_EQ(decode(kStart, {0, 0, 1, 1}), "the the");  // tokens without text do not count
  EXPECT_EQ(decode(kStart, {2, 1}), " the");           // a token that is only the space does
  EXPECT_EQ(decode(kStart, {3, 1}), "end the");
  EXPECT_EQ(decode(kContinuation, {1, 1}), " the the");
  EXPECT_EQ(decode(kContinuation, {0, 2, 3}), " end");
}

// Whatever bytes the tokens carry and however characters are cut by them.
TEST(StreamDecoderTest, PiecewiseIsTheSameAsAllAtOnce) {
  std::mt19937 random(7);
  constexpr unsigned char kBytes[] = {'a',  0x80, 0x9F, 0xA0, 0xBF, 0xC3,
                                      0xE0, 0xE2, 0xED, 0xF0, 0xF4, 0xFF};
  for (int round = 0; round < 3000; ++round) {
    std::vector<std::string> pieces;
    for (int i = 0; i < 12; ++i) {
      std::string piece;
      for (size_t n = random() % 4; n > 0; --n)
        piece += static_cast<char>(kBytes[random() % sizeof(kBytes)]);
      if (random() % 4 == 0)
        piece += Utf8Reference::Encode(0x400 + static_cast<uint32_t>(random()) % 0x10000 % 0xD000);
      pieces.push_back(piece);
    }
    const PieceTokenizer tokenizer(pieces);
    StreamDecoder decoder(tokenizer);
    std::string bytes, text;
    std::vector<TokenId> tokens;
    for (int i = 0; i < 10; ++i) {
      const TokenId token(static_cast<int32_t>(random() % pieces.size()));
      tokens.push_back(token);
      bytes += pieces[static_cast<size_t>(token.value())];
      const std::string delta = decoder.Push(token);
      ASSERT_TRUE(Utf8Reference::IsValid(delta));
      text += delta;
    }
    text += decoder.Finish();
    ASSERT_EQ(text, Utf8Reference::Decode(bytes));
    ASSERT_EQ(tokenizer.Decode(tokens), text);
  }
}

}  // namespace
}  // namespace bst
