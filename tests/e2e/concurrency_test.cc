// The answer to a request depends on the request alone.
//
// Sixteen requests of all lengths, half greedy and half sampled, are run one after the other, and
// then all at once with staggered starts on fewer slots than requests. Tokens and log-probabilities
// must be the same, bit for bit.
//
//   concurrency_test BST_SERVER MODEL_DIRECTORY LONGEST_PROMPT [SERVER_FLAG ...]
#include <fcntl.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <bit>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "bst/v1/generation.grpc.pb.h"

extern char** environ;

namespace {

constexpr int kRequests = 16;
constexpr uint32_t kNewTokens = 48;
constexpr std::chrono::milliseconds kStagger(15);

[[noreturn]] void Fail(const std::string& why) {
  std::fprintf(stderr, "FAILED: %s\n", why.c_str());
  std::exit(1);
}

// bst-server as a child process, ended when this goes.
class ServerProcess {
 public:
  ServerProcess(const char* binary, const std::string& model,
                const std::vector<std::string>& flags) {
    std::vector<std::string> words = {binary, "--model=" + model, "--listen=127.0.0.1:0",
                                      "--metrics_listen=127.0.0.1:0", "--max_sequences=5"};
    words.insert(words.end(), flags.begin(), flags.end());
    std::vector<char*> argv;
    for (std::string& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    int fds[2];
    if (pipe2(fds, O_CLOEXEC) != 0) Fail("pipe2");
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, fds[1], STDERR_FILENO);
    if (posix_spawn(&pid_, binary, &actions, nullptr, argv.data(), environ) != 0)
      Fail("cannot start the server");
    posix_spawn_file_actions_destroy(&actions);
    close(fds[1]);
    std::FILE* const lines = fdopen(fds[0], "r");
    WaitUntilReady(lines);
    drain_ = std::thread([this, lines] {  // or it would block on a full pipe
      for (int c; (c = std::fgetc(lines)) != EOF;) log_.push_back(static_cast<char>(c));
      std::fclose(lines);
    });
  }
  ~ServerProcess() { Stop(); }

  // Fails unless the server ends well, which with a sanitizer it does not after a report.
  void Terminate() {
    const int status = Stop();
    if (status != 0) Fail("the server ended with status " + std::to_string(status) + ":\n" + log_);
  }

  const std::string& address() const { return address_; }

 private:
  // The status of waitpid; 0 when it has ended before.
  int Stop() {
    if (pid_ == 0) return 0;
    kill(pid_, SIGTERM);
    int status = 0;
    waitpid(pid_, &status, 0);
    pid_ = 0;
    drain_.join();
    return status;
  }
  void WaitUntilReady(std::FILE* lines) {
    char line[4096];
    std::string seen;
    while (std::fgets(line, sizeof(line), lines) != nullptr) {
      seen += line;
      const std::string text = line;
      const std::string start = "ready grpc=";
      if (text.compare(0, start.size(), start) == 0) {
        address_ = text.substr(start.size(), text.find(' ', start.size()) - start.size());
        return;
      }
    }
    Fail("no ready line:\n" + seen);
  }

  pid_t pid_ = 0;
  std::string address_;
  std::string log_;  // the drain thread's until it is joined
  std::thread drain_;
};

struct Answer {
  std::vector<uint32_t> tokens;
  std::vector<uint32_t> logprob_bits;

