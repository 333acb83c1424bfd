#include "engine/checkpoint/json.h"

#include <sys/stat.h>

#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/engine/checkpoint/checkpoint_files.h"
#include "tests/support/status_matchers.h"

namespace bst {
namespace {

using testing::AllOf;
using testing::HasSubstr;

TEST(ParseJsonTest, BuildsTheDocument) {
  const std::string_view text =
      R"( {"a": [1, -2, 2.5, 18446744073709551615], "b": {"c": null, "d": true, "": "\u00e9"}, "e": []} )";
  const absl::StatusOr<nlohmann::json> document = ParseJson(text);
  ASSERT_THAT(document, IsOk());
  EXPECT_EQ(*document, nlohmann::json::parse(text));
  EXPECT_TRUE(document->at("a")[0].is_number_integer());
  EXPECT_TRUE(document->at("a")[2].is_number_float());
  EXPECT_THAT(ParseJson("3"), IsOkAndHolds(nlohmann::json(3)));
}

TEST(ParseJsonTest, RefusesWhatIsNotJson) {
  for (const std::string_view text : {"", "{", "[1,]", "{\"a\" 1}", "nul", "NaN", "1e999", "{} {}",
                                      "\"\xff\"", "'a'", "// x\n1"}) {
    EXPECT_THAT(ParseJson(text), StatusIs(kBad, HasSubstr("not JSON at byte"))) << text;
  }
}

TEST(ParseJsonTest, RefusesWhatIsBehindANulByte) {
  using namespace std::string_view_literals;
  EXPECT_THAT(ParseJson("{}\0garbage"sv), StatusIs(kBad, HasSubstr("not JSON at byte 3: a NUL")));
  EXPECT_THAT(ParseJson("{}\0"sv), StatusIs(kBad, HasSubstr("not JSON at byte 3: a NUL")));
}

TEST(ParseJsonTest, NamesThePlaceOfWhatIsNotJson) {
  EXPECT_THAT(ParseJson(R"({"attention": {}, "norm_eps": NaN})"),
              StatusIs(kBad, AllOf(HasSubstr("at `norm_eps`: "), HasSubstr("\"norm_eps\": N'"))));
  EXPECT_THAT(ParseJson(R"({"layers": [{"x": 1}, {"ssm": {"size": -Infinity}}]})"),
              StatusIs(kBad, AllOf(HasSubstr("at `layers[1].ssm.size`: "), HasSubstr("'-I'"))));
  EXPECT_THAT(ParseJson(R"({"a": [1, 2, 1e400]})"),
              StatusIs(kBad, AllOf(HasSubstr("at `a[2]`: "), HasSubstr("'1e400'"))));
  EXPECT_THAT(ParseJson(R"({"a": {"b": 1}, "c": [{)"), StatusIs(kBad, HasSubstr("at `c[0]`: ")));
  EXPECT_THAT(ParseJson("{x"), StatusIs(kBad, HasSubstr("not JSON at byte 2: ")));
}

TEST(ParseJsonTest, RefusesAKeyThatOccursTwice) {
  EXPECT_THAT(ParseJson(R"({"a": 1, "a": 1})"), StatusIs(kBad, "`a` occurs twice"));
  EXPECT_THAT(ParseJson(R"({"x": [0, {"y": {"z": 1, "w": 2, "z": 3}}]})"),
              StatusIs(kBad, "`x[1].y.z` occurs twice"));
  EXPECT_THAT(ParseJson(R"({"a": {"a": 1}, "b": {"a": 1}})"), IsOk());
}

TEST(ParseJsonTest, RefusesDeepNesting) {
  const auto nested = [](int depth) {
    const auto count = static_cast<size_t>(depth);
    return std::string(count, '[') + std::string(count, ']');
  };
  EXPECT_THAT(ParseJson(nested(kMaxJsonDepth)), IsOk());
  EXPECT_THAT(ParseJson(nested(kMaxJsonDepth + 1)), StatusIs(kBad, HasSubstr("nested deeper")));
  EXPECT_THAT(ParseJson(std::string(1'000'000, '[')), StatusIs(kBad, HasSubstr("nested deeper")));
}

TEST(ReadTextFileTest, ReadsAllOrSaysWhyNot) {
  const TestDirectory directory;
  directory.Write("text", std::string("a\0b", 3));
  EXPECT_THAT(ReadTextFile(directory.File("text"), 3), IsOkAndHolds(std::string("a\0b", 3)));
  EXPECT_THAT(ReadTextFile(directory.File("text"), 2),
              StatusIs(kBad, HasSubstr("limit of 2 bytes")));
  EXPECT_THAT(ReadTextFile(directory.File("none"), 9),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("none: No such file")));
  EXPECT_THAT(ReadTextFile(directory.path(), 9), StatusIs(kBad, HasSubstr("not a regular file")));
  // A named pipe that nobody writes to must not be waited for.
  ASSERT_EQ(::mkfifo(directory.File("pipe").c_str(), 0600), 0);
  EXPECT_THAT(ReadTextFile(directory.File("pipe"), 9),
              StatusIs(kBad, HasSubstr("not a regular file")));
}

TEST(ExcerptTest, EscapesAndCuts) {
  EXPECT_EQ(Excerpt("a\n\"b\"\\\x01\x7f\xc3"), R"(a\x0a"b"\\x01\x7f\xc3)");
  EXPECT_EQ(Excerpt(std::string(101, 'x')), std::string(100, 'x') + "...");
}

TEST(IsPlainFileNameTest, RefusesPaths) {
  EXPECT_TRUE(IsPlainFileName("tokenizer.model"));
  EXPECT_TRUE(IsPlainFileName("..model"));
  for (const std::string_view name : {"", ".", "..", "a/b", "/etc/passwd", "../x", "a\\b"}) {
    EXPECT_FALSE(IsPlainFileName(name)) << name;
  }
  EXPECT_FALSE(IsPlainFileName(std::string_view("a\0b", 3)));
  EXPECT_FALSE(IsPlainFileName(std::string(256, 'x')));
}

}  // namespace
}  // namespace bst
