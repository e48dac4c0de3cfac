"""The plan: which clips form which pack at which optimiser step, computed from metadata alone.

A plan is a pure function of (fingerprint, seed, step). It does not depend on workers, ranks or earlier steps, so a loader's whole state is
one integer. A step is a fixed number of packs; R ranks, where R divides that number, each take every R-th pack.
"""
