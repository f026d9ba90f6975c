// What must compile, with --strict.
import {
  PaperDBError,
  createClient,
  seqOf,
  type AnyDocument,
  type Client,
  type Collection,
  type Deleted,
  type DocumentOf,
  type Operation,
  type RealtimeEvent,
  type Status,
  type Version,
} from "paperdb";

import { paperdbOptions } from "paperdb/tanstack";
import { useLive } from "paperdb/react";
import { useLive as useLiveRefs } from "paperdb/vue";

type Equal<A, B> = (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false;
const is = <T extends true>(): T => true as T;

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
    posts: { properties: { tags: { type: "array", required: true, default: [] }, meta: { type: "object" } } },
  },
});

type User = {
  name: string;
  admin: boolean;
  age?: number;
  _id: string;
  createdAt: string;
  updatedAt: string;
};

async function documents(): Promise<void> {
  const user = await db.users.insert({ name: "Ada" });
  is<Equal<typeof user, User>>();
  await db.users.insert({ name: "Ada", age: 36, admin: true, _id: "ada" }, { unique: ["name"] });
  await db.users.insert({ name: "Ada" }, { key: "ada" });
  const { inserted, documents, errors } = await db.users.insertBulk([{ name: "B" }], { atomic: true });
  is<Equal<typeof documents, User[]>>();
  const sum: number = inserted + errors.length;

  const found = await db.users.find({
    filter: { age: { gte: 18, lt: 65 }, admin: true, or: [{ name: "Ada" }, { name: { startsWith: "B" } }] },
    sort: ["-createdAt", "name"],
    select: "name,age",
    limit: 10,
    offset: sum,
    count: true,
  });
  is<Equal<(typeof found)[number], User>>();
  const more: boolean = found.hasMore;
  const total: number | undefined = found.total;
  for (const { name } of found) name.toUpperCase();
  await db.users.find({ sort: "-createdAt,name", filter: { "address.city": "Bern" } });

  await db.users.update("ada", { age: { increment: 1 }, name: "Ada L." }, { ifMatch: seqOf(user) ?? "*" });
  await db.users.replace("ada", { name: "Ada" });
  const { deleted } = await db.users.delete("ada");
  const count: number = await db.users.count({ filter: { admin: true } });
  const tags: unknown[] = (await db.posts.insert({})).tags;
  console.log(more, total, deleted, count, tags);
}

function live(): void {
  const users = db.users.live({ filter: { age: { gte: 18 }, admin: false }, sort: "-age", limit: 50 });
  const off: () => void = users.subscribe(({ documents, status, error, hasMore }) => {
    is<Equal<(typeof documents)[number], User>>();
    if (status === "error") console.log(error?.code, hasMore);
  });
  const names = db.users.live({ select: ["name", "age"], filter: { name: { in: ["Ada", null] }, admin: { ne: true } } });
  const [first] = names.get().documents;
  is<Equal<typeof first, { name: string; age?: number; _id: string }>>();
  db.posts.live({ filter: { tags: { contains: "x" }, "meta.n": { gt: 3 }, not: { meta: { exists: true } } } });
  db.realtime.subscribe("users", ({ data }) => data.name, { filter: { age: { lt: 3 } }, select: ["name"] });
  db.messages.live({ filter: { room: "r1", n: { gt: 3 } }, sort: ["-createdAt"] }).subscribe(({ documents }) => documents[0]?.text);
  const shown = useLive(db.users, { filter: { admin: true }, select: ["name"] });
  const name: string | undefined = shown.documents[0]?.name;
  const refs = useLiveRefs(() => db.users, { value: { sort: "name", limit: 3 } as const });
  const age: number | undefined = refs.documents.value[0]?.age;
  const options = paperdbOptions({ collection: db.users, filter: { age: { gt: 3 } }, id: "users" });
  console.log(off, name, age, options.getKey, users.more, names.close, shown.more, refs.more);
}

