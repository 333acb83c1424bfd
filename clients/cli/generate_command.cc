#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <cstdio>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "bst/v1/generation.grpc.pb.h"
#include "clients/cli/closing_line.h"
#include "clients/cli/commands.h"
#include "clients/cli/event_stream.h"
#include "clients/cli/generate_output.h"
#include "clients/cli/interrupt.h"
#include "clients/cli/json_text.h"
#include "clients/cli/progress_bar.h"
#include "clients/cli/prompt.h"
#include "clients/cli/upload.h"

namespace bst::cli {
namespace {

// What is not set is left to the server.
struct Options {
  Connection connection;
  Prompt prompt;
  std::optional<std::string> request_id;
  std::optional<float> temperature, top_p, min_p, typical_p;
  std::optional<float> repetition_penalty, presence_penalty, frequency_penalty;
  std::optional<int32_t> top_k;
  std::vector<std::string> logit_bias;  // "ID=BIAS"
  std::optional<uint64_t> seed;
  std::optional<uint32_t> num_sequences;
  std::optional<v1::Priority> priority;
  std::optional<uint32_t> max_new_tokens, min_new_tokens, top_logprobs, queue_timeout_ms,
      time_limit_ms;
  std::vector<std::string> stop;
  std::vector<uint32_t> stop_token_ids;
  bool ignore_eos = false, include_stop_string = false, echo = false, logprobs = false;
};

void AddFlags(CLI::App& app, Options& o) {
  o.prompt.AddFlags(app);
  const char* const stopping = "When it ends";
  app.add_option("--max-new-tokens", o.max_new_tokens, "Tokens at most")
      ->check(client::NotNegative())
      ->group(stopping);
  app.add_option("--min-new-tokens", o.min_new_tokens, "No end of sequence before this many")
      ->check(client::NotNegative())
      ->group(stopping);
  app.add_option("--stop", o.stop, "Stop before this text; may be repeated")
      ->allow_extra_args(false)
      ->group(stopping);
  app.add_option("--stop-token-id", o.stop_token_ids, "Stop after this token; may be repeated")
      ->check(client::NotNegative())
      ->allow_extra_args(false)
      ->group(stopping);
  app.add_flag("--include-stop-string", o.include_stop_string, "Keep the stop string in the text")
      ->group(stopping);
  app.add_flag("--ignore-eos", o.ignore_eos, "Go on after an end of sequence")->group(stopping);
  app.add_option("--queue-timeout-ms", o.queue_timeout_ms, "Give up if it has not started by then")
      ->check(client::NotNegative())
      ->group(stopping);
  app.add_option("--time-limit-ms", o.time_limit_ms, "Stop then and keep the text")
      ->check(client::NotNegative())
      ->group(stopping);

  const char* const sampling = "How tokens are drawn (unset: the model's own defaults)";
  app.add_option("--temperature", o.temperature, "0 .. 100; 0 takes the likeliest token")
      ->group(sampling);
  app.add_option("--top-k", o.top_k, "Only the k likeliest; 0 and -1: all")->group(sampling);
  app.add_option("--top-p", o.top_p, "Only the likeliest with this mass, above 0, up to 1")
      ->group(sampling);
  app.add_option("--min-p", o.min_p, "Only those at least so likely, relative to the likeliest")
      ->group(sampling);
  app.add_option("--typical-p", o.typical_p, "Locally typical sampling, above 0, up to 1")
      ->group(sampling);
  app.add_option("--repetition-penalty", o.repetition_penalty, "Above 1 discourages what was said")
      ->group(sampling);
  app.add_option("--presence-penalty", o.presence_penalty, "-2 .. 2, once per token of the output")
      ->group(sampling);
  app.add_option("--frequency-penalty", o.frequency_penalty, "-2 .. 2, per occurrence")
      ->group(sampling);
  app.add_option("--logit-bias", o.logit_bias, "ID=BIAS, -100 .. 100 or -inf; may be repeated")
      ->allow_extra_args(false)
      ->group(sampling);
  app.add_option("--seed", o.seed, "Same request, same seed: same text")
      ->check(client::NotNegative())
      ->group(sampling);
  app.add_option("-n,--num-sequences", o.num_sequences, "Continuations of the prompt; unset: 1")
      ->check(client::NotNegative())
      ->group(sampling);

  AddPriorityFlag(app, o.priority);

  const char* const output = "What is shown";
  app.add_flag("--echo", o.echo, "The prompt first")->group(output);
  app.add_flag("--logprobs", o.logprobs, "With --json: the log-probability of each token")
      ->group(output);
  app.add_option("--top-logprobs", o.top_logprobs,
                 "With --json: so many alternatives of each token")
      ->check(client::NotNegative())
      ->group(output);
  app.add_option("--request-id", o.request_id,
                 "Name of the request in the server's log; unset: drawn")
      ->group(output);
}

std::pair<uint32_t, float> ParseBias(const std::string& text) {
  const size_t equals = std::min(text.find('='), text.size());
  const char* const id_end = text.data() + equals;
  const char* const end = text.data() + text.size();
  uint32_t id = 0;
  const auto read_id = std::from_chars(text.data(), id_end, id);
  if (read_id.ec == std::errc() && read_id.ptr == id_end && id_end != end) {
    float bias = 0;
    const auto read_bias = std::from_chars(id_end + 1, end, bias);
    if (read_bias.ec == std::errc() && read_bias.ptr == end) return {id, bias};
  }
  throw UsageError("--logit-bias " + text + " is not ID=BIAS");
}

v1::GenerateRequest MakeRequest(const Options& o) {
  v1::GenerateRequest request;
  o.prompt.Fill(request);
  if (o.request_id) {
    CheckUtf8(*o.request_id, "--request-id");
    request.set_request_id(*o.request_id);
  }
  if (o.priority) request.set_priority(*o.priority);
  if (o.queue_timeout_ms) request.set_queue_timeout_ms(*o.queue_timeout_ms);
  if (o.time_limit_ms) request.set_time_limit_ms(*o.time_limit_ms);
  v1::Sampling& sampling = *request.mutable_sampling();
  if (o.temperature) sampling.set_temperature(*o.temperature);
  if (o.top_k) sampling.set_top_k(*o.top_k);
  if (o.top_p) sampling.set_top_p(*o.top_p);
  if (o.min_p) sampling.set_min_p(*o.min_p);
  if (o.typical_p) sampling.set_typical_p(*o.typical_p);
  if (o.repetition_penalty) sampling.set_repetition_penalty(*o.repetition_penalty);
  if (o.presence_penalty) sampling.set_presence_penalty(*o.presence_penalty);
  if (o.frequency_penalty) sampling.set_frequency_penalty(*o.frequency_penalty);
  for (const std::string& text : o.logit_bias) {
    const auto [id, bias] = ParseBias(text);
    (*sampling.mutable_logit_bias())[id] = bias;
  }
  if (o.seed) sampling.set_seed(*o.seed);
  if (o.num_sequences) sampling.set_num_sequences(*o.num_sequences);
  v1::Stopping& stopping = *request.mutable_stopping();
  if (o.max_new_tokens) stopping.set_max_new_tokens(*o.max_new_tokens);
  if (o.min_new_tokens) stopping.set_min_new_tokens(*o.min_new_tokens);
  for (const std::string& stop : o.stop) {
    CheckUtf8(stop, "--stop");
    stopping.add_stop_strings(stop);
  }
  for (const uint32_t id : o.stop_token_ids) stopping.add_stop_token_ids(id);
  if (o.ignore_eos) stopping.set_ignore_eos(true);
  if (o.include_stop_string) stopping.set_include_stop_string(true);
  v1::Output& output = *request.mutable_output();
  if (o.top_logprobs) output.set_top_logprobs(*o.top_logprobs);
  if (o.echo) output.set_echo(true);
  if (o.logprobs) output.set_logprobs(true);
  return request;
}

grpc::Status Call(const Connection& connection, const v1::GenerateRequest& request,
                  grpc::ClientContext& context,
                  const std::function<void(const v1::GenerateEvent&)>& handle) {
  const auto stub = v1::Generation::NewStub(connection.MakeChannel());
  std::optional<uint64_t> exceeded_limit;
  grpc::Status asked = CheckMessageLimit(connection, *stub, request.ByteSizeLong(), exceeded_limit);
  if (!asked.ok()) return asked;
  connection.Prepare(context);
  const Interrupt interrupt(context);
  if (exceeded_limit.has_value()) return Upload(*stub, context, request, *exceeded_limit, handle);
  const auto reader = stub->Generate(&context, request);
  return ReadEvents<v1::GenerateEvent>(*reader, handle);
}

ExitCode Generate(const Options& options) {
  const bool json = options.connection.json;
  grpc::ClientContext context;
  v1::Finished finished;
  ProgressBar progress;
  GenerateOutput output(json ? GenerateOutput::Format::kJson : GenerateOutput::Format::kText,
                        options.num_sequences.value_or(1), [&](std::string_view text) {
                          progress.Clear();
                          const bool written =
                              std::fwrite(text.data(), 1, text.size(), stdout) == text.size() &&
                              std::fflush(stdout) == 0;
                          if (!written) context.TryCancel();  // nobody would see the rest
                        });
  const grpc::Status status =
      Call(options.connection, MakeRequest(options), context, [&](const v1::GenerateEvent& event) {
        if (event.has_prefill_progress()) {
          progress.Show(event.prefill_progress().processed_tokens(),
                        event.prefill_progress().total_tokens());
        }
        if (event.has_accepted()) output.Add(event.accepted());
        if (event.has_tokens()) output.Add(event.tokens());
        if (event.has_sequence_finished()) output.Add(event.sequence_finished());
        if (event.has_finished()) finished = event.finished();
      });
  output.Finish();
  progress.Clear();
  const bool one = options.num_sequences.value_or(1) <= 1;
  if (!json && one && isatty(STDOUT_FILENO) == 1) std::fputc('\n', stdout);
  if (std::ferror(stdout) != 0) return kRequestFailed;  // main says why
  if (!status.ok()) return ReportFailure(status);
  if (json) {
    const bool top = options.top_logprobs.value_or(0) > 0;
    PrintJson(output.ToJson(finished, {options.echo, options.logprobs || top, top}));
  } else {
    std::fprintf(stderr, "%s\n", ClosingLine(finished).c_str());
  }
  return kSuccess;
}

}  // namespace

void AddGenerate(CLI::App& app, Run& run) {
  auto options =
      std::make_shared<Options>();  // shared by the flags, which fill it, and run, which reads it
  CLI::App* const command = app.add_subcommand("generate", "Continue a text");
  command->footer(
      "Examples:\n"
      "  bst generate --prompt 'Once upon a time'\n"
      "  bst generate --prompt-file story.txt --max-new-tokens 500 --temperature 0.8 --top-p 0.95 "
      "--seed 7\n"
      "  bst generate --prompt 'Q: 2+2?' --temperature 0 --stop $'\\n'\n"
      "  bst generate --ids-file ids.json --temperature 0 --json | jq .token_ids\n"
      "  cat book.txt | bst generate --prompt-file - --max-new-tokens 200\n"
      "  bst generate --prompt 'A name for a ship:' -n 4 --max-new-tokens 8\n"
      "The text goes to stdout as it comes; a closing line and, on a terminal, the progress of a "
      "long prompt\n"
      "go to stderr. Ctrl-C cancels the request. A prompt above the "
      "server's message limit\n"
      "is sent in parts. --json also has the request's id, as in the server's log, and its seed, "
      "drawn or given,\n"
      "as a string.");
  options->connection.AddFlags(*command);
  AddFlags(*command, *options);
  command->callback([options, &run] { run = [options] { return Generate(*options); }; });
}

}  // namespace bst::cli
