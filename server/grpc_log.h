// What the gRPC library says about itself -> lines of our log.
//
// Its messages quote what came over the wire: they are cut, and stripped of all but printable
// ASCII.
//
// Threads     Thread-safe.
// Tested by   tests/e2e/reliability_log_test.py
#pragma once

namespace bst {

// From now on, for the whole process. Until then the library writes to stderr in a format of its
// own.
void RouteGrpcLog();

}  // namespace bst
