#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "engine/tokenizer/tokenizer.h"
#include "gtest/gtest.h"
#include "tests/engine/tokenizer/trained_model.h"
#include "tests/support/status_matchers.h"

namespace bst {
namespace {

using testing::HasSubstr;

constexpr int kVocabSize = 512;

std::unique_ptr<Tokenizer> Load(const TrainedModel& model) {
  absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer =
      Tokenizer::SentencePiece(model.path(), kVocabSize);
  EXPECT_THAT(tokenizer, IsOk());
  return tokenizer.ok() ? *std::move(tokenizer) : nullptr;
}

std::vector<int> Values(const std::vector<TokenId>& tokens) {
  std::vector<int> values;
  for (const TokenId token : tokens) values.push_back(token.value());
  return values;
}

const std::vector<std::string>& Texts() {
  static const auto* const texts =
      new std::vector<std::string>{"",
                                   "the state of a block",
                                   " leading",
                                   "trailing ",
                                   "two  spaces",
                                   "a",
                                   " ",
                                   "  ",
                                   "caf\u00e9 \u4e16\u754c \U0001F600!",
                                   "<s> </s> <unk> <0x41>",
                                   "line\nbreak\ttab",
                                   "Zz@#%^"};
  return *texts;
}

class SentencePieceTest : public testing::Test {
 protected:
  SentencePieceTest() : tokenizer_(Load(model_)) {}

  int Id(const std::string& piece) const { return model_.PieceToId(piece); }
  std::string Text(const std::string& piece, bool at_start = false) const {
    return tokenizer_->TokenBytes(TokenId(Id(piece)), at_start);
  }

