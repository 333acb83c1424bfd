#include "engine/tokenizer/sentencepiece_model.h"

#include <dlfcn.h>

namespace bst {
namespace {

// In a scope of its own: what the library and its dependencies define is found there first, and
// nobody else finds it. The sanitizers' runtimes cannot live with RTLD_DEEPBIND; their builds do
// without, which is safe as long as a test does not load SentencePiece beside Protobuf.
#ifdef BST_SANITIZED  // cmake/BstTargets.cmake; the compilers each have their own name for it
constexpr int kScope = RTLD_NOW | RTLD_LOCAL;
#else
constexpr int kScope = RTLD_NOW | RTLD_LOCAL | RTLD_DEEPBIND;
#endif

struct Library {
  LoadSentencePieceModelFunction load = nullptr;
  std::string error;
};

// Opened once, never closed: models may live until the process ends. Found by the run path of the
// program, which names the build's or the installation's library folder.
const Library& SharedLibrary() {
  static const Library library = [] {
    Library opened;
    void* handle = ::dlopen("libbst_sentencepiece.so", kScope);
    void* symbol = handle == nullptr ? nullptr : ::dlsym(handle, kLoadSentencePieceModel);
    if (symbol == nullptr) {
      opened.error = ::dlerror();
    } else {
      opened.load = reinterpret_cast<LoadSentencePieceModelFunction>(symbol);
    }
    return opened;
  }();
  return library;
}

}  // namespace

SentencePieceModel::Result<std::unique_ptr<SentencePieceModel>> SentencePieceModel::Load(
    const std::string& serialized) {
  const Library& library = SharedLibrary();
  if (library.load == nullptr)
    return Failure{"cannot open the SentencePiece library: " + library.error};
  Result<std::unique_ptr<SentencePieceModel>> result = Failure{};
  library.load(serialized, result);
  if (auto* failure = std::get_if<Failure>(&result)) {
    failure->message = "not a SentencePiece model: " + failure->message;
  }
  return result;
}

}  // namespace bst
