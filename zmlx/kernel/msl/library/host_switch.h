// zmlx/kernel/msl/library/host_switch.h: from one thread of a kernel to another: both are
// coroutines.

/// Saves what a call keeps, and goes on where `to` was saved.
extern "C" __attribute__((visibility("hidden"))) void zmlx_switch(void** from, void* to);
#if defined(__x86_64__)
asm(R"(
  .text
  .globl zmlx_switch
  .hidden zmlx_switch
  .type zmlx_switch, @function
zmlx_switch:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  pop %rcx
  jmp *%rcx
  .size zmlx_switch, . - zmlx_switch
)");
constexpr int zmlx_saved_words = 7;
constexpr int zmlx_return_word = 6;
#elif defined(__aarch64__)
asm(R"(
  .text
  .globl zmlx_switch
  .hidden zmlx_switch
  .type zmlx_switch, %function
zmlx_switch:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  br x30
  .size zmlx_switch, . - zmlx_switch
)");
constexpr int zmlx_saved_words = 20;
constexpr int zmlx_return_word = 11;
#else
#error "threads that wait for each other run on x86-64 and 64-bit Arm only"
#endif
