# bst-bench --backend=cuda on a machine without a GPU: one line that names what is missing, status 1.
if(EXISTS /dev/nvidiactl)
  message("skipped: there is a GPU here, tests/gpu/run measures")
  return()
endif()
execute_process(COMMAND ${BENCH} --backend=cuda RESULT_VARIABLE status OUTPUT_VARIABLE out ERROR_VARIABLE err)
if(NOT status EQUAL 1 OR NOT out STREQUAL "" OR NOT err MATCHES "^no CUDA (engine|driver|device): [^\n]+\n$")
  message(FATAL_ERROR "status ${status}, stdout '${out}', stderr '${err}'")
endif()
