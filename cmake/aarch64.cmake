# aarch64.cmake: toolchain file for 64-bit Arm with Debian's g++-aarch64-linux-gnu; tests run under qemu-user-static.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_CROSSCOMPILING_EMULATOR qemu-aarch64-static)
# The programs carry their libraries: the emulator would not find those of another architecture.
set(CMAKE_EXE_LINKER_FLAGS_INIT -static)
