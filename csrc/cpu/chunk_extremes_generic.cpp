#define MINERLIB_ISA generic
#define MINERLIB_ISA_LEVEL 0
#include "chunk_extremes_impl.h"
