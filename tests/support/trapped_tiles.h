// AMX on processors without it: its instructions trap there, and a handler of SIGILL does what they
// would have done to registers of its own, one set per thread. So the tests run the kernels for AMX
// as they are shipped, instruction by instruction, on processors with AVX-512 and VNNI, which those
// kernels use besides.
//
// Instructions, operands and faults follow Intel's Software Developer's Manual, volume 2
// (LDTILECFG, TILELOADD, TILELOADDT1, TILESTORED, TILEZERO, TILERELEASE, TDPBF16PS, TDPBSSD,
// TDPBSUD, TDPBUSD, TDPBUUD). What would fault on hardware ends the process, with a message that
// names the instruction and what is wrong; so does a configuration that starts at a later row,
// which is not emulated.
//
// Threads   Thread-safe.
// Tested by tests/support/trapped_tiles_test.cc, whose cases run on hardware where it has AMX
#pragma once

namespace bst {

// From now on, in every thread. For processors without AMX: elsewhere nothing traps. If `broken`,
// TDPBUSD adds nothing: for tests of what should notice.
void TrapTileInstructions(bool broken = false);

}  // namespace bst
