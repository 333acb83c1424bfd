#include <malloc.h>

#include <algorithm>
#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "engine/base/annotate.h"
#include "engine/base/out_of_memory.h"
#include "engine/base/read_file.h"
#include "engine/base/status_macros.h"
#include "engine/tokenizer/sentencepiece_check.h"
#include "engine/tokenizer/sentencepiece_cuts.h"
#include "engine/tokenizer/sentencepiece_model.h"
#include "engine/tokenizer/stream_encoder.h"
#include "engine/tokenizer/tokenizer.h"
#include "engine/tokenizer/utf8.h"

namespace bst {
namespace {

class SentencePieceTokenizer final : public Tokenizer {
 public:
  SentencePieceTokenizer(std::unique_ptr<SentencePieceModel> model, SpaceCuts cuts, int vocab_size)
      : model_(std::move(model)), cuts_(cuts), vocab_size_(vocab_size) {
    const bool drops_first_space = model_->DropsFirstSpace();
    for (int id = 0; id < model_->num_pieces(); ++id) {
      pieces_.push_back({model_->PieceBytes(id), drops_first_space && model_->BeginsWithSpace(id)});
      max_token_bytes_ = std::max(max_token_bytes_, static_cast<int>(pieces_.back().bytes.size()));
    }
  }

  absl::StatusOr<std::vector<TokenId>> Encode(std::string_view text) const override {
    const Encoded encoded = EncodeOrWait(DecodeUtf8(text, Utf8Tail::kReplace).text);
    if (const auto* failure = std::get_if<SentencePieceModel::Failure>(&encoded)) {
      const std::string message = absl::StrCat("SentencePiece cannot encode: ", failure->message);
      return failure->is_out_of_memory ? absl::ResourceExhaustedError(message)
                                       : absl::InternalError(message);
    }
    std::vector<TokenId> tokens;
    for (const int id : std::get<std::vector<int>>(encoded)) tokens.emplace_back(id);
    return tokens;
  }

  std::optional<Cut> LastCut(std::string_view text, size_t from) const override {
    const std::optional<size_t> space = cuts_.Last(text, from);
    if (!space.has_value()) return std::nullopt;
    return Cut{*space, *space + (cuts_.drop_space ? 1 : 0)};
  }

  std::string TokenBytes(TokenId token, bool at_start) const override {
    if (token.value() < 0 || static_cast<size_t>(token.value()) >= pieces_.size()) return "";
    const Piece& piece = pieces_[static_cast<size_t>(token.value())];
    return at_start && piece.drops_space ? piece.bytes.substr(1) : piece.bytes;
  }

  int vocab_size() const override { return vocab_size_; }
  int max_token_bytes() const override { return max_token_bytes_; }

 private:
  using Encoded = SentencePieceModel::Result<std::vector<int>>;

  // Long texts one at a time, for the memory that each takes, which the C library would keep.
  Encoded EncodeOrWait(const std::string& text) const {
    if (text.size() <= 4 * StreamEncoder::kPieceBytes) return model_->Encode(text);
    absl::MutexLock lock(&long_text_);
    Encoded encoded = model_->Encode(text);
    malloc_trim(0);
    return encoded;
  }

  struct Piece {
    std::string bytes;
    bool drops_space;  // its first byte, a space, is dropped at the start of a text
  };

  std::unique_ptr<const SentencePieceModel> model_;
  const SpaceCuts cuts_;
  mutable absl::Mutex long_text_;
  std::vector<Piece> pieces_;
  int max_token_bytes_ = 1;
  const int vocab_size_;
};

absl::StatusOr<std::unique_ptr<Tokenizer>> Load(const std::string& path, int vocab_size) {
  constexpr size_t kMaxModelBytes = size_t{256} << 20;
  BST_ASSIGN_OR_RETURN(const std::string serialized, ReadTextFile(path, kMaxModelBytes));

  if (const absl::Status status = CheckSentencePieceModel(serialized, vocab_size); !status.ok()) {
    return Annotate(status, path);
  }
  auto loaded = SentencePieceModel::Load(serialized);
  if (const auto* failure = std::get_if<SentencePieceModel::Failure>(&loaded)) {
    return absl::FailedPreconditionError(absl::StrCat(path, ": ", failure->message));
  }
  return std::make_unique<SentencePieceTokenizer>(
      std::move(std::get<std::unique_ptr<SentencePieceModel>>(loaded)), SpaceCuts::Of(serialized),
      vocab_size);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::SentencePiece(const std::string& path,
                                                                    int vocab_size) {
  return OrResourceExhausted(path, [&] { return Load(path, vocab_size); });
}

}  // namespace bst
