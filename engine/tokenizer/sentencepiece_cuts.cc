#include "engine/tokenizer/sentencepiece_cuts.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>

namespace bst {
namespace {

constexpr std::string_view kSpaceSymbol = "\xE2\x96\x81";  // U+2581

bool IsAsciiAlphanumeric(uint32_t c) {
  return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z');
}

// The fields of a serialized Protobuf message, one after the other. The library's own classes are
// behind its wall (sentencepiece_model.h).
class ProtoFields {
 public:
  explicit ProtoFields(std::string_view message) : rest_(message) {}

  // False at the end, or where the message is broken.
  bool Next() {
    if (rest_.empty()) return false;
    uint64_t tag = 0;
    if (!Varint(tag)) return Broken();
    number = tag >> 3;
    bytes = {};
    value = 0;
    switch (tag & 7) {
      case 0:
        return Varint(value) || Broken();
      case 1:
        return Take(8) || Broken();
      case 2: {
        uint64_t length = 0;
        return (Varint(length) && Take(length)) || Broken();
      }
      case 5:
        return Take(4) || Broken();
      default:
        return Broken();
    }
  }
  bool broken() const { return broken_; }

  uint64_t number = 0;
  uint64_t value = 0;      // of a number
  std::string_view bytes;  // of a string or a message

 private:
  bool Broken() {
    broken_ = true;
    return false;
  }
  bool Varint(uint64_t& result) {
    result = 0;
    for (int shift = 0; shift < 64 && !rest_.empty(); shift += 7) {
      const auto byte = static_cast<unsigned char>(rest_.front());
      rest_.remove_prefix(1);
      result |= static_cast<uint64_t>(byte & 0x7F) << shift;
      if (byte < 0x80) return true;
    }
    return false;
  }
  bool Take(uint64_t length) {
    if (length > rest_.size()) return false;
    bytes = rest_.substr(0, length);
    rest_.remove_prefix(length);
    return true;
  }

  std::string_view rest_;
  bool broken_ = false;
};

// What of sentencepiece_model.proto the proof needs, with that file's numbers and defaults.
struct Facts {
  bool is_bpe = false;
  bool space_is_suffix = false;
  bool adds_space_in_front = true;
  bool collapses_spaces = true;
  bool escapes_spaces = true;
  std::string_view rules;  // of the normalizer: precompiled_charsmap

  bool space_inside_piece = false;  // behind another character
  bool has_space_piece = false;
  bool has_unused_piece = false;
  bool space_in_symbol = false;  // in a user-defined piece
};

bool HasSpaceBehindAnother(std::string_view piece) {
  bool other = false;
  while (!piece.empty()) {
    const bool symbol = piece.substr(0, kSpaceSymbol.size()) == kSpaceSymbol;
    const bool space = symbol || piece.front() == ' ';
    if (space && other) return true;
    other |= !space;
    piece.remove_prefix(symbol ? kSpaceSymbol.size() : 1);
  }
  return false;
}

void ReadPiece(std::string_view message, Facts& facts) {
  constexpr uint64_t kNormal = 1, kUserDefined = 4, kUnused = 5;
  std::string_view piece;
  uint64_t type = kNormal;
  ProtoFields field(message);
  while (field.Next()) {
    if (field.number == 1) piece = field.bytes;
    if (field.number == 3) type = field.value;
  }
  const bool has_space = piece.find(' ') != std::string_view::npos ||
                         piece.find(kSpaceSymbol) != std::string_view::npos;
  facts.space_inside_piece |= field.broken() || HasSpaceBehindAnother(piece);
  facts.has_unused_piece |= type == kUnused;
  facts.space_in_symbol |= type == kUserDefined && has_space;
  facts.has_space_piece |= piece == kSpaceSymbol && (type == kNormal || type == kUserDefined);
}

bool ReadModel(std::string_view serialized, Facts& facts) {
  constexpr uint64_t kBpe = 2;
  ProtoFields field(serialized);
  while (field.Next()) {
    if (field.number == 1) ReadPiece(field.bytes, facts);
    if (field.number != 2 && field.number != 3) continue;
    const bool trainer = field.number == 2;  // else the normalizer
    ProtoFields spec(field.bytes);
    while (spec.Next()) {
      if (trainer && spec.number == 3) facts.is_bpe = spec.value == kBpe;
      if (trainer && spec.number == 24) facts.space_is_suffix = spec.value != 0;
      if (!trainer && spec.number == 2) facts.rules = spec.bytes;
      if (!trainer && spec.number == 3) facts.adds_space_in_front = spec.value != 0;
      if (!trainer && spec.number == 4) facts.collapses_spaces = spec.value != 0;
      if (!trainer && spec.number == 5) facts.escapes_spaces = spec.value != 0;
    }
    if (spec.broken()) return false;
  }
  return !field.broken();
}

// The normalizer's rules: a trie of what is replaced, as a double array (Darts-clone), and what it
// is replaced by. A unit holds the character that leads to it, so one pass over all units meets
// every rule, whether its unit can be reached or not.
class Rules {
 public:
  explicit Rules(std::string_view charsmap) {
    uint32_t bytes = 0;
    if (charsmap.size() < sizeof(bytes)) return;
    std::memcpy(&bytes, charsmap.data(), sizeof(bytes));
    charsmap.remove_prefix(sizeof(bytes));
    if (bytes > charsmap.size() || bytes % sizeof(uint32_t) != 0 || bytes == 0) return;
    units_ = charsmap.substr(0, bytes);
    texts_ = charsmap.substr(bytes);
  }

