"""Recipes are found as files and by name, and stand before what is typed."""

from __future__ import annotations

from pathlib import Path

import pytest

from amortopt.system.files import shipped_folder
from amortopt.system.recipes import find_recipe, recipes_first


def test_find_recipe_by_name_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    root = shipped_folder("recipes")
    assert find_recipe("mnist1d_mlp_tanh", "fit") == root / "mnist1d_mlp_tanh.yaml"
    assert find_recipe("mnist1d_mlp_tanh", "zoo") == root / "zoo" / "mnist1d_mlp_tanh.yaml"


def test_find_recipe_prefers_files_here_then_in_the_roots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "root").mkdir()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "root" / "mnist1d_mlp_tanh").write_text("")
    assert find_recipe("mnist1d_mlp_tanh", "fit", roots=[tmp_path / "root"]).parent == tmp_path / "root"
    (tmp_path / "mnist1d_mlp_tanh").write_text("")
    assert find_recipe("mnist1d_mlp_tanh", "fit", roots=[tmp_path / "root"]).resolve().parent == tmp_path


@pytest.mark.parametrize("recipe", ["", "mnist1d_mlp_tahn", "zoo/mnist1d_mlp_tanh", "../pyproject"])
def test_find_recipe_lists_the_names(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"^--config: got .*recipes are .*, mnist1d_mlp_tanh, "):
        find_recipe(recipe, "fit")


def test_recipes_first_keeps_the_order_of_everything_else(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("")
    args = ["--a", "1", "--config", "mnist1d_mlp_tanh", "--b", f"-c={mine}", "--c=2"]
    shipped = str(shipped_folder("recipes") / "mnist1d_mlp_tanh.yaml")
    expected = ["--config", shipped, "--config", str(mine), "--a", "1", "--b", "--c=2"]
    assert recipes_first(args, "fit") == expected
