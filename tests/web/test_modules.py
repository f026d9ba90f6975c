"""The package in the ways in which programs load it, and what frameworks do to its objects."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ENVIRONMENT, Server
from tests.web.npm import TYPESCRIPT
from tests.web.test_types import PROCESS
from tests.web.tools import Script, current_node, node_tool, type_errors

ONLY_COMMONJS = "--no-experimental-require-module"
"""Without Node's own `require` of ES modules, which 20.19 and 22.12 have and Jest lacks."""
REQUIRE = """
    import { createRequire } from "node:module";
    import assert from "node:assert/strict";
    const required = createRequire(import.meta.url)("paperdb");
    const { URL: baseUrl, KEY: apiKey } = process.env;
"""
USE = """
    const db = createClient({ baseUrl: process.env.URL, apiKey: process.env.KEY });
    const seen = new Promise((resolve, reject) => {
      const off = db.realtime.subscribe("modules", (event) => (off(), resolve(event)), {
        onReady: () => db.modules.insert({ text: "hello" }),
        onError: reject,
      });
    });
"""


def env(server: Server) -> dict[str, str]:
    return {"URL": server.url, "KEY": server.key}


def run(package: Path, server: Server, source: str) -> None:
    with Script(package, REQUIRE + source, ONLY_COMMONJS, env=env(server)) as script:
        assert script.end(10) == ""


def test_require_does_all_that_import_does(package: Path, server: Server) -> None:
    run(
        package,
        server,
        f"""
        const {{ createClient }} = required;
        {USE}
        assert.equal((await seen).data.text, "hello");
        assert.deepEqual(Object.keys(required).sort(), Object.keys(await import("paperdb")).sort());
    """,
    )


def test_a_program_with_both_has_one_of_what_matters(package: Path, server: Server) -> None:
    run(
        package,
        server,
        """
        const imported = await import("paperdb");
        assert.notEqual(imported.createClient, required.createClient); // two copies there are
        const document = await imported.createClient({ baseUrl, apiKey }).modules.insert({});
        assert.equal(typeof required.seqOf(document), "number");
        const { modules } = required.createClient({ baseUrl, apiKey });
        const failed = await modules.get("x").catch((error) => error);
        assert.ok(failed instanceof imported.PaperDBError && failed instanceof required.PaperDBError);
        class Own extends imported.PaperDBError {}
        const own = new Own("x");
        assert.ok(!(failed instanceof Own) && own instanceof Own && own instanceof required.PaperDBError);
        for (const other of [new Error("x"), null, 7]) assert.ok(!(other instanceof required.PaperDBError));
    """,
    )


@pytest.mark.parametrize("environment", ["node", "jsdom"])
def test_jest_as_it_comes(package: Path, server: Server, tmp_path: Path, environment: str) -> None:
    jest = node_tool("jest@29")
    if environment == "jsdom":
        node_tool("jest-environment-jsdom@29")
    (tmp_path / "node_modules").symlink_to(package / "node_modules")
    (tmp_path / "package.json").write_text('{"name": "app"}')
    (tmp_path / "app.test.js").write_text(f"""
        const {{ createClient, PaperDBError }} = require("paperdb");
        test("a client", async () => {{
          {USE if environment == "node" else 'const db = createClient({ baseUrl: "/", apiKey: "k" });'}
          {'expect((await seen).data).toMatchObject({ text: "hello" });' if environment == "node" else ""}
          expect(db).toBe(db);
          expect(db).not.toEqual({{}});
          expect(db.messages).toEqual(expect.anything());
          expect(jest.isMockFunction(db)).toBe(false);
          expect(() => createClient({{}})).toThrow(PaperDBError);
          db.messages.insert = jest.fn();
          db.messages.insert({{}});
          expect(db.messages.insert).toHaveBeenCalledTimes(1);
          expect(() => expect(db).toEqual(3)).toThrow("nothing is subscribed");
        }});""")
    done = subprocess.run(
        [
            current_node(),
            str(jest / "bin/jest.js"),
            "--rootDir",
            str(tmp_path),
            "--env",
            str(jest.parent / f"jest-environment-{environment}"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**ENVIRONMENT, **env(server), "CI": "true"},
    )
    assert done.returncode == 0, done.stderr


def test_names_that_frameworks_look_for_are_not_collections(package: Path, server: Server) -> None:
    vue = node_tool("@vue/reactivity@3")
    mobx = node_tool("mobx@6")
    run(
        package,
        server,
        f"""
        import {{ inspect }} from "node:util";
        const require = createRequire(import.meta.url);
        const {{ reactive, ref, toRaw, isReactive, isRef }} = require({json.dumps(str(vue))});
        const mobx = require({json.dumps(str(mobx))});
        const db = required.createClient({{ baseUrl, apiKey }});
        for (const name of ["__v_raw", "__v_skip", "_isMockFunction", "_owner", "$$typeof", "@@iterator",
            "then", "toJSON", Symbol.toPrimitive, Symbol.iterator, inspect.custom]) {{
          assert.equal(db[name], undefined, String(name));
        }}
        assert.equal(db.collection("__v_raw").name, "__v_raw");
        assert.equal(toRaw(db), db);
        assert.ok(!isRef(db) && !isReactive(db));
        assert.equal(toRaw(reactive(db)), db);
        const made = await reactive({{ db }}).db.messages.insert({{ text: "through Vue" }});
        assert.equal((await ref(db).value.messages.get(made._id)).text, "through Vue");
        assert.equal(mobx.observable({{ db }}).db, db);
        assert.equal((await mobx.observable({{ db }}).db.messages.get(made._id)).text, "through Vue");
        const {{ get }} = db.messages; // no `this`
        assert.equal((await get(made._id))._id, made._id);
        assert.equal(await db, db);
        assert.deepEqual(Object.keys(JSON.parse(JSON.stringify(db))), ["realtime"]);
        assert.match(inspect(db), /^Client/);
        assert.deepEqual({{ ...db }}.messages, undefined);
    """,
    )


@pytest.mark.parametrize("lib", ["es2022", "es2022,dom"])
def test_the_types_of_both_need_neither_dom_nor_node(package: Path, tmp_path: Path, lib: str) -> None:
    """`app.ts` is in a project whose package.json says nothing of modules: it is CommonJS."""
    tsc = node_tool(TYPESCRIPT) / "bin/tsc"
    with_dom = "createClient({ apiKey: 'k', baseUrl: new URL('https://x'), fetch, WebSocket });"
    (tmp_path / "node_modules").symlink_to(package / "node_modules")
    (tmp_path / "package.json").write_text('{"name": "app"}')
    source = f"""
        import {{ createClient, seqOf, PaperDBError, type Status }} from "paperdb";
        {PROCESS}
        const db = createClient({{ apiKey: process.env.KEY, baseUrl: "https://db.example.com" }});
        export const all = db.messages.find().then((found) => found.seq + (seqOf(found[0] ?? {{}}) ?? 0));
        export const show = (status: Status) => (status.state === "live" ? status.reason : undefined);
        export const error: PaperDBError = new PaperDBError("x");
        {with_dom if "dom" in lib else ""}
    """
    files = ("app.cts", "app.mts", "app.ts")
    for file in files:
        (tmp_path / file).write_text(source)
    assert type_errors(tsc, tmp_path, "--module", "node16", "--lib", lib, *files) == ""