  // No rule has a space beside an ASCII letter or digit; one that ends with such a character gives
  // a text that ends with no space; a space alone stays one.
  bool LeaveSpacesBetweenWordsAlone() const {
    if (units_.empty()) return false;
    for (size_t i = 0; i < size(); ++i) {
      const uint32_t label = Label(i);
      if (IsAsciiAlphanumeric(label)) {
        if (Child(i, ' ').has_value()) return false;
        if (EndsRule(i) && !EndsWithoutSpace(Text(i))) return false;
      } else if (label == ' ') {
        for (uint32_t c = '0'; c <= 'z'; ++c) {
          if (IsAsciiAlphanumeric(c) && Child(i, c).has_value()) return false;
        }
      }
    }
    const std::optional<size_t> space = Child(0, ' ');
    return !space.has_value() || !EndsRule(*space) || Text(*space) == " ";
  }

 private:
  size_t size() const { return units_.size() / sizeof(uint32_t); }
  uint32_t Unit(size_t i) const {
    uint32_t unit = 0;
    std::memcpy(&unit, units_.data() + i * sizeof(unit), sizeof(unit));
    return unit;
  }
  // Of a unit that holds a rule's text: no character.
  uint32_t Label(size_t i) const { return Unit(i) & 0x8000'00FFu; }
  bool EndsRule(size_t i) const { return (Unit(i) >> 8 & 1) != 0; }
  size_t Base(size_t i) const {
    const uint32_t unit = Unit(i);
    return i ^ (size_t{unit >> 10} << ((unit & (1u << 9)) >> 6));
  }
  std::optional<size_t> Child(size_t i, uint32_t c) const {
    const size_t child = Base(i) ^ c;
    if (child >= size() || Label(child) != c) return std::nullopt;
    return child;
  }
  std::optional<std::string_view> Text(size_t i) const {
    if (Base(i) >= size()) return std::nullopt;
    const size_t begin = Unit(Base(i)) & 0x7FFF'FFFFu;
    if (begin >= texts_.size()) return std::nullopt;
    return texts_.substr(begin, texts_.find('\0', begin) - begin);
  }
  static bool EndsWithoutSpace(const std::optional<std::string_view>& text) {
    return text.has_value() && !text->empty() && text->back() != ' ' &&
           (text->size() < kSpaceSymbol.size() ||
            text->substr(text->size() - kSpaceSymbol.size()) != kSpaceSymbol);
  }

  std::string_view units_, texts_;
};

}  // namespace

SpaceCuts SpaceCuts::Of(std::string_view serialized) {
  Facts facts;
  if (!ReadModel(serialized, facts)) return {};
  SpaceCuts cuts;
  cuts.ascii_sides = !facts.rules.empty();
  cuts.drop_space = facts.adds_space_in_front;
  const bool space_comes_back = facts.adds_space_in_front || !facts.collapses_spaces;
  const bool normalizes_alike =
      facts.escapes_spaces && !facts.space_is_suffix &&
      (facts.rules.empty() ||
       (!facts.space_in_symbol && Rules(facts.rules).LeaveSpacesBetweenWordsAlone()));
  const bool encodes_alike =
      facts.is_bpe && !facts.space_inside_piece && facts.has_space_piece && !facts.has_unused_piece;
  cuts.exist = space_comes_back && normalizes_alike && encodes_alike;
  return cuts;
}

std::optional<size_t> SpaceCuts::Last(std::string_view text, size_t from) const {
  if (!exist || text.size() < 3) return std::nullopt;
  for (size_t i = text.size() - 2; i >= std::max<size_t>(from, 1); --i) {
    if (text[i] != ' ') continue;
    const auto before = static_cast<unsigned char>(text[i - 1]);
    const auto behind = static_cast<unsigned char>(text[i + 1]);
    if (ascii_sides && !(IsAsciiAlphanumeric(before) && IsAsciiAlphanumeric(behind))) continue;
    if (before == ' ' || behind == ' ') continue;
    // The symbol itself in the text is one more space to the model.
    if (i >= kSpaceSymbol.size() &&
        text.substr(i - kSpaceSymbol.size(), kSpaceSymbol.size()) == kSpaceSymbol) {
      continue;
    }
    return i;
  }
  return std::nullopt;
}

}  // namespace bst
