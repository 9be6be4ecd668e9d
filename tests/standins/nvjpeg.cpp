#include "standin.h"
STANDIN_API int nvjpegNothing() { return standin_fault("x"); }
