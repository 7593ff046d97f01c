#include "core/version.h"

const char spate_version[] = "0.1.0";
