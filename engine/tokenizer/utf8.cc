#include "engine/tokenizer/utf8.h"

#include <cstddef>

namespace bst {
namespace {

// What may follow a lead byte (table 3-7 of the Unicode standard): only the second byte's range
// depends on the lead; later ones are 80..BF.
struct Lead {
  size_t length = 0;  // of the character; 0: no character begins with this byte
  unsigned char second_min = 0x80, second_max = 0xBF;
};

Lead LeadOf(unsigned char byte) {
  if (byte < 0x80) return {1};
  if (byte < 0xC2) return {0};
  if (byte < 0xE0) return {2};
  if (byte == 0xE0) return {3, 0xA0, 0xBF};
  if (byte == 0xED) return {3, 0x80, 0x9F};
  if (byte < 0xF0) return {3};
  if (byte == 0xF0) return {4, 0x90, 0xBF};
  if (byte < 0xF4) return {4};
  if (byte == 0xF4) return {4, 0x80, 0x8F};
  return {0};
}

// The longest prefix of `bytes` that begins a character of this lead: all of it, or a proper part.
size_t WellFormedPrefix(std::string_view bytes, const Lead& lead) {
  size_t count = 1;
  while (count < lead.length && count < bytes.size()) {
    const auto byte = static_cast<unsigned char>(bytes[count]);
    const unsigned char min = count == 1 ? lead.second_min : 0x80;
    const unsigned char max = count == 1 ? lead.second_max : 0xBF;
    if (byte < min || byte > max) break;
    ++count;
  }
  return count;
}

}  // namespace

DecodedUtf8 DecodeUtf8(std::string_view bytes, Utf8Tail tail) {
  DecodedUtf8 result;
  result.text.reserve(bytes.size());
  while (!bytes.empty()) {
    const Lead lead = LeadOf(static_cast<unsigned char>(bytes.front()));
    const size_t count = WellFormedPrefix(bytes, lead);
    if (count == lead.length) {
      result.text.append(bytes.substr(0, count));
    } else if (lead.length > 0 && count == bytes.size() && tail == Utf8Tail::kHoldBack) {
      result.tail = bytes;
      return result;
    } else {
      result.text.append(kReplacementCharacter);
    }
    bytes.remove_prefix(count);
  }
  return result;
}

}  // namespace bst
