/* Requests and answers to lines. Fields in the order of the head first (op, epoch, to, request, schema,
 * table), so that spate_decode_head reads them, too. */

#include "schemas/control.h"

#include "schemas/encode.h"
#include "schemas/json.h"

static const char *const names[] = {
    [SPATE_CONTROL_REQUEST] = "request", [SPATE_CONTROL_CANCEL] = "cancel",
    [SPATE_CONTROL_REREAD] = "reread",   [SPATE_CONTROL_FINISHED] = "finished",
    [SPATE_CONTROL_STARTED] = "started", [SPATE_CONTROL_ACCEPTED] = "accepted",
    [SPATE_CONTROL_REFUSED] = "refused", [SPATE_CONTROL_PROGRESS] = "progress",
    [SPATE_CONTROL_UNKNOWN] = "unknown",
};
_Static_assert(sizeof(names) / sizeof(names[0]) == SPATE_CONTROL_UNKNOWN + 1, "every op has a name");

const char *spate_control_op_name(enum spate_control_op op)
{
    return names[(unsigned)op <= SPATE_CONTROL_UNKNOWN ? op : SPATE_CONTROL_UNKNOWN];
}

static void put_field(struct spate_buf *out, const char *quoted)
{
    spate_buf_putc(out, ',');
    spate_buf_puts(out, quoted);
    spate_buf_putc(out, ':');
}

/* A name or a text; left out where there is none. */
static void put_text(struct spate_buf *out, const char *quoted, struct spate_slice text)
{
    if (text.len == 0)
        return;
    put_field(out, quoted);
    spate_json_put_name(out, text);
}

static void put_number(struct spate_buf *out, const char *quoted, uint64_t number)
{
    put_field(out, quoted);
    spate_json_put_u64(out, number);
}

/* With one decimal: what is shown to people, and no other. */
static void put_tenths(struct spate_buf *out, const char *quoted, double number)
{
    uint64_t tenths = number > 0 && number < 1e12 ? (uint64_t)(number * 10 + 0.5) : 0;

    put_number(out, quoted, tenths / 10);
    spate_buf_putc(out, '.');
    spate_buf_putc(out, (char)('0' + tenths % 10));
}

static void put_columns(struct spate_buf *out, const struct spate_control_table *table)
{
    if (table->column_count == 0)
        return;
    put_field(out, "\"columns\"");
    for (size_t i = 0; i < table->column_count; i++) {
        spate_buf_putc(out, i == 0 ? '[' : ',');
        spate_json_put_name(out, table->columns[i]);
    }
    spate_buf_putc(out, ']');
}

static void put_where(struct spate_buf *out, const struct spate_control_table *table)
{
    if (table->where_count == 0)
        return;
    put_field(out, "\"where\"");
    for (size_t i = 0; i < table->where_count; i++) {
        const struct spate_condition *condition = &table->where[i];

        spate_buf_puts(out, i == 0 ? "[{\"column\":" : ",{\"column\":");
        spate_json_put_name(out, condition->column);
        put_field(out, "\"op\"");
        spate_json_put_text(out, condition->op);
        put_field(out, "\"value\"");
        if (condition->null)
            SPATE_JSON_ADD(out, "null");
        else
            spate_json_put_text(out, condition->value);
        spate_buf_putc(out, '}');
    }
    spate_buf_putc(out, ']');
}

static void put_table(struct spate_buf *out, enum spate_control_op op,
                      const struct spate_control_table *table)
{
    SPATE_JSON_ADD(out, "{\"schema\":");
    spate_json_put_name(out, table->schema);
    put_field(out, "\"table\"");
    spate_json_put_name(out, table->table);
    if (op == SPATE_CONTROL_REQUEST) {
        put_columns(out, table);
        put_where(out, table);
        put_text(out, "\"resume\"", table->resume);
        if (table->chunk != 0)
            put_number(out, "\"chunk\"", table->chunk);
    } else if (op == SPATE_CONTROL_ACCEPTED) {
        put_number(out, "\"rows\"", table->rows);
        put_number(out, "\"pages\"", table->pages);
    } else {
        put_number(out, "\"pages\"", table->pages);
        put_number(out, "\"of\"", table->of);
        put_number(out, "\"rows\"", table->rows);
        put_number(out, "\"chunks\"", table->chunks);
    }
    spate_buf_putc(out, '}');
}

static void put_tables(struct spate_buf *out, const struct spate_control *control)
{
    put_field(out, "\"tables\"");
    spate_buf_putc(out, '[');
    for (size_t i = 0; i < control->table_count; i++) {
        if (i > 0)
            spate_buf_putc(out, ',');
        put_table(out, control->op, &control->tables[i]);
    }
    spate_buf_putc(out, ']');
}

static void put_progress(struct spate_buf *out, const struct spate_control *control)
{
    put_field(out, "\"state\"");
    spate_json_put_name(out, control->state);
    put_text(out, "\"why\"", control->why);
    put_number(out, "\"rows\"", control->rows);
    put_field(out, "\"estimate\"");
    if (control->estimate != 0)
        spate_json_put_u64(out, control->estimate);
    else
        SPATE_JSON_ADD(out, "null");
    put_tenths(out, "\"percent\"", control->percent);
    put_tenths(out, "\"rate\"", control->rate);
    put_field(out, "\"left_s\"");
    if (control->left_s >= 0)
        spate_json_put_u64(out, (uint64_t)control->left_s);
    else
        SPATE_JSON_ADD(out, "null");
    put_tables(out, control);
}

void spate_encode_control(struct spate_buf *out, const struct spate_control *control)
{
    SPATE_JSON_ADD(out, "{\"spate\":1,\"op\":\"");
    spate_buf_puts(out, spate_control_op_name(control->op));
    spate_buf_putc(out, '"');
    if (control->op == SPATE_CONTROL_STARTED)
        put_number(out, "\"epoch\"", control->epoch);
    put_text(out, "\"to\"", control->to);
    put_text(out, "\"request\"", control->request);
    if (control->op == SPATE_CONTROL_REREAD) {
        put_field(out, "\"schema\"");
        spate_json_put_name(out, control->schema);
        put_field(out, "\"table\"");
        spate_json_put_name(out, control->table);
    }
    if (control->wall_us != 0)
        spate_encode_time(out, control->wall_us);
    put_text(out, "\"source\"", control->source);
    put_text(out, "\"sink\"", control->sink);
    switch (control->op) {
    case SPATE_CONTROL_REQUEST:
        if (control->table_count != 0 || control->to.len == 0)
            put_tables(out, control);
        if (control->again)
            SPATE_JSON_ADD(out, ",\"again\":true");
        if (control->append)
            SPATE_JSON_ADD(out, ",\"append\":true");
        if (control->some)
            SPATE_JSON_ADD(out, ",\"some\":true");
        break;
    case SPATE_CONTROL_REREAD:
        put_number(out, "\"chunk\"", control->chunk);
        put_field(out, "\"keys\"");
        if (control->keys.len != 0)
            spate_buf_slice(out, control->keys);
        else
            SPATE_JSON_ADD(out, "[]");
        break;
    case SPATE_CONTROL_ACCEPTED:
        put_tables(out, control);
        break;
    case SPATE_CONTROL_REFUSED:
        put_field(out, "\"reason\"");
        spate_json_put_name(out, control->reason);
        put_text(out, "\"remedy\"", control->remedy);
        break;
    case SPATE_CONTROL_PROGRESS:
        put_progress(out, control);
        break;
    default:
        break;
    }
    spate_buf_putc(out, '}');
}
