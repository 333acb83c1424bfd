#include "engine/tokenizer/sentencepiece_model.h"

#include <sentencepiece_processor.h>

#include <exception>
#include <utility>

namespace bst {
namespace {

constexpr std::string_view kSpaceSymbol = "\xE2\x96\x81";  // U+2581

// The value of a byte piece, "<0x0A>".
std::string ByteOfPiece(const std::string& piece) {
  const auto digit = [](char c) { return c <= '9' ? c - '0' : (c | 0x20) - 'a' + 10; };
  if (piece.size() != 6) return "";
  return std::string(1, static_cast<char>(digit(piece[3]) * 16 + digit(piece[4])));
}

}  // namespace

SentencePieceModel::SentencePieceModel(
    std::unique_ptr<sentencepiece::SentencePieceProcessor> processor)
    : processor_(std::move(processor)) {}

SentencePieceModel::~SentencePieceModel() = default;

SentencePieceModel::Result<std::unique_ptr<SentencePieceModel>> SentencePieceModel::Load(
    const std::string& serialized) {
  try {
    auto processor = std::make_unique<sentencepiece::SentencePieceProcessor>();
    const auto status = processor->LoadFromSerializedProto(serialized);
    if (!status.ok()) return Failure{status.ToString()};
    return std::unique_ptr<SentencePieceModel>(new SentencePieceModel(std::move(processor)));
  } catch (const std::exception& error) {
    return Failure{error.what()};
  }
}

int SentencePieceModel::num_pieces() const { return processor_->GetPieceSize(); }

SentencePieceModel::Result<std::vector<int>> SentencePieceModel::Encode(
    std::string_view text) const {
  try {
    std::vector<int> ids;
    const auto status = processor_->Encode(text, &ids);
    if (!status.ok()) return Failure{status.ToString()};
    return ids;
  } catch (const std::exception& error) {
    return Failure{error.what()};
  }
}

bool SentencePieceModel::HasText(int id) const {
  return !processor_->IsControl(id) && !processor_->IsUnknown(id) && !processor_->IsUnused(id);
}

std::string SentencePieceModel::PieceBytes(int id) const {
  if (!HasText(id)) return "";
  const std::string& piece = processor_->IdToPiece(id);
  if (processor_->IsByte(id)) return ByteOfPiece(piece);
  std::string bytes;
  size_t begin = 0;
  for (size_t at; (at = piece.find(kSpaceSymbol, begin)) != std::string::npos;) {
    bytes.append(piece, begin, at - begin).push_back(' ');
    begin = at + kSpaceSymbol.size();
  }
  return bytes.append(piece, begin);
}

bool SentencePieceModel::BeginsWithSpace(int id) const {
  return HasText(id) && !processor_->IsByte(id) &&
         processor_->IdToPiece(id).compare(0, kSpaceSymbol.size(), kSpaceSymbol) == 0;
}

// The flag lies in the model's Protobuf, whose header is not installed; its effect is asked for.
bool SentencePieceModel::DropsFirstSpace() const {
  for (int id = 0; id < num_pieces(); ++id) {
    if (!BeginsWithSpace(id)) continue;
    std::string text;
    try {
      if (!processor_->Decode(std::vector<int>{id}, &text).ok()) return false;
    } catch (const std::exception&) {
      return false;
    }
    return text.empty() || text.front() != ' ';
  }
  return false;
}

}  // namespace bst
