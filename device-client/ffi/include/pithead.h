/*
 * Pithead: the device client for programs in C. Made from device-client/ffi/src; do not edit.
 *
 * The rules, for every function below:
 *
 * 1. A handle is what a ..._new, ..._open or pithead_send_file has given, and was not freed. It may be used by any number of
 *    threads at the same time; it is freed by one, when no other uses it any more. A handle may be freed before or after the one
 *    that it was taken from.
 * 2. A text is UTF-8 and ends with a zero byte (a path: whatever bytes the file system takes). Bytes are a pointer and a length;
 *    with length 0 the pointer is not looked at. Both are read during the call and never kept: they stay the caller's.
 * 3. What is filled is the caller's: an error, a place for a handle, a struct with its size. A place for a handle is set to NULL
 *    when the call fails.
 * 4. NULL where something is needed, text that is not UTF-8 and numbers out of range are PITHEAD_BAD_ARGUMENT; nothing was done.
 *    `error` may always be NULL.
 * 5. Functions that wait say so: pithead_open, _sync, _flush, _close, _client_free, _sealer_... and the _file options, which read
 *    a file. The others take no longer than a copy. None may be called in a signal handler.
 * 6. A client has threads, and a process that forks has none of them in the child: the child must not touch any handle.
 *    The threads block the host's signals. No signal handler, logger or environment variable is used, errno is not part of any
 *    answer, and nothing global is installed.
 * 7. What is published stays. Functions and numbers are added; structs that are passed with their size grow at their end, so that
 *    a program that was compiled with an older header runs with a newer library, and the other way round what the library does
 *    not know of reads as 0.
 */

#ifndef PITHEAD_H
#define PITHEAD_H

#include <stddef.h>
#include <stdint.h>

/**
 * Bytes of a message, its zero byte included. What is longer is cut.
 */
#define PITHEAD_MESSAGE_BYTES 496

/**
 * When a stream's budget is used up, new records are refused: what is kept is the oldest.
 */
#define PITHEAD_REJECT 0

/**
 * When a stream's budget is used up, the oldest envelopes are given up, counted, and declared to the cloud: what is kept is the
 * newest.
 */
#define PITHEAD_DROP_OLDEST 1

/**
 * The key statement is young.
 */
#define PITHEAD_KEY_FRESH 0

/**
 * The key statement should have been renewed; it is still sealed to.
 */
#define PITHEAD_KEY_STALE 1

/**
 * The key statement has expired: nothing is sealed.
 */
#define PITHEAD_KEY_EXPIRED 2

/**
 * There is no key: nothing is sealed.
 */
#define PITHEAD_KEY_NONE 3

/**
 * It waits for the one before it, or is being sealed.
 */
#define PITHEAD_FILE_SEALING 0

/**
 * It is sealed on the device's disk, and survives a power cut.
 */
#define PITHEAD_FILE_KEPT 1

/**
 * A gateway has a part of it.
 */
#define PITHEAD_FILE_UPLOADING 2

/**
 * A gateway has all of it. Nothing more happens to it.
 */
#define PITHEAD_FILE_DELIVERED 3

/**
 * No gateway will ever take it, or it was given up; its number is accounted for. Nothing more happens to it.
 */
#define PITHEAD_FILE_REFUSED 4

/**
 * It was not sealed, and used no number. Nothing more happens to it.
 */
#define PITHEAD_FILE_FAILED 5

/**
 * A device's client, open on its folder. One at a time on a folder.
 */
typedef struct pithead_client pithead_client;

/**
 * A file on its way. Freeing it takes nothing back, and it may outlive its client: its state stands still then.
 */
typedef struct pithead_file pithead_file;

/**
 * A stream of files. It may outlive its client: files are refused with PITHEAD_CLOSED then.
 */
typedef struct pithead_files pithead_files;

/**
 * What a client is opened with. Made by pithead_options_new(), filled by the functions that begin with pithead_options_, read
 * by pithead_open() and pithead_sealer_open() as often as one likes, and freed by pithead_options_free().
 *
 * What is new in a later version is a new function; what is not said keeps its default.
 */
typedef struct pithead_options pithead_options;

