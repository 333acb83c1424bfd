// GenerationService: the RPCs of bst.v1.Generation; starts requests, answers the small ones itself.
//
// Threads     Thread-safe. Handlers run on gRPC threads and do not wait.
// Tested by   tests/server/generation_service_test.cc, upload_service_test.cc,
//             score_service_test.cc
#pragma once

#include "bst/v1/generation.grpc.pb.h"
#include "server/frontend.h"

namespace bst {

// gRPC hands over bytes: see wire_message.h.
using RawGeneration = v1::Generation::WithRawCallbackMethod_Generate<
    v1::Generation::WithRawCallbackMethod_GenerateUpload<
        v1::Generation::WithRawCallbackMethod_GenerateOnce<
            v1::Generation::WithRawCallbackMethod_Score<
                v1::Generation::WithRawCallbackMethod_Tokenize<
                    v1::Generation::WithRawCallbackMethod_Detokenize<
                        v1::Generation::WithRawCallbackMethod_GetModelInfo<
                            v1::Generation::Service>>>>>>>;

class GenerationService final : public RawGeneration {
 public:
  // `frontend` outlives the service.
  explicit GenerationService(Frontend& frontend) : frontend_(frontend) {}

  grpc::ServerWriteReactor<grpc::ByteBuffer>* Generate(grpc::CallbackServerContext* context,
                                                       const grpc::ByteBuffer* request) override;
  grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* GenerateUpload(
      grpc::CallbackServerContext* context) override;
  grpc::ServerUnaryReactor* GenerateOnce(grpc::CallbackServerContext* context,
                                         const grpc::ByteBuffer* request,
                                         grpc::ByteBuffer* response) override;
  grpc::ServerWriteReactor<grpc::ByteBuffer>* Score(grpc::CallbackServerContext* context,
                                                    const grpc::ByteBuffer* request) override;
  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context,
                                     const grpc::ByteBuffer* request,
                                     grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* Detokenize(grpc::CallbackServerContext* context,
                                       const grpc::ByteBuffer* request,
                                       grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* GetModelInfo(grpc::CallbackServerContext* context,
                                         const grpc::ByteBuffer* request,
                                         grpc::ByteBuffer* response) override;

 private:
  enum class AnswerSize { kConstant, kGrowsWithRequest };
  // What a unary call brought, and where its answer goes.
  struct Call {
    const char* rpc;
    grpc::CallbackServerContext& context;
    const grpc::ByteBuffer& request;
    grpc::ByteBuffer& response;
    AnswerSize answer_size;
  };

  template <typename Request, typename Response, typename Body>
  grpc::ServerUnaryReactor* Answer(const Call& call, Body body);

  Frontend& frontend_;
};

}  // namespace bst
