// TrainedModel: a tiny SentencePiece model, trained in a temporary file in a fraction of a second.
// Nothing here names the library's types, see engine/tokenizer/sentencepiece_model.h.
#pragma once

#include <string>
#include <vector>

namespace bst {

class TrainedModel {
 public:
  // `options` come first on the trainer's command line, where the first of its kind wins.
  explicit TrainedModel(const std::string& options = "");
  TrainedModel(const TrainedModel&) = delete;
  TrainedModel& operator=(const TrainedModel&) = delete;
  ~TrainedModel();

  std::string path() const { return prefix_ + ".model"; }

  // What the library itself says.
  int PieceToId(const std::string& piece) const;
  std::vector<int> EncodeByLibrary(const std::string& text) const;
  std::string DecodeByLibrary(const std::vector<int>& ids) const;

 private:
  std::string prefix_;
};

}  // namespace bst
