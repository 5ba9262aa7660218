# zmlx_python.cmake: the extension module zmlx._ext, which shares mx.array with MLX's own bindings.
execute_process(
  COMMAND ${Python_EXECUTABLE} -m nanobind --cmake_dir
  OUTPUT_VARIABLE nanobind_ROOT
  OUTPUT_STRIP_TRAILING_WHITESPACE
  RESULT_VARIABLE zmlx_nanobind_result
  ERROR_QUIET)
if(NOT zmlx_nanobind_result EQUAL 0)
  message(FATAL_ERROR
    "${Python_EXECUTABLE} has no nanobind. Install it with\n"
    "  ${Python_EXECUTABLE} -m pip install nanobind==3.1.0\n"
    "or configure with -DZMLX_BUILD_PYTHON=OFF.")
endif()
# The exact version: mx.array is shared only between extensions of the same nanobind internals.
find_package(nanobind 3.1.0 EXACT CONFIG REQUIRED)

nanobind_add_module(_ext NB_STATIC NB_DOMAIN mlx NB_SUPPRESS_WARNINGS
  ${PROJECT_SOURCE_DIR}/python/src/authoring.cpp
  ${PROJECT_SOURCE_DIR}/python/src/ext.cpp
  ${PROJECT_SOURCE_DIR}/python/src/metal.cpp
  ${PROJECT_SOURCE_DIR}/python/src/runner.cpp)
target_link_libraries(_ext PRIVATE zmlx zmlx_options)
nanobind_add_stub(_ext_stub
  MODULE _ext
  OUTPUT ${PROJECT_BINARY_DIR}/_ext.pyi
  PYTHON_PATH $<TARGET_FILE_DIR:_ext>
  DEPENDS _ext)
if(SKBUILD)
  install(FILES ${PROJECT_BINARY_DIR}/_ext.pyi DESTINATION .)
  set_target_properties(_ext PROPERTIES INSTALL_RPATH "$ORIGIN/lib;$ORIGIN/../mlx/lib")
  install(TARGETS _ext LIBRARY DESTINATION .)
endif()
