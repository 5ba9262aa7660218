# zmlx_kernels.cmake: what needs no MLX (kernels, thread team) as a static library, and its tests. Highway is taken as
# headers, so for one instruction set; GoogleTest is built from Debian's source (libgtest-dev).
find_path(ZMLX_HIGHWAY_INCLUDE hwy/highway.h REQUIRED)
set(ZMLX_GTEST_SOURCE /usr/src/googletest CACHE PATH "GoogleTest's source")

# A folder with nothing else in it: /usr/include itself belongs to the compiler of this machine.
file(MAKE_DIRECTORY ${PROJECT_BINARY_DIR}/headers)
file(CREATE_LINK ${ZMLX_HIGHWAY_INCLUDE}/hwy ${PROJECT_BINARY_DIR}/headers/hwy SYMBOLIC)

set(zmlx_kernel_sources
  zmlx/kernel/cpu/instruction_sets.cpp
  zmlx/kernel/cpu/matmul.cpp
  zmlx/kernel/cpu/matmul_amx.cpp
  zmlx/kernel/cpu/matmul_avx2.cpp
  zmlx/kernel/cpu/matmul_avx512bf16.cpp
  zmlx/kernel/cpu/matmul_int16_avx512vnni.cpp
  zmlx/kernel/cpu/matmul_int8.cpp
  zmlx/kernel/cpu/matmul_int8_amx.cpp
  zmlx/kernel/cpu/matmul_int8_avx512vnni.cpp
  zmlx/kernel/cpu/matmul_portable.cpp
  zmlx/kernel/cpu/rows.cpp)
add_library(zmlx_kernels STATIC ${zmlx_kernel_sources} zmlx/runtime/cores.cpp zmlx/runtime/team.cpp zmlx/runtime/tensor.cpp)
target_include_directories(zmlx_kernels PUBLIC ${PROJECT_SOURCE_DIR})
target_include_directories(zmlx_kernels SYSTEM PUBLIC ${PROJECT_BINARY_DIR}/headers)
target_compile_definitions(zmlx_kernels PUBLIC HWY_COMPILE_ONLY_STATIC)
target_link_libraries(zmlx_kernels PUBLIC Threads::Threads PRIVATE zmlx_options)

if(ZMLX_BUILD_TESTS)
  enable_testing()
  add_subdirectory(${ZMLX_GTEST_SOURCE} googletest EXCLUDE_FROM_ALL)
  foreach(name matmul_test team_test)
    add_executable(${name} tests/cpp/${name}.cpp)
    target_link_libraries(${name} PRIVATE zmlx_kernels zmlx_options gtest_main)
    add_test(NAME ${name} COMMAND ${name})
  endforeach()
endif()