/**
 * Seals for one device, without any client. One at a time on a folder, and none beside a client.
 */
typedef struct pithead_sealer pithead_sealer;

/**
 * A stream of records. It may outlive its client: records are refused with PITHEAD_CLOSED then.
 */
typedef struct pithead_stream pithead_stream;

/**
 * How a call ended: 0 is good. From 1001 on it is the number behind PH- in the registry of reasons, which docs/errors.md
 * explains (and `pithead-device explain PH-6009` too); what is below is the library's own. A number is never used again for
 * something else, and later versions answer with numbers that this header does not name.
 */
typedef int32_t pithead_result;

/**
 * Why a call failed. The caller brings it, on the stack or wherever it likes, initialised or not, and it is written before the
 * call returns: cleared if the call was good. This struct never changes.
 */
typedef struct pithead_error {
  /**
   * The call's result.
   */
  pithead_result code;
  /**
   * 1 if the same call may succeed later without anybody mending something, else 0.
   */
  uint32_t retryable;
  /**
   * When that is, in milliseconds from now, if somebody has said it; else 0.
   */
  uint32_t retry_after_ms;
  /**
   * 0.
   */
  uint32_t reserved;
  /**
   * For a person, in UTF-8; no key and no plaintext is ever in it.
   */
  char message[PITHEAD_MESSAGE_BYTES];
} pithead_error;

/**
 * How a client stands. Counts are since it was opened. Later versions add to its end.
 */
typedef struct pithead_client_info {
  /**
   * 1 while a gateway is taking envelopes.
   */
  uint32_t connected;
  /**
   * One of PITHEAD_KEY_...
   */
  uint32_t key;
  /**
   * Epoch of the key statement that is believed.
   */
  uint64_t key_epoch;
  /**
   * Its number within the epoch.
   */
  uint64_t key_sequence;
  /**
   * Connections made.
   */
  uint64_t connections;
  /**
   * Sessions begun: each is one public-key operation here and one unwrapping in the cloud.
   */
  uint64_t sessions;
  /**
   * Heartbeats sealed.
   */
  uint64_t heartbeats;
  /**
   * Streams, those included that are on the disk and not configured any more.
   */
  uint64_t streams;
  /**
   * Envelopes of all streams that wait on the disk.
   */
  uint64_t waiting;
  /**
   * Bytes on the disk that they take.
   */
  uint64_t waiting_bytes;
  /**
   * Why nothing is being delivered, while nothing is: a number of the registry; else 0.
   */
  pithead_result trouble;
  /**
   * 1 if it may end without anybody mending something.
   */
  uint32_t trouble_retryable;
  /**
   * When it is tried again, counted from when this was said; 0 if that is not known.
   */
  uint32_t trouble_retry_after_ms;
  /**
   * 1 if the gateway's clock was seen.
   */
  uint32_t clock_seen;
  /**
   * How far the gateway's clock is ahead of the wall clock here, in microseconds. For display: nothing goes by it.
   */
  int64_t clock_ahead_us;
  /**
   * How wrong that may be.
   */
  uint64_t clock_uncertainty_us;
  /**
   * The gateway that is taking envelopes, as "host:port".
   */
  char gateway[272];
  /**
   * What the trouble is, for a person.
   */
  char trouble_text[256];
} pithead_client_info;

/**
 * How a stream stands. Records are what the owner gave, or files; envelopes are what they were sealed into. Counts are since the
 * client was opened. Later versions add to its end.
 */
