"""The long description: the README with its picture in it, as no address would show it anywhere."""

import base64
import re
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent


def embed(picture: re.Match) -> str:
    """Return the Markdown of a picture with its file in place of its path."""
    content = base64.b64encode((HERE / picture[2]).read_bytes()).decode()
    return f'{picture[1]}(data:image/png;base64,{content})'


setup(
    long_description=re.sub(
        r'(!\[[^]]*\])\(([\w/.-]+\.png)\)', embed, (HERE / 'README.md').read_text('utf-8')
    )
)
