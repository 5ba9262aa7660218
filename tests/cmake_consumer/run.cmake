# tests/cmake_consumer/run.cmake: installs the build, builds the project here against it, and runs it.
set(work ${build}/cmake_consumer)
file(REMOVE_RECURSE ${work})
function(run)
  execute_process(COMMAND ${ARGV} COMMAND_ERROR_IS_FATAL ANY)
endfunction()
run(${CMAKE_COMMAND} --install ${build} --prefix ${work}/prefix)
run(${CMAKE_COMMAND} -S ${CMAKE_CURRENT_LIST_DIR} -B ${work}/build -G ${generator}
  -DCMAKE_MAKE_PROGRAM=${ninja} -DCMAKE_CXX_COMPILER=${compiler}
  -DCMAKE_PREFIX_PATH=${work}/prefix -DMLX_DIR=${mlx})
run(${CMAKE_COMMAND} --build ${work}/build)
run(${work}/build/consumer)