typedef struct pithead_stream_info {
  /**
   * 1 if it carries files.
   */
  uint32_t files;
  /**
   * Why records are refused at the moment, or soon will be; else 0.
   */
  pithead_result trouble;
  /**
   * Records taken.
   */
  uint64_t recorded;
  /**
   * Bytes of their names and data.
   */
  uint64_t recorded_bytes;
  /**
   * Records refused to the caller's face.
   */
  uint64_t refused;
  /**
   * Records in memory, not sealed yet.
   */
  uint64_t in_memory;
  /**
   * Bytes that they take.
   */
  uint64_t in_memory_bytes;
  /**
   * Envelopes sealed.
   */
  uint64_t sealed;
  /**
   * Their bytes.
   */
  uint64_t sealed_bytes;
  /**
   * Records that are, or were, durable on the device's disk.
   */
  uint64_t held;
  /**
   * Envelopes that were given up by policy, and declared.
   */
  uint64_t dropped_envelopes;
  /**
   * Records in them.
   */
  uint64_t dropped_records;
  /**
   * Bytes of the names and data of these.
   */
  uint64_t dropped_bytes;
  /**
   * Envelopes that a gateway has on its disk because of this client.
   */
  uint64_t stored;
  /**
   * Envelopes that were there before.
   */
  uint64_t duplicates;
  /**
   * Of these, those that did not cross the air again.
   */
  uint64_t resumed;
  /**
   * Envelopes under whose number other bytes stand at the gateway, which keeps both.
   */
  uint64_t conflicts;
  /**
   * Envelopes that no gateway will take; they are in the folder's refused area.
   */
  uint64_t unacceptable;
  /**
   * Envelopes that were damaged on the device's disk, or not acceptable while the refused area was full; declared.
   */
  uint64_t lost;
  /**
   * Envelopes that wait on the disk.
   */
  uint64_t waiting;
  /**
   * Bytes on the disk that they take, files included.
   */
  uint64_t waiting_bytes;
  /**
   * How long the oldest of them has waited, in milliseconds by the wall clock.
   */
  uint64_t oldest_ms;
  /**
   * The stream's budget on the disk.
   */
  uint64_t budget_bytes;
} pithead_stream_info;

/**
 * How a file stands. Later versions add to its end.
 */
typedef struct pithead_file_info {
  /**
   * One of PITHEAD_FILE_...
   */
  uint32_t state;
  /**
   * 1 if nothing more happens to it.
   */
  uint32_t is_final;
  /**
   * Bytes read, while it is being sealed.
   */
  uint64_t plaintext_bytes;
  /**
   * Bytes of the envelope that a gateway has on its disk, while it is uploaded.
   */
  uint64_t persisted_bytes;
  /**
   * Bytes of the envelope, while it is uploaded.
   */
  uint64_t total_bytes;
  /**
   * The run under which it is filed, from PITHEAD_FILE_KEPT on.
   */
  uint64_t run;
  /**
   * Its number in the run.
   */
  uint64_t seq;
  /**
   * Why it failed or was refused; else its code is 0.
   */
  struct pithead_error why;
} pithead_file_info;

/**
 * Bytes that the library has allocated. Its owner reads them and gives them back with pithead_buffer_free(), and with nothing
 * else. This struct never changes.
 */
typedef struct pithead_buffer {
  /**
   * The first byte; NULL if there is none.
   */
  uint8_t *data;
  /**
   * How many there are.
   */
  size_t len;
} pithead_buffer;

/**
 * Under which number something was sealed. This struct never changes.
 */
typedef struct pithead_number {
  /**
   * The run.
   */
  uint64_t run;
  /**
   * The number in the run, from 1 on, without a hole.
   */
  uint64_t seq;
} pithead_number;

/**
 * It was done.
 */
#define PITHEAD_OK 0

/**
 * An argument is NULL, not UTF-8, or out of its range; the message names it. Nothing was done.
 */
#define PITHEAD_BAD_ARGUMENT 1

/**
 * The client or the sealer is closed, or was closed while the call waited.
 */
#define PITHEAD_CLOSED 2

/**
 * The time is over. What was begun goes on.
 */
#define PITHEAD_TIMEOUT 3

/**
 * No stream of this name and kind was configured.
 */
#define PITHEAD_UNKNOWN_STREAM 4

/**
 * More than can be taken at once: the disk is behind the records, or too many files wait to be sealed. Try again.
 */
#define PITHEAD_BUSY 5

/**
 * A fault of the library itself. Close the client and report it.
 */
#define PITHEAD_INTERNAL 6

/**
 * No gateway will ever take it, for a reason that this version does not know; the message has it.
 */
#define PITHEAD_REFUSED 7

/**
 * PH-1029: there is no key to seal to: not enrolled, no key statement yet, or the last one has expired.
 */
#define PITHEAD_NO_KEY 1029

