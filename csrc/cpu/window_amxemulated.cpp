#define MINERLIB_ISA amxemulated
#define MINERLIB_ISA_LEVEL 1
#define MINERLIB_TILES 2
#include "window_impl.h"
