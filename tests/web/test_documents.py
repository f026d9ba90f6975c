"""Documents over REST by the SDK, from Node, against the real server; and one that fails on purpose."""

from __future__ import annotations

import pytest

from tests.conftest import Server
from tests.web.conftest import MakeClient
from tests.web.tools import Answer, http_server


def test_every_call_of_the_contract(client: MakeClient, collection: str) -> None:
    found = client().run(f"""
        const docs = db.{collection};
        const made = await docs.insert({{name: "Ada", age: 36}}, {{key: "ada"}});
        const bulk = await docs.insertBulk([{{name: "B", age: 20}}, {{name: "Cyd", age: 50}}, {{_id: "ada"}}]);
        const filter = {{age: {{gte: 30}}}};
        const page = await docs.find({{filter, sort: ["-age", "name"], limit: 1, count: true}});
        const patched = await docs.update("ada", {{age: {{increment: 1}}}});
        const replaced = await docs.replace("ada", {{name: "Ada L."}}, {{ifMatch: state.seqOf(patched)}});
        const selected = await docs.get("ada", {{select: "name"}});
        const deleted = await docs.delete("ada");
        return {{made, bulk, page, patched, replaced, selected, deleted,
            about: [page.hasMore, page.total, page.limit, page.offset], isArray: Array.isArray(page),
            left: await docs.count(), old: await docs.count({{filter: {{age: {{gt: 30}}}}}}),
            same: db.{collection} === db.collection("{collection}"), name: docs.name}};
    """)
    assert found["made"]["_id"] == "ada"
    assert (found["bulk"]["inserted"], found["bulk"]["failed"]) == (2, 1)
    assert [error["code"] for error in found["bulk"]["errors"]] == ["CONFLICT"]
    assert found["isArray"]
    assert [document["name"] for document in found["page"]] == ["Cyd"]
    assert found["about"] == [True, 2, 1, 0]
    assert found["patched"]["age"] == 37
    assert "age" not in found["replaced"]
    assert found["selected"]["name"] == "Ada L."
    assert found["deleted"] == {"deleted": True, "_id": "ada"}
    assert (found["left"], found["old"]) == (2, 1)
    assert found["same"]
    assert found["name"] == collection


def test_atomic_bulk_writes_nothing_when_one_fails(client: MakeClient, collection: str) -> None:
    node = client()
    error = node.error(f'await db.{collection}.insertBulk([{{_id: "a"}}, {{_id: "a"}}], {{atomic: true}})')
    assert (error["status"], error["code"]) == (409, "CONFLICT")
    assert node.run(f"return db.{collection}.count()") == 0


def test_refusals_are_errors_with_status_code_and_message(client: MakeClient, collection: str) -> None:
    node = client()
    missing = node.error(f'await db.{collection}.get("nobody")')
    expected = {"name": "PaperDBError", "status": 404, "code": "NOT_FOUND", "message": "Document not found"}
    assert missing == expected
    assert node.run(f'return db.{collection}.get("x").catch((e) => e instanceof state.PaperDBError)')
    stale = node.error(f"""
        const first = await db.{collection}.insert({{_id: "a"}});
        await db.{collection}.update("a", {{n: 1}});
        await db.{collection}.update("a", {{n: 2}}, {{ifMatch: state.seqOf(first)}});""")
    assert (stale["status"], stale["code"]) == (412, "PRECONDITION_FAILED")
    assert "wher" in node.error(f"await db.{collection}.find({{wher: {{}}}})")["message"]
    assert node.error(f"await db.{collection}.insert([])")["code"] == "INVALID_DOCUMENT"
    assert node.error('db.collection("my collection")')["message"] == (
        "Invalid collection name: 'my collection'. Use letters, numbers, underscores, and hyphens only."
    )


def test_a_token_with_a_rule_is_minted_and_revoked(client: MakeClient, server: Server, collection: str) -> None:
    node = client()
    token = node.run(f"""
        await db.{collection}.insert({{n: 1, hidden: 2}}, {{key: "a"}});
        const collections = {{{collection}: {{filter: {{n: 1}}, select: ["n"]}}}};
        return db.realtime.generateToken({{collections, subject: "{collection}"}});""")
    front_end = client(key=token)
    assert front_end.run(f"return db.{collection}.find()") == [{"_id": "a", "n": 1}]
    assert (
        front_end.error(f"await db.{collection}.count({{filter: {{hidden: 2}}}})")["code"]
        == "FIELD_NOT_IN_TOKEN"
    )
    assert node.run(f'return db.realtime.revoke({{subject: "{collection}"}})') is None
    assert front_end.error(f"await db.{collection}.find()")["code"] == "TOKEN_REVOKED"


def test_a_public_key_reads_and_a_wrong_one_does_nothing(
    client: MakeClient, server: Server, collection: str
) -> None:
    server.insert(collection, {"_id": "a"})
    public = client(key=server.new_key(public=True)["key"])
    assert public.run(f'return (await db.{collection}.get("a"))._id') == "a"
    assert public.error(f"await db.{collection}.insert({{}})")["code"] == "READ_ONLY_KEY"
    wrong = client(key="pdb_sk_" + "x" * 43).answer(f"return db.{collection}.count()")
    assert wrong["error"]["status"] == 401
    assert "pdb_sk" not in str(wrong)


