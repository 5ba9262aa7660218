# zmlx_mlx.cmake: finds the MLX that Python imports (or the one in MLX_DIR): the very version that zmlx is written for.
if(NOT MLX_DIR)
  find_package(Python 3.10 COMPONENTS Interpreter REQUIRED)
  execute_process(
    COMMAND ${Python_EXECUTABLE} -m mlx --cmake-dir
    OUTPUT_VARIABLE zmlx_mlx_root
    OUTPUT_STRIP_TRAILING_WHITESPACE
    ERROR_VARIABLE zmlx_mlx_error
    RESULT_VARIABLE zmlx_mlx_result)
  if(NOT zmlx_mlx_result EQUAL 0)
    message(FATAL_ERROR
      "${Python_EXECUTABLE} cannot import MLX. Install it with\n"
      "  ${Python_EXECUTABLE} -m pip install 'mlx[cpu]==${ZMLX_MLX_VERSION}'\n"
      "or choose another interpreter with -DPython_EXECUTABLE=...\n${zmlx_mlx_error}")
  endif()
  set(MLX_DIR ${zmlx_mlx_root}/share/cmake/MLX CACHE PATH "Folder of MLXConfig.cmake")
endif()
find_package(MLX ${ZMLX_MLX_VERSION} EXACT CONFIG REQUIRED)
