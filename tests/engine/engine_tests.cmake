# Tests of the files that lie directly in engine/.
bst_test(NAME engine_inbox_test SRCS engine_inbox_test.cc DEPS bst_engine THREADS)
bst_test(NAME engine_request_check_test SRCS engine_request_check_test.cc DEPS bst_engine)
bst_test(NAME engine_options_test SRCS engine_options_test.cc DEPS bst_engine THREADS)
bst_test(NAME engine_test SRCS engine_test.cc DEPS bst_engine bst_test_support THREADS)
bst_test(NAME engine_lifecycle_test SRCS engine_lifecycle_test.cc DEPS bst_engine THREADS)
bst_test(NAME engine_memory_test SRCS engine_memory_test.cc DEPS bst_engine bst_tokenizer)
# As step_allocation_test.
target_compile_options(engine_memory_test PRIVATE -Wno-mismatched-new-delete)
bst_test(NAME engine_fault_test SRCS engine_fault_test.cc DEPS bst_engine THREADS)
bst_test(NAME engine_concurrency_test SRCS engine_concurrency_test.cc DEPS bst_engine THREADS)
