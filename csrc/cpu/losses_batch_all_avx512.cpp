#define MINERLIB_ISA avx512
#define MINERLIB_ISA_LEVEL 2
#include "losses_batch_all_impl.h"
