/**
 * PaperDB for JavaScript: documents over REST; `./realtime.js` has their changes. Types: paperdb.d.ts.
 *
 * Law: no dependencies; whatever has `fetch` and ES modules can run it. The API key goes into request
 * headers only: never into a URL, an error or a log. A write is sent once; a read at most twice.
 */

import { PaperDBError, address, checkCollection, invalid, isCollectionName, segment } from "./errors.js";
import { Realtime, ask } from "./realtime.js";

export { PaperDBError };

const REQUEST_MS = 30_000;

// --- REST ----------------------------------------------------------------------------------------

const seqs = new WeakMap();

/** The seq of the change that made a document what it is, if REST gave it to us: for `ifMatch`. */
export const seqOf = (document) => seqs.get(document);

class Transport {
  #base;
  #key;
  #fetch;

  constructor({ baseUrl, apiKey, fetch }) {
    this.#base = address(baseUrl, "http");
    this.#key = apiKey;
    this.#fetch = (...args) => (fetch ?? globalThis.fetch)(...args);
  }

  get isSecret() {
    return this.#key?.startsWith("pdb_sk_") ?? false;
  }

  /** The JSON of the answer. Rejects with a PaperDBError. A read is tried a second time if no answer came. */
  async request(method, path, options = {}) {
    try {
      return await this.#send(method, path, options);
    } catch (error) {
      if (method !== "GET" || error.code !== "NETWORK" || error.timeout) throw error;
      return this.#send(method, path, options);
    }
  }

  async #send(method, path, { query = {}, body, ifMatch, abort = new AbortController() }) {
    const headers = {};
    if (this.#key !== undefined) headers.Authorization = `Bearer ${this.#key}`;
    if (body !== undefined) headers["Content-Type"] = "application/json";
    if (ifMatch !== undefined) headers["If-Match"] = ifMatch === "*" ? "*" : `"${ifMatch}"`;
    const search = String(new URLSearchParams(Object.entries(query).filter(([, value]) => value !== undefined)));
    const url = `${this.#base}${path}${search && "?"}${search}`;
    const init = { method, headers, body: body && JSON.stringify(body), signal: abort.signal };
    let timeout = false;
    const timer = setTimeout(() => {
      timeout = true;
      abort.abort();
    }, REQUEST_MS);
    timer.unref?.(); // the request itself keeps a Node process alive
    try {
      const response = await this.#fetch(url, init);
      return read(response, await response.text());
    } catch (error) {
      if (error instanceof PaperDBError) throw error;
      const why = timeout ? `nothing within ${REQUEST_MS / 1000} s` : error?.cause?.code ?? error?.message;
      throw new PaperDBError(`No answer from the server: ${why}`, { code: "NETWORK", timeout, cause: error });
    } finally {
      clearTimeout(timer);
    }
  }
}

function read(response, text) {
  let value;
  try {
    value = JSON.parse(text);
  } catch {
    value = null;
  }
  if (!response.ok) throw refusal(response, value);
  if (value === null || typeof value !== "object") {
    throw new PaperDBError("The answer is not what PaperDB answers", { status: response.status, code: "BAD_ANSWER" });
  }
  const seq = /^(?:W\/)?"(\d+)"$/.exec(response.headers.get("ETag") ?? "");
  if (seq) seqs.set(value, Number(seq[1]));
  return value;
}

function refusal({ status, headers }, value) {
  const { error = `The server answered with HTTP ${status}`, code = `HTTP_${status}`, ...extra } = value ?? {};
  const retryAfter = Number(headers.get("Retry-After") ?? NaN);
  if (retryAfter >= 0) extra.retryAfter = retryAfter;
  return new PaperDBError(String(error), { ...extra, status, code });
}

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

class Collection {
  #transport;
  #path;
  #properties;
  #registration;

  constructor(transport, name, schema) {
    this.#transport = transport;
    this.#path = `/${checkCollection(name)}`;
    this.#properties = schema?.properties ?? {};
    this.#registration = schema && transport.isSecret ? undefined : Promise.resolve();
    this.name = name;
  }

  insert(document, options = {}) {
    return this.#write("POST", "/docs", { body: () => this.#prepare(document, options) });
  }

