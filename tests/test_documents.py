"""What the documents name exists: commands, flags, files, extras; the reference is what the code says."""

from __future__ import annotations

import ast
import itertools
import json
import re
import shlex
import sys
import tomllib
from pathlib import Path

import click
import pytest
import yaml
from backprop.cli.info import variables
from backprop.cli.main import backprop
from backprop.core.errors import ERROR_CODES, REMEDIES

from backprop_tui.main import command as application

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "docs"))
import reference  # noqa: E402

DOCUMENTS = ("README.md", "container/README.md")
TEXTS = {name: (ROOT / name).read_text("utf-8") for name in DOCUMENTS}
TEXTS["the remedies of errors"] = "\n".join(REMEDIES.values())
OTHERS = ("--build-arg", "--gpus")
"""Options of container engines."""
OF_PIP = {"--dest", "--disable-pip-version-check", "--force-reinstall", "--no-cache-dir", "--no-deps", "--no-input"}
OF_PIP |= {"--only-binary", "--python", "--quiet"}
CODE = [path.read_text("utf-8") for top in ("engine", "backprop_tui") for path in (ROOT / top).rglob("*.py")]
TOPS = "|".join(re.escape(path.name) for path in ROOT.iterdir() if path.is_dir() and path.name[0] != ".")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def fragments(text: str) -> list[str]:
    """Every piece of code in a text: between backticks, and lines that are indented or fenced as code."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    lines += re.findall(r"^(?: {4}|# )(?! )(.*)$", text, re.MULTILINE)
    return lines + [" ".join(part.split()) for part in re.findall(r"(?<!`)`([^`]+)`(?!`)", text)]


def commands(text: str) -> list[tuple[str, list[str]]]:
    """``backprop …`` and ``backprop-tui …`` in the code of a text; ``a / b`` and ``a or b`` are one of each."""
    found = []
    for piece in fragments(text):
        for part in re.split(r"&&|;|\|(?= )|\$\(", piece):
            if match := re.match(
                r"(?:.*/bin/|docker .*?(?:exec backprop|:/data) )?(backprop(?:-tui)?)( .*|$)", part.strip()
            ):
                found.append((match[1], shlex.split(match[2].replace("…", ""))))
    return found


def parse(program: str, words: list[str]) -> list[str]:
    """What is wrong with a command line, without running it."""
    if program == "backprop-tui":
        return options_unknown(application(lambda *_: 0), words)
    wrong: list[str] = []
    first, *others = [list(part) for slash, part in itertools.groupby(words, "/".__eq__) if not slash] or [[]]
    command: click.Command | None = backprop
    group = backprop
    while isinstance(command, click.Group) and first and not first[0].startswith("-"):
        group, name = command, first.pop(0)
        command = group.get_command(click.Context(group), name)
        wrong += [] if command else [f"no command {name}"]
    for each, rest in [(command, first), *((group.get_command(click.Context(group), o[0]), o[1:]) for o in others)]:
        wrong += options_unknown(each, rest) if each else [f"no command in {words}"]
    return wrong


def options_unknown(command: click.Command, words: list[str]) -> list[str]:
    # With the settings of the group: click makes the help option once, for whoever asks later too.
    try:
        command.make_parser(click.Context(command, **backprop.context_settings)).parse_args(list(words))
    except click.UsageError as error:
        return [f"{command.name} {shlex.join(words)}: {error.format_message()}"]
    return []


@pytest.mark.parametrize("name", TEXTS)
def test_every_command_in_a_document_is_one(name: str) -> None:
    found = commands(TEXTS[name])
    assert found
    assert [problem for program, words in found for problem in parse(program, words)] == []


def test_what_is_no_command_or_option_is_noticed() -> None:
    text = (
        "`backprop train / retrain`, `backprop eval RUN --versus B`, `backprop queue add / drop`, `backprop-tui --no`"
    )
    assert len([problem for program, words in commands(text) for problem in parse(program, words)]) == 4


def flags() -> set[str]:
    programs = [*(command for _, command in reference.commands()), application(lambda *_: 0)]
    return {"--help"} | {word for each in programs for p in each.params for word in (*p.opts, *p.secondary_opts)}


def test_every_flag_in_a_document_is_of_some_command() -> None:
    pieces = [piece for text in TEXTS.values() for piece in fragments(text)]
    ours = [piece for piece in pieces if piece.startswith(("--", "backprop")) and not piece.startswith(OTHERS)]
    words = {word.partition("=")[0] for piece in ours for word in re.findall(r"--[a-z][\w-]*", piece)}
    assert len(words) > 20
    assert words - flags() == {"--version"} & words


def test_every_flag_in_a_message_is_of_some_command() -> None:
    nodes = [node for text in CODE for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant)]
    texts = [node.value for node in nodes if isinstance(node.value, str)]
    words = {word for text in texts for word in re.findall(r"(?<![\w-])--[a-z]+(?:-\w+)*(?![\w-])", text)}
    assert len(words) > 100
    assert words - flags() == OF_PIP | {"--gpus"}


def test_every_file_in_a_document_exists() -> None:
    for name in DOCUMENTS:
        text = TEXTS[name]
        targets = re.findall(r"\]\(([^)#]+)[^)]*\)", text)
        named = re.findall(rf"(?<![\w./~-])((?:{TOPS})/[\w./-]*\w)", " ".join(fragments(text)))
        places = [ROOT / each for each in named if each not in ("container/data", "container/auth")]
        places += [(ROOT / name).parent / each for each in targets if "://" not in each]
        assert [str(place) for place in places if not place.exists()] == [], name


def test_every_benchmark_in_the_readme_has_its_options() -> None:
    found = re.findall(r"`python (\S+\.py)([^`]*)`", TEXTS["README.md"])
    assert len(found) > 10
    for script, rest in found:
        source = (ROOT / script).read_text("utf-8")
        missing = [word for word in rest.split() if word.startswith("--") and f'"{word}"' not in source]
        assert missing == [], script


def test_every_extra_in_the_code_exists() -> None:
    texts = [*CODE, *TEXTS.values(), (ROOT / "container/Containerfile").read_text("utf-8")]
    found = re.findall(r"pip install [^\n]*?'?(?:\.|/source|backprop-tui)\[([a-z0-9,]+)\]", "\n".join(texts))
    assert {"train", "web"} <= set(",".join(found).split(",")) <= set(PROJECT["optional-dependencies"])


def test_the_reference_is_what_the_code_says() -> None:
    made = reference.reference()
    again = "python docs/reference.py > docs/reference.md"
    assert made == (ROOT / "docs/reference.md").read_text("utf-8"), again
    assert (
        "| `learning_rate` | `--lr` | `BACKPROPAGATE_TRAINING__LEARNING_RATE` | `X\\|auto` above 0, at most 1" in made
    )
    assert "| `seconds_blocked` | `float` | How long the step loop stood still for it. |" in made
    assert "| `RUN_NOT_FOUND` | 1 |" in made
    assert "| 3 | Part of what" in made


def test_every_code_has_a_remedy() -> None:
    assert list(REMEDIES) == list(ERROR_CODES)


def test_every_variable_that_is_read_is_explained() -> None:
    read = set()
    for path in (each for top in ("engine", "backprop_tui") for each in (ROOT / top).rglob("*.py")):
        source = path.read_text("utf-8")
        read |= set(re.findall(r'environ(?:\.get\(|\[)"([A-Z_]+)"(?!\] =)', source))
        read |= set(re.findall(r'"([A-Z_]+)" (?:not )?in os\.environ', source))
    launchers = {"WORLD_SIZE", "TORCHELASTIC_RUN_ID", "_BACKPROP_COMPLETE", "COLUMNS", "ROWS"}  # of others
    explained = " ".join(f"{name} {meaning}" for name, meaning in variables().items())
    assert len(read) > 8
    assert {name for name in read - launchers if not re.search(rf"\b{name}\b", explained)} == set()


def test_the_container_copies_and_runs_what_exists() -> None:
    lines = (ROOT / "container/Containerfile").read_text("utf-8").splitlines()
    sources = [word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]]
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert all((ROOT / each).exists() for each in sources)
    assert {each.split("/")[0] for each in wheel["packages"]} <= set(sources)
    (words,) = [json.loads(line.removeprefix("CMD ")) for line in lines if line.startswith("CMD ")]
    assert parse("backprop", list(words)) == []
    service = yaml.safe_load((ROOT / "container/compose.yaml").read_text("utf-8"))
    (app,) = service["services"].values()
    assert (ROOT / "container" / app["build"]["context"] / app["build"]["dockerfile"]).is_file()
    (secret,) = app["secrets"]
    assert f"@/run/secrets/{secret}" in words
    assert secret in service["secrets"]
    assert not any("auth" in str(each).lower() for each in app.get("environment", []))
    (kept,) = [json.loads(line.removeprefix("VOLUME ")) for line in lines if line.startswith("VOLUME ")]
    assert set(kept) == {each.split(":")[1] for each in app["volumes"]}
