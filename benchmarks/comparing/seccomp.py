"""Which host system calls a process may make: its seccomp filters are read from the kernel and
followed for each number over all arguments. Needs root (PTRACE_SECCOMP_GET_FILTER)."""

import ctypes
import os
import struct

PTRACE_SEIZE, PTRACE_DETACH, PTRACE_INTERRUPT = 0x4206, 17, 0x4207
PTRACE_SECCOMP_GET_FILTER = 0x420C
WALL = 0x40000000
ARCH_X86_64 = 0xC000003E
LAST_CALL = 470
# What lets the call happen: ALLOW, LOG and TRACE, and USER_NOTIF, whose answer may let it continue.
LETS_PASS = (0x7FFF0000, 0x7FFC0000, 0x7FF00000, 0x7FC00000)
STEPS = 200_000  # of one walk; more is taken as reachable


def filters(pid):
    """The filters of a process, each a list of (code, jt, jf, k). Stops it for a moment."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    libc.ptrace.restype = ctypes.c_long

    def ptrace(request, address, data):
        result = libc.ptrace(request, pid, address, data)
        if result < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return result

    ptrace(PTRACE_SEIZE, None, None)
    try:
        ptrace(PTRACE_INTERRUPT, None, None)
        os.waitpid(pid, WALL)
        found = []
        while True:
            try:
                count = ptrace(PTRACE_SECCOMP_GET_FILTER, len(found), None)
            except OSError:
                return found
            buffer = ctypes.create_string_buffer(8 * count)
            ptrace(PTRACE_SECCOMP_GET_FILTER, len(found), ctypes.cast(buffer, ctypes.c_void_p))
            found.append([struct.unpack_from("<HBBI", buffer, 8 * i) for i in range(count)])
    finally:
        ptrace(PTRACE_DETACH, None, None)


def can_pass(program, number):
    """Whether any arguments lead this call through. What depends on them takes both ways."""
    seen, todo, steps = set(), [(0, None)], 0
    while todo:
        at, acc = todo.pop()
        while True:
            steps += 1
            if steps > STEPS:
                return True
            if (at, acc) in seen:
                break
            seen.add((at, acc))
            code, jt, jf, k = program[at]
            kind = code & 7
            if kind == 0:  # load
                acc = {0: number, 4: ARCH_X86_64}.get(k) if code == 0x20 else None
                at += 1
            elif kind == 6:  # return
                if (acc if code & 0x18 == 0x10 else k) is None or k & 0xFFFF0000 in LETS_PASS:
                    return True
                break
            elif kind == 5:  # jump
                operation = code & 0xF0
                if operation == 0:
                    at += 1 + k
                    continue
                if acc is None or code & 8:
                    todo.append((at + 1 + jt, acc))
                    at += 1 + jf
                    continue
                true = {0x10: acc == k, 0x20: acc > k, 0x30: acc >= k, 0x40: bool(acc & k)}[operation]
                at += 1 + (jt if true else jf)
            elif kind == 4 and code == 0x54 and acc is not None:  # and
                acc &= k
                at += 1
            else:  # other arithmetic, stores, transfers: not known any more
                acc = None if kind in (1, 4, 7) else acc
                at += 1
    return False


def reachable(programs):
    """Numbers of the calls that every one of a process's filters may let through."""
    return [n for n in range(LAST_CALL) if all(can_pass(p, n) for p in programs)]