/**
 * PH-2107: larger than one envelope of this stream can be: send it as a file.
 */
#define PITHEAD_TOO_LARGE 2107

/**
 * PH-4002: the gateway does not take the device's certificate.
 */
#define PITHEAD_CERTIFICATE_INVALID 4002

/**
 * PH-4003: the device's certificate was revoked.
 */
#define PITHEAD_CERTIFICATE_REVOKED 4003

/**
 * PH-4006: no gateway answers.
 */
#define PITHEAD_PEER_UNREACHABLE 4006

/**
 * PH-4007: the gateway's certificate is not of the expected CA or name.
 */
#define PITHEAD_PEER_UNTRUSTED 4007

/**
 * PH-6001: the options contradict each other, or what is in the folder.
 */
#define PITHEAD_CONFIG_INVALID 6001

/**
 * PH-6002: a file that was named cannot be read, or is not what it should be.
 */
#define PITHEAD_UNREADABLE 6002

/**
 * PH-6004: the folder cannot be written.
 */
#define PITHEAD_FOLDER_UNWRITABLE 6004

/**
 * PH-6005: another client or sealer is open on the folder, in this process or another.
 */
#define PITHEAD_FOLDER_LOCKED 6005

/**
 * PH-6006: no room is left on the disk, though the stream's budget is not used up.
 */
#define PITHEAD_DISK_FULL 6006

/**
 * PH-6007: the disk reported an error.
 */
#define PITHEAD_DISK_FAILED 6007

/**
 * PH-6008: what is kept in the folder does not read back.
 */
#define PITHEAD_STATE_DAMAGED 6008

/**
 * PH-6009: the stream's budget on the disk is used up, and its policy is to refuse.
 */
#define PITHEAD_OUTBOX_FULL 6009

/**
 * PH-6010: sealing failed.
 */
#define PITHEAD_SEALING_FAILED 6010

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * Begins the options of `device` at `site`, whose state is kept in `folder`. The folder is made if it is missing, and then is
 * the client's own.
 */
pithead_result pithead_options_new(const char *folder,
                                   const char *site,
                                   const char *device,
                                   struct pithead_options **options,
                                   struct pithead_error *error);

/**
 * Frees the options. A client that was opened with them does not need them any more. NULL is nothing.
 */
void pithead_options_free(struct pithead_options *options);

/**
 * What the device believes from the beginning: its authority, and the file of the authority's first trust root. It comes
 * from the authority by a way that is not the gateway. A folder that was enrolled before (`pithead-device enroll`) needs none.
 */
pithead_result pithead_options_anchor_file(struct pithead_options *options,
                                           const char *authority,
                                           const char *root_file,
                                           struct pithead_error *error);

/**
 * The file of a key bundle, as the authority exports it: with it the device can seal before it has met a gateway. It is
 * verified like any other when the client is opened.
 */
pithead_result pithead_options_bundle_file(struct pithead_options *options,
                                           const char *bundle_file,
                                           struct pithead_error *error);

/**
 * Adds a gateway, as "host:port" ("[address]:port" for IPv6). To be called once for each, in the order of preference; at most
 * 16.
 */
pithead_result pithead_options_gateway(struct pithead_options *options,
                                       const char *endpoint,
                                       struct pithead_error *error);

/**
 * The name in the gateways' certificates, if it is not the host of the endpoint.
 */
pithead_result pithead_options_server_name(struct pithead_options *options,
                                           const char *name,
                                           struct pithead_error *error);

/**
 * The CA of the gateways' certificates, in a PEM file.
 */
pithead_result pithead_options_ca_file(struct pithead_options *options,
                                       const char *ca_file,
                                       struct pithead_error *error);

/**
 * The device's certificate with the CAs above it, and its private key, in PEM files. A device that the site knows by its
 * address has none.
 */
pithead_result pithead_options_certificate_files(struct pithead_options *options,
                                                 const char *certificate_file,
                                                 const char *key_file,
                                                 struct pithead_error *error);

/**
 * The same from memory, for those who keep the key in a place of their own. The copy that is made is cleared when the options
 * and the clients that were opened with them are gone.
 */
