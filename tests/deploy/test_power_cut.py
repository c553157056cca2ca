"""The power goes: what the real programs have promised is on the disk. Each runs under strace, and power.py says what a cut would
take at the moment of the promise. What has not been written yet nothing takes: wherever an order is promised, what comes first is looked
for too.

While a program is watched its syncs are slow, so an answer that did not wait for one comes before its end. And each finding is made once
more without some of the syncs, or in the wrong order: there the same question has to name what is lost.
"""

import concurrent.futures
import fnmatch
import os
import shutil
import time

import pytest

from parties import AUTHORITY, SITE
from power import SYNCS, SYNCS_OF_ALL, WRITES, Disk, Trace, listing, watched
from programs import Server, program, run, succeed
from site_on_loopback import LoopbackSite

# Between the end of the last sync and that of a device's command lie some 10 ms, and some 30 ms until the gateway has no backlog.
SLOW_MS = {"gateway": 100, "decryptor": 150}
# Above what goes inline, and above what the decryptor opens in memory.
LARGE, LARGER = 3 << 20, 17 << 20
# Nobody misses these: room that is kept free, segments made ahead of time, what has no name yet and is removed at a start.
HARMLESS = ["*/lines.reserve", "*/lane-?/spare-*", "*/.tmp", "*/.tmp/*"]
PROMISES = ["small", "large", "refused", "many"]
OUTPUT = {"jsonl": "records.jsonl", "folder": "records"}


class Life:
    """What a program did from its start to its end, and when it had promised something."""

    def __init__(self, folder, name):
        self.folder, self.file, self.moments = folder, folder / f"{name}.trace", {}
        self.before = listing(folder)

    def watched(self, slow_ms=0):
        return watched(self.file, slow_ms)

    def promised(self, what):
        self.moments[what] = time.time()

    def over(self):
        self.disk = Disk(Trace.read(self.file), self.folder, self.before, cwd=os.getcwd())
        self.end = self.disk.trace.over
        return self

    def at(self, what):
        return self.disk.trace.at(self.moments[what])

    def without(self, *patterns):
        """The same life without the syncs of these files."""
        return self.disk.without(lambda call: call.name in (*SYNCS, *SYNCS_OF_ALL)
                                 and any(fnmatch.fnmatchcase(call.path or "", pattern) for pattern in patterns))


class Watched(LoopbackSite):
    """One of its programs is watched; the decryptor takes nothing unsigned from one of the trucks."""

    def __init__(self, folder, name, sink="jsonl", is_made=True):
        self.kind, self.sink = sink, OUTPUT[sink]
        super().__init__(folder)
        if sink == "folder" and is_made:
            self.out.mkdir()
        self.life = Life(folder, name)
        self.prefix = lambda started: self.life.watched(SLOW_MS[name]) if started == name else []

    def _start(self, name, toml, ready):
        return super()._start(name, toml.replace('kind = "jsonl"', f'kind = "{self.kind}"'), ready)

    def start_decryptor(self, ready=True):
        super().start_decryptor(ready)
        self.on_behalf("decryptor", "device", "add", f"{SITE}/truck-2", "--required", "-c", self.folder / "decryptor.toml")

    def on_behalf(self, name, *arguments):
        return succeed(program(f"pithead-{name}"), *arguments)

    def large(self, name, size):
        """Seals a file and hands it in; returns when the gateway has it on its disk."""
        config, plain, sealed = self.device(name) / "device.toml", self.folder / "plain", self.folder / "sealed"
        plain.write_bytes(os.urandom(size))
        self.on_behalf("device", "-c", config, "seal", plain, "--out", sealed)
        self.on_behalf("device", "-c", config, "upload", sealed)

    def refused(self):
        """Has an envelope refused: one without a signature, of the truck that has to sign."""
        config = self.device("truck-2") / "device.toml"
        config.write_text("\n".join(line for line in config.read_text().splitlines() if not line.startswith("signing_key")))
        self.decryptor.until("knows the truck", lambda: self.decryptor.metric("pithead_decryptor_devices_registered") == 1)
        self.send("truck-2", 3)
        self.gateway.until("keeps what was refused", lambda: self.gateway.metric("pithead_refused_records") > 0)

    def until_drained(self):
        self.gateway.until("has drained", lambda: self.gateway.metric("pithead_spool_records") == 0)

    def until_let_go(self):
        uploads = self.folder / "gateway-data" / "uploads"
        self.gateway.until("has let the large one go", lambda: not list(uploads.iterdir()))


