"""The model of a power cut finds what it is for: each of these programs is wrong in one thing, and is caught; put right, it is not."""

import subprocess
import sys

import pytest

from power import Disk, Trace, Unclear, listing, watched

RIGHT = """
openat(AT_FDCWD, "/d/a.part", O_WRONLY|O_CREAT|O_TRUNC|O_CLOEXEC, 0666) = 3</d/a.part>
write(3</d/a.part>, ""..., 10) = 10
fdatasync(3</d/a.part>) = 0
close(3</d/a.part>) = 0
rename("/d/a.part", "/d/a") = 0
openat(AT_FDCWD, "/d", O_RDONLY|O_CLOEXEC) = 3</d>
fsync(3</d>) = 0
close(3</d>) = 0
""".strip()


def disk(text, before=()):
    return Disk(Trace.of(text.strip()), "/d", before)


def lost(text, before=(), at=None):
    made = disk(text, before)
    return made.lost(made.trace.over if at is None else at)


def line(text, what):
    return next(number for number, one in enumerate(text.splitlines()) if what in one)


def test_written_synced_renamed_and_the_folder_synced_is_durable():
    assert lost(RIGHT) == {}
    assert disk(RIGHT).files(len(RIGHT.splitlines())) == ["a"]


def test_it_is_not_before_each_of_these_steps():
    for step in ("rename", "fsync(3</d>)"):
        assert list(lost(RIGHT, at=line(RIGHT, step))) in (["a.part"], ["a"]), step


def test_a_rename_without_a_sync_of_its_folder_is_caught():
    assert lost(RIGHT.replace("fsync(3</d>) = 0\n", "")) == {"a": "is not there"}


def test_a_sync_of_the_file_says_nothing_of_its_name():
    assert lost(RIGHT.replace("fsync(3</d>) = 0\n", 'openat(AT_FDCWD, "/d/a", O_RDONLY) = 4</d/a>\nfsync(4</d/a>) = 0\n')) == {"a": "is not there"}


def test_a_rename_of_what_was_durable_may_bring_back_the_old_name_and_what_was_replaced():
    text = 'rename("/d/new", "/d/a") = 0'
    assert lost(text, before=["/d/new"]) == {"a": "is called new again"}
    assert disk(text, before=["/d/new"]).back(1) == ["new"]
    assert lost(RIGHT.replace("fsync(3</d>) = 0\n", ""), before=["/d/a"]) == {"a": "is what it was before it was replaced"}


def test_a_write_after_the_sync_is_caught():
    late = RIGHT.replace("close(3</d/a.part>) = 0", 'write(3</d/a.part>, ""..., 10) = 10\nclose(3</d/a.part>) = 0')
    assert "lacks 1 writes" in lost(late)["a"]


def test_a_sync_that_began_before_the_write_had_ended_is_no_sync_of_it():
    both = RIGHT.replace('write(3</d/a.part>, ""..., 10) = 10\nfdatasync(3</d/a.part>) = 0', """
1 write(3</d/a.part>, ""..., 10 <unfinished ...>
2 fdatasync(3</d/a.part> <unfinished ...>
1 <... write resumed>) = 10
2 <... fdatasync resumed>) = 0
""".strip())
    assert "lacks 1 writes" in lost(both)["a"]
    # Nor one that has not come back yet.
    waits = RIGHT.replace("fdatasync(3</d/a.part>) = 0", "2 fdatasync(3</d/a.part> <unfinished ...>")
    assert "lacks 1 writes" in lost(waits)["a"]


def test_a_sync_of_a_folder_that_began_before_the_rename_had_ended_is_no_sync_of_it():
    both = RIGHT.replace('rename("/d/a.part", "/d/a") = 0', '1 rename("/d/a.part", "/d/a" <unfinished ...>')
    both = both.replace("fsync(3</d>) = 0", "2 fsync(3</d> <unfinished ...>\n1 <... rename resumed>) = 0\n2 <... fsync resumed>) = 0")
    assert list(lost(both)) == ["a"]


def test_bytes_that_are_not_synced_stay_so_under_another_name_and_are_synced_through_another_descriptor():
    later = RIGHT.replace("fdatasync(3</d/a.part>) = 0\n", "")
    assert "lacks 1 writes" in lost(later)["a"]
    assert lost(later + '\nopenat(AT_FDCWD, "/d/a", O_RDONLY) = 9</d/a>\nfsync(9</d/a>) = 0') == {}


def test_another_file_under_the_same_number_is_another_file():
    text = RIGHT.replace("fdatasync(3</d/a.part>) = 0\nclose(3</d/a.part>) = 0",
                         'close(3</d/a.part>) = 0\nopenat(AT_FDCWD, "/d/b", O_RDWR|O_CREAT, 0666) = 3</d/b>\nfdatasync(3</d/b>) = 0')
    assert "lacks 1 writes" in lost(text)["a"]


