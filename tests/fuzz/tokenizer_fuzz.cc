// Any bytes as a text, and as token ids, through the byte tokenizer and a SentencePiece model; and
// as a SentencePiece model, which must be refused or work. The first byte chooses: bit 0 the
// tokenizer, bit 1 whether the rest is a text or pairs of bytes that are ids, bit 2 where the
// stream of their text begins, bit 3 whether the rest is a model instead.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/strings/str_replace.h"
#include "engine/tokenizer/tokenizer.h"
#include "engine/tokenizer/utf8.h"
#include "tests/engine/tokenizer/utf8_reference.h"
#include "tests/fuzz/memory_file.h"

namespace {

constexpr int kVocabSize = 4096;  // of the model; bytes use the first 256

void Check(bool condition) {
  if (!condition) std::abort();
}

const bst::Tokenizer& Choose(bool sentencepiece) {
  static const auto* const bytes =
      new std::unique_ptr<bst::Tokenizer>(bst::Tokenizer::Byte(kVocabSize));
  static const auto* const pieces = new std::unique_ptr<bst::Tokenizer>(
      *bst::Tokenizer::SentencePiece(BST_TOKENIZER_MODEL, kVocabSize));
  return sentencepiece ? **pieces : **bytes;
}

// Token by token: whole characters only. From the start of a text they join to Decode's.
std::string Stream(const bst::Tokenizer& tokenizer, const std::vector<bst::TokenId>& tokens,
                   bst::StreamDecoder::Position position) {
  bst::StreamDecoder decoder(tokenizer, position);
  std::string text;
  for (const bst::TokenId token : tokens) {
    Check(tokenizer.TokenBytes(token, false).size() <=
          static_cast<size_t>(tokenizer.max_token_bytes()));
    const std::string piece = decoder.Push(token);
    Check(bst::Utf8Reference::IsValid(piece));
    text += piece;
  }
  const std::string rest = decoder.Finish();
  Check(bst::Utf8Reference::IsValid(rest));
  return text + rest;
}

void CheckIds(const bst::Tokenizer& tokenizer, std::string_view bytes,
              bst::StreamDecoder::Position position) {
  std::vector<bst::TokenId> tokens;
  for (size_t i = 0; i + 1 < bytes.size(); i += 2) {
    // Ids below 0 and past the vocabulary too.
    tokens.emplace_back(static_cast<int16_t>(static_cast<uint8_t>(bytes[i]) |
                                             static_cast<uint8_t>(bytes[i + 1]) << 8));
  }
  const std::string text = Stream(tokenizer, tokens, position);
  if (position == bst::StreamDecoder::Position::kStartOfText)
    Check(text == tokenizer.Decode(tokens));
}

void CheckText(bool sentencepiece, std::string_view text) {
  const bst::Tokenizer& tokenizer = Choose(sentencepiece);
  const auto tokens = tokenizer.Encode(text);
  Check(tokens.ok());
  for (const bst::TokenId token : *tokens)
    Check(token.value() >= 0 && token.value() < tokenizer.vocab_size());
  const std::string decoded = tokenizer.Decode(*tokens);
  Check(Stream(tokenizer, *tokens, bst::StreamDecoder::Position::kStartOfText) == decoded);
  // The model of the test normalises nothing: a text comes back as it was, its bytes made UTF-8.
  // But SentencePiece writes a space as U+2581, so that this character comes back as a space.
  std::string expected = bst::DecodeUtf8(text, bst::Utf8Tail::kReplace).text;
  if (sentencepiece) absl::StrReplaceAll({{"\u2581", " "}}, &expected);
  Check(decoded == expected);
}

// The texts are those that a small model's rules and pieces may be about, and the model itself. A
// model may make the library refuse a text.
void CheckModel(const uint8_t* data, size_t size) {
  const bst::MemoryFile file(data, size);
  const auto tokenizer = bst::Tokenizer::SentencePiece(file.path(), kVocabSize);
  if (!tokenizer.ok()) return;
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  for (const std::string_view text :
       {std::string_view("the state  of aaaaaaaaaaaa <s>\n\u2581\uFB01\u4E16"), bytes,
        bytes.substr(size - std::min<size_t>(size, 32))}) {
    const auto tokens = (*tokenizer)->Encode(text);
    if (!tokens.ok()) continue;
    for (const bst::TokenId token : *tokens)
      Check(token.value() >= 0 && token.value() < kVocabSize);
    Check(Stream(**tokenizer, *tokens, bst::StreamDecoder::Position::kStartOfText) ==
          (*tokenizer)->Decode(*tokens));
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  if ((data[0] & 8) != 0) {
    CheckModel(data + 1, size - 1);
    return 0;
  }
  const bool sentencepiece = (data[0] & 1) != 0;
  const std::string_view rest(reinterpret_cast<const char*>(data + 1), size - 1);
  if ((data[0] & 2) != 0) {
    CheckText(sentencepiece, rest);
  } else {
    CheckIds(Choose(sentencepiece), rest,
             (data[0] & 4) != 0 ? bst::StreamDecoder::Position::kContinuation
                                : bst::StreamDecoder::Position::kStartOfText);
  }
  return 0;
}
