#include "engine/tokenizer/sentencepiece_cuts.h"

#include <algorithm>
#include <cstdint>
#include <string>

#include "engine/tokenizer/sentencepiece_proto.h"

namespace bst {
namespace {

constexpr std::string_view kSpaceSymbol = "\xE2\x96\x81";  // U+2581

bool IsAsciiAlphanumeric(uint32_t c) {
  return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z');
}

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
    if (field.IsBytes(1)) piece = field.bytes();
    if (field.IsNumber(3)) type = field.value();
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
    if (field.IsBytes(1)) ReadPiece(field.bytes(), facts);
    const bool trainer = field.IsBytes(2), normalizer = field.IsBytes(3);
    if (!trainer && !normalizer) continue;
    ProtoFields spec(field.bytes());
    while (spec.Next()) {
      if (trainer && spec.IsNumber(3)) facts.is_bpe = spec.value() == kBpe;
      if (trainer && spec.IsNumber(24)) facts.space_is_suffix = spec.value() != 0;
      if (normalizer && spec.IsBytes(2)) facts.rules = spec.bytes();
      if (normalizer && spec.IsNumber(3)) facts.adds_space_in_front = spec.value() != 0;
      if (normalizer && spec.IsNumber(4)) facts.collapses_spaces = spec.value() != 0;
      if (normalizer && spec.IsNumber(5)) facts.escapes_spaces = spec.value() != 0;
    }
    if (spec.broken()) return false;
  }
  return !field.broken();
}

bool EndsWithoutSpace(const std::optional<std::string_view>& text) {
  return text.has_value() && !text->empty() && text->back() != ' ' &&
         (text->size() < kSpaceSymbol.size() ||
          text->substr(text->size() - kSpaceSymbol.size()) != kSpaceSymbol);
}

// No rule has a space beside an ASCII letter or digit; one that ends with such a character gives a
// text that ends with no space; a space alone stays one. A unit holds the character that leads to
// it, so one pass over all units meets every rule, whether its unit can be reached or not.
bool LeaveSpacesBetweenWordsAlone(std::string_view charsmap) {
  const std::optional<CharsMap> rules = CharsMap::Parse(charsmap);
  if (!rules.has_value()) return false;
  for (size_t i = 0; i < rules->size(); ++i) {
    const uint32_t label = rules->Label(i);
    if (IsAsciiAlphanumeric(label)) {
      if (rules->Child(i, ' ').has_value()) return false;
      if (rules->EndsRule(i) && !EndsWithoutSpace(rules->Text(i))) return false;
    } else if (label == ' ') {
      for (uint32_t c = '0'; c <= 'z'; ++c) {
        if (IsAsciiAlphanumeric(c) && rules->Child(i, c).has_value()) return false;
      }
    }
  }
  const std::optional<size_t> space = rules->Child(0, ' ');
  return !space.has_value() || !rules->EndsRule(*space) || rules->Text(*space) == " ";
}

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
       (!facts.space_in_symbol && LeaveSpacesBetweenWordsAlone(facts.rules)));
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