  bool operator==(const Answer&) const = default;
};

std::vector<bst::v1::GenerateRequest> MakeRequests(int longest_prompt, uint32_t vocab_size) {
  std::mt19937 random(12345);
  std::vector<bst::v1::GenerateRequest> requests;
  for (int i = 0; i < kRequests; ++i) {
    bst::v1::GenerateRequest request;
    // 1, 2, a few around small powers of two, and a spread up to the longest.
    const int length = i == 0   ? 1
                       : i == 1 ? longest_prompt
                       : i < 8
                           ? (1 << i) + i % 3 - 1
                           : 1 + static_cast<int>(random() % static_cast<unsigned>(longest_prompt));
    for (int k = 0; k < length; ++k)
      request.mutable_token_ids()->add_ids(static_cast<uint32_t>(random() % vocab_size));
    request.mutable_sampling()->set_temperature(i % 2 == 0 ? 0.0f : 1.0f);
    request.mutable_sampling()->set_seed(1000u + static_cast<unsigned>(i));
    request.mutable_stopping()->set_max_new_tokens(kNewTokens + static_cast<uint32_t>(i));
    request.mutable_stopping()->set_ignore_eos(true);
    request.mutable_output()->set_logprobs(true);
    requests.push_back(std::move(request));
  }
  return requests;
}

Answer Run(bst::v1::Generation::Stub& stub, const bst::v1::GenerateRequest& request) {
  grpc::ClientContext context;
  const auto reader = stub.Generate(&context, request);
  Answer answer;
  bst::v1::GenerateEvent event;
  bool finished = false;
  while (reader->Read(&event)) {
    for (const uint32_t id : event.tokens().token_ids()) answer.tokens.push_back(id);
    for (const auto& logprob : event.tokens().logprobs()) {
      answer.logprob_bits.push_back(std::bit_cast<uint32_t>(logprob.logprob()));
    }
    finished |= event.has_finished();
  }
  const grpc::Status status = reader->Finish();
  if (!status.ok())
    Fail("a request ended with " + std::to_string(status.error_code()) + ": " +
         status.error_message());
  if (!finished) Fail("a stream without Finished");
  if (answer.tokens.size() != request.stopping().max_new_tokens())
    Fail("a stream with too few tokens");
  if (answer.logprob_bits.size() != answer.tokens.size())
    Fail("a stream with too few log-probabilities");
  return answer;
}

std::string Difference(const Answer& alone, const Answer& together) {
  for (size_t i = 0; i < alone.tokens.size(); ++i) {
    if (alone.tokens[i] != together.tokens[i]) {
      return "token " + std::to_string(i) + " is " + std::to_string(together.tokens[i]) +
             ", alone " + std::to_string(alone.tokens[i]);
    }
    if (alone.logprob_bits[i] != together.logprob_bits[i]) {
      char text[128];
      std::snprintf(text, sizeof(text), "log-probability %zu is %.9g, alone %.9g", i,
                    static_cast<double>(std::bit_cast<float>(together.logprob_bits[i])),
                    static_cast<double>(std::bit_cast<float>(alone.logprob_bits[i])));
      return text;
    }
  }
  return "";
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 4)
    Fail("usage: concurrency_test BST_SERVER MODEL_DIRECTORY LONGEST_PROMPT [SERVER_FLAG ...]");
  ServerProcess server(argv[1], argv[2], {argv + 4, argv + argc});
  const auto channel = grpc::CreateChannel(server.address(), grpc::InsecureChannelCredentials());
  const auto stub = bst::v1::Generation::NewStub(channel);
  bst::v1::ModelInfo info;
  grpc::ClientContext info_context;
  if (!stub->GetModelInfo(&info_context, bst::v1::GetModelInfoRequest(), &info).ok())
    Fail("GetModelInfo");

  const std::vector<bst::v1::GenerateRequest> requests =
      MakeRequests(std::atoi(argv[3]), info.vocab_size());
  std::vector<Answer> alone, together(requests.size());
  for (const auto& request : requests) alone.push_back(Run(*stub, request));

  std::vector<std::thread> threads;
  for (size_t i = 0; i < requests.size(); ++i) {
    threads.emplace_back([&, i] {
      std::this_thread::sleep_for(kStagger *
                                  i);  // arrivals spread over the others' prefill and decode
      together[i] = Run(*stub, requests[i]);
    });
  }
  for (std::thread& thread : threads) thread.join();

  int differing = 0;
  for (size_t i = 0; i < requests.size(); ++i) {
    const std::string difference = Difference(alone[i], together[i]);
    if (difference.empty()) continue;
    ++differing;
    std::fprintf(stderr, "request %zu (%d prompt tokens, temperature %g): %s\n", i,
                 requests[i].token_ids().ids_size(),
                 static_cast<double>(requests[i].sampling().temperature()), difference.c_str());
  }
  if (differing > 0) Fail(std::to_string(differing) + " requests depend on what ran beside them");
  server.Terminate();
  std::printf("%d requests gave alone and together the same tokens and log-probabilities\n",
              kRequests);
  return 0;
}