async function batches(): Promise<void> {
  const { results, txn } = await db.batch([
    { op: "insert", collection: "users", document: { name: "Ada", age: 36 }, id: "ada" },
    { op: "update", collection: "users", id: "b", fields: { age: { increment: 1 } }, where: { age: { lt: 40 } } },
    { op: "insert", collection: "posts", document: { tags: ["a", "b"] } },
    { op: "update", collection: "posts", id: "p", fields: { tags: { push: "c" }, meta: { unset: true } } },
    { op: "replace", collection: "users", id: "c", document: { name: "Cyd" }, ifMatch: 3 },
    { op: "delete", collection: "users", id: "d", where: { admin: false } },
    { op: "insert", collection: "log", document: { what: ["anything", { deep: 1 }] } },
  ]);
  is<Equal<(typeof results)[0], User>>();
  is<Equal<(typeof results)[2]["tags"], unknown[]>>();
  is<Equal<(typeof results)[5], Deleted>>();
  is<Equal<(typeof results)[6], AnyDocument>>();
  const next: number = txn + results.length;
  const operations: Operation[] = [];
  for (let n = 0; n < next; n += 1) operations.push({ op: "insert", collection: "log", document: { n } });
  const many = await db.batch(operations, { idempotencyKey: "once" });
  is<Equal<(typeof many.results)[number], AnyDocument | Deleted>>();
  await db.users.update("ada", { age: 37 }, { where: { admin: true, age: { lt: 40 } }, idempotencyKey: "k" });
  const [version] = await db.users.history("ada", { limit: 1 });
  is<Equal<typeof version, Version<User>>>();
}

async function withoutSchema(): Promise<void> {
  const made = await db.messages.insert({ text: "hello", n: { deep: [1] } });
  is<Equal<typeof made, AnyDocument>>();
  const text: unknown = made.text;
  const id: string = made._id;
  await db.messages.find({ filter: { text: "hello", n: { gt: 3 }, "a.b": 1 }, sort: "-n" });
  await db.messages.update(id, { n: { increment: 1 }, text: null });

  interface Message {
    text: string;
    likes: number;
  }
  const messages = db.collection<Message>("messages");
  const message = await messages.insert({ text: "hello", likes: 0 });
  const likes: number = message.likes + message._id.length;
  await messages.update(message._id, { likes: { increment: 1 } });
  const named: Collection<User, { name: string; age?: number; admin?: boolean; _id?: string }> = db.collection("users");
  console.log(text, likes, named.name, db.collection("constructor"));

  db.realtime.subscribe<Message>("messages", ({ data }) => data.likes + 1);
  db.realtime.subscribe("messages", (event) => is<Equal<typeof event, RealtimeEvent<Record<string, unknown>>>>());
}

function realtime(): void {
  const off = db.realtime.subscribe("users", (event) => {
    is<Equal<typeof event, RealtimeEvent<User>>>();
    if (event.type === "insert") console.log(event.data.name.length, event.seq + 1);
  });
  off();
  db.realtime.subscribe("users", async () => {}, {
    onReady: () => {},
    onGap: ({ since, oldest }) => console.log(since - oldest),
    onError: (error) => error instanceof PaperDBError && error.status + error.code.length,
  });
  db.realtime.onStatus((status: Status) => {
    if (status.state === "offline") console.log(status.reason, status.retryIn.toFixed(1));
    if (status.state === "closed") console.log(status.code?.length);
    if (status.state === "gap") console.log(status.oldest);
  });
  const token: Promise<string> = db.realtime.generateToken({ collections: ["users"], expiresIn: 60 });
  const rules = { orders: { filter: { userId: "alice" }, select: ["status"], permissions: ["read", "write"] }, news: {} } as const;
  const ruled: Promise<string> = db.realtime.generateToken({ collections: rules, subject: "alice" });
  const revoked: Promise<void> = db.realtime.revoke({ subject: "alice" });
  console.log(token, ruled, revoked, db.realtime.status.state);
  db.close();
}

const schema = { users: { properties: { name: { type: "string", required: true } } } } as const;
const fromConstant = createClient({ apiKey: process.env.KEY, baseUrl: "/", schema });
is<Equal<DocumentOf<(typeof schema)["users"]>["name"], string>>();
const asParameter = (client: Client): Promise<number> => client.anything!.count();

createClient({ baseUrl: "/", getToken: async () => "token" });
createClient({ baseUrl: "/", getToken: ({ collections }) => ({ token: collections.join() }), WebSocket });
const error = new PaperDBError("no", { status: 404, code: "NOT_FOUND", plan: "free" });
console.log(live, error.plan, fromConstant.users.name, asParameter, documents, batches, withoutSchema, realtime);
