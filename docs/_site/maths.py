"""Hook of the site: formulas in TeX become MathML while the site is built, so that no script draws them.

Formulas are `$...$` and `$$...$$` in pages, and `:math:` and `.. math::` in docstrings. A dollar sign that
is followed by a space, a digit or a closing quote is a dollar sign.
"""

from __future__ import annotations

import re
from typing import Any

from latex2mathml.converter import convert
from markdown import Markdown
from markdown.extensions import Extension
from markdown.inlinepatterns import InlineProcessor
from markdown.preprocessors import Preprocessor
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority

_INLINE = (r":math:`([^`]+)`", r"(?<![\\$\w])\$([^\s\d$'\"][^$\n]*?)(?<!\s)\$(?![\d$])")


class _Displayed(Preprocessor):
    """Blocks: `.. math::` with its indented lines, and what stands between lines of `$$`."""

    def run(self, lines: list[str]) -> list[str]:
        text = "\n".join(lines)
        text = re.sub(r"^\$\$\n(.*?)\n\$\$$", self._block, text, flags=re.DOTALL | re.MULTILINE)
        text = re.sub(r"^\.\. math::(.*(?:\n[ \t]+\S.*)*)", self._block, text, flags=re.MULTILINE)
        return text.split("\n")

    def _block(self, match: re.Match[str]) -> str:
        formula = " ".join(match[1].split())
        if r"\\" in formula and r"\begin" not in formula:
            formula = rf"\begin{{align*}} {formula} \end{{align*}}"
        html = f'<div class="formula">{convert(formula, display="block")}</div>'
        return f"\n{self.md.htmlStash.store(html)}\n"


class _Inline(InlineProcessor):
    def handleMatch(self, m: re.Match[str], data: str) -> tuple[str, int, int]:
        return self.md.htmlStash.store(convert(" ".join(m[1].split()))), m.start(0), m.end(0)


class Maths(Extension):
    """Markdown extension: formulas to MathML."""

    def extendMarkdown(self, md: Markdown) -> None:
        # Fenced code is put away before blocks are looked for, code between backticks before inline formulas.
        md.preprocessors.register(_Displayed(md), "maths", 15)
        for number, pattern in enumerate(_INLINE):
            priority = 195 - 10 * number  # backticks have 190
            md.inlinePatterns.register(_Inline(pattern, md), f"maths-{number}", priority)


@event_priority(100)
def on_config(config: MkDocsConfig, **_: Any) -> MkDocsConfig:
    """Add the extension before plugins copy the list of extensions."""
    config.markdown_extensions.append(Maths())  # pyright: ignore[reportArgumentType]
    return config
