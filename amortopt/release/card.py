"""The model card of a release checkpoint: its fields, for people."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from amortopt.functional.l1 import L1Range

_FRONT = """\
---
library_name: amortopt
license: mit
tags:
- learned-optimizer
- weight-space
---
"""


def model_card(description: Mapping[str, Any], parameters: int) -> str:
    """Markdown text with what a checkpoint is for, how to use it, what it reached and how it was made.

    Args:
        description: Content of the checkpoint's ``config.json``.
        parameters: Number of the metanet's parameters.

    Returns:
        The text; it says nothing that the fields do not say.
    """
    name, metanet = description["name"], description["metanet"]
    problem, family = _call(description["problem"]), _call(description["family"])
    parts = [
        f"{_FRONT}\n# {name}",
        f"A trained `{metanet['name']}` metanet ({parameters:,} parameters) that reads the weights of a "
        f"network and returns better weights in one forward pass. It is for networks of the family "
        f"`{family}` on the problem `{problem}`.",
        _usage(description),
        f"## Results\n\n{_results(description['results'])}",
        f"## How it was made\n\n{_origin(description)}",
        _limits(problem),
    ]
    return "\n\n".join(parts) + "\n"


def _usage(description: Mapping[str, Any]) -> str:
    reads = description["metanet"]["config"].get("reads", ())
    l1_range, passes = description.get("l1_range"), description.get("passes", 1)
    given, facts = ["model"], []
    if "grads" in reads:
        given.append("batch=(x, y)")
        facts.append(
            "It reads gradients: `x`, `y` are examples of the problem, inputs standardised as its own."
        )
    if l1_range is not None:
        trained = L1Range.from_config(l1_range)
        points = trained.points(3)
        given.append(f"l1={points[len(points) // 2]:g}")
        facts.append(
            f"It reads the strength λ of an L1 penalty, `l1`: it was trained for {trained}. "
            "Without `l1` it is 0. Other values run with a warning."
        )
    if passes > 1:
        facts.append(f"It was trained to be applied {passes} times in a row, which `one_shot` does.")
    code = f"""## Use

```python
import amortopt
opt = amortopt.ScaleGMNOptimizer.from_pretrained("{description["name"]}")  # if shipped; else its folder
better = opt.one_shot({", ".join(given)})  # a new network; `model` stays as it is
```"""
    return "\n\n".join([code, *facts])


def _results(results: Mapping[str, Any]) -> str:
    """Plain values, then rows of one table, then a table of its own for every table of rows."""
    if not results:
        return "None were recorded."
    tables = {key: value for key, value in results.items() if isinstance(value, Mapping)}
    plain = {key: value for key, value in results.items() if key not in tables}
    deep = {key: value for key, value in tables.items() if value and _all_mappings(value)}
    parts = []
    if plain:
        parts.append(_table([["", "value"], *([key, _cell(value)] for key, value in plain.items())]))
    if rows := {key: value for key, value in tables.items() if key not in deep}:
        parts.append(_rows("", rows))
    parts += [_rows(key, value) for key, value in deep.items()]
    return "\n\n".join(parts)


def _all_mappings(value: Mapping[str, Any]) -> bool:
    return all(isinstance(row, Mapping) for row in value.values())


def _rows(corner: str, rows: Mapping[str, Mapping[str, Any]]) -> str:
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    cells = [[key, *(_cell(row.get(column, "")) for column in columns)] for key, row in rows.items()]
    return _table([[corner, *columns], *cells])


def _table(rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value)


def _origin(description: Mapping[str, Any]) -> str:
    recipe, versions = description["recipe"], description["versions"]
    text = recipe if isinstance(recipe, str) else json.dumps(recipe, indent=2)
    written = ", ".join(f"{key} {value}" for key, value in versions.items())
    facts = [
        f"Commit: {description['commit'] or 'not recorded'}. Written by {written}.",
        f"Seeds: {', '.join(f'{key} {_cell(value)}' for key, value in description['seeds'].items())}."
        if description["seeds"]
        else "Seeds: none were recorded.",
        "Recipe:",
        f"```{'' if isinstance(recipe, str) else 'json'}\n{text.strip()}\n```",
    ]
    return "\n\n".join(facts)


def _limits(problem: str) -> str:
    return f"""## Limits

- Networks of another depth, with other activations or another input or output size are refused.
- Other hidden widths run with a warning: nothing was measured there unless the table says so.
- Networks of the same family that are meant for other data than `{problem}` are not told apart: the weights
  that come out are for this problem.
- Trained on this one problem, the metanet knows essentially one good solution of it, and how to express that
  in each network's own gauge: the networks that come out are nearly the same function.
- The file format is safetensors and json; no pickle is read."""


def _call(config: Mapping[str, Any]) -> str:
    """``{"name": "mlp", "widths": [4, 3]}`` -> ``mlp(widths=[4, 3])``."""
    arguments = ", ".join(f"{key}={_cell(value)}" for key, value in config.items() if key != "name")
    return config.get("name", "unknown") + (f"({arguments})" if arguments else "")


def rule_card(description: Mapping[str, Any], parameters: int) -> str:
    """Markdown text about an update rule: what it is for, how to use it, what it reached and how it was made.

    Args:
        description: Content of the release's ``config.json``.
        parameters: Number of the rule's parameters.

    Returns:
        The text; it says nothing that the fields do not say.
    """
    name, rule = description["name"], description["rule"]
    problems = [
        f"- `{_call(each['family'])}` on `{_call(each['problem'])}`"
        for each in description["problems"]
        if {"family", "problem"} <= set(each)
    ]
    parts = [
        f"{_FRONT}\n# {name}",
        f"A trained update rule (`{rule['net']}`, {parameters:,} parameters): an optimizer that reads "
        f"weights, "
        "gradients and their history, knows the symmetry of the network, and works for any architecture.",
        f"""## Use

```python
import amortopt
opt = amortopt.UNFOptimizer.from_pretrained("{name}", model, example_input=x)  # if shipped; else its folder
loss.backward()
opt.step()
```""",
        f"## Trained on\n\n{chr(10).join(problems) or 'Not recorded.'}",
        f"## Results\n\n{_results(description['results'])}",
        f"## How it was made\n\n{_origin(description)}",
        """## Limits

- Other architectures and data run without a warning: what was measured is in the table above.
- The learning rate is a factor; 1 is what the rule was trained for.
- The file format is safetensors and json; no pickle is read.""",
    ]
    return "\n\n".join(parts) + "\n"
