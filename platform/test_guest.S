// Guest programs of platform_test.cc and the trap path benchmark.
    .section .rodata
    .balign 4096
    .globl guest_begin, guest_end, guest_syscall_loop, guest_fault, guest_spin, guest_avx
    .globl guest_counter, guest_site, guest_divide, guest_int80, guest_trap, guest_set_gs, guest_hostile
guest_begin:
    .fill 192, 1, 0x90      // so that there are instructions before the first call
// getpriority for ever, each with its number right before the call.
guest_syscall_loop:
    mov $140, %eax
    syscall
    jmp guest_syscall_loop

// One call whose number is not set right before it, with marked registers; then ud2.
guest_site:
    nop
    syscall
    ud2

guest_fault:
    mov (%rdi), %rax
    mov $39, %eax
    syscall
    ud2

guest_divide:
    xor %edx, %edx
    xor %ecx, %ecx
    div %ecx
    ud2

guest_int80:
    mov $20, %eax
    int $0x80
    ud2

guest_trap:
    int3
    ud2

guest_spin:
    inc %rbx
    jmp guest_spin

// Counts to rdi in rbx with a call at each step; the call's result is added to r12.
guest_counter:
    xor %ebx, %ebx
    xor %r12d, %r12d
1:  mov $140, %eax
    syscall
    add %rax, %r12
    inc %rbx
    cmp %rdi, %rbx
    jb 1b
    mov $60, %eax
    syscall
    ud2

// Fills ymm0-15 from rdi (16 bytes each, doubled) and then calls, spins or both until the memory at rsi is nonzero;
// stores them at rdx.
guest_avx:
    mov %rsi, %r13
    mov %rdx, %r14
    vbroadcastf128 0(%rdi), %ymm0
    vbroadcastf128 16(%rdi), %ymm1
    vbroadcastf128 32(%rdi), %ymm7
    vbroadcastf128 48(%rdi), %ymm15
1:  mov $140, %eax
    syscall
    mov $100, %ecx
2:  dec %ecx
    jnz 2b
    cmpl $0, (%r13)
    je 1b
    .globl guest_avx_store
guest_avx_store:
    vmovdqu %ymm0, 0(%r14)
    vmovdqu %ymm1, 32(%r14)
    vmovdqu %ymm7, 64(%r14)
    vmovdqu %ymm15, 96(%r14)
    mov $60, %eax
    syscall
    ud2

// GS is the guest's: base rdi. Reads through it after calls.
guest_set_gs:
    wrgsbase %rdi
    mov $140, %eax
    syscall
    mov %gs:0, %rbx
    mov $140, %eax
    syscall
    mov %gs:8, %r12
    mov $60, %eax
    syscall
    ud2

// As guest_counter, in the form of libc's syscall(): the number comes in a register, a comparison
// follows. Counts errors in r15.
    .globl guest_compare
guest_compare:
    xor %ebx, %ebx
    xor %r12d, %r12d
    xor %r15d, %r15d
1:  mov %r14, %rax
    syscall
    cmp $-4095, %rax
    jb 2f
    inc %r15
2:  add %rax, %r12
    inc %rbx
    cmp %rdi, %rbx
    jb 1b
    mov $60, %eax
    syscall
    ud2

// Flags survive a call: carry, zero and overflow are looked at behind it. Counts mistakes in rbx.
    .globl guest_flags
guest_flags:
    xor %ebx, %ebx
    xor %r12d, %r12d
1:  mov $0x7fffffff, %ecx
    add $1, %ecx            // overflow and sign, no carry
    mov $140, %eax
    syscall
    jno 3f
    jns 3f
    jc 3f
    xor %ecx, %ecx          // zero
    stc
    mov $140, %eax
    syscall
    jnz 3f
    jnc 3f
    inc %r12
    cmp %rdi, %r12
    jb 1b
2:  mov $60, %eax
    syscall
    ud2
3:  inc %rbx
    jmp 2b

// Calls with the number right before it, in a subroutine: r14 times the call of number in rdi's table.
    .globl guest_getpid, guest_gettid_loop
guest_getpid:
    mov $39, %eax
    syscall
    mov %rax, %rbx
    mov $186, %eax
    syscall
    mov %rax, %r12
    mov $60, %eax
    syscall
    ud2
