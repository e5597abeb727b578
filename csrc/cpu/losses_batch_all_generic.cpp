#define MINERLIB_ISA generic
#define MINERLIB_ISA_LEVEL 0
#include "losses_batch_all_impl.h"
