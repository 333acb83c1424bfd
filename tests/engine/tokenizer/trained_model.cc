#include "tests/engine/tokenizer/trained_model.h"

#include <sentencepiece_processor.h>
#include <sentencepiece_trainer.h>
#include <stdlib.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <memory>

namespace bst {
namespace {

[[noreturn]] void Die(const std::string& message) {
  std::fprintf(stderr, "trained_model: %s\n", message.c_str());
  std::abort();
}

std::unique_ptr<sentencepiece::SentencePieceProcessor> Load(const std::string& path) {
  auto processor = std::make_unique<sentencepiece::SentencePieceProcessor>();
  if (const auto status = processor->Load(path); !status.ok()) Die(status.ToString());
  return processor;
}

}  // namespace

TrainedModel::TrainedModel(const std::string& options) {
  std::string name = "/tmp/bst_spm_XXXXXX";
  const int file = ::mkstemp(name.data());
  if (file < 0) Die("no temporary file");
  ::close(file);
  prefix_ = name;
  std::ofstream corpus(prefix_);
  const char* words[] = {"the",   "state", "of",   "a",     "block",
                         "model", "reads", "long", "texts", "again"};
  unsigned step = 1;
  for (int line = 0; line < 300; ++line) {
    for (int word = 0; word < 8; ++word) {
      step = step * 1664525u + 1013904223u;
      corpus << (word == 0 ? "" : " ") << words[(step >> 16) % 10];
    }
    corpus << "\n";
  }
  corpus.close();
  const auto status = sentencepiece::SentencePieceTrainer::Train(
      options + " --input=" + prefix_ + " --model_prefix=" + prefix_ +
      " --vocab_size=330 --model_type=bpe --byte_fallback=true --hard_vocab_limit=false"
      " --normalization_rule_name=identity --minloglevel=2");
  if (!status.ok()) Die(status.ToString());
}

TrainedModel::~TrainedModel() {
  for (const char* suffix : {"", ".model", ".vocab"}) ::unlink((prefix_ + suffix).c_str());
}

int TrainedModel::PieceToId(const std::string& piece) const {
  return Load(path())->PieceToId(piece);
}

std::vector<int> TrainedModel::EncodeByLibrary(const std::string& text) const {
  std::vector<int> ids;
  if (const auto status = Load(path())->Encode(text, &ids); !status.ok()) Die(status.ToString());
  return ids;
}

std::string TrainedModel::DecodeByLibrary(const std::vector<int>& ids) const {
  std::string text;
  if (const auto status = Load(path())->Decode(ids, &text); !status.ok()) Die(status.ToString());
  return text;
}

}  // namespace bst
