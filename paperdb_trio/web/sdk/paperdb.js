/**
 * PaperDB for JavaScript: documents over REST (`./collection.js`), their changes over a WebSocket (`./realtime.js`).
 * Types: paperdb.d.ts.
 *
 * Law: no dependencies; it runs where there are `fetch` and ES modules.
 */

import { Bearer } from "./bearer.js";
import { batch, makeCollection } from "./collection.js";
import { Drafts } from "./drafts.js";
import { PaperDBError, address, checkCollection, invalid, isCollectionName } from "./errors.js";
import { Realtime } from "./realtime.js";
import { Transport, seqOf } from "./requests.js";

export { PaperDBError, seqOf };

const isToken = ({ token }) => typeof token === "string";
const isRevoked = ({ revoked }) => revoked === true;

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
  const bearer = getToken && new Bearer(getToken, tokenMarginSeconds * 1000);
  const transport = new Transport({ baseUrl, apiKey: apiKey || undefined, fetch, bearer });
  const mint = async ({ collections, permissions = ["read"], expiresIn, subject }, abort) => {
    const body = { collections, permissions, expiresIn, subject };
    return (await transport.request("POST", "/realtime/token", isToken, { body, abort, attempts: 1 })).token;
  };
  const { realtimeUrl } = options;
  const realtime = new Realtime({
    url: realtimeUrl == null ? address("baseUrl", baseUrl, "ws") : address("realtimeUrl", realtimeUrl, "ws"),
    obtain: (collections, abort) =>
      getToken ? bearer.obtain(collections) : mint({ collections, expiresIn: tokenExpiresIn }, abort),
    Socket: options.WebSocket,
    tokenMarginSeconds,
  });
  const parts = { transport, realtime, drafts: new Drafts() };
  const collections = new Map();
  const known = (name) => {
    if (!collections.has(name)) collections.set(name, makeCollection(parts, name, schema.get(name)));
    return collections.get(name);
  };
  const collection = (name) => known(name).collection;
  const client = Object.assign(new Client(), {
    collection,
    batch: (operations, about) => batch(parts, known, operations, about),
    close: () => realtime.close(),
    realtime: Object.freeze({
      subscribe: (...args) => realtime.subscribe(...args),
      generateToken: (request) => mint(request),
      async revoke({ jti, subject }) {
        await transport.request("POST", "/realtime/revoke", isRevoked, { body: { jti, subject } });
      },
      onStatus: (listener) => realtime.onStatus(listener),
      get status() {
        return realtime.status;
      },
    }),
  });
  const isCollection = (name) => isCollectionName(name) && !(name in client) && !NOT_COLLECTIONS.test(name);
  return new Proxy(client, {
    get: (target, name) => (isCollection(name) ? collection(name) : target[name]),
  });
}

/** No plain object: MobX and the like copy those, and would leave the collections behind. */
class Client {}

/**
 * What others look for on any object is a collection by `collection("then")` only, as are names that every object
 * has (`constructor`). `then` would make a promise of a client, `toJSON` a request of JSON.stringify; names that
 * begin with `_` are the marks of frameworks (`__v_raw`, `_isMockFunction`).
 */
const NOT_COLLECTIONS = /^(_|then$|toJSON$)/;
