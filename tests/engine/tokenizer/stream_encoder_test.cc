#include "engine/tokenizer/stream_encoder.h"

#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "engine/tokenizer/sentencepiece_cuts.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/engine/tokenizer/trained_model.h"
#include "tests/support/status_matchers.h"

namespace bst {
namespace {

std::string FileBytes(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string bytes((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  EXPECT_FALSE(bytes.empty()) << path;
  return bytes;
}

std::unique_ptr<Tokenizer> Load(const std::string& path) {
  absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer = Tokenizer::SentencePiece(path, 8192);
  EXPECT_THAT(tokenizer, IsOk());
  return tokenizer.ok() ? *std::move(tokenizer) : nullptr;
}

std::vector<TokenId> Whole(const Tokenizer& tokenizer, const std::string& text) {
  const absl::StatusOr<std::vector<TokenId>> tokens = tokenizer.Encode(text);
  EXPECT_THAT(tokens, IsOk());
  return tokens.value_or(std::vector<TokenId>());
}

TEST(StreamEncoderTest, SaysWhatItHolds) {
  const std::unique_ptr<Tokenizer> books = Load("models/bst-books-4m/tokenizer.model");
  ASSERT_NE(books, nullptr);
  StreamEncoder encoder(*books);
  ASSERT_THAT(encoder.Push(std::string(1'000'000, 'x')), IsOk());
  EXPECT_EQ(encoder.held_bytes(), 1'000'000u);
  ASSERT_THAT(encoder.Push("y and more"), IsOk());
  EXPECT_EQ(encoder.held_bytes(), std::string_view(" more").size());
  ASSERT_THAT(encoder.Finish(), IsOk());
  EXPECT_EQ(encoder.held_bytes(), 0u);
}

TEST(StreamEncoderTest, TakesALongTextInPiecesAndAsksBetweenThem) {
  const std::unique_ptr<Tokenizer> books = Load("models/bst-books-4m/tokenizer.model");
  ASSERT_NE(books, nullptr);
  std::string text;
  while (text.size() < 5 * StreamEncoder::kPieceBytes / 2) text += "It was a dark evening, and\n";
  int asked = 0, most = 100;
  const auto go_on = [&] {
    return ++asked <= most ? absl::OkStatus() : absl::CancelledError("enough");
  };
  StreamEncoder encoder(*books, go_on);
  absl::StatusOr<std::vector<TokenId>> tokens = encoder.Push(text);
  ASSERT_THAT(tokens, IsOk());
  EXPECT_EQ(asked, 3);
  const absl::StatusOr<std::vector<TokenId>> rest = encoder.Finish();
  ASSERT_THAT(rest, IsOk());
  tokens->insert(tokens->end(), rest->begin(), rest->end());
  EXPECT_EQ(*tokens, Whole(*books, text));

  asked = 0, most = 1;
  StreamEncoder stopped(*books, go_on);
  EXPECT_EQ(stopped.Push(text).status(), absl::CancelledError("enough"));
  EXPECT_EQ(asked, 2);
}

TEST(StreamEncoderTest, BoundsTextThatCannotBeCut) {
  const std::unique_ptr<Tokenizer> books = Load("models/bst-books-4m/tokenizer.model");
  ASSERT_NE(books, nullptr);
  StreamEncoder encoder(*books);
  EXPECT_THAT(encoder.Push(std::string(StreamEncoder::kMostUncutBytes, 'x')), IsOk());
  const absl::Status status = encoder.Push("x").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()),
              ::testing::HasSubstr("has more than 2097152 bytes without"));
}

struct Streamed {
  std::vector<TokenId> tokens;
  size_t before_the_end = 0;  // of these, those that came from Push
};

Streamed Stream(const Tokenizer& tokenizer, const std::string& text, size_t longest_piece,
                std::mt19937& random) {
  StreamEncoder encoder(tokenizer);
  Streamed result;
  const auto take = [&](const absl::StatusOr<std::vector<TokenId>>& tokens) {
    ASSERT_THAT(tokens, IsOk());
    result.tokens.insert(result.tokens.end(), tokens->begin(), tokens->end());
  };
  for (size_t begin = 0; begin < text.size();) {
    const size_t length = random() % (longest_piece + 1);  // empty pieces too
    take(encoder.Push(std::string_view(text).substr(begin, length)));
    begin += length;
  }
  result.before_the_end = result.tokens.size();
  take(encoder.Finish());
  return result;
}

// Words the models know and some they do not, all kinds of space, whole and broken UTF-8, the
// symbol that SentencePiece has for a space, what NFKC changes, and very long words.
std::string RandomText(std::mt19937& random) {
  const char* const parts[] = {
      "the",        "state",  "model",      "A1b2",     "x",         "Zq#",     " ",
      " ",          " ",      " ",          "  ",       "     ",     "\n",      "\n\n",
      "\r\n",       "\t",     ".",          ", ",       "caf\u00e9", "e\u0301", "\u4e16\u754c",
      "\U0001F600", "\u2581", "\u2581 the", "a\u2581b", "\u00a0",    "\u3000",  "\u00a8",
      " \u0308",    "\ufb01", "\u2075",     "\u200b",   "\x01",      "\xC3",    "\xE2\x96",
      "\xFF\xFE",   "\x81",   "<s>",        "<0x41>",   "5 6",       "\ufffd"};
  std::string text;
  const size_t count = random() % 40;
  for (size_t i = 0; i < count; ++i) {
    text += parts[random() % std::size(parts)];
    if (random() % 200 == 0) text.append(2000, static_cast<char>('a' + random() % 26));
  }
  if (random() % 8 == 0) text += '\0';
  return text;
}

void ExpectSameAsWhole(const Tokenizer& tokenizer, const std::string& name, int rounds) {
  std::mt19937 random(1);
  for (int round = 0; round < rounds; ++round) {
    const std::string text = RandomText(random);
    const size_t longest = size_t{1} << random() % 8;
    ASSERT_EQ(Stream(tokenizer, text, longest, random).tokens, Whole(tokenizer, text))
        << name << ", round " << round << ", pieces of up to " << longest << ": " << text;
  }
}

TEST(StreamEncoderTest, BytesAreCertainAtOnce) {
  const std::unique_ptr<Tokenizer> tokenizer = Tokenizer::Byte(256);
  StreamEncoder encoder(*tokenizer);
  EXPECT_EQ(encoder.Push("a\xC3")->size(), 2u);
  EXPECT_EQ(encoder.Push("")->size(), 0u);
  EXPECT_EQ(encoder.Push("\xA9")->size(), 1u);
  EXPECT_EQ(encoder.Finish()->size(), 0u);
  ExpectSameAsWhole(*tokenizer, "bytes", 300);
}

TEST(StreamEncoderTest, TheDemoModelEncodesRealTextWhileItArrives) {
  const std::unique_ptr<Tokenizer> tokenizer = Load("models/bst-books-4m/tokenizer.model");
  ExpectSameAsWhole(*tokenizer, "demo", 3000);
  for (const char* const path : {"LICENSE", "README.md", "engine/README.md"}) {
    const std::string text = FileBytes(path);
    const std::vector<TokenId> whole = Whole(*tokenizer, text);
    std::mt19937 random(2);
    for (const size_t longest : {size_t{3}, size_t{100}, size_t{5000}, text.size()}) {
      const Streamed streamed = Stream(*tokenizer, text, longest, random);
      EXPECT_EQ(streamed.tokens, whole) << path << ' ' << longest;
      EXPECT_GT(streamed.before_the_end, whole.size() * 9 / 10) << path << ' ' << longest;
    }
  }
}

TEST(StreamEncoderTest, HoldsBackWhatMayStillChange) {
  const std::unique_ptr<Tokenizer> tokenizer = Load("models/bst-books-4m/tokenizer.model");
  StreamEncoder encoder(*tokenizer);
  EXPECT_EQ(encoder.Push("the ship")->size(), Whole(*tokenizer, "the").size());
  EXPECT_TRUE(encoder.Push("wrights")->empty());
  EXPECT_TRUE(encoder.Push(" ")->empty());
  EXPECT_EQ(*encoder.Push("had"), Whole(*tokenizer, " shipwrights"));
  EXPECT_EQ(*encoder.Finish(), Whole(*tokenizer, " had"));
}

// Every normalizer the library has, with and without the space in front of a text and runs of
// spaces. Whether the model has cuts is told beside its options.
TEST(StreamEncoderTest, EveryKindOfModelGivesTheTokensOfTheWhole) {
  struct Case {
    const char* options;
    bool exist, ascii_sides, drop_space;
  };
  const Case cases[] = {
      {"", true, false, true},
      {"--remove_extra_whitespaces=false", true, false, true},
      {"--remove_extra_whitespaces=false --allow_whitespace_only_pieces=true", true, false, true},
      {"--add_dummy_prefix=false --remove_extra_whitespaces=false", true, false, false},
      {"--normalization_rule_name=nmt_nfkc", true, true, true},
      {"--normalization_rule_name=nmt_nfkc_cf", true, true, true},
      {"--normalization_rule_name=nfkc --remove_extra_whitespaces=false", true, true, true},
      {"--normalization_rule_name=nfkc_cf --add_dummy_prefix=false"
       " --remove_extra_whitespaces=false",
       true, true, false},
      {"--user_defined_symbols=state,block --normalization_rule_name=nmt_nfkc", true, true, true},
      {"--byte_fallback=false --normalization_rule_name=nmt_nfkc", true, true, true},
      // The space in front of the second part would be lost.
      {"--add_dummy_prefix=false", false, false, false},
      {"--add_dummy_prefix=false --normalization_rule_name=nmt_nfkc", false, true, false},
      // Sums over the whole text.
      {"--model_type=unigram --vocab_size=300", false, false, true},
      // Pieces across words.
      {"--split_by_whitespace=false", false, false, true},
      {"--user_defined_symbols=of\u2581a", false, false, true},
      {"--treat_whitespace_as_suffix=true", false, false, true},
  };
  for (const Case& test : cases) {
    const TrainedModel model(test.options);
    const SpaceCuts cuts = SpaceCuts::Of(FileBytes(model.path()));
    EXPECT_EQ(cuts.exist, test.exist) << test.options;
    EXPECT_EQ(cuts.ascii_sides, test.ascii_sides) << test.options;
    EXPECT_EQ(cuts.drop_space, test.drop_space) << test.options;
    const std::unique_ptr<Tokenizer> tokenizer = Load(model.path());
    ExpectSameAsWhole(*tokenizer, test.options, 500);
  }
}

TEST(SpaceCutsTest, ABrokenModelHasNone) {
  const std::string model = FileBytes("models/bst-books-4m/tokenizer.model");
  EXPECT_TRUE(SpaceCuts::Of(model).exist);
  EXPECT_FALSE(SpaceCuts::Of("").exist);
  EXPECT_FALSE(SpaceCuts::Of("\xFF\xFF\xFF").exist);
  EXPECT_FALSE(SpaceCuts::Of(model.substr(0, model.size() - 1)).exist);
  EXPECT_FALSE(SpaceCuts::Of(model + "\x12\x7F").exist);  // a field longer than what is left
}

// A rule of the normalizer that looks across a space takes the proof away.
TEST(SpaceCutsTest, ARuleBesideASpaceForbidsCuts) {
  const struct {
    const char* rule;
    bool exist;
  } cases[] = {{"41 20\t42\n", false},  // "A " -> "B"
               {"20 41\t42\n", false},  // " A" -> "B"
               {"20\t2D\n", false},     // " " -> "-"
               {"41\t42 20\n", false},  // "A" -> "B "
               {"41\t\n", false},       // "A" -> ""
               {"41 42\t43\n", true},   // "AB" -> "C"
               {"2E 20\t2E\n", true},   // ". " -> "."
               {"41\t20 42\n", true}};  // "A" -> " B"
  for (const auto& test : cases) {
    const std::string rules = absl::StrCat(testing::TempDir(), "/bst_rules_", ::getpid());
    std::ofstream(rules) << test.rule;
    const absl::Cleanup remove = [&] { std::filesystem::remove(rules); };
    for (const char* const spaces : {"true", "false"}) {
      const TrainedModel model("--normalization_rule_tsv=" + rules +
                               " --remove_extra_whitespaces=" + spaces);
      EXPECT_EQ(SpaceCuts::Of(FileBytes(model.path())).exist, test.exist) << test.rule;
      const std::unique_ptr<Tokenizer> tokenizer = Load(model.path());
      std::mt19937 random(3);
      for (int round = 0; round < 300; ++round) {
        std::string text;
        for (size_t i = random() % 12; i > 0; --i) text += "AB .C"[random() % 5];
        ASSERT_EQ(Stream(*tokenizer, text, 3, random).tokens, Whole(*tokenizer, text)) << text;
      }
    }
  }
}

}  // namespace
}  // namespace bst
