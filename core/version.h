/* core/version.h - which spate this is. */
#ifndef SPATE_CORE_VERSION_H
#define SPATE_CORE_VERSION_H

#define SPATE_VERSION "0.1.0"

#endif
