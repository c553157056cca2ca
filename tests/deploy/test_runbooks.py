"""The runbooks have one shape, lead somewhere, and name commands that exist."""

import functools
import re
import shlex

import pytest

from programs import program, run
from tools import DEPLOY, needs

FOLDER = DEPLOY.parent / "docs" / "runbooks"
PAGES = sorted(path for path in FOLDER.glob("*.md") if path.name != "README.md")
SHAPE = ["What it means", "At risk, and not", "Steps", "It is over", "Whom to tell"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_runbook_has_the_shape_of_all(page):
    text = page.read_text()
    assert text.startswith("# ") and "\n**How you know.** " in text
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == SHAPE
    assert text.count("```") % 2 == 0


def test_the_index_names_every_page_once():
    linked = re.findall(r"\]\(([a-z-]+\.md)\)", (FOLDER / "README.md").read_text())
    assert sorted(linked) == [page.name for page in PAGES]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert (FOLDER / link).is_file(), link
    for named in re.findall(r"\b((?:docs|deploy|tests)/[\w./-]*\w)", page.read_text()):
        assert (DEPLOY.parent / named).exists(), named


@functools.cache
def help_of(name, words):
    done = run(program(name), *words, "--help")
    return done.stdout.decode() if done.returncode == 0 else None


def commands():
    """Each command of ours in a block or between backticks, with the page that it stands on."""
    for page in PAGES:
        text = page.read_text()
        fenced = "\n".join(re.findall(r"```\n(.*?)```", text, re.DOTALL))
        pieces = fenced.replace("\\\n", " ").splitlines() + re.findall(r"`(pithead-[^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
        for piece in pieces:
            for found in re.findall(r"(?:^|-- |&& )\s*(pithead-(?:gateway|decryptor|device) [^#|&]*)", piece.replace("\n", " ")):
                yield page.stem, found.strip()


# Commands that came with what they are about, and the words by which a program's configuration shows that it knows it.
CAME_WITH = {"pithead-decryptor bundle": "[source]"}


@pytest.mark.parametrize(("page", "command"), sorted(set(commands())))
def test_a_command_exists_with_all_that_it_is_given(page, command):
    for beginning, section in CAME_WITH.items():
        if command.startswith(beginning):
            needs(beginning.split()[0], section)
    name, *rest = shlex.split(command.replace("...", ""))
    words, known = [], help_of(name, ())
    # What stands before the subcommand: `pithead-device -c device.toml key`.
    while rest and rest[0] == "-c":
        rest = rest[2:]
    for word in rest:
        if word.startswith("-") or not re.fullmatch(r"[a-z][a-z-]*", word) or not re.search(rf"^  {word}\b", known, re.MULTILINE):
            break
        words.append(word)
        known = help_of(name, tuple(words))
    assert words, f"{command}: no such command"
    for flag in [word for word in rest if word.startswith("-")]:
        assert re.search(rf"(?<![\w-]){re.escape(flag.split('=')[0])}\b", known), f"{command}: {name} {' '.join(words)} knows no {flag}"


def test_a_command_that_does_not_exist_is_found():
    assert help_of("pithead-gateway", ("certificats",)) is None
    assert not re.search(r"^  certificats\b", help_of("pithead-gateway", ()), re.MULTILINE)
