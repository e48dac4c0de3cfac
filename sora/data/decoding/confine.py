"""A process that opens no connection and starts no program from here on, whatever a file makes of its decoder.

A filter of system calls (seccomp, Linux); where the kernel or the processor has none, nothing changes, and the checks of a file's first
bytes, its header, the clock and the memory limit stand alone.
"""

from __future__ import annotations

import ctypes
import errno
import platform

_NO_NEW_PRIVILEGES, _SET_SECCOMP, _MODE_FILTER = 38, 22, 2  # linux/prctl.h, linux/seccomp.h
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | errno.EACCES
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06  # linux/bpf_common.h
_ARCHITECTURES = {  # linux/audit.h; socket, connect, bind, execve, execveat, ptrace, io_uring_setup
    "x86_64": (0xC000003E, (41, 42, 49, 59, 322, 101, 425)),
    "aarch64": (0xC00000B7, (198, 203, 200, 221, 281, 117, 425)),
}
_OTHER_NUMBERING = 0x40000000  # the x32 calls of x86-64


class _Instruction(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint16), ("if_true", ctypes.c_uint8), ("if_false", ctypes.c_uint8), ("value", ctypes.c_uint32))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint16), ("instructions", ctypes.POINTER(_Instruction)))


def confine() -> bool:
    """Confine this thread and what it starts; whether the kernel does it."""
    if platform.system() != "Linux" or platform.machine() not in _ARCHITECTURES:
        return False
    architecture, calls = _ARCHITECTURES[platform.machine()]
    refused = len(calls) + 1  # how far it is from the first comparison of a call to the refusal
    steps = [(_LOAD, 0, 0, 4), (_EQUAL, 0, refused + 2, architecture), (_LOAD, 0, 0, 0), (_AT_LEAST, refused, 0, _OTHER_NUMBERING)]
    steps += [(_EQUAL, refused - 1 - number, 0, call) for number, call in enumerate(calls)]
    steps += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _REFUSE)]
    instructions = (_Instruction * len(steps))(*(_Instruction(*step) for step in steps))
    program = _Program(len(steps), instructions)
    library = ctypes.CDLL(None, use_errno=True)
    zero = ctypes.c_ulong(0)
    if library.prctl(_NO_NEW_PRIVILEGES, ctypes.c_ulong(1), zero, zero, zero):
        return False
    return library.prctl(_SET_SECCOMP, ctypes.c_ulong(_MODE_FILTER), ctypes.byref(program), zero, zero) == 0
