#include "server/generation_service.h"

#include <chrono>
#include <string>
#include <vector>

#include "engine/base/status_macros.h"
#include "server/answer_reactor.h"
#include "server/generate_reactor.h"
#include "server/request_validation.h"
#include "server/score_reactor.h"
#include "server/upload_reactor.h"
#include "server/wire_message.h"

namespace bst {
namespace {

void FillSampling(const SamplingParams& params, v1::Sampling& proto) {
  proto.set_temperature(params.temperature);
  proto.set_top_k(params.top_k);
  proto.set_top_p(params.top_p);
  proto.set_min_p(params.min_p);
  proto.set_typical_p(params.typical_p);
  proto.set_repetition_penalty(params.repetition_penalty);
  proto.set_presence_penalty(params.presence_penalty);
  proto.set_frequency_penalty(params.frequency_penalty);
  for (const auto& [token, bias] : params.logit_bias) {
    (*proto.mutable_logit_bias())[static_cast<uint32_t>(token.value())] = bias;
  }
  proto.set_num_sequences(1);
}

void FillLimits(const ModelInfo& info, const ServerConfig& config, v1::Limits& proto) {
  proto.set_max_prompt_tokens(static_cast<uint64_t>(info.max_prompt_tokens));
  proto.set_max_new_tokens(kMaxNewTokensLimit);
  proto.set_max_sequences(static_cast<uint32_t>(info.max_sequences));
  proto.set_max_step_tokens(static_cast<uint32_t>(info.max_step_tokens));
  proto.set_chunk_tokens(static_cast<uint32_t>(info.chunk_tokens));
  proto.set_max_queue(static_cast<uint32_t>(config.engine.max_queue));
  proto.set_max_queue_tokens(static_cast<uint64_t>(config.engine.max_queue_tokens));
  proto.set_max_message_bytes(static_cast<uint64_t>(config.max_message_bytes));
  proto.set_upload_timeout_seconds(absl::ToDoubleSeconds(config.engine.upload_timeout));
}

void FillModelInfo(const ModelInfo& info, const ServerConfig& config, v1::ModelInfo& proto) {
  proto.set_name(info.name);
  proto.set_backend(info.backend);
  proto.set_weights(info.weights);
  proto.set_kv(info.kv);
  proto.set_vocab_size(static_cast<uint32_t>(info.vocab_size));
  proto.set_hidden_size(static_cast<uint32_t>(info.hidden_size));
  proto.set_num_heads(static_cast<uint32_t>(info.num_heads));
  proto.set_head_dim(static_cast<uint32_t>(info.head_dim));
  proto.set_ffn_size(static_cast<uint32_t>(info.ffn_size));
  proto.set_window(static_cast<uint32_t>(info.window));
  for (const std::string& layer : info.layers) proto.add_layers(layer);
  proto.set_num_parameters(static_cast<uint64_t>(info.num_parameters));
  proto.set_weight_bytes(static_cast<uint64_t>(info.weight_bytes));
  proto.set_state_bytes_per_sequence(static_cast<uint64_t>(info.state_bytes_per_sequence));
  proto.set_tokenizer(info.tokenizer_type);
  if (!info.bos.empty()) proto.set_bos_token_id(static_cast<uint32_t>(info.bos.front().value()));
  if (!info.eos.empty()) proto.set_eos_token_id(static_cast<uint32_t>(info.eos.front().value()));
  if (!info.pad.empty()) proto.set_pad_token_id(static_cast<uint32_t>(info.pad.front().value()));
  FillLimits(info, config, *proto.mutable_limits());
  FillSampling(info.default_sampling, *proto.mutable_default_sampling());
  proto.set_default_max_new_tokens(static_cast<uint32_t>(info.default_max_new_tokens));
  proto.set_config_json(info.config_json);
}

// Whether somebody still waits for the answer.
absl::Status CheckCall(const grpc::CallbackServerContext& context) {
  if (context.deadline() <= std::chrono::system_clock::now()) {
    return absl::DeadlineExceededError("the call's deadline passed");
  }
  return context.IsCancelled() ? absl::CancelledError("the client left") : absl::OkStatus();
}

}  // namespace

grpc::ServerWriteReactor<grpc::ByteBuffer>* GenerationService::Generate(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* request) {
  return StartGenerate(frontend_, *context, *request);
}

grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* GenerationService::GenerateUpload(
    grpc::CallbackServerContext* context) {
  return StartGenerateUpload(frontend_, *context);
}

grpc::ServerUnaryReactor* GenerationService::GenerateOnce(grpc::CallbackServerContext* context,
                                                          const grpc::ByteBuffer* request,
                                                          grpc::ByteBuffer* response) {
  return StartGenerateOnce(frontend_, *context, *request, *response);
}

grpc::ServerWriteReactor<grpc::ByteBuffer>* GenerationService::Score(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* request) {
  return StartScore(frontend_, *context, *request);
}

// Runs `body(model, request, response)`, which returns absl::Status, behind the gate, and finishes
// the RPC with it; of a large request later, on another thread.
template <typename Request, typename Response, typename Body>
grpc::ServerUnaryReactor* GenerationService::Answer(const Call& call, Body body) {
  const auto start = std::chrono::steady_clock::now();
  AnswerReactor& reactor = AnswerReactor::Open(frontend_, call.context, call.rpc, call.response);
  const auto finish = [this, call, start, &reactor](const absl::Status& status) {
    // What asks while the model loads is a probe.
    if (!status.ok() && frontend_.model() != nullptr) {
      frontend_.CountRejected(status);
      frontend_.CutOverdueReaders();
    }
    frontend_.AccountCall(call.rpc, "", status, start);
    reactor.Answer(status);
  };
  if (!call.request.Valid()) {  // of a stream that was reset, or ended without a message
    const absl::Status over = CheckCall(call.context);
    finish(over.ok() ? absl::CancelledError("the client left before its request came") : over);
    return &reactor;
  }
  const grpc::ByteBuffer bytes = TakeBytes(call.request);
  const auto model = frontend_.Admit(call.context);
  absl::Status admitted = model.status();
  if (admitted.ok() && call.answer_size == AnswerSize::kGrowsWithRequest) {
    admitted = frontend_.CheckAnswer();
  }
  if (admitted.ok()) admitted = frontend_.CheckReaders(bytes.Length());
  if (!admitted.ok()) {
    finish(admitted);
    return &reactor;
  }
  const auto run = [call, body, model = *model](const grpc::ByteBuffer& message) -> absl::Status {
    BST_RETURN_IF_ERROR(CheckCall(call.context));
    BST_ASSIGN_OR_RETURN(const Request request, ParseMessage<Request>(message, "request"));
    Response response;
    BST_RETURN_IF_ERROR(body(*model, request, response));
    call.response = BytesOf(response);
    return absl::OkStatus();
  };
  frontend_.readers().Read(bytes.Length(), [run, finish, bytes] { finish(run(bytes)); });
  return &reactor;
}

grpc::ServerUnaryReactor* GenerationService::Tokenize(grpc::CallbackServerContext* context,
                                                      const grpc::ByteBuffer* bytes,
                                                      grpc::ByteBuffer* answer) {
  const auto tokenize = [context](const ServedModel& model, const v1::TokenizeRequest& request,
                                  v1::TokenizeResponse& response) -> absl::Status {
    BST_ASSIGN_OR_RETURN(const std::vector<TokenId> tokens,
                         EncodeText(request.text(), model.engine->info(), *model.tokenizer,
                                    [context] { return CheckCall(*context); }));
    if (request.add_bos()) {
      for (const TokenId bos : model.engine->info().bos)
        response.add_token_ids(static_cast<uint32_t>(bos.value()));
    }
    for (const TokenId token : tokens) response.add_token_ids(static_cast<uint32_t>(token.value()));
    return absl::OkStatus();
  };
  return Answer<v1::TokenizeRequest, v1::TokenizeResponse>(
      {"Tokenize", *context, *bytes, *answer, AnswerSize::kGrowsWithRequest}, tokenize);
}

grpc::ServerUnaryReactor* GenerationService::Detokenize(grpc::CallbackServerContext* context,
                                                        const grpc::ByteBuffer* bytes,
                                                        grpc::ByteBuffer* answer) {
  const auto detokenize = [](const ServedModel& model, const v1::DetokenizeRequest& request,
                             v1::DetokenizeResponse& response) -> absl::Status {
    BST_ASSIGN_OR_RETURN(const std::vector<TokenId> tokens,
                         ValidateTokenIds(request.token_ids(), model.engine->info()));
    response.set_text(model.tokenizer->Decode(tokens));
    return absl::OkStatus();
  };
  return Answer<v1::DetokenizeRequest, v1::DetokenizeResponse>(
      {"Detokenize", *context, *bytes, *answer, AnswerSize::kGrowsWithRequest}, detokenize);
}

grpc::ServerUnaryReactor* GenerationService::GetModelInfo(grpc::CallbackServerContext* context,
                                                          const grpc::ByteBuffer* bytes,
                                                          grpc::ByteBuffer* answer) {
  const auto describe = [this](const ServedModel& model, const v1::GetModelInfoRequest&,
                               v1::ModelInfo& response) -> absl::Status {
    FillModelInfo(model.engine->info(), frontend_.config(), response);
    return absl::OkStatus();
  };
  return Answer<v1::GetModelInfoRequest, v1::ModelInfo>(
      {"GetModelInfo", *context, *bytes, *answer, AnswerSize::kConstant}, describe);
}

}  // namespace bst
