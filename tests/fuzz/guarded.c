// guarded.c: ./run for the address and undefined-behaviour sanitizers. make hostile builds it.
#include "heap_maps.h" // run.c
