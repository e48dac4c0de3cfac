"""OpenCV, or a message that says how to install it. It computes in one thread, so that results do not depend on the number of cores."""

from __future__ import annotations

try:
    import cv2
except ImportError as error:
    raise ValueError("scores of clips need OpenCV, which is not installed: pip install 'sora[curation]'") from error

# Optical flow is computed in stripes, one per thread, and differs at their borders.
cv2.setNumThreads(1)

__all__ = ["cv2"]
