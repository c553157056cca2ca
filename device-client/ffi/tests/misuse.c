/* Everything that a program can do wrong and the library can see: each is an error with its number, and nothing crashes. Needs a
 * site's files and no gateway; ends with 0 if all was as it should be. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pithead.h"

static int failures = 0;

static void expect_at(int line, const char *what, pithead_result result, pithead_result expected, const pithead_error *error) {
    if (result == expected && error->code == expected && (expected == 0 || error->message[0] != 0)) return;
    fprintf(stderr, "line %d: %s gave %d and not %d: %s\n", line, what, (int)result, (int)expected, error->message);
    failures++;
}

static void check_at(int line, const char *what, int good) {
    if (good) return;
    fprintf(stderr, "line %d: not so: %s\n", line, what);
    failures++;
}

#define EXPECT(expected, call) expect_at(__LINE__, #call, (call), (expected), &error)
#define CHECK(what) check_at(__LINE__, #what, (what))

static const uint8_t DATA[1000] = {7};

static void *waits_for_a_gateway(void *client) {
    pithead_error error;
    pithead_result result = pithead_flush(client, 600000, &error);
    return result == PITHEAD_CLOSED && error.code == PITHEAD_CLOSED ? client : NULL;
}

int main(int argc, char **argv) {
    if (argc != 9) return 2;
    const char *folder = argv[1], *ca = argv[2], *certificate = argv[3], *key = argv[4];
    const char *authority = argv[5], *root = argv[6], *bundle = argv[7], *nobody = argv[8];
    const char *garbage = "not \xff UTF-8";
    pithead_error error;
    memset(&error, 0xee, sizeof error);

    CHECK(pithead_version()[0] >= '0' && pithead_version()[0] <= '9');

    /* Options. */
    pithead_options *options = (pithead_options *)&error;
    EXPECT(PITHEAD_BAD_ARGUMENT, pithead_options_new(NULL, "pit-7", "truck-c", &options, &error));
    CHECK(options == NULL);
    EXPECT(PITHEAD_BAD_ARGUMENT, pithead_options_new(folder, NULL, "truck-c", &options, &error));
    EXPECT(PITHEAD_BAD_ARGUMENT, pithead_options_new(folder, "pit-7", garbage, &options, &error));
    EXPECT(PITHEAD_BAD_ARGUMENT, pithead_options_new(folder, "no site/", "truck-c", &options, &error));
    EXPECT(PITHEAD_BAD_ARGUMENT, pithead_options_new(folder, "pit-7", "truck-c", NULL, &error));
    CHECK(pithead_options_new(NULL, NULL, NULL, NULL, NULL) == PITHEAD_BAD_ARGUMENT);
    EXPECT(PITHEAD_OK, pithead_options_new(folder, "pit-7", "truck-c", &options, &error));
    EXPECT(PITHEAD_BAD_ARGUMENT, pithead_options_gateway(NULL, nobody, &error));
    EXPECT(PITHEAD_BAD_ARGUMENT, pithead_options_gateway(options, NULL, &error));
    EXPECT(PITHEAD_BAD_ARGUMENT, pithead_options_gateway(options, "no port", &error));
    EXPECT(PITHEAD_BAD_ARGUMENT, pithead_options_server_name(options, "not a name", &error));
    EXPECT(PITHEAD_BAD_ARGUMENT, pithead_options_certificate_pem(options, NULL, 5, DATA, 5, &error));
    EXPECT(PITHEAD_UNREADABLE, pithead_options_ca_file(options, "/no/such/file", &error));
    EXPECT(PITHEAD_UNREADABLE, pithead_options_anchor_file(options, authority, "/no/such/file", &error));
    EXPECT(PITHEAD_UNREADABLE, pithead_options_bundle_file(options, "/", &error));
    EXPECT(1002, pithead_options_bundle_file(options, ca, &error));
    EXPECT(PITHEAD_BAD_ARGUMENT, pithead_options_records(options, "no stream/", &error));
    EXPECT(PITHEAD_OK, pithead_options_records(options, "can", &error));
    EXPECT(PITHEAD_BAD_ARGUMENT, pithead_options_files(options, "can", &error));
    EXPECT(PITHEAD_UNKNOWN_STREAM, pithead_options_priority(options, "other", 1, &error));
    EXPECT(PITHEAD_BAD_ARGUMENT, pithead_options_priority(options, "can", 256, &error));
    EXPECT(PITHEAD_BAD_ARGUMENT, pithead_options_when_full(options, "can", 2, &error));
    EXPECT(PITHEAD_OK, pithead_options_when_full(options, "can", PITHEAD_REJECT, &error));
    EXPECT(PITHEAD_OK, pithead_options_budget_bytes(options, "can", 1, &error));
    EXPECT(PITHEAD_OK, pithead_options_linger_ms(options, "can", 1, &error));
    EXPECT(PITHEAD_OK, pithead_options_files(options, "logs", &error));

    /* Opening with what is not enough. */
    pithead_client *client;
    EXPECT(PITHEAD_BAD_ARGUMENT, pithead_open(NULL, &client, &error));
    EXPECT(PITHEAD_BAD_ARGUMENT, pithead_open(options, NULL, &error));
    EXPECT(PITHEAD_BAD_ARGUMENT, pithead_open(options, &client, &error));
    EXPECT(PITHEAD_OK, pithead_options_gateway(options, nobody, &error));
    EXPECT(PITHEAD_BAD_ARGUMENT, pithead_open(options, &client, &error));
    EXPECT(PITHEAD_OK, pithead_options_ca_file(options, ca, &error));
    EXPECT(PITHEAD_NO_KEY, pithead_open(options, &client, &error));
    CHECK(client == NULL);
    EXPECT(PITHEAD_OK, pithead_options_certificate_files(options, certificate, ca, &error));
    EXPECT(PITHEAD_OK, pithead_options_anchor_file(options, authority, root, &error));
    EXPECT(PITHEAD_UNREADABLE, pithead_open(options, &client, &error)); /* no key in that file */
    EXPECT(PITHEAD_OK, pithead_options_certificate_files(options, certificate, key, &error));
    EXPECT(PITHEAD_OK, pithead_options_signing_key_file(options, key, &error));
    EXPECT(PITHEAD_OK, pithead_options_bundle_file(options, bundle, &error));

    /* Sealing by hand, and misused. */
    pithead_sealer *sealer, *second;
    pithead_buffer sealed;
    pithead_number number;
    EXPECT(PITHEAD_OK, pithead_sealer_open(options, &sealer, &error));
    EXPECT(PITHEAD_FOLDER_LOCKED, pithead_sealer_open(options, &second, &error));
    CHECK(second == NULL && error.retryable);
    EXPECT(PITHEAD_BAD_ARGUMENT, pithead_sealer_apply(sealer, NULL, 1, &error));
    EXPECT(1002, pithead_sealer_apply(sealer, DATA, sizeof DATA, &error));
    EXPECT(PITHEAD_BAD_ARGUMENT, pithead_seal(NULL, "can", NULL, NULL, DATA, 1, &sealed, NULL, &error));
    EXPECT(PITHEAD_BAD_ARGUMENT, pithead_seal(sealer, "can", NULL, NULL, DATA, 1, NULL, NULL, &error));
    EXPECT(PITHEAD_BAD_ARGUMENT, pithead_seal(sealer, "can", "no type", NULL, DATA, 1, &sealed, NULL, &error));
    EXPECT(PITHEAD_BAD_ARGUMENT, pithead_seal(sealer, "can", NULL, "../name", DATA, 1, &sealed, NULL, &error));
    EXPECT(PITHEAD_BAD_ARGUMENT, pithead_seal(sealer, "can", "application/vnd.pithead.batch+protobuf", NULL, DATA, 1, &sealed, NULL, &error));
    CHECK(sealed.data == NULL && sealed.len == 0);
    EXPECT(PITHEAD_OK, pithead_seal(sealer, "can", NULL, NULL, NULL, 0, &sealed, &number, &error));
    CHECK(sealed.len > 0 && number.seq == 1);
    pithead_buffer_free(&sealed);
    CHECK(sealed.data == NULL);
    pithead_buffer_free(&sealed);
    pithead_buffer_free(NULL);
    EXPECT(PITHEAD_OK, pithead_sealer_close(sealer, &error));
    EXPECT(PITHEAD_CLOSED, pithead_sealer_close(sealer, &error));
    EXPECT(PITHEAD_CLOSED, pithead_seal(sealer, "can", NULL, NULL, DATA, 1, &sealed, NULL, &error));
    pithead_sealer_free(sealer);

    /* A client, twice on one folder. */
    EXPECT(PITHEAD_OK, pithead_open(options, &client, &error));
    pithead_client *again;
    EXPECT(PITHEAD_FOLDER_LOCKED, pithead_open(options, &again, &error));
    pithead_options_free(options);
    pithead_stream *can, *none;
    pithead_files *logs, *no_files;
    EXPECT(PITHEAD_UNKNOWN_STREAM, pithead_stream_open(client, "other", &none, &error));
    EXPECT(PITHEAD_UNKNOWN_STREAM, pithead_stream_open(client, "logs", &none, &error));
    EXPECT(PITHEAD_UNKNOWN_STREAM, pithead_files_open(client, "can", &no_files, &error));
    CHECK(none == NULL && no_files == NULL);
    EXPECT(PITHEAD_BAD_ARGUMENT, pithead_stream_open(client, garbage, &none, &error));
    EXPECT(PITHEAD_BAD_ARGUMENT, pithead_stream_open(NULL, "can", &none, &error));
    EXPECT(PITHEAD_OK, pithead_stream_open(client, "can", &can, &error));
    EXPECT(PITHEAD_OK, pithead_files_open(client, "logs", &logs, &error));

    /* Structs that are older, newer, and none. */
    pithead_client_info info;
    struct { pithead_client_info known; uint64_t newer; } larger;
    EXPECT(PITHEAD_BAD_ARGUMENT, pithead_status(client, NULL, sizeof info, &error));
    EXPECT(PITHEAD_BAD_ARGUMENT, pithead_status(client, &info, 0, &error));
    EXPECT(PITHEAD_BAD_ARGUMENT, pithead_status(client, &info, (size_t)-1, &error));
    EXPECT(PITHEAD_BAD_ARGUMENT, pithead_status(NULL, &info, sizeof info, &error));
    larger.newer = 1;
    EXPECT(PITHEAD_OK, pithead_status(client, &larger.known, sizeof larger, &error));
    CHECK(larger.newer == 0 && larger.known.streams == 2 && larger.known.key == PITHEAD_KEY_FRESH);
    memset(&info, 0xee, sizeof info);
    EXPECT(PITHEAD_OK, pithead_status(client, &info, 8, &error));
    CHECK(info.key == PITHEAD_KEY_FRESH && info.streams == 0xeeeeeeeeeeeeeeee);
    pithead_stream_info stream;
    EXPECT(PITHEAD_UNKNOWN_STREAM, pithead_stream_status(client, "other", &stream, sizeof stream, &error));

    /* Records. */
    EXPECT(PITHEAD_BAD_ARGUMENT, pithead_record(NULL, DATA, 1, &error));
    EXPECT(PITHEAD_BAD_ARGUMENT, pithead_record(can, NULL, 1, &error));
    EXPECT(PITHEAD_BAD_ARGUMENT, pithead_record(can, DATA, (size_t)-1, &error));
    EXPECT(PITHEAD_BAD_ARGUMENT, pithead_record_named(can, garbage, DATA, 1, &error));
    EXPECT(PITHEAD_OK, pithead_record(can, NULL, 0, &error));
    EXPECT(PITHEAD_OK, pithead_record_at(can, -1, NULL, DATA, 1, &error));
    size_t large = 4 * 1024 * 1024;
    uint8_t *too_large = calloc(1, large);
    EXPECT(PITHEAD_TOO_LARGE, pithead_record(can, too_large, large, &error));
    CHECK(!error.retryable);
    free(too_large);

    /* On the disk, and no gateway takes it. */
    EXPECT(PITHEAD_OK, pithead_sync(client, 30000, &error));
    EXPECT(PITHEAD_TIMEOUT, pithead_flush(client, 50, &error));
    CHECK(error.retryable);
    EXPECT(PITHEAD_BAD_ARGUMENT, pithead_flush(NULL, 50, &error));

    /* The budget runs out: records are refused, and what is kept stays. */
    pithead_result result = PITHEAD_OK;
    unsigned long taken = 0;
    while (result == PITHEAD_OK && taken < 100000) {
        result = pithead_record(can, DATA, sizeof DATA, &error);
        if (result == PITHEAD_OK) taken++;
        /* Not faster than the disk. */
        pithead_sync(client, 1000, NULL);
    }
    CHECK(result == PITHEAD_OUTBOX_FULL && error.code == PITHEAD_OUTBOX_FULL && error.retryable);
    CHECK(taken > 100);
    EXPECT(PITHEAD_OUTBOX_FULL, pithead_sync(client, 50, &error));
    EXPECT(PITHEAD_OK, pithead_stream_status(client, "can", &stream, sizeof stream, &error));
    CHECK(stream.recorded == taken + 2 && stream.refused >= 1 && stream.trouble == PITHEAD_OUTBOX_FULL);
    CHECK(stream.dropped_records == 0 && stream.waiting_bytes <= stream.budget_bytes);

    /* Files. */
    pithead_file *file;
    EXPECT(PITHEAD_BAD_ARGUMENT, pithead_send_file(logs, NULL, NULL, NULL, &file, &error));
    EXPECT(PITHEAD_BAD_ARGUMENT, pithead_send_file(NULL, ca, NULL, NULL, &file, &error));
    EXPECT(PITHEAD_BAD_ARGUMENT, pithead_send_file(logs, ca, garbage, NULL, &file, &error));
    EXPECT(PITHEAD_BAD_ARGUMENT, pithead_send_file(logs, ca, NULL, "a/b", &file, &error));
    CHECK(file == NULL);
    EXPECT(PITHEAD_OK, pithead_send_file(logs, "/no/such/file", NULL, NULL, &file, &error));
    pithead_file_info sent;
    do EXPECT(PITHEAD_OK, pithead_file_state(file, &sent, sizeof sent, &error));
    while (!sent.is_final);
    CHECK(sent.state == PITHEAD_FILE_FAILED && sent.why.code == PITHEAD_UNREADABLE && sent.why.message[0] != 0);
    EXPECT(PITHEAD_BAD_ARGUMENT, pithead_file_state(NULL, &sent, sizeof sent, &error));

    /* Closed while somebody waits, and closed for good. */
    pthread_t waiting;
    void *let_go = NULL;
    CHECK(pthread_create(&waiting, NULL, waits_for_a_gateway, client) == 0);
    EXPECT(PITHEAD_OK, pithead_close(client, 0, &error));
    CHECK(pthread_join(waiting, &let_go) == 0 && let_go == client);
    EXPECT(PITHEAD_CLOSED, pithead_close(client, 0, &error));
    EXPECT(PITHEAD_CLOSED, pithead_flush(client, 0, &error));
    EXPECT(PITHEAD_CLOSED, pithead_sync(client, 0, &error));
    EXPECT(PITHEAD_CLOSED, pithead_record(can, DATA, 1, &error));
    EXPECT(PITHEAD_CLOSED, pithead_stream_open(client, "can", &none, &error));
    pithead_file *late;
    EXPECT(PITHEAD_CLOSED, pithead_send_file(logs, ca, NULL, NULL, &late, &error));
    EXPECT(PITHEAD_OK, pithead_stream_status(client, "can", &stream, sizeof stream, &error));
    CHECK(stream.recorded == taken + 2 && stream.waiting > 0);
    EXPECT(PITHEAD_OK, pithead_file_state(file, &sent, sizeof sent, &error));
    EXPECT(PITHEAD_BAD_ARGUMENT, pithead_close(NULL, 0, &error));

    /* Freed in any order, and nothing freed. */
    pithead_client_free(client);
    EXPECT(PITHEAD_CLOSED, pithead_record(can, DATA, 1, &error));
    pithead_stream_free(can);
    pithead_file_free(file);
    pithead_files_free(logs);
    pithead_client_free(NULL);
    pithead_stream_free(NULL);
    pithead_files_free(NULL);
    pithead_file_free(NULL);
    pithead_sealer_free(NULL);
    pithead_options_free(NULL);
    if (failures == 0) printf("all as it should be; %lu records kept\n", taken + 2);
    return failures != 0;
}
