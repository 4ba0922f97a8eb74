"""The model card of a release: the fields of ``config.json``, for people."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from amortopt.metanets import L1Range

_FRONT = """\
---
library_name: amortopt
license: mit
tags:
- learned-optimizer
- weight-space
---
"""

_NOUNS = {"metanet": "metanet", "functional": "functional", "rule": "update rule"}
_METANET_LIMITS = """\
- Networks of another depth, with other activations or another input or output size are refused.
- Other hidden widths run with a warning: nothing was measured there unless the table says so.
- Networks of the same family that are meant for other data than its problem's are not told apart: the weights
  that come out are for this problem.
- Trained on this one problem, the metanet knows essentially one good solution of it, and how to express that
  in each network's own gauge: the networks that come out are nearly the same function."""

_ROUNDS_LIMITS = """\
- Networks of another architecture are refused; the weights of a network decide only the order, signs and
  scales of the units that come out.
- It has learned to learn problems of the family above; far from them it is worse than training.
  {warning}: `accept="holdout"` keeps back a fifth of the batch and falls back to the network as it was."""

_FUNCTIONAL_LIMITS = """\
- It is for networks of the families and problems above; nothing was measured elsewhere."""

_FEW = 30
"""Networks below which a card says how little they show."""
_RULE_LIMITS = """\
- Other architectures and data run without a warning: what was measured is in the table above.
- The learning rate has Muon's meaning. What the table calls untrained is Muon and Adam."""


def model_card(config: Mapping[str, Any], parameters: int) -> str:
    """Markdown text with what a release is for, how to use it, what it reached and how it was made.

    Written from ``config.json`` and the number of the module's parameters alone.
    """
    name, module = config["name"], config["module"]
    problems = "\n".join(
        f"- `{_call(entry.get('family'))}` on `{_call(entry.get('problem'))}`" for entry in config["problems"]
    )
    facts: list[str] = []
    if config["kind"] == "metanet":
        purpose, limits = (
            "reads the weights of a network and returns better weights in one forward pass",
            _METANET_LIMITS,
        )
        if module["name"] == "rounds":
            purpose, limits = (
                "reads examples of a network's problem and returns weights for it in one forward pass",
                _ROUNDS_LIMITS.format(
                    warning="It warns of problems that look unlike them"
                    if config.get("statistics")
                    else "It carries no statistics of them, so it warns of none"
                ),
            )
        arguments = ["model"]
        if "batch" in config["conditions"]:
            arguments.append("batch=(x, y)")
            facts.append(
                "It reads a batch: `x`, `y` are examples of the problem, inputs standardised as there."
            )
        if "function" in config["conditions"]:
            facts.append(
                "Without a batch, `opt.one_shot(model)`, it reads what the network itself answers; "
                "`batch=(x, y), function=True` reads both."
            )
        if config["l1_range"] is not None:
            trained = L1Range.from_config(config["l1_range"])
            points = trained.points(3)
            arguments.append(f"l1={points[len(points) // 2]:g}")
            facts.append(
                f"It reads the strength λ of an L1 penalty, `l1`: it was trained for {trained}. "
                "Without `l1` it is 0. Other values run with a warning."
            )
        if config["passes"] > 1:
            facts.append(
                f"It was trained to be applied {config['passes']} times in a row, which `one_shot` does."
            )
        use = f"""\
opt = amortopt.ScaleGMNOptimizer.from_pretrained("{name}")  # if shipped; else its folder
better = opt.one_shot({", ".join(arguments)})  # a new network; `model` stays as it is"""
    elif config["kind"] == "functional":
        purpose = (
            "reads the weights of networks and returns numbers that do not depend on the order of their units"
        )
        limits = _FUNCTIONAL_LIMITS
        use = f"""\
predictor = amortopt.load("{name}")  # if shipped; else its folder
print(predictor(model))  # a network of the family, any class, any names: what the weights say of it
numbers = predictor.functional(params)  # parameter name -> [B, ...]; B networks to [B, k]"""
    else:
        purpose = (
            "updates the weights of a network of any architecture: it reads weights, gradients and their "
            "history, and respects the symmetry of the network"
        )
        limits = _RULE_LIMITS
        use = f"""\
opt = amortopt.UNFOptimizer.from_pretrained("{name}", model, example_input=x)  # if shipped; else its folder
loss.backward()
opt.step()"""
    use = "\n\n".join([f"```python\nimport amortopt\n{use}\n```", *facts])
    recipe = config["recipe"]
    text = recipe if isinstance(recipe, str) else json.dumps(recipe, indent=2)
    seeds = ", ".join(f"{key} {_cell(value)}" for key, value in config["seeds"].items())
    versions = ", ".join(f"{key} {value}" for key, value in config["versions"].items())
    what = f"A trained {_NOUNS[config['kind']]} (`{module['name']}`, {parameters:,} parameters)"
    if not parameters:
        what = f"An {_NOUNS[config['kind']]} (`{module['name']}`) of a few numbers, without a network,"
    parts = [
        f"{_FRONT}\n# {name}",
        f"{what} that {purpose}.",
        f"## Use\n\n{use}",
        f"## Trained on\n\n{problems or 'Not recorded.'}",
        f"## Results\n\n{_results(config['results'])}{_few(config['results'])}",
        f"## How it was made\n\nCommit: {config['commit'] or 'not recorded'}. Written by {versions}.",
        f"Seeds: {seeds or 'none were recorded'}.",
        f"Recipe:\n\n```{'' if isinstance(recipe, str) else 'json'}\n{text.strip()}\n```",
        f"## Limits\n\n{limits}\n- The file format is safetensors and json; no pickle is read.",
    ]
    return "\n\n".join(parts) + "\n"


def _few(results: Mapping[str, Any]) -> str:
    """How little the table shows, where few networks were measured."""
    count, after = results.get("networks"), results.get("after")
    if not isinstance(count, int) or count >= _FEW or not isinstance(after, Mapping):
        return ""
    error = after.get("standard_error")
    problems = f"{count} test problem{'s' * (count > 1)}"
    if error is None:
        return f"\n\nMeasured on {problems} only: on others it may be quite different."
    return (
        f"\n\nMeasured on {problems} only: the mean over all such problems may differ from that of the table "
        f"by {_cell(2 * error)} (two standard errors) or more. A gap between two rows is surer than that, "
        "because both are of the same problems."
    )


def _results(results: Mapping[str, Any]) -> str:
    """Plain values, then rows of one table, then a table for every table of rows."""
    tables = {key: value for key, value in results.items() if isinstance(value, Mapping)}
    deep = {
        key: value
        for key, value in tables.items()
        if value and all(isinstance(row, Mapping) for row in value.values())
    }
    plain = [[key, _cell(value)] for key, value in results.items() if key not in tables]
    parts = [_table([["", "value"], *plain])] if plain else []
    if rows := {key: value for key, value in tables.items() if key not in deep}:
        parts.append(_rows("", rows))
    return "\n\n".join([*parts, *(_rows(key, value) for key, value in deep.items())]) or "None were recorded."


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


def _call(config: Mapping[str, Any] | None) -> str:
    """``{"name": "mlp", "widths": [4, 3]}`` -> ``mlp(widths=[4, 3])``."""
    if config is None:
        return "not recorded"
    arguments = ", ".join(f"{key}={_cell(value)}" for key, value in config.items() if key != "name")
    return config["name"] + (f"({arguments})" if arguments else "")
