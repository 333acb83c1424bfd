#include "server/auth_tokens.h"

#include <gtest/gtest.h>

#include <fstream>
#include <string>

namespace bst {
namespace {

std::string WriteKeys(const std::string& text) {
  const std::string path = testing::TempDir() + "/bst_auth_tokens_test_keys";
  std::ofstream(path) << text;
  return path;
}

TEST(AuthTokens, WithoutKeysEveryoneMayCall) {
  EXPECT_TRUE(AuthTokens().Check(std::nullopt).ok());
  EXPECT_TRUE(AuthTokens().Check("Bearer x").ok());
}

TEST(AuthTokens, AnyOfTheKeysWill) {
  const auto tokens = AuthTokens::Load(WriteKeys("first\n\n  second  \r\nthird"));
  ASSERT_TRUE(tokens.ok()) << tokens.status();
  for (const char* const key : {"Bearer first", "Bearer second", "bearer third"}) {
    EXPECT_TRUE(tokens->Check(key).ok()) << key;
  }
}

TEST(AuthTokens, NoCredentialsAndWrongOnesAreToldApart) {
  const auto tokens = AuthTokens::Load(WriteKeys("first\n"));
  ASSERT_TRUE(tokens.ok());
  for (const auto& none :
       {std::optional<std::string_view>(), std::optional<std::string_view>(""),
        std::optional<std::string_view>("first"), std::optional<std::string_view>("Basic first"),
        std::optional<std::string_view>("Bearer ")}) {
    EXPECT_EQ(tokens->Check(none).code(), absl::StatusCode::kUnauthenticated)
        << none.value_or("(none)");
  }
  for (const char* const wrong :
       {"Bearer firs", "Bearer first2", "Bearer  first", "Bearer FIRST"}) {
    EXPECT_EQ(tokens->Check(wrong).code(), absl::StatusCode::kPermissionDenied) << wrong;
  }
}

TEST(AuthTokens, AFileWithoutKeysIsAnErrorNotAnOpenDoor) {
  EXPECT_EQ(AuthTokens::Load(WriteKeys("\n \n")).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(AuthTokens::Load("/nonexistent/keys").status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace bst
