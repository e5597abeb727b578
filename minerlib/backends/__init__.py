"""Thin adapters with the same few functions: allocate, call the kernels, hand back NumPy arrays.

Every module has `reasons_unusable() -> tuple[str, ...]` and one function for each kernel family:

    extremes(problem, wanted, exact)     -> int64 [4, N]: nearest and farthest positive, nearest and
                                            farthest negative; -1 for none; rows not wanted are unspecified
    window(problem, rule, request)       -> anchors, positives, negatives, int64 [P]: a slot per pair,
                                            negatives -1 for none
    sample(problem, request)             -> the same, one negative a pair drawn by distance
    every_triplet(problem, request)      -> anchors, positives, negatives of all triplets with s > 0
    counts(problem, request)             -> total, hard, semi-hard
    topk(problem, k, exact)              -> float64 [Q, k] distances, int64 [Q, k] indices
    pairwise(problem)                    -> float64 [N, M]
"""
