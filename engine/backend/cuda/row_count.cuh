// How many rows a launch has, on the device's side (kernels.h).
//
// Threads   Runs on the device.
// Tested by tests/engine/backend/cuda/orders_test.cc
#pragma once

#include "engine/backend/cuda/device.h"
#include "engine/backend/cuda/kernels.h"

namespace bst::cuda {

BST_DEVICE int Exact(const RowCount& rows) {
  return rows.exact == nullptr ? rows.most : *rows.exact;
}
// Of the block whose row is BlockX(): there is none, so it returns at once. All of its threads do.
BST_DEVICE bool HasNoRow(const RowCount& rows) { return BlockX() >= Exact(rows); }

}  // namespace bst::cuda
