/* Records each line of standard input, as a machine does that knows nothing of its gateway's fate, and ends when all of it is
 * delivered: for the tests. Says on standard output how many records it has taken, line by line. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pithead.h"

static void must(pithead_result result, const pithead_error *error) {
    if (result == PITHEAD_OK) return;
    fprintf(stderr, "error %d: %s\n", (int)result, error->message);
    exit(1);
}

int main(int argc, char **argv) {
    if (argc != 10) return 2;
    pithead_error error;
    pithead_options *options;
    must(pithead_options_new(argv[1], argv[2], argv[3], &options, &error), &error);
    must(pithead_options_gateway(options, argv[4], &error), &error);
    must(pithead_options_ca_file(options, argv[5], &error), &error);
    must(pithead_options_certificate_files(options, argv[6], argv[7], &error), &error);
    must(pithead_options_anchor_file(options, argv[8], argv[9], &error), &error);
    must(pithead_options_records(options, "can", &error), &error);
    must(pithead_options_linger_ms(options, "can", 1, &error), &error);
    pithead_client *client;
    must(pithead_open(options, &client, &error), &error);
    pithead_options_free(options);
    pithead_stream *can;
    must(pithead_stream_open(client, "can", &can, &error), &error);
    char line[256];
    while (fgets(line, sizeof line, stdin) != NULL) {
        size_t len = strcspn(line, "\n");
        must(pithead_record(can, (const uint8_t *)line, len, &error), &error);
        must(pithead_sync(client, 30000, &error), &error);
        printf("kept %.*s\n", (int)len, line);
        fflush(stdout);
    }
    must(pithead_flush(client, 60000, &error), &error);
    must(pithead_close(client, 5000, &error), &error);
    pithead_stream_free(can);
    pithead_client_free(client);
    return 0;
}
