/**
 * A collection's documents, and batches over several collections.
 *
 * Law: makes requests and checks their responses; knows the schemas that were given to the client. Writes are shown by live
 * queries before they are sent (drafts.js).
 */

import { checkCollection, invalid, segment } from "./errors.js";
import { Live } from "./live.js";
import { checkKey, seqOf, setSeq } from "./requests.js";

// What responses must have. A write's must be what was written, not the response to another request.
const isDocument = ({ _id }) => typeof _id === "string";
const isBulk = ({ inserted, failed, documents }) =>
  typeof inserted === "number" && typeof failed === "number" && Array.isArray(documents);
const isFound = ({ documents, hasMore }) => Array.isArray(documents) && typeof hasMore === "boolean";
const isDeleted = ({ deleted, _id }) => deleted === true && typeof _id === "string";
const isCount = ({ count }) => typeof count === "number";
const isHistory = ({ versions }) => Array.isArray(versions);
const isAnything = () => true;

/** The options that a method knows, as they go into a query. Throws for another: most likely a typing error. */
function parameters(options, known) {
  const query = {};
  for (const [name, value] of Object.entries(options)) {
    if (!known.includes(name)) {
      throw invalid("INVALID_REQUEST", `Unknown option '${name}'; expected ${known.join(", ")}`);
    }
    query[name] = name === "filter" ? JSON.stringify(value) : value; // arrays become a,b
  }
  return query;
}

/** Characters of a filter above which a find is sent as a body: percent-encoded it is up to three times as long. */
const MAX_FILTER = 2000;

/** What `Collection` in paperdb.d.ts says. Its functions use no `this`: a framework may wrap it into a proxy. */
export function makeCollection(client, name, schema) {
  const { drafts, realtime } = client;
  const transport = client.transport.for([checkCollection(name)]);
  const base = `/${name}`;
  const properties = schema?.properties ?? {};
  let registration = schema && transport.isSecret ? undefined : Promise.resolve();

  /** Tell the server the schema, before our first write. One that has no such route does without. */
  async function register() {
    try {
      await transport.request("PUT", `${base}/schema`, isAnything, { body: schema });
    } catch (error) {
      if (error.status === 404 || error.status === 405) return;
      registration = undefined; // the next write tries again
      throw error;
    }
  }

  const registered = () => (registration ??= register());

  async function write(method, path, isGood, { body, options: { ifMatch, where, idempotencyKey } = {}, query = {} }) {
    const value = body?.();
    const sent = { query: { ...query, where: where && JSON.stringify(where) }, ifMatch, body: value };
    sent.idempotencyKey = checkKey(idempotencyKey);
    await registered();
    return transport.request(method, base + path, isGood, sent);
  }

  /** A write of one document, shown meanwhile. */
  const drafted = (operation, run) =>
    drafts.during([{ ...operation, collection: name }], run, (result) => [
      { document: operation.op === "delete" ? null : result, seq: seqOf(result) },
    ]);

  function prepare(document, { key, unique } = {}) {
    const prepared = { ...asObject(document) };
    const ruled = [];
    for (const [field, rule] of Object.entries(properties)) {
      if (prepared[field] === undefined && "default" in rule) prepared[field] = rule.default;
      if (rule.unique) ruled.push(field);
    }
    if (key !== undefined) prepared.key = key;
    if (unique !== undefined) prepared.unique = unique;
    else if (ruled.length) prepared.unique ??= ruled;
    return prepared;
  }

  const collection = {
    name,

    async insert(document, options = {}) {
      const prepared = drafts.named(name, prepare(document, options));
      return drafted(inserting(prepared), () =>
        write("POST", "/docs", isDocument, { body: () => prepared, options }));
    },

    async insertBulk(documents, { atomic = false, unique, idempotencyKey } = {}) {
      const body = () => Array.from(documents, (document) => prepare(document, { unique }));
      const about = { body, query: atomic ? { atomic } : {}, options: { idempotencyKey } };
      return { errors: [], ...(await write("POST", "/bulk", isBulk, about)) };
    },

    async find(options = {}) {
      const query = parameters(options, ["filter", "sort", "limit", "offset", "select", "count", "after"]);
      const large = (query.filter?.length ?? 0) > MAX_FILTER;
      const { documents, ...about } = large
        ? await transport.request("POST", `${base}/query`, isFound, { body: asBody(options) })
        : await transport.request("GET", `${base}/docs`, isFound, { query });
      for (const name of ["hasMore", "total", "limit", "offset", "seq", "next"]) {
        Object.defineProperty(documents, name, { value: about[name] });
      }
      return documents;
    },

    async get(id, options = {}) {
      const query = parameters(options, ["select"]);
      return transport.request("GET", `${base}/docs/${segment(id)}`, isDocument, { query });
    },

    async history(id, options = {}) {
      const query = parameters(options, ["limit"]);
      return (await transport.request("GET", `${base}/docs/${segment(id)}/history`, isHistory, { query })).versions;
    },

    async update(id, fields, options) {
      const body = () => asObject(fields);
      const run = () => write("PATCH", `/docs/${segment(id)}`, isDocument, { body, options });
      return drafted({ op: "update", id, fields: body() }, run);
    },

    async replace(id, document, options) {
      const body = () => asObject(document);
      const run = () => write("PUT", `/docs/${segment(id)}`, isDocument, { body, options });
      return drafted({ op: "replace", id, document: body() }, run);
    },

    async delete(id, options) {
      return drafted({ op: "delete", id }, () => write("DELETE", `/docs/${segment(id)}`, isDeleted, { options }));
    },

    live: (options) => new Live({ name, find: collection.find, realtime, drafts }, options),

    async count(options = {}) {
      const query = parameters(options, ["filter"]);
      return (await transport.request("GET", `${base}/count`, isCount, { query })).count;
    },
  };
  return { collection, prepare, registered };
}

