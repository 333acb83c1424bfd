// What we read ourselves of a tokenizer.model file, any bytes: the fields of its Protobuf messages
// and the rules of its normalizers. The library's own classes are behind its wall
// (sentencepiece_model.h).
//
// Ownership  Views of the file's bytes, which must outlive them.
// Threads    Thread-compatible.
// Tested by  tests/engine/tokenizer/sentencepiece_check_test.cc, stream_encoder_test.cc,
//            tests/fuzz/tokenizer_fuzz.cc
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace bst {

// The fields of one message, one after the other, as Protobuf meets them: what it takes for a field
// is never hidden from a caller, up to where one of the two finds the message broken.
class ProtoFields {
 public:
  explicit ProtoFields(std::string_view message) : rest_(message) {}

  // False at the end, or where the message is broken.
  bool Next();
  bool broken() const { return broken_; }

  // The current field: its number, and whether it is of one of the two kinds that a model needs.
  bool IsBytes(uint32_t number) const { return number_ == number && kind_ == Kind::kBytes; }
  bool IsNumber(uint32_t number) const { return number_ == number && kind_ == Kind::kNumber; }
  std::string_view bytes() const { return bytes_; }  // of a string or a message
  uint64_t value() const { return value_; }          // of a number

 private:
  enum class Kind { kNumber, kBytes, kFixed };

  bool Broken();
  bool Varint(uint64_t& result);
  bool Take(uint64_t length);

  std::string_view rest_;
  uint32_t number_ = 0;
  Kind kind_ = Kind::kFixed;
  uint64_t value_ = 0;
  std::string_view bytes_;
  bool broken_ = false;
};

// The rules of a normalizer (`precompiled_charsmap`): a trie of what is replaced, as a double array
// (Darts-clone), and what it is replaced by, texts that end with NUL. A unit of the trie holds the
// character that leads to it; those that follow it lie within the 256 units of one base.
class CharsMap {
 public:
  // nullopt if it does not begin with a whole trie of at least one unit.
  static std::optional<CharsMap> Parse(std::string_view charsmap);

  size_t size() const { return units_.size() / sizeof(uint32_t); }
  // REQUIRES, here and below: i < size(). No character where the unit holds a rule's text.
  uint32_t Label(size_t i) const { return Unit(i) & 0x8000'00FFu; }
  bool EndsRule(size_t i) const { return (Unit(i) >> 8 & 1) != 0; }
  // May lie beyond the trie.
  size_t Base(size_t i) const;
  // The unit that character c leads to.
  std::optional<size_t> Child(size_t i, uint32_t c) const;
  // What the rule that ends at unit i puts; nullopt if that is no text here.
  std::optional<std::string_view> Text(size_t i) const;

 private:
  CharsMap(std::string_view units, std::string_view texts) : units_(units), texts_(texts) {}
  uint32_t Unit(size_t i) const;

  std::string_view units_, texts_;
};

}  // namespace bst
