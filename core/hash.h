/* core/hash.h - crc32c for records, FNV-1a for fingerprints, murmur2 for keys. */
#ifndef SPATE_CORE_HASH_H
#define SPATE_CORE_HASH_H

#include <stddef.h>
#include <stdint.h>

/* CRC-32C (Castagnoli). Start with 0; feed the result of one call into the next. Uses the
 * processor's instruction where it has one. */
uint32_t spate_crc32c(uint32_t crc, const void *at, size_t len);
/* The same of four words, as they stand in memory, and what follows them: with one call for a short record.
 */
uint32_t spate_crc32c_head(const uint64_t head[4], const void *at, size_t len);

#define SPATE_FNV64_START UINT64_C(0xcbf29ce484222325)
uint64_t spate_fnv64(uint64_t hash, const void *at, size_t len);

/* murmur2 with Kafka's seed, so that a shard equals a Kafka partition of the same count. */
uint32_t spate_murmur2(const void *at, size_t len);

/* A random version-4 UUID as 36 characters and a NUL. */
void spate_uuid(char out[37]);

#endif
