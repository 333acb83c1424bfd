#include "engine/tokenizer/tokenizer.h"

namespace bst {
namespace {

class ByteTokenizer final : public Tokenizer {
 public:
  explicit ByteTokenizer(int vocab_size) : vocab_size_(vocab_size) {}

  absl::StatusOr<std::vector<TokenId>> Encode(std::string_view text) const override {
    std::vector<TokenId> tokens;
    tokens.reserve(text.size());
    for (const char c : text) tokens.emplace_back(static_cast<unsigned char>(c));
    return tokens;
  }

  std::optional<Cut> LastCut(std::string_view text, size_t /*from*/) const override {
    return Cut{text.size(), text.size()};
  }

  std::string TokenBytes(TokenId token, bool /*at_start*/) const override {
    if (token.value() < 0 || token.value() > 255) return "";
    return std::string(1, static_cast<char>(token.value()));
  }

  int vocab_size() const override { return vocab_size_; }
  int max_token_bytes() const override { return 1; }

 private:
  const int vocab_size_;
};

}  // namespace

std::unique_ptr<Tokenizer> Tokenizer::Byte(int vocab_size) {
  return std::make_unique<ByteTokenizer>(vocab_size);
}

}  // namespace bst
