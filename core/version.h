/* core/version.h - which spate this is: "0.1.0". */
#ifndef SPATE_CORE_VERSION_H
#define SPATE_CORE_VERSION_H

extern const char spate_version[];

#endif
