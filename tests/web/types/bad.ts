// Misuse: each marked line must not compile; if one does, the mark itself is the error.
import { createClient } from "paperdb";

const db = createClient({
  apiKey: "pdb_sk_x",
  baseUrl: "http://127.0.0.1:8000",
  schema: {
    users: {
      properties: {
        name: { type: "string", required: true },
        age: { type: "number" },
        admin: { type: "boolean", default: false },
      },
    },
  },
});

// @ts-expect-error: `name` is required
db.users.insert({ age: 3 });
// @ts-expect-error: `name` is a string
db.users.insert({ name: 3 });
// @ts-expect-error: no such field
db.users.insert({ name: "Ada", nmae: "Ada" });
// @ts-expect-error: a document is an object
db.messages.insert("hello");
// @ts-expect-error: an array of them, for insertBulk
db.users.insertBulk({ name: "Ada" });
// @ts-expect-error: the second has no name
db.users.insertBulk([{ name: "Ada" }, {}]);
// @ts-expect-error: no such option
db.users.find({ where: { name: "Ada" } });
// @ts-expect-error: no such field
db.users.find({ filter: { nmae: "Ada" } });
// @ts-expect-error: a number never equals a string
db.users.find({ filter: { age: "3" } });
// @ts-expect-error: no such operator
db.users.find({ filter: { age: { above: 3 } } });
// @ts-expect-error: booleans have no order
db.users.find({ filter: { admin: { gt: true } } });
// @ts-expect-error: a string is compared with strings
db.users.find({ filter: { name: { gt: 3 } } });
// @ts-expect-error: a number does not start with anything
db.users.find({ filter: { age: { startsWith: "3" } } });
// @ts-expect-error: a field that was not selected
db.users.find({ select: ["name"] }).then((users) => users[0]?.age);
// @ts-expect-error: no such field
db.users.live({ filter: { nmae: "Ada" } });
// @ts-expect-error: no such option
db.users.live({ offset: 3 });
// @ts-expect-error: a field that was not selected
db.users.live({ select: ["name"] }).subscribe(({ documents }) => documents[0]?.age);
// @ts-expect-error: documents are not to be changed
db.users.live().get().documents.push({});
// @ts-expect-error: no such status
db.users.live().subscribe(({ status }) => status === "open");
// @ts-expect-error: no such field to sort by
db.users.find({ sort: "-nmae" });
// @ts-expect-error: an id is a string
db.users.get(7);
// @ts-expect-error: strings are not incremented
db.users.update("ada", { name: { increment: 1 } });
// @ts-expect-error: `name` is required
db.users.replace("ada", { age: 3 });
// @ts-expect-error: no such method
db.users.upsert({ name: "Ada" });
// @ts-expect-error: no such field in a condition
db.users.delete("ada", { where: { nmae: "Ada" } });
// @ts-expect-error: only an array is pushed to
db.users.update("ada", { name: { push: "x" } });
// @ts-expect-error: `name` is required, in a batch too
db.batch([{ op: "insert", collection: "users", document: { age: 3 } }]);
// @ts-expect-error: `age` is a number
db.batch([{ op: "update", collection: "users", id: "ada", fields: { age: "3" } }]);
// @ts-expect-error: no such operation
db.batch([{ op: "upsert", collection: "users", id: "ada", document: { name: "Ada" } }]);
// @ts-expect-error: an update has fields
db.batch([{ op: "update", collection: "log", id: "a", document: {} }]);
// @ts-expect-error: an array
db.batch({ op: "delete", collection: "log", id: "a" });
// @ts-expect-error: what is deleted has no fields
db.batch([{ op: "delete", collection: "users", id: "a" }]).then(({ results }) => results[0].name);
// @ts-expect-error: `age` may be missing
db.users.get("ada").then((user) => user.age.toFixed());
// @ts-expect-error: no such field
db.users.find().then((users) => users[0]?.nmae);
// @ts-expect-error: what is in an unknown document is unknown
db.messages.get("a").then((message) => message.text.length);
// @ts-expect-error: no such field
db.realtime.subscribe("users", (event) => event.data.nmae);
// @ts-expect-error: no such type of event
db.realtime.subscribe("users", (event) => event.type === "remove");
// @ts-expect-error: a handler is a function
db.realtime.subscribe("users", { next() {} });
// @ts-expect-error: no such option
db.realtime.subscribe("users", () => {}, { onOpen() {} });
// @ts-expect-error: an array of names
db.realtime.generateToken({ collections: "users" });
// @ts-expect-error: no such permission
db.realtime.generateToken({ collections: ["users"], permissions: ["admin"] });
// @ts-expect-error: no such member of a rule
db.realtime.generateToken({ collections: { users: { where: {} } } });
// @ts-expect-error: one of them is needed
db.realtime.revoke({});
// @ts-expect-error: no such state
db.realtime.onStatus((status) => status.state === "open");
// @ts-expect-error: a key or getToken
createClient({ baseUrl: "/" });
// @ts-expect-error: a baseUrl
createClient({ apiKey: "pdb_sk_x" });
// @ts-expect-error: no such type of field
createClient({ apiKey: "pdb_sk_x", baseUrl: "/", schema: { a: { properties: { b: { type: "date" } } } } });
// @ts-expect-error: `close` takes nothing
db.close(1000);
