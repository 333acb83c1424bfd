// AuthTokens: the keys of which a client must show one, as metadata `authorization: Bearer KEY`.
//
// Holds SHA-256 digests alone, and compares all of them in constant time: the time of a check tells
// nothing about a key. A key may have a last moment; the wall clock decides.
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
#include "absl/time/time.h"

namespace bst {

class AuthTokens {
 public:
  // No keys: everyone may call.
  AuthTokens() = default;

  // Reads one key per line: `KEY`, or `KEY expires=2026-12-31T00:00:00Z` (RFC 3339). Blank lines
  // and white space around a line do not count; a key has none inside. Errors: kInvalidArgument
  // when the file cannot be read, has no key, or has a line of another form (which the message
  // names by its number: it may hold a key).
  static absl::StatusOr<AuthTokens> Load(const std::string& path);

  // `authorization`: the value of that metadata key, nullopt when the call has none.
  // Errors: kUnauthenticated without credentials of the right form, and for a key that has expired
  // by `now`; kPermissionDenied for a wrong key.
  absl::Status Check(std::optional<std::string_view> authorization, absl::Time now) const;

 private:
  using Digest = std::array<uint8_t, 32>;
  struct Key {
    Digest digest;
    absl::Time expires;  // InfiniteFuture: never
  };

  static Digest Hash(std::string_view key);
  static absl::StatusOr<Key> Parse(std::string_view line);

  std::vector<Key> keys_;
};

}  // namespace bst