  async insertBulk(documents, { atomic = false, unique } = {}) {
    const body = () => Array.from(documents, (document) => this.#prepare(document, { unique }));
    const answer = await this.#write("POST", "/bulk", { body, query: atomic ? { atomic } : {} });
    return { errors: [], ...answer };
  }

  async find(options = {}) {
    const query = parameters(options, ["filter", "sort", "limit", "offset", "select", "count"]);
    const { documents, ...about } = await this.#transport.request("GET", `${this.#path}/docs`, { query });
    for (const name of ["hasMore", "total", "limit", "offset"]) {
      Object.defineProperty(documents, name, { value: about[name] });
    }
    return documents;
  }

  async get(id, options = {}) {
    const query = parameters(options, ["select"]);
    return this.#transport.request("GET", `${this.#path}/docs/${segment(id)}`, { query });
  }

  async update(id, fields, { ifMatch } = {}) {
    return this.#write("PATCH", `/docs/${segment(id)}`, { body: () => asObject(fields), ifMatch });
  }

  async replace(id, document, { ifMatch } = {}) {
    return this.#write("PUT", `/docs/${segment(id)}`, { body: () => asObject(document), ifMatch });
  }

  async delete(id, { ifMatch } = {}) {
    return this.#write("DELETE", `/docs/${segment(id)}`, { ifMatch });
  }

  async count(options = {}) {
    const query = parameters(options, ["filter"]);
    return (await this.#transport.request("GET", `${this.#path}/count`, { query })).count;
  }

  async #write(method, path, { body, ...options }) {
    const value = body?.();
    await (this.#registration ??= this.#register());
    return this.#transport.request(method, this.#path + path, { ...options, body: value });
  }

  /** Tell the server the schema, before our first write. One that has no such route does without. */
  async #register() {
    try {
      await this.#transport.request("PUT", `${this.#path}/schema`, { body: { properties: this.#properties } });
    } catch (error) {
      if (error.status === 404 || error.status === 405) return;
      this.#registration = undefined; // the next write tries again
      throw error;
    }
  }

  #prepare(document, { key, unique }) {
    const prepared = { ...asObject(document) };
    const ruled = [];
    for (const [field, rule] of Object.entries(this.#properties)) {
      if (prepared[field] === undefined && "default" in rule) prepared[field] = rule.default;
      if (rule.unique) ruled.push(field);
    }
    if (key !== undefined) prepared.key = key;
    if (unique !== undefined) prepared.unique = unique;
    else if (ruled.length) prepared.unique ??= ruled;
    return prepared;
  }
}

function asObject(value) {
  if (value !== null && typeof value === "object" && !Array.isArray(value)) return value;
  throw invalid("INVALID_DOCUMENT", "A document must be a JSON object");
}

// --- the client ----------------------------------------------------------------------------------

function checkSchema(schema) {
  for (const [name, definition] of Object.entries(schema)) {
    checkCollection(name);
    if (typeof definition?.properties === "object" && definition.properties !== null) continue;
    throw invalid("INVALID_SCHEMA", `The schema of '${name}' must look like {properties: {email: {type: "string"}}}`);
  }
  return new Map(Object.entries(schema));
}

/** See `ClientOptions` in paperdb.d.ts. Throws a PaperDBError for options that cannot work. */
export function createClient(options = {}) {
  const { apiKey, baseUrl, getToken, fetch, tokenExpiresIn, tokenMarginSeconds = 60 } = options;
  if (!apiKey && !getToken) throw invalid("NO_API_KEY", "createClient needs an apiKey, or a getToken function");
  const schema = checkSchema(options.schema ?? {});
  const transport = new Transport({ baseUrl, apiKey: apiKey || undefined, fetch });
  const mint = async ({ collections, permissions = ["read"], expiresIn }, abort) => {
    const body = { collections, permissions, expiresIn };
    return (await transport.request("POST", "/realtime/token", { body, abort })).token;
  };
  const realtime = new Realtime({
    url: address(options.realtimeUrl ?? baseUrl, "ws"),
    obtain: (collections, abort) =>
      getToken ? ask(getToken, collections) : mint({ collections, expiresIn: tokenExpiresIn }, abort),
    Socket: options.WebSocket,
    tokenMarginSeconds,
  });
  const collections = new Map();
  const collection = (name) => {
    if (!collections.has(name)) collections.set(name, new Collection(transport, name, schema.get(name)));
    return collections.get(name);
  };
  const client = {
    collection,
    close: () => realtime.close(),
    realtime: Object.freeze({
      subscribe: (...args) => realtime.subscribe(...args),
      generateToken: (request) => mint(request),
      onStatus: (listener) => realtime.onStatus(listener),
      get status() {
        return realtime.status;
      },
    }),
  };
  // `then` would make a promise of it, `toJSON` a request of JSON.stringify; they are collections all the
  // same, by `collection("then")`, as are names that every object has (`constructor`).
  const isCollection = (name) =>
    isCollectionName(name) && !(name in client) && name !== "then" && name !== "toJSON";
  return new Proxy(client, {
    get: (target, name) => (isCollection(name) ? collection(name) : target[name]),
  });
}
