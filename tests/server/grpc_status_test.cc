#include "server/grpc_status.h"

#include <gtest/gtest.h>

#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace bst {
namespace {

google::rpc::Status DetailsOf(const grpc::Status& status) {
  google::rpc::Status details;
  EXPECT_TRUE(details.ParseFromString(status.error_details()));
  return details;
}

TEST(GrpcStatus, EveryCodeKeepsItsNumberAndItsMessage) {
  EXPECT_TRUE(ToGrpcStatus(absl::OkStatus()).ok());
  for (int code = 1; code <= 16; ++code) {
    const grpc::Status status =
        ToGrpcStatus(absl::Status(static_cast<absl::StatusCode>(code), "why"));
    EXPECT_EQ(static_cast<int>(status.error_code()), code);
    EXPECT_EQ(status.error_message(), "why");
  }
  EXPECT_EQ(CodeName(absl::StatusCode::kOk), "OK");
  EXPECT_EQ(CodeName(absl::StatusCode::kResourceExhausted), "RESOURCE_EXHAUSTED");
}

TEST(GrpcStatus, InvalidFieldsBecomeABadRequest) {
  const grpc::Status status =
      ToGrpcStatus(InvalidFields({{"a.b", "is 1, must be 2"}, {"c", "is empty"}}));
  EXPECT_EQ(status.error_message(), "a.b is 1, must be 2; c is empty");
  const google::rpc::Status details = DetailsOf(status);
  EXPECT_EQ(details.code(), 3);
  EXPECT_EQ(details.message(), status.error_message());
  ASSERT_EQ(details.details_size(), 1);
  google::rpc::BadRequest bad_request;
  ASSERT_TRUE(details.details(0).UnpackTo(&bad_request));
  ASSERT_EQ(bad_request.field_violations_size(), 2);
  EXPECT_EQ(bad_request.field_violations(0).field(), "a.b");
  EXPECT_EQ(bad_request.field_violations(1).description(), "is empty");
}

TEST(GrpcStatus, AnyInvalidArgumentHasABadRequest) {
  const google::rpc::Status details =
      DetailsOf(ToGrpcStatus(absl::InvalidArgumentError("top_p is 2")));
  google::rpc::BadRequest bad_request;
  ASSERT_EQ(details.details_size(), 1);
  ASSERT_TRUE(details.details(0).UnpackTo(&bad_request));
  EXPECT_EQ(bad_request.field_violations(0).description(), "top_p is 2");
}

TEST(GrpcStatus, RetryInfoWhereTryingAgainHelps) {
  for (const absl::Status& status :
       {absl::ResourceExhaustedError("full"), absl::UnavailableError("draining")}) {
    const google::rpc::Status details = DetailsOf(ToGrpcStatus(status));
    google::rpc::RetryInfo retry;
    ASSERT_EQ(details.details_size(), 1);
    ASSERT_TRUE(details.details(0).UnpackTo(&retry));
    EXPECT_EQ(retry.retry_delay().seconds(), 1);
  }
  EXPECT_EQ(ToGrpcStatus(absl::InternalError("bug")).error_details(), "");
  const grpc::Status final = ToGrpcStatus(WithoutRetry(absl::ResourceExhaustedError("slow")));
  EXPECT_EQ(final.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(final.error_details(), "");
}

}  // namespace
}  // namespace bst
