#define MINERLIB_ISA avx512vpopcntdq
#define MINERLIB_ISA_LEVEL 4
#include "hamming_search_impl.h"
