#define MINERLIB_ISA amxbf16
#define MINERLIB_ISA_LEVEL 5
#define MINERLIB_TILES 1
#include "window_impl.h"
