#define MINERLIB_ISA amxemulated
#define MINERLIB_ISA_LEVEL 1
#define MINERLIB_TILES 2
#include "chunk_extremes_impl.h"