def test_ids_go_through_as_they_are_and_none_can_leave_its_place(
    client: MakeClient, server: Server, collection: str
) -> None:
    node = client()
    for id in ("a b", "100%", "ü?x=1#y", "%2e%2e", "a+b", "..."):
        assert node.run(f"""
            await db.{collection}.insert({{}}, {{key: {id!r}}});
            await db.{collection}.update({id!r}, {{n: 1}});
            return [(await db.{collection}.get({id!r}))._id, (await db.{collection}.delete({id!r})).deleted];
        """) == [id, True]
    server.insert(collection, {"_id": "stays"})
    for id in ('".."', '"."', '""', "undefined", "null", "7", '"\\ud800"'):
        assert node.error(f"await db.{collection}.delete({id})")["code"] == "INVALID_ID", id
    assert node.run(f"return db.{collection}.count()") == 1


def test_the_client_is_not_a_promise_and_shows_no_key(client: MakeClient, server: Server) -> None:
    found = client().run("""
        const { inspect } = await import("node:util");
        return {awaited: await db === db, json: JSON.stringify(db),
            shown: inspect(db, {depth: 9, showHidden: true}),
            names: [typeof db.then, typeof db.toJSON, typeof db[Symbol.iterator], typeof db.close],
            odd: [db.collection("then").name, db.collection("constructor").name, db["my-docs_1"].name],
            text: `${db}`, none: db["no collection"] === undefined, keys: Object.keys(db)};
    """)
    assert found["awaited"]
    assert found["names"] == ["undefined", "undefined", "undefined", "function"]
    assert found["odd"] == ["then", "constructor", "my-docs_1"]
    assert found["none"]
    assert server.key not in str(found)


def test_a_client_that_cannot_work_is_refused_at_once(client: MakeClient) -> None:
    node = client()
    for options, code in (
        ('{baseUrl: "http://x"}', "NO_API_KEY"),
        ('{apiKey: undefined, baseUrl: "http://x"}', "NO_API_KEY"),
        ('{apiKey: "k"}', "INVALID_URL"),
        ('{apiKey: "k", baseUrl: "ftp://x"}', "INVALID_URL"),
        ('{apiKey: "k", baseUrl: "http://me:secret@x"}', "INVALID_URL"),
        ('{apiKey: "k", baseUrl: "http://x", schema: {users: {name: "string"}}}', "INVALID_SCHEMA"),
    ):
        error = node.error(f'(await import("paperdb")).createClient({options})')
        assert error["code"] == code, options
        assert "secret" not in error["message"]


def test_a_missing_address_never_means_the_pages_own_host(client: MakeClient) -> None:
    """In a browser a URL may be relative to the page, where it says so."""
    node = client()
    node.run('globalThis.location = {href: "https://page.example/app/"}')
    create = 'const {createClient} = await import("paperdb"); const apiKey = "pdb_sk_x";'
    missing = ("undefined", "null", '""', '" "', "{}", "7")
    for wrong in (*missing, '"db.example.com"', '"db.example.com:80"', '"a:b@db"'):
        error = node.error(f"{create} createClient({{apiKey, baseUrl: {wrong}}})")
        assert error["code"] == "INVALID_URL", wrong
        assert error["message"].startswith("Invalid baseUrl: "), wrong
        assert "a:b" not in error["message"]
        if wrong not in ("undefined", "null"):
            error = node.error(f'{create} createClient({{apiKey, baseUrl: "/", realtimeUrl: {wrong}}})')
            assert error["message"].startswith("Invalid realtimeUrl: "), wrong
    asked = f"""{create} let asked; const fetch = async (url) => {{ asked = url; throw 0; }};
        await createClient({{apiKey, baseUrl: BASE, fetch}}).a.count().catch(() => 0); return asked;"""
    for base, url in (
        ('"/"', "https://page.example"),
        ('"/db/"', "https://page.example/db"),
        ('"./"', "https://page.example/app"),
        ('"//db.example"', "https://db.example"),
        ('new URL("http://x/db//")', "http://x/db"),
        ('" wss://x:8/db "', "https://x:8/db"),
    ):
        assert node.run(asked.replace("BASE", base)) == f"{url}/a/count"


def test_pages_and_filters_that_are_too_long_for_a_url(client: MakeClient, collection: str) -> None:
    found = client().run(f"""
        const docs = db.{collection};
        await docs.insertBulk(Array.from({{length: 10}}, (_, n) => ({{_id: `document ${{n}}`, n}})));
        const numbers = [];
        let after;
        do {{
          const page = await docs.find({{sort: "-n", limit: 4, ...(after && {{after}})}});
          numbers.push(...page.map(({{n}}) => n));
          after = page.next;
        }} while (after);
        const many = Array.from({{length: 1900}}, (_, n) => `document ${{n + 5}}`);
        const filter = {{_id: {{in: many}}}};
        const long = await docs.find({{filter, sort: ["-n"], select: ["n"], count: true}});
        return {{numbers, long: long.map(({{n}}) => n), total: long.total}};
    """)
    assert found["numbers"] == list(range(9, -1, -1))
    assert (found["long"], found["total"]) == ([9, 8, 7, 6, 5], 5)


