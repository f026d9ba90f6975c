"""The README says what is true: every setting, every route, and that its lines can be pasted."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from paperdb_trio.config import Settings
from paperdb_trio.rest.routes import OPEN_ROUTES, ROUTES

README = (Path(__file__).parent.parent / "README.md").read_text()


@pytest.mark.parametrize("setting", dataclasses.fields(Settings), ids=lambda setting: setting.name)
def test_every_setting_is_documented_with_its_default_and_meaning(setting: dataclasses.Field[object]) -> None:
    row = f"| `--{setting.name.replace('_', '-')}` | `{setting.default}` | {setting.metadata['help']} |"
    assert row in README


@pytest.mark.parametrize("path", sorted({route.pattern for route in ROUTES} | set(OPEN_ROUTES)))
def test_every_route_is_documented(path: str) -> None:
    assert f"{path}`" in README