def test_what_has_failed_or_was_pretended_makes_nothing_durable():
    failed = RIGHT.replace("fdatasync(3</d/a.part>) = 0", "fdatasync(3</d/a.part>) = -1 EIO (Input/output error)")
    assert "lacks" in lost(failed)["a"]
    # The kernel has dropped the pages: a sync that succeeds after that has nothing to write.
    again = failed.replace("close(3</d/a.part>) = 0", "fdatasync(3</d/a.part>) = 0\nclose(3</d/a.part>) = 0")
    assert "lacks" in lost(again)["a"]
    assert "lacks" in lost(RIGHT.replace("fdatasync(3</d/a.part>) = 0", "fdatasync(3</d/a.part>) = 0 (INJECTED)"))["a"]
    assert "lacks" in lost(RIGHT.replace("fdatasync(3</d/a.part>)", "sync_file_range(3</d/a.part>, 0, 0, SYNC_FILE_RANGE_WRITE)"))["a"]


def test_a_name_whose_sync_failed_no_later_one_brings_back():
    failed = RIGHT.replace("fsync(3</d>) = 0", "fsync(3</d>) = -1 EIO (Input/output error)\nfsync(3</d>) = 0")
    assert lost(failed) == {"a": "is not there"}
    made = disk(failed)
    assert not made.is_durable(made.calls("rename", "a.part")[0], made.trace.over)
    # But one that is given after that.
    assert lost(failed + """
rename("/d/a", "/d/b") = 0
openat(AT_FDCWD, "/d", O_RDONLY) = 4</d>
fsync(4</d>) = 0""") == {}


@pytest.mark.parametrize(("synced", "missing"), [
    ("syncfs(4</d/in>) = 0", ["out"]),
    ("syncfs(3</d>) = 0", []),
    ("syncfs(9</elsewhere>) = 0", ["in/a", "out"]),
    ("syncfs(3</d>) = -1 EIO (Input/output error)", ["in/a", "out"]),
    # Of what nobody knows.
    ("syncfs(9</elsewhere>) = -1 EIO (Input/output error)\nsync() = 0", ["in/a", "out"]),
    ("sync() = 0", []),
])
def test_a_sync_of_a_file_system_is_one_of_what_is_below_its_folder(synced, missing):
    text = f"""
openat(AT_FDCWD, "/d", O_RDONLY) = 3</d>
openat(AT_FDCWD, "/d/in", O_RDONLY|O_DIRECTORY) = 4</d/in>
openat(AT_FDCWD, "/d/in/a", O_WRONLY|O_CREAT, 0666) = 5</d/in/a>
openat(AT_FDCWD, "/d/out", O_WRONLY|O_CREAT, 0666) = 6</d/out>
write(5</d/in/a>, ""..., 10) = 10
{synced}"""
    assert sorted(lost(text, before=["/d/in/"])) == missing


def test_what_failed_has_not_happened_but_a_write_that_failed_may_have():
    made = disk("""
openat(AT_FDCWD, "/d/a", O_WRONLY|O_CREAT, 0666) = 3</d/a>
write(3</d/a>, ""..., 10) = -1 EIO (Input/output error)
fsync(3</d/a>) = -1 EIO (Input/output error)
unlink("/d/a") = -1 EACCES (Permission denied)""")
    assert [len(made.calls(name, "a")) for name in ("write", "fsync", "unlink")] == [1, 0, 0]
    assert made.ended("write", "a", made.trace.over) == []
    assert not made.is_durable(made.calls("write", "a")[0], made.trace.over)


def test_a_call_can_be_made_sooner():
    made = disk(RIGHT)
    (write,), (rename,), (sync, *_) = made.calls("write", "*"), made.calls("rename", "*"), made.calls("fdatasync", "*")
    late = made.sooner(sync, write)
    assert "lacks" in late.lost(late.trace.over)["a"]
    early = made.sooner(rename, write)
    assert early.files(early.calls("write", "*")[0].begin) == ["a"] and early.ended("rename", "*", write.begin)
    assert made.ended("rename", "*", write.begin) == []


def test_a_folder_has_a_name_too():
    text = """
mkdir("/d/in", 0777) = 0
openat(AT_FDCWD, "/d/in/a", O_WRONLY|O_CREAT, 0666) = 3</d/in/a>
openat(AT_FDCWD, "/d/in", O_RDONLY) = 4</d/in>
fsync(4</d/in>) = 0
"""
    assert lost(text) == {"in": "is not there", "in/a": "is not there"}
    assert lost(text + 'openat(AT_FDCWD, "/d", O_RDONLY) = 5</d>\nfsync(5</d>) = 0') == {}


