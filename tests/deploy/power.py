"""What a power cut would take from a program, by its own system calls.

strace writes down what a program asks of its files; this says, for any moment of it, what would be on the disk if the power went then.
The disk is the worst one that POSIX allows:

- bytes of a file are durable by an fsync or fdatasync of that file that began when the write had ended, and has ended itself;
- a name (of a file that was made, renamed, linked or removed) is durable by an fsync of its folder that began after that. The sync of a
  file says nothing of its name, and that of a folder nothing of what is in its files;
- a sync that failed, or that strace has only pretended, makes nothing durable, and what one that failed was asked for, of a file or of a
  folder, no later one brings back;
- syncfs says something of what is below its folder, and of nothing else: a trace does not tell where another file system begins.

What a folder held before the program began is durable. A file is known by what it is, not by its name, and keeps what it lacks when it
is renamed. What cannot be judged by a trace is never taken for durable (a file that is mapped for writing), or ends the reading: a second
process among others, since here is one table of descriptors.
"""

import dataclasses
import fnmatch
import os
import pathlib
import re

WRITES = {"write": 0, "pwrite64": 0, "writev": 0, "pwritev": 0, "pwritev2": 0, "ftruncate": 0, "fallocate": 0, "sendfile": 0,
          "copy_file_range": 2, "splice": 2}
SYNCS = ("fsync", "fdatasync")
SYNCS_OF_ALL = ("sync", "syncfs")
OPENS = ("open", "creat", "openat", "openat2")
RENAMES = ("rename", "renameat", "renameat2")
LINKS = ("link", "linkat")
REMOVES = ("unlink", "unlinkat", "rmdir")
MAKES = ("mkdir", "mkdirat")
DUPS = ("dup", "dup2", "dup3", "fcntl")
# Not to be judged by a trace, or not understood here.
BLIND = ("io_uring_setup", "chdir", "fchdir", "execve", "symlink", "symlinkat", "mknod", "mknodat", "truncate")
CALLS = [*WRITES, *SYNCS, *SYNCS_OF_ALL, *OPENS, *RENAMES, *LINKS, *REMOVES, *MAKES, *DUPS, *BLIND, "close", "mmap"]

FD = r"(\d+)(?:<[^>]*>)?"
AT = r"(?:(?:AT_FDCWD|(\d+))(?:<([^>]*)>)?, )?"
PATH = r'"((?:[^"\\]|\\.)*)"'
LINE = re.compile(r"^(?:(\d+) +)?(?:(\d+\.\d+) )?(.*)$")
ENDED = re.compile(r"\)\s+= (\?|-?(?:0x)?[0-9a-f]+)(.*)$")
TOOK = re.compile(r"<(\d+\.\d+)>$")
NEVER = float("inf")


def watched(out, slow_ms=0):
    """The command before a program whose trace goes to `out`. With `slow_ms` each sync takes that much longer: whoever answers without
    waiting for it has then long answered."""
    slow = ["-e", f"inject={','.join((*SYNCS, *SYNCS_OF_ALL))}:delay_enter={slow_ms * 1000}"] if slow_ms else []
    return ["strace", "-f", "-y", "-ttt", "-T", "-s", "0", "-qq", "--seccomp-bpf", "-e", "trace=" + ",".join(f"?{call}" for call in CALLS), *slow,
            "-o", str(out)]


def listing(folder):
    """What lies in a folder before a program begins."""
    return [str(path) + ("/" if path.is_dir() else "") for path in sorted(pathlib.Path(folder).rglob("*"))]


class Unclear(Exception):
    """A trace that cannot be judged."""


@dataclasses.dataclass(eq=False)
class Call:
    """A system call: between which lines of the trace it was under way, and when."""

    name: str
    arguments: str
    begin: int
    began: float
    end: float = NEVER
    ended: float = NEVER
    result: int | None = None
    # Of the file that it is about; of a rename or a link, where it led.
    path: str | None = None
    to: str | None = None
    # The file whose bytes it changed; the folders in which it gave or took names.
    node: object = None
    folders: list = dataclasses.field(default_factory=list)

    @property
    def done(self):
        return self.result is not None and self.result >= 0

    @property
    def failed(self):
        return self.result is not None and self.result < 0


