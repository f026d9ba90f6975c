"""Live queries and a server that is further than what it has sent, without a server or time (see fake.mjs).

A reply to a ping says how far the server has come with this connection. That is less than it knows while it
reads the log for the connection, and while it hands out changes to others.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.web.test_fake import run_case

BEGIN = """
    const headers = { ETag: '"9"' };
    const fetch = async () => new Response(JSON.stringify(document("new")), { status: 201, headers });
    const { db } = connect({ fetch });
    const seen = [];
    const live = db.collection("a").live();
    live.subscribe(({ status, documents }) => seen.push(`${status} ${documents.map(({ _id }) => _id)}`));
    const document = (_id) => ({ _id, createdAt: "", updatedAt: "" });
    const about = { collection: "a", query: "q" };
    const insert = (seq, id) => latest().say({ ...about, type: "insert", seq, data: document(id) });
    /** Respond to what was sent: there is one ping at most. */
    const pong = async (seq, pings = 1) => {
      const sent = latest().sent.splice(0).filter(({ action }) => action === "ping");
      assert.equal(sent.length, pings);
      for (const { ref } of sent) await latest().say({ type: "pong", seq, ref });
    };
    const subscribed = async (seq, ...more) => {
      const { ref, ...asked } = latest().sent.shift();
      await latest().say({ ...about, type: "subscribed", seq, ref }, ...more);
      return asked;
    };
    await settle();
    await latest().say({ type: "ready", seq: 5 });
    await subscribed(5, { type: "snapshot", query: "q", seq: 5, documents: [document("one")], last: true });
    await pong(5);
    assert.deepEqual(seen.splice(0), ["loading ", "live one"]);
"""
RESUME = """
    await latest().end(1006);
    await pass(250);
    await latest().say({ type: "ready", seq: 20 });
    assert.equal((await subscribed(5)).since, 5);
    assert.deepEqual(seen.splice(0), ["stale one"]);
"""
CASES = {
    "it is live when a reply to a ping says that it has what the server had": f"""
        {RESUME}
        await pong(5);
        await insert(12, "two");
        await pong(12, 0);
        await pass(200);
        await pong(19);
        assert.deepEqual(seen.splice(0), ["stale one,two"]);
        await pass(200);
        await pong(20);
        assert.deepEqual(seen.splice(0), ["live one,two"]);
        await pass(1000);
        await pong(20, 0);
    """,
    "it is live when a change says so": f"""
        {RESUME}
        await pong(5);
        await insert(12, "two");
        await insert(21, "three");
        assert.deepEqual(seen.splice(0), ["stale one,two", "live one,two,three"]);
    """,
    "an own write is shown until its change has come": """
        await db.collection("a").insert({ _id: "new" });
        await settle();
        await pong(8);
        await pass(200);
        await pong(8);
        await insert(9, "new");
        assert.deepEqual(new Set(seen.splice(0)), new Set(["live one,new"]));
        await pass(200);
        await pong(9);
        await pass(1000);
        await pong(9, 0);
    """,
    "an own write that is none of the query's is shown until the server is beyond it": """
        await db.collection("a").insert({ _id: "new" });
        await settle();
        await pong(8);
        assert.deepEqual(new Set(seen.splice(0)), new Set(["live one,new"]));
        await pass(200);
        await pong(10);
        assert.deepEqual(seen, ["live one"]);
    """,
}


@pytest.mark.parametrize("case", CASES)
def test_live_queries(package: Path, case: str) -> None:
    run_case(package, BEGIN + CASES[case])