@pytest.fixture(scope="module", autouse=True)
def strace():
    if not shutil.which("strace"):
        pytest.skip("strace is missing")


def life_of_a_gateway(folder):
    """Its WAN is away and comes back; it gives segments back, and is stopped."""
    with Watched(folder, "gateway") as site:
        life = site.life
        site.wan.cut()
        site.send("truck-1", 20)
        life.promised("small")
        site.large("truck-1", LARGE)
        life.promised("large")
        site.wan.heal()
        site.until_drained()
        site.until_let_go()
        site.refused()
        site.until_drained()
        life.promised("refused")
        # More than a segment of 5 MiB, and once more into one that was given back.
        for _ in range(2):
            site.send("truck-1", 210, size=30_000)
            site.until_drained()
    return life.over()


def life_of_a_decryptor(folder, sink):
    with Watched(folder, "decryptor", sink) as site:
        life = site.life
        site.send("truck-1", 20)
        site.until_drained()
        life.promised("small")
        site.large("truck-1", LARGER)
        site.until_drained()
        life.promised("large")
        site.refused()
        site.until_drained()
        life.promised("refused")
        # Envelopes that have waited come together.
        site.wan.cut()
        site.send("truck-1", 100, size=30_000)
        site.wan.heal()
        site.until_drained()
        life.promised("many")
    life.sink = sink
    return life.over()


@pytest.fixture(scope="module")
def lives(tmp_path_factory):
    """All at once: most of it is waiting for slow syncs."""
    with concurrent.futures.ThreadPoolExecutor() as pool:
        lives = {"gateway": pool.submit(life_of_a_gateway, tmp_path_factory.mktemp("gateway"))}
        for sink in OUTPUT:
            lives[sink] = pool.submit(life_of_a_decryptor, tmp_path_factory.mktemp(sink), sink)
        yield lives


@pytest.fixture(scope="module")
def gateway(lives):
    return lives["gateway"].result()


