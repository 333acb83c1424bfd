// DecodeUtf8: any bytes -> valid UTF-8, with U+FFFD for what is ill-formed.
//
// One U+FFFD per maximal subpart of an ill-formed subsequence, as the Unicode standard (3.9,
// "U+FFFD Substitution of Maximal Subparts") and the W3C encoding standard have it: overlong forms,
// surrogates and code points above U+10FFFF are ill-formed from their second byte on.
//
// Threads   Pure function.
// Tested by tests/engine/tokenizer/utf8_test.cc, tests/fuzz/utf8_fuzz.cc
#pragma once

#include <string>
#include <string_view>

namespace bst {

// U+FFFD in UTF-8.
inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";

// What to do with bytes at the end that more bytes could complete to a character.
enum class Utf8Tail { kHoldBack, kReplace };

struct DecodedUtf8 {
  std::string text;       // valid UTF-8
  std::string_view tail;  // kHoldBack: the end of the input that is not in `text`, at most 3 bytes
};

DecodedUtf8 DecodeUtf8(std::string_view bytes, Utf8Tail tail);

}  // namespace bst
