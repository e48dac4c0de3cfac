"""Confines a process, so that it opens no connection, starts no program and writes no file, whatever a file does to its decoder.

It is a filter of system calls (seccomp, Linux). What is open already stays open, above all the pipes on which a worker answers. If the
kernel or the processor has no filter, nothing changes and `lacking` says so; then only the checks of a file's first bytes and header, the
time limit and the memory limit protect.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
from typing import NamedTuple

_NO_NEW_PRIVILEGES, _SET_SECCOMP, _MODE_FILTER = 38, 22, 2  # linux/prctl.h, linux/seccomp.h
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | errno.EACCES
_LOAD, _EQUAL, _AT_LEAST, _ANY_OF, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # linux/bpf_common.h
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data; each argument has eight bytes, the lower ones first
_OTHER_NUMBERING = 0x40000000  # the x32 calls of x86-64
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC  # flags of opening a file for more than reading


class _Calls(NamedTuple):
    """The system calls of an architecture (linux/audit.h): numbers of refused calls, and (number, argument with the flags) of calls that
    open files."""

    architecture: int
    refused: tuple[int, ...]
    opening: tuple[tuple[int, int], ...]


_CALLS = {
    "x86_64": _Calls(
        0xC000003E,
        (
            *(41, 42, 49),  # socket connect bind
            *(59, 322, 101, 310, 311, 438),  # execve execveat ptrace process_vm_readv process_vm_writev pidfd_getfd
            *(425, 426, 427, 321, 298, 323),  # io_uring bpf perf_event_open userfaultfd
            *(85, 437, 304, 76),  # creat openat2 open_by_handle_at truncate
            *(82, 264, 316, 83, 258, 84, 87, 263, 86, 265, 88, 266, 133, 259),  # rename mkdir rmdir unlink link symlink mknod, …at
            *(90, 91, 268, 452, 92, 93, 94, 260),  # chmod chown, f…, …at
            *(132, 235, 261, 280, 188, 189, 190, 197, 198, 199),  # utime utimes futimesat utimensat setxattr removexattr, l…, f…
            *(165, 166, 155, 161, 272, 308, 428, 429, 430, 442),  # mount umount pivot_root chroot unshare setns open_tree move_mount fsopen
            *(175, 313, 246, 320, 167, 169, 250, 248),  # modules kexec swapon reboot keys
        ),
        ((2, 1), (257, 2)),  # open openat
    ),
    "aarch64": _Calls(
        0xC00000B7,
        (
            *(198, 203, 200),
            *(221, 281, 117, 270, 271, 438),
            *(425, 426, 427, 280, 241, 282),
            *(437, 265, 45),
            *(38, 276, 34, 35, 37, 36, 33),
            *(52, 53, 452, 54, 55),
            *(88, 5, 6, 7, 14, 15, 16),
            *(40, 39, 41, 51, 97, 268, 428, 429, 430, 442),
            *(105, 273, 104, 294, 224, 142, 219, 217),
        ),
        ((56, 2),),
    ),
}


class _Instruction(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint16), ("if_true", ctypes.c_uint8), ("if_false", ctypes.c_uint8), ("value", ctypes.c_uint32))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint16), ("instructions", ctypes.POINTER(_Instruction)))


_done: list[int] = []  # ids of confined processes; a forked process inherits the filter


def confine() -> bool:
    """Confine this thread and what it starts; return whether the kernel supports it."""
    _done.append(os.getpid())
    if lacking():
        return False
    steps = _steps(_CALLS[platform.machine()])
    instructions = (_Instruction * len(steps))(*(_Instruction(*step) for step in steps))
    program = _Program(len(steps), instructions)
    library = ctypes.CDLL(None, use_errno=True)
    zero = ctypes.c_ulong(0)
    if library.prctl(_NO_NEW_PRIVILEGES, ctypes.c_ulong(1), zero, zero, zero):
        return False
    return library.prctl(_SET_SECCOMP, ctypes.c_ulong(_MODE_FILTER), ctypes.byref(program), zero, zero) == 0


def confined() -> bool:
    """Whether this process or one that it was forked from has called `confine`, so that it may decode strangers' files."""
    return bool(_done)


def lacking() -> str:
    """Why no process can be confined on this machine, for messages; the empty string if it can."""
    without = "so what decodes files of others is held by its clock and its memory limit alone: a container without network holds more"
    if platform.system() != "Linux" or platform.machine() not in _CALLS:
        return f"{platform.system()} on {platform.machine()} has no filter of system calls that is known here, {without}"
    null = ctypes.c_void_p(None)
    library = ctypes.CDLL(None, use_errno=True)
    library.prctl(_SET_SECCOMP, ctypes.c_ulong(_MODE_FILTER), null, null, null)  # without a program, a kernel with filters answers EFAULT
    return "" if ctypes.get_errno() == errno.EFAULT else f"this kernel lets no process filter its system calls, {without}"


def _steps(calls: _Calls) -> list[tuple[int, int, int, int]]:
    """The filter's instructions, each with the numbers of instructions to skip if its comparison is true and if it is false."""
    steps = [(_LOAD, 0, 0, _ARCHITECTURE), (_EQUAL, 1, 0, calls.architecture), (_RETURN, 0, 0, _REFUSE)]
    steps += [(_LOAD, 0, 0, _NUMBER), (_AT_LEAST, len(calls.refused), 0, _OTHER_NUMBERING)]
    steps += [(_EQUAL, len(calls.refused) - 1 - place, 0, call) for place, call in enumerate(calls.refused)]
    # A comparison that holds jumps to the refusal here; if none holds, it is skipped.
    steps[-1] = (_EQUAL, 0, 1, calls.refused[-1])
    steps += [(_RETURN, 0, 0, _REFUSE)]
    for call, argument in calls.opening:
        steps += [(_EQUAL, 0, 4, call), (_LOAD, 0, 0, _ARGUMENTS + 8 * argument), (_ANY_OF, 0, 1, _WRITES)]
        steps += [(_RETURN, 0, 0, _REFUSE), (_RETURN, 0, 0, _ALLOW)]
    return [*steps, (_RETURN, 0, 0, _ALLOW)]
