/* cli/words.h - what people type for tables, columns and conditions. Pure functions.
 *
 * Names are as the database holds them: nothing is folded to lower case, and double quotes are as in SQL. */
#ifndef SPATE_CLI_WORDS_H
#define SPATE_CLI_WORDS_H

#include "core/buf.h"
#include "core/err.h"
#include "schemas/control.h"

struct spate_words_condition { /* as struct spate_condition borrows it */
    char *column, *op, *value; /* owned; value NULL: is null, is not null */
};

/* "created_at >= 2026-01-01", "state is not null", "\"Odd name\" = 'it''s'". SPATE_FAIL (fatal, CONFIG): the
 * text says what was expected. */
SPATE_CHECKED enum spate_rc spate_words_condition(const char *text, struct spate_words_condition *condition,
                                                  struct spate_err *err);
void spate_words_condition_fini(struct spate_words_condition *condition);

/* "id,\"a,b\"": appends to *names (owned texts) and counts. SPATE_FAIL as above. */
SPATE_CHECKED enum spate_rc spate_words_columns(const char *text, char ***names, size_t *count,
                                                struct spate_err *err);

/* schema.table, both as they are: no wildcard, and quotes resolved. False: not such a name. */
bool spate_words_table(const char *text, struct spate_buf *schema, struct spate_buf *table);

#endif
