# zmlx_sources.cmake: the texts of kernel sources that are compiled at run time, as one generated C++ file.
file(GLOB zmlx_texts CONFIGURE_DEPENDS RELATIVE ${PROJECT_SOURCE_DIR} zmlx/kernel/cuda/*.cuh zmlx/kernel/lang/math*.h zmlx/kernel/lang/packs_*.h zmlx/kernel/lang/rows_*.h zmlx/kernel/msl/library/*.h)
set(zmlx_source_texts ${PROJECT_BINARY_DIR}/source_texts.cpp)
set(zmlx_text_script ${CMAKE_CURRENT_LIST_DIR}/embed_texts.cmake)
add_custom_command(
  OUTPUT ${zmlx_source_texts}
  COMMAND ${CMAKE_COMMAND}
    -D "files=${zmlx_texts}" -D root=${PROJECT_SOURCE_DIR} -D output=${zmlx_source_texts} -P ${zmlx_text_script}
  DEPENDS ${zmlx_texts} ${zmlx_text_script}
  VERBATIM)
