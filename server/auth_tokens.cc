#include "server/auth_tokens.h"

#include <openssl/crypto.h>
#include <openssl/sha.h>

#include <fstream>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace bst {

AuthTokens::Digest AuthTokens::Hash(std::string_view key) {
  Digest digest;
  SHA256(reinterpret_cast<const unsigned char*>(key.data()), key.size(), digest.data());
  return digest;
}

absl::StatusOr<AuthTokens> AuthTokens::Load(const std::string& path) {
  std::ifstream file(path);
  if (!file) return absl::InvalidArgumentError(absl::StrCat("cannot read the key file ", path));
  AuthTokens tokens;
  std::string line;
  while (std::getline(file, line)) {
    absl::StripAsciiWhitespace(&line);
    if (!line.empty()) tokens.digests_.push_back(Hash(line));
  }
  if (tokens.digests_.empty()) return absl::InvalidArgumentError(absl::StrCat("no key in ", path));
  return tokens;
}

absl::Status AuthTokens::Check(std::optional<std::string_view> authorization) const {
  if (digests_.empty()) return absl::OkStatus();
  constexpr std::string_view kScheme = "Bearer ";
  if (!authorization.has_value() || authorization->size() <= kScheme.size() ||
      !absl::StartsWithIgnoreCase(absl::string_view(authorization->data(), authorization->size()),
                                  absl::string_view(kScheme.data(), kScheme.size()))) {
    return absl::UnauthenticatedError("credentials needed: metadata 'authorization: Bearer KEY'");
  }
  const Digest shown = Hash(authorization->substr(kScheme.size()));
  bool known = false;
  for (const Digest& digest : digests_) {
    known |= CRYPTO_memcmp(digest.data(), shown.data(), shown.size()) == 0;
  }
  return known ? absl::OkStatus()
               : absl::PermissionDeniedError("the key is not one of this server's");
}

}  // namespace bst
