#define MINERLIB_ISA avx512bf16
#define MINERLIB_ISA_LEVEL 3
#include "chunk_extremes_impl.h"
