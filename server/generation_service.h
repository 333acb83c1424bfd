// GenerationService: the RPCs of bst.v1.Generation; starts requests, answers the small ones itself.
//
// Threads     Thread-safe. Handlers run on gRPC threads and do not wait.
// Tested by   tests/server/generation_service_test.cc, upload_service_test.cc,
//             score_service_test.cc
#pragma once

#include "bst/v1/generation.grpc.pb.h"
#include "server/frontend.h"

namespace bst {

class GenerationService final : public v1::Generation::CallbackService {
 public:
  // `frontend` outlives the service.
  explicit GenerationService(Frontend& frontend) : frontend_(frontend) {}

  grpc::ServerWriteReactor<v1::GenerateEvent>* Generate(
      grpc::CallbackServerContext* context, const v1::GenerateRequest* request) override;
  grpc::ServerBidiReactor<v1::GenerateUploadPart, v1::GenerateEvent>* GenerateUpload(
      grpc::CallbackServerContext* context) override;
  grpc::ServerUnaryReactor* GenerateOnce(grpc::CallbackServerContext* context,
                                         const v1::GenerateRequest* request,
                                         v1::GenerateResult* response) override;
  grpc::ServerWriteReactor<v1::ScoreEvent>* Score(grpc::CallbackServerContext* context,
                                                  const v1::ScoreRequest* request) override;
  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context,
                                     const v1::TokenizeRequest* request,
                                     v1::TokenizeResponse* response) override;
  grpc::ServerUnaryReactor* Detokenize(grpc::CallbackServerContext* context,
                                       const v1::DetokenizeRequest* request,
                                       v1::DetokenizeResponse* response) override;
  grpc::ServerUnaryReactor* GetModelInfo(grpc::CallbackServerContext* context,
                                         const v1::GetModelInfoRequest* request,
                                         v1::ModelInfo* response) override;

 private:
  template <typename Body>
  grpc::ServerUnaryReactor* Answer(grpc::CallbackServerContext& context, const char* rpc,
                                   Body body);

  Frontend& frontend_;
};

}  // namespace bst
