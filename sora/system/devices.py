"""The device that computes, and its peak FLOP/s, of which model FLOPs utilisation (MFU) is a share."""

from __future__ import annotations

import re
import time

import torch

# Dense bf16 with accumulation in fp32, as makers state it (NVIDIA mostly states it with sparsity, which is twice as much). From the data
# sheets of A10, A100, L4, L40S, H100, H200 and MI300X, of the GH200, and of the DGX B200 for the B200.
BF16 = (
    (r"\bB200\b", 2250e12),
    (r"\bH100 PCIe\b", 756e12),
    (r"\bH100 NVL\b", 835e12),
    (r"\b(H100|H200|H800|GH200)\b", 989e12),
    (r"\bA[18]00\b", 312e12),
    (r"\bL40S\b", 362e12),
    (r"\bL4\b", 121e12),
    (r"\bA10\b", 125e12),
    (r"\bMI300X\b", 1307e12),
)


def choose_device(name: str) -> str:
    """The device of a name; "auto" is the GPU if there is one."""
    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device={name} must be auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device=cuda: this torch finds no GPU; use device=cpu")
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def peak(device: torch.device, dtype: torch.dtype) -> float:
    """The peak FLOP/s of a device: for bf16 from the table of GPUs, else that of the fastest matrix product, measured now."""
    if device.type == "cuda" and dtype == torch.bfloat16:
        found = stated(torch.cuda.get_device_name(device))
        if found is not None:
            return found
    seconds, size = (0.25, 8192) if device.type == "cuda" else (0.05, 1024)
    return measured_peak(device, dtype, seconds=seconds, size=size)


def stated(name: str) -> float | None:
    """The FLOP/s that the maker of a GPU states; None for a GPU that is not in the table."""
    return next((value for pattern, value in BF16 if re.search(pattern, name)), None)


def measured_peak(device: torch.device, dtype: torch.dtype, *, seconds: float, size: int) -> float:
    """The FLOP/s of the fastest product of two size x size matrices within `seconds`; at least three are computed.

    On a machine that does other work too, this measures what is left.
    """
    left = torch.ones(size, size, device=device, dtype=dtype)
    quickest, end, made = float("inf"), time.monotonic() + seconds, 0
    while made < 3 or time.monotonic() < end:
        start = time.perf_counter()
        torch.mm(left, left)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        quickest, made = min(quickest, time.perf_counter() - start), made + 1
    return 2 * size**3 / quickest


def numerics(accelerator: str | None) -> dict[str, str | bool]:
    """The trainer.precision and .deterministic of a device when they are not set. accelerator: None for the best that is present."""
    gpu = (accelerator or present()) == "gpu"
    return {"precision": "bf16-mixed" if gpu else "32-true", "deterministic": not gpu}


def present() -> str:
    """The best accelerator that torch finds here."""
    return "gpu" if torch.cuda.is_available() else "cpu"
