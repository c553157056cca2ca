/* Records what a machine measures, sends a file, and ends. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "pithead.h"

static void must(pithead_result result, const pithead_error *error) {
    if (result == PITHEAD_OK) return;
    fprintf(stderr, "error %d: %s%s\n", (int)result, error->message, error->retryable ? " (try again)" : "");
    exit(1);
}

int main(int argc, char **argv) {
    if (argc != 12) {
        fprintf(stderr, "usage: %s FOLDER SITE DEVICE GATEWAY CA CERTIFICATE KEY AUTHORITY ROOT BUNDLE FILE\n", argv[0]);
        return 2;
    }
    pithead_error error;

    /* Who the device is, whom it believes, and where the gateway is. */
    pithead_options *options;
    must(pithead_options_new(argv[1], argv[2], argv[3], &options, &error), &error);
    must(pithead_options_gateway(options, argv[4], &error), &error);
    must(pithead_options_ca_file(options, argv[5], &error), &error);
    must(pithead_options_certificate_files(options, argv[6], argv[7], &error), &error);
    must(pithead_options_anchor_file(options, argv[8], argv[9], &error), &error);
    must(pithead_options_bundle_file(options, argv[10], &error), &error);

    /* What it sends: the newest readings matter most, and files go when nothing else has to. */
    must(pithead_options_records(options, "engine", &error), &error);
    must(pithead_options_when_full(options, "engine", PITHEAD_DROP_OLDEST, &error), &error);
    must(pithead_options_files(options, "logs", &error), &error);

    pithead_client *client;
    must(pithead_open(options, &client, &error), &error);
    pithead_options_free(options);
    pithead_stream *engine;
    must(pithead_stream_open(client, "engine", &engine, &error), &error);
    pithead_files *logs;
    must(pithead_files_open(client, "logs", &logs, &error), &error);

    /* The control loop: a record is taken or refused at once, whatever the disk and the radio do. */
    for (int i = 0; i < 1000; i++) {
        char reading[64];
        int len = snprintf(reading, sizeof reading, "{\"reading\":%d}", i);
        if (pithead_record_named(engine, "oil", (const uint8_t *)reading, (size_t)len, &error) != PITHEAD_OK)
            fprintf(stderr, "reading %d was not taken: %s\n", i, error.message);
    }

    /* A file is sealed on a thread of its own; whoever wants to know asks. */
    pithead_file *file;
    must(pithead_send_file(logs, argv[11], "text/plain", "engine.log", &file, &error), &error);
    pithead_file_info info;
    do {
        nanosleep(&(struct timespec){.tv_nsec = 20 * 1000 * 1000}, NULL);
        must(pithead_file_state(file, &info, sizeof info, &error), &error);
    } while (!info.is_final);
    if (info.state != PITHEAD_FILE_DELIVERED) must(info.why.code, &info.why);

    /* The end of a shift: half a minute for what waits. What is not delivered by then stays on the disk. */
    if (pithead_flush(client, 30000, &error) != PITHEAD_OK)
        fprintf(stderr, "not everything is delivered yet: %s\n", error.message);
    must(pithead_close(client, 5000, &error), &error);
    pithead_stream_info told;
    must(pithead_stream_status(client, "engine", &told, sizeof told, &error), &error);
    printf("recorded %llu, dropped %llu, waiting %llu\n", (unsigned long long)told.recorded,
           (unsigned long long)told.dropped_records, (unsigned long long)told.waiting);

    pithead_file_free(file);
    pithead_files_free(logs);
    pithead_stream_free(engine);
    pithead_client_free(client);
    return 0;
}
