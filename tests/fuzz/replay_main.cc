// Runs a fuzz target without libFuzzer: first every file of its corpus directory, then inputs made
// from them by a fixed sequence of random changes, for as many rounds as asked. The same inputs
// every time, so that a failure can be repeated; the input being run is kept in a file until it is
// done.
//
//   replay CORPUS_DIRECTORY ROUNDS
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <utility>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

using Bytes = std::vector<uint8_t>;

std::vector<Bytes> ReadCorpus(const std::string& directory) {
  std::vector<std::filesystem::path> paths;
  for (const auto& entry : std::filesystem::directory_iterator(directory))
    paths.push_back(entry.path());
  std::sort(paths.begin(), paths.end());
  std::vector<Bytes> corpus;
  for (const auto& path : paths) {
    std::ifstream file(path, std::ios::binary);
    corpus.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
  }
  return corpus;
}

// One random change: a bit, a byte, a run removed, repeated, or taken from another input.
void Mutate(Bytes& input, const std::vector<Bytes>& corpus, std::mt19937_64& random) {
  constexpr uint8_t kAwkward[] = {0x00, 0x01, 0x7F, 0x80, 0xBF, 0xC0, 0xED, 0xF4, 0xFF, '"', '{',
                                  '}',  '[',  ']',  ',',  ':',  '0',  '9',  '-',  '.',  'e'};
  const auto place = [&](size_t limit) { return static_cast<ptrdiff_t>(random() % (limit + 1)); };
  const ptrdiff_t begin = place(input.size());
  const ptrdiff_t end =
      std::min<ptrdiff_t>(begin + place(16), static_cast<ptrdiff_t>(input.size()));
  switch (random() % 6) {
    case 0:
      if (begin < end)
        input[static_cast<size_t>(begin)] ^= static_cast<uint8_t>(1u << random() % 8);
      break;
    case 1:
      if (begin < end) input[static_cast<size_t>(begin)] = kAwkward[random() % sizeof(kAwkward)];
      break;
    case 2:
      input.erase(input.begin() + begin, input.begin() + end);
      break;
    case 3:
      input.insert(input.begin() + begin, kAwkward[random() % sizeof(kAwkward)]);
      break;
    case 4: {
      const Bytes run(input.begin() + begin, input.begin() + end);
      const ptrdiff_t at = place(input.size());
      input.insert(input.begin() + at, run.begin(), run.end());
      break;
    }
    case 5: {
      const Bytes& other = corpus[random() % corpus.size()];
      const ptrdiff_t from = place(other.size());
      const ptrdiff_t to =
          std::min<ptrdiff_t>(from + place(64), static_cast<ptrdiff_t>(other.size()));
      input.insert(input.begin() + begin, other.begin() + from, other.begin() + to);
      break;
    }
  }
}

// The input being run, in a file; what is there after a crash is what caused it.
class KeptInput {
 public:
  explicit KeptInput(std::string path)
      : path_(std::move(path)), file_(::open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600)) {}
  KeptInput(const KeptInput&) = delete;
  KeptInput& operator=(const KeptInput&) = delete;
  ~KeptInput() {
    ::close(file_);
    ::unlink(path_.c_str());
  }

  bool Keep(const Bytes& input) const {
    const auto size = static_cast<ssize_t>(input.size());
    return ::pwrite(file_, input.data(), input.size(), 0) == size && ::ftruncate(file_, size) == 0;
  }

 private:
  std::string path_;
  int file_;
};

void Run(const Bytes& input, const KeptInput& kept) {
  if (!kept.Keep(input)) {
    std::perror("cannot keep the input");
    std::exit(1);
  }
  LLVMFuzzerTestOneInput(input.data(), input.size());
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: %s CORPUS_DIRECTORY ROUNDS\n", argv[0]);
    return 2;
  }
  const std::vector<Bytes> corpus = ReadCorpus(argv[1]);
  const long rounds = std::atol(argv[2]);
  if (corpus.empty() || rounds <= 0) {
    std::fprintf(stderr, "%s: no corpus in %s, or no rounds\n", argv[0], argv[1]);
    return 2;
  }
  const KeptInput kept(std::filesystem::temp_directory_path() /
                       (std::filesystem::path(argv[0]).filename().string() + ".input"));
  for (const Bytes& input : corpus) Run(input, kept);
  std::mt19937_64 random(1);
  for (long round = 0; round < rounds; ++round) {
    Bytes input = corpus[random() % corpus.size()];
    for (uint64_t changes = 1 + random() % 4; changes > 0; --changes) Mutate(input, corpus, random);
    Run(input, kept);
  }
  std::printf("%zu inputs of the corpus and %ld changed ones: no failure\n", corpus.size(), rounds);
  return 0;
}
