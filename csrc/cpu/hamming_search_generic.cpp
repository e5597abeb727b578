#define MINERLIB_ISA generic
#define MINERLIB_ISA_LEVEL 0
#include "hamming_search_impl.h"
