#include "clients/cli/upload.h"

#include <algorithm>
#include <string>
#include <thread>

#include "clients/cli/event_stream.h"

namespace bst::cli {
namespace {

// Every server takes messages of this size: its --max_message_bytes is at least that.
constexpr size_t kSmallMessageBytes = 1024;
constexpr uint64_t kPartBytes = uint64_t{1} << 20;
// Of a part: tags and lengths.
constexpr uint64_t kOverheadBytes = 32;
constexpr uint64_t kMaxIdBytes = 5;

bool IsInsideCharacter(const std::string& text, size_t at) {
  return at < text.size() && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80;
}

}  // namespace

grpc::Status CheckMessageLimit(const Connection& connection, v1::Generation::Stub& stub,
                               size_t bytes, std::optional<uint64_t>& exceeded) {
  if (bytes <= kSmallMessageBytes) return grpc::Status::OK;
  grpc::ClientContext context;
  connection.Prepare(context);
  v1::ModelInfo info;
  grpc::Status status = stub.GetModelInfo(&context, {}, &info);
  if (status.ok() && bytes > info.limits().max_message_bytes()) {
    exceeded = info.limits().max_message_bytes();
  }
  return status;
}

grpc::Status TooLarge(uint64_t bytes, uint64_t limit) {
  return {grpc::StatusCode::RESOURCE_EXHAUSTED, "the request has " + std::to_string(bytes) +
                                                    " bytes, the server's message limit is " +
                                                    std::to_string(limit)};
}

void ForEachPart(const v1::GenerateRequest& request, uint64_t max_message_bytes,
                 const std::function<bool(const v1::GenerateUploadPart&)>& send) {
  v1::GenerateUploadPart part;
  *part.mutable_request() = request;
  part.mutable_request()->clear_prompt();
  if (!send(part)) return;
  const uint64_t bytes =
      std::max(std::min(kPartBytes, max_message_bytes), kOverheadBytes + 4 * kMaxIdBytes) -
      kOverheadBytes;
  if (request.has_text()) {
    const std::string& text = request.text();
    for (size_t begin = 0; begin < text.size();) {
      size_t end = std::min<size_t>(text.size(), begin + bytes);
      while (end > begin && IsInsideCharacter(text, end)) --end;
      part.set_text(text.substr(begin, end - begin));
      if (!send(part)) return;
      begin = end;
    }
  } else {
    const auto& ids = request.token_ids().ids();
    const auto count = static_cast<int>(bytes / kMaxIdBytes);
    for (int begin = 0; begin < ids.size(); begin += count) {
      const int end = std::min(ids.size(), begin + count);
      part.mutable_token_ids()->mutable_ids()->Assign(ids.begin() + begin, ids.begin() + end);
      if (!send(part)) return;
    }
  }
}

grpc::Status Upload(v1::Generation::Stub& stub, grpc::ClientContext& context,
                    const v1::GenerateRequest& request, uint64_t max_message_bytes,
                    const std::function<void(const v1::GenerateEvent&)>& handle) {
  const auto stream = stub.GenerateUpload(&context);
  // A write ends at the latest when the call does.
  std::thread writer([&] {
    bool writable = true;
    ForEachPart(request, max_message_bytes,
                [&](const v1::GenerateUploadPart& part) { return writable = stream->Write(part); });
    if (writable) stream->WritesDone();
  });
  return ReadEvents<v1::GenerateEvent>(*stream, handle, [&writer] { writer.join(); });
}

}  // namespace bst::cli
