"""The plan: which clips form which pack at which optimiser step, made from metadata alone.

A plan is a pure function of (fingerprint, seed, step). It knows nothing of workers, ranks or what was drawn before, so a
loader's whole state is one integer. A step is a fixed number of packs, and R ranks that divide it take them in turn.
"""