@pytest.fixture(scope="module", params=OUTPUT)
def decryptor(request, lives):
    return lives[request.param].result()


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A site of which nothing runs, and a device of it."""
    site = Watched(tmp_path_factory.mktemp("alone"), "nothing", "folder", is_made=False)
    site.device("truck-1")
    return site


def lost(disk, at, below=""):
    return {path: why for path, why in disk.lost(at, below).items() if not any(fnmatch.fnmatchcase(path, one) for one in HARMLESS)}


def some(paths, pattern):
    return [path for path in paths if fnmatch.fnmatchcase(path, pattern)]


# The gateway.

UPLOAD, SUMS, SEGMENT = "gateway-data/uploads/*.envelope", "gateway-data/uploads/*.sums", "gateway-data/spool/lane-?/seg-*"


def test_a_large_envelope_is_there_when_it_was_acknowledged(gateway):
    at = gateway.at("large")
    there = gateway.disk.files(at, "gateway-data/uploads")
    assert len(there) == 2 and some(there, UPLOAD) and some(there, SUMS), there
    assert gateway.disk.calls(WRITES, SEGMENT, after=gateway.at("small")), "it has a record"
    assert lost(gateway.disk, at) == {}


@pytest.mark.parametrize(("syncs", "named", "why"), [
    (["gateway-data/uploads"], UPLOAD, "is not there"),
    (["gateway-data"], "gateway-data/uploads", "is not there"),
    (["gateway-data/uploads/*.part"], UPLOAD, "lacks"),
    (["gateway-data/uploads/*.sums"], SUMS, "lacks"),
    (["gateway-data/spool/*/seg-*"], SEGMENT, "lacks"),
    (["gateway-data/spool/lane-?"], SEGMENT, "is not there"),
])
def test_without_one_of_its_syncs_it_would_not_be(gateway, syncs, named, why):
    missing = lost(gateway.without(*syncs), gateway.at("large"))
    assert some(missing, named) and all(why in missing[path] for path in some(missing, named)), missing


def test_small_envelopes_are_there_when_they_were_acknowledged(gateway):
    at = gateway.at("small")
    written = gateway.disk.ended(WRITES, SEGMENT, at)
    assert written and lost(gateway.disk, at) == {}
    missing = lost(gateway.without("gateway-data/spool/*/seg-*"), at)
    assert set(missing) == {call.path for call in written}, missing


def would_be_found(life, what, log, slow_ms):
    """Whether an answer that came while the last sync of the log was under way would be one too early."""
    last = [call for call in life.disk.calls("fdatasync", log) if call.end < life.at(what)][-1]
    return last.ended - last.began >= slow_ms / 1000 and some(lost(life.disk, last.end), log)


def test_an_answer_that_had_not_waited_would_be_found(gateway):
    for what in ("small", "large"):
        assert would_be_found(gateway, what, SEGMENT, SLOW_MS["gateway"])


def test_what_was_refused_is_in_its_area_when_it_has_left_the_lane(gateway):
    at, area = gateway.at("refused"), "gateway-data/refused"
    entries = gateway.disk.files(at, area)
    assert {path.rsplit(".", 1)[1] for path in entries} == {"envelope", "json"}
    assert lost(gateway.disk, at, area) == {}
    # Before the checkpoint that lets it go was begun.
    made = gateway.disk.calls("rename", f"{area}/*.json.part")[-1]
    checkpoint = gateway.disk.calls("openat", "gateway-data/lines.part", after=made.end)[0]
    assert lost(gateway.disk, checkpoint.begin, area) == {}
    for syncs, named in ((area, f"{area}/*"), ("*.envelope.part", f"{area}/*.envelope"), ("*.json.part", f"{area}/*.json")):
        assert sorted(lost(gateway.without(syncs), at, area)) == some(entries, named), syncs


def let_go(disk):
    """What was removed or given to be written over, with the last that was written of it, and its lane."""
    for call in disk.calls(("rename", "unlink"), SEGMENT):
        yield call, max(one.end for one in disk.ended(WRITES, call.path, call.begin)), os.path.dirname(call.path)
    for call in disk.calls("unlink", UPLOAD):
        named = max(one.end for one in disk.calls("rename", "gateway-data/uploads/*.part") if one.to == call.path)
        # Its record is the next that is written.
        yield call, named, os.path.dirname(disk.calls(WRITES, SEGMENT, after=named)[0].path)


def let_go_too_early(disk):
    """What was let go without a checkpoint that was durable before a cursor was written that was durable before that. The cursor of its lane
    is in a file, and in the head of each group that follows."""
    early = []
    for gone, written, lane in let_go(disk):
        cursors = [call for call in disk.calls(WRITES, f"{lane}/*")
                   if written < call.begin and disk.is_durable(call, gone.begin) and call.path != gone.path and "spare" not in call.path]
        checkpoints = [call for call in disk.calls(WRITES, "gateway-data/lines.part") if written < call.begin]
        if not any(disk.is_durable(checkpoint, cursor.begin) and disk.is_durable(name, cursor.begin)
                   for cursor in cursors for checkpoint in checkpoints
                   for name in disk.calls("rename", "gateway-data/lines.part", after=checkpoint.end)[:1]):
            early.append(gone.path)
    return early


def test_nothing_leaves_the_gateway_before_the_checkpoint_that_remembers_it_and_the_cursor_are_durable(gateway):
    gone = [call.path for call, *_ in let_go(gateway.disk)]
    assert len(some(gone, SEGMENT)) >= 2 and len(some(gone, UPLOAD)) == 1, gone
    assert let_go_too_early(gateway.disk) == []
    for syncs in (["gateway-data/lines.part"], ["gateway-data"], ["gateway-data/spool/*/seg-*", "*/cursor*"]):
        assert let_go_too_early(gateway.without(*syncs)) == gone, syncs


def written_over_too_early(disk):
    """Segments whose old name might come back over new bytes."""
    early = []
    for given in disk.calls("rename", SEGMENT):
        for write in disk.calls(WRITES, given.to, after=given.end):
            if not disk.is_durable(given, write.begin):
                early.append(given.to)
    return sorted(set(early))


def test_a_segment_that_was_given_back_is_written_over_when_its_new_name_is_durable(gateway):
    assert written_over_too_early(gateway.disk) == []
    assert written_over_too_early(gateway.without("gateway-data/spool/lane-?"))


def test_a_gateway_that_was_stopped_in_order_leaves_nothing_to_lose(gateway):
    assert lost(gateway.disk, gateway.end) == {}
    assert gateway.disk.files(gateway.end, "gateway-data/lines")


# The decryptor.

LEDGER = "decryptor-data/ledger/lane-0/seg-*"
APPLIED = {
    ("jsonl", "small"): "records.jsonl",
    ("jsonl", "many"): "records.jsonl",
    ("jsonl", "large"): f"records.jsonl.large/{SITE}~truck-1~files~*",
    ("folder", "small"): f"records/{SITE}/truck-1/can/*/*.batch.pb",
    ("folder", "many"): f"records/{SITE}/truck-1/can/*/*.batch.pb",
    ("folder", "large"): f"records/{SITE}/truck-1/files/*/*.bin",
}


def output_of(life, what):
    return APPLIED.get((life.sink, what), f"decryptor-data/refused/{SITE}/truck-2/*.envelope")


@pytest.mark.parametrize("what", PROMISES)
def test_what_the_gateway_was_told_is_applied_is_in_the_output_and_in_the_books(decryptor, what):
    at = decryptor.at(what)
    output = output_of(decryptor, what)
    assert some(decryptor.disk.files(at), output)
    assert lost(decryptor.disk, at) == {}
    # The same without the syncs of the output, of its folder, of the books.
    written = {"small": ["records.jsonl", "*/.tmp/*.part"], "large": ["*/.tmp/*.large"], "refused": ["decryptor-data/refused/*.part"],
               "many": ["records.jsonl", "*/.tmp/*.part", "records"]}[what]
    assert some(lost(decryptor.without(*written), at), output)
    folders = {call.path for call in decryptor.disk.calls("fsync", "*") if call.node.is_folder}
    assert some(lost(decryptor.without(*folders), at), output)
    assert some(lost(decryptor.without(LEDGER), at), LEDGER)
    assert would_be_found(decryptor, what, LEDGER, SLOW_MS["decryptor"])


def entered_too_early(disk):
    """Entries of the ledger that were written before what they speak of was durable. What is in a folder for that has no name yet."""
    early = {}
    for entry in disk.calls(WRITES, LEDGER):
        missing = lost(disk, entry.begin)
        early |= {path: why for path, why in missing.items() if path.startswith(("records", "decryptor-data/refused"))}
    return early


def entry_of(life, disk, what):
    """The first entry of the ledger that was written for what was promised, and the moment of the promise before it."""
    before = [None, *PROMISES][PROMISES.index(what)]
    since = life.at(before) if before else -1
    return disk.ended(WRITES, LEDGER, life.at(what), after=since)[0], since


def entered_before_its_output(life, disk, what):
    """Of the output of what was promised, what was written after the ledger had it."""
    entry, since = entry_of(life, disk, what)
    output, made = output_of(life, what), set(disk.files(entry.begin)) - set(disk.files(since))
    late = [] if output == "records.jsonl" or some(made, output) else [output]
    if life.sink == "jsonl" and what != "refused" and not disk.ended(WRITES, "records.jsonl", entry.begin, after=since):
        late.append("records.jsonl")
    return late


@pytest.mark.parametrize("what", PROMISES)
def test_an_entry_of_the_books_is_written_after_what_it_speaks_of(decryptor, what):
    disk = decryptor.disk
    assert entered_before_its_output(decryptor, disk, what) == []
    # What it must not precede: a line of the records, or the name of a file.
    entry, since = entry_of(decryptor, disk, what)
    lines = decryptor.sink == "jsonl" and what != "refused"
    names = [call for call in disk.calls(("rename", "renameat2"), "*", after=since) if fnmatch.fnmatchcase(call.to, output_of(decryptor, what))]
    last = disk.ended(WRITES, "records.jsonl", entry.begin, after=since)[0] if lines else names[0]
    assert entered_before_its_output(decryptor, disk.sooner(entry, last), what)


def test_an_entry_of_the_books_speaks_of_nothing_that_is_not_there(decryptor):
    assert len(decryptor.disk.calls(WRITES, LEDGER)) >= 3
    assert entered_too_early(decryptor.disk) == {}
    for syncs in (["records.jsonl", "*/.tmp/*.part"], ["*/.tmp/*.large"], ["records.jsonl.large", f"records/{SITE}/truck-1/files/*"], ["*/refused/*.part"]):
        assert entered_too_early(decryptor.without(*syncs)), syncs


def test_many_at_once_are_synced_with_their_file_system_first_their_bytes_and_then_their_names(lives):
    life = lives["folder"].result()
    syncs = life.disk.calls("syncfs", "records", after=life.at("refused"))
    assert syncs and len(syncs) % 2 == 0, "they came one by one"
    assert some(named_too_early(life.disk.without(lambda call: call in syncs[::2])), APPLIED["folder", "many"])
    assert some(entered_too_early(life.disk.without(lambda call: call in syncs[1::2])), APPLIED["folder", "many"])


def test_a_large_envelope_is_kept_by_the_decryptor_until_it_is_applied_and_in_the_books(decryptor):
    (gone,) = decryptor.disk.calls("unlink", "decryptor-data/uploads/*.envelope")
    assert decryptor.disk.ended(WRITES, LEDGER, gone.begin, after=decryptor.at("small")), "it has an entry"
    assert some(decryptor.disk.files(gone.begin), APPLIED[decryptor.sink, "large"])
    assert lost(decryptor.disk, gone.begin) == {}
    assert some(lost(decryptor.without(LEDGER), gone.begin), LEDGER)


def test_a_decryptor_that_was_stopped_in_order_leaves_nothing_to_lose(decryptor):
    assert lost(decryptor.disk, decryptor.end) == {}


def test_a_folder_for_the_output_that_a_start_has_made_is_there(alone):
    life = Life(alone.folder, "made")
    alone.prefix = lambda _: life.watched()
    try:
        alone.start_decryptor()
    finally:
        alone.__exit__()
    life.over()
    made_folders_are_there(life, "records")


# The device.

DEVICE = "devices/truck-1"


@pytest.fixture(scope="module")
def records(alone):
    """Records while no gateway is there: they are sealed and wait."""
    life = Life(alone.folder, "records")
    command = [*life.watched(), program("pithead-device"), "-c", alone.device("truck-1") / "device.toml", "send", "--stream", "can", "--timeout", "1ms", "-"]
    done = run(*command, input=b"a record\n" * 20)
    assert done.returncode == 75 and b"wait in the outbox" in done.stderr, done.stderr
    return life.over()


def test_records_that_wait_in_the_outbox_are_there(records):
    written = [call.path for call in records.disk.calls(WRITES, f"{DEVICE}/outbox/can/lane-0/seg-*")]
    assert written and lost(records.disk, records.end) == {}
    for syncs, named in (([f"{DEVICE}/outbox/can/lane-0/seg-*"], written[0]), ([f"{DEVICE}/outbox"], f"{DEVICE}/outbox/can"), ([DEVICE], f"{DEVICE}/outbox")):
        assert named in lost(records.without(*syncs), records.end), syncs


def numbered_too_early(disk):
    # The head of a segment is written before it is called so.
    first = disk.calls(WRITES, f"{DEVICE}/outbox/can/lane-0/seg-*")[0]
    numbered = disk.ended(WRITES, f"{DEVICE}/sequence.[ab]", first.begin)
    missing = some(disk.lost(first.begin), f"{DEVICE}/sequence.[ab]")
    return missing if numbered else [*missing, first.path]


def test_the_number_of_the_start_is_there_before_an_envelope_bears_it(records):
    disk = records.disk
    assert numbered_too_early(disk) == []
    assert numbered_too_early(records.without(f"{DEVICE}/sequence.[ab]"))
    log = disk.calls(WRITES, f"{DEVICE}/outbox/can/lane-0/seg-*")[0]
    assert log.path in numbered_too_early(disk.sooner(log, disk.calls(WRITES, f"{DEVICE}/sequence.[ab]")[0]))


FILES = {"small": 1000, "large": LARGE}


@pytest.fixture(scope="module")
def files(alone):
    """A folder whose files go into the outbox, and are deleted then: one after the other, so each has its own record."""
    folder = alone.folder / "drop"
    folder.mkdir()
    life = Life(alone.folder, "files")
    config = alone.device("truck-1") / "device.toml"
    command = [*life.watched(), program("pithead-device"), "-c", config, "watch", folder, "--after", "delete", "--settle", "10ms"]
    server = Server(command, alone.folder / "files.log")
    try:
        for name, size in FILES.items():
            whole = alone.folder / name
            whole.write_bytes(os.urandom(size))
            whole.rename(folder / name)
            server.until("has taken it", lambda: not list(folder.iterdir()))
    finally:
        alone._end(server)
    return life.over()


OUTBOX_LOG, OUTBOX_FILE = f"{DEVICE}/outbox/files/lane-0/seg-*", f"{DEVICE}/outbox/files/files/*.envelope"


def deleted_too_early(disk):
    """What of the outbox would be lost when a file is deleted, and the files that are not in it by then."""
    early, since = [], -1
    for gone in disk.calls("unlink", "drop/*"):
        early += disk.lost(gone.begin, f"{DEVICE}/outbox/files")
        # The head of a segment is written before it is called so.
        if not disk.ended(WRITES, OUTBOX_LOG, gone.begin, after=since):
            early.append(gone.path)
        # A large one is a file of its own.
        if gone.path == "drop/large" and not some(disk.files(gone.begin), OUTBOX_FILE):
            early.append(gone.path)
        since = gone.end
    return early


def test_a_file_is_deleted_when_its_envelope_in_the_outbox_is_there(files):
    disk = files.disk
    small, large = disk.calls("unlink", "drop/*")
    assert [small.path, large.path] == ["drop/small", "drop/large"]
    assert deleted_too_early(disk) == []
    envelope = f"{DEVICE}/outbox/files/files/*"
    for syncs, named in (([f"{envelope}.part"], envelope), ([f"{DEVICE}/outbox/files/files"], envelope), ([OUTBOX_LOG], OUTBOX_LOG)):
        assert some(deleted_too_early(files.without(*syncs)), named), syncs
    # In the wrong order: before the record of each, and before the large one's file has its name.
    first, second = disk.calls(WRITES, OUTBOX_LOG)[:2]
    (named,) = disk.calls("rename", f"{envelope}.part")
    assert small.path in deleted_too_early(disk.sooner(small, first))
    assert deleted_too_early(disk.sooner(large, second)) == [large.path]
    assert deleted_too_early(disk.sooner(large, named)).count(large.path) == 2


def enrol(site, folder):
    """The life of a device's enrolment into a folder."""
    life = Life(site.folder, f"enrolled-{folder.replace('/', '-')}")
    succeed(*life.watched(), program("pithead-device"), "enroll", "--dir", site.folder / folder, "--site", SITE, "--device", "truck-2",
            "--authority", AUTHORITY, "--root", site.authority.root, "--bundle", site.authority.bundle)
    return life.over()


