#include "engine/tokenizer/sentencepiece_check.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/base/status_macros.h"
#include "engine/tokenizer/sentencepiece_proto.h"

namespace bst {
namespace {

template <typename... Parts>
absl::Status Refused(const Parts&... parts) {
  return absl::FailedPreconditionError(absl::StrCat(parts...));
}

// Every unit that a text can lead to. A trie of equal ends is a graph, and a hostile one has loops:
// a unit is visited again where more rules lead to it than before, so 32 times at most.
absl::Status CheckRules(std::string_view charsmap) {
  constexpr int kMaxNestedRules = 32;
  constexpr size_t kUnitsOfABase = 256;
  constexpr size_t kMaxUnits = size_t{1} << 20;  // those of the library's own rules are under 2^16
  const std::optional<CharsMap> rules = CharsMap::Parse(charsmap);
  if (!rules.has_value()) return Refused("it does not begin with a trie");
  if (rules->size() > kMaxUnits) {
    return Refused("its trie has ", rules->size(), " units, limit ", kMaxUnits);
  }
  std::vector<int> nested(rules->size(), -1);  // the most rules on a way to the unit; -1: no way
  nested[0] = 0;
  std::vector<size_t> reached = {0};
  while (!reached.empty()) {
    const size_t unit = reached.back();
    reached.pop_back();
    if ((rules->Base(unit) | (kUnitsOfABase - 1)) >= rules->size()) {
      return Refused("unit ", unit, " of its trie leads beyond the ", rules->size(), " units");
    }
    if (rules->EndsRule(unit)) {
      const std::optional<std::string_view> text = rules->Text(unit);
      if (!text.has_value()) return Refused("the rule of unit ", unit, " has no text that ends");
      if (text->size() > kMaxRuleTextBytes) {
        return Refused("the rule of unit ", unit, " has a text of ", text->size(), " bytes, limit ",
                       kMaxRuleTextBytes);
      }
    }
    for (uint32_t c = 0; c < kUnitsOfABase; ++c) {
      const std::optional<size_t> child = rules->Child(unit, c);
      if (!child.has_value()) continue;
      const int count = nested[unit] + (rules->EndsRule(*child) ? 1 : 0);
      if (count <= nested[*child]) continue;
      if (count > kMaxNestedRules) {
        return Refused("more than ", kMaxNestedRules, " rules begin with one another");
      }
      nested[*child] = count;
      reached.push_back(*child);
    }
  }
  return absl::OkStatus();
}

// `spec`: a NormalizerSpec.
absl::Status CheckNormalizer(std::string_view name, std::string_view spec) {
  ProtoFields field(spec);
  while (field.Next()) {
    if (!field.IsBytes(2) || field.bytes().empty()) continue;
    if (const absl::Status status = CheckRules(field.bytes()); !status.ok()) {
      return Refused("the precompiled_charsmap of its ", std::string(name),
                     " is broken: ", status.message());
    }
  }
  return field.broken() ? Refused("its ", std::string(name), " is broken") : absl::OkStatus();
}

// Adds a piece's text to `symbols` if it is user-defined. Fields that come twice count twice.
absl::Status CheckPiece(int index, std::string_view piece, std::vector<std::string_view>& symbols) {
  constexpr int32_t kUserDefined = 4;
  std::vector<std::string_view> texts;
  bool user_defined = false;
  ProtoFields field(piece);
  while (field.Next()) {
    if (field.IsBytes(1)) texts.push_back(field.bytes());
    user_defined |= field.IsNumber(3) && static_cast<int32_t>(field.value()) == kUserDefined;
  }
  if (field.broken()) return Refused("piece ", index, " is broken");
  for (const std::string_view text : texts) {
    if (text.size() > kMaxPieceBytes) {
      return Refused("piece ", index, " has ", text.size(), " bytes, limit ", kMaxPieceBytes);
    }
    // As the library reads it.
    if (user_defined) symbols.push_back(text.substr(0, text.find('\0')));
  }
  return absl::OkStatus();
}

absl::Status CheckSymbols(std::vector<std::string_view> symbols) {
  constexpr size_t kMaxNestedSymbols = 64;
  std::sort(symbols.begin(), symbols.end());
  std::vector<std::string_view> nested;  // each begins with the one before
  for (const std::string_view symbol : symbols) {
    while (!nested.empty() && symbol.substr(0, nested.back().size()) != nested.back()) {
      nested.pop_back();
    }
    if (symbol.empty() || (!nested.empty() && nested.back() == symbol)) continue;
    nested.push_back(symbol);
    if (nested.size() > kMaxNestedSymbols) {
      return Refused("more than ", kMaxNestedSymbols,
                     " user-defined pieces begin with one another");
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckSentencePieceModel(std::string_view serialized, int vocab_size) {
  int num_pieces = 0;
  std::vector<std::string_view> symbols;
  ProtoFields field(serialized);
  while (field.Next()) {
    if (field.IsBytes(1)) {
      BST_RETURN_IF_ERROR(CheckPiece(num_pieces++, field.bytes(), symbols));
    }
    if (field.IsBytes(3)) BST_RETURN_IF_ERROR(CheckNormalizer("normalizer", field.bytes()));
    if (field.IsBytes(5)) BST_RETURN_IF_ERROR(CheckNormalizer("denormalizer", field.bytes()));
  }
  if (field.broken()) return Refused("not a SentencePiece model: the message is broken");
  if (num_pieces > vocab_size) {
    return Refused(num_pieces, " pieces, but the vocabulary has ", vocab_size, " tokens");
  }
  return CheckSymbols(std::move(symbols));
}

}  // namespace bst
