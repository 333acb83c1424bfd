#include "engine/tokenizer/tokenizer.h"

#include "gtest/gtest.h"
#include "tests/support/status_matchers.h"

namespace bst {
namespace {

std::vector<TokenId> Ids(const std::vector<int>& values) {
  std::vector<TokenId> tokens;
  for (const int value : values) tokens.emplace_back(value);
  return tokens;
}

TEST(ByteTokenizerTest, TokensAreBytes) {
  const std::unique_ptr<Tokenizer> tokenizer = Tokenizer::Byte(259);
  EXPECT_EQ(tokenizer->vocab_size(), 259);
  EXPECT_THAT(tokenizer->Encode(""), IsOkAndHolds(testing::IsEmpty()));
  EXPECT_THAT(tokenizer->Encode(std::string("h\0\xC3\xA9\xFF", 5)),
              IsOkAndHolds(testing::ElementsAreArray(Ids({'h', 0, 0xC3, 0xA9, 0xFF}))));
}

TEST(ByteTokenizerTest, EveryByteComesBackAndOtherIdsHaveNoText) {
  const std::unique_ptr<Tokenizer> tokenizer = Tokenizer::Byte(259);
  for (int id = 0; id < 256; ++id) {
    EXPECT_EQ(tokenizer->TokenBytes(TokenId(id), /*at_start=*/true),
              std::string(1, static_cast<char>(id)));
  }
  for (const int id : {256, 258, 259, 1'000'000, -1, -256}) {
    EXPECT_EQ(tokenizer->TokenBytes(TokenId(id), /*at_start=*/false), "") << id;
  }
}

TEST(ByteTokenizerTest, ATokenIsAByte) { EXPECT_EQ(Tokenizer::Byte(259)->max_token_bytes(), 1); }

TEST(ByteTokenizerTest, DecodeIsValidUtf8) {
  const std::unique_ptr<Tokenizer> tokenizer = Tokenizer::Byte(259);
  EXPECT_EQ(tokenizer->Decode(Ids({256, 'h', 0xC3, 257, 0xA9, 258})), "h\u00e9");
  EXPECT_EQ(tokenizer->Decode(Ids({0xC3, 'h', 0xFF})), "\uFFFDh\uFFFD");
  EXPECT_EQ(tokenizer->Decode({}), "");
}

}  // namespace
}  // namespace bst