@pytest.fixture(scope="module")
def enrolled(alone):
    (alone.folder / "made").mkdir()
    return enrol(alone, "made")


def test_a_device_that_was_enrolled_is(enrolled):
    assert {"made/device.toml", "made/trust.a"} <= set(enrolled.disk.files(enrolled.end, "made"))
    assert lost(enrolled.disk, enrolled.end) == {}
    assert "made/trust.a" in lost(enrolled.without("made/trust.[ab]"), enrolled.end)
    assert "made/device.toml" in lost(enrolled.without("made"), enrolled.end)


def made_folders_are_there(life, *folders):
    """Each by a sync of the one above it."""
    assert lost(life.disk, life.end) == {}
    for folder in folders:
        assert life.disk.calls("mkdir", folder)
        assert folder in lost(life.without(os.path.dirname(folder) or "."), life.end), folder


def test_the_folders_that_an_enrolment_has_made_are_there(alone):
    made_folders_are_there(enrol(alone, "new/in/it"), "new", "new/in", "new/in/it")


# The authority.

def test_an_authority_that_was_made_is_there(tmp_path):
    life = Life(tmp_path, "authority")
    succeed(*life.watched(), program("pithead-decryptor"), "authority", "init", "--dir", tmp_path / "deep/authority", "--authority", AUTHORITY)
    made_folders_are_there(life.over(), "deep", "deep/authority", "deep/authority/keys")


# All of them.

def named_too_early(disk):
    """Files that were given a name before their bytes were durable: a cut may leave the name and none of them."""
    names = disk.calls(("rename", "renameat2", "link", "linkat"), "*")
    return [call.to for call in names if call.done and "lacks" in disk.lost(call.begin, call.path).get(call.path, "")]


@pytest.mark.parametrize("name", ["gateway", "records", "files", "enrolled"])
def test_nothing_gets_its_name_before_its_bytes_are_durable(request, name):
    life = request.getfixturevalue(name)
    assert named_too_early(life.disk) == []
    assert named_too_early(life.without("*"))


def test_nothing_of_the_output_gets_its_name_before_its_bytes_are_durable(decryptor):
    assert named_too_early(decryptor.disk) == []
    assert named_too_early(decryptor.without("*"))
