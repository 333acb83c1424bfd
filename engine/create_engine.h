// CreateEngine: Engine::Create with the machine and the clock chosen by the caller.
//
// Engine::Create is this with the backend that the options name and the process's clock; tests put
// a failing backend or a clock of their own in their place.
//
// Threads   Thread-safe; the observer as in engine.h.
// Tested by tests/engine/engine_lifecycle_test.cc, engine_options_test.cc
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "engine/backend/backend.h"
#include "engine/base/clock.h"
#include "engine/engine.h"

namespace bst {

struct EngineParts {
  std::unique_ptr<Backend> backend;        // null: as options.backend says
  const Clock* clock = &MonotonicClock();  // outlives the engine
};

// Errors: those of Engine::Create.
absl::StatusOr<std::unique_ptr<Engine>> CreateEngine(const EngineOptions& options,
                                                     EngineObserver* observer, EngineParts parts);

}  // namespace bst
