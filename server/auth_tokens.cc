#include "server/auth_tokens.h"

#include <openssl/crypto.h>
#include <openssl/sha.h>

#include <fstream>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace bst {

AuthTokens::Digest AuthTokens::Hash(std::string_view key) {
  Digest digest;
  SHA256(reinterpret_cast<const unsigned char*>(key.data()), key.size(), digest.data());
  return digest;
}

absl::StatusOr<AuthTokens::Key> AuthTokens::Parse(std::string_view line) {
  const std::vector<std::string> words =
      absl::StrSplit(std::string(line), absl::ByAnyChar(" \t"), absl::SkipEmpty());
  Key key = {.digest = Hash(words.front()), .expires = absl::InfiniteFuture()};
  if (words.size() == 1) return key;
  constexpr std::string_view kExpires = "expires=";
  std::string error;
  if (words.size() > 2 || !words[1].starts_with(kExpires) ||
      !absl::ParseTime(absl::RFC3339_full, words[1].substr(kExpires.size()), &key.expires,
                       &error)) {
    return absl::InvalidArgumentError("is not KEY or KEY expires=2026-12-31T00:00:00Z");
  }
  return key;
}

absl::StatusOr<AuthTokens> AuthTokens::Load(const std::string& path) {
  std::ifstream file(path);
  if (!file) return absl::InvalidArgumentError(absl::StrCat("cannot read the key file ", path));
  AuthTokens tokens;
  std::string line;
  for (int number = 1; std::getline(file, line); ++number) {
    absl::StripAsciiWhitespace(&line);
    if (line.empty()) continue;
    const absl::StatusOr<Key> key = Parse(line);
    if (!key.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat("line ", number, " of the key file ", path, " ", key.status().message()));
    }
    tokens.keys_.push_back(*key);
  }
  if (tokens.keys_.empty()) return absl::InvalidArgumentError(absl::StrCat("no key in ", path));
  return tokens;
}

absl::Status AuthTokens::Check(std::optional<std::string_view> authorization,
                               absl::Time now) const {
  if (keys_.empty()) return absl::OkStatus();
  constexpr std::string_view kScheme = "Bearer ";
  if (!authorization.has_value() || authorization->size() <= kScheme.size() ||
      !absl::StartsWithIgnoreCase(absl::string_view(authorization->data(), authorization->size()),
                                  absl::string_view(kScheme.data(), kScheme.size()))) {
    return absl::UnauthenticatedError("credentials needed: metadata 'authorization: Bearer KEY'");
  }
  const Digest shown = Hash(authorization->substr(kScheme.size()));
  bool known = false, valid = false;
  for (const Key& key : keys_) {
    const bool same = CRYPTO_memcmp(key.digest.data(), shown.data(), shown.size()) == 0;
    known |= same;
    valid |= same && now < key.expires;
  }
  if (valid) return absl::OkStatus();
  return known ? absl::UnauthenticatedError("the key has expired")
               : absl::PermissionDeniedError("the key is not one of this server's");
}

}  // namespace bst
