"""The one door through which small files come in: they may be damaged, or a stranger's.

A file is opened only where it is a regular one (`files`), has the size of its kind, is parsed within limits of depth and count (`texts`),
and is compared with a declared form (`forms`) before anything uses it. Headers of safetensors and footers of parquet files are believed
only as far as the file's own size bears them out (`tensors`, `parquet`).
"""