class Trace:
    """The calls of a program in their order. The number of a line is a moment: everything of the lines before it has happened."""

    def __init__(self, calls, lines):
        self.calls, self.lines = calls, lines

    @classmethod
    def read(cls, path):
        return cls.of(pathlib.Path(path).read_text(errors="replace"))

    @classmethod
    def of(cls, text):
        calls, lines, open_calls = [], [], {}
        for number, line in enumerate(text.splitlines()):
            thread, at, rest = LINE.match(line.strip()).groups()
            at = float(at or number)
            lines.append(at)
            if not rest or rest.startswith(("---", "+++", "strace:")):
                continue
            if resumed := re.match(r"<\.\.\. \w+ resumed>(.*)$", rest):
                call = open_calls.pop(thread, None)
                if call is None:
                    raise Unclear(f"line {number + 1} goes on with what never began: {line}")
                rest = resumed[1]
            else:
                name, _, rest = rest.partition("(")
                call = Call(name, "", number, at)
                calls.append(call)
            if rest.endswith("<unfinished ...>"):
                call.arguments += rest.removesuffix("<unfinished ...>")
                open_calls[thread] = call
                continue
            ended = ENDED.search(rest)
            if not ended:
                raise Unclear(f"line {number + 1} is not understood: {line}")
            call.arguments += rest[:ended.start()]
            if call.begin == number and (took := TOOK.search(rest)):
                lines[number] += float(took[1])
            call.end, call.ended = number, lines[number]
            if ended[1] == "?":
                # The program ended in it, and nobody knows how far it came.
                call.end = NEVER
            elif "INJECTED" in ended[2] and not ended[1].startswith("-"):
                # Only pretended: nothing has happened.
                calls.remove(call)
            else:
                call.result = int(ended[1], 0)
        return cls(calls, lines)

    @property
    def over(self):
        """The moment after all of it."""
        return len(self.lines)

    def at(self, seconds):
        """The moment at a time of the clock."""
        return next((number for number, ended in enumerate(self.lines) if ended > seconds), self.over)


class Node:
    """A file or a folder, whatever it is called."""

    def __init__(self, is_folder):
        self.is_folder, self.mapped = is_folder, NEVER
        # Of a file: calls, and whether each was durable by itself. Of a folder: calls and the names that they gave or took.
        self.writes, self.names, self.syncs = [], [], []
        # What a folder holds by all calls so far, and what it held before them.
        self.now, self.before = {}, {}