/** The operation of an insert: `unique` and `key` are not of the document. */
function inserting({ unique: _, key, ...document }) {
  return { op: "insert", id: key ?? document._id, document };
}

/** A find's options as a body, in which lists are a text as they are in a query. */
function asBody(options) {
  const list = (value) => (Array.isArray(value) ? value.join(",") : value);
  return { ...options, sort: list(options.sort), select: list(options.select) };
}

function asObject(value, what = "A document") {
  if (value !== null && typeof value === "object" && !Array.isArray(value)) return value;
  throw invalid("INVALID_DOCUMENT", `${what} must be a JSON object`);
}

/**
 * `Client.batch` in paperdb.d.ts. `known(name)` is what `makeCollection` made.
 */
export async function batch({ transport, drafts }, known, given, { idempotencyKey } = {}) {
  if (!Array.isArray(given)) throw invalid("INVALID_REQUEST", "A batch is an array of operations");
  const key = checkKey(idempotencyKey);
  const names = new Set();
  const operations = given.map((operation) => {
    const { op, collection, document } = asObject(operation, "An operation");
    names.add(checkCollection(collection));
    if (op !== "insert") return operation;
    const prepared = known(collection).prepare(document);
    return { ...operation, document: operation.id === undefined ? drafts.named(collection, prepared) : prepared };
  });
  const body = { operations };
  for (const name of names) await known(name).registered();
  const isGood = ({ results, txn }) => Array.isArray(results) && results.every(isDocument) && typeof txn === "number";
  const shown = operations.map((one) => (one.op === "insert" ? { ...inserting(one.document), ...one } : one));
  const run = () => transport.for([...names]).request("POST", "/batch", isGood, { body, idempotencyKey: key });
  const outcomes = ({ results, txn }) =>
    results.map((result, at) => ({ document: operations[at].op === "delete" ? null : result, seq: txn + at }));
  const { results, txn } = await drafts.during(shown, run, outcomes);
  results.forEach((result, index) => setSeq(result, txn + index));
  return { results, txn };
}
