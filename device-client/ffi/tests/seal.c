/* Seals what is on standard input as a file of its own and writes the envelope to standard output: for the tests. */
#include <stdio.h>
#include <stdlib.h>

#include "pithead.h"

static void must(pithead_result result, const pithead_error *error) {
    if (result == PITHEAD_OK) return;
    fprintf(stderr, "error %d: %s\n", (int)result, error->message);
    exit(1);
}

int main(int argc, char **argv) {
    if (argc != 7) return 2;
    static uint8_t plaintext[1 << 20];
    size_t len = fread(plaintext, 1, sizeof plaintext, stdin);
    pithead_error error;
    pithead_options *options;
    must(pithead_options_new(argv[1], argv[2], argv[3], &options, &error), &error);
    must(pithead_options_anchor_file(options, argv[4], argv[5], &error), &error);
    must(pithead_options_bundle_file(options, argv[6], &error), &error);
    pithead_sealer *sealer;
    must(pithead_sealer_open(options, &sealer, &error), &error);
    pithead_options_free(options);
    pithead_buffer sealed;
    pithead_number number;
    must(pithead_seal(sealer, "surveys", "text/plain", "pit.txt", plaintext, len, &sealed, &number, &error), &error);
    if (number.seq != 1 || fwrite(sealed.data, 1, sealed.len, stdout) != sealed.len) return 1;
    pithead_buffer_free(&sealed);
    must(pithead_sealer_close(sealer, &error), &error);
    pithead_sealer_free(sealer);
    return 0;
}