pithead_result pithead_options_certificate_pem(struct pithead_options *options,
                                               const uint8_t *certificate,
                                               size_t certificate_len,
                                               const uint8_t *key,
                                               size_t key_len,
                                               struct pithead_error *error);

/**
 * The P-256 key, PKCS#8 in a PEM file, that signs the device's sessions: with it the cloud knows the device without believing
 * the gateway. Mostly it is the certificate's key.
 */
pithead_result pithead_options_signing_key_file(struct pithead_options *options,
                                                const char *key_file,
                                                struct pithead_error *error);

/**
 * Says that the machine's clock may be believed: it is set by NTS, by authenticated PTP or by an operator, and by nothing that
 * a stranger can reach. Without this call it is not believed, and nothing goes by it.
 */
pithead_result pithead_options_believe_clock(struct pithead_options *options,
                                             struct pithead_error *error);

/**
 * How often the device says, sealed, how far its streams have come, while connected. Default 60,000 ms.
 */
pithead_result pithead_options_heartbeat_ms(struct pithead_options *options,
                                            uint32_t every_ms,
                                            struct pithead_error *error);

/**
 * Bytes on the air without an answer, at most; the gateway narrows it. Default 1 MiB.
 */
pithead_result pithead_options_window_bytes(struct pithead_options *options,
                                            uint64_t window_bytes,
                                            struct pithead_error *error);

/**
 * Adds a stream of records: many small ones, gathered under one seal. Without any further call: priority 100, 64 MiB on the
 * disk, new records refused when they are used up, brought to the disk at once, 200 ms of linger, 8 MiB of memory, not
 * compressed. A device has at most 16 streams, the one of its heartbeats included if it has no stream of records.
 */
pithead_result pithead_options_records(struct pithead_options *options,
                                       const char *stream,
                                       struct pithead_error *error);

/**
 * Adds a stream of files, each an envelope of its own. As for records, but for 1 GiB on the disk and priority 50.
 */
pithead_result pithead_options_files(struct pithead_options *options,
                                     const char *stream,
                                     struct pithead_error *error);

/**
 * Priority of a stream, 0 to 255: higher goes first, strictly.
 */
pithead_result pithead_options_priority(struct pithead_options *options,
                                        const char *stream,
                                        uint32_t priority,
                                        struct pithead_error *error);

/**
 * Bytes that a stream may take on the device's disk, sealed. Less than 1 MiB is 1 MiB.
 */
pithead_result pithead_options_budget_bytes(struct pithead_options *options,
                                            const char *stream,
                                            uint64_t budget_bytes,
                                            struct pithead_error *error);

/**
 * What happens when a stream's budget is used up: PITHEAD_REJECT or PITHEAD_DROP_OLDEST.
 */
pithead_result pithead_options_when_full(struct pithead_options *options,
                                         const char *stream,
                                         uint32_t when_full,
                                         struct pithead_error *error);

/**
 * How long what was sealed may wait before it is brought to the disk: fewer writes on the flash, and a power cut costs what was
 * recorded within the interval as well. 0, the default: it does not wait.
 */
pithead_result pithead_options_sync_interval_ms(struct pithead_options *options,
                                                const char *stream,
                                                uint32_t interval_ms,
                                                struct pithead_error *error);

/**
 * How long a record may wait in memory for others to share its seal.
 */
pithead_result pithead_options_linger_ms(struct pithead_options *options,
                                         const char *stream,
                                         uint32_t linger_ms,
                                         struct pithead_error *error);

/**
 * Bytes of records in memory at most, while the disk is behind. Above it a record is refused with PITHEAD_BUSY.
 */
pithead_result pithead_options_memory_bytes(struct pithead_options *options,
                                            const char *stream,
                                            size_t memory_bytes,
                                            struct pithead_error *error);

/**
 * Compresses a stream with zstd before sealing. Not for a stream of which outsiders can choose a part: the length of what was
 * compressed together with it gives the rest away.
 */
pithead_result pithead_options_compress(struct pithead_options *options,
                                        const char *stream,
                                        struct pithead_error *error);

/**
 * The library's version, such as "0.1.0". It is never freed.
 */
const char *pithead_version(void);

