#define MINERLIB_ISA avx512
#define MINERLIB_ISA_LEVEL 2
#include "scan_impl.h"
