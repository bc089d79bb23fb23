"""Limits that the kernel enforces on this process and all it starts; no privilege is needed for any of them.

seccomp, profile ``strict``: no sockets, no new processes, no program execution, no signals to others, no file opened
for writing, nothing created, renamed or removed. Profile ``build`` (torch.compile with a C compiler): processes and
files are possible, sockets and what could leave the process group are not; Landlock confines writing to one folder.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import struct
from collections.abc import Iterable
from pathlib import Path

_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 22, 38
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_LD, _JEQ, _JGE, _JSET, _RET = 0x20, 0x15, 0x35, 0x45, 0x06
_WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CLONE_THREAD = 0x10000
_CLONE_NEWNET = 0x40000000

# Numbers by machine: audit architecture, then the calls. Names on the left are those of the manual pages.
_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_NETWORK = {
    "x86_64": (41, 42, 43, 49, 50, 53, 288),  # socket connect accept bind listen socketpair accept4
    "aarch64": (198, 203, 202, 200, 201, 199, 242),
}
_LEAVE = {
    # setpgid setsid ptrace mount umount2 unshare setns bpf perf_event_open process_vm_writev io_uring_setup reboot
    # pivot_root chroot init_module finit_module kexec_load userfaultfd keyctl add_key pidfd_send_signal
    "x86_64": (109, 112, 101, 165, 166, 272, 308, 321, 298, 311, 425, 169, 155, 161, 175, 313, 246, 323, 250, 248, 424),
    "aarch64": (154, 157, 117, 40, 39, 97, 268, 280, 241, 271, 425, 142, 41, 51, 105, 273, 104, 282, 219, 217, 424),
}
_PROCESSES = {"x86_64": (57, 58, 59, 322, 62, 200, 234), "aarch64": (221, 281, 129, 130, 131)}
_FILES = {
    # truncate ftruncate rename mkdir rmdir creat link unlink symlink chmod fchmod chown fchown lchown mknod mkdirat
    # mknodat fchownat unlinkat renameat linkat symlinkat fchmodat renameat2 memfd_create utimensat setxattr
    "x86_64": (
        *(76, 77, 82, 83, 84, 85, 86, 87, 88, 90, 91, 92, 93, 94, 133, 258),
        *(259, 260, 263, 264, 265, 266, 268, 316, 319, 280, 188),
    ),
    "aarch64": (45, 46, 33, 34, 35, 36, 37, 38, 52, 53, 54, 55, 276, 279, 88, 5),
}
_NOT_THERE = (435, 437)  # clone3 and openat2 take their flags in memory, where a filter cannot look: callers fall back
_OPEN = {"x86_64": ((2, 1), (257, 2)), "aarch64": ((56, 2),)}  # open, openat: (number, argument with the flags)
_CLONE = {"x86_64": 56, "aarch64": 220}


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def die_with_parent() -> None:
    """Have this process killed when the one that started it ends, however that happens."""
    _libc().prctl(_PR_SET_PDEATHSIG, 9, 0, 0, 0)


def leave_the_network() -> bool:
    """Move to a network namespace of its own, without any interface up; False where that needs a privilege."""
    return bool(_libc().unshare(_CLONE_NEWNET) == 0)


def set_limits(*, memory: int, seconds: float, file_size: int, open_files: int) -> None:
    """Set resource limits: ``memory`` bytes of address space beyond what is mapped now, CPU seconds, file sizes."""
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    cpu = int(seconds) + 1
    wanted = {
        resource.RLIMIT_AS: mapped + memory,
        resource.RLIMIT_CPU: cpu,
        resource.RLIMIT_FSIZE: file_size,
        resource.RLIMIT_NOFILE: open_files,
        resource.RLIMIT_CORE: 0,
    }
    for limit, value in wanted.items():
        hard = resource.getrlimit(limit)[1]
        bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (bound, bound))


def filter_calls(profile: str) -> str:
    """Install the seccomp filter for the rest of this process's life; return "" or why it could not be."""
    machine = platform.machine()
    if machine not in _ARCH:
        return f"no system call numbers for {machine}"
    text = b"".join(struct.pack("HBBI", *step) for step in _program(machine, profile))
    buffer = ctypes.create_string_buffer(text, len(text))

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))

    program = Program(len(text) // 8, ctypes.cast(buffer, ctypes.c_void_p))
    libc = _libc()
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(_PR_SET_SECCOMP, 2, ctypes.byref(program), 0, 0):
        return f"the kernel refused the filter: {os.strerror(ctypes.get_errno())}"
    return ""


def _program(machine: str, profile: str) -> list[tuple[int, int, int, int]]:
    refuse = _ERRNO | errno.EPERM
    steps = [(_LD, 0, 0, 4), (_JEQ, 1, 0, _ARCH[machine]), (_RET, 0, 0, _KILL), (_LD, 0, 0, 0)]
    if machine == "x86_64":
        steps += [(_JGE, 0, 1, 0x40000000), (_RET, 0, 0, refuse)]  # the x32 numbering
    steps += _each((*_NETWORK[machine], *_LEAVE[machine]), refuse)
    if profile == "strict":
        steps += _each((*_PROCESSES[machine], *_FILES[machine]), refuse)
        steps += _each(_NOT_THERE, _ERRNO | errno.ENOSYS)
        for number, argument in _OPEN[machine]:
            look = [(_LD, 0, 0, 16 + 8 * argument), (_JSET, 0, 1, _WRITE_FLAGS), (_RET, 0, 0, refuse)]
            steps += [(_JEQ, 0, len(look) + 1, number), *look, (_RET, 0, 0, _ALLOW)]
        threads = [(_LD, 0, 0, 16), (_JSET, 1, 0, _CLONE_THREAD), (_RET, 0, 0, refuse)]
        steps += [(_JEQ, 0, len(threads), _CLONE[machine]), *threads]
    return [*steps, (_RET, 0, 0, _ALLOW)]


def _each(numbers: Iterable[int], answer: int) -> list[tuple[int, int, int, int]]:
    return [step for number in numbers for step in ((_JEQ, 0, 1, number), (_RET, 0, 0, answer))]


def write_only_under(folders: Iterable[Path]) -> str:
    """Confine writing to some folders (Landlock); reading and executing stay. Return "" or why it could not be done."""
    libc = _libc()
    version = libc.syscall(444, None, 0, 1)
    if version < 1:
        return "the kernel has no Landlock"
    # write_file, remove_dir .. make_sym (bits 4 to 12), refer (2), truncate (3)
    rights = 0x2 | sum(1 << bit for bit in range(4, 13)) | (1 << 13 if version >= 2 else 0)
    rights |= 1 << 14 if version >= 3 else 0
    handled = ctypes.c_uint64(rights)
    ruleset = libc.syscall(444, ctypes.byref(handled), 8, 0)
    if ruleset < 0:
        return f"the kernel refused the rules: {os.strerror(ctypes.get_errno())}"
    for folder in folders:
        fd = os.open(folder, os.O_PATH)
        inside = rights if folder.is_dir() else rights & (0x2 | 1 << 14)
        rule = ctypes.create_string_buffer(struct.pack("=Qi", inside, fd))
        failed = libc.syscall(445, ruleset, 1, rule, 0)
        os.close(fd)
        if failed:
            return f"the kernel refused a rule for {folder}: {os.strerror(ctypes.get_errno())}"
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    failed = libc.syscall(446, ruleset, 0)
    os.close(ruleset)
    return f"the kernel refused the rules: {os.strerror(ctypes.get_errno())}" if failed else ""