/**
 * Opens the folder, begins a run, starts the client's threads and delivers what waits. Takes as long as the disk does; needs no
 * gateway.
 */
pithead_result pithead_open(const struct pithead_options *options,
                            struct pithead_client **client,
                            struct pithead_error *error);

/**
 * Seals everything that was recorded before and waits until it is on the device's disk: from then on it survives a power cut.
 * PITHEAD_TIMEOUT when the time is over, or what keeps it back, such as PITHEAD_OUTBOX_FULL or PITHEAD_NO_KEY.
 */
pithead_result pithead_sync(const struct pithead_client *client,
                            uint32_t timeout_ms,
                            struct pithead_error *error);

/**
 * Seals everything that was recorded before and waits until a gateway has it on its disk, or until it is settled otherwise (see
 * pithead_stream_info). A file is waited for from when it is PITHEAD_FILE_KEPT. PITHEAD_TIMEOUT when the time is over; at once
 * with the reason, such as PITHEAD_PEER_UNTRUSTED, where waiting longer is useless. What is not there yet goes on its way.
 */
pithead_result pithead_flush(const struct pithead_client *client,
                             uint32_t timeout_ms,
                             struct pithead_error *error);

/**
 * Takes nothing more, seals what was gathered, gives a gateway `timeout_ms` to take what waits, writes everything down and ends
 * the client's threads. What was not taken is no error: it is on the disk, and goes out after the next opening. The disk has its
 * own time, whatever `timeout_ms` is.
 *
 * Calls of other threads that wait on the client return PITHEAD_CLOSED. The handle stays, for pithead_status(), until
 * pithead_client_free().
 */
pithead_result pithead_close(const struct pithead_client *client,
                             uint32_t timeout_ms,
                             struct pithead_error *error);

/**
 * Frees a client. One that was not closed is closed, without time for a gateway. NULL is nothing. Streams and files that were
 * taken from it may be freed before or after.
 */
void pithead_client_free(struct pithead_client *client);

/**
 * Fills `info`, of which `info_size` is `sizeof *info`, with how the client stands; after pithead_close() with how it stood at
 * the end. Reads a few bytes of the disk: not for the control loop.
 */
pithead_result pithead_status(const struct pithead_client *client,
                              struct pithead_client_info *info,
                              size_t info_size,
                              struct pithead_error *error);

/**
 * The same for one stream, of records or of files.
 */
pithead_result pithead_stream_status(const struct pithead_client *client,
                                     const char *stream,
                                     struct pithead_stream_info *info,
                                     size_t info_size,
                                     struct pithead_error *error);

/**
 * Takes a stream of records from an open client, by the name that it has in the options. As often as one likes; each is to be
 * freed by pithead_stream_free().
 */
pithead_result pithead_stream_open(const struct pithead_client *client,
                                   const char *name,
                                   struct pithead_stream **stream,
                                   struct pithead_error *error);

/**
 * Frees a stream's handle; what was recorded stays. NULL is nothing.
 */
void pithead_stream_free(struct pithead_stream *stream);

/**
 * Takes a record, stamped with the clocks as they stand. It copies the bytes and returns: it never waits for the disk, the
 * network, a key or a seal. From here on the record is in memory; it survives a power cut when pithead_sync() says so, or after
 * the stream's linger and one write of the disk.
 *
 * A refusal is the stream's policy (PITHEAD_OUTBOX_FULL), a disk that takes nothing (PITHEAD_DISK_FULL, PITHEAD_DISK_FAILED),
 * memory that is full (PITHEAD_BUSY, PITHEAD_NO_KEY), a record that is too large (PITHEAD_TOO_LARGE), or a closed client; it is
 * counted, and the record is the caller's.
 *
 * Any number of threads may record into a stream at the same time. It takes a lock for as long as a copy takes and may ask for
 * memory, so that it must not be called in a signal handler.
 */
pithead_result pithead_record(const struct pithead_stream *stream,
                              const uint8_t *data,
                              size_t len,
                              struct pithead_error *error);

/**
 * The same with a name: what the record is, in the device's own terms. It is sealed with the data. NULL is no name.
 */
pithead_result pithead_record_named(const struct pithead_stream *stream,
                                    const char *name,
                                    const uint8_t *data,
                                    size_t len,
                                    struct pithead_error *error);

