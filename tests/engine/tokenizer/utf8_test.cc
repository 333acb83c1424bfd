#include "engine/tokenizer/utf8.h"

#include <algorithm>
#include <cstdint>
#include <random>
#include <string>

#include "gtest/gtest.h"
#include "tests/engine/tokenizer/utf8_reference.h"

namespace bst {
namespace {

std::string Replace(std::string_view bytes) { return DecodeUtf8(bytes, Utf8Tail::kReplace).text; }

// "?" stands for U+FFFD.
std::string Marked(std::string_view bytes) {
  std::string text = Replace(bytes);
  for (size_t at = 0; (at = text.find(kReplacementCharacter, at)) != std::string::npos; ++at) {
    text = text.substr(0, at) + "?" + text.substr(at + kReplacementCharacter.size());
  }
  return text;
}

TEST(Utf8Test, EveryScalarValueIsKept) {
  std::string all;
  for (uint32_t c = 0; c <= 0x10FFFF; ++c) {
    if (c < 0xD800 || c > 0xDFFF) all += Utf8Reference::Encode(c);
  }
  EXPECT_TRUE(Replace(all) == all);
  EXPECT_TRUE(Utf8Reference::IsValid(all));
}

TEST(Utf8Test, IllFormedSubsequencesAsTheStandardShowsThem) {
  // Unicode 15, tables 3-8 to 3-11.
  EXPECT_EQ(Marked("\xC0\xAF\xE0\x80\xBF\xF0\x81\x82"
                   "A"),
            "????????A");
  EXPECT_EQ(Marked("\xED\xA0\x80\xED\xBF\xBF\xED\xAF"
                   "A"),
            "????????A");
  EXPECT_EQ(Marked("\xF4\x91\x92\x93\xFF"
                   "A"
                   "\x80\xBF"
                   "B"),
            "?????A??B");
  EXPECT_EQ(Marked("\xE1\x80\xE2\xF0\x91\x92\xF1\xBF"
                   "A"),
            "????A");
}

TEST(Utf8Test, KindsOfIllFormedBytes) {
  EXPECT_EQ(Marked(""), "");
  EXPECT_EQ(Marked("\x80"), "?");                 // a continuation alone
  EXPECT_EQ(Marked("\xC3"), "?");                 // cut
  EXPECT_EQ(Marked("\xE2\x82"), "?");             // cut, one subpart
  EXPECT_EQ(Marked("\xF0\x9F\x98"), "?");         // cut, one subpart
  EXPECT_EQ(Marked("\xF0\x9F\x98z"), "?z");       // interrupted
  EXPECT_EQ(Marked("\xC1\x81"), "??");            // overlong
  EXPECT_EQ(Marked("\xE0\x9F\xBF"), "???");       // overlong
  EXPECT_EQ(Marked("\xF0\x8F\xBF\xBF"), "????");  // overlong
  EXPECT_EQ(Marked("\xED\xA0\x80"), "???");       // surrogate
  EXPECT_EQ(Marked("\xF4\x90\x80\x80"), "????");  // above U+10FFFF
  EXPECT_EQ(Marked("\xF5\x80\x80\x80"), "????");  // above U+10FFFF
  EXPECT_EQ(Marked("\xFE\xFF"), "??");
  EXPECT_EQ(Marked(std::string_view("a\0b", 3)), std::string("a\0b", 3));
}

TEST(Utf8Test, AllStringsOfUpToThreeBytesAgreeWithTheReference) {
  std::string bytes;
  for (int a = 0; a < 256; ++a) {
    bytes.assign(1, static_cast<char>(a));
    ASSERT_EQ(Replace(bytes), Utf8Reference::Decode(bytes)) << a;
    for (int b = 0; b < 256; ++b) {
      bytes.resize(1);
      bytes += static_cast<char>(b);
      ASSERT_EQ(Replace(bytes), Utf8Reference::Decode(bytes)) << a << " " << b;
      // The third byte: the ends of every range that the encoding distinguishes.
      for (const int c :
           {0x00, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xC2, 0xE0, 0xED, 0xF4, 0xFF}) {
        bytes.resize(2);
        bytes += static_cast<char>(c);
        ASSERT_EQ(Replace(bytes), Utf8Reference::Decode(bytes)) << a << " " << b << " " << c;
      }
    }
  }
}

// Bytes from which characters, broken ones and near misses come about often.
std::string RandomBytes(std::mt19937& random, size_t length) {
  constexpr unsigned char kAwkward[] = {'a',  0x00, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0,
                                        0xBF, 0xC0, 0xC1, 0xC2, 0xDF, 0xE0, 0xE2, 0xED,
                                        0xEF, 0xF0, 0xF1, 0xF3, 0xF4, 0xF5, 0xFF};
  std::string bytes;
  while (bytes.size() < length) {
    if (random() % 3 == 0) {
      const uint32_t c = static_cast<uint32_t>(random()) % 0x110000;
      bytes += Utf8Reference::Encode(c);  // surrogates included, encoded as if they were characters
    } else {
      bytes += static_cast<char>(kAwkward[random() % sizeof(kAwkward)]);
    }
  }
  return bytes.substr(0, length);
}

TEST(Utf8Test, AnySplitOfAnyBytesGivesTheSameAsAllAtOnce) {
  std::mt19937 random(20240601);
  for (int round = 0; round < 20'000; ++round) {
    const std::string bytes = RandomBytes(random, random() % 24);
    const std::string expected = Utf8Reference::Decode(bytes);
    ASSERT_EQ(Replace(bytes), expected);
    ASSERT_TRUE(Utf8Reference::IsValid(expected));

    std::string text, pending;
    for (size_t begin = 0; begin < bytes.size();) {
      const size_t length = std::min<size_t>(random() % 5, bytes.size() - begin);
      const std::string piece = pending + bytes.substr(begin, length);
      const DecodedUtf8 decoded = DecodeUtf8(piece, Utf8Tail::kHoldBack);
      ASSERT_TRUE(Utf8Reference::IsValid(decoded.text));
      ASSERT_LE(decoded.tail.size(), 3u);
      text += decoded.text;
      pending = std::string(decoded.tail);
      begin += length;
    }
    ASSERT_EQ(text + Replace(pending), expected);
  }
}

TEST(Utf8Test, NothingIsHeldBackThatIsDecided) {
  EXPECT_EQ(DecodeUtf8("ab", Utf8Tail::kHoldBack).tail, "");
  EXPECT_EQ(DecodeUtf8("a\xF0\x9F\x98", Utf8Tail::kHoldBack).tail, "\xF0\x9F\x98");
  EXPECT_EQ(DecodeUtf8("a\xE2\x82", Utf8Tail::kHoldBack).text, "a");
  EXPECT_EQ(DecodeUtf8("\xF4\x90", Utf8Tail::kHoldBack).tail, "");  // can never become a character
  EXPECT_EQ(DecodeUtf8("\xED\xA0", Utf8Tail::kHoldBack).tail, "");
  EXPECT_EQ(DecodeUtf8("\xFF", Utf8Tail::kHoldBack).tail, "");
}

}  // namespace
}  // namespace bst
