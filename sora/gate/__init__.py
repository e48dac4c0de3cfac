"""Reads small files that may be damaged or a stranger's; all such files are read through this room.

A file is opened only if it is a regular file (`files`) of at most the size of its kind, is parsed within limits of depth and count
(`texts`), and is checked against a declared form (`forms`) before anything uses it. Headers of safetensors files and footers of parquet
files must agree with the size of the file (`tensors`, `parquet`).
"""
