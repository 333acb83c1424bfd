// Sanitizers make the tests of arithmetic ten to fifty times slower; under them such tests leave
// cases out.
#pragma once

namespace bst {

#ifdef BST_SANITIZED  // cmake/BstTargets.cmake
inline constexpr bool kSanitized = true;
#else
inline constexpr bool kSanitized = false;
#endif
#ifdef BST_SANITIZED_FOR_RACES
inline constexpr bool kSanitizedForRaces = true;
#else
inline constexpr bool kSanitizedForRaces = false;
#endif

// Of many alike cases, counted by `number`, AddressSanitizer sees one in five and ThreadSanitizer,
// to which they are more alike still, one in ten: those a hash picks, for every fifth could be one
// and the same case of an inner loop.
inline constexpr bool LeftOutUnderSanitizers(unsigned int number) {
  return kSanitized && (number * 2654435761u >> 16) % (kSanitizedForRaces ? 10 : 5) != 0;
}

}  // namespace bst
