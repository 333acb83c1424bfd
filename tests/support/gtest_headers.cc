// Compiles the headers of GoogleTest once for all tests (bst_test in cmake/BstTargets.cmake).
