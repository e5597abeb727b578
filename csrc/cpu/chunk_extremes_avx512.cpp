#define MINERLIB_ISA avx512
#define MINERLIB_ISA_LEVEL 2
#include "chunk_extremes_impl.h"
