// libbst_sentencepiece.so: SentencePieceModel on the SentencePiece library.
#include <sentencepiece_processor.h>

#include <exception>
#include <new>
#include <utility>

#include "engine/tokenizer/sentencepiece_model.h"

namespace bst {
namespace {

constexpr std::string_view kSpaceSymbol = "\xE2\x96\x81";  // U+2581

// The value of a byte piece, "<0x0A>".
std::string ByteOfPiece(const std::string& piece) {
  const auto digit = [](char c) { return c <= '9' ? c - '0' : (c | 0x20) - 'a' + 10; };
  if (piece.size() != 6) return "";
  return std::string(1, static_cast<char>(digit(piece[3]) * 16 + digit(piece[4])));
}

class ProcessorModel final : public SentencePieceModel {
 public:
  explicit ProcessorModel(std::unique_ptr<sentencepiece::SentencePieceProcessor> processor)
      : processor_(std::move(processor)) {}

  int num_pieces() const override;
  Result<std::vector<int>> Encode(std::string_view text) const override;
  std::string PieceBytes(int id) const override;
  bool BeginsWithSpace(int id) const override;
  bool DropsFirstSpace() const override;

 private:
  bool HasText(int id) const;

  std::unique_ptr<sentencepiece::SentencePieceProcessor> processor_;
};

int ProcessorModel::num_pieces() const { return processor_->GetPieceSize(); }

SentencePieceModel::Result<std::vector<int>> ProcessorModel::Encode(std::string_view text) const {
  try {
    std::vector<int> ids;
    const auto status = processor_->Encode(text, &ids);
    if (!status.ok()) return Failure{status.ToString()};
    return ids;
  } catch (const std::bad_alloc&) {
    return Failure{"not enough memory", /*is_out_of_memory=*/true};
  } catch (const std::exception& error) {
    return Failure{error.what()};
  }
}

bool ProcessorModel::HasText(int id) const {
  return !processor_->IsControl(id) && !processor_->IsUnknown(id) && !processor_->IsUnused(id);
}

std::string ProcessorModel::PieceBytes(int id) const {
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

bool ProcessorModel::BeginsWithSpace(int id) const {
  return HasText(id) && !processor_->IsByte(id) &&
         processor_->IdToPiece(id).compare(0, kSpaceSymbol.size(), kSpaceSymbol) == 0;
}

// The flag lies in the model's Protobuf, whose header is not installed; its effect is asked for.
bool ProcessorModel::DropsFirstSpace() const {
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

}  // namespace

extern "C" __attribute__((visibility("default"))) void BstLoadSentencePieceModel(
    const std::string& serialized,
    SentencePieceModel::Result<std::unique_ptr<SentencePieceModel>>& result) {
  try {
    auto processor = std::make_unique<sentencepiece::SentencePieceProcessor>();
    const auto status = processor->LoadFromSerializedProto(serialized);
    if (!status.ok()) {
      result = SentencePieceModel::Failure{status.ToString()};
      return;
    }
    result = std::unique_ptr<SentencePieceModel>(new ProcessorModel(std::move(processor)));
  } catch (const std::exception& error) {
    result = SentencePieceModel::Failure{error.what()};
  }
}

}  // namespace bst
