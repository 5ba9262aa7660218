# zmlx_install.cmake: what `cmake --install` and the wheel contain: library, headers, and the package for find_package(zmlx).
if(SKBUILD)
  # The wheel's prefix is the package's own folder, next to mlx's in site-packages.
  set(CMAKE_INSTALL_LIBDIR lib)
  set_target_properties(zmlx PROPERTIES INSTALL_RPATH "$ORIGIN/../../mlx/lib")
else()
  get_target_property(zmlx_mlx_library mlx IMPORTED_LOCATION_RELEASE)
  get_filename_component(zmlx_mlx_folder ${zmlx_mlx_library} DIRECTORY)
  set_target_properties(zmlx PROPERTIES INSTALL_RPATH ${zmlx_mlx_folder})
endif()
set(zmlx_package_folder ${CMAKE_INSTALL_LIBDIR}/cmake/zmlx)

install(TARGETS zmlx EXPORT zmlx LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(DIRECTORY zmlx DESTINATION include FILES_MATCHING PATTERN "*.h")
install(EXPORT zmlx DESTINATION ${zmlx_package_folder} FILE zmlxTargets.cmake NAMESPACE zmlx::)
configure_package_config_file(
  ${CMAKE_CURRENT_LIST_DIR}/zmlxConfig.cmake.in ${PROJECT_BINARY_DIR}/zmlxConfig.cmake
  INSTALL_DESTINATION ${zmlx_package_folder})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/zmlxConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(
  FILES
    ${PROJECT_BINARY_DIR}/zmlxConfig.cmake
    ${PROJECT_BINARY_DIR}/zmlxConfigVersion.cmake
    ${CMAKE_CURRENT_LIST_DIR}/zmlx_mlx.cmake
  DESTINATION ${zmlx_package_folder})
