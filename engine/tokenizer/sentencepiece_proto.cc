#include "engine/tokenizer/sentencepiece_proto.h"

#include <cstring>
#include <limits>

namespace bst {

bool ProtoFields::Next() {
  if (rest_.empty()) return false;
  uint64_t tag = 0;
  // Protobuf drops what a tag has beyond 32 bits: another field to it than to us.
  if (!Varint(tag) || tag > std::numeric_limits<uint32_t>::max()) return Broken();
  number_ = static_cast<uint32_t>(tag >> 3);
  kind_ = Kind::kFixed;
  bytes_ = {};
  value_ = 0;
  switch (tag & 7) {
    case 0:
      kind_ = Kind::kNumber;
      return Varint(value_) || Broken();
    case 1:
      return Take(8) || Broken();
    case 2: {
      kind_ = Kind::kBytes;
      uint64_t length = 0;
      return (Varint(length) && Take(length)) || Broken();
    }
    case 5:
      return Take(4) || Broken();
    default:
      return Broken();
  }
}

bool ProtoFields::Broken() {
  broken_ = true;
  return false;
}

bool ProtoFields::Varint(uint64_t& result) {
  result = 0;
  for (int shift = 0; shift < 64 && !rest_.empty(); shift += 7) {
    const auto byte = static_cast<unsigned char>(rest_.front());
    rest_.remove_prefix(1);
    result |= static_cast<uint64_t>(byte & 0x7F) << shift;
    if (byte < 0x80) return true;
  }
  return false;
}

bool ProtoFields::Take(uint64_t length) {
  if (length > rest_.size()) return false;
  bytes_ = rest_.substr(0, length);
  rest_.remove_prefix(length);
  return true;
}

std::optional<CharsMap> CharsMap::Parse(std::string_view charsmap) {
  uint32_t bytes = 0;
  if (charsmap.size() < sizeof(bytes)) return std::nullopt;
  std::memcpy(&bytes, charsmap.data(), sizeof(bytes));
  charsmap.remove_prefix(sizeof(bytes));
  if (bytes > charsmap.size() || bytes % sizeof(uint32_t) != 0 || bytes == 0) return std::nullopt;
  return CharsMap(charsmap.substr(0, bytes), charsmap.substr(bytes));
}

uint32_t CharsMap::Unit(size_t i) const {
  uint32_t unit = 0;
  std::memcpy(&unit, units_.data() + i * sizeof(unit), sizeof(unit));
  return unit;
}

size_t CharsMap::Base(size_t i) const {
  const uint32_t unit = Unit(i);
  return i ^ (size_t{unit >> 10} << ((unit & (1u << 9)) >> 6));
}

std::optional<size_t> CharsMap::Child(size_t i, uint32_t c) const {
  const size_t child = Base(i) ^ c;
  if (child >= size() || Label(child) != c) return std::nullopt;
  return child;
}

std::optional<std::string_view> CharsMap::Text(size_t i) const {
  if (Base(i) >= size()) return std::nullopt;
  const size_t begin = Unit(Base(i)) & 0x7FFF'FFFFu;
  if (begin >= texts_.size()) return std::nullopt;
  const size_t end = texts_.find('\0', begin);
  if (end == std::string_view::npos) return std::nullopt;
  return texts_.substr(begin, end - begin);
}

}  // namespace bst