# --- schema --------------------------------------------------------------------------------------

PROPERTIES = {
    "name": {"type": "string", "required": True},
    "email": {"type": "string", "unique": True},
    "admin": {"type": "boolean", "default": False},
}


def test_a_schema_applies_defaults_and_registers_itself_once_before_the_first_write(
    client: MakeClient, server: Server, collection: str
) -> None:
    node = client(schema={collection: {"properties": PROPERTIES}})
    node.run(f"return db.{collection}.find()")
    assert server.request("GET", f"/{collection}/schema").json().get("properties", {}) == {}
    made = node.run(f"""return Promise.all([
        db.{collection}.insert({{name: "a", email: "a@x"}}),
        db.{collection}.insertBulk([{{name: "b", admin: true}}, {{name: "c", email: undefined}}])])""")
    assert made[0]["admin"] is False
    assert [document["admin"] for document in made[1]["documents"]] == [True, False]
    assert server.request("GET", f"/{collection}/schema").json()["properties"].keys() == PROPERTIES.keys()
    assert node.error(f'await db.{collection}.insert({{name: "d", email: "a@x"}})')["message"] == (
        "Unique field violation — 'email' already exists in this collection."
    )
    assert node.error(f"await db.{collection}.insert({{}})")["message"] == "Field 'name' is required"


def test_registration_is_one_request_before_writes_and_a_server_without_that_route_is_tolerated(
    client: MakeClient,
) -> None:
    seen: list[tuple[str, str]] = []

    def answer(method: str, path: str, headers: dict[str, str]) -> Answer:
        seen.append((method, path))
        return (404 if path.endswith("/schema") else 201), "application/json", b'{"_id": "a", "deleted": true}'

    with http_server(answer) as url:
        schema = {"users": {"properties": PROPERTIES}}
        node = client(url, schema=schema)
        node.run('return Promise.all([db.users.insert({}), db.users.delete("a"), db.other.insert({})])')
        assert seen.count(("PUT", "/users/schema")) == 1
        assert seen.index(("PUT", "/users/schema")) < seen.index(("POST", "/users/docs"))
        seen.clear()
        client(url, key="pdb_pk_public", schema=schema).run("return db.users.insert({})")
        assert seen == [("POST", "/users/docs")]


# --- the network ------------------------------------------------------------------------------

CALLS = (
    "insert({})",
    "insertBulk([{}])",
    "find()",
    'get("a")',
    'update("a", {})',
    'replace("a", {})',
    'delete("a")',
    "count()",
)


def test_a_response_that_is_not_paperdbs_is_an_error(client: MakeClient) -> None:
    answers: list[Answer] = []

    with http_server(lambda method, path, headers: answers[0]) as url:
        node = client(url)
        answers[:] = [(502, "text/html", b"<h1>Bad gateway")]
        assert node.error("await db.things.insert({})")["code"] == "HTTP_502"
        wrong = (
            b"<h1>Welcome",
            b"",
            b"null",
            b"[]",
            b"{}",
            b'{"_id": 7, "documents": {}, "count": "3", "deleted": 1}',
        )
        for body in wrong:
            answers[:] = [(200, "application/json", body)]
            for call in CALLS:
                assert node.error(f"await db.things.{call}")["code"] == "BAD_ANSWER", (call, body)
            minted = node.error('await db.realtime.generateToken({collections: ["a"]})')
            assert minted["code"] == "BAD_ANSWER"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_redirect_is_followed(client: MakeClient, server: Server, collection: str, status: int) -> None:
    """A redirect may turn a POST into a GET, or take the key elsewhere."""
    seen: list[str] = []

    def answer(method: str, path: str, headers: dict[str, str]) -> Answer:
        seen.append(headers.get("host", ""))
        return status, "text/html", b"<h1>Moved", {"Location": f"{server.url}{path}"}

    with http_server(answer) as url:
        node = client(url)
        for call in CALLS:
            error = node.error(f"await db.{collection}.{call}")
            assert (error["status"], error["code"]) == (status, "REDIRECTED"), call
            assert server.url in error["message"]
    assert len(seen) == len(CALLS)
    assert server.request("GET", f"/{collection}/count").json() == {"count": 0}


def test_the_key_goes_into_a_header_and_nowhere_else(client: MakeClient, server: Server) -> None:
    seen: list[tuple[str, dict[str, str]]] = []

    def answer(method: str, path: str, headers: dict[str, str]) -> None:
        seen.append((path, headers))

    with http_server(answer) as url:
        node = client(url)
        error = node.error("await db.things.find({filter: {a: 1}})")
        node.run('subscribe("things", "a")')
        node.wait_state("offline")
        assert server.key not in str([error, node.statuses, node.stderr])
    assert all(server.key not in path for path, _ in seen)
    assert all(headers.get("authorization") == f"Bearer {server.key}" for _, headers in seen)
