#define MINERLIB_ISA generic
#define MINERLIB_ISA_LEVEL 0
#include "sample_impl.h"
