# zmlx_highway.cmake: finds Highway, or fetches a release of it where the system has none.
find_package(hwy 1.0.3 CONFIG QUIET)
if(NOT hwy_FOUND)
  set(zmlx_highway_url https://github.com/google/highway.git)
  set(zmlx_highway_commit 457c891775a7397bdb0376bb1031e6e027af1c48) # release 1.2.0
  message(STATUS "Highway 1.0.3 or later is not installed: fetching it from ${zmlx_highway_url}")
  find_package(Git)
  set(zmlx_highway_result "git is not installed")
  if(GIT_FOUND)
    execute_process(
      COMMAND ${GIT_EXECUTABLE} ls-remote --exit-code ${zmlx_highway_url} HEAD
      TIMEOUT 60
      OUTPUT_QUIET
      ERROR_VARIABLE zmlx_highway_error
      RESULT_VARIABLE zmlx_highway_result)
  endif()
  if(NOT zmlx_highway_result EQUAL 0)
    message(FATAL_ERROR
      "zmlx needs Highway 1.0.3 or later and cannot fetch it. On Debian and Ubuntu install it with\n"
      "  apt-get install libhwy-dev\n"
      "${zmlx_highway_error}")
  endif()
  include(FetchContent)
  set(HWY_ENABLE_INSTALL OFF)
  set(HWY_ENABLE_TESTS OFF)
  set(HWY_ENABLE_EXAMPLES OFF)
  set(HWY_ENABLE_CONTRIB OFF)
  set(HWY_FORCE_STATIC_LIBS ON)
  set(CMAKE_POLICY_DEFAULT_CMP0077 NEW)
  FetchContent_Declare(
    highway
    GIT_REPOSITORY ${zmlx_highway_url}
    GIT_TAG ${zmlx_highway_commit}
    SYSTEM)
  FetchContent_MakeAvailable(highway)
  if(NOT TARGET hwy::hwy)
    add_library(hwy::hwy ALIAS hwy)
  endif()
endif()