  TrainedModel model_;
  std::unique_ptr<Tokenizer> tokenizer_;
};

TEST_F(SentencePieceTest, EncodesAndDecodesAsTheLibraryDoes) {
  EXPECT_EQ(tokenizer_->vocab_size(), kVocabSize);
  for (const std::string& text : Texts()) {
    const absl::StatusOr<std::vector<TokenId>> tokens = tokenizer_->Encode(text);
    ASSERT_THAT(tokens, IsOk());
    EXPECT_EQ(Values(*tokens), model_.EncodeByLibrary(text)) << text;
    EXPECT_EQ(tokenizer_->Decode(*tokens), model_.DecodeByLibrary(Values(*tokens))) << text;
  }
}

TEST_F(SentencePieceTest, SpecialPiecesHaveNoText) {
  EXPECT_EQ(Text("<s>"), "");
  EXPECT_EQ(Text("</s>"), "");
  EXPECT_EQ(Text("<unk>"), "");
  for (const int id : {-1, 400, kVocabSize, 1'000'000}) {
    EXPECT_EQ(tokenizer_->TokenBytes(TokenId(id), /*at_start=*/false), "") << id;
  }
}

TEST_F(SentencePieceTest, NoTokenHasMoreBytesThanTheMost) {
  size_t most = 0;
  for (int id = 0; id < kVocabSize; ++id) {
    most = std::max(most, tokenizer_->TokenBytes(TokenId(id), /*at_start=*/false).size());
  }
  EXPECT_GT(most, 1u);
  EXPECT_EQ(static_cast<size_t>(tokenizer_->max_token_bytes()), most);
}

TEST_F(SentencePieceTest, BytePiecesContributeTheirByte) {
  EXPECT_EQ(Text("<0x0A>"), "\n");
  EXPECT_EQ(Text("<0xAB>"), "\xAB");
  EXPECT_EQ(Text("<0x00>"), std::string(1, '\0'));
  EXPECT_EQ(Text("<0xFF>"), "\xFF");
  EXPECT_EQ(Text("<0x20>", /*at_start=*/true),
            " ");  // a byte, not the symbol of a word's beginning
  const std::vector<TokenId> euro = {TokenId(Id("<0xE2>")), TokenId(Id("<0x82>")),
                                     TokenId(Id("<0xAC>"))};
  EXPECT_EQ(tokenizer_->Decode(euro), "\u20AC");
  EXPECT_EQ(tokenizer_->Decode({euro[0], euro[1]}), "\uFFFD");
}

TEST_F(SentencePieceTest, SpaceOfTheFirstPieceIsDroppedAtTheStartOnly) {
  ASSERT_NE(Id("\u2581the"), 0);
  EXPECT_EQ(Text("\u2581the", /*at_start=*/true), "the");
  EXPECT_EQ(Text("\u2581the", /*at_start=*/false), " the");
  const absl::StatusOr<std::vector<TokenId>> tokens = tokenizer_->Encode("the end");
  ASSERT_THAT(tokens, IsOk());
  StreamDecoder continuation(*tokenizer_, StreamDecoder::Position::kContinuation);
  std::string text;
  for (const TokenId token : *tokens) text += continuation.Push(token);
  EXPECT_EQ(text, " the end");
}

TEST_F(SentencePieceTest, TextThatIsNotUtf8IsReplacedFirst) {
  const absl::StatusOr<std::vector<TokenId>> bad = tokenizer_->Encode("a\xFF\xE2\x82z");
  const absl::StatusOr<std::vector<TokenId>> replaced = tokenizer_->Encode("a\uFFFD\uFFFDz");
  ASSERT_THAT(bad, IsOk());
  ASSERT_THAT(replaced, IsOk());
  EXPECT_EQ(*bad, *replaced);
  EXPECT_EQ(tokenizer_->Decode(*bad), "a\uFFFD\uFFFDz");
}

TEST_F(SentencePieceTest, IsSafeToUseFromSeveralThreads) {
  const std::vector<int> expected = model_.EncodeByLibrary("the state of a block");
  std::vector<std::vector<int>> results(4);
  std::vector<std::thread> threads;
  for (auto& result : results) {
    threads.emplace_back([&result, this] {
      for (int i = 0; i < 100; ++i) {
        const auto tokens = tokenizer_->Encode("the state of a block");
        result = tokens.ok() ? Values(*tokens) : std::vector<int>();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const auto& result : results) EXPECT_EQ(result, expected);
}

TEST(SentencePieceOptionsTest, WithoutADummyPrefixNoSpaceIsDropped) {
  const TrainedModel model("--add_dummy_prefix=false --remove_extra_whitespaces=false");
  const std::unique_ptr<Tokenizer> tokenizer = Load(model);
  const int id = model.PieceToId("\u2581the");
  ASSERT_NE(id, 0);
  EXPECT_EQ(tokenizer->TokenBytes(TokenId(id), /*at_start=*/true), " the");
  for (const std::string& text : Texts()) {
    const absl::StatusOr<std::vector<TokenId>> tokens = tokenizer->Encode(text);
    ASSERT_THAT(tokens, IsOk());
    EXPECT_EQ(tokenizer->Decode(*tokens), text);
  }
}

TEST(SentencePieceOptionsTest, LeadingSpacesSurviveADummyPrefix) {
  const TrainedModel model("--remove_extra_whitespaces=false");
  const std::unique_ptr<Tokenizer> tokenizer = Load(model);
  for (const std::string& text : Texts()) {
    const absl::StatusOr<std::vector<TokenId>> tokens = tokenizer->Encode(text);
    ASSERT_THAT(tokens, IsOk());
    EXPECT_EQ(tokenizer->Decode(*tokens), text);
    EXPECT_EQ(tokenizer->Decode(*tokens), model.DecodeByLibrary(Values(*tokens)));
  }
}

TEST(SentencePieceOptionsTest, UnigramAndUserDefinedPieces) {
  const TrainedModel model(
      "--model_type=unigram --user_defined_symbols=<sep> --control_symbols=<ctl>");
  const std::unique_ptr<Tokenizer> tokenizer = Load(model);
  EXPECT_EQ(tokenizer->TokenBytes(TokenId(model.PieceToId("<sep>")), /*at_start=*/false), "<sep>");
  EXPECT_EQ(tokenizer->TokenBytes(TokenId(model.PieceToId("<ctl>")), /*at_start=*/false), "");
  for (const std::string& text : Texts()) {
    const absl::StatusOr<std::vector<TokenId>> tokens = tokenizer->Encode(text + "<sep>a");
    ASSERT_THAT(tokens, IsOk());
    EXPECT_EQ(tokenizer->Decode(*tokens), model.DecodeByLibrary(Values(*tokens)));
  }
}

TEST(SentencePieceErrorsTest, FilesThatAreNoModelAreRefused) {
  EXPECT_THAT(Tokenizer::SentencePiece("/nonexistent.model", 10).status(),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("/nonexistent.model")));
  const std::string path = testing::TempDir() + "/bst_no_model_" + std::to_string(::getpid());
  for (const std::string& contents :
       {std::string(), std::string("not a model"), std::string(1000, '\xFF')}) {
    std::ofstream(path, std::ios::binary) << contents;
    EXPECT_THAT(
        Tokenizer::SentencePiece(path, 10).status(),
        StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("not a SentencePiece model")));
  }
  std::remove(path.c_str());
}

TEST(SentencePieceErrorsTest, TruncatedModelsNeverCrash) {
  const TrainedModel model;
  std::ifstream file(model.path(), std::ios::binary);
  const std::string whole((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  const std::string path = testing::TempDir() + "/bst_cut_model_" + std::to_string(::getpid());
  int refused = 0;
  for (size_t size = 0; size < whole.size(); size += 97) {
    std::ofstream(path, std::ios::binary) << whole.substr(0, size);
    const auto tokenizer = Tokenizer::SentencePiece(path, kVocabSize);
    if (tokenizer.ok()) {
      EXPECT_THAT((*tokenizer)->Encode("the state"), IsOk()) << size;
    } else {
      ++refused;
    }
  }
  std::remove(path.c_str());
  EXPECT_GT(refused, 50);
}

TEST(SentencePieceErrorsTest, MorePiecesThanTheVocabularyAreRefused) {
  const TrainedModel model;
  EXPECT_THAT(Tokenizer::SentencePiece(model.path(), 100).status(),
              StatusIs(absl::StatusCode::kFailedPrecondition,
                       HasSubstr("pieces, but the vocabulary has 100 tokens")));
}

}  // namespace
}  // namespace bst