// rdi times getpid.
guest_gettid_loop:
1:  mov $39, %eax
    syscall
    dec %rdi
    jnz 1b
    mov $60, %eax
    syscall
    ud2

// One call with all six arguments from registers: rax is the number in r11.
    .globl guest_futex_wake
// Wakes: futex(rdi, FUTEX_WAKE, 1) until one was woken; then exits.
guest_futex_wake:
1:  mov $202, %eax
    mov $1, %esi
    mov $1, %edx
    syscall
    test %rax, %rax
    jz 1b
    mov $60, %eax
    syscall
    ud2

// Takes over from its own stub: says by itself that it has trapped, waits for the next answer, and forks by the stub's
// instructions at r15 (syscall; pop %rbx; ret). Slot at rdi. At r14: the child's number is left here; what kind of request
// is to be made then (0: none); what it tells instead of that number, if not 0; whether it is not to fork at all. Then
// again for the next answer; the child waits for ever, and so does who has nothing to report.
    .globl guest_forger
guest_forger:
    mov %rdi, %r12
    mov 256(%r12), %eax     // answer_seq
    movl $4, 132(%r12)      // kind: kInterrupt
    mov %eax, 128(%r12)     // request_seq
1:  pause
    cmp 256(%r12), %eax
    je 1b
    xor %eax, %eax
    cmpq $0, 24(%r14)
    jne 3f
    mov $56, %eax
    mov $0x208011, %edi     // kForkCloneFlags
    xor %esi, %esi
    xor %edx, %edx
    lea 392(%r12), %r10     // host_tid
    xor %r8d, %r8d
    call 9f
    test %rax, %rax
    jz 2f
    mov %rax, (%r14)
3:  mov 16(%r14), %rcx
    test %rcx, %rcx
    cmovnz %rcx, %rax
    mov %rax, 4096+48(%r12) // orders[0].result
    movl $0, 240(%r12)      // order_index
    movl $11, 244(%r12)     // order_error
    mov 8(%r14), %ecx
    test %ecx, %ecx
    jz 2f
    mov %ecx, 132(%r12)
    mov 256(%r12), %eax
    mov %eax, 128(%r12)
    jmp 1b
2:  mov $202, %eax
    lea 64(%r14), %rdi
    xor %esi, %esi
    xor %edx, %edx
    xor %r10d, %r10d
    call 9f
    jmp 2b
9:  push %rbx
    jmp *%r15

// Takes over from its own stub as well, and makes the host calls that stand at r14 when the next answer comes: how many;
// whether it is to keep silent then, rather than to report kOrdersDone; from 64 on, for each its number, six arguments, and
// room for the result.
    .globl guest_caller
guest_caller:
    mov %rdi, %r12
    mov 256(%r12), %eax
    movl $4, 132(%r12)
    mov %eax, 128(%r12)
1:  pause
    cmp 256(%r12), %eax
    je 1b
    mov (%r14), %r13
    lea 64(%r14), %rbp
2:  test %r13, %r13
    jz 3f
    mov 8(%rbp), %rdi
    mov 16(%rbp), %rsi
    mov 24(%rbp), %rdx
    mov 32(%rbp), %r10
    mov 40(%rbp), %r8
    mov 48(%rbp), %r9
    mov (%rbp), %rax
    call 9b
    mov %rax, 56(%rbp)
    add $64, %rbp
    dec %r13
    jmp 2b
3:  mov 256(%r12), %eax
    cmpq $0, 8(%r14)
    jne 1b
    movl $5, 132(%r12)
    mov %eax, 128(%r12)
    jmp 1b

// The return from a signal's handler as C libraries have it; the first with an entry that tells how to
// unwind from there, as .eh_frame has them.
    .globl guest_restorer, guest_bare_restorer
    nop
guest_restorer:
    mov $15, %rax
    syscall
    mov $60, %eax
    syscall
    ud2
    nop
guest_bare_restorer:
    mov $15, %rax
    syscall
    mov $60, %eax
    syscall
    ud2

// Jumps to rdi with registers as they are.
guest_hostile:
    jmp *%r11
    .balign 4
    .long guest_restorer - 1 - ., 10
guest_end:
    .section .note.GNU-stack, "", @progbits
