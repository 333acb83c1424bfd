#include <CLI/CLI.hpp>
#include <cstdio>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "bst/v1/generation.grpc.pb.h"
#include "clients/cli/commands.h"
#include "clients/cli/event_stream.h"
#include "clients/cli/interrupt.h"
#include "clients/cli/json_text.h"
#include "clients/cli/progress_bar.h"
#include "clients/cli/prompt.h"
#include "clients/cli/upload.h"

namespace bst::cli {
namespace {

struct Options {
  Connection connection;
  Prompt prompt;
  std::optional<uint32_t> top_logprobs;
  std::optional<v1::Priority> priority;
};

Json OrNull(bool present, double value) { return present ? Number(value) : Json(nullptr); }

// Gathers the stream.
class ScoreResult {
 public:
  void Add(const v1::Accepted& accepted) {
    total_tokens_ = accepted.prompt_tokens();
    token_ids_.push_back(accepted.first_token_id());
    logprobs_.push_back(nullptr);
    top_logprobs_.push_back(Json::array());
  }
  void Add(const v1::Scored& scored) {
    for (const uint32_t id : scored.token_ids()) token_ids_.push_back(id);
    for (const float logprob : scored.logprobs()) logprobs_.push_back(Number(logprob));
    for (const v1::TopTokens& top : scored.top())
      top_logprobs_.push_back(TopTokensJson(top.tokens()));
  }
  uint64_t scored_tokens() const { return token_ids_.size(); }
  uint64_t total_tokens() const { return total_tokens_; }

  Json Finish(const v1::ScoreFinished& finished, const Options& options) const {
    Json result = {{"token_ids", token_ids_},
                   {"logprobs", logprobs_},
                   {"mean_nll", OrNull(finished.has_mean_nll(), finished.mean_nll())},
                   {"perplexity", OrNull(finished.has_perplexity(), finished.perplexity())}};
    if (options.top_logprobs.value_or(0) > 0) result["top_logprobs"] = top_logprobs_;
    return result;
  }

 private:
  uint64_t total_tokens_ = 0;
  Json token_ids_ = Json::array(), logprobs_ = Json::array(), top_logprobs_ = Json::array();
};

grpc::Status Call(const Connection& connection, const v1::ScoreRequest& request,
                  const std::function<void(const v1::ScoreEvent&)>& handle) {
  const auto stub = v1::Generation::NewStub(connection.MakeChannel());
  const size_t bytes = request.ByteSizeLong();
  std::optional<uint64_t> exceeded_limit;
  grpc::Status asked = CheckMessageLimit(connection, *stub, bytes, exceeded_limit);
  if (!asked.ok()) return asked;
  if (exceeded_limit.has_value()) return TooLarge(bytes, *exceeded_limit);
  grpc::ClientContext context;
  connection.Prepare(context);
  const Interrupt interrupt(context);
  const auto reader = stub->Score(&context, request);
  return ReadEvents<v1::ScoreEvent>(*reader, handle);
}

ExitCode Score(const Options& options) {
  v1::ScoreRequest request;
  options.prompt.Fill(request);
  if (options.top_logprobs) request.set_top_logprobs(*options.top_logprobs);
  if (options.priority) request.set_priority(*options.priority);
  v1::ScoreFinished finished;
  ScoreResult result;
  ProgressBar progress;
  const grpc::Status status = Call(options.connection, request, [&](const v1::ScoreEvent& event) {
    if (event.has_accepted()) result.Add(event.accepted());
    if (event.has_scored()) {
      result.Add(event.scored());
      progress.Show(result.scored_tokens(), result.total_tokens());
    }
    if (event.has_finished()) finished = event.finished();
  });
  progress.Clear();
  if (!status.ok()) {
    return ReportFailure(status, "shorten the text, send it as token ids (--ids-file)");
  }
  if (options.connection.json) {
    PrintJson(result.Finish(finished, options));
  } else if (finished.has_mean_nll()) {
    std::printf("tokens %llu  mean_nll %.9g nats  perplexity %.9g\n",
                static_cast<unsigned long long>(finished.usage().prompt_tokens()),
                finished.mean_nll(), finished.perplexity());
  } else {
    std::printf("tokens %llu: one token has nothing before it to be scored by\n",
                static_cast<unsigned long long>(finished.usage().prompt_tokens()));
  }
  return kSuccess;
}

}  // namespace

void AddScore(CLI::App& app, Run& run) {
  auto options =
      std::make_shared<Options>();  // shared by the flags, which fill it, and run, which reads it
  CLI::App* const command =
      app.add_subcommand("score", "Log-probabilities and perplexity of a text");
  command->footer(
      "Examples:\n"
      "  bst score --prompt 'The cat sat on the mat'\n"
      "  bst score --prompt-file book.txt\n"
      "  bst score --ids-file ids.json --json | jq .mean_nll");
  options->connection.AddFlags(*command);
  options->prompt.AddFlags(*command);
  command
      ->add_option("--top-logprobs", options->top_logprobs,
                   "With --json: so many alternatives per position")
      ->check(client::NotNegative());
  AddPriorityFlag(*command, options->priority);
  command->callback([options, &run] { run = [options] { return Score(*options); }; });
}

}  // namespace bst::cli
