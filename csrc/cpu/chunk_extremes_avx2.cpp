#define MINERLIB_ISA avx2
#define MINERLIB_ISA_LEVEL 1
#include "chunk_extremes_impl.h"
