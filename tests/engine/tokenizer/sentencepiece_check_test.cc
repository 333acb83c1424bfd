#include "engine/tokenizer/sentencepiece_check.h"

#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/tokenizer/sentencepiece_proto.h"
#include "engine/tokenizer/tokenizer.h"
#include "gtest/gtest.h"
#include "tests/engine/tokenizer/trained_model.h"
#include "tests/support/status_matchers.h"

namespace bst {
namespace {

using testing::HasSubstr;

constexpr int kVocabSize = 4096;
constexpr auto kFailedPrecondition = absl::StatusCode::kFailedPrecondition;

std::string Varint(uint64_t value) {
  std::string bytes;
  for (; value > 127; value >>= 7) bytes += static_cast<char>(value | 128);
  return bytes + static_cast<char>(value);
}
std::string Number(int field, uint64_t value) {
  return Varint(static_cast<uint64_t>(field) << 3) + Varint(value);
}
std::string Bytes(int field, const std::string& value) {
  return Varint(static_cast<uint64_t>(field) << 3 | 2) + Varint(value.size()) + value;
}

enum PieceType : int { kNormal = 1, kUnknown = 2, kUserDefined = 4 };
std::string Piece(const std::string& text, PieceType type) {
  return Bytes(1, Bytes(1, text) + Number(3, type));
}
enum ModelType : int { kUnigram = 1, kBpe = 2, kWord = 3, kCharacter = 4 };
std::string Trainer(ModelType type) { return Bytes(2, Number(3, type)); }
enum Normalizer : int { kNormalizer = 3, kDenormalizer = 5 };
std::string Charsmap(Normalizer field, const std::string& charsmap) {
  return Bytes(field, Bytes(2, charsmap));
}

// Of one piece for each letter, and the space.
std::string SmallModel(ModelType type = kBpe) {
  std::string model = Piece("<unk>", kUnknown) + Piece("\u2581", kNormal);
  for (char c = 'a'; c <= 'z'; ++c) model += Piece(std::string(1, c), kNormal);
  return model + Trainer(type);
}

std::string CharsmapOf(const std::vector<uint32_t>& units, const std::string& texts) {
  const auto bytes = static_cast<uint32_t>(units.size() * sizeof(uint32_t));
  std::string charsmap(sizeof(bytes) + bytes, '\0');
  std::memcpy(charsmap.data(), &bytes, sizeof(bytes));
  std::memcpy(charsmap.data() + sizeof(bytes), units.data(), bytes);
  return charsmap + texts;
}

// The trie of one rule: `from`, a character, becomes the text at `begin`. Units of base 256 follow
// the root, those of base 512 the character, as the library lays them out.
std::vector<uint32_t> OneRule(unsigned char from, uint32_t begin) {
  std::vector<uint32_t> units(768, 0);
  units[0] = 256u << 10;
  units[256 + from] = ((256u + from) ^ 512u) << 10 | 1u << 8 | from;
  units[512] = 0x8000'0000u | begin;
  return units;
}

std::string FileBytes(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(file), {});
}

absl::StatusOr<std::unique_ptr<Tokenizer>> Load(const std::string& model) {
  const std::string path = testing::TempDir() + "/bst_checked_model_" + std::to_string(::getpid());
  std::ofstream(path, std::ios::binary) << model;
  auto tokenizer = Tokenizer::SentencePiece(path, kVocabSize);
  std::remove(path.c_str());
  return tokenizer;
}

std::string RoundTrip(const Tokenizer& tokenizer, const std::string& text) {
  const absl::StatusOr<std::vector<TokenId>> tokens = tokenizer.Encode(text);
  EXPECT_THAT(tokens, IsOk());
  return tokens.ok() ? tokenizer.Decode(*tokens) : "";
}

TEST(SentencePieceCheckTest, RulesOfTheLibraryAreAccepted) {
  for (const char* const name : {"nfkc", "nfkc_cf", "nmt_nfkc", "nmt_nfkc_cf"}) {
    const TrainedModel model(absl::StrCat("--normalization_rule_name=", name));
    const std::string serialized = FileBytes(model.path());
    EXPECT_GT(serialized.size(), 200'000u);  // the rules are there
    EXPECT_THAT(CheckSentencePieceModel(serialized, kVocabSize), IsOk()) << name;
  }
}

TEST(SentencePieceCheckTest, ARuleIsFollowed) {
  const std::string rule = CharsmapOf(OneRule('a', 4), std::string("abc\0xyz\0", 8));
  const auto tokenizer = Load(SmallModel() + Charsmap(kNormalizer, rule));
  ASSERT_THAT(tokenizer, IsOk());
  EXPECT_EQ(RoundTrip(**tokenizer, "ba"), "bxyz");
}

TEST(SentencePieceCheckTest, ATrieThatLeadsBeyondItsEndIsRefused) {
  const std::string texts("abc\0", 4);
  std::vector<std::string> charsmaps = {
      CharsmapOf(std::vector<uint32_t>(256, 0xFFFF'FFFFu), texts),
      CharsmapOf(std::vector<uint32_t>(256, 0x3F'FFFFu << 10 | 1u << 9), texts),
      CharsmapOf({0}, texts),  // one unit: its base has no room for a character
      CharsmapOf({0x3F'FFFFu << 10}, texts),
  };
  std::vector<uint32_t> units = OneRule('a', 0);
  units.resize(600);  // the rule's base is cut
  charsmaps.push_back(CharsmapOf(units, texts));
  for (const std::string& charsmap : charsmaps) {
    for (const Normalizer field : {kNormalizer, kDenormalizer}) {
      EXPECT_THAT(Load(SmallModel() + Charsmap(field, charsmap)).status(),
                  StatusIs(kFailedPrecondition, HasSubstr("of its trie leads beyond")));
    }
  }
}

TEST(SentencePieceCheckTest, WhatIsNoTrieIsRefused) {
  const std::vector<uint32_t> units = OneRule('a', 0);
  std::string long_trie = CharsmapOf(units, "");
  ++long_trie[1];  // 256 bytes more than there are
  for (const std::string& charsmap :
       {std::string("abc"), CharsmapOf({}, "abc"), long_trie, std::string("\2\0\0\0abcdef", 10)}) {
    EXPECT_THAT(Load(SmallModel() + Charsmap(kNormalizer, charsmap)).status(),
                StatusIs(kFailedPrecondition,
                         HasSubstr("the precompiled_charsmap of its normalizer is broken: it does "
                                   "not begin with a trie")));
  }
  const std::string large = CharsmapOf(std::vector<uint32_t>((1 << 20) + 256, 0), "a");
  EXPECT_THAT(Load(SmallModel() + Charsmap(kNormalizer, large)).status(),
              StatusIs(kFailedPrecondition, HasSubstr("units, limit 1048576")));
}

TEST(SentencePieceCheckTest, TextsBeyondTheirEndAreRefused) {
  for (const std::string& charsmap :
       {CharsmapOf(OneRule('a', 4), std::string("abc\0", 4)), CharsmapOf(OneRule('a', 0), "abc"),
        CharsmapOf(OneRule('a', 0x7FFF'FFFFu), std::string("abc\0", 4))}) {
    EXPECT_THAT(Load(SmallModel() + Charsmap(kNormalizer, charsmap)).status(),
                StatusIs(kFailedPrecondition, HasSubstr("unit 353 has no text that ends")));
  }
}

TEST(SentencePieceCheckTest, ARuleMultipliesAPromptByLittle) {
  const auto of_length = [](size_t length) {
    const std::string text = std::string(length, 'b') + '\0';
    return Load(SmallModel() + Charsmap(kNormalizer, CharsmapOf(OneRule('a', 0), text)));
  };
  EXPECT_THAT(of_length(kMaxRuleTextBytes), IsOk());
  EXPECT_THAT(of_length(kMaxRuleTextBytes + 1).status(),
              StatusIs(kFailedPrecondition, HasSubstr("a text of 257 bytes, limit 256")));
}

// A trie whose character leads to itself: every text of it is one more rule.
TEST(SentencePieceCheckTest, RulesWithoutEndAreRefused) {
  std::vector<uint32_t> units = OneRule('a', 0);
  units[256 + 'a'] = static_cast<uint32_t>('a') << 10 | 1u << 8 | 'a';  // base 256 again
  units[256] = 0x8000'0000u;
  const std::string charsmap = CharsmapOf(units, std::string("abc\0", 4));
  EXPECT_THAT(
      Load(SmallModel() + Charsmap(kNormalizer, charsmap)).status(),
      StatusIs(kFailedPrecondition, HasSubstr("more than 32 rules begin with one another")));
}

TEST(SentencePieceCheckTest, UserDefinedPiecesThatBeginWithOneAnotherAreLimited) {
  for (const ModelType type : {kUnigram, kBpe, kWord, kCharacter}) {
    std::string model = SmallModel(type);
    for (size_t length = 2; length <= 65; ++length) {
      model += Piece(std::string(length, 'a'), kUserDefined);
    }
    const auto tokenizer = Load(model);
    ASSERT_THAT(tokenizer, IsOk());
    EXPECT_THAT((*tokenizer)->Encode(std::string(70, 'a')), IsOk());
    EXPECT_THAT(Load(model + Piece(std::string(66, 'a'), kUserDefined)).status(),
                StatusIs(kFailedPrecondition,
                         HasSubstr("more than 64 user-defined pieces begin with one another")));
  }
}

// The library takes a type modulo 2^32 and the text up to NUL.
TEST(SentencePieceCheckTest, UserDefinedPiecesDoNotHide) {
  std::string model = SmallModel();
  for (size_t length = 2; length <= 66; ++length) {
    model += Bytes(1, Bytes(1, std::string(length, 'a') + '\0' + "z") +
                          Number(3, (uint64_t{1} << 32) + kUserDefined) + Number(3, 99));
  }
  EXPECT_THAT(Load(model).status(),
              StatusIs(kFailedPrecondition,
                       HasSubstr("more than 64 user-defined pieces begin with one another")));
}

TEST(SentencePieceCheckTest, PiecesOfAnyLengthDoNotExhaustTheStack) {
  for (const ModelType type : {kUnigram, kBpe}) {
    for (const PieceType piece : {kNormal, kUserDefined}) {
      const auto of_length = [&](size_t length) {
        return Load(SmallModel(type) + Piece(std::string(length, 'a'), piece));
      };
      EXPECT_THAT(of_length(kMaxPieceBytes), IsOk());
      EXPECT_THAT(
          of_length(1'000'000).status(),
          StatusIs(kFailedPrecondition, HasSubstr("piece 28 has 1000000 bytes, limit 4096")));
    }
  }
}

TEST(SentencePieceCheckTest, PiecesAreCountedBeforeTheyTakeMemory) {
  std::string model;
  for (int i = 0; i < 1'000'000; ++i) model += Bytes(1, "");
  EXPECT_THAT(Load(model).status(),
              StatusIs(kFailedPrecondition,
                       HasSubstr("1000000 pieces, but the vocabulary has 4096 tokens")));
}

TEST(SentencePieceCheckTest, BrokenMessagesAreRefused) {
  for (const std::string& end :
       {Bytes(3, "\x12\x7F"), Bytes(5, "\x12\x7F"), Bytes(1, "\x0A\x7F"), std::string("\x0B")}) {
    EXPECT_THAT(Load(SmallModel() + end).status(),
                StatusIs(kFailedPrecondition, HasSubstr("broken")));
  }
}

// A tag that Protobuf cuts to 32 bits would be a field that it sees and we do not.
TEST(ProtoFieldsTest, TagsBeyondThirtyTwoBitsAreBroken) {
  const std::string message =
      Varint((uint64_t{1} << 32) + (3u << 3 | 2)) + Varint(3) + std::string(3, 'x');
  ProtoFields field(message);
  EXPECT_FALSE(field.Next());
  EXPECT_TRUE(field.broken());
}

TEST(ProtoFieldsTest, FieldsOfAnotherKindAreOthers) {
  const std::string message = Number(1, 5) + std::string("\x0D\1\2\3\4", 5) + Bytes(1, "text");
  ProtoFields field(message);
  ASSERT_TRUE(field.Next());
  EXPECT_TRUE(field.IsNumber(1) && !field.IsBytes(1) && field.value() == 5);
  ASSERT_TRUE(field.Next());
  EXPECT_TRUE(!field.IsNumber(1) && !field.IsBytes(1));
  ASSERT_TRUE(field.Next());
  EXPECT_TRUE(!field.IsNumber(1) && field.IsBytes(1) && field.bytes() == "text");
  EXPECT_FALSE(field.Next());
  EXPECT_FALSE(field.broken());
}

}  // namespace
}  // namespace bst