/**
 * The same for a record whose time its owner knows better: microseconds since 1970.
 */
pithead_result pithead_record_at(const struct pithead_stream *stream,
                                 int64_t wall_us,
                                 const char *name,
                                 const uint8_t *data,
                                 size_t len,
                                 struct pithead_error *error);

/**
 * Takes a stream of files from an open client, by the name that it has in the options. To be freed by pithead_files_free().
 */
pithead_result pithead_files_open(const struct pithead_client *client,
                                  const char *name,
                                  struct pithead_files **files,
                                  struct pithead_error *error);

/**
 * Frees the handle of a stream of files; what was sent goes on its way. NULL is nothing.
 */
void pithead_files_free(struct pithead_files *files);

/**
 * Seals a file into the outbox and delivers it like everything else, resuming where it was cut. Returns at once; `file` is asked
 * how it goes, and freed by pithead_file_free(). The file must not change until it is PITHEAD_FILE_KEPT; then it may go.
 *
 * `content_type` is its media type, at most 64 bytes; NULL is application/octet-stream. `name` is its name, without any folder;
 * NULL is none. Both stand in clear text beside the sealed bytes. PITHEAD_BUSY while 16 files wait to be sealed; that the file
 * cannot be read or does not fit, or that there is no key yet, is said by its state: send it again when that has changed.
 */
pithead_result pithead_send_file(const struct pithead_files *files,
                                 const char *source,
                                 const char *content_type,
                                 const char *name,
                                 struct pithead_file **file,
                                 struct pithead_error *error);

/**
 * Frees a file's handle. NULL is nothing.
 */
void pithead_file_free(struct pithead_file *file);

/**
 * Fills `info`, of which `info_size` is `sizeof *info`, with how a file stands. Waits for nothing.
 */
pithead_result pithead_file_state(const struct pithead_file *file,
                                  struct pithead_file_info *info,
                                  size_t info_size,
                                  struct pithead_error *error);

/**
 * Frees the bytes of a buffer and empties it, so that freeing it again does nothing. NULL is nothing.
 */
void pithead_buffer_free(struct pithead_buffer *buffer);

/**
 * Opens a sealer with the folder, the names and the trust of the options; gateways and streams in them are not looked at. Every
 * opening begins a new run.
 */
pithead_result pithead_sealer_open(const struct pithead_options *options,
                                   struct pithead_sealer **sealer,
                                   struct pithead_error *error);

/**
 * Verifies a key bundle that was carried to the device, as the authority exports it, and takes it in. What was believed before
 * stands if it is refused.
 */
pithead_result pithead_sealer_apply(const struct pithead_sealer *sealer,
                                    const uint8_t *bundle,
                                    size_t bundle_len,
                                    struct pithead_error *error);

/**
 * Seals `data` as the next number of `stream` and puts the envelope into `sealed`, which is to be freed by
 * pithead_buffer_free(). It may be called from any thread; one waits for the other.
 *
 * The number is used up: an envelope that is then thrown away is a hole that the cloud will see. `number`, unless it is NULL, is
 * told which it is. `content_type` is the media type, NULL is application/octet-stream; `name` is a file's name, NULL is none.
 * Both stand in clear text beside the sealed bytes. What is much larger than a gateway's inline limit (1 MiB unless the site says
 * otherwise) has to be handed in as an upload.
 */
pithead_result pithead_seal(const struct pithead_sealer *sealer,
                            const char *stream,
                            const char *content_type,
                            const char *name,
                            const uint8_t *data,
                            size_t len,
                            struct pithead_buffer *sealed,
                            struct pithead_number *number,
                            struct pithead_error *error);

/**
 * Writes everything down and ends the sealer. The handle stays until pithead_sealer_free().
 */
pithead_result pithead_sealer_close(const struct pithead_sealer *sealer,
                                    struct pithead_error *error);

/**
 * Frees a sealer. What was sealed stays sealed; the operating time since the last writing is lost if it was not closed. NULL is
 * nothing.
 */
void pithead_sealer_free(struct pithead_sealer *sealer);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* PITHEAD_H */