@pytest.mark.parametrize("change", [
    "write(3</d/a>, \"\"..., 1) = 1", "pwrite64(3</d/a>, \"\"..., 1, 0) = 1", "writev(3</d/a>, [{iov_base=\"\"..., iov_len=1}], 1) = 1",
    "pwritev(3</d/a>, [{iov_base=\"\"..., iov_len=1}], 1, 0) = 1", "ftruncate(3</d/a>, 0) = 0", "fallocate(3</d/a>, 0, 0, 10) = 0",
    "sendfile(3</d/a>, 7</x>, NULL, 9) = 9", "copy_file_range(7</x>, NULL, 3</d/a>, NULL, 9, 0) = 9", "splice(7<pipe:[1]>, NULL, 3</d/a>, NULL, 9, 0) = 9",
    "mmap(NULL, 4096, PROT_READ|PROT_WRITE, MAP_SHARED, 3</d/a>, 0) = 0x7f0000000000",
    "fcntl(3</d/a>, F_DUPFD_CLOEXEC, 0) = 6</d/a>\nclose(3</d/a>) = 0\nwrite(6</d/a>, \"\"..., 1) = 1",
    "openat(AT_FDCWD, \"/d/a\", O_WRONLY|O_TRUNC) = 4</d/a>",
])
def test_whatever_changes_a_file_is_a_write(change):
    text = f'openat(AT_FDCWD, "/d/a", O_RDWR|O_CREAT, 0666) = 3</d/a>\n{change}'
    assert list(lost(text, before=["/d/a"])) == ["a"]
    through = text.replace("O_RDWR|O_CREAT", "O_RDWR|O_DSYNC")
    by_itself = not change.startswith(("mmap", "openat", "fallocate", "ftruncate"))
    assert (lost(through, before=["/d/a"]) == {}) or not by_itself
    synced = "sync() = 0"
    assert (lost(f"{text}\n{synced}", before=["/d/a"]) == {}) or change.startswith("mmap")


def test_a_link_is_a_name_and_what_is_removed_may_come_back():
    text = """
link("/d/a", "/d/b") = 0
unlink("/d/a") = 0
openat(AT_FDCWD, "/d", O_RDONLY) = 5</d>
"""
    assert lost(text, before=["/d/a"]) == {"b": "is called a again"}
    assert disk(text, before=["/d/a"]).back(4) == ["a"]
    assert lost(text + "fsync(5</d>) = 0", before=["/d/a"]) == {}


@pytest.mark.parametrize("call", [
    "io_uring_setup(8, {}) = 3", 'truncate("/d/a", 0) = 0', 'symlink("/x", "/d/a") = 0', 'chdir("/d") = 0',
    'openat(AT_FDCWD, "/d", O_WRONLY|O_TMPFILE) = 3', 'rename("/x", "/d/a") = 0', 'rename("a", "b") = 0', "write(3, and no more",
])
def test_what_a_trace_does_not_tell_is_not_passed_over(call):
    with pytest.raises(Unclear):
        disk(call)


def test_a_moment_of_the_clock_is_a_moment_of_the_trace():
    text = """
7 100.000000 openat(AT_FDCWD, "/d/a", O_RDWR|O_CREAT, 0666) = 3</d/a> <0.001000>
7 100.100000 write(3</d/a>, ""..., 1) = 1 <0.000100>
7 100.200000 fsync(3</d/a>) = 0 (DELAYED) <0.300000>
7 100.600000 close(3</d/a>) = 0 <0.000100>
""".strip()
    made = disk(text, before=["/d/a"])
    assert [made.trace.at(seconds) for seconds in (99, 100.05, 100.3, 100.55, 200)] == [0, 1, 2, 3, 4]
    # Under way is not over.
    assert list(made.lost(made.trace.at(100.3))) == ["a"] and made.lost(made.trace.at(100.55)) == {}


PROGRAM = """
import os, sys, threading
def work(name):
    part = os.open(f"{name}.part", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.write(part, b"abc")
    if name != "no-sync":
        os.fdatasync(part)
    os.close(part)
    os.rename(f"{name}.part", name)
    if name != "no-name":
        folder = os.open(".", os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
threads = [threading.Thread(target=work, args=(f"right-{n}",)) for n in range(8)]
for one in threads: one.start()
for one in threads: one.join()
work("no-sync"), work("no-name")
"""


def test_what_strace_writes_of_a_program_with_threads_is_understood(tmp_path):
    (tmp_path / "files").mkdir()
    before = listing(tmp_path)
    subprocess.run([*watched(tmp_path / "trace", slow_ms=5), sys.executable, "-I", "-S", "-c", PROGRAM], cwd=tmp_path / "files", check=True, timeout=60)
    trace = Trace.read(tmp_path / "trace")
    made = Disk(trace, tmp_path, before, cwd=tmp_path / "files")
    assert "<unfinished ...>" in (tmp_path / "trace").read_text(), "its threads were at work together"
    missing = made.lost(trace.over, "files")
    assert sorted(missing) == ["files/no-name", "files/no-sync"], missing
    assert len(made.files(trace.over, "files")) == 10
