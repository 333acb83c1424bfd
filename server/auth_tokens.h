// AuthTokens: the keys of which a client must show one, as metadata `authorization: Bearer KEY`.
//
// Holds SHA-256 digests alone, and compares all of them in constant time: the time of a check tells
// nothing about a key.
//
// Threads     Immutable, thread-safe.
// Tested by   tests/server/auth_tokens_test.cc
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace bst {

class AuthTokens {
 public:
  // No keys: everyone may call.
  AuthTokens() = default;

  // Reads one key per line; blank lines and white space around a key do not count.
  // Errors: kInvalidArgument when the file cannot be read or has no key.
  static absl::StatusOr<AuthTokens> Load(const std::string& path);

  // `authorization`: the value of that metadata key, nullopt when the call has none.
  // Errors: kUnauthenticated without credentials of the right form; kPermissionDenied for a wrong
  // key.
  absl::Status Check(std::optional<std::string_view> authorization) const;

 private:
  using Digest = std::array<uint8_t, 32>;

  static Digest Hash(std::string_view key);

  std::vector<Digest> digests_;
};

}  // namespace bst
