"""The dashboard's modules that need no page, in Node: JSON as text, differences, filters as rows, CSV, metrics.

Random values are made here, by a seed; one Node process takes them all.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from paperdb_trio.web import assets
from tests.conftest import ENVIRONMENT
from tests.web.tools import current_node

FOLDER = Path(assets.__file__).parent / "dashboard"
TEXTS = (
    "",
    "a",
    'quote " and \\ slash',
    "\n,;\t{}[]:",
    "ünï 😀",
    "12",
    "true",
    " x ",
    "__proto__",
    "constructor",
)
NUMBERS = ("0", "-1.50", "1e400", "12345678901234567890123", "0.1000")
Parts = list[str]


def run(tmp_path: Path, script: str, given: Any) -> Any:
    """What a script prints as JSON, which has the modules by their names and `given`."""
    for name in ("json-text", "conditions", "csv", "measures"):
        shutil.copy(FOLDER / f"{name}.js", tmp_path / f"{name}.mjs")
    (tmp_path / "given.json").write_text(json.dumps(given), "utf-8")
    (tmp_path / "script.mjs").write_text(
        f"""import {{ readFileSync }} from "node:fs";
        import * as json from "./json-text.mjs";
        import * as conditions from "./conditions.mjs";
        import * as csv from "./csv.mjs";
        import * as measures from "./measures.mjs";
        const given = JSON.parse(readFileSync("given.json", "utf-8"));
        {script}""",
        "utf-8",
    )
    done = subprocess.run(
        [current_node(), "script.mjs"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=ENVIRONMENT,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def value(chance: random.Random, depth: int) -> str:
    """A random JSON value, as text with odd spaces."""
    space = chance.choice(("", "", " ", "\n\t"))
    kind = chance.randrange(6 if depth else 4)
    if kind == 0:
        return chance.choice(NUMBERS) + space
    if kind == 1:
        return chance.choice(("true", "false", "null")) + space
    if kind in (2, 3):
        return json.dumps(chance.choice(TEXTS), ensure_ascii=chance.random() < 0.5) + space
    items = [value(chance, depth - 1) for _ in range(chance.randrange(4))]
    if kind == 4:
        return f"[{space}{','.join(items)}{space}]"
    names = [json.dumps(name) for name in chance.sample(TEXTS, len(items))]
    return f"{{{space}{','.join(f'{name}{space}:{item}' for name, item in zip(names, items, strict=True))}}}"


def exactly(text: str) -> Any:
    """Numbers as the texts that they are."""
    return json.loads(text, parse_int=lambda number: ["n", number], parse_float=lambda number: ["n", number])


def test_json_is_laid_out_and_taken_apart_without_a_loss(tmp_path: Path) -> None:
    chance = random.Random(18)
    values = [value(chance, 3) for _ in range(300)]
    given = [f'{{"_id": "a", "createdAt":"x", "v" :{one}, "list": [{one}, {one}]}}' for one in values]
    found = run(
        tmp_path,
        """console.log(JSON.stringify(given.map((text) => {
            const parts = json.members(text);
            return [json.pretty(text), json.editable(text), json.object(parts), json.elements(parts[3].text)];
        })));""",
        given,
    )
    for text, (pretty, editable, again, items) in zip(given, found, strict=True):
        whole = exactly(text)
        assert exactly(pretty) == whole
        assert exactly(again) == whole
        assert exactly(editable) == {"v": whole["v"], "list": whole["list"]}
        assert [exactly(item) for item in items] == whole["list"]
    assert found[0][0] == run(tmp_path, "console.log(JSON.stringify(json.pretty(given)));", found[0][0])


def test_a_difference_has_both_texts_and_no_line_too_many(tmp_path: Path) -> None:
    chance = random.Random(18)
    pairs = [["\n".join(chance.choices("abc", k=chance.randrange(9))) for _ in range(2)] for _ in range(300)]
    script = "console.log(JSON.stringify(given.map(([old, young]) => json.difference(old, young))));"
    for (old, young), lines in zip(pairs, run(tmp_path, script, pairs), strict=True):
        assert "\n".join(line["text"] for line in lines if line["sign"] != "+") == old
        assert "\n".join(line["text"] for line in lines if line["sign"] != "-") == young
        same = sum(line["sign"] == " " for line in lines)
        assert same == common(old.split("\n") if old else [], young.split("\n") if young else [])


def common(one: Parts, other: Parts) -> int:
    """The length of the longest common subsequence."""
    row = [0] * (len(other) + 1)
    for a in one:
        last = row
        row = [0]
        for n, b in enumerate(other):
            row.append(last[n] + 1 if a == b else max(last[n + 1], row[n]))
    return row[-1]


FILTERS: list[tuple[dict[str, Any], int | None]] = [
    ({}, 0),
    ({"a": 1}, 1),
    ({"a": "12", "b": None, "c.d": True}, 3),
    ({"a": {"gte": 1, "lt": 2.5}, "b": {"ne": "x y"}}, 3),
    ({"a": {"in": [1, "2", None]}, "b": {"startsWith": "12"}, "c": {"exists": False}}, 3),
    ({"or": [{"a": 1}, {"a": 2}]}, 2),
    ({"__proto__": 1, "constructor": "x"}, 2),
    ({"not": {"a": 1}}, None),
    ({"and": [{"a": 1}, {"a": 2}]}, None),
    ({"or": [{"a": 1, "b": 2}, {"a": 2}]}, None),
    ({"a": {"near": 1}}, None),
    ({"a": [1]}, None),
]
"""And how many conditions each has; None: rows cannot say it."""


def test_a_filter_becomes_rows_and_the_same_filter_again(tmp_path: Path) -> None:
    script = """
        console.log(JSON.stringify(given.map((filter) => {
          const found = conditions.toConditions(filter);
          return found && [found.conditions.length, conditions.toFilter(found.conditions, found.any)];
        })));"""
    found = run(tmp_path, script, [filter for filter, _ in FILTERS])
    assert found == [None if rows is None else [rows, filter] for filter, rows in FILTERS]


def test_csv_gives_back_what_was_written(tmp_path: Path) -> None:
    rows = [[*TEXTS[1:], "x"], ['a"b', "", "\r\n", ",", "", "é", "", "", "", "1"], ["last"]]
    script = """
        const text = given.map((row) => csv.rowOf(row)).join("");
        const pieces = async function* () { for (const character of text) yield { text: character, read: 1 }; };
        const found = [];
        for await (const { cells } of csv.parseRows(pieces())) found.push(cells);
        const cells = ["12", "12345678901234567890", "true", "a", "", "x"];
        const typed = csv.toDocument(csv.headerOf(["_id", "n", "b", "t", "e", ""], true), cells, true);
        const texts = csv.toDocument(["n", "o"], ["12", '{"a": 1}'], false);
        console.log(JSON.stringify([found, typed, texts]));"""
    found, typed, texts = run(tmp_path, script, rows)
    assert found == rows
    assert typed == '{"_id":"12","n":12345678901234567890,"b":true,"t":"a"}'
    assert json.loads(texts) == {"n": "12", "o": '{"a": 1}'}


FORMULAS = (
    "=1+1",
    "+1",
    "-x",
    "@a",
    "\t=1",
    "\r=1",
    " =1",
    "a;=1",
    "\uff1d1",
    '=HYPERLINK("http://e.example";"x")',
)
TRAPS = (*TEXTS, *FORMULAS, '"', '"12"', '""', "-5", " 12", "null", "[1]", ";", "\ufeffx", "e", "a,b", "a\nb")


def test_documents_come_back_from_csv_and_no_cell_is_a_formula(tmp_path: Path) -> None:
    chance = random.Random(27)
    documents = []
    for n in range(300):
        id = json.dumps(f"{chance.choice(TRAPS)}{n}")
        members = [f'"_id":{id}', *(f"{json.dumps(name)}:{trap(chance)}" for name in chance.sample(TRAPS, 4))]
        documents.append(f"{{{','.join(members)}}}")
    script = """
        const parsed = given.map((text) => json.members(text));
        const names = [...new Set(parsed.flatMap((all) => all.map(({ name }) => name)))];
        const lines = [names.map(csv.textCell), ...parsed.map((all) => {
          const cells = new Map(all.map(({ name, text }) => [name, text]));
          return names.map((name) => csv.cellOf(cells.get(name)));
        })];
        const pieces = (async function* () { yield { text: lines.map(csv.rowOf).join(""), read: 1 }; })();
        const rows = [];
        for await (const { cells } of csv.parseRows(pieces)) rows.push(cells);
        const header = csv.headerOf(rows[0], true);
        const found = rows.slice(1).map((cells) => csv.toDocument(header, cells, true));
        console.log(JSON.stringify([rows, found]));"""
    rows, again = run(tmp_path, script, documents)
    assert [exactly(text) for text in again] == [exactly(text) for text in documents]
    for cell in {cell for row in rows for cell in row}:
        for part in cell.split(";"):  # where the decimal sign is a comma, a spreadsheet splits there
            if re.match(r"\s*[=+\-@\uff1d]", part):
                assert re.fullmatch(r"-[0-9.e]+", cell), cell


def trap(chance: random.Random) -> str:
    """JSON that CSV could change, or a spreadsheet run."""
    text = json.dumps(chance.choice(TRAPS), ensure_ascii=chance.random() < 0.5)
    return chance.choice((text, text, text, f"[{text},{{{text}:1}}]", *NUMBERS, "true", "null"))


def test_rates_and_quantiles_of_measures(tmp_path: Path) -> None:
    def measures(count: int) -> list[Any]:
        buckets = {"0.01": count // 2, "0.1": count, "+Inf": count}
        counts = [{"labels": {"name": name}, "value": count, "suffix": ""} for name in ("a", "z")]
        times = [{"labels": {"le": le}, "value": n, "suffix": "_bucket"} for le, n in buckets.items()]
        return [{"name": "c", "samples": counts}, {"name": "d", "samples": times}]

    script = """
        const [before, now] = given.map((one) => new measures.Measures(one));
        const quantiles = [[0.5, before], [0.75, before], [0.5, now]].map((of) => now.quantile("d", ...of));
        const rates = [[now, before], [before, now], [now, new measures.Measures([])], [now, null]].map(
          ([young, old]) => measures.rate("c", young, old, 2));
        const values = [now.value("c", { name: "a" }), now.value("c"), now.value("none")];
        console.log(JSON.stringify([quantiles, rates, [...values, now.has("d"), now.has("e")]]));"""
    quantiles, rates, values = run(tmp_path, script, [measures(10), measures(30)])
    assert quantiles == [0.01, pytest.approx(0.055), None]
    assert rates == [20, None, 30, None]
    assert values == [30, 60, None, True, False]
