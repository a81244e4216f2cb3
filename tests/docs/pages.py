"""What the pages hold: commands, Python, tables."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *(ROOT / f'{name}.md' for name in ('README', 'CONTRIBUTING', 'SECURITY', 'CHANGELOG')),
    *sorted((ROOT / 'docs').glob('*.md')),
]
# A line of a block, or what stands between backticks.
_BLOCK, _QUOTED = re.compile(r'^    (\S.*)$', re.M), re.compile(r'`([^`]+)`')
_PYTHON = re.compile(r'^```python\n(.*?)^```', re.M | re.S)
_ROW = re.compile(r'^\| (.*) \|$', re.M)
_COMMAND = re.compile(r'(?:torchrun|python (?:-m caffe_port|solve/|caffe_port/|nets/|tests/))')


def list_commands(page: Path) -> list[str]:
    """Return the commands of a page, in its order, each once."""
    text = page.read_text().replace('\\\n', ' ')
    found = [(match.start(), match[1]) for match in _BLOCK.finditer(text)]
    prose = _PYTHON.sub('', text)
    found += [(text.index(match[0]), match[1]) for match in _QUOTED.finditer(prose)]
    parts = [part for _, line in sorted(found) for part in line.split(' && ')]
    commands = [' '.join(part.partition('  #')[0].split()) for part in parts]
    return list(dict.fromkeys(command for command in commands if _COMMAND.match(command)))


def list_blocks(page: str) -> list[str]:
    """Return the blocks of Python of a page."""
    return _PYTHON.findall((ROOT / page).read_text())


def list_rows(page: str, first: str = '') -> list[list[str]]:
    """Return the rows of the table whose head begins with `first`, or of all, as cells."""
    text = (ROOT / page).read_text()
    if first:
        text = text[text.index(f'| {first} |') :].partition('\n\n')[0]
    rows = [row.split(' | ') for row in _ROW.findall(text)]
    return rows[2:] if first else rows