class Disk:
    """What a trace has made of the folder `root`, which held `before`; `cwd` is where the program began."""

    def __init__(self, trace, root, before=(), cwd=None):
        self.trace, self.root, self.before, self.cwd = trace, str(root), before, str(cwd) if cwd else None
        self.top, self.fds, self.syncs_of_all, self.places, self.started = Node(True), {}, [], {}, False
        # Its own, since what they were about is found here.
        self.all = [dataclasses.replace(call, path=None, to=None, node=None, folders=[]) for call in trace.calls]
        for path in before:
            self._stood_before(path.rstrip("/"), is_folder=path.endswith("/"))
        steps = [(call.begin, 0, call) for call in self.all] + [(call.end, 1, call) for call in self.all if call.end is not NEVER]
        for _, is_end, call in sorted(steps, key=lambda step: step[:2]):
            (self._ends if is_end else self._begins)(call)

    def without(self, dropped):
        """The same of a program that does not make some of these calls."""
        return self._of([call for call in self.all if not dropped(call)])

    def sooner(self, moved, than):
        """The same of a program that makes this call before that one: the order in which it would be wrong."""
        at = than.begin - 0.5
        calls = [dataclasses.replace(call, begin=at, end=at) if call is moved else call for call in self.all]
        return self._of(sorted(calls, key=lambda call: call.begin))

    def _of(self, calls):
        return Disk(Trace(calls, self.trace.lines), self.root, self.before, self.cwd)

    # What is asked.

    def lost(self, at, below=""):
        """What would not be as it is if the power went at this moment: paths below `below`, each with what would become of it."""
        kept = {node: path for path, node in self._walk(at, kept=True)}
        by_path = {path: node for node, path in kept.items()}
        lost = {}
        for path, node in self._walk(at, kept=False):
            said = []
            if by_path.get(path) is not node:
                if node in kept:
                    said.append(f"is called {kept[node]} again")
                elif path in by_path:
                    said.append("is what it was before it was replaced")
                else:
                    said.append("is not there")
            if not node.is_folder and (missing := self._unsynced(node, at)):
                said.append(missing)
            if said and self._is_below(path, below):
                lost[path] = "; ".join(said)
        return lost

    def is_durable(self, call, at):
        """Whether what a call has done would be there still: a write its bytes, a rename or a removal its names."""
        if call.folders:
            return all(self._is_covered(call, self._spans(folder, at)) for folder in call.folders)
        return call.done and call.node is not None and call.end < at and call not in self._missing(call.node, at)

    def back(self, at, below=""):
        """Names that were removed or renamed and would be there again."""
        there = {path for path, _ in self._walk(at, kept=False)}
        return [path for path, _ in self._walk(at, kept=True) if path not in there and self._is_below(path, below)]

    def files(self, at, below=""):
        """The names that there are at this moment."""
        return [path for path, node in self._walk(at, kept=False) if not node.is_folder and self._is_below(path, below)]

    def calls(self, names, pattern, after=-1):
        """Those about files of this name, from a moment on, in the order of their beginning. Not those that failed: but a write that did may
        have written something."""
        names = [names] if isinstance(names, str) else names
        return [call for call in self.all if call.name in names and call.begin > after and (call.name in WRITES or not call.failed)
                and call.path and fnmatch.fnmatchcase(call.path, pattern)]

    def ended(self, names, pattern, before, after=-1):
        """Those that were done and over before a moment."""
        return [call for call in self.calls(names, pattern, after) if call.done and call.end < before]

    # What there is at a moment.

    def _is_below(self, path, below):
        return not below or path == below or path.startswith(below.rstrip("/") + "/")

    def _walk(self, at, kept):
        yield from self._walk_folder(self.top, "", at, kept)

    def _walk_folder(self, folder, prefix, at, kept):
        names, spans = dict(folder.before), self._spans(folder, at) if kept else [(-1, at)]
        for call, name, node in folder.names:
            if self._is_covered(call, spans):
                names[name] = node
        for name, node in sorted(names.items(), key=lambda one: one[0]):
            if node is not None:
                yield prefix + name, node
                if node.is_folder:
                    yield from self._walk_folder(node, prefix + name + "/", at, kept)

    def _spans(self, node, at):
        """What lies within one of these is durable: from the last sync that failed to the beginning of one that did not."""
        spans, since = {}, -1
        for sync in sorted([*node.syncs, *self.syncs_of_all], key=lambda sync: sync.end):
            if sync.end >= at:
                break
            if sync.done:
                spans[since] = max(sync.begin, spans.get(since, since))
            else:
                since = sync.end
        return list(spans.items())

    def _is_covered(self, call, spans):
        return any(since < call.begin and call.end < until for since, until in spans)

    def _unsynced(self, node, at):
        """What of a file is not durable, in words."""
        if node.mapped < at:
            return "is mapped for writing: nobody sees what of it is durable"
        missing = self._missing(node, at)
        return missing and f"lacks {len(missing)} writes that no sync has covered, the first by line {missing[0].begin + 1}"

    def _missing(self, node, at):
        """Writes that no sync has covered."""
        spans = self._spans(node, at)
        return [call for call, by_itself in node.writes
                if call.begin < at and not (by_itself and call.end < at) and not self._is_covered(call, spans)]

    # Names.

    def _stood_before(self, path, is_folder=False):
        """What is not of this program's making."""
        place = self._place(path)
        if place and place[1] not in place[0].now:
            folder, name = place
            node = folder.now[name] = folder.before[name] = Node(is_folder)
            self.places[node] = place
        return self._find(path)

    def _place(self, path):
        """The folder and the name in it; nothing outside of the root. A folder on the way that nobody has made stood there before."""
        below = os.path.relpath(path, self.root)
        if below == "." or below.startswith("../") or below == "..":
            return None
        *way, name = below.split("/")
        folder = self.top
        for part in way:
            node = folder.now.get(part)
            if node is None:
                node = folder.now[part] = folder.before[part] = Node(True)
                self.places[node] = (folder, part)
            node.is_folder = True
            folder = node
        return folder, name

    def _find(self, path):
        if os.path.relpath(path, self.root) == ".":
            return self.top
        place = self._place(path)
        return place and place[0].now.get(place[1])

    def _below(self, node):
        yield node
        for one in node.now.values():
            yield from self._below(one)

    def _called(self, node):
        parts = []
        while node is not self.top:
            if node not in self.places:
                return None
            node, name = self.places[node]
            parts.append(name)
        return "/".join(reversed(parts)) or "."

    def _name(self, call, path, node):
        """From here on the path is that of this node, or of none."""
        place = self._place(path)
        if not place:
            return
        folder, name = place
        was = folder.now.pop(name, None)
        if was is not None and self.places.get(was) == place:
            del self.places[was]
        if node is not None:
            folder.now[name] = node
            self.places[node] = place
        folder.names.append((call, name, node))
        call.folders.append(folder)

    def _paths(self, call):
        """The paths among the arguments, each made whole."""
        found = []
        for _, folder, path in re.findall(AT + PATH, call.arguments):
            base = folder or self.cwd
            if "\\" in path or not (base or path.startswith("/")):
                raise Unclear(f"nobody knows where it is: {call.name}({call.arguments})")
            found.append(os.path.normpath(os.path.join(base or "/", path)))
        return found

    def _show(self, path):
        below = os.path.relpath(path, self.root)
        return None if below.startswith("..") else below

    # What the calls do.

    def _handle(self, call, which=0):
        """What the descriptor among the arguments is of, and whether each write through it is durable by itself; nothing for a socket or
        what lies elsewhere."""
        found = re.match("[^,]*, " * which + FD, call.arguments)
        return self.fds.get(int(found[1])) if found else None

    def _begins(self, call):
        if call.name == "close":
            # From here on another thread may be given the number.
            if found := re.match(FD, call.arguments):
                self.fds.pop(int(found[1]), None)
        elif call.name in WRITES or call.name in SYNCS:
            handle = self._handle(call, WRITES.get(call.name, 0))
            if not handle:
                return
            node, by_itself = handle
            call.path, call.node = self._called(node), node
            if call.name in SYNCS:
                node.syncs.append(call)
            elif not node.is_folder:
                # Also one that fails may have written something.
                node.writes.append((call, by_itself))
        elif call.name == "syncfs" and call.done:
            if handle := self._handle(call):
                call.path, call.node = self._called(handle[0]), handle[0]
                for node in self._below(handle[0]):
                    node.syncs.append(call)
        elif call.name in SYNCS_OF_ALL:
            # Also a syncfs that failed: nobody knows of what.
            self.syncs_of_all.append(call)
        elif call.name in (*RENAMES, *LINKS, *REMOVES, *MAKES):
            paths = self._paths(call)
            call.path, call.to = self._show(paths[0]), self._show(paths[1]) if len(paths) > 1 else None

    def _ends(self, call):
        if call.name == "execve" and not self.started:
            self.started = True
        elif call.name in BLIND and call.done and not self._is_elsewhere(call):
            raise Unclear(f"it cannot be judged what this does: {call.name}({call.arguments})")
        elif not call.done:
            return
        elif call.name in OPENS:
            self._opened(call)
        elif call.name in DUPS:
            self._duplicated(call)
        elif call.name == "mmap":
            if "PROT_WRITE" in call.arguments and "MAP_SHARED" in call.arguments and (handle := self._handle(call, 4)):
                handle[0].mapped = min(handle[0].mapped, call.begin)
        elif call.name in MAKES:
            self._name(call, self._paths(call)[0], Node(True))
        elif call.name in REMOVES:
            self._name(call, self._paths(call)[0], None)
        elif call.name in LINKS:
            self._linked(call)
        elif call.name in RENAMES:
            self._renamed(call)

    def _is_elsewhere(self, call):
        paths = self._paths(call) if call.name not in ("io_uring_setup", "fchdir", "chdir", "execve") else []
        return bool(paths) and not any(self._show(path) for path in paths)

    def _opened(self, call):
        path = self._paths(call)[0]
        call.path = self._show(path)
        if call.path is None:
            self.fds.pop(call.result, None)
            return
        if "O_TMPFILE" in call.arguments:
            raise Unclear(f"a file without a name: {call.name}({call.arguments})")
        node = self._find(path)
        if node is None and ("O_CREAT" in call.arguments or call.name == "creat"):
            node = Node(False)
            self._name(call, path, node)
        elif node is None:
            node = self._stood_before(path, is_folder="O_DIRECTORY" in call.arguments)
        elif "O_TRUNC" in call.arguments or call.name == "creat":
            node.writes.append((call, False))
        self.fds[call.result] = (node, bool(re.search(r"\bO_D?SYNC\b", call.arguments)))

    def _duplicated(self, call):
        if call.name == "fcntl" and "F_DUPFD" not in call.arguments:
            return
        if handle := self._handle(call):
            self.fds[call.result] = handle
        else:
            self.fds.pop(call.result, None)

    def _linked(self, call):
        old, new = self._paths(call)
        if self._show(new) is None:
            return
        if self._show(old) is None:
            raise Unclear(f"a file from elsewhere: {call.name}({call.arguments})")
        node = self._find(old) or self._stood_before(old)
        place = self.places.get(node)
        self._name(call, new, node)
        # It goes by its first name.
        self.places[node] = place

    def _renamed(self, call):
        old, new = self._paths(call)
        if self._show(old) is None and self._show(new) is None:
            return
        if self._show(old) is None:
            raise Unclear(f"a file from elsewhere: {call.name}({call.arguments})")
        node, other = self._find(old) or self._stood_before(old), self._find(new)
        self._name(call, old, other if "RENAME_EXCHANGE" in call.arguments else None)
        self._name(call, new, node)
