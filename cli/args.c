/* cli/args.c - options, usage and last words, the same for every subcommand. */
#include "cli/cli.h"

#include "config/load.h"
#include "core/options.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { HELP = 0x7001 }; /* no letter has this value */

#define OPTIONS_MAX 24

enum spate_exit spate_cli_misuse(const struct spate_cli_text *text, const char *fmt, ...)
{
    size_t words = strlen("spate ");
    va_list args;

    words += strcspn(text->usage + words, " ");
    fprintf(stderr, "%.*s: ", (int)words, text->usage);
    va_start(args, fmt);
    vfprintf(stderr, fmt, args);
    va_end(args);
    fprintf(stderr, "\nusage: %s\n", text->usage);
    return SPATE_EXIT_CONFIG;
}

static enum spate_exit mistake(const struct spate_cli_text *text, const char *word, int got,
                               const struct option *options)
{
    const char *names[OPTIONS_MAX];
    size_t count = 0;
    const char *near = NULL;

    if (got == ':')
        return spate_cli_misuse(text, "%s needs a value", word);
    if (strncmp(word, "--", 2) == 0) {
        char name[64];

        snprintf(name, sizeof name, "%.*s", (int)strcspn(word + 2, "="), word + 2);
        while (count < OPTIONS_MAX && options[count].name) {
            names[count] = options[count].name;
            count++;
        }
        near = spate_nearest(name, names, count);
    }
    if (near)
        return spate_cli_misuse(text, "there is no option %s; did you mean --%s?", word, near);
    return spate_cli_misuse(text, "there is no option %s; --help lists them", word);
}

int spate_cli_next(int argc, char **argv, const char *letters, const struct option *options,
                   const struct spate_cli_text *text, enum spate_exit *result)
{
    struct option all[OPTIONS_MAX + 2] = {0};
    char short_options[64];
    char letter[3] = "-?";
    const char *word;
    size_t count = 0;
    int before = optind ? optind : 1, got;

    for (; count < OPTIONS_MAX && options[count].name; count++)
        all[count] = options[count];
    all[count] = (struct option){"help", no_argument, NULL, HELP};
    snprintf(short_options, sizeof short_options, ":h%s", letters);
    opterr = 0; /* the words are ours */
    got = getopt_long(argc, argv, short_options, all, NULL);
    if (got == HELP || got == 'h') {
        struct spate_buf out = {0};

        spate_buf_printf(&out, "usage: %s\n\n%s", text->usage, text->help);
        *result = spate_cli_print(&out);
        spate_buf_fini(&out);
        return '?';
    }
    if (got == '?' || got == ':') {
        /* A bad letter is in optopt, and optind may still be on its cluster; a bad word was argv[before]. */
        word = optind > before ? argv[optind - 1] : argv[before];
        if (optopt > 0 && optopt < 0x7F && strncmp(word, "--", 2) != 0) {
            letter[1] = (char)optopt;
            word = letter;
        }
        *result = mistake(text, word, got, all);
        return '?';
    }
    return got;
}

bool spate_cli_other_kind(const struct spate_cli_text *text, const char *path, const char *kind)
{
    struct spate_err err = {0};
    bool has = false;

    if (spate_config_has(path, kind, &has, &err) != SPATE_OK || !has)
        return false;
    spate_cli_misuse(text, "%s is the file of a %s; it is run with spate %s -c %s", path, kind, kind, path);
    return true;
}

enum spate_exit spate_cli_failed(const struct spate_err *err)
{
    fprintf(stderr, "spate: %s\n", err->text);
    return err->exit_code != SPATE_EXIT_OK ? err->exit_code : SPATE_EXIT_FAILED;
}

enum spate_exit spate_cli_print(const struct spate_buf *text)
{
    size_t at = 0;

    while (at < text->len) {
        ssize_t wrote = write(STDOUT_FILENO, text->data + at, text->len - at);

        if (wrote < 0 && errno == EPIPE)
            return SPATE_EXIT_OK;
        if (wrote < 0 && errno != EINTR) {
            fprintf(stderr, "spate: cannot write to standard output: %s\n", strerror(errno));
            return SPATE_EXIT_FAILED;
        }
        at += wrote > 0 ? (size_t)wrote : 0;
    }
    return SPATE_EXIT_OK;
}
