#include "server/auth_tokens.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>
#include <string>

namespace bst {
namespace {

const absl::Time kNow = absl::UnixEpoch() + absl::Hours(24 * 365 * 56);

absl::StatusOr<AuthTokens> LoadKeys(const std::string& text) {
  const std::string path =
      testing::TempDir() + "/bst_auth_tokens_test_" + std::to_string(::getpid());
  std::ofstream(path) << text;
  absl::StatusOr<AuthTokens> tokens = AuthTokens::Load(path);
  ::unlink(path.c_str());
  return tokens;
}

TEST(AuthTokens, WithoutKeysEveryoneMayCall) {
  EXPECT_TRUE(AuthTokens().Check(std::nullopt, kNow).ok());
  EXPECT_TRUE(AuthTokens().Check("Bearer x", kNow).ok());
}

TEST(AuthTokens, AnyOfTheKeysWill) {
  const auto tokens = LoadKeys("first\n\n  second  \r\nthird");
  ASSERT_TRUE(tokens.ok()) << tokens.status();
  for (const char* const key : {"Bearer first", "Bearer second", "bearer third"}) {
    EXPECT_TRUE(tokens->Check(key, kNow).ok()) << key;
  }
}

TEST(AuthTokens, NoCredentialsAndWrongOnesAreToldApart) {
  const auto tokens = LoadKeys("first\n");
  ASSERT_TRUE(tokens.ok());
  for (const auto& none :
       {std::optional<std::string_view>(), std::optional<std::string_view>(""),
        std::optional<std::string_view>("first"), std::optional<std::string_view>("Basic first"),
        std::optional<std::string_view>("Bearer ")}) {
    EXPECT_EQ(tokens->Check(none, kNow).code(), absl::StatusCode::kUnauthenticated)
        << none.value_or("(none)");
  }
  for (const char* const wrong :
       {"Bearer firs", "Bearer first2", "Bearer  first", "Bearer FIRST"}) {
    EXPECT_EQ(tokens->Check(wrong, kNow).code(), absl::StatusCode::kPermissionDenied) << wrong;
  }
}

TEST(AuthTokens, AKeyMayExpire) {
  const auto tokens = LoadKeys(
      "old expires=2001-01-01T00:00:00Z\n"
      "new\texpires=2001-01-01T02:00:00.5+02:00\n"
      "both expires=2000-01-01T00:00:00Z\nboth\n");
  ASSERT_TRUE(tokens.ok()) << tokens.status();
  absl::Time end;
  ASSERT_TRUE(absl::ParseTime(absl::RFC3339_full, "2001-01-01T00:00:00Z", &end, nullptr));
  const absl::Time before = end - absl::Nanoseconds(1);
  EXPECT_TRUE(tokens->Check("Bearer old", before).ok());
  EXPECT_TRUE(tokens->Check("Bearer new", end).ok());
  EXPECT_EQ(tokens->Check("Bearer old", end).code(), absl::StatusCode::kUnauthenticated);
  EXPECT_EQ(tokens->Check("Bearer new", end + absl::Seconds(1)).code(),
            absl::StatusCode::kUnauthenticated);
  EXPECT_TRUE(tokens->Check("Bearer both", end).ok());  // one of its lines is good
  EXPECT_EQ(tokens->Check("Bearer neither", end).code(), absl::StatusCode::kPermissionDenied);
  EXPECT_EQ(tokens->Check("Bearer old", end).message().find("old"), std::string::npos);
}

TEST(AuthTokens, ALineOfAnotherFormIsAnErrorThatDoesNotShowIt) {
  for (const char* const line :
       {"secret word", "secret expires=tomorrow", "secret expires=2026-12-31", "secret expires=",
        "secret expires=2026-12-31T00:00:00Z more", "secret EXPIRES=2026-12-31T00:00:00Z"}) {
    const absl::Status status = LoadKeys(std::string("good\n\n") + line + "\n").status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << line;
    EXPECT_NE(status.message().find("line 3"), std::string::npos) << status;
    EXPECT_EQ(status.message().find("secret"), std::string::npos) << status;
  }
}

TEST(AuthTokens, AFileWithoutKeysIsAnErrorNotAnOpenDoor) {
  EXPECT_EQ(LoadKeys("\n \n").status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(AuthTokens::Load("/nonexistent/keys").status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace bst
