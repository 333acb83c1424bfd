// Utf8Reference: the slow and obvious twin of DecodeUtf8, by arithmetic on code points rather than
// by ranges of bytes.
//
// At each place: the bytes that are the shortest encoding of a scalar value are a character. Else
// the longest prefix of the encoding of any scalar value is one U+FFFD, and if there is none, the
// byte is.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace bst {

class Utf8Reference {
 public:
  static std::string Decode(std::string_view bytes) {
    std::string text;
    while (!bytes.empty()) {
      size_t length = 0;
      bool whole = false;
      for (size_t n = 1; n <= std::min<size_t>(4, bytes.size()); ++n) {
        if (!BeginsCharacter(bytes.substr(0, n))) break;
        length = n;
        whole = n == CharacterLength(bytes);
        if (whole) break;
      }
      text += whole ? std::string(bytes.substr(0, length)) : "\xEF\xBF\xBD";
      bytes.remove_prefix(std::max<size_t>(length, 1));
    }
    return text;
  }

  static bool IsValid(std::string_view bytes) { return Decode(bytes) == bytes; }

  // The bytes of a code point; surrogates are encoded as if they were characters.
  static std::string Encode(uint32_t c) {
    const auto byte = [](uint32_t x) { return std::string(1, static_cast<char>(x)); };
    if (c < 0x80) return byte(c);
    if (c < 0x800) return byte(0xC0 | c >> 6) + byte(0x80 | (c & 63));
    if (c < 0x10000)
      return byte(0xE0 | c >> 12) + byte(0x80 | (c >> 6 & 63)) + byte(0x80 | (c & 63));
    return byte(0xF0 | c >> 18) + byte(0x80 | (c >> 12 & 63)) + byte(0x80 | (c >> 6 & 63)) +
           byte(0x80 | (c & 63));
  }

 private:
  static uint32_t At(std::string_view bytes, size_t i) {
    return static_cast<unsigned char>(bytes[i]);
  }

  // As the number of leading one bits says; 0 where that says nothing.
  static size_t CharacterLength(std::string_view bytes) {
    const uint32_t lead = At(bytes, 0);
    if (lead < 0x80) return 1;
    if (lead >> 5 == 6) return 2;
    if (lead >> 4 == 14) return 3;
    if (lead >> 3 == 30) return 4;
    return 0;
  }

  // Whether some scalar value's encoding begins with `bytes`: these bytes fix its leading bits,
  // hence a range of code points, which has to meet those that need so many bytes and are no
  // surrogates.
  static bool BeginsCharacter(std::string_view bytes) {
    const size_t length = CharacterLength(bytes);
    if (length == 0 || bytes.size() > length) return false;
    constexpr uint32_t kLeadBits[] = {0, 0x7F, 0x1F, 0x0F, 0x07};
    constexpr uint32_t kSmallest[] = {0, 0, 0x80, 0x800, 0x10000};
    uint32_t low = At(bytes, 0) & kLeadBits[length];
    uint32_t high = low;
    for (size_t i = 1; i < length; ++i) {
      if (i < bytes.size() && At(bytes, i) >> 6 != 2) return false;
      low = low << 6 | (i < bytes.size() ? At(bytes, i) & 63 : 0);
      high = high << 6 | (i < bytes.size() ? At(bytes, i) & 63 : 63);
    }
    low = std::max(low, kSmallest[length]);
    high = std::min(high, uint32_t{0x10FFFF});
    const bool only_surrogates = low >= 0xD800 && high <= 0xDFFF;
    return low <= high && !only_surrogates;
  }
};

}  // namespace bst
