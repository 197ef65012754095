/* Prints JSON (RFC 8259), indented. The caller's calls give the structure; commas, quotes and
 * escapes are added here. */
#ifndef RING3_CTL_JSON_H
#define RING3_CTL_JSON_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

struct json {
    FILE *out;
    unsigned depth;
    bool comma; /* the object or array has something already */
};

/* key is NULL in arrays and at the top. */
void json_open(struct json *j, const char *key, char bracket); /* '{' or '[' */
void json_close(struct json *j, char bracket);                 /* '}' or ']' */
/* Bytes that are no UTF-8 become U+FFFD. */
void json_string(struct json *j, const char *key, const char *s);
void json_uint(struct json *j, const char *key, uint64_t v);
void json_bool(struct json *j, const char *key, bool v);

#endif
