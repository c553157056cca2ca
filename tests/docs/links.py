#!/usr/bin/env python3
"""Every link of every page leads somewhere: files, headings, and pages that are named in code. Asks no network.

    tests/docs/links.py

Looked at are the links and images of all Markdown files that git knows or would add, in the form [text](target): a file or
folder beside the page, `#a-heading` of it, or of this page. Then every page below docs/ that any file of the tree speaks of, a
template or a comment too; and `section N` behind the name of a page, which has to have a heading that begins with that number.
Last, every page below docs/ is to be reached from README.md over links alone.
"""

import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

ROOT = Path(__file__).resolve().parents[2]
LINK = re.compile(r"!?\[(?:[^\]\[]|\[[^\]]*\])*\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
CODE = re.compile(r"^(```|~~~).*?^\1\s*$", re.M | re.S)
INLINE = re.compile(r"(`+)(?:(?!\1).)+?\1", re.S)
NAMED = re.compile(r"(?<![\w./-])docs/[A-Za-z0-9_/-]+\.md\b")
SECTION = re.compile(r"(docs/)?([A-Za-z0-9_/.-]+\.md)[`)]*,? \(?section (\d+)")


def files(*patterns):
    """Paths that git has or would add."""
    out = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", *patterns], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    return sorted(ROOT / name for name in set(out.splitlines()) if (ROOT / name).is_file())


def prose(text):
    """A page without its code blocks; lines keep their numbers."""
    return CODE.sub(lambda match: "\n" * match[0].count("\n"), text)


def anchors(text):
    """What a heading is called in a link, as GitHub does it."""
    found, seen = set(), {}
    for line in prose(text).splitlines():
        if match := re.match(r"#{1,6} +(.*?) *#*$", line):
            title = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", match[1])
            slug = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
            count = seen.get(slug, 0)
            seen[slug] = count + 1
            found.add(slug if count == 0 else f"{slug}-{count}")
    found.update(re.findall(r'<a (?:id|name)="([^"]+)"', text))
    return found


def line_of(text, position):
    return text.count("\n", 0, position) + 1


def main():
    wrong, known, reached = [], {}, {}
    tree = files()
    pages = [path for path in tree if path.suffix == ".md"]

    def anchors_of(path):
        if path not in known:
            known[path] = anchors(path.read_text())
        return known[path]

    for page in pages:
        text = prose(page.read_text())
        text = INLINE.sub(lambda match: re.sub(r"[^\n]", " ", match[0]) if "](" in match[0] else match[0], text)
        leads = reached.setdefault(page, set())
        for match in LINK.finditer(text):
            target = match[1]
            where = f"{page.relative_to(ROOT)}:{line_of(text, match.start())}"
            if re.match(r"[a-z][a-z0-9+.-]*:", target):
                continue
            name, _, anchor = target.partition("#")
            path = (page.parent / unquote(name)).resolve() if name else page
            if not path.exists():
                wrong.append(f"{where}: {target}: no such file")
                continue
            if not path.is_relative_to(ROOT):
                wrong.append(f"{where}: {target}: leads out of the tree")
            if path.is_dir():
                # A link to a folder shows what lies in it.
                leads.update(path.glob("*.md"))
                path = path / "README.md"
            leads.add(path)
            if anchor and path.suffix == ".md" and anchor not in anchors_of(path):
                wrong.append(f"{where}: {target}: no such heading")
    for path in tree:
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        for match in NAMED.finditer(text):
            if not (ROOT / match[0]).exists():
                wrong.append(f"{path.relative_to(ROOT)}:{line_of(text, match.start())}: {match[0]}: no such page")
        for match in SECTION.finditer(text):
            page = ROOT / "docs" / match[2] if match[1] else (path.parent / match[2]).resolve()
            if page.exists() and not re.search(rf"^#+ {match[3]}\. ", page.read_text(), re.M):
                wrong.append(f"{path.relative_to(ROOT)}:{line_of(text, match.start())}: {match[0]}: no such section")
    seen, todo = set(), [ROOT / "README.md"]
    while todo:
        page = todo.pop()
        if page not in seen:
            seen.add(page)
            todo.extend(reached.get(page, ()))
    for page in pages:
        if page.is_relative_to(ROOT / "docs") and page not in seen:
            wrong.append(f"{page.relative_to(ROOT)}: nothing leads here from README.md")
    for line in wrong:
        print(line)
    if wrong:
        sys.exit(f"{len(wrong)} links lead nowhere")
    print(f"{sum(len(leads) for leads in reached.values())} pairs of pages are linked, all links lead somewhere ({len(pages)} pages)")


if __name__ == "__main__":
    os.chdir(ROOT)
    main()
