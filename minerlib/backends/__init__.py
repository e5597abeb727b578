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

The native backend alone has `chunk_extremes`, for offline mining, and its `topk` ranks negatives alone where
the problem has labels; the others serve offline mining by `pairwise`.

Packed codes, uint8 [rows, bytes] and C-contiguous, are compared on all 8 * bytes bits (a backend that has
`reasons_for(device)` takes tensors on its devices too, and answers with tensors); hits are sorted by
(distance, index), and `relevance` is a `minerlib.inputs.Relevance`:

    hamming_distance(a, b)                        -> int32 [N, M]
    hamming_search(queries, database, k)          -> int32 [Q, k] distances, int64 [Q, k] indices
    hamming_range(queries, database, radius)      -> int64 [Q + 1] offsets, int64 [T] indices, int32 [T]
                                                     distances; 0 <= radius <= 8 * bytes
    hamming_counts(queries, database, relevance)  -> int64 [Q, 8 * bytes + 1] rows at each distance, and
                                                     how many of them are relevant
    hamming_average_precision(queries, database, relevance, k)
                                                  -> float64 [Q] of the rankings cut at k, summed in rank
                                                     order; 0 without a relevant hit
"""
