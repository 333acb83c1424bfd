// tokenize, info and health: one call, one answer.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "bst/v1/generation.grpc.pb.h"
#include "clients/cli/commands.h"
#include "clients/cli/json_text.h"
#include "clients/cli/prompt.h"
#include "grpc/health/v1/health.grpc.pb.h"

namespace bst::cli {
namespace {

struct TokenizeOptions {
  Connection connection;
  Prompt prompt;
  bool add_bos = false;
};

ExitCode Tokenize(const TokenizeOptions& options) {
  v1::TokenizeRequest request;
  request.set_text(options.prompt.Text());
  request.set_add_bos(options.add_bos);
  grpc::ClientContext context;
  options.connection.Prepare(context);
  v1::TokenizeResponse response;
  const auto stub = v1::Generation::NewStub(options.connection.MakeChannel());
  const grpc::Status status = stub->Tokenize(&context, request, &response);
  if (!status.ok()) return ReportFailure(status, "shorten the text, or take it in pieces");
  Json ids = Json::array();
  for (const uint32_t id : response.token_ids()) ids.push_back(id);
  // Without --json the bare list: --ids-file takes it.
  PrintJson(options.connection.json ? Json{{"token_ids", ids}} : ids);
  return kSuccess;
}

Json OptionalId(bool present, uint32_t id) { return present ? Json(id) : Json(nullptr); }

Json InfoJson(const v1::ModelInfo& info) {
  Json layers = Json::array();
  for (const std::string& layer : info.layers()) layers.push_back(layer);
  const v1::Limits& limits = info.limits();
  return {{"model", info.name()},
          {"backend", info.backend()},
          {"weights", info.weights()},
          {"kv", info.kv()},
          {"layers", layers},
          {"vocab_size", info.vocab_size()},
          {"hidden_size", info.hidden_size()},
          {"num_heads", info.num_heads()},
          {"head_dim", info.head_dim()},
          {"ffn_size", info.ffn_size()},
          {"window", info.window()},
          {"num_parameters", info.num_parameters()},
          {"weight_bytes", info.weight_bytes()},
          {"state_bytes_per_sequence", info.state_bytes_per_sequence()},
          {"tokenizer", info.tokenizer()},
          {"bos_token_id", OptionalId(info.has_bos_token_id(), info.bos_token_id())},
          {"eos_token_id", OptionalId(info.has_eos_token_id(), info.eos_token_id())},
          {"pad_token_id", OptionalId(info.has_pad_token_id(), info.pad_token_id())},
          {"default_max_new_tokens", info.default_max_new_tokens()},
          {"limits",
           {{"max_prompt_tokens", limits.max_prompt_tokens()},
            {"max_new_tokens", limits.max_new_tokens()},
            {"max_sequences", limits.max_sequences()},
            {"max_step_tokens", limits.max_step_tokens()},
            {"chunk_tokens", limits.chunk_tokens()},
            {"max_queue", limits.max_queue()},
            {"max_queue_tokens", limits.max_queue_tokens()},
            {"max_message_bytes", limits.max_message_bytes()},
            {"upload_timeout_seconds", Number(limits.upload_timeout_seconds())}}}};
}

// One line per key; a list or an object below its key.
void PrintTable(const Json& object, const std::string& indent) {
  for (const auto& [key, value] : object.items()) {
    if (value.is_object()) {
      std::printf("%s%s\n", indent.c_str(), key.c_str());
      PrintTable(value, indent + "  ");
    } else if (value.is_array()) {
      std::printf("%s%s\n", indent.c_str(), key.c_str());
      size_t index = 0;
      for (const Json& item : value) {
        std::printf("%s  %2zu  %s\n", indent.c_str(), index++, item.get<std::string>().c_str());
      }
    } else {
      std::printf("%s%-26s %s\n", indent.c_str(), key.c_str(),
                  value.is_string() ? value.get<std::string>().c_str() : value.dump().c_str());
    }
  }
}

ExitCode Info(const Connection& connection) {
  grpc::ClientContext context;
  connection.Prepare(context);
  v1::ModelInfo info;
  const grpc::Status status = v1::Generation::NewStub(connection.MakeChannel())
                                  ->GetModelInfo(&context, v1::GetModelInfoRequest(), &info);
  if (!status.ok()) return ReportFailure(status);
  if (connection.json) {
    PrintJson(InfoJson(info));
  } else {
    PrintTable(InfoJson(info), "");
  }
  return kSuccess;
}

// What has not answered by then is as good as down, and scripts wait for the exit code.
constexpr double kHealthSeconds = 5;

struct HealthOptions {
  Connection connection;
  std::string service;
};

ExitCode Health(const HealthOptions& options) {
  grpc::health::v1::HealthCheckRequest request;
  CheckUtf8(options.service, "--service");
  request.set_service(options.service);
  grpc::ClientContext context;
  options.connection.Prepare(context);
  grpc::health::v1::HealthCheckResponse response;
  const auto stub = grpc::health::v1::Health::NewStub(options.connection.MakeChannel());
  const grpc::Status status = stub->Check(&context, request, &response);
  if (!status.ok()) return ReportFailure(status);
  const std::string name =
      grpc::health::v1::HealthCheckResponse::ServingStatus_Name(response.status());
  if (options.connection.json) {
    PrintJson({{"status", name}});
  } else {
    std::printf("%s\n", name.c_str());
  }
  return response.status() == grpc::health::v1::HealthCheckResponse::SERVING ? kSuccess
                                                                             : kRequestFailed;
}

}  // namespace

void AddTokenize(CLI::App& app, Run& run) {
  auto options = std::make_shared<TokenizeOptions>();  // shared by the flags and run
  CLI::App* const command = app.add_subcommand("tokenize", "Token ids of a text");
  command->footer(
      "Examples:\n  bst tokenize --prompt 'Hello' > ids.json\n  bst generate --ids-file ids.json");
  options->connection.AddFlags(*command);
  options->prompt.AddTextFlags(*command);
  command->add_flag("--add-bos", options->add_bos,
                    "The model's bos token in front, as a text prompt gets it");
  command->callback([options, &run] { run = [options] { return Tokenize(*options); }; });
}

void AddInfo(CLI::App& app, Run& run) {
  auto connection = std::make_shared<Connection>();  // shared by the flags and run
  CLI::App* const command = app.add_subcommand("info", "What is served, and within which limits");
  connection->AddFlags(*command);
  command->callback([connection, &run] { run = [connection] { return Info(*connection); }; });
}

void AddHealth(CLI::App& app, Run& run) {
  auto options = std::make_shared<HealthOptions>();  // shared by the flags and run
  CLI::App* const command =
      app.add_subcommand("health", "Whether the server takes requests; exit code 0 if so");
  options->connection.timeout_seconds = kHealthSeconds;
  options->connection.AddFlags(*command);
  command->add_option("--service", options->service,
                      "A service's name; default: the server as a whole");
  command->callback([options, &run] { run = [options] { return Health(*options); }; });
}

}  // namespace bst::cli
