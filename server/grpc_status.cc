#include "server/grpc_status.h"

#include <grpcpp/server_context.h>

#include "absl/strings/cord.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace bst {
namespace {

constexpr char kTypePrefix[] = "type.googleapis.com/";
constexpr char kBadRequestType[] = "type.googleapis.com/google.rpc.BadRequest";

constexpr char kNoRetryPayload[] = "bst/no-retry";

bool AsksForRetry(const absl::Status& status) {
  return (absl::IsResourceExhausted(status) || absl::IsUnavailable(status)) &&
         !status.GetPayload(kNoRetryPayload).has_value();
}

}  // namespace

absl::Status InvalidFields(const std::vector<FieldViolation>& violations, int num_omitted) {
  google::rpc::BadRequest details;
  std::string message;
  for (const FieldViolation& violation : violations) {
    auto* const field = details.add_field_violations();
    field->set_field(violation.field);
    field->set_description(violation.description);
    absl::StrAppend(&message, message.empty() ? "" : "; ", violation.field, " ",
                    violation.description);
  }
  if (num_omitted > 0) absl::StrAppend(&message, "; and ", num_omitted, " more");
  absl::Status status = absl::InvalidArgumentError(message);
  status.SetPayload(kBadRequestType, absl::Cord(details.SerializeAsString()));
  return status;
}

absl::Status WithoutRetry(absl::Status status) {
  status.SetPayload(kNoRetryPayload, absl::Cord());
  return status;
}

grpc::Status ToGrpcStatus(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  const std::string message(status.message());
  google::rpc::Status rpc_status;
  rpc_status.set_code(static_cast<int>(status.code()));
  rpc_status.set_message(message);
  status.ForEachPayload([&rpc_status](absl::string_view type_url, const absl::Cord& payload) {
    if (!absl::StartsWith(type_url, kTypePrefix)) return;
    google::protobuf::Any* const detail = rpc_status.add_details();
    detail->set_type_url(std::string(type_url));
    detail->set_value(std::string(payload));
  });
  if (AsksForRetry(status)) {
    google::rpc::RetryInfo retry;
    retry.mutable_retry_delay()->set_seconds(absl::ToInt64Seconds(kRetryDelay));
    rpc_status.add_details()->PackFrom(retry);
  }
  if (status.code() == absl::StatusCode::kInvalidArgument && rpc_status.details_size() == 0) {
    google::rpc::BadRequest details;
    auto* const violation = details.add_field_violations();
    violation->set_field("request");
    violation->set_description(message);
    rpc_status.add_details()->PackFrom(details);
  }
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), message,
                      rpc_status.details_size() == 0 ? "" : rpc_status.SerializeAsString());
}

grpc::Status ToGrpcStatus(const absl::Status& status, grpc::ServerContextBase& context) {
  if (AsksForRetry(status)) {
    context.AddTrailingMetadata("grpc-retry-pushback-ms",
                                absl::StrCat(absl::ToInt64Milliseconds(kRetryDelay)));
  }
  return ToGrpcStatus(status);
}

std::string CodeName(absl::StatusCode code) { return absl::StatusCodeToString(code); }

}  // namespace bst
